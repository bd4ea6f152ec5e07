"""What a recipe says of how a trained model is made smaller."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from nlp_mtl.compression_checks import IMPORTANCE_ROWS
from nlp_mtl.recipe_reading import validate
from nlp_mtl.recipe_strategies import Fraction, Integer, Positive, Section

REPORT = "compression.json"
"""What a folder of a compressed model holds besides what a run's does."""


class CompressionSpec(Section):
    """How ``nlp-mtl compress`` makes a trained model smaller; nothing by default. In this order."""

    layers: Positive | Annotated[list[Positive], Field(min_length=1)] | None = None
    """The encoder's layers that stay: how many, the lowest ones and the last; or which, counted from 1."""
    heads: Fraction = 0.0
    """The share of attention heads that goes: those that matter least to the tasks, one stays in each layer."""
    intermediate: Fraction = 0.0
    """The share of feed-forward units that goes, in each layer those that matter least to the tasks."""
    importance_rows: Positive = IMPORTANCE_ROWS
    """Training rows that heads and units are weighed on."""
    vocabulary: list[Literal["train", "validation", "test"]] = []
    """Splits whose words stay the same pieces; pieces that they do not need go."""
    vocabulary_files: list[str] = []
    """Files of texts, one a line, whose words stay the same pieces as well. Relative to where the command runs."""
    vocabulary_size: Positive | None = None
    """Pieces that stay at least: besides those that are needed, the first of the tokenizer's, which were frequent where
    it was made. Default: those that are needed."""
    keep_characters: bool = True
    """Keep the pieces of one character, too, so that other words can be cut into them."""
    magnitude: Fraction = 0.0
    """The share of weights in the encoder's layers that become 0, those with the lowest absolute values."""
    magnitude_scope: Literal["global", "layer"] = "global"
    """``global``: the lowest of all; ``layer``: of each matrix the same share."""
    finetune_steps: Annotated[Integer, Field(ge=0)] = 0
    """Optimizer steps of training afterwards, as the recipe says; 0: none."""
    model: str | None = Field(default=None, min_length=1)
    """The folder of the model that training starts from, heads and all, not from the encoder; set by ``compress``."""

    def does_something(self) -> bool:
        """Whether the model becomes another one."""
        words = self.vocabulary or self.vocabulary_files
        return bool(self.layers is not None or self.heads or self.intermediate or words or self.magnitude)


class _Alone(Section):
    compression: CompressionSpec


def compression_alone(given: dict[str, Any]) -> CompressionSpec:
    """A compression without a recipe.

    Raises:
        RecipeError: with all problems.
    """
    return validate(_Alone, {"compression": given}, [], "the compression").compression


def with_compression(overrides: Sequence[str], given: Mapping[str, Any], folder: Path) -> list[str]:
    """A recipe's overrides, with such of its ``compression``, and with the new folder as its own."""
    return [
        f"output_dir={json.dumps(str(folder))}",
        *overrides,
        *(f"compression.{key}={json.dumps(value)}" for key, value in given.items()),
    ]


def own_recipe(source: str | Path) -> tuple[Path | None, list[str]]:
    """The recipe in a run folder, and overrides that take from it what was done already; None: there is none."""
    folder = Path(source).expanduser()
    file = folder / "recipe.yaml"
    if not file.is_file():
        return None, []
    try:
        section = yaml.safe_load(file.read_text(encoding="utf-8"))["compression"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        section = None  # who reads the recipe will tell
    started = isinstance(section, dict) and section.get("model") is not None
    return file, ["compression=null"] if started or (folder / REPORT).is_file() else []

"""The verb ``nlp-mtl evaluate``: trained models on a recipe's data."""

import logging
import sys
from pathlib import Path

from nlp_mtl.build import layout
from nlp_mtl.build_consistency import consistency, is_another, settle_consistency
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.build_start import of_model
from nlp_mtl.errors import DataError, RunError, listed
from nlp_mtl.evaluation import Answers, answer, score
from nlp_mtl.inference.onnx import load_either
from nlp_mtl.metrics import Scores
from nlp_mtl.recipe import Recipe
from nlp_mtl.training.launcher import launched_accelerator

logger = logging.getLogger(__name__)


def evaluate(
    path: str | Path, recipe: Recipe | str | Path | None = None, *, split: str = "test", revision: str | None = None
) -> dict[str, Scores]:
    """Score a trained model on a split of a recipe's datasets: ``{task: scores}``.

    Args:
        path: a run folder, a model folder, a folder with an ONNX graph, or a Hub id.
        recipe: a recipe, or the path of its file; default: the run folder's own.
        split: ``validation``, ``test`` or ``train``.

    Raises:
        NlpMtlError: of the kind that fits.
    """
    prepared, found = answers(path, recipe, split=split, revision=revision)
    if not found:
        raise DataError(f"no dataset of the recipe has labelled rows in the split `{split}`")
    return score(found, prepared.tasks)


def answers(
    path: str | Path, recipe: Recipe | str | Path | None = None, *, split: str, revision: str | None = None
) -> tuple[Prepared, dict[str, dict[str, Answers]]]:
    """Let a trained model answer for a split of a recipe's datasets; arguments as in :func:`evaluate`.

    Returns:
        the data, and ``{task: {dataset: answers}}``; nothing for what has no labels.
    """
    recipe = run_recipe(path) if recipe is None else read_recipe(recipe)
    model, tokenizer = load_either(path, revision=revision)
    accelerator = launched_accelerator(recipe.training.mixed_precision)
    model.to(accelerator.device)
    config = model.config
    changed = is_another(recipe, config)
    prepared = prepare(
        recipe,
        accelerator=accelerator,
        **of_model(config, tokenizer),
        splits=[*{split, *(("train", "validation") if changed else ())}],
    )
    if prepared.streams:
        logger.warning("The training rows of %s are streamed; they are not scored", listed(prepared.streams))

    def answered(split: str) -> dict[str, dict[str, Answers]]:
        return answer(
            model, prepared.split(split), prepared.tasks, prepared.framing,
            max_tokens=max(recipe.training.max_tokens, config.max_length),
            packed=model.packs(layout(recipe)),
            mixed_precision=recipe.training.mixed_precision,
            accelerator=accelerator,
            progress=sys.stderr.isatty() and accelerator.is_main_process,
        )  # fmt: skip

    if changed:
        config.consistency = consistency(recipe, prepared) or None
        settle_consistency(recipe, prepared, model, lambda: score(answered("validation"), prepared.tasks))
    return prepared, answered(split)


def read_recipe(recipe: Recipe | str | Path) -> Recipe:
    """A recipe, or that of a file."""
    return recipe if isinstance(recipe, Recipe) else Recipe.from_yaml(recipe)


def run_recipe(path: str | Path) -> Recipe:
    """The recipe that a run folder keeps.

    Raises:
        RunError: it is not a run folder.
    """
    file = Path(path).expanduser() / "recipe.yaml"
    if not file.parent.is_dir():
        raise RunError(f"there is no run folder {path}; a model of the Hub needs a recipe for its data: --recipe")
    if not file.is_file():
        raise RunError(
            f"{path} is not a run folder (it has no recipe.yaml): say which recipe's data to use, with --recipe"
        )
    return Recipe.from_yaml(file)

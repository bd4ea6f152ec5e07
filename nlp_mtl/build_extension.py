"""Trained models that are extended: loaded, with the recipe beside them."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from nlp_mtl.build_start import of_model
from nlp_mtl.models.checksum import weights_checksum
from nlp_mtl.models.fetching import file_of, only_cached
from nlp_mtl.models.loading import load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import Recipe
from nlp_mtl.tasks import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Base:
    """A trained model that is extended."""

    model: MultiTaskModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    """A whole path, or an id on the Hub."""
    revision: str | None
    from_hub: bool
    recipe: Recipe | None
    """That of the run that trained it, which tells where its data are; None: nothing does."""
    digest: str
    """A checksum of its weights."""

    @property
    def tasks(self) -> list[Task]:
        """Its tasks."""
        return self.model.config.task_list()

    def reading(self) -> dict[str, Any]:
        """How it reads texts, as arguments of :func:`nlp_mtl.build_data.prepare`."""
        return of_model(self.model.config, self.tokenizer)


def load_base(model: str | Path, revision: str | None = None) -> Base:
    """A trained model, and the recipe that lies beside it.

    Args:
        model: a run folder, a model folder or a Hub id.

    Raises:
        ModelError: there is no such model, or it is not one of ours.
        RecipeError: the recipe beside it cannot be read.
    """
    loaded, tokenizer = load_model(model, revision=revision)
    path = os.path.expanduser(model)
    from_hub = not Path(path).is_dir()
    if from_hub:
        file = file_of(path, "recipe.yaml", revision, only_cached(path, revision))
    else:
        path = str(Path(path).resolve())
        file = Path(path) / "recipe.yaml"
    if file is None or not file.is_file():
        logger.info("There is no recipe beside %s: where the data of its tasks lie is not known", model)
        return Base(loaded, tokenizer, path, revision, from_hub, None, weights_checksum(loaded))
    return Base(loaded, tokenizer, path, revision, from_hub, Recipe.from_yaml(file), weights_checksum(loaded))

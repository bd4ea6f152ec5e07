"""The verb ``nlp-mtl compress``: a trained model made smaller, trained again, and measured against what it was."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from nlp_mtl.analysis.prediction_cost import seconds_to_answer
from nlp_mtl.build import layout, steps, trainer_arguments
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.build_distillation import check_teachers
from nlp_mtl.build_start import check_start, of_model
from nlp_mtl.compress_folder import COMPRESSED, check_folder, held_folder, save_report, sizes, start_folder
from nlp_mtl.compress_model import compressed, lines_of
from nlp_mtl.compression.layers import layers_left
from nlp_mtl.errors import Problem, RecipeError, RunError, RunStopped, listed
from nlp_mtl.evaluation import evaluate
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.metrics import Scores
from nlp_mtl.models.checksum import answers_checksum
from nlp_mtl.models.loading import load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import Recipe
from nlp_mtl.recipe_compression import CompressionSpec, own_recipe
from nlp_mtl.run import train
from nlp_mtl.run_evaluation import read_recipe
from nlp_mtl.run_folder import command, save_model, versions
from nlp_mtl.run_folder import start_folder as start_run_folder
from nlp_mtl.run_scores import asking
from nlp_mtl.timed_texts import TIMED_TEXTS, timed_texts
from nlp_mtl.training.launcher import launched_accelerator

logger = logging.getLogger(__name__)

SCORED = ("validation", "test")
_MOST_EPOCHS = 1_000_000
"""That a recipe can have."""


@dataclass(frozen=True)
class _Asked:
    """What is compressed, and how."""

    model: MultiTaskModel
    """As it was, on the CPU."""
    tokenizer: PreTrainedTokenizerBase
    spec: CompressionSpec
    recipe: Recipe | None
    """Of the training afterwards; None: no data are at hand."""
    folder: Path
    accelerator: Accelerator

    def prepared(self, model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase) -> Prepared | None:
        """The data as a model reads them."""
        if self.recipe is None:
            return None
        return prepare(self.recipe, accelerator=self.accelerator, **of_model(model.config, tokenizer))


def compress(
    source: str | Path,
    folder: str | Path,
    recipe: Recipe | str | Path | None = None,
    compression: CompressionSpec | None = None,
    *,
    revision: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make a trained model smaller, train it again where that is wanted, and measure both. The same call goes on.

    Args:
        source: a run folder, a model folder or a Hub id; it stays as it is.
        folder: gets ``model``, ``compression.json`` and, with a recipe, what a run folder holds.
        recipe: whose data are read and whose ``training`` is done afterwards. Default: the run folder's, if there is
            one; without any, heads and units cannot be weighed, nor anything scored or trained.
        compression: what to do; default: the recipe's ``compression``.
        revision: of ``source`` on the Hub.
        overwrite: remove what an earlier call left in ``folder``.

    Returns:
        what ``compression.json`` holds; see ``docs/compression.md``.

    Raises:
        RecipeError: nothing is asked for, or it needs a recipe.
        ModelError: nothing of it can be taken out of the model's family.
        RunStopped: the process was sent SIGTERM while it trained; the same call goes on.
        NlpMtlError: of the kind that fits.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError(
            "one process compresses, and a launcher started several: start `nlp-mtl compress` without it. Several GPUs "
            "train afterwards: torchrun ... -m nlp_mtl train RECIPE compression.model=FOLDER/model output_dir=..."
        )
    target = Path(folder).expanduser()
    if target.resolve() in (given := Path(source).expanduser().resolve(), *given.parents):
        raise RunError(f"the model to compress lies in {folder}, and stays as it is: use another folder")
    own, done = own_recipe(source)
    if recipe is None and own is not None:
        recipe = Recipe.from_yaml(own, done)
    settings = None if recipe is None else read_recipe(recipe)
    spec = compression or (settings.compression if settings else None) or CompressionSpec()
    _check(spec, settings)
    settings = settings and _training_recipe(settings, spec, target)
    if settings is not None and settings.compression is not None:
        spec = settings.compression
    model, tokenizer = load_model(source, revision=revision)
    _check_tasks(spec, settings, model)
    if settings is not None and spec.finetune_steps:
        check_start(settings, model.config)
    described = {
        "model": str(source),
        "revision": revision,
        "digest": answers_checksum(model, tokenizer),
        "compression": spec.model_dump(mode="json"),
        "recipe": settings and settings.to_dict(),
    }
    accelerator = launched_accelerator(settings.training.mixed_precision if settings else "no")
    asked = _Asked(model, tokenizer, spec, settings, target, accelerator)
    with held_folder(target):
        report = check_folder(target, described, overwrite)
        if "compressed" not in report:
            report = _compress(asked, described)
    if spec.finetune_steps and "finetuned" not in report:
        assert settings is not None
        report = _train(asked, settings, report)
    if "speed" not in report:
        report = {**report, "speed": _speed(asked), "versions": versions(), "command": command()}
        save_report(target, report)
    return report


def _check(spec: CompressionSpec, recipe: Recipe | None) -> None:
    """That something is asked for, and that it can be done with what there is.

    Raises:
        RecipeError: it cannot.
    """
    if not spec.does_something():
        message = "nothing is asked for: give layers, heads, intermediate, vocabulary or magnitude"
        raise RecipeError([Problem("compression", message)])
    if recipe is not None and recipe.extension is not None and spec.finetune_steps:
        message = (
            "the model was extended, and its recipe tells how: to train it afterwards give one of all tasks, --recipe"
        )
        raise RecipeError([Problem("compression.finetune_steps", message)])
    if recipe is None:
        wanted = {"heads": spec.heads, "intermediate": spec.intermediate, "vocabulary": spec.vocabulary,
                  "finetune_steps": spec.finetune_steps}  # fmt: skip
        message = "it needs data, and the model comes without its recipe: give one, --recipe"
        if problems := [Problem(f"compression.{key}", message) for key, value in wanted.items() if value]:
            raise RecipeError(problems, "the compression")


def _check_tasks(spec: CompressionSpec, recipe: Recipe | None, model: MultiTaskModel) -> None:
    """That heads and units are weighed for all tasks.

    Raises:
        RecipeError: the recipe lacks some.
    """
    missing = [name for name in model.task_names if recipe is not None and name not in recipe.tasks]
    message = (
        f"what goes would be chosen without {listed(missing)}, tasks of the model that the recipe lacks: give a recipe "
        "of all tasks, --recipe"
    )
    wanted = [key for key in ("heads", "intermediate") if missing and getattr(spec, key)]
    if problems := [Problem(f"compression.{key}", message) for key in wanted]:
        raise RecipeError(problems)


def _training_recipe(recipe: Recipe, spec: CompressionSpec, folder: Path) -> Recipe:
    """The recipe that the smaller model is trained by: what is not trained starts no push, and no search."""
    trained = str(folder / COMPRESSED) if spec.finetune_steps else None
    changes: dict[str, Any] = {
        "compression": spec.model_copy(update={"model": trained}),
        "output_dir": str(folder),
        "hub": None,
        "tune": None,
    }
    if spec.finetune_steps:
        # So many epochs have so many steps, however few rows there are.
        epochs = min(spec.finetune_steps * recipe.training.batch_size, _MOST_EPOCHS)
        lengths = {"max_steps": spec.finetune_steps, "num_epochs": max(recipe.training.num_epochs, epochs)}
        changes["training"] = recipe.training.model_copy(update=lengths)
    return recipe.model_copy(update=changes)


def _compress(asked: _Asked, described: Mapping[str, Any]) -> dict[str, Any]:
    """Compress, score before and after, and write the smaller model; returns the report so far."""
    prepared = asked.prepared(asked.model, asked.tokenizer)
    if asked.spec.finetune_steps:
        _check_training(asked, prepared)
    found = compressed(asked.model, asked.tokenizer, asked.spec, asked.recipe, prepared, asked.accelerator)
    start_folder(asked.folder, described)  # only now: what cannot be done leaves none behind, nor removes an old one
    if asked.recipe is not None:
        start_run_folder(asked.folder, asked.recipe, asked.accelerator)
    after = prepared if found.tokenizer is asked.tokenizer else asked.prepared(found.model, found.tokenizer)
    zipped = bool(asked.spec.magnitude)
    report = {
        "asked": dict(described),
        "done": found.told,
        "before": {**sizes(asked.model, zipped=zipped), "scores": _scores(asked, asked.model, prepared)},
        "compressed": {**sizes(found.model, zipped=zipped), "scores": _scores(asked, found.model, after)},
    }
    save_model(asked.folder / (COMPRESSED if asked.spec.finetune_steps else "model"), found.model, found.tokenizer)
    save_report(asked.folder, report)
    return report


def _check_training(asked: _Asked, prepared: Prepared | None) -> None:
    """That the smaller model can be trained, as far as it shows before there is one.

    Raises:
        RecipeError, DataError, ModelError: it cannot.
    """
    recipe, spec, config = asked.recipe, asked.spec, asked.model.config
    assert recipe is not None
    assert prepared is not None
    count, frozen = config.encoder_config.num_hidden_layers, recipe.training.frozen_layers
    left = count if spec.layers is None else len(layers_left(spec.layers, count))
    if isinstance(frozen, int) and (frozen > left or (frozen == left and recipe.training.unfreeze_every)):
        fewer = f"found {frozen}, but the encoder will have {left} layers: freeze fewer, training.frozen_layers=..."
        raise RecipeError([Problem("training.frozen_layers", fewer)])
    check_teachers(recipe, prepared.tasks)
    steps(recipe, prepared)
    trainer_arguments(recipe, prepared)


def _scores(asked: _Asked, model: MultiTaskModel, prepared: Prepared | None) -> dict[str, dict[str, Scores]]:
    """``{split: {task: scores}}``"""
    if prepared is None or asked.recipe is None:
        return {}
    model.to(asked.accelerator.device)
    options = asking(asked.recipe, model.packs(layout(asked.recipe)), asked.accelerator)
    options["max_tokens"] = max(options["max_tokens"], model.config.max_length)
    scores = {
        split: evaluate(model, prepared.split(split), prepared.tasks, prepared.framing, **options) for split in SCORED
    }
    model.cpu()
    return {split: found for split, found in scores.items() if found}


def _train(asked: _Asked, recipe: Recipe, report: Mapping[str, Any]) -> dict[str, Any]:
    """Train the smaller model by the recipe, from its newest checkpoint if there is one; returns the report so far."""
    try:
        results = train(recipe, resume="auto")
    except RunStopped as error:
        raise RunStopped(f"the training of the smaller model {error} by the same command", error.by_hand) from error
    model, _ = load_model(asked.folder)
    trained = {**sizes(model, zipped=bool(asked.spec.magnitude)), "scores": results["scores"], "step": results["step"]}
    found = {**report, "finetuned": trained}
    save_report(asked.folder, found)
    return found


def _speed(asked: _Asked) -> dict[str, Any] | None:
    """How quickly both models answer for the same texts, in one go, by turns; None: there are no texts."""
    texts, pairs = _texts(asked)
    if not texts and not pairs:
        return None
    recipe = asked.recipe
    options: dict[str, Any] = {}
    if recipe is not None:
        options = {"max_tokens": recipe.training.max_tokens, "layout": layout(recipe),
                   "mixed_precision": recipe.training.mixed_precision}  # fmt: skip
    model, tokenizer = load_model(asked.folder)
    both = {"before": (asked.model, asked.tokenizer), "after": (model, tokenizer)}
    for one, _ in both.values():
        torch.nn.Module.to(one, asked.accelerator.device)
    predictors = {name: [Predictor(*one, **options)] for name, one in both.items()}
    seconds = seconds_to_answer(predictors, texts, pairs)
    count = len(texts) + len(pairs)
    return {
        "texts_per_second": {name: count / taken for name, taken in seconds.items()},
        "ratio": seconds["before"] / seconds["after"],
        "texts": len(texts),
        "pairs": len(pairs),
        "device": str(asked.accelerator.device),
        "threads": torch.get_num_threads(),
    }


def _texts(asked: _Asked) -> tuple[list[Any], list[tuple[Any, Any]]]:
    """What both models are timed on: texts of the recipe's test rows, or of the files whose words stayed."""
    prepared = asked.prepared(asked.model, asked.tokenizer)
    reads = {task.pairs for task in asked.model.config.task_list()}
    if prepared is not None:
        found = [(name, split) for split in SCORED for name in prepared.split(split)]
        return timed_texts(prepared, dict(found))  # of test, where there is one
    lines = [line for file in asked.spec.vocabulary_files for line in lines_of(file)][:TIMED_TEXTS]
    return (lines if False in reads else []), []

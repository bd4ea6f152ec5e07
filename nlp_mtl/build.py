"""From a recipe to objects. The verbs in ``run`` put them together; all other modules take plain arguments."""

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from nlp_mtl.data.columns import holds_text
from nlp_mtl.data.encoding import EncodedSplit, Split, StreamedSplit, encode_split, stream_split
from nlp_mtl.data.items import Framing, frame
from nlp_mtl.data.labels import LabelReader, resolve_task
from nlp_mtl.data.layout import MICRO_BATCH_COST
from nlp_mtl.data.loading import LoadedDataset, load_splits
from nlp_mtl.data.sampling import Sampler, sampling_rates
from nlp_mtl.data.steps import StepDataset
from nlp_mtl.errors import DataError, ModelError, Problem, RecipeError, listed
from nlp_mtl.models.encoder import (
    checkpoint_gradients,
    load_encoder,
    load_encoder_config,
    load_tokenizer,
    longest_input,
)
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.models.packing import will_pack
from nlp_mtl.models.taken_heads import take_head
from nlp_mtl.recipe import SPLITS, Recipe
from nlp_mtl.tasks import Task
from nlp_mtl.training.freezing import freeze, learning_layers
from nlp_mtl.training.threads import num_threads

DEFAULT_MAX_LENGTH = 512
"""Tokens in a window where the recipe does not say: more costs memory and time that few texts are worth."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """All that a run needs besides its model."""

    tasks: list[Task]
    loaded: dict[str, LoadedDataset]
    encoded: dict[str, dict[str, EncodedSplit]]
    """``{dataset: {split: rows}}``"""
    streams: dict[str, StreamedSplit]
    """``{dataset: training rows}`` of those that are streamed."""
    tokenizer: PreTrainedTokenizerBase
    framing: Framing

    def split(self, name: str) -> dict[str, EncodedSplit]:
        """``{dataset: rows}`` of the datasets that have the split."""
        return {dataset: splits[name] for dataset, splits in self.encoded.items() if name in splits}


def prepare(
    recipe: Recipe,
    *,
    accelerator: Accelerator | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    framing: Framing | None = None,
    word_splitter: str | None = None,
    trained_tasks: Sequence[Task] | None = None,
    splits: Sequence[str] = SPLITS,
) -> Prepared:
    """Load and encode a recipe's data.

    Args:
        accelerator: with several processes the first one fills the caches that the others read.
        tokenizer, framing, word_splitter, trained_tasks: of a trained model that is to be scored; default: new ones.
        splits: which to encode.

    Raises:
        RecipeError, DataError, ModelError: what is wrong with the recipe, its data or its encoder.
    """
    if tokenizer is None or framing is None:
        tokenizer, framing = _tokenizer_and_framing(recipe)
    # Without one none is made: accelerate would keep its device for whatever the program does next.
    with accelerator.main_process_first() if accelerator else nullcontext():
        loaded = _load(recipe)
        if trained_tasks is None:
            _check_streams(recipe, loaded)
        for note in (note for dataset in loaded.values() for note in dataset.notes):
            if accelerator is None or accelerator.is_main_process:
                logger.info("%s", note)
        tasks, readers = _tasks(recipe, loaded, trained_tasks)
        encoded, streams = {}, {}
        for name, dataset in loaded.items():
            how = (_readings(recipe, name, tasks, readers), tokenizer, word_splitter or recipe.word_splitter)
            encoded[name] = {
                split: encode_split(dataset, split, *how, recipe.num_proc)
                for split in dataset.splits
                if split in splits
            }
            if dataset.stream is not None and "train" in splits:
                streams[name] = stream_split(dataset, *how)
    return Prepared(tasks, loaded, encoded, streams, tokenizer, framing)


def _tokenizer_and_framing(recipe: Recipe) -> tuple[PreTrainedTokenizerBase, Framing]:
    config = load_encoder_config(recipe.encoder, recipe.encoder_revision)
    tokenizer = load_tokenizer(recipe.encoder, recipe.encoder_revision)
    return tokenizer, frame(tokenizer, _max_length(recipe, config, tokenizer), recipe.window_overlap)


def _max_length(recipe: Recipe, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens in a window. What is learned depends on it, so its default does not depend on ``max_tokens``."""
    longest = longest_input(config, tokenizer)
    chosen = recipe.max_length or min(longest, DEFAULT_MAX_LENGTH)
    problems = []
    if chosen > longest:
        problems.append(Problem("max_length", f"found {chosen}, but the encoder reads at most {longest} tokens"))
    if chosen > recipe.training.max_tokens:
        found = f"found {recipe.training.max_tokens}, but a window of max_length {chosen} has to fit"
        problems.append(Problem("training.max_tokens", f"{found}; raise it, or set a lower max_length"))
    if chosen < 16:
        problems.append(Problem("max_length", f"windows of {chosen} tokens are too short; allow at least 16"))
    if problems:
        raise RecipeError(problems)
    return chosen


def _load(recipe: Recipe) -> dict[str, LoadedDataset]:
    loaded = {}
    for name, spec in recipe.datasets.items():
        readers = [(task, columns[name]) for task in recipe.tasks.values() if name in (columns := task.columns())]
        texts = [column for task, column in readers if task.type == "text-classification"]
        loaded[name] = load_splits(
            name,
            **spec.model_dump(),
            data_dir=recipe.data_dir,
            label_columns=[column for _, column in readers],
            stratify=texts[0] if texts else None,
            seed=recipe.seed,
        )
    return loaded


def _tasks(
    recipe: Recipe, loaded: Mapping[str, LoadedDataset], trained_tasks: Sequence[Task] | None
) -> tuple[list[Task], dict[str, dict[str, LabelReader]]]:
    """The tasks, and ``{task: {dataset: label reader}}``."""
    trained = {task.name: task for task in trained_tasks or ()}
    if trained and not set(trained) & set(recipe.tasks):
        raise ModelError(
            f"the model has the tasks {listed(trained)}, the recipe {listed(recipe.tasks)}: none is in both"
        )
    tasks, readers = [], {}
    for name, spec in recipe.tasks.items():
        if trained_tasks is not None and name not in trained:
            logger.warning("The model has no task `%s`; it is not scored", name)
            continue
        if name in trained and trained[name].type != spec.type:
            raise ModelError(f"the model's task `{name}` is {trained[name].type}, but the recipe's is {spec.type}")
        task, readers[name] = resolve_task(
            name,
            spec.type,
            spec.columns(),
            loaded,
            label_names=spec.label_names,
            label_map=spec.label_map,
            metric=spec.metric,
            loss_weight=spec.loss_weight,
            trained_labels=trained[name].labels if name in trained else None,
        )
        tasks.append(task)
    return tasks, readers


def _readings(
    recipe: Recipe, dataset: str, tasks: Sequence[Task], readers: Mapping[str, Mapping[str, LabelReader]]
) -> list[tuple[Task, str, LabelReader]]:
    """What the tasks read from a dataset: task, column, reader."""
    return [
        (task, recipe.tasks[task.name].columns()[dataset], readers[task.name][dataset])
        for task in tasks
        if dataset in readers[task.name]
    ]


def expects_to_pack(recipe: Recipe) -> bool:
    """Whether a recipe's texts will be packed, as far as the encoder's configuration tells: no weights are read.

    Raises:
        ModelError: they should be, but cannot.
    """
    return will_pack(load_encoder_config(recipe.encoder, recipe.encoder_revision), layout(recipe))


def layout(recipe: Recipe) -> str:
    """The recipe's layout: ``auto``, ``padded`` or ``packed``. A compiled encoder reads padded texts."""
    return "padded" if recipe.training.compile else recipe.training.layout


def steps(
    recipe: Recipe,
    prepared: Prepared,
    *,
    process: int = 0,
    num_processes: int = 1,
    device: str = "cpu",
    packed: bool = False,
) -> StepDataset:
    """The training steps of a recipe, laid out for one process.

    Args:
        packed: whether the model packs; see :meth:`nlp_mtl.models.multitask.MultiTaskModel.packs`.

    Raises:
        DataError: there is nothing to train on, or a task has fewer than two labels in the training splits.
    """
    settings, sampling = recipe.training, recipe.sampling
    shares = sampling.shares
    train = _drawn_from(recipe, prepared)
    for task in prepared.tasks:
        read = [split for split in train.values() if task.name in split.tasks]
        if any(isinstance(split, StreamedSplit) for split in read):
            continue  # nobody has seen its labels
        counts = [split.label_counts(task) for split in read if isinstance(split, EncodedSplit)]
        occurring = [task.labels[place] for place in np.flatnonzero(sum(counts))]
        if len(occurring) < 2:
            what = f"only the label {listed(occurring)}" if occurring else "no labelled row"
            of = " that sampling.shares draws from" if 0 in shares.values() else ""
            raise DataError(f"task `{task.name}` has {what} in the train splits{of}; there is nothing to tell apart")
    sizes = [_size(split) for split in train.values()]
    num_rows = math.inf if 0 in sizes else round(settings.num_epochs * sum(sizes))
    if settings.max_steps is not None:
        num_rows = min(num_rows, settings.max_steps * settings.batch_size)
    sampler = Sampler(
        sizes,
        sampling_rates(sizes, sampling.strategy, sampling.temperature, [shares.get(name, 0) for name in train]),
        batch_size=settings.batch_size,
        num_rows=max(int(num_rows), 1),
        seed=recipe.seed,
        streamed=[place for place, split in enumerate(train.values()) if isinstance(split, StreamedSplit)],
    )
    return StepDataset(
        list(train.values()),
        sampler,
        prepared.tasks,
        prepared.framing,
        max_tokens=settings.max_tokens,
        micro_batch_cost=MICRO_BATCH_COST.get(device, MICRO_BATCH_COST["cuda"]),
        process=process,
        num_processes=num_processes,
        # Threads cannot share what is compiled: it draws the numbers of its dropout from one generator.
        num_threads=1 if settings.compile else num_threads(device, num_processes),
        packed=packed,
        is_bucketed=settings.compile,
    )


def _drawn_from(recipe: Recipe, prepared: Prepared) -> dict[str, Split]:
    """The training splits that steps learn from: a dataset with the share 0 is there to be evaluated on."""
    train: dict[str, Split] = {**prepared.split("train"), **prepared.streams}
    return {name: train[name] for name in prepared.loaded if name in train and recipe.sampling.shares.get(name, 1)}


def _size(split: Split) -> int:
    """Rows of a training split; 0: nobody knows."""
    return (split.source.num_rows or 0) if isinstance(split, StreamedSplit) else len(split)


def _check_streams(recipe: Recipe, loaded: Mapping[str, LoadedDataset]) -> None:
    """Refuse a recipe that counts on what streams do not tell, with all its problems.

    Raises:
        RecipeError: it does.
    """
    problems = []
    streams = {name: dataset.stream for name, dataset in loaded.items() if dataset.stream is not None}
    for name, task in recipe.tasks.items():
        for dataset, column in task.columns().items():
            if dataset in streams and task.label_names is None and holds_text(loaded[dataset].features[column]):
                found = (
                    f"needed: `{dataset}` is streamed, so the labels in `{column}` cannot be collected before training"
                )
                problems.append(Problem(f"tasks.{name}.label_names", found))
    shares = recipe.sampling.shares
    unknown = [name for name, stream in streams.items() if not stream.num_rows and shares.get(name, 1)]
    because = f"nobody knows how many rows {listed(unknown)} has, which is streamed"
    if unknown and recipe.sampling.strategy in ("proportional", "temperature"):
        found = f"`{recipe.sampling.strategy}` goes by rows, but {because}"
        problems.append(Problem("sampling.strategy", f"{found}: say `strategy: fixed` with `shares`, or `uniform`"))
    for key, value in (("max_steps", recipe.training.max_steps), ("eval_every", recipe.training.eval_every)):
        if unknown and value is None:
            problems.append(Problem(f"training.{key}", f"needed, as an epoch cannot be counted: {because}"))
    if problems:
        raise RecipeError(problems)


def steps_per_epoch(recipe: Recipe, prepared: Prepared) -> int:
    """Steps in which at least as many rows are drawn as the training splits hold, so that the last epoch ends last."""
    rows = sum(_size(split) for split in _drawn_from(recipe, prepared).values())
    return math.ceil(rows / recipe.training.batch_size)


def new_model(recipe: Recipe, prepared: Prepared) -> MultiTaskModel:
    """The recipe's encoder with new heads (initialized from torch's global seed).

    Raises:
        ModelError: the encoder cannot be loaded, is of a family that has no such heads, has fewer layers than are to be
            frozen, or cannot checkpoint gradients.
    """
    model = from_encoder(
        load_encoder(recipe.encoder, recipe.encoder_revision, recipe.training.dropout),
        prepared.tasks,
        word_splitter=recipe.word_splitter,
        max_length=prepared.framing.max_length,
        window_overlap=recipe.window_overlap,
    )
    for task in prepared.tasks:
        spec = recipe.tasks[task.name]
        if spec.init_from is not None:
            take_head(model, task, spec.init_from, spec.init_from_revision, spec.label_map)
    freeze(model, recipe.training.frozen_layers)
    if recipe.training.unfreeze_every and not learning_layers(model):
        message = f"frozen_layers: {recipe.training.frozen_layers} leaves nothing to unfreeze; choose one of the two"
        raise RecipeError([Problem("training.unfreeze_every", message)])
    if recipe.training.gradient_checkpointing:
        checkpoint_gradients(model.encoder)
    return model


def selection_weights(recipe: Recipe, prepared: Prepared) -> dict[str, float]:
    """``{task: weight}`` of the mean that chooses the best model."""
    given = recipe.training.selection_weights
    return {task.name: given.get(task.name, 0.0) if given else 1.0 for task in prepared.tasks}


def trainer_arguments(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """The recipe's training section as arguments of :func:`nlp_mtl.training.trainer.train`.

    Raises:
        RecipeError: early stopping or a selection by certain tasks is wanted, but nothing can be scored.
    """
    chosen = [task for task, weight in selection_weights(recipe, prepared).items() if weight]
    validation = prepared.split("validation").values()
    scored = {name for split in validation for name in chosen if name in split.tasks and split.labelled[name].any()}
    if recipe.training.selection_weights and (unscored := [name for name in chosen if name not in scored]):
        message = "the task has no labels in a validation split, so no model can be selected by it: leave it out"
        raise RecipeError([Problem(f"training.selection_weights.{name}", message) for name in unscored])
    if recipe.training.early_stopping_patience and not scored:
        message = "early stopping needs a validation split with labels of a task that counts for the selection score"
        raise RecipeError([Problem("training.early_stopping_patience", message)])
    elsewhere = {"num_epochs", "max_steps", "batch_size", "max_tokens", "layout"}  # in the steps
    elsewhere |= {"dropout", "frozen_layers", "gradient_checkpointing", "selection_weights", "trackers"}
    settings = recipe.training.model_dump(exclude=elsewhere)
    settings["eval_every"] = settings["eval_every"] or steps_per_epoch(recipe, prepared)
    return {**settings, "seed": recipe.seed}


def describe_data(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What a run read, for ``results.json``: ``{dataset: where it is from, and its splits}``."""
    described = {}
    for dataset, splits in prepared.encoded.items():
        told: dict[str, dict[str, Any]] = {
            name: {
                "rows": len(split),
                "taken_from": split.source.source,
                "files": [_relative(file, recipe.data_dir) for file in split.source.files],
            }
            for name, split in splits.items()
        }
        if dataset in prepared.streams:
            stream = prepared.streams[dataset].source
            files = [_relative(file, recipe.data_dir) for file in stream.source.files]
            train = {"rows": stream.num_rows, "taken_from": stream.split, "files": files, "streamed": True}
            told = {"train": train, **told}
        spec = recipe.datasets[dataset].model_dump(include={"path", "name", "revision"}, exclude_none=True)
        described[dataset] = {**spec, "splits": told}
    return described


def _relative(file: str, data_dir: str) -> str:
    """A file's path as seen from ``data_dir``, where it lies below it."""
    path = Path(file)
    return path.relative_to(data_dir).as_posix() if path.is_relative_to(data_dir) else file

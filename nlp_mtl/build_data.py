"""From a recipe to its data: loaded, encoded, or opened as streams."""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from nlp_mtl.build_cleaning import dataset_cleaning, model_cleaning, row_filter
from nlp_mtl.build_losses import loss_shape
from nlp_mtl.cleaning.cleaning import Cleaning
from nlp_mtl.data.encoded_splits import EncodedSplit, StreamedSplit
from nlp_mtl.data.encoding import encode_split, stream_split
from nlp_mtl.data.folds import part_of
from nlp_mtl.data.items import Framing, frame
from nlp_mtl.data.labels import LabelReader, names_needed, resolve_task
from nlp_mtl.data.loading import LoadedDataset, load_splits
from nlp_mtl.errors import DataError, ModelError, Problem, RecipeError, listed
from nlp_mtl.models.encoder import load_encoder_config, load_tokenizer, longest_input, trained_config
from nlp_mtl.recipe import SPLITS, Recipe
from nlp_mtl.recipe_parts import HeldOut
from nlp_mtl.task_types import KINDS
from nlp_mtl.tasks import Decoder, LossShape, Task, TaskType

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
    cleaning: Cleaning
    """What is done to texts at prediction."""
    readers: Mapping[str, Mapping[str, LabelReader]]
    """``{task: {dataset: what reads its labels there}}``"""
    others: list[Task] = field(default_factory=list)
    """The tasks of a trained model of which the recipe knows no data."""

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
    cleaning: Cleaning | None = None,
    trained_tasks: Sequence[Task] | None = None,
    extends: bool = False,
    splits: Sequence[str] = SPLITS,
    train_rows: Mapping[str, np.ndarray] | None = None,
) -> Prepared:
    """Load and encode a recipe's data.

    Args:
        accelerator: with several processes the first one fills the caches that the others read.
        tokenizer, framing, word_splitter, cleaning, trained_tasks: of a trained model that is to be scored, extended
            or trained on, as :func:`nlp_mtl.build_start.of_model` has them; default: new ones.
        extends: tasks that the trained model lacks are new; else they are left out.
        splits: which to encode.
        train_rows: ``{dataset: ascending places}`` of encoded training rows that are kept; default: all.

    Raises:
        RecipeError, DataError, ModelError: what is wrong with the recipe, its data or its encoder.
    """
    if tokenizer is None or framing is None:
        tokenizer, framing = _tokenizer_and_framing(recipe)
    # Without one none is made: accelerate would keep its device for whatever the program does next.
    with accelerator.main_process_first() if accelerator else nullcontext():
        cleaning = model_cleaning(recipe) if cleaning is None else cleaning
        if trained_tasks is None and (accelerator is None or accelerator.is_main_process):
            _tell_other_words(recipe, cleaning)
        word_splitter = word_splitter or recipe.word_splitter
        loaded = _load(recipe, cleaning, word_splitter)
        starts = recipe.compression is not None and recipe.compression.model is not None and "train" in splits
        if trained_tasks is None or extends or starts:
            named = {task.name for task in trained_tasks or () if not extends}
            _check_streams(recipe, loaded, named)
        for note in (note for dataset in loaded.values() for note in dataset.notes):
            if accelerator is None or accelerator.is_main_process:
                logger.info("%s", note)
        tasks, readers = _tasks(recipe, loaded, trained_tasks, extends)
        encoded, streams = {}, {}
        for name, dataset in loaded.items():
            how = (_readings(recipe, name, tasks, readers), tokenizer, word_splitter)
            wanted = {*splits}
            if extends and name in recipe.old_datasets and not (recipe.extension and recipe.extension.reads_old_rows):
                wanted.discard("train")
            encoded[name] = {
                split: encode_split(dataset, split, *how, recipe.num_proc)
                for split in dataset.splits
                if split in wanted
            }
            if dataset.stream is not None and "train" in wanted:
                streams[name] = stream_split(dataset, *how)
    for name, places in (train_rows or {}).items():
        encoded[name]["train"] = part_of(encoded[name]["train"], places)
    if "train" in splits:
        tasks = [replace(task, loss=_loss(recipe, task, encoded, streams)) for task in tasks]
    others = [task for task in trained_tasks or () if task.name not in recipe.tasks]
    return Prepared(tasks, loaded, encoded, streams, tokenizer, framing, cleaning, readers, others)


def _tell_other_words(recipe: Recipe, cleaning: Cleaning) -> None:
    """Warn where the encoder is one of our models and learned from words that were found or cleaned in another way."""
    trained = trained_config(recipe.encoder, recipe.encoder_revision)
    if trained is None:
        return
    learned = Cleaning.from_dict(trained.cleaning)
    if learned != cleaning:
        logger.warning(
            "The encoder `%s` learned from texts of another `cleaning` (%s) than this recipe's (%s), which counts: say "
            "the same, unless the texts differ",
            recipe.encoder, learned.to_dict() or "none", cleaning.to_dict() or "none",
        )  # fmt: skip
    if trained.word_splitter != recipe.word_splitter and not all(spec.tokens for spec in recipe.datasets.values()):
        logger.warning(
            "The encoder `%s` learned from words of `word_splitter: %s`, and this recipe says %s, which counts: say "
            "the same, unless the texts differ", recipe.encoder, trained.word_splitter, recipe.word_splitter,
        )  # fmt: skip


def _loss(
    recipe: Recipe,
    task: Task,
    encoded: Mapping[str, Mapping[str, EncodedSplit]],
    streams: Mapping[str, StreamedSplit],
) -> LossShape:
    """What is changed of a task's loss, by the training rows that steps draw from."""
    train = {name: split["train"] for name, split in encoded.items() if "train" in split} | dict(streams)
    read = {name: split for name, split in train.items() if task.name in split.tasks and recipe.draws_from(name)}
    return loss_shape(task, recipe.tasks[task.name], read)


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
    problems += window_problems(recipe, chosen)
    if chosen < 16:
        problems.append(Problem("max_length", f"windows of {chosen} tokens are too short; allow at least 16"))
    if problems:
        raise RecipeError(problems)
    return chosen


def window_problems(recipe: Recipe, max_length: int) -> list[Problem]:
    """Whether a window of text fits into a micro-batch."""
    if max_length <= recipe.training.max_tokens:
        return []
    found = f"found {recipe.training.max_tokens}, but a window of max_length {max_length} has to fit"
    lower = "" if recipe.extension else ", or set a lower max_length"
    return [Problem("training.max_tokens", f"{found}; raise it{lower}")]


def _load(recipe: Recipe, cleaning: Cleaning, word_splitter: str) -> dict[str, LoadedDataset]:
    loaded = {}
    old = {name for task in recipe.old_tasks for name in recipe.tasks[task].columns()}
    for name in recipe.datasets:
        try:
            loaded[name] = _load_one(recipe, name, cleaning, word_splitter)
        except DataError as error:
            if name not in old:
                raise
            hint = "say where the old data lie now, `extension.data_dir`, or do without them, `extension.old_tasks: []`"
            raise DataError(f"{error} It is of the trained model's tasks: {hint}") from error
    return loaded


def _load_one(recipe: Recipe, name: str, cleaning: Cleaning, word_splitter: str) -> LoadedDataset:
    spec, split = recipe.datasets[name], held_out(recipe, name)
    readers = [(task, read[name]) for task in recipe.tasks.values() if name in (read := task.columns())]
    columns = [column for _, column in readers]
    named = {column for task, column in readers if KINDS[task.type].label_set != "none"}
    return load_splits(
        name,
        **spec.model_dump(exclude={"oversample", "undersample", "cleaning", "augmentation", "data_dir"}),
        data_dir=spec.data_dir or recipe.data_dir,
        label_columns=columns if split.stratify is None else [*columns, split.stratify],
        number_columns=[column for column in columns if column not in named],
        default_stratify=split.stratify,
        seed=recipe.seed,
        split_seed=split.seed,
        cleaning=dataset_cleaning(recipe, name, cleaning),
        row_filter=row_filter(recipe, name),
        word_splitter=word_splitter,
    )


def held_out(recipe: Recipe, dataset: str) -> HeldOut:
    """How rows of a dataset are held out of its training rows, where it lacks splits."""
    if recipe.extension is not None and dataset in recipe.extension.old_splits:
        return recipe.extension.old_splits[dataset]
    read = [(task, task.columns()) for task in recipe.tasks.values()]
    texts = (columns[dataset] for task, columns in read if dataset in columns and _has_classes(task.type))
    seed = recipe.seed if recipe.split_seed is None else recipe.split_seed
    return HeldOut(seed=seed, stratify=next(texts, None))


def _has_classes(type: TaskType) -> bool:
    """Whether a row of a task has one label."""
    return KINDS[type].label_set == "one" and not KINDS[type].reads_words


def _tasks(
    recipe: Recipe, loaded: Mapping[str, LoadedDataset], trained_tasks: Sequence[Task] | None, extends: bool
) -> tuple[list[Task], dict[str, dict[str, LabelReader]]]:
    """The tasks, and ``{task: {dataset: label reader}}``."""
    trained = {task.name: task for task in trained_tasks or ()}
    if trained and not extends and not set(trained) & set(recipe.tasks):
        raise ModelError(
            f"the model has the tasks {listed(trained)}, the recipe {listed(recipe.tasks)}: none is in both"
        )
    tasks, readers = [], {}
    for name, spec in recipe.tasks.items():
        if trained_tasks is not None and not extends and name not in trained:
            logger.warning("The model has no task `%s`; it is not scored", name)
            continue
        if name in trained and trained[name].type != spec.type:
            raise ModelError(f"the model's task `{name}` is {trained[name].type}, but the recipe's is {spec.type}")
        pairs = any(recipe.datasets[dataset].text_pair for dataset in spec.columns())
        if name in trained and trained[name].pairs != pairs:
            read, held = ("pairs of texts", "single texts") if trained[name].pairs else ("single texts", "pairs")
            raise ModelError(f"the model's task `{name}` reads {read}, but the recipe's datasets hold {held}")
        task, readers[name] = resolve_task(
            name,
            spec.type,
            spec.columns(),
            loaded,
            label_names=spec.label_names,
            label_map=spec.label_map,
            metric=spec.metric,
            loss_weight=spec.loss_weight,
            pairs=pairs,
            trained_labels=trained[name].labels if name in trained else None,
            goes_on=extends and name in trained,
        )
        tasks.append(replace(task, decoder=_decoder(task, spec.decoder, trained.get(name))))
    return tasks, readers


def _decoder(task: Task, wanted: Decoder | None, trained: Task | None) -> Decoder:
    """How a task's labels are chosen. A trained model keeps a chain that it learned, and learns none later."""
    if trained is not None and (wanted in (None, "crf") or trained.decoder == "crf"):
        return trained.decoder
    if wanted == "iob2" and not task.is_spans:
        raise DataError(
            f"task `{task.name}`: decoder iob2 needs IOB tags (O, B-X, I-X), but its labels are {listed(task.labels)}"
        )
    return wanted or ("iob2" if task.is_spans else "softmax")


def _readings(
    recipe: Recipe, dataset: str, tasks: Sequence[Task], readers: Mapping[str, Mapping[str, LabelReader]]
) -> list[tuple[Task, str, LabelReader]]:
    """What the tasks read from a dataset: task, column, reader."""
    return [
        (task, recipe.tasks[task.name].columns()[dataset], readers[task.name][dataset])
        for task in tasks
        if dataset in readers[task.name]
    ]


def _check_streams(recipe: Recipe, loaded: Mapping[str, LoadedDataset], named: Collection[str]) -> None:
    """Refuse a recipe that counts on what streams do not tell, with all its problems.

    Args:
        named: tasks whose labels a trained model tells.

    Raises:
        RecipeError: it does.
    """
    problems = []
    streams = {name: dataset.stream for name, dataset in loaded.items() if dataset.stream is not None}
    for name, task in recipe.tasks.items():
        for dataset, column in task.columns().items():
            has_names = KINDS[task.type].label_set != "none" and name not in named
            if has_names and (why := names_needed(loaded[dataset], column, task.label_names)):
                problems.append(Problem(f"tasks.{name}.label_names", f"needed: {why}"))
    unknown = [name for name, stream in streams.items() if not stream.num_rows and recipe.draws_from(name)]
    because = f"nobody knows how many rows {listed(unknown)} has, which is streamed"
    if unknown and recipe.sampling.strategy in ("proportional", "temperature", "annealed"):
        found = f"`{recipe.sampling.strategy}` goes by rows, but {because}"
        problems.append(Problem("sampling.strategy", f"{found}: say `strategy: fixed` with `shares`, or `uniform`"))
    settings = {"training.max_steps": recipe.training.max_steps, "training.eval_every": recipe.training.eval_every}
    if recipe.balancing.strategy == "dwa":
        settings["balancing.period"] = recipe.balancing.period
    for key, value in settings.items():
        if unknown and value is None:
            problems.append(Problem(key, f"needed, as an epoch cannot be counted: {because}"))
    if problems:
        raise RecipeError(problems)

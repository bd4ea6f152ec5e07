"""A search for label errors: its data, dealt into folds."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.data.encoded_splits import EncodedSplit, Split
from nlp_mtl.data.folds import folds, row_codes, same_texts
from nlp_mtl.data.labelled_items import labelled_items
from nlp_mtl.data.loading import compared_rows
from nlp_mtl.errors import DataError, RunError, listed
from nlp_mtl.label_error_edits import check_numbers
from nlp_mtl.recipe import Recipe
from nlp_mtl.storage import written_file
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """What all folds have in common."""

    folder: Path
    recipe: Recipe
    prepared: Prepared
    tasks: tuple[Task, ...]
    """Those whose labels are looked at."""
    folds: Mapping[str, np.ndarray]
    """``{dataset: [rows] the fold of each training row}``, of the datasets that these tasks read."""
    count: int
    accelerator: Accelerator

    def run(self, number: int) -> Path:
        """The run folder of a fold."""
        return self.folder / "folds" / f"fold-{number}"

    def found(self, number: int) -> Path:
        """What the run of a fold says; there only when it is whole."""
        return self.folder / "out_of_fold" / f"fold-{number}.npz"

    def is_done(self, number: int) -> bool:
        """Whether the run of a fold has said all, and has ended."""
        return self.found(number).is_file() and (self.run(number) / "results.json").is_file()

    def points(self, number: int) -> Path:
        """The folder of what is measured while a fold is trained."""
        return self.folder / "points" / f"fold-{number}"

    def split(self, dataset: str) -> EncodedSplit:
        """All training rows of a dataset."""
        return self.prepared.encoded[dataset]["train"]

    def read_in(self, dataset: str) -> list[Task]:
        """The tasks that read labels in a dataset."""
        return [task for task in self.tasks if task.name in self.split(dataset).tasks]


def open_search(
    recipe: Recipe,
    folder: Path,
    wanted: Sequence[str],
    count: int,
    accelerator: Accelerator,
    *,
    anew: bool,
    start: Callable[[], None],
    is_written: bool,
) -> Search:
    """Load the data, and deal them into folds; or take those of an earlier call.

    Args:
        folder: of the search; it is there.
        wanted: the tasks whose labels are looked at.
        count: how many folds.
        anew: whether there is no earlier call, or it is to be forgotten.
        start: makes the folder ready, on the main process, once all that could be wrong with the data is not.
        is_written: whether the data are to be written with other labels.

    Raises:
        DataError: there is nothing to look at, or too little for so many folds; or it cannot be written.
        RunError: the data are others than those of the earlier call.
    """
    prepared = prepare(recipe, accelerator=accelerator, splits=("train", "validation"))
    tasks = tuple(task for task in prepared.tasks if task.name in wanted)
    names = _datasets_of(recipe, prepared, tasks)
    _check_classes(prepared, tasks, names, count)
    if is_written:
        check_numbers(recipe, prepared, names)
    file = folder / "folds.npz"
    if accelerator.is_main_process:
        digest = _digest(prepared)
        dealt = {} if anew or not file.is_file() else _earlier(file, digest, names)
        dealt = dealt or _dealt(recipe, prepared, tasks, names, count)
        _check_dealt(prepared, tasks, dealt, count)
        start()
        with written_file(file) as partial, partial.open("wb") as whole:
            of_rows = {_key(name): fold for name, fold in dealt.items()}
            np.savez(whole, digest=np.array(digest), **of_rows)  # type: ignore[arg-type]
    accelerator.wait_for_everyone()
    with np.load(file, allow_pickle=False) as kept:
        found = {name: kept[_key(name)] for name in names}
    return Search(folder, recipe, prepared, tasks, found, count, accelerator)


def _datasets_of(recipe: Recipe, prepared: Prepared, tasks: Sequence[Task]) -> list[str]:
    """The datasets whose labels are looked at.

    Raises:
        DataError: one is streamed, or a task has no labelled training row.
    """
    read = {dataset for task in tasks for dataset in recipe.tasks[task.name].columns()}
    if streamed := [name for name in recipe.datasets if name in read and name in prepared.streams]:
        raise DataError(
            f"{listed(streamed)}: the training rows are streamed, so they cannot be dealt into folds: leave out "
            "`streaming`, or look at other tasks (--task)"
        )
    train = {name: split for name, split in prepared.split("train").items() if name in read}
    for task in tasks:
        if not any(split.labelled[task.name].any() for split in train.values() if task.name in split.tasks):
            raise DataError(f"task `{task.name}` has no labelled training row, so there is no label to look at")
    return [*train]


def _check_classes(prepared: Prepared, tasks: Sequence[Task], names: Sequence[str], count: int) -> None:
    """That models can learn what they are asked for: a label has to be in other folds than the one that is held out.

    Raises:
        DataError: a label of a text stands in fewer rows than there are folds.
    """
    for task in tasks:
        splits = [split for name in names if task.name in (split := prepared.encoded[name]["train"]).tasks]
        counts = np.sum([split.label_counts(task) for split in splits], axis=0)
        rare = [f"{task.labels[place]} ({counts[place]})" for place in np.flatnonzero((counts > 0) & (counts < count))]
        if not rare:
            continue
        if kind_of(task).label_set == "one" and not kind_of(task).reads_words:
            raise DataError(
                f"task `{task.name}`: {listed(rare)} of the training rows, fewer than the {count} folds: ask for fewer "
                "(--folds), join labels (`label_map`), or leave these rows out"
            )
        logger.warning(
            "Task `%s`: %s of the training labels, fewer than the %d folds; what is said of them is worth little",
            task.name, listed(rare), count,
        )  # fmt: skip


def _check_dealt(prepared: Prepared, tasks: Sequence[Task], dealt: Mapping[str, np.ndarray], count: int) -> None:
    """That no label stands in one fold alone, as that of near doubles does: who is asked for it never learned it.

    Raises:
        DataError: a label of a text does.
    """
    for task in tasks:
        stands_in = np.zeros((len(task.labels), count), dtype=bool)
        rows_of = np.zeros(len(task.labels), dtype=np.int64)
        for name, fold in dealt.items():
            split = prepared.encoded[name]["train"]
            if task.name not in split.tasks:
                continue
            items = labelled_items(split, task)
            places, labels = np.nonzero(items.given) if items.given.ndim > 1 else (np.arange(len(items)), items.given)
            stands_in[labels, fold[items.rows[places]]] = True
            rows_of += split.label_counts(task)
        # Those of fewer rows than folds are told already.
        alone = np.flatnonzero((stands_in.sum(axis=1) == 1) & (rows_of >= count))
        if not len(alone):
            continue
        told = listed(f"{task.labels[place]} ({rows_of[place]})" for place in alone)
        if kind_of(task).label_set == "one" and not kind_of(task).reads_words:
            raise DataError(
                f"task `{task.name}`: all training rows of {told} are in one fold, where rows that say the same or "
                "nearly so always go together; the model that is asked for them would not know the label, and take all "
                "for errors: join labels (`label_map`), leave these rows out, or ask for more folds (--folds)"
            )
        logger.warning(
            "Task `%s`: all training labels %s are in one fold; what is said of them is worth little", task.name, told
        )


def _digest(prepared: Prepared) -> str:
    """A checksum of all that the folds' models learn from, and are chosen by."""
    found = hashlib.sha256()
    for name, splits in prepared.encoded.items():
        every: dict[str, Split] = {**splits}
        if name in prepared.streams:
            every["train"] = prepared.streams[name]
        for split, rows in sorted(every.items()):
            found.update(f"{name}/{split}:{rows.digest()}\n".encode())
    return found.hexdigest()


def _key(dataset: str) -> str:
    """Under which the folds of a dataset are kept: no name of a dataset is one that means something else there."""
    return f"rows/{dataset}"


def _earlier(file: Path, digest: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The folds of an earlier call.

    Raises:
        RunError: they are of other rows.
    """
    with np.load(file, allow_pickle=False) as kept:
        if str(kept["digest"]) != digest:
            raise RunError(
                f"the training or validation data have changed since the search in {file.parent} was started: bring "
                "them back as they were, or start again, with --overwrite"
            )
        return {name: kept[_key(name)] for name in names}


def _dealt(
    recipe: Recipe, prepared: Prepared, tasks: Sequence[Task], names: Sequence[str], count: int
) -> dict[str, np.ndarray]:
    """The folds of a new search.

    Raises:
        DataError: a dataset has fewer different texts than folds.
    """
    loaded = [prepared.loaded[name] for name in names]
    splits = [prepared.encoded[name]["train"] for name in names]
    same = same_texts(row for one in loaded for row in compared_rows(one, [one.splits["train"]], recipe.word_splitter))
    groups = np.split(same, np.cumsum([len(split) for split in splits])[:-1])
    codes = [row_codes(split, tasks) for split in splits]
    seed = recipe.seed if recipe.split_seed is None else recipe.split_seed
    found = folds(groups, codes, count, seed)
    for name, group, fold in zip(names, groups, found, strict=True):
        if len(np.unique(fold)) < count:
            raise DataError(
                f"dataset `{name}` has {len(np.unique(group))} different training texts, too few for {count} folds: "
                "ask for fewer (--folds)"
            )
    repeated = len(same) - len(np.unique(same))
    told = f", {repeated:,} of which repeat another one, or nearly, and stand in its fold" if repeated else ""
    logger.info("%d folds of %s training rows%s", count, f"{len(same):,}", told)
    return dict(zip(names, found, strict=True))

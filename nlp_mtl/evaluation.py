"""Scores of all tasks from one pass: ``{task: {metric: value}}``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from nlp_mtl.data.encoded_splits import EncodedSplit, label_column
from nlp_mtl.data.items import Framing, read_items
from nlp_mtl.data.kept_states import KeptStates, sources_of
from nlp_mtl.inference.onnx import OnnxModel
from nlp_mtl.inference.scoring import score_items
from nlp_mtl.metrics import Scores
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.task_types import kind_of, score_task
from nlp_mtl.task_types.kind import Decision
from nlp_mtl.tasks import MISSING, Task

ROWS_AT_ONCE = 2048
"""Rows that are sorted by length together; bounds the memory that answers take."""


class Answers(NamedTuple):
    """What a model says of the labelled rows of a split, and what is right; one entry a row, or a labelled stretch."""

    rows: list[int]
    """The row of each entry. A row of words has an entry for each stretch in which all words have labels."""
    gold: list[Any]
    """A label, or the labels of the words, by name; the set of several labels; a number."""
    predicted: list[Any]


def evaluate(
    model: MultiTaskModel | OnnxModel,
    splits: Mapping[str, EncodedSplit],
    tasks: Sequence[Task],
    framing: Framing,
    **options: Any,
) -> dict[str, Scores]:
    """Score every task on the datasets that carry its labels, reading each text once.

    Args:
        options: and all others as in :func:`answer`.

    Returns:
        as :func:`score`.
    """
    return score(answer(model, splits, tasks, framing, **options), tasks)


def score(answers: Mapping[str, Mapping[str, Answers]], tasks: Sequence[Task]) -> dict[str, Scores]:
    """Score what :func:`answer` found.

    Returns:
        ``{task: scores}``, see :func:`nlp_mtl.task_types.score_task`; a task of several datasets is scored over all
        their rows together, with the scores of each in ``per_dataset``. A task without labels is left out.
    """
    results = {}
    for task in tasks:
        found = answers.get(task.name, {})
        if not found:
            continue
        all_gold = [row for one in found.values() for row in one.gold]
        all_predicted = [row for one in found.values() for row in one.predicted]
        results[task.name] = score_task(task, all_gold, all_predicted)
        if len(found) > 1:
            per_dataset = {name: score_task(task, one.gold, one.predicted) for name, one in found.items()}
            results[task.name]["per_dataset"] = per_dataset
    return results


def answer(
    model: MultiTaskModel | OnnxModel,
    splits: Mapping[str, EncodedSplit],
    tasks: Sequence[Task],
    framing: Framing,
    *,
    max_tokens: int,
    packed: bool = False,
    mixed_precision: str = "no",
    accelerator: Accelerator | None = None,
    progress: bool = False,
    kept: Mapping[str, KeptStates] | None = None,
) -> dict[str, dict[str, Answers]]:
    """Let a model answer for the datasets that carry labels, reading each text once.

    Rows, windows and words are all counted: nothing is cut away or dropped. With several processes each reads
    its share, and all return the same answers.

    Args:
        splits: ``{dataset: split}``.
        packed: read texts without padding; see :meth:`nlp_mtl.models.multitask.MultiTaskModel.packs`.
        accelerator: to share the rows among processes.
        progress: show a bar.
        kept: ``{dataset: hidden states of its rows}``, of all datasets or none: the encoder is not run.

    Returns:
        ``{task: {dataset: answers}}``; what has no labels is left out.
    """
    found: dict[str, dict[str, Answers]] = {task.name: {} for task in tasks}
    for dataset, split in splits.items():
        present = [task for task in tasks if task.name in split.tasks and split.labelled[task.name].any()]
        if not present:
            continue
        answers = {task.name: Answers([], [], []) for task in present}
        for pairs in _decided(
            model, split, present, framing, lambda decision: decision.chosen, max_tokens=max_tokens, packed=packed,
            mixed_precision=mixed_precision, accelerator=accelerator, title=dataset if progress else None,
            kept=(kept or {}).get(dataset),
        ):  # fmt: skip
            _add(answers, split, present, pairs)
        for task in present:
            found[task.name][dataset] = answers[task.name]
    return {task: of_datasets for task, of_datasets in found.items() if of_datasets}


def probabilities(
    model: MultiTaskModel,
    split: EncodedSplit,
    tasks: Sequence[Task],
    framing: Framing,
    *,
    progress: bool = False,
    **options: Any,
) -> dict[str, np.ndarray]:
    """How probable a model holds each label of the labelled items of a split, reading each text once.

    Args:
        tasks: those that read labels there, and have label sets.
        options: and ``progress`` as in :func:`answer`.

    Returns:
        ``{task: [items, labels]}``, items in the order of :func:`nlp_mtl.data.labelled_items.labelled_items`.
    """
    found: dict[str, list[np.ndarray]] = {
        task.name: [np.zeros((0, len(task.labels)), dtype=np.float32)] for task in tasks
    }
    options = {"packed": False, "mixed_precision": "no", "accelerator": None, **options}
    title = split.source.dataset if progress else None
    for pairs in _decided(model, split, tasks, framing, lambda decision: decision.scores, title=title, **options):
        batch = split.rows[np.array([row for row, _ in pairs])]
        for task in tasks:
            kind = kind_of(task)
            for target, (_, scores) in zip(batch[label_column(task.name)], pairs, strict=True):
                if kind.num_items(target):
                    items = scores[task.name].reshape(-1, len(task.labels))
                    found[task.name].append(items[np.asarray(target) != MISSING] if kind.reads_words else items)
    return {task: np.concatenate(parts) for task, parts in found.items()}


def _decided(
    model: MultiTaskModel | OnnxModel,
    split: EncodedSplit,
    tasks: Sequence[Task],
    framing: Framing,
    part: Callable[[Decision], np.ndarray],
    *,
    max_tokens: int,
    packed: bool,
    mixed_precision: str,
    accelerator: Accelerator | None,
    title: str | None,
    kept: KeptStates | None = None,
) -> Iterator[list[tuple[int, dict[str, np.ndarray]]]]:
    """Rows of a split, in order and some at a time, each with ``{task: part of its decision}``."""
    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    with tqdm(total=len(split), desc=f"Evaluating {title}", disable=None if title else True, leave=False) as bar:
        for start in range(0, len(split), ROWS_AT_ONCE * processes):
            rows = np.arange(start, min(start + ROWS_AT_ONCE * processes, len(split)))
            mine = rows[rank::processes]
            items = read_items(split, mine, tasks, framing) if len(mine) else []
            found = score_items(
                model,
                items,
                len(mine),
                tasks,
                framing,
                max_tokens=max_tokens,
                packed=packed,
                mixed_precision=mixed_precision,
                sources=sources_of(items, [(kept, int(row)) for row in mine]) if kept else (),
                on_rows=lambda count: bar.update(count * processes),
            )
            parts = [{task.name: part(found[task.name][place]) for task in tasks} for place in range(len(mine))]
            pairs = list(zip(mine.tolist(), parts, strict=True))
            if processes > 1:
                pairs = sorted(gather_object(pairs), key=lambda pair: pair[0])
            yield pairs


def _add(
    answers: Mapping[str, Answers],
    split: EncodedSplit,
    tasks: Sequence[Task],
    pairs: Sequence[tuple[int, Mapping[str, np.ndarray]]],
) -> None:
    batch = split.rows[np.array([row for row, _ in pairs])]
    for task in tasks:
        kind, (rows, gold, predicted) = kind_of(task), answers[task.name]
        for target, (row, chosen) in zip(batch[label_column(task.name)], pairs, strict=True):
            if kind.num_items(target):
                one, other = kind.compared(task, np.asarray(target), chosen[task.name])
                gold += one
                predicted += other
                rows += [row] * len(one)


def selection_score(results: Mapping[str, Scores], tasks: Sequence[Task], weights: Mapping[str, float]) -> float | None:
    """The mean of the tasks' main metrics: what model selection and early stopping look at.

    Args:
        weights: ``{task: weight}`` of the mean.

    Returns:
        None where no task with a weight was scored.
    """
    scored = [(weights[t.name], results[t.name][t.metric]) for t in tasks if t.name in results]
    total = sum(weight for weight, _ in scored)
    return sum(weight * value for weight, value in scored) / total if total else None

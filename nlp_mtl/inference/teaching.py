"""A teacher's answers of training rows: asked once, kept beside the rows as it reads them, memory-mapped like them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import datasets
import numpy as np

from nlp_mtl.data.encoded_splits import EncodedSplit, Taught
from nlp_mtl.data.encoding import by_one_at_a_time
from nlp_mtl.data.items import Framing, read_items
from nlp_mtl.data.soft_targets import soft_column
from nlp_mtl.inference.scoring import row_logits
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task

VERSION = 1
"""Part of the checksum; raised when what is kept changes."""

ROWS_AT_ONCE = 1024
"""Rows that are sorted by length together; bounds the memory that answers take."""

_LEAST = np.finfo(np.float32).tiny


def with_soft_targets(
    split: EncodedSplit,
    read: EncodedSplit,
    teacher: MultiTaskModel,
    framing: Framing,
    tasks: Sequence[Task],
    *,
    teacher_id: str,
    beyond_labels: bool,
    max_tokens: int,
    mixed_precision: str,
    title: str,
) -> EncodedSplit:
    """A split with what a teacher says of its rows.

    Args:
        split: what the student learns from.
        read: the same rows without labels, as the teacher reads them.
        framing: the teacher's.
        tasks: the student's, those that learn from the teacher here; the teacher has them by the same names.
        teacher_id: a checksum of the teacher, as :func:`nlp_mtl.models.checksum.answers_checksum` gives it.
        beyond_labels: whether the tasks learn of rows and words without a label, too.
        mixed_precision: that of training: soft targets need no more digits.
        title: of the rows, for messages.
    """
    theirs = {task.name: task for task in teacher.config.task_list()}
    asked = [theirs[name] for name in sorted(task.name for task in tasks)]
    parts = [VERSION, read.rows._fingerprint, teacher_id, [task.name for task in asked], framing, mixed_precision]
    fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    packed = teacher.packs("auto")

    def answered(_: Mapping[str, Any], places: list[int]) -> dict[str, list[bytes]]:
        items = read_items(read, places, (), framing)
        logits, transitions = row_logits(
            teacher, items, len(places), asked, framing,
            max_tokens=max_tokens, packed=packed, mixed_precision=mixed_precision,
        )  # fmt: skip
        return {
            soft_column(task.name): [
                one.tobytes() for one in _by_item(task, logits[task.name], transitions.get(task.name))
            ]
            for task in asked
        }

    features = datasets.Features()
    features.update({soft_column(task.name): datasets.Value("binary") for task in asked})
    waiting = f"{title}: waiting for another process, which asks the teacher"
    with by_one_at_a_time(read.rows, fingerprint, waiting):
        answers = read.rows.map(
            answered,
            with_indices=True,
            batched=True,
            batch_size=ROWS_AT_ONCE,
            remove_columns=read.rows.column_names,
            features=features,
            new_fingerprint=fingerprint,
            desc=f"Asking the teacher: {title}",
        )
    taught = {
        task.name: Taught(
            teacher_id, beyond_labels, answers, tuple(theirs[task.name].labels.index(label) for label in task.labels)
        )
        for task in tasks
    }
    return replace(split, soft={**split.soft, **taught})


def _by_item(task: Task, rows: Sequence[np.ndarray], transitions: np.ndarray | None) -> list[np.ndarray]:
    """Of each row [words, labels], or [1, labels] of a text. What a chain says of a word is its marginals."""
    if task.decoder == "crf":
        rows = [np.log(np.maximum(one.scores, _LEAST)) for one in kind_of(task).decide(task, rows, transitions)]
    return [np.ascontiguousarray(one, dtype=np.float32).reshape(-1, len(task.labels)) for one in rows]

"""From items to tensors: micro-batches, padded or packed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nlp_mtl.data.items import Framing, Item, carries, word_positions
from nlp_mtl.data.layout import bucketed
from nlp_mtl.data.soft_targets import SoftRows, Teaching, said
from nlp_mtl.task_types import kind_of
from nlp_mtl.task_types.crf import Chains, links_of
from nlp_mtl.task_types.kind import Target
from nlp_mtl.tasks import MISSING, PLAIN_LOSS, LossShape, Task, TaskType


class TaskRows(NamedTuple):
    """The rows of a micro-batch that carry a task's labels."""

    rows: Tensor
    """[r] Their places in the micro-batch; may be none. Packed: places of tokens in the flat row, [n] of those that
    carry labels for token tasks, [r, tokens] for text tasks, -1 where a row is shorter."""
    labels: Tensor
    """Label ids: [r, tokens] for token tasks, MISSING where no word starts ([1, n] packed); for text tasks their
    targets, [r] or [r, labels]."""
    weights: Tensor
    """[r] What each row counts: 1, or its share where a text task's row was cut into windows."""
    type: TaskType
    """The task's, which says what the loss is."""
    chains: Chains | None = None
    """Of tasks with the decoder ``crf``: which tokens of the logits follow each other."""
    loss: LossShape = PLAIN_LOSS
    """What is changed of its loss."""
    soft: SoftRows | None = None
    """What the task's teacher says of these rows."""


class MicroBatch(NamedTuple):
    """Tensors of one pass through the encoder."""

    inputs: dict[str, Any]
    """Arguments of the model: ``input_ids`` and ``attention_mask``, [rows, tokens]. Packed: ``input_ids`` and
    ``position_ids``, [1, tokens], ``cu_seq_lens``, [rows + 1], and ``lengths``, a list of numbers. With pairs of texts
    among them also ``token_type_ids``, of the shape of ``input_ids``."""
    tasks: dict[str, TaskRows]
    """All tasks, also those of which no row carries labels."""


def collate(
    items: Sequence[Item],
    tasks: Sequence[Task],
    framing: Framing,
    *,
    packed: bool = False,
    is_bucketed: bool = False,
    teaching: Teaching | None = None,
) -> MicroBatch:
    """A micro-batch, padded (to one of few lengths, if it is bucketed) or packed.

    ``teaching``: how tasks learn from teachers in this step, where items have what those say.

    Without items it holds one row of special tokens and no labels: a process that has nothing to learn in a
    step still runs the encoder, so that its gradients take part.
    """
    rows = [_tokens(item, framing) or [framing.pad_id] for item in items]
    rows = rows or [[*framing.prefix, *framing.suffix] or [framing.pad_id]]
    has_pairs = any(item.second is not None for item in items)
    types = [_token_types(item, len(row), framing) for item, row in zip(items, rows, strict=True)] if has_pairs else []
    lengths = np.array([len(row) for row in rows])
    if packed:
        ends = np.concatenate([[0], lengths.cumsum()])
        inputs: dict[str, Any] = {
            "input_ids": torch.tensor([[token for row in rows for token in row]]),
            "position_ids": torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
            "cu_seq_lens": torch.from_numpy(ends.astype(np.int32)),
            "lengths": lengths.tolist(),
        }
        if has_pairs:
            inputs["token_type_ids"] = torch.tensor([[one for row in types for one in row]])
        return MicroBatch(inputs, {task.name: _packed_rows(task, items, ends, framing, teaching) for task in tasks})
    num_tokens = (bucketed(lengths, framing.max_length) if is_bucketed else lengths).max()
    input_ids = np.full((len(rows), num_tokens), framing.pad_id, dtype=np.int64)
    for place, row in enumerate(rows):
        input_ids[place, : len(row)] = row
    attention_mask = (np.arange(num_tokens) < lengths[:, None]).astype(np.int64)
    inputs = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}
    if has_pairs:
        token_type_ids = np.zeros_like(input_ids)
        for place, row in enumerate(types):
            token_type_ids[place, : len(row)] = row
        inputs["token_type_ids"] = torch.from_numpy(token_type_ids)
    return MicroBatch(inputs, {task.name: _padded_rows(task, items, num_tokens, framing, teaching) for task in tasks})


def _tokens(item: Item, framing: Framing) -> list[int]:
    """All tokens of an item, special ones too."""
    if item.second is None:
        return [*framing.prefix, *item.pieces[item.window.start : item.window.stop], *framing.suffix]
    pair = framing.pair
    assert pair is not None
    return [*pair.prefix, *item.pieces[: item.second], *pair.middle, *item.pieces[item.second :], *pair.suffix]


def _token_types(item: Item, length: int, framing: Framing) -> list[int]:
    """The segment of each token: 0 in single texts."""
    if item.second is None:
        return [0] * length
    pair = framing.pair
    assert pair is not None
    first, second = [pair.first_type] * item.second, [pair.second_type] * (len(item.pieces) - item.second)
    return [*pair.prefix_types, *first, *pair.middle_types, *second, *pair.suffix_types] or [0]


def _padded_rows(
    task: Task, items: Sequence[Item], num_tokens: int, framing: Framing, teaching: Teaching | None
) -> TaskRows:
    rows = [row for row, item in enumerate(items) if carries(item, task)]
    if not kind_of(task).reads_words:
        return TaskRows(torch.tensor(rows, dtype=torch.long), **_texts(task, [items[row] for row in rows], teaching))
    labels = np.full((len(rows), num_tokens), MISSING, dtype=np.int64)
    for place, row in enumerate(rows):
        labels[place, word_positions(items[row], framing)] = _word_labels(task, items[row])
    chains = None
    if task.decoder == "crf":
        chains = _chains(
            task, [items[row] for row in rows], [np.flatnonzero(row != MISSING) for row in labels], num_tokens
        )
    soft = None
    if teaching is not None and any(task.name in items[row].soft for row in rows):
        places = [row * num_tokens + word_positions(items[i], framing) for row, i in enumerate(rows)]
        flat = np.concatenate(places)
        logits, weights = torch.zeros(labels.size, len(task.labels)), torch.zeros(labels.size)
        logits[flat], weights[flat] = said(task, [items[row] for row in rows], labels.flat[flat] != MISSING, teaching)
        soft = _soft_rows(logits, weights, labels.shape, teaching)
    chosen = torch.tensor(rows, dtype=torch.long), torch.from_numpy(labels)
    return TaskRows(*chosen, torch.ones(len(rows)), task.type, chains, task.loss, soft)


def _packed_rows(
    task: Task, items: Sequence[Item], ends: np.ndarray, framing: Framing, teaching: Teaching | None
) -> TaskRows:
    """``ends``: [items + 1] where each item starts in the flat row, and the end."""
    rows = [row for row, item in enumerate(items) if carries(item, task)]
    if not kind_of(task).reads_words:
        starts, stops = ends[:-1][rows][:, None], ends[1:][rows][:, None]
        places = starts + np.arange((stops - starts).max(initial=1))
        places[places >= stops] = -1
        return TaskRows(torch.from_numpy(places), **_texts(task, [items[row] for row in rows], teaching))
    none = [np.zeros(0, dtype=np.int64)]
    labels = np.concatenate([_word_labels(task, items[row]) for row in rows] or none)
    places = np.concatenate([ends[row] + word_positions(items[row], framing) for row in rows] or none)
    wanted, soft = labels != MISSING, None
    if teaching is not None and any(task.name in items[row].soft for row in rows):
        logits, weights = said(task, [items[row] for row in rows], wanted, teaching)
        wanted |= weights.numpy() > 0
        soft = _soft_rows(logits[wanted], weights[wanted], (1, int(wanted.sum())), teaching)
    chosen = torch.from_numpy(places[wanted]), torch.from_numpy(labels[wanted])[None]
    chains = None
    if task.decoder == "crf":
        counts = [int((_word_labels(task, items[row]) != MISSING).sum()) for row in rows]
        starts = np.cumsum([0, *counts])
        steps = [np.arange(start, start + count) for start, count in zip(starts, counts, strict=False)]
        chains = _chains(task, [items[row] for row in rows], steps)
    return TaskRows(*chosen, torch.ones(len(rows)), task.type, chains, task.loss, soft)


def _chains(task: Task, items: Sequence[Item], steps: Sequence[np.ndarray], num_tokens: int = 0) -> Chains:
    """``steps``: for each item the places of its labelled words, in its row of ``num_tokens`` (0: in all rows)."""
    longest = max((len(places) for places in steps), default=1)
    flat = np.full((len(items), longest), -1, dtype=np.int64)
    links, ends = np.zeros((len(items), longest), dtype=np.float32), np.zeros(len(items), dtype=np.float32)
    for row, (item, places) in enumerate(zip(items, steps, strict=True)):
        flat[row, : len(places)] = row * num_tokens + places
        found = links_of(_word_labels(task, item), item.window.first_word, len(item.starts))
        links[row, : len(places)], ends[row] = found
    return Chains(torch.from_numpy(flat), torch.from_numpy(links), torch.from_numpy(ends))


def _texts(task: Task, items: Sequence[Item], teaching: Teaching | None) -> dict[str, Any]:
    """What :class:`TaskRows` holds of a text task's items, but for their places."""
    kind = kind_of(task)
    targets = [item.labels.get(task.name, []) for item in items]
    is_labelled = np.array([len(target) > 0 for target in targets], dtype=bool)
    nothing: Target = [MISSING] if kind.label_set == "one" else [0] * len(task.labels)  # it counts 0
    weights = np.array([item.share for item in items], dtype=np.float32) * is_labelled
    soft = None
    if teaching is not None and any(task.name in item.soft for item in items):
        soft = _soft_rows(*said(task, items, is_labelled, teaching), is_labelled.shape, teaching)
    return {
        "labels": kind.tensor([target or nothing for target in targets]),
        "weights": torch.from_numpy(weights),
        "type": task.type,
        "loss": task.loss,
        "soft": soft,
    }


def _soft_rows(logits: Tensor, weights: Tensor, shape: tuple[int, ...], teaching: Teaching) -> SoftRows:
    """``shape``: of what there is a label or none."""
    return SoftRows(
        logits.view(*shape, logits.shape[-1]), weights.view(shape), 1 - teaching.weight, teaching.temperature
    )


def _word_labels(task: Task, item: Item) -> np.ndarray:
    """[words] Label ids of the words that an item answers; MISSING of a row without any."""
    ids = item.labels.get(task.name) or [MISSING] * len(item.starts)
    return np.asarray(ids[item.window.first_word : item.window.last_word], dtype=np.int64)

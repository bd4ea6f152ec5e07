"""One pass through the encoder for all tasks: items to what each row's logits decide.

Evaluation and prediction both stand on this, so they cannot differ.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device

from nlp_mtl.data.batches import collate
from nlp_mtl.data.items import Framing, Item, item_lengths, word_positions
from nlp_mtl.data.kept_states import Source, states_to_answer
from nlp_mtl.data.layout import MICRO_BATCH_COST, cut, pack_sorted
from nlp_mtl.inference.onnx import OnnxModel
from nlp_mtl.models.fully_sharded import is_sharded, missing_passes, reshard
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.models.precision import autocast
from nlp_mtl.task_types import kind_of
from nlp_mtl.task_types.consistency import decide_together
from nlp_mtl.task_types.kind import Decision
from nlp_mtl.tasks import Task, transitions_key

Decisions = dict[str, list[Decision]]
"""``{task: [one a row]}``, what :attr:`nlp_mtl.task_types.TaskKind.decide` gives."""


def score_items(
    model: MultiTaskModel | OnnxModel,
    items: Sequence[Item],
    num_rows: int,
    tasks: Sequence[Task],
    framing: Framing,
    **how: Any,
) -> Decisions:
    """The label or labels of each word or text (or its number), with their scores, from one pass over the items.

    Labels that go together are chosen together, also where one of them alone is asked for.

    Args:
        how: and all others as in :func:`row_logits`.
    """
    given = {task.name: task for task in tasks}
    pairs = [one for one in model.config.pairs() if {one.first.name, one.second.name} & {*given}]
    known = {task.name: task for pair in pairs for task in pair[:2]} | given
    rows, transitions = row_logits(model, items, num_rows, [*known.values()], framing, **how)
    decisions: Decisions = {}
    for pair in pairs:
        both = (pair.first.name, pair.second.name)
        pair = pair._replace(first=known[both[0]], second=known[both[1]])
        found = decide_together(pair, [rows[name] for name in both], [transitions.get(name) for name in both])
        decisions |= zip(both, found, strict=True)
    for name, task in given.items():
        if name not in decisions:
            decisions[name] = kind_of(task).decide(task, rows[name], transitions.get(name))
    return {name: decisions[name] for name in given}


@torch.inference_mode()
def row_logits(
    model: MultiTaskModel | OnnxModel,
    items: Sequence[Item],
    num_rows: int,
    tasks: Sequence[Task],
    framing: Framing,
    *,
    max_tokens: int,
    packed: bool = False,
    mixed_precision: str = "no",
    sources: Sequence[Source] = (),
    on_rows: Callable[[float], object] = lambda count: None,
) -> tuple[dict[str, list[np.ndarray]], dict[str, np.ndarray]]:
    """The logits of rows, from one pass over their items.

    A word is answered by the window that shows most text around it; a text in several windows by the mean of
    their logits.

    Args:
        items: windows whose ``place`` is the row they belong to, below ``num_rows``.
        tasks: the heads to run.
        packed: without padding; see :meth:`nlp_mtl.models.multitask.MultiTaskModel.packs`.
        sources: where the items' hidden states are kept: the encoder is not run. None: they are not.
        on_rows: told how many rows (a window is a part of one) were just done, for progress bars.

    Returns:
        ``{task: [one a row]}``, [words, labels] or [labels] each; and ``{task: [labels + 2, labels]}``, the transitions
        of tasks with the decoder ``crf``.
    """
    device = model.device
    was_training = model.training
    model.eval()
    names = [task.name for task in tasks]
    logits: dict[str, list[Any]] = {name: [None] * len(items) for name in names}
    transitions: dict[str, np.ndarray] = {}
    cost = MICRO_BATCH_COST.get(device.type, MICRO_BATCH_COST["cuda"])
    lengths = item_lengths(items, framing)
    if model.reads_once_a_task:
        max_tokens = max(1, max_tokens // len(names))
    batches = list(pack_sorted(lengths, max_tokens) if packed or sources else cut(lengths, max_tokens, cost))
    missing = missing_passes(model, len(batches))
    for batch in batches:
        chosen = [items[i] for i in batch]
        given_inputs: dict[str, Any]
        if sources:
            given_inputs, first_words = states_to_answer(chosen, [sources[i] for i in batch], tasks, framing)
            words = [np.arange(*pair) for pair in pairwise(first_words)]
        else:
            given_inputs = {**collate(chosen, (), framing, packed=packed).inputs, "tasks": names}
            longest = lengths[batch].max()
            starts = np.cumsum(lengths[batch]) - lengths[batch] if packed else np.arange(len(batch)) * longest
            words = [start + word_positions(item, framing) for start, item in zip(starts, chosen, strict=True)]
        with autocast(device, mixed_precision, is_sharded(model)):
            output = model(**send_to_device(given_inputs, device))
        for task in tasks:
            found = output[task.name].float().cpu().numpy()
            if task.decoder == "crf":
                transitions[task.name] = output[transitions_key(task.name)].float().cpu().numpy()
            if kind_of(task).reads_words:
                found = found.reshape(-1, found.shape[-1])  # [tokens of all rows, labels]
                for places, i in zip(words, batch, strict=True):
                    logits[task.name][i] = found[places]
            else:
                for one, i in zip(found, batch, strict=True):
                    logits[task.name][i] = one
        on_rows(sum(item.share for item in chosen))
    for _ in range(missing):  # the other processes cannot read their texts without this one
        model(torch.zeros((1, 4), dtype=torch.long, device=device), tasks=names)
    reshard(model)
    model.train(was_training)
    return {task.name: _rows(task, items, logits[task.name], num_rows) for task in tasks}, transitions


def _rows(task: Task, items: Iterable[Item], logits: Sequence[np.ndarray], num_rows: int) -> list[np.ndarray]:
    """The logits of each row."""
    kind = kind_of(task)
    parts: list[list[np.ndarray]] = [[] for _ in range(num_rows)]
    for item, values in zip(items, logits, strict=True):
        parts[item.place].append(values if kind.reads_words else values * item.share)
    join = np.concatenate if kind.reads_words else _sum
    return [part[0] if len(part) == 1 else join(part) for part in parts]


def _sum(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.sum(parts, axis=0))

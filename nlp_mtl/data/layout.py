"""How a step plan is computed: cut into micro-batches and dealt to processes. Pure functions of lengths.

What a step learns from is settled before (:mod:`nlp_mtl.data.sampling`); nothing here changes it.
"""

import math
from collections.abc import Sequence

import numpy as np

MICRO_BATCH_COST = {"cpu": 96, "cuda": 1024}
"""What starting a micro-batch costs, in tokens, by device type.

The cutter weighs it against padding. On GPUs launches dominate below some thousand tokens."""


def cut(
    lengths: Sequence[int] | np.ndarray, max_tokens: int, micro_batch_cost: int = MICRO_BATCH_COST["cpu"]
) -> list[np.ndarray]:
    """Cut items into padded micro-batches at the least cost.

    Items are sorted by length, so micro-batches mix tasks and datasets. Of all ways to cut the sorted items,
    the one with the lowest sum of (rows x longest row + ``micro_batch_cost``) is found by dynamic programming.

    Args:
        lengths: tokens of each item, special tokens counted, each at most ``max_tokens``.
        max_tokens: the most tokens in a micro-batch, padding counted.

    Returns:
        for each micro-batch, longest first, the places of its items, longest first.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    return [order[start:stop] for start, stop in _best_cuts(lengths[order], max_tokens, micro_batch_cost)]


def _best_cuts(descending: np.ndarray, max_tokens: int, micro_batch_cost: int) -> list[tuple[int, int]]:
    count = len(descending)
    best = np.full(count + 1, np.inf)  # best[k]: the lowest cost of the items [0, k)
    best[0] = 0
    came_from = np.zeros(count + 1, dtype=np.int64)
    for start in range(count):
        longest = int(descending[start])
        most = max(1, max_tokens // max(longest, 1))
        stops = np.arange(start + 1, min(start + most, count) + 1)
        costs = best[start] + micro_batch_cost + longest * (stops - start)
        better = costs < best[stops]
        best[stops[better]] = costs[better]
        came_from[stops[better]] = start
    cuts = []
    stop = count
    while stop > 0:
        start = int(came_from[stop])
        cuts.append((start, stop))
        stop = start
    return cuts[::-1]


def layout(
    lengths: Sequence[int] | np.ndarray,
    num_processes: int,
    max_tokens: int,
    micro_batch_cost: int = MICRO_BATCH_COST["cpu"],
) -> list[list[np.ndarray]]:
    """The micro-batches of each process: the same number for all, of about the same cost.

    Args:
        lengths: tokens of each item of the step.
        num_processes: how many share the step.
        max_tokens: the most tokens in a micro-batch, padding counted.

    Returns:
        for each process its micro-batches, as places of items; every item is in exactly one. A micro-batch is
        empty only where there are too few items to fill as many for all: then each of the others holds one item.
    """
    lengths = np.asarray(lengths)
    batches = cut(lengths, max_tokens, micro_batch_cost)
    wanted = num_processes * max(1, math.ceil(len(batches) / num_processes))
    while len(batches) < wanted:  # split the costliest, at its middle
        costs = [_cost(batch, lengths) if len(batch) > 1 else 0 for batch in batches]
        if not any(costs):
            batches.append(np.zeros(0, dtype=np.int64))
            continue
        costliest = int(np.argmax(costs))
        batch = batches[costliest]
        batches[costliest : costliest + 1] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
    batches.sort(key=lambda batch: -_cost(batch, lengths))
    dealt: list[list[np.ndarray]] = [[] for _ in range(num_processes)]
    load = [0] * num_processes
    for first in range(0, len(batches), num_processes):
        # In each round the least loaded process takes the costliest micro-batch.
        takers = sorted(range(num_processes), key=lambda process: load[process])
        for process, batch in zip(takers, batches[first : first + num_processes], strict=True):
            dealt[process].append(batch)
            load[process] += _cost(batch, lengths)
    return dealt


def _cost(batch: np.ndarray, lengths: np.ndarray) -> int:
    """Tokens of a micro-batch, padding counted; an item without tokens becomes one token of padding."""
    return max(int(lengths[batch].max()), 1) * len(batch) if len(batch) else 0

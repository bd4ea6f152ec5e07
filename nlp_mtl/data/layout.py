"""How a step plan is computed: cut into micro-batches and dealt to processes. Pure functions of lengths.

What a step learns from is settled before (:mod:`nlp_mtl.data.sampling`); nothing here changes it.
"""

import heapq
import math
from collections.abc import Sequence

import numpy as np

MICRO_BATCH_COST = {"cpu": 96, "cuda": 1024}
"""What starting a micro-batch costs, in tokens, by device type.

The cutter weighs it against padding. On GPUs launches dominate below some thousand tokens."""


def bucketed(lengths: Sequence[int] | np.ndarray, max_length: int) -> np.ndarray:
    """Lengths rounded up to one of few: 32, 48, 64, 96, 128, 192, ..., and ``max_length``, which none is past.

    For an encoder that is compiled, once for each length: padding then makes up less than a third of a row.
    """
    sizes = [2**power * factor // 2 for power in range(5, max_length.bit_length()) for factor in (2, 3)]
    few = np.array([*(size for size in sizes if size < max_length), max_length])
    found: np.ndarray = few[np.searchsorted(few, lengths)]
    return found


def cut(
    lengths: Sequence[int] | np.ndarray, max_tokens: int, micro_batch_cost: int = MICRO_BATCH_COST["cpu"]
) -> list[np.ndarray]:
    """Cut items into padded micro-batches at the least cost.

    Items are sorted by length, so micro-batches mix tasks and datasets. Of all ways to cut the sorted items,
    the one with the lowest sum of (rows x longest row + ``micro_batch_cost``) is found by dynamic programming.

    Args:
        lengths: tokens of each item, special tokens counted.
        max_tokens: the most tokens in a micro-batch, padding counted; an item that is longer stands alone.

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


def pack(lengths: Sequence[int] | np.ndarray, num_processes: int, max_tokens: int) -> list[list[np.ndarray]]:
    """The packed micro-batches of each process: the same number for all, as even as can be.

    Packed texts need not be of one length, so the longest goes first, each to where there is least (Graham 1969,
    "Bounds on Multiprocessing Timing Anomalies").

    Args:
        lengths: tokens of each item of the step, each at most ``max_tokens``.
        num_processes: how many share the step.
        max_tokens: the most tokens in a micro-batch; there is no padding.

    Returns:
        as :func:`layout`; no more micro-batches than needed.
    """
    lengths = np.maximum(lengths, 1)
    order = np.argsort(-lengths, kind="stable")
    max_tokens = max(max_tokens, int(lengths.max(initial=1)))  # an item that is longer stands alone
    count = num_processes * max(1, math.ceil(lengths.sum() / (max_tokens * num_processes)))
    while True:
        batches: list[list[int]] = [[] for _ in range(count)]
        loads = [(0, place) for place in range(count)]
        for item in order:
            load, place = loads[0]
            batches[place].append(item)
            heapq.heapreplace(loads, (load + int(lengths[item]), place))
        if max(loads)[0] <= max_tokens:
            break
        count += num_processes
    laid_out = [np.array(batch, dtype=np.int64) for batch in batches]
    return [laid_out[process::num_processes] for process in range(num_processes)]


def pack_sorted(lengths: Sequence[int] | np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Packed micro-batches for a pass that learns nothing: longest items first, so that equal lengths stand together.

    Returns:
        for each micro-batch the places of its items; no more micro-batches than needed.
    """
    lengths = np.maximum(lengths, 1)
    order = np.argsort(-lengths, kind="stable")
    batches: list[np.ndarray] = []
    start, tokens = 0, 0
    for stop, length in enumerate(lengths[order]):
        if tokens + length > max_tokens and stop > start:
            batches.append(order[start:stop])
            start, tokens = stop, 0
        tokens += length
    return [*batches, order[start:]] if len(order) else []


def _cost(batch: np.ndarray, lengths: np.ndarray) -> int:
    """Tokens of a micro-batch, padding counted; an item without tokens becomes one token of padding."""
    return max(int(lengths[batch].max()), 1) * len(batch) if len(batch) else 0

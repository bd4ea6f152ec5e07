"""Which rows an optimizer step learns from: the step plan, a pure function of the seed and the step.

Nothing here knows of processes, devices or memory; see :mod:`nlp_mtl.data.layout` for those.

How many of the first n draws fall to each dataset follows from n alone. The datasets are halved again and again, by
rate: a group of datasets that was given n draws gives the nearest whole number to its part's share of n to the one
half, and the others to the other half. So counts always sum to n, none ever falls as n grows, and every dataset has
at any moment its share of the draws to within two rows, however many datasets there are (for two datasets half a row;
usually less than one). The differences between the counts at two steps are the rows that lie between them.
(The method is hierarchical stride scheduling, Waldspurger and Weihl 1995, "Stride Scheduling: Deterministic
Proportional-Share Resource Management". Independent strides would be simpler, but with 1,000 datasets a large one
strays from its share by a dozen rows.)
"""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np


class StepPlan(NamedTuple):
    """The rows of one optimizer step."""

    step: int
    datasets: np.ndarray
    """[rows] The dataset of each row, as its place in the list of datasets."""
    rows: np.ndarray
    """[rows] The row in that dataset; in one that is streamed, the position in its stream."""


def sampling_rates(
    sizes: Sequence[int], strategy: str, temperature: float = 1.0, shares: Sequence[float] = ()
) -> np.ndarray:
    """[datasets] The share of rows that each dataset gives; they sum to 1.

    Args:
        sizes: training rows of each dataset.
        strategy: ``proportional`` to the sizes; ``uniform``; ``fixed`` shares; ``temperature``, proportional to
            size^(1/T) (Arivazhagan et al. 2019, arXiv 1907.05019).
        temperature: T.
        shares: of the strategy ``fixed``, in any unit.
    """
    if strategy == "fixed":
        weights = np.asarray(shares, dtype=np.float64)
        return np.asarray(weights / weights.sum())
    exponent = {"proportional": 1.0, "uniform": 0.0, "temperature": 1 / temperature}[strategy]
    weights = np.asarray(sizes, dtype=np.float64) ** exponent
    return np.asarray(weights / weights.sum())


class Sampler:
    """The step plans of a run: ``len(sampler)`` of them, ``sampler[step]`` each.

    Inside one pass over a dataset every row comes exactly once, in an order of its own. The last step holds
    what is left of ``num_rows``, so that whole epochs of proportional sampling serve each row equally often.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        rates: Sequence[float] | np.ndarray,
        *,
        batch_size: int,
        num_rows: int,
        seed: int = 0,
        streamed: Collection[int] = (),
    ) -> None:
        """
        Args:
            sizes: rows of each dataset, at least 1; 0: nobody knows, which goes for streams only.
            rates: the share of each dataset; they sum to 1.
            batch_size: rows in a step.
            num_rows: rows in the whole run.
            seed: of the passes' orders.
            streamed: the datasets, by their places, whose rows come in an order of their own: their draws are
                numbered on and on.

        Raises:
            ValueError: an argument is not what is said here.
        """
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.rates = np.asarray(rates, dtype=np.float64)
        self.batch_size = batch_size
        self.num_rows = num_rows
        self.seed = seed
        self.streamed = frozenset(streamed)
        if len(self.sizes) != len(self.rates) or not len(self.sizes):
            raise ValueError(f"{len(self.sizes)} datasets but {len(self.rates)} rates")
        kept = [size for dataset, size in enumerate(sizes) if dataset not in self.streamed]
        if min(kept, default=1) < 1 or self.rates.min() < 0 or not math.isclose(self.rates.sum(), 1):
            raise ValueError("every dataset needs a row, and rates are shares that sum to 1")
        if batch_size < 1 or num_rows < 0:
            raise ValueError(f"batch_size is {batch_size} and num_rows {num_rows}: expected at least 1 and 0")
        self._splits, self._holders = _halve(self.rates)
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # dataset -> (pass, order), the latest only

    def __len__(self) -> int:
        return math.ceil(self.num_rows / self.batch_size)

    def __iter__(self) -> Iterator[StepPlan]:
        return (self[step] for step in range(len(self)))

    def __getitem__(self, step: int) -> StepPlan:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        before = self.drawn(step * self.batch_size)
        after = self.drawn(min((step + 1) * self.batch_size, self.num_rows))
        parts = [
            (np.full(stop - start, dataset), self._rows(dataset, start, stop))
            for dataset, (start, stop) in enumerate(zip(before.tolist(), after.tolist(), strict=True))
            if stop > start
        ]
        datasets, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
        return StepPlan(step, datasets, rows)

    def drawn(self, count: int) -> np.ndarray:
        """[datasets] How many of the first ``count`` draws of the run fall to each dataset."""
        held = [count]  # by groups of datasets; in the end by datasets
        for group, share in self._splits:
            given = math.floor(held[group] * share + 0.5)
            held[group] -= given
            held.append(given)
        drawn = np.zeros(len(self.sizes), dtype=np.int64)
        drawn[self._holders] = held
        return drawn

    def passes(self) -> np.ndarray:
        """[datasets] How often the run goes over each dataset; not a number where nobody knows its size."""
        return self.drawn(self.num_rows) / np.where(self.sizes > 0, self.sizes, np.nan)

    def _rows(self, dataset: int, start: int, stop: int) -> np.ndarray:
        """The rows of the draws ``[start, stop)`` of a dataset."""
        if dataset in self.streamed:
            return np.arange(start, stop)
        size = int(self.sizes[dataset])
        parts = []
        while start < stop:
            number, place = divmod(start, size)
            end = min(stop, (number + 1) * size)
            parts.append(self._order(dataset, number)[place : place + end - start])
            start = end
        return np.concatenate(parts).astype(np.int64)

    def _order(self, dataset: int, number: int) -> np.ndarray:
        """The order of the rows in a pass over a dataset; 4 bytes a row."""
        known = self._orders.get(dataset)
        if known is None or known[0] != number:
            self._orders.pop(dataset, None)  # one order at a time: a pass may be over most rows of the run
            order = np.arange(self.sizes[dataset], dtype=np.int32)
            np.random.default_rng([self.seed, 2, dataset, number]).shuffle(order)
            known = self._orders[dataset] = (number, order)
        return known[1]


def _halve(rates: np.ndarray) -> tuple[list[tuple[int, float]], list[int]]:
    """Halve the datasets by rate until each stands alone.

    Returns:
        the halvings, in order: each takes a share, at most one half, of what a group holds and makes it a new group,
        numbered on (the first group, 0, holds all); and the dataset that each group is in the end. Rates of 0
        are left out.
    """
    order = np.argsort(-rates, kind="stable")
    splits: list[tuple[int, float]] = []
    holders: dict[int, int] = {}
    pending = [(0, order[: np.count_nonzero(rates)])]
    while pending:
        group, members = pending.pop()
        if len(members) == 1:
            holders[group] = int(members[0])
            continue
        # Sorted by rate, so that the halves differ by no more than one third to two thirds, or one dataset is alone.
        sums = np.cumsum(rates[members])
        middle = 1 + int(np.argmin(np.abs(sums[:-1] - sums[-1] / 2)))
        parts = [(sums[middle - 1], members[:middle]), (sums[-1] - sums[middle - 1], members[middle:])]
        (less, smaller), (_, larger) = sorted(parts, key=lambda part: float(part[0]))
        splits.append((group, float(less / sums[-1])))
        pending += [(group, larger), (len(splits), smaller)]
    return splits, [holders[group] for group in range(len(splits) + 1)]

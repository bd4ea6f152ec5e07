"""Which rows an optimizer step learns from: the step plan, a pure function of the seed and the step.

Nothing here knows of processes, devices or memory; see :mod:`nlp_mtl.data.layout` for those.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nlp_mtl.data.allocation import Allocation, Phase

PassRows = Callable[[int], np.ndarray]
"""The rows of a pass over a dataset, by the number of the pass, in any order: always as many."""


class StepPlan(NamedTuple):
    """The rows of one optimizer step."""

    step: int
    datasets: np.ndarray
    """[rows] The dataset of each row, as its place in the list of datasets."""
    rows: np.ndarray
    """[rows] The row in that dataset; in one that is streamed, the position in its stream."""


class Sampler:
    """The step plans of a run: ``len(sampler)`` of them, ``sampler[step]`` each.

    Inside one pass over a dataset every row comes exactly once, in an order of its own. The last step holds
    what is left of ``num_rows``, so that whole epochs of proportional sampling serve each row equally often.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        rates: Sequence[float] | np.ndarray | Sequence[Phase],
        *,
        batch_size: int,
        num_rows: int,
        seed: int = 0,
        streamed: Collection[int] = (),
        whole_steps: bool = False,
        passes_of: Mapping[int, PassRows] | None = None,
    ) -> None:
        """
        Args:
            sizes: rows in a pass over each dataset, at least 1; 0: nobody knows, which goes for streams only.
            rates: the share of each dataset; they sum to 1. Or phases with rates of their own.
            batch_size: rows in a step.
            num_rows: rows in the whole run.
            seed: of the passes' orders.
            streamed: the datasets, by their places, whose rows come in an order of their own: their draws are
                numbered on and on.
            whole_steps: all rows of a step come from one dataset; steps are dealt by the rates.
            passes_of: ``{dataset: its rows in a pass}``, where those are not each of its rows once.

        Raises:
            ValueError: an argument is not what is said here.
        """
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.batch_size = batch_size
        self.num_rows = num_rows
        self.seed = seed
        self.streamed = frozenset(streamed)
        self.whole_steps = whole_steps
        self.passes_of = dict(passes_of or {})
        phases = [rate for rate in rates if isinstance(rate, Phase)]
        self.allocation = Allocation(phases or [Phase(0, np.asarray(rates, dtype=np.float64))])
        if len(self.sizes) != len(self.allocation.phases[0].rates):
            raise ValueError(f"{len(self.sizes)} datasets but {len(self.allocation.phases[0].rates)} rates")
        kept = [size for dataset, size in enumerate(sizes) if dataset not in self.streamed]
        if min(kept, default=1) < 1:
            raise ValueError("every dataset needs a row")
        if batch_size < 1 or num_rows < 0:
            raise ValueError(f"batch_size is {batch_size} and num_rows {num_rows}: expected at least 1 and 0")
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
        if not self.whole_steps:
            return self.allocation.drawn(count)
        steps, rest = divmod(count, self.batch_size)
        drawn = self.allocation.drawn(steps)
        return np.asarray(drawn * self.batch_size + (self.allocation.drawn(steps + 1) - drawn) * rest)

    def resample(self, step: int, rates: Sequence[float]) -> None:
        """Learn from other shares of the datasets from a step on."""
        self.allocation.append(Phase(step * self.batch_size, np.asarray(rates)))

    def phases(self) -> list[list[Any]]:
        """Its phases as plain values, for :meth:`resume`."""
        return [[phase.start, phase.rates.tolist()] for phase in self.allocation.phases]

    def resume(self, phases: Sequence[Sequence[Any]]) -> None:
        """Go on with the phases of another one."""
        self.allocation = Allocation([Phase(start, np.asarray(rates)) for start, rates in phases])

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
            draw = np.random.default_rng([self.seed, 2, dataset, number])
            if dataset in self.passes_of:
                order = self.passes_of[dataset](number)
            else:
                order = np.arange(self.sizes[dataset], dtype=np.int32)
            draw.shuffle(order)
            known = self._orders[dataset] = (number, order)
        return known[1]

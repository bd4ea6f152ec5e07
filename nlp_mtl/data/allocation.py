"""How many of a run's draws fall to each dataset.

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
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_TIE = 1e-9
"""Halves are rounded up, whatever a share's last digit is."""


class Phase(NamedTuple):
    """Draws by the same rates."""

    start: int
    """The first of them, counted over the run."""
    rates: np.ndarray
    """[datasets] Shares that sum to 1."""


class Allocation:
    """Counts of draws, by rates that may change from phase to phase."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        """
        Args:
            phases: in order; the first starts at 0.

        Raises:
            ValueError: they are not what is said here.
        """
        self.phases: list[Phase] = []
        self._before: list[np.ndarray] = []  # [datasets] counts at the start of each phase
        self._halvings: list[tuple[list[tuple[int, float]], list[int]]] = []
        self._offsets: list[list[float]] = []  # by halvings: what is added before a share is cut to a whole number
        for phase in phases:
            self.append(phase)
        if not self.phases:
            raise ValueError("there is no phase")

    def append(self, phase: Phase) -> None:
        """Change the rates from a draw on.

        Raises:
            ValueError: the phase starts before the last one, or its rates are no shares of the datasets.
        """
        rates = np.asarray(phase.rates, dtype=np.float64)
        before = self.phases[-1].start if self.phases else 0
        if phase.start < before or (not self.phases and phase.start):
            raise ValueError(f"a phase starts at {phase.start}, the one before at {before}")
        if self.phases and len(rates) != len(self.phases[0].rates):
            raise ValueError(f"{len(self.phases[0].rates)} datasets but {len(rates)} rates")
        if not len(rates) or rates.min() < 0 or not math.isclose(rates.sum(), 1):
            raise ValueError(f"rates are shares of datasets that sum to 1; found {rates.tolist()}")
        self._before.append(self.drawn(phase.start) if self.phases else np.zeros(len(rates), dtype=np.int64))
        self.phases.append(Phase(phase.start, rates))
        halvings, holders = _halve(rates)
        self._halvings.append((halvings, holders))
        # The nearest whole number in the first phase; were it so in all, what many short ones round off would add up.
        number = len(self._offsets)
        draw = np.random.default_rng([4, number])
        offsets = draw.random(len(halvings)) if number else np.full(len(halvings), 0.5)
        self._offsets.append([min(float(offset) + _TIE, 1 - _TIE) for offset in offsets])

    def drawn(self, count: int) -> np.ndarray:
        """[datasets] How many of the first ``count`` draws fall to each dataset."""
        number = bisect_right(self.phases, count, key=lambda phase: phase.start) - 1
        halvings, holders = self._halvings[number]
        held = [count - self.phases[number].start]  # by groups of datasets; in the end by datasets
        for (group, share), offset in zip(halvings, self._offsets[number], strict=True):
            given = math.floor(held[group] * share + offset)
            held[group] -= given
            held.append(given)
        drawn = self._before[number].copy()
        drawn[holders] += held
        return drawn


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

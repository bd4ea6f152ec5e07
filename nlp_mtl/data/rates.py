"""Sampling strategies: how much of each dataset a run learns from."""

import math
from collections.abc import Sequence

import numpy as np

from nlp_mtl.data.allocation import Phase

ANNEALED_PHASES = 50
"""Phases of annealed sampling; in each the rates stay."""


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
    return _powers(sizes, exponent)


def unimax_rates(sizes: Sequence[int], num_rows: int, max_passes: float) -> np.ndarray:
    """[datasets] Uniform shares, but none larger than ``max_passes`` passes over its dataset.

    What a small dataset does not take is shared out among the larger ones (UniMax: Chung et al. 2023, arXiv
    2304.09151). Where all datasets are at their cap before ``num_rows`` are drawn, shares are proportional to sizes.

    Args:
        sizes: training rows of each dataset; 0: nobody knows, so there is no cap.
        num_rows: rows in the whole run.
    """
    caps = np.array([max_passes * size if size else math.inf for size in sizes])
    taken, left = np.zeros(len(sizes)), float(num_rows)
    for waiting, dataset in zip(range(len(sizes), 0, -1), np.argsort(caps, kind="stable"), strict=True):
        taken[dataset] = min(left / waiting, caps[dataset])
        left -= taken[dataset]
    return np.asarray(taken / taken.sum())


def annealed_phases(sizes: Sequence[int], num_rows: int, batch_size: int) -> list[Phase]:
    """Rates that go from proportional to uniform over a run: size^a with a from 1 to 0.

    (Stickland and Murray 2019, "BERT and PALs", arXiv 1902.02671, go from 1 to 0.2.) They stay for whole steps.
    """
    num_steps = math.ceil(num_rows / batch_size)
    count = max(min(ANNEALED_PHASES, num_steps), 1)
    return [
        Phase(round(place * num_steps / count) * batch_size, _powers(sizes, 1 - (place + 0.5) / count))
        for place in range(count)
    ]


def needed_rates(needs: Sequence[float], floor: float) -> np.ndarray:
    """[datasets] Shares by need; each gets ``floor`` of an equal share at least.

    Args:
        needs: of each dataset, 0 or more; all 0: nobody needs more than another.
    """
    known = np.maximum(np.asarray(needs, dtype=np.float64), 0)
    uniform = np.full(len(known), 1 / len(known))
    wanted = known / known.sum() if known.sum() > 0 else uniform
    rates = floor * uniform + (1 - floor) * wanted
    return np.asarray(rates / rates.sum())


def _powers(sizes: Sequence[int], exponent: float) -> np.ndarray:
    weights = np.asarray(sizes, dtype=np.float64) ** exponent
    return np.asarray(weights / weights.sum())

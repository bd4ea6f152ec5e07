"""In a step, each strategy does with the tasks' gradients what torchjd would."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from gradient_steps import STRATEGIES, Step
from torch import Tensor
from torchjd.aggregation import (
    IMTLG,
    MGDA,
    Aggregator,
    AlignedMTL,
    CAGrad,
    FairGrad,
    GradVac,
    NashMTL,
    PCGrad,
    UPGrad,
)
from torchjd.linalg import QuadprogProjector

ORACLES: dict[str, Callable[[], Aggregator]] = {
    "imtl_g": IMTLG,
    "aligned_mtl": AlignedMTL,
    "upgrad": lambda: UPGrad(projector=QuadprogProjector(norm_eps=0, reg_eps=1e-9)),
    "mgda": lambda: MGDA(epsilon=1e-9, max_iters=50_000),
    "cagrad": lambda: CAGrad(c=0.4, norm_eps=0),
    "fairgrad": lambda: FairGrad(alpha=2.0),
    "nash_mtl": lambda: NashMTL(n_tasks=3, max_norm=0.0, optim_niter=100),
    "pcgrad": PCGrad,
    "gradvac": lambda: GradVac(beta=0.3, eps=0),
}
OPTIONS = {"cagrad": {"c": 0.4}, "fairgrad": {"alpha": 2.0}, "gradvac": {"beta": 0.3}}
# Of the others torchjd's update is that of a mean, ours that of a sum.
SUMS = ("fairgrad", "nash_mtl", "pcgrad", "gradvac")


@contextmanager
def our_order(step: int, count: int) -> Iterator[None]:
    """Within it torchjd goes through tasks in the order in which a step of ours does."""
    order, asked = np.random.default_rng((0, step)), itertools.count()

    def permutation(size: int) -> Tensor:
        found, task = order.permutation(count), next(asked)
        if size < count:  # GradVac's are places among the other tasks
            found = np.array([place - (place > task) for place in found if place != task])
        return torch.from_numpy(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", permutation)
        yield


def assert_same_update(step: Step, oracle: Aggregator, precision: str = "no") -> None:
    strategy = step.gradients.strategy
    found = step.update(precision).double()
    rows = torch.stack(step.one_by_one()[0]).double()
    with our_order(step.step, len(rows)):
        expected = oracle(rows) * (1 if strategy in SUMS else len(rows))
    # The tasks do conflict, so the method has something to do.
    assert (rows @ rows.T).min() < 0
    assert (expected - rows.sum(dim=0)).norm() > 0.01 * expected.norm()
    assert (found - expected).norm() < (0.05 if precision == "bf16" else 1e-4) * expected.norm()


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem that is not DPP:UserWarning")
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("strategy", ORACLES)
def test_the_gradient_of_a_step_is_that_of_torchjd(tmp_path: Path, strategy: str, precision: str) -> None:
    step = Step(tmp_path, strategy, signs=(1, -1, 1), options=OPTIONS.get(strategy), batch_size=24)
    assert_same_update(step, ORACLES[strategy](), precision)


def test_every_strategy_that_torchjd_has_is_held_against_it() -> None:
    assert {*ORACLES} == {*STRATEGIES} - {"gradnorm"}


@pytest.mark.parametrize("strategy", ["pcgrad", "gradvac"])
def test_what_a_strategy_draws_and_remembers_from_step_to_step_is_as_in_torchjd(tmp_path: Path, strategy: str) -> None:
    step = Step(tmp_path, strategy, signs=(1, -1, 1), options=OPTIONS.get(strategy), batch_size=16)
    oracle = ORACLES[strategy]()
    for number in range(5):
        step.go_to(number)
        assert_same_update(step, oracle)
    assert (np.abs(step.gradients.targets).max() > 0.05) == (strategy == "gradvac")

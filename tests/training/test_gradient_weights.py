"""Weights of gradients against torchjd, and against what their papers' definitions say where it has none."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchjd.aggregation import (
    AlignedMTLWeighting,
    CAGradWeighting,
    FairGradWeighting,
    GradVacWeighting,
    IMTLGWeighting,
    MGDAWeighting,
    NashMTL,
    PCGradWeighting,
    UPGradWeighting,
)
from torchjd.linalg import QuadprogProjector

from nlp_mtl.training.gradient_weights import (
    Array,
    aligned_weights,
    bargained_weights,
    conflict_averse_weights,
    fair_weights,
    impartial_weights,
    projected_weights,
    shortest_weights,
    unconflicting_weights,
    vaccinated_weights,
)

BY_GRAMIAN = {
    "mgda": shortest_weights,
    "cagrad": lambda gramian: conflict_averse_weights(gramian, 0.4),
    "imtl_g": impartial_weights,
    "nash_mtl": bargained_weights,
    "fairgrad": lambda gramian: fair_weights(gramian, 2.0),
    "aligned_mtl": aligned_weights,
    "upgrad": unconflicting_weights,
    "pcgrad": lambda gramian: projected_weights(gramian, np.random.default_rng(0)),
    "gradvac": lambda gramian: vaccinated_weights(gramian, 0 * gramian, 0.5, np.random.default_rng(0))[0],
}


class InOrder:
    """Stands for a random generator, and leaves everything in its order."""

    def permutation(self, count: int) -> Array:
        return np.arange(count)


def gradients(seed: int) -> Array:
    """Of two to five tasks, [tasks, parameters]: of various lengths, half of the time with a common direction."""
    random = np.random.default_rng(seed)
    count = random.integers(2, 6)
    found = random.normal(size=(count, 30)) * np.exp(random.normal(size=(count, 1)))
    return found + (random.normal(size=30) if seed % 2 else 0)


SEEDS = st.integers(0, 10_000)


def assert_same_update(gradients: Array, found: Array, expected: torch.Tensor, tolerance: float) -> None:
    one, other = found @ gradients, expected.numpy() @ gradients
    assert np.linalg.norm(one - other) <= tolerance * max(np.linalg.norm(other), 1e-3)


@pytest.mark.parametrize(
    ("method", "oracle", "tolerance"),
    [
        ("imtl_g", IMTLGWeighting(), 1e-8),
        ("aligned_mtl", AlignedMTLWeighting(), 1e-8),
        ("cagrad", CAGradWeighting(0.4, norm_eps=0), 1e-3),
        ("upgrad", UPGradWeighting(projector=QuadprogProjector(norm_eps=0, reg_eps=1e-9)), 1e-4),
    ],
)
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_weights_are_those_of_torchjd_times_the_number_of_tasks(
    method: str, oracle: torch.nn.Module, tolerance: float, seed: int
) -> None:
    rows = gradients(seed)
    expected = oracle(torch.from_numpy(rows @ rows.T)) * len(rows)
    assert_same_update(rows, BY_GRAMIAN[method](rows @ rows.T), expected, tolerance)


@settings(max_examples=6, deadline=None)  # Frank-Wolfe comes near slowly
@given(seed=SEEDS)
def test_mgda_is_torchjds(seed: int) -> None:
    rows = gradients(seed)
    expected = MGDAWeighting(epsilon=1e-9, max_iters=50_000)(torch.from_numpy(rows @ rows.T)) * len(rows)
    assert_same_update(rows, shortest_weights(rows @ rows.T), expected, 1e-2)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_mgda_is_the_nearest_point_to_the_origin(seed: int) -> None:
    gramian = gradients(seed) @ gradients(seed).T
    shares = shortest_weights(gramian) / len(gramian)
    assert shares.min() >= 0
    assert shares.sum() == pytest.approx(1)
    along = gramian @ shares  # of each gradient and that point: none comes nearer
    assert along.min() >= (1 - 1e-6) * (shares @ along)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_fairgrad_is_torchjds(seed: int) -> None:
    rows = gradients(seed)
    expected = FairGradWeighting(2.0)(torch.from_numpy(rows @ rows.T))
    assert_same_update(rows, fair_weights(rows @ rows.T, 2.0), expected, 1e-4)


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem that is not DPP:UserWarning")
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_nash_mtl_is_torchjds(seed: int) -> None:
    rows = gradients(seed)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)  # its solver is a series of approximations
    expected = torch.from_numpy(bargained_weights(rows @ rows.T) @ rows)
    found = NashMTL(n_tasks=len(rows), max_norm=0.0, optim_niter=100)(torch.from_numpy(rows))
    assert (found - expected).norm() <= 1e-3 * expected.norm()


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_pcgrad_and_gradvac_are_torchjds_in_the_same_order(seed: int) -> None:
    rows = gradients(seed)
    gramian = torch.from_numpy(rows @ rows.T)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", torch.arange)
        assert_same_update(rows, projected_weights(rows @ rows.T, InOrder()), PCGradWeighting()(gramian), 1e-8)  # type: ignore[arg-type]
        vaccine, targets = GradVacWeighting(beta=0.3, eps=0), np.zeros_like(rows @ rows.T)
        for step in range(4):
            rows = rows + 0.5 * np.random.default_rng(seed + step).normal(size=rows.shape)
            found, targets = vaccinated_weights(rows @ rows.T, targets, 0.3, InOrder())  # type: ignore[arg-type]
            assert_same_update(rows, found, vaccine(torch.from_numpy(rows @ rows.T)), 1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, alpha=st.sampled_from([0.1, 0.5, 1.0, 2.0, 10.0]))
def test_fair_and_bargained_weights_solve_their_equations(seed: int, alpha: float) -> None:
    rows = gradients(seed)
    weights = fair_weights(rows @ rows.T, alpha)
    np.testing.assert_allclose(rows @ rows.T @ weights, weights ** (-1 / alpha), rtol=1e-6)
    bargained = bargained_weights(rows @ rows.T)
    np.testing.assert_allclose((rows @ rows.T @ bargained) * bargained, np.ones(len(rows)), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, alpha=st.sampled_from([1.0, 2.0, 10.0]))
def test_fair_weights_are_found_for_gradients_of_very_different_lengths(seed: int, alpha: float) -> None:
    draw = np.random.default_rng(seed)
    count = int(draw.integers(2, 7))
    rows = draw.normal(size=(count, 30)) * 10 ** draw.uniform(-1.5, 1.5, size=(count, 1))
    gramian = rows @ rows.T
    weights = fair_weights(gramian, alpha)
    gramian += 1e-10 * np.trace(gramian) / count * np.eye(count)  # what keeps weights of opposite gradients finite
    # Of the equation times the weights: a weight that is next to nothing may be off by what is next to nothing.
    wanted = weights ** (1 - 1 / alpha)
    np.testing.assert_allclose(weights * (gramian @ weights), wanted, rtol=0, atol=1e-7 * wanted.max())


def test_nash_mtl_of_two_tasks_is_its_closed_form() -> None:
    a, b, c = 4.0, 1.0, -1.0  # |g1|^2, |g2|^2, g1 g2: Navon et al. 2022, two players
    found = bargained_weights(np.array([[a, c], [c, b]]))
    ratio = np.sqrt(a / b)  # w2 / w1: the same for both
    first = 1 / np.sqrt(a + c * ratio)
    np.testing.assert_allclose(found, [first, first * ratio], rtol=1e-8)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_updates_of_mgda_and_upgrad_conflict_with_no_task(seed: int) -> None:
    rows = gradients(seed)
    for method in ("mgda", "upgrad"):
        products = rows @ rows.T @ BY_GRAMIAN[method](rows @ rows.T)
        assert products.min() >= -1e-7 * np.abs(rows @ rows.T).max()


def test_mgda_of_two_tasks_is_its_closed_form() -> None:
    rows = np.array([[1.0, 0.0], [-0.5, 1.0]])
    first = (rows[1] - rows[0]) @ rows[1] / ((rows[0] - rows[1]) @ (rows[0] - rows[1]))
    np.testing.assert_allclose(shortest_weights(rows @ rows.T) / 2, [first, 1 - first], rtol=1e-8)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_the_update_of_imtl_g_has_the_same_projection_on_each_gradient(seed: int) -> None:
    rows = gradients(seed)
    projections = rows @ (impartial_weights(rows @ rows.T) @ rows) / np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(projections, projections.mean(), rtol=1e-6)


def test_the_conflicting_pair_of_pcgrads_paper_loses_what_is_against_the_other() -> None:
    rows = np.array([[1.0, 0.0], [-1.0, 1.0]])
    update = projected_weights(rows @ rows.T, np.random.default_rng(0)) @ rows
    np.testing.assert_allclose(update, np.array([0.5, 0.5]) + np.array([0.0, 1.0]))
    agreeing = np.array([[1.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(projected_weights(agreeing @ agreeing.T, np.random.default_rng(0)), [1, 1])


@pytest.mark.parametrize("method", sorted(BY_GRAMIAN))
def test_equal_gradients_are_added_up(method: str) -> None:
    weights = BY_GRAMIAN[method](np.full((3, 3), 2.0))
    if method in ("nash_mtl", "fairgrad"):
        assert weights == pytest.approx(weights.mean(), rel=1e-4)
    else:
        assert weights.sum() == pytest.approx(3 * 1.4 if method == "cagrad" else 3, rel=1e-4)


@pytest.mark.parametrize("method", sorted(BY_GRAMIAN))
@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 0.0], [-1.0, 0.0]],
        [[1.0, 0.0], [0.0, 1e-9]],
        [[1e8, 0.0], [1e-8, 1e-8], [3.0, -2.0]],
        [[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0]],
        [[1e-20, 0.0], [0.0, 1e-20]],
    ],
    ids=["opposite", "orthogonal", "of all sizes", "on one line", "tiny"],
)
def test_weights_are_finite_numbers_whatever_the_gradients(method: str, rows: list[list[float]]) -> None:
    given = np.array(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = BY_GRAMIAN[method](given @ given.T)
    assert np.isfinite(weights).all()

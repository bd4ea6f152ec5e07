import multiprocessing
import pickle
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp_mtl.data.rates import sampling_rates
from nlp_mtl.data.sampling import Sampler, StepPlan

STRATEGIES = ["proportional", "temperature", "uniform"]
sizes_of = st.lists(st.integers(1, 40), min_size=1, max_size=8)
examples = settings(max_examples=80, deadline=None)


@st.composite
def samplers(draw: st.DrawFn, **fixed: Any) -> Sampler:
    """Samplers of any strategy, batch size and number of rows."""
    sizes = draw(sizes_of)
    rates = sampling_rates(sizes, draw(st.sampled_from(STRATEGIES)), draw(st.floats(1, 20)))
    values = {
        "batch_size": draw(st.integers(1, 60)),
        "num_rows": draw(st.integers(0, 300)),
        "seed": draw(st.integers(0, 2**32 - 1)),
        **fixed,
    }
    return Sampler(sizes, rates, **values)


@st.composite
def any_rates(draw: st.DrawFn) -> np.ndarray:
    """Shares that may be equal, 0, or too small to matter."""
    weights = draw(
        st.lists(
            st.one_of(st.integers(0, 9).map(float), st.floats(0, 1), st.sampled_from([1e-300, 1e-17, 1e-9, 5e-324])),
            min_size=1, max_size=30,
        ).filter(lambda weights: sum(weights) > 1e-3)
    )  # fmt: skip
    return np.array(weights) / sum(weights)


def with_rates(rates: np.ndarray, **options: Any) -> Sampler:
    return Sampler([3] * len(rates), rates, **{"batch_size": 1, "num_rows": 10, **options})


def pairs(plan: StepPlan) -> list[tuple[int, int]]:
    return list(zip(plan.datasets.tolist(), plan.rows.tolist(), strict=True))


def drawn_rows(sampler: Sampler) -> list[list[int]]:
    """The rows of each dataset in the order in which the run draws them."""
    rows: list[list[int]] = [[] for _ in sampler.sizes]
    for plan in sampler:
        for dataset, row in pairs(plan):
            rows[dataset].append(row)
    return rows


# ---- the proportions


def test_strategies_give_the_published_shares() -> None:
    assert sampling_rates([100, 300], "proportional").tolist() == [0.25, 0.75]
    assert sampling_rates([100, 300], "uniform").tolist() == [0.5, 0.5]
    assert sampling_rates([100, 300], "fixed", shares=[3, 1]).tolist() == [0.75, 0.25]
    assert sampling_rates([100, 900], "temperature", 2.0) == pytest.approx([0.25, 0.75])
    assert sampling_rates([100, 900], "temperature", 1.0) == pytest.approx([0.1, 0.9])
    assert sampling_rates([100, 900], "temperature", 1e6) == pytest.approx([0.5, 0.5], abs=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_shares_sum_to_one_and_larger_datasets_give_no_less(strategy: Any) -> None:
    rates = sampling_rates([1, 10, 10**4, 10**9], strategy, 5.0)
    assert rates.sum() == pytest.approx(1)
    assert (np.diff(rates) >= 0).all()


# ---- passes


@examples
@given(samplers())
def test_every_row_comes_exactly_once_in_each_pass_of_each_dataset(sampler: Sampler) -> None:
    for size, rows in zip(sampler.sizes.tolist(), drawn_rows(sampler), strict=True):
        passes = [rows[start : start + size] for start in range(0, len(rows), size)]
        for rows_of_pass in passes[:-1]:
            assert sorted(rows_of_pass) == list(range(size))
        if passes:
            assert len(set(passes[-1])) == len(passes[-1])
            assert set(passes[-1]) <= set(range(size))


@examples
@given(sizes_of, st.integers(1, 5), st.integers(1, 70))
def test_whole_epochs_of_proportional_sampling_serve_every_row_equally_often(
    sizes: list[int], epochs: int, batch_size: int
) -> None:
    rates = sampling_rates(sizes, "proportional")
    sampler = Sampler(sizes, rates, batch_size=batch_size, num_rows=epochs * sum(sizes))
    served = Counter(pair for plan in sampler for pair in pairs(plan))
    assert served == {(dataset, row): epochs for dataset, size in enumerate(sizes) for row in range(size)}
    assert sampler.passes().tolist() == [epochs] * len(sizes)


def test_epochs_are_whole_for_a_thousand_datasets_of_very_different_sizes() -> None:
    sizes = np.concatenate([[5_000_000], np.random.default_rng(0).zipf(1.3, 999).clip(max=3_000_000)])
    sampler = Sampler(sizes, sampling_rates(sizes, "proportional"), batch_size=4096, num_rows=3 * int(sizes.sum()))
    for epoch in (1, 2, 3):
        assert (sampler.drawn(epoch * int(sizes.sum())) == epoch * sizes).all()


def test_passes_differ_in_order_and_so_do_datasets_and_seeds() -> None:
    def orders(seed: int) -> list[list[int]]:
        sampler = Sampler([50, 50], [0.5, 0.5], batch_size=10, num_rows=200, seed=seed)
        return [rows[start : start + 50] for rows in drawn_rows(sampler) for start in (0, 50)]

    found = [tuple(order) for seed in (0, 1) for order in orders(seed)]
    assert len(set(found)) == len(found) == 8
    assert orders(0) == orders(0)


def test_a_dataset_smaller_than_a_step_comes_several_times_in_it() -> None:
    sampler = Sampler([2, 100], [0.5, 0.5], batch_size=10, num_rows=100)
    for plan in sampler:
        rows = plan.rows[plan.datasets == 0].tolist()
        assert len(rows) == 5
        assert set(rows) == {0, 1}
    assert max(Counter(drawn_rows(sampler)[0]).values()) == 25


def test_a_step_larger_than_all_data_holds_all_of_it() -> None:
    (plan,) = Sampler([3, 4], sampling_rates([3, 4], "proportional"), batch_size=1000, num_rows=7)
    assert sorted(pairs(plan)) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (1, 3)]


# ---- steps


@examples
@given(samplers())
def test_len_equals_iteration_and_only_the_last_step_may_be_short(sampler: Sampler) -> None:
    plans = list(sampler)
    assert len(plans) == len(sampler)
    assert [plan.step for plan in plans] == list(range(len(sampler)))
    sizes = [len(plan.rows) for plan in plans]
    assert all(len(plan.datasets) == size for plan, size in zip(plans, sizes, strict=True))
    assert sum(sizes) == sampler.num_rows
    assert all(size == sampler.batch_size for size in sizes[:-1])
    assert all(size > 0 for size in sizes)


def test_the_last_step_holds_what_is_left() -> None:
    sampler = Sampler([10], [1.0], batch_size=4, num_rows=10)
    assert [len(plan.rows) for plan in sampler] == [4, 4, 2]


@pytest.mark.parametrize("step", [3, -1])
def test_there_is_no_step_outside_the_run(step: int) -> None:
    with pytest.raises(IndexError, match="of 3"):
        Sampler([10], [1.0], batch_size=4, num_rows=10)[step]


@examples
@given(samplers(num_rows=150), st.randoms(use_true_random=False))
def test_a_step_is_the_same_in_any_order_of_access_in_a_new_object_and_after_pickling(
    sampler: Sampler, random: Any
) -> None:
    expected = [pairs(plan) for plan in sampler]
    fresh = Sampler(
        sampler.sizes,
        sampler.allocation.phases,
        batch_size=sampler.batch_size,
        num_rows=sampler.num_rows,
        seed=sampler.seed,
    )
    steps = 2 * list(range(len(sampler)))
    random.shuffle(steps)
    for one in (sampler, fresh, pickle.loads(pickle.dumps(sampler))):
        assert [pairs(one[step]) for step in steps] == [expected[step] for step in steps]


def test_a_step_is_the_same_in_another_process() -> None:
    sampler = Sampler([5, 60, 200], sampling_rates([5, 60, 200], "temperature"), batch_size=16, num_rows=300)
    sampler[7]  # what it remembers travels too
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(sampler.__getitem__, [11, 3]))
    assert [pairs(plan) for plan in found] == [pairs(sampler[11]), pairs(sampler[3])]


def test_the_rows_of_a_step_do_not_depend_on_how_long_the_run_is() -> None:
    short, long = (Sampler([9, 4], [0.7, 0.3], batch_size=5, num_rows=n) for n in (50, 5000))
    assert [pairs(plan) for plan in short] == [pairs(long[step]) for step in range(10)]


def test_batch_size_only_cuts_the_same_sequence() -> None:
    small, large = (
        Sampler([9, 40, 2], sampling_rates([9, 40, 2], "proportional"), batch_size=b, num_rows=120) for b in (4, 12)
    )
    for step in range(10):
        parts = [pair for part in range(3) for pair in pairs(small[3 * step + part])]
        assert Counter(parts) == Counter(pairs(large[step]))


# ---- counts


@examples
@given(any_rates(), st.lists(st.integers(0, 10**7), min_size=1, max_size=20))
def test_counts_sum_to_the_draws_and_are_within_two_rows_of_the_share(rates: np.ndarray, counts: list[int]) -> None:
    sampler = with_rates(rates)
    for count in counts:
        drawn = sampler.drawn(count)
        assert drawn.sum() == count
        assert (drawn >= 0).all()
        assert np.abs(drawn - count * rates).max() < 2


@examples
@given(any_rates(), st.integers(0, 10**9))
def test_each_draw_falls_to_exactly_one_dataset(rates: np.ndarray, start: int) -> None:
    sampler = with_rates(rates)
    drawn = np.array([sampler.drawn(count) for count in range(start, start + 40)])
    gains = np.diff(drawn, axis=0)
    assert (gains >= 0).all()
    assert (gains.sum(axis=1) == 1).all()


@examples
@given(st.floats(0, 1), st.integers(0, 10**6))
def test_two_datasets_are_within_half_a_row_of_their_shares(rate: float, count: int) -> None:
    rates = np.array([rate, 1 - rate])
    assert np.abs(with_rates(rates).drawn(count) - count * rates).max() <= 0.5 + 1e-6


def test_every_step_of_a_thousand_datasets_keeps_the_share_of_a_large_one() -> None:
    sizes = [1000] + [1] * 1000
    sampler = Sampler(sizes, sampling_rates(sizes, "proportional"), batch_size=64, num_rows=20_000)
    shares = [int((plan.datasets == 0).sum()) for plan in sampler]
    assert set(shares[:-1]) <= {31, 32, 33}


@pytest.mark.parametrize("evenness", [0.5, 5, 100])
def test_counts_are_mostly_within_one_row_of_the_share(evenness: float) -> None:
    random = np.random.default_rng(0)
    strays = [
        np.abs(sampler.drawn(count) - count * sampler.allocation.phases[0].rates).max()
        for size in (5, 12, 40, 100)
        for sampler in map(with_rates, random.dirichlet(np.full(size, evenness), 3))
        for count in range(300)
    ]
    assert np.mean(np.array(strays) <= 1) > 0.99
    assert max(strays) < 1.15


def test_no_dataset_is_served_in_bursts() -> None:
    sampler = with_rates(np.full(20, 0.05))
    gains = np.diff([sampler.drawn(count) for count in range(1000)], axis=0)
    for dataset in range(20):
        gaps = np.diff(np.flatnonzero(gains[:, dataset]))
        assert gaps.min() >= 10
        assert gaps.max() <= 40


def test_a_rate_of_zero_draws_nothing_and_a_tiny_one_draws_when_its_time_comes() -> None:
    sampler = with_rates(np.array([0.0, 1e-6, 0.5, 0.5 - 1e-6, 0.0]), num_rows=10**7)
    assert sampler.drawn(100)[[0, 1, 4]].tolist() == [0, 0, 0]
    assert abs(sampler.drawn(10**7)[1] - 10) <= 1
    assert sampler.drawn(10**7)[[0, 4]].tolist() == [0, 0]
    assert sampler.passes()[0] == 0
    assert with_rates(np.array([0.0, 1.0, 0.0])).drawn(10**9).tolist() == [0, 10**9, 0]


@pytest.mark.parametrize("rates", [[1 / 3] * 3, [0.1] * 10, [1 / 7] * 7, [1 / 1000] * 1000])
def test_equal_datasets_stay_equal_over_ten_million_draws(rates: list[float]) -> None:
    sampler = with_rates(np.array(rates))
    for count in (1, 2, 999_999, 9_999_999, 10**7):
        drawn = sampler.drawn(count)
        assert drawn.sum() == count
        assert np.ptp(drawn) <= 2
    assert np.ptp(sampler.drawn(7_000_000 * 3)) == 0


def test_a_thousand_datasets_late_in_a_long_run() -> None:
    sizes = [10 ** (1 + dataset % 5) for dataset in range(1000)]
    sampler = Sampler(sizes, sampling_rates(sizes, "temperature", 3.0), batch_size=256, num_rows=10**7)
    plan = sampler[len(sampler) // 2]
    assert len(plan.rows) == 256
    assert (plan.rows < np.array(sizes)[plan.datasets]).all()
    assert pairs(pickle.loads(pickle.dumps(sampler))[plan.step]) == pairs(plan)


# ---- bad input


@pytest.mark.parametrize(
    ("sizes", "rates", "problem"),
    [
        ([3, 4], [1.0], "2 datasets but 1 rates"),
        ([], [], "shares of datasets"),
        ([3, 0], [0.5, 0.5], "needs a row"),
        ([3, 4], [1.5, -0.5], "sum to 1"),
        ([3, 4], [0.5, 0.4], "sum to 1"),
        ([3, 4], [float("nan"), 1.0], "sum to 1"),
        ([3, 4], [float("inf"), 1.0], "sum to 1"),
    ],
)
def test_shares_that_are_none_are_refused(sizes: list[int], rates: list[float], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Sampler(sizes, rates, batch_size=4, num_rows=10)


@pytest.mark.parametrize(("batch_size", "num_rows"), [(0, 10), (-1, 10), (4, -1)])
def test_steps_without_rows_are_refused(batch_size: int, num_rows: int) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        Sampler([3], [1.0], batch_size=batch_size, num_rows=num_rows)

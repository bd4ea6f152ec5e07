"""Sampling strategies against their papers' definitions and the closed form."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp_mtl.data.allocation import Allocation, Phase
from nlp_mtl.data.rates import annealed_phases, needed_rates, sampling_rates, unimax_rates
from nlp_mtl.data.sampling import Sampler

examples = settings(max_examples=80, deadline=None)
sizes_of = st.lists(st.integers(1, 2000), min_size=1, max_size=9)


# ---- UniMax


@examples
@given(sizes_of, st.integers(1, 20_000), st.floats(1, 10))
def test_unimax_is_uniform_but_for_datasets_at_their_cap(sizes: list[int], num_rows: int, max_passes: float) -> None:
    rates = unimax_rates(sizes, num_rows, max_passes)
    taken = rates * num_rows
    caps = np.array(sizes) * max_passes
    assert rates.sum() == pytest.approx(1)
    if caps.sum() <= num_rows:
        assert rates == pytest.approx(sampling_rates(sizes, "proportional"))
        return
    capped = taken >= caps * (1 - 1e-9)
    assert (taken <= caps * (1 + 1e-9)).all()
    free = taken[~capped]
    assert len(free) == 0 or free == pytest.approx(np.full(len(free), free[0]))
    assert not capped.any() or not len(free) or taken[capped].max() <= free[0] * (1 + 1e-9)


def test_unimax_gives_the_shares_of_the_papers_algorithm() -> None:
    # Chung et al. 2023, algorithm 1: 100 draws over sizes 5, 20, 1000 with at most 2 passes: 10, 40, 50.
    assert unimax_rates([20, 1000, 5], 100, 2).tolist() == pytest.approx([0.4, 0.5, 0.1])


def test_unimax_caps_no_stream_whose_size_nobody_knows() -> None:
    assert unimax_rates([10, 0], 100, 2).tolist() == pytest.approx([0.2, 0.8])


@examples
@given(sizes_of, st.floats(0.5, 3), st.integers(1, 64))
def test_no_dataset_is_passed_more_often_than_the_cap_but_by_rounding(
    sizes: list[int], epochs: float, batch_size: int
) -> None:
    num_rows = max(round(epochs * sum(sizes)), 1)
    sampler = Sampler(sizes, unimax_rates(sizes, num_rows, 4), batch_size=batch_size, num_rows=num_rows)
    assert (sampler.drawn(num_rows) <= np.array(sizes) * 4 + 2).all()


# ---- annealed


def test_annealed_sampling_goes_from_proportional_to_uniform() -> None:
    phases = annealed_phases([100, 900], 50_000, 10)
    first, last = phases[0].rates, phases[-1].rates
    assert first == pytest.approx([0.1, 0.9], abs=0.003)
    assert last == pytest.approx([0.5, 0.5], abs=0.006)
    assert (np.diff([phase.rates[0] for phase in phases]) > 0).all()
    assert all(phase.start % 10 == 0 for phase in phases)


@examples
@given(sizes_of, st.integers(1, 5000), st.integers(1, 300))
def test_annealed_draws_stay_near_what_the_rates_say_over_all_phases(
    sizes: list[int], num_rows: int, batch_size: int
) -> None:
    phases = annealed_phases(sizes, num_rows, batch_size)
    sampler = Sampler(sizes, phases, batch_size=batch_size, num_rows=num_rows)
    ends = [*(phase.start for phase in phases[1:]), num_rows]
    expected = sum(
        phase.rates * (min(end, num_rows) - min(phase.start, num_rows)) for phase, end in zip(phases, ends, strict=True)
    )
    assert np.abs(sampler.drawn(num_rows) - expected).max() < 15


# ---- phases


@st.composite
def allocations(draw: st.DrawFn) -> Allocation:
    count = draw(st.integers(1, 6))
    starts = [0, *sorted(draw(st.lists(st.integers(0, 500), max_size=6)))]
    weights = st.lists(st.floats(0.01, 1), min_size=count, max_size=count)
    return Allocation([Phase(start, np.array(w) / sum(w)) for start in starts for w in [draw(weights)]])


@examples
@given(allocations())
def test_counts_sum_to_the_draws_and_never_fall_whatever_the_phases(allocation: Allocation) -> None:
    before = allocation.drawn(0)
    for count in range(1, 700, 7):
        counts = allocation.drawn(count)
        assert counts.sum() == count
        assert (counts >= before).all()
        before = counts


@examples
@given(allocations(), st.integers(0, 400))
def test_a_later_phase_changes_no_draw_before_it(allocation: Allocation, start: int) -> None:
    start += allocation.phases[-1].start
    counts = [allocation.drawn(count).tolist() for count in range(0, start + 1, 5)]
    allocation.append(Phase(start, allocation.phases[0].rates[::-1]))
    assert [allocation.drawn(count).tolist() for count in range(0, start + 1, 5)] == counts


def test_many_short_phases_of_the_same_rates_do_not_add_up_what_they_round_off() -> None:
    rates = np.array([0.03, 0.07, 0.3, 0.6])
    allocation = Allocation([Phase(start, rates) for start in range(0, 16 * 400, 16)])
    assert np.abs(allocation.drawn(16 * 400) - rates * 16 * 400).max() < 25


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ([], "no phase"),
        ([Phase(3, np.ones(1))], "starts at 3"),
        ([Phase(0, np.ones(1)), Phase(5, np.ones(1)), Phase(4, np.ones(1))], "starts at 4, the one before at 5"),
        ([Phase(0, np.ones(1)), Phase(5, np.full(2, 0.5))], "1 datasets but 2 rates"),
        ([Phase(0, np.array([0.5, 0.4]))], "sum to 1"),
    ],
)
def test_phases_that_do_not_follow_each_other_are_refused(phases: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Allocation(phases)


# ---- whole steps


@examples
@given(st.integers(1, 7), st.integers(1, 20), st.integers(1, 300))
def test_round_robin_takes_each_step_from_one_dataset_and_all_of_them_by_turns(
    count: int, batch_size: int, num_rows: int
) -> None:
    sampler = Sampler(
        [11] * count, np.full(count, 1 / count), batch_size=batch_size, num_rows=num_rows, whole_steps=True
    )
    plans = list(sampler)
    turns = [int(plan.datasets[0]) for plan in plans]
    assert all((plan.datasets == plan.datasets[0]).all() for plan in plans)
    assert sum(len(plan.rows) for plan in plans) == num_rows
    for start in range(0, len(turns) - count + 1, count):
        assert sorted(turns[start : start + count]) == list(range(count))
        assert turns[start : start + count] == turns[:count]


# ---- by need


def test_shares_by_need_leave_each_dataset_its_floor() -> None:
    assert needed_rates([0.3, 0.1], floor=0.0) == pytest.approx([0.75, 0.25])
    assert needed_rates([1, 0], floor=0.2) == pytest.approx([0.9, 0.1])
    assert needed_rates([0, 0], floor=0.2) == pytest.approx([0.5, 0.5])
    assert needed_rates([-1, 2], floor=0.5) == pytest.approx([0.25, 0.75])


@examples
@given(st.lists(st.floats(-1, 10), min_size=1, max_size=8), st.floats(0.01, 1))
def test_shares_by_need_are_shares_and_grow_with_need(needs: list[float], floor: float) -> None:
    rates = needed_rates(needs, floor)
    assert math.isclose(rates.sum(), 1)
    assert (rates >= floor / len(needs) * (1 - 1e-9)).all()
    order = np.argsort(needs)
    assert (np.diff(rates[order]) >= -1e-12).all()

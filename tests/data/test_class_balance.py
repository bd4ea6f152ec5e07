"""Classes in equal numbers: which rows a pass holds."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp_mtl.data.class_balance import oversampled, undersampled
from nlp_mtl.data.sampling import Sampler
from nlp_mtl.tasks import MISSING

examples = settings(max_examples=80, deadline=None)
classes_of = st.lists(st.sampled_from([0, 1, 2, 5, MISSING]), min_size=1, max_size=60).filter(
    lambda classes: any(one != MISSING for one in classes)
)


@examples
@given(classes_of, st.integers(0, 4))
def test_oversampling_brings_every_class_as_often_as_the_largest_and_every_row(classes: list[int], number: int) -> None:
    given_classes = np.array(classes)
    size, rows_of = oversampled(given_classes, seed=1)
    rows = rows_of(number)
    assert len(rows) == size
    assert {*rows.tolist()} == {*range(len(classes))}
    counts = Counter(given_classes[rows].tolist())
    largest = max(count for one, count in Counter(classes).items() if one != MISSING)
    assert {count for one, count in counts.items() if one != MISSING} == {largest}
    assert counts[MISSING] == classes.count(MISSING)
    times = Counter(rows.tolist())
    for one in set(classes):  # within a class no row comes twice more than another
        own = [times[row] for row in np.flatnonzero(given_classes == one).tolist()]
        assert max(own) - min(own) <= 1


@examples
@given(classes_of, st.integers(0, 4))
def test_undersampling_brings_every_class_as_often_as_the_smallest_and_no_row_twice(
    classes: list[int], number: int
) -> None:
    given_classes = np.array(classes)
    size, rows_of = undersampled(given_classes, seed=1)
    rows = rows_of(number)
    assert len(rows) == len(set(rows.tolist())) == size
    smallest = min(count for one, count in Counter(classes).items() if one != MISSING)
    counts = Counter(given_classes[rows].tolist())
    assert {count for one, count in counts.items() if one != MISSING} == {smallest}
    assert counts[MISSING] == classes.count(MISSING)


def test_what_is_drawn_differs_from_pass_to_pass_and_is_the_same_each_time() -> None:
    classes = np.array([0] * 50 + [1] * 5)
    _, rows_of = undersampled(classes, seed=3)
    assert {*rows_of(0).tolist()} != {*rows_of(1).tolist()}
    assert rows_of(1).tolist() == rows_of(1).tolist()
    assert undersampled(classes, seed=4)[1](0).tolist() != rows_of(0).tolist()


def test_a_sampler_draws_balanced_passes() -> None:
    classes = np.array([0] * 30 + [1] * 3)
    size, rows_of = oversampled(classes, seed=0)
    sampler = Sampler([size], [1.0], batch_size=20, num_rows=2 * size, passes_of={0: rows_of})
    rows = np.concatenate([plan.rows for plan in sampler])
    assert Counter(classes[rows].tolist()) == {0: 60, 1: 60}
    assert sampler.passes().tolist() == [2]

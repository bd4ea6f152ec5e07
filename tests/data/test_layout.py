from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nlp_mtl.data.layout import bucketed, cut, layout, pack, pack_sorted

examples = settings(max_examples=100, deadline=None)
lengths_of = st.lists(st.integers(1, 60), max_size=60)
limits = st.integers(60, 400)
costs = st.sampled_from([0, 1, 96, 1024])


def tokens(batch: np.ndarray, lengths: Sequence[int]) -> int:
    """Of a padded micro-batch."""
    return len(batch) * max(lengths[i] for i in batch) if len(batch) else 0


def places(batches: Sequence[np.ndarray]) -> list[int]:
    return sorted(int(place) for batch in batches for place in batch)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """All ways to put items into groups."""
    if not items:
        yield []
        return
    first, *rest = items
    for groups in partitions(rest):
        yield [[first], *groups]
        for chosen in range(len(groups)):
            yield [[first, *group] if place == chosen else group for place, group in enumerate(groups)]


# ---- bucketed


@examples
@given(max_length=st.integers(16, 9000), data=st.data())
def test_lengths_are_rounded_up_to_few_that_none_is_past(max_length: int, data: st.DataObject) -> None:
    lengths = np.array(data.draw(st.lists(st.integers(1, max_length), min_size=1, max_size=60)))
    rounded = bucketed(lengths, max_length)
    assert (rounded >= lengths).all()
    assert (rounded <= max_length).all()
    assert ((rounded - lengths) * 3 <= np.maximum(rounded, 3 * 32)).all()
    every = bucketed(np.arange(1, max_length + 1), max_length)
    assert len(set(every)) <= 2 * max_length.bit_length() - 9
    assert list(every) == sorted(every)


def test_the_lengths_that_texts_are_rounded_up_to() -> None:
    found = sorted(set(bucketed(np.arange(1, 513), 512)))
    assert found == [32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert set(bucketed(np.arange(1, 101), 100)) == {32, 48, 64, 96, 100}
    assert set(bucketed(np.arange(1, 17), 16)) == {16}


# ---- cut


@examples
@given(lengths_of, limits, costs)
def test_every_item_is_in_exactly_one_micro_batch_within_max_tokens(
    lengths: list[int], max_tokens: int, cost: int
) -> None:
    batches = cut(lengths, max_tokens, cost)
    assert places(batches) == list(range(len(lengths)))
    assert all(0 < tokens(batch, lengths) <= max_tokens for batch in batches)


@examples
@given(lengths_of, limits, costs)
def test_longest_come_first_and_equal_lengths_in_their_order(lengths: list[int], max_tokens: int, cost: int) -> None:
    found = [int(place) for batch in cut(lengths, max_tokens, cost) for place in batch]
    assert found == sorted(range(len(lengths)), key=lambda place: -lengths[place])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=7), st.integers(20, 60), st.integers(0, 30))
def test_no_other_grouping_at_all_is_cheaper(lengths: list[int], max_tokens: int, cost: int) -> None:
    def price(batches: Sequence[Sequence[int]]) -> int:
        return sum(len(batch) * max(lengths[i] for i in batch) + cost for batch in batches)

    allowed = [
        groups
        for groups in partitions(list(range(len(lengths))))
        if all(len(group) * max(lengths[i] for i in group) <= max_tokens for group in groups)
    ]
    assert price([batch.tolist() for batch in cut(lengths, max_tokens, cost)]) == min(map(price, allowed))


def test_a_free_start_leaves_no_padding_and_a_dear_one_few_micro_batches() -> None:
    lengths = [3, 9, 3, 9, 5]
    assert sum(tokens(batch, lengths) for batch in cut(lengths, 1000, 0)) == sum(lengths)
    assert len(cut(lengths, 1000, 10_000)) == 1


def test_an_item_longer_than_max_tokens_stands_alone() -> None:
    assert [batch.tolist() for batch in cut([4, 50, 4], 16)] == [[1], [0, 2]]
    assert places([batch for mine in layout([4, 50, 4], 2, 16) for batch in mine]) == [0, 1, 2]


def test_the_smallest_max_tokens_gives_an_item_each() -> None:
    assert [len(batch) for batch in cut([7, 7, 7], 7)] == [1, 1, 1]


def test_nothing_is_cut_into_nothing() -> None:
    assert cut([], 100) == []


def test_items_without_tokens_are_cut_too() -> None:
    assert places(cut([0, 3, 0], 4)) == [0, 1, 2]


def test_a_step_of_thousands_of_rows_is_cut_and_dealt() -> None:
    lengths = np.random.default_rng(0).integers(3, 500, 8192)
    dealt = layout(lengths, 8, 16_384)
    assert places([batch for mine in dealt for batch in mine]) == list(range(8192))
    loads = [sum(int(lengths[batch].max()) * len(batch) for batch in mine) for mine in dealt]
    assert max(loads) < 1.02 * min(loads)


# ---- processes


@examples
@given(lengths_of, st.integers(1, 9), limits, costs)
@example([0, 0, 0], 2, 60, 96)
@example([], 3, 60, 96)
def test_processes_share_all_items_in_as_many_micro_batches(
    lengths: list[int], num_processes: int, max_tokens: int, cost: int
) -> None:
    dealt = layout(lengths, num_processes, max_tokens, cost)
    batches = [batch for mine in dealt for batch in mine]
    assert len(dealt) == num_processes
    assert len({len(mine) for mine in dealt}) == 1
    assert dealt[0]
    assert places(batches) == list(range(len(lengths)))
    assert all(tokens(batch, lengths) <= max_tokens for batch in batches)


@examples
@given(lengths_of, st.integers(1, 9), limits, costs)
@example([0, 0, 0], 2, 60, 96)
@example([], 3, 60, 96)
def test_a_micro_batch_is_empty_only_where_all_others_hold_one_item(
    lengths: list[int], num_processes: int, max_tokens: int, cost: int
) -> None:
    sizes = [len(batch) for mine in layout(lengths, num_processes, max_tokens, cost) for batch in mine]
    assert 0 not in sizes or max(sizes) <= 1
    assert sizes.count(0) == max(0, len(sizes) - len(lengths))
    assert sizes.count(0) < num_processes or not lengths


@examples
@given(lengths_of, st.integers(1, 9), limits, costs)
def test_processes_add_no_more_micro_batches_than_make_their_numbers_equal(
    lengths: list[int], num_processes: int, max_tokens: int, cost: int
) -> None:
    needed = -(-len(cut(lengths, max_tokens, cost)) // num_processes)
    assert len(layout(lengths, num_processes, max_tokens, cost)[0]) == max(1, needed)


@examples
@given(lengths_of, st.integers(1, 9), limits, costs)
@example([60, 2, 5, 60, 5, 60, 2, 2], 2, 60, 0)  # not if micro-batches were dealt by length
def test_loads_differ_by_no_more_than_micro_batches_do(
    lengths: list[int], num_processes: int, max_tokens: int, cost: int
) -> None:
    dealt = layout(lengths, num_processes, max_tokens, cost)
    sizes = [[tokens(batch, lengths) for batch in mine] for mine in dealt]
    loads = [sum(mine) for mine in sizes]
    each = [size for mine in sizes for size in mine]
    assert max(loads) - min(loads) <= max(each) - min(each)


@examples
@given(lengths_of, st.integers(1, 5), limits)
def test_each_micro_batch_is_a_run_of_the_sorted_items_longest_first(
    lengths: list[int], num_processes: int, max_tokens: int
) -> None:
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for batch in (batch for mine in layout(lengths, num_processes, max_tokens) for batch in mine):
        if len(batch):
            first = order.index(int(batch[0]))
            assert batch.tolist() == order[first : first + len(batch)]


@examples
@given(lengths_of, limits)
def test_one_process_computes_what_was_cut(lengths: list[int], max_tokens: int) -> None:
    (mine,) = layout(lengths, 1, max_tokens)
    expected = cut(lengths, max_tokens)
    assert sorted(batch.tolist() for batch in mine if len(batch)) == sorted(batch.tolist() for batch in expected)


def test_the_layout_is_a_pure_function() -> None:
    lengths = np.random.default_rng(1).integers(1, 60, 100)
    before = lengths.copy()
    one, two = layout(lengths, 3, 200), layout(lengths.tolist(), 3, 200)
    assert (lengths == before).all()
    for mine, other in zip(one, two, strict=True):
        assert [batch.tolist() for batch in mine] == [batch.tolist() for batch in other]


@pytest.mark.parametrize("num_processes", [2, 3, 7])
def test_one_row_for_many_processes_goes_to_one_of_them(num_processes: int) -> None:
    dealt = layout([12], num_processes, 64)
    assert sorted(len(mine[0]) for mine in dealt) == [0] * (num_processes - 1) + [1]


# ---- packed


def load(batch: np.ndarray, lengths: Sequence[int]) -> int:
    """Tokens of a packed micro-batch."""
    return sum(lengths[place] for place in batch)


@examples
@given(lengths_of, st.integers(1, 5), limits)
def test_packed_micro_batches_hold_every_item_once_and_are_as_many_for_all(
    lengths: list[int], num_processes: int, max_tokens: int
) -> None:
    dealt = pack(lengths, num_processes, max_tokens)
    batches = [batch for batches in dealt for batch in batches]
    assert places(batches) == list(range(len(lengths)))
    assert len({len(batches) for batches in dealt}) == 1
    assert all(load(batch, lengths) <= max_tokens for batch in batches)
    if len(lengths) >= len(batches):
        assert all(len(batch) for batch in batches)


@examples
@given(lengths_of, st.integers(1, 5), limits)
def test_packed_micro_batches_differ_by_no_more_than_an_item(
    lengths: list[int], num_processes: int, max_tokens: int
) -> None:
    loads = [load(batch, lengths) for batches in pack(lengths, num_processes, max_tokens) for batch in batches]
    assert max(loads) - min(loads) <= max(lengths, default=0)


@examples
@given(lengths_of, st.integers(1, 5), limits)
def test_there_are_no_more_packed_micro_batches_than_needed(
    lengths: list[int], num_processes: int, max_tokens: int
) -> None:
    dealt = pack(lengths, num_processes, max_tokens)
    # Half full at least, but for the last of each process: else two of them would be one.
    assert (len(dealt[0]) - 1) * num_processes * max_tokens / 2 <= sum(lengths)


def test_longer_items_of_a_packed_micro_batch_come_first() -> None:
    lengths = [5, 9, 9, 2, 5, 7]
    for batch in [*pack(lengths, 1, 100)[0], *pack_sorted(lengths, 100)]:
        assert [lengths[place] for place in batch] == [9, 9, 7, 5, 5, 2]


@examples
@given(lengths_of, limits)
def test_a_pass_over_packed_items_goes_from_long_to_short_and_fills_its_micro_batches(
    lengths: list[int], max_tokens: int
) -> None:
    batches = pack_sorted(lengths, max_tokens)
    found = [int(place) for batch in batches for place in batch]
    assert found == sorted(range(len(lengths)), key=lambda place: -lengths[place])
    assert all(0 < load(batch, lengths) <= max_tokens for batch in batches)
    for batch, following in pairwise(batches):
        assert load(batch, lengths) + lengths[following[0]] > max_tokens


def test_an_item_longer_than_a_packed_micro_batch_gets_its_own() -> None:
    assert [batch.tolist() for batch in pack_sorted([3, 50, 4], 10)] == [[1], [2, 0]]


def test_an_item_longer_than_max_tokens_does_not_keep_packing_from_an_end() -> None:
    assert sorted(int(i) for batches in pack([3, 50, 4], 2, 10) for batch in batches for i in batch) == [0, 1, 2]

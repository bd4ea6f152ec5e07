import pickle
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixed_steps import MAX_LENGTH, TASKS, framing, splits, steps, text_rows, word_rows
from tiny import CLS, SEP
from torch.utils.data import DataLoader

from nlp_mtl.data import batches as batches_of
from nlp_mtl.data import steps as steps_of
from nlp_mtl.data.batches import MicroBatch
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.items import carries, item_lengths, windowed
from nlp_mtl.data.sampling import Sampler, StepPlan
from nlp_mtl.data.steps import StepBatches, StepDataset
from nlp_mtl.tasks import MISSING, Task


@pytest.fixture(scope="module")
def data() -> list[EncodedSplit]:
    return splits()


def carried(batches: list[MicroBatch]) -> dict[str, float]:
    """What the micro-batches count for each task: labelled words, weights of texts."""
    sums = dict.fromkeys((task.name for task in TASKS), 0.0)
    for batch in batches:
        for task, rows in batch.tasks.items():
            sums[task] += float(rows.weights.sum() if rows.labels.ndim == 1 else (rows.labels != MISSING).sum())
    return sums


def row_lengths(batch: MicroBatch) -> list[int]:
    """Tokens of each row, without padding."""
    if "cu_seq_lens" in batch.inputs:
        return batch.inputs["cu_seq_lens"].diff().tolist()
    return batch.inputs["attention_mask"].sum(1).tolist()


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two) and one.dtype == two.dtype
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(value, two[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return bool(one == two)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 40])
@pytest.mark.parametrize("max_tokens", [MAX_LENGTH, 50, 10_000])
def test_counts_of_the_plan_are_what_all_micro_batches_carry(
    data: list[EncodedSplit], num_processes: int, max_tokens: int, packed: bool
) -> None:
    dealt = [
        steps(data, batch_size=11, max_tokens=max_tokens, process=process, num_processes=num_processes, packed=packed)
        for process in range(num_processes)
    ]
    for step in range(len(dealt[0])):
        parts: list[StepBatches] = [one[step] for one in dealt]
        batches = [batch for part in parts for batch in part.micro_batches]
        assert len({len(part.micro_batches) for part in parts}) == 1
        assert all(batch.inputs["input_ids"].numel() <= max_tokens for batch in batches)
        for part in parts:
            assert part.step == step
            assert part.counts == pytest.approx(carried(batches))
        items = dealt[0].items(dealt[0].sampler[step])
        lengths = item_lengths(items, framing())
        empty = max(0, len(batches) - len(items))  # of two special tokens each
        assert sum(length for batch in batches for length in row_lengths(batch)) - 2 * empty == sum(lengths)


def learned_from(parts: list[StepBatches]) -> list[tuple[Any, ...]]:
    """What all processes read and learn in a step: tokens, labels and weight of each row for each task, sorted."""
    rows = []
    for batch in (batch for part in parts for batch in part.micro_batches):
        masks = batch.inputs["attention_mask"].bool()
        texts = [tuple(ids[mask].tolist()) for ids, mask in zip(batch.inputs["input_ids"], masks, strict=True)]
        rows += [("", text) for text in texts if text != (CLS, SEP)]  # which a process without any row has as well
        for name, task in batch.tasks.items():
            for place, labels, weight in zip(task.rows.tolist(), task.labels, task.weights.tolist(), strict=True):
                told = labels[: len(texts[place])].tolist() if labels.ndim else [labels.item()]
                rows.append((name, texts[place], tuple(told), weight))
    return sorted(rows)


def test_another_number_of_processes_learns_from_the_same_rows_in_the_same_steps(data: list[EncodedSplit]) -> None:
    def of_all(num_processes: int, step: int) -> list[tuple[Any, ...]]:
        dealt = [
            steps(data, batch_size=4, max_tokens=40, process=process, num_processes=num_processes)
            for process in range(num_processes)
        ]
        return learned_from([one[step] for one in dealt])

    for step in range(len(steps(data, batch_size=4))):
        one = of_all(1, step)
        assert one
        assert of_all(2, step) == one
        assert of_all(3, step) == one


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch_size=st.integers(1, 15),
    step=st.integers(0, 1),
    max_tokens=st.integers(MAX_LENGTH, 400),
    packed=st.booleans(),
)
def test_threads_share_all_items_of_a_step_about_evenly_and_run_none_without(
    data: list[EncodedSplit], batch_size: int, step: int, max_tokens: int, packed: bool
) -> None:
    one = steps(data, batch_size=batch_size, max_tokens=max_tokens, num_threads=2, packed=packed)
    batches = one[step].micro_batches
    lengths = item_lengths(one.items(one.sampler[step]), framing())
    assert sorted(length for batch in batches for length in row_lengths(batch)) == sorted(lengths)
    assert len(batches) >= min(2, len(lengths))
    assert one[step].counts == pytest.approx(carried(batches))
    sizes = [batch.inputs["input_ids"].numel() for batch in batches]
    assert abs(sum(sizes[::2]) - sum(sizes[1::2])) <= max(sizes)


@pytest.mark.parametrize("num_processes", [1, 3, 40])
@pytest.mark.parametrize("max_tokens", [MAX_LENGTH, 50, 1000])
def test_bucketed_micro_batches_hold_the_same_rows_have_few_lengths_and_stay_within_max_tokens(
    data: list[EncodedSplit], num_processes: int, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = (6, 9, 12, MAX_LENGTH)
    for module in (batches_of, steps_of):
        monkeypatch.setattr(module, "bucketed", lambda lengths, _: np.array(few)[np.searchsorted(few, lengths)])
    for step in range(2):
        parts = [
            steps(
                data,
                batch_size=11,
                max_tokens=max_tokens,
                process=process,
                num_processes=num_processes,
                is_bucketed=True,
            )[step]
            for process in range(num_processes)
        ]
        assert learned_from(parts) == learned_from([steps(data, batch_size=11)[step]])
        shapes = [batch.inputs["input_ids"].shape for part in parts for batch in part.micro_batches]
        assert all(rows * length <= max_tokens and length in few for rows, length in shapes)
        assert len(shapes) % num_processes == 0


def test_an_epoch_carries_every_label_of_the_data_once(data: list[EncodedSplit]) -> None:
    epoch = steps(data, batch_size=5)
    totals = dict.fromkeys(("ner", "pos", "sentiment"), 0)
    for step in range(3):  # 15 rows
        for task, count in epoch[step].counts.items():
            totals[task] += count
    rows, texts = word_rows(), text_rows()
    assert totals == {
        "ner": sum(len(row["ner"] or ()) for row in rows),
        "pos": sum(len(row["upos"]) for row in rows),
        "sentiment": sum(row["label"] is not None for row in texts),
    }


def test_micro_batches_mix_datasets_and_tasks(data: list[EncodedSplit]) -> None:
    (batch,) = steps(data, max_tokens=10_000, micro_batch_cost=10_000)[0].micro_batches
    assert all(len(rows.rows) for rows in batch.tasks.values())


def test_places_count_the_rows_of_a_plan_not_their_windows(data: list[EncodedSplit]) -> None:
    one = steps(data)
    plan = one.sampler[0]
    items = one.items(plan)
    assert len(items) > len(plan.rows)
    assert sorted({found.place for found in items}) == list(range(len(plan.rows)))
    for found in items:
        row = data[plan.datasets[found.place]].rows[int(plan.rows[found.place])]
        assert list(found.pieces) == row["pieces"]


def test_a_row_drawn_twice_in_a_step_counts_twice(data: list[EncodedSplit]) -> None:
    plan = StepPlan(0, np.array([0, 0, 1]), np.array([3, 3, 0]))
    one = steps(data)
    assert one.counts(one.items(plan))["pos"] == 2 * len(word_rows()[3]["upos"])
    assert len(one.items(plan)) == 3


@pytest.mark.parametrize("packed", [False, True])
def test_a_step_is_the_same_again_in_a_new_object_and_from_loader_workers(
    data: list[EncodedSplit], packed: bool
) -> None:
    options = {"batch_size": 4, "max_tokens": 40, "process": 1, "num_processes": 2, "packed": packed}
    one, two = steps(data, **options), steps(splits(), **options)
    expected = [two[step] for step in range(len(two))]
    assert len(one) == len(expected) == 8
    order = [5, 0, 7, 5]
    assert equal([one[step] for step in order], [expected[step] for step in order])
    assert equal(pickle.loads(pickle.dumps(one))[6], expected[6])
    loader = DataLoader(one, batch_size=None, sampler=range(8), num_workers=2)
    assert equal(list(loader), expected)


def test_rows_of_a_task_are_told_with_their_place_in_the_data(data: list[EncodedSplit]) -> None:
    one = steps(data)
    plan = StepPlan(0, np.array([0, 0, 1]), np.array([1, 4, 2]))
    assert one.where(plan, "sentiment") == []  # that text has no label
    (place,) = one.where(plan, "ner")
    assert "dataset `words`" in place
    assert "row 4" in place
    assert len(one.where(plan, "pos")) == 2


def test_a_number_is_learned_from_whichever_it_is_and_counted_as_often(data: list[EncodedSplit]) -> None:
    rating = Task("rating", "regression", ("value",), "pearson")
    numbers = [[float(MISSING)], [], [-1.0], [2.5], [], [], [float(MISSING)], [0.0]]  # the last but one: in windows
    texts = data[1]
    rows = Dataset.from_dict({**texts.rows.select_columns(["pieces", "starts"])[:], "labels/rating": numbers})
    split = EncodedSplit(texts.source, rows, {"rating": "regression"})
    plan = StepPlan(0, np.zeros(8, dtype=np.int64), np.arange(8))
    for packed, every in ((False, None), (True, None), (False, 1), (True, 1)):
        sampler = Sampler([8], [1.0], batch_size=8, num_rows=8, seed=3)
        one = StepDataset([split], sampler, [rating], framing(), max_tokens=64, packed=packed, one_set_every=every)
        parts = [batch.tasks["rating"] for batch in one[0].micro_batches]
        assert one[0].counts == {"rating": 5} == {"rating": pytest.approx(sum(float(p.weights.sum()) for p in parts))}
        assert {number for part in parts for number in part.labels.tolist()} == {MISSING, -1.0, 2.5, 0.0}
        assert one.where(plan, "rating") == [split.where(row) for row in (0, 2, 3, 6, 7)]


def test_a_window_without_a_label_is_no_part_of_what_its_task_learns_from(data: list[EncodedSplit]) -> None:
    around = framing()
    starts = [*range(40)]
    items = windowed(0, [7] * 40, starts, {"ner": [MISSING] * 39 + [1], "pos": [0] * 40}, around)
    last = items[-1].window
    assert last.first_word <= 39 < last.last_word
    assert [carries(item, TASKS[0]) for item in items] == [False] * (len(items) - 1) + [True]
    one = steps(data)
    one.max_tokens = 1000
    found = one.layout_of_sets(items, item_lengths(items, around))
    assert sorted(map(sorted, found)) == [[*range(len(items) - 1)], [len(items) - 1]]

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixed_steps import MAX_LENGTH, NER, POS, SENTIMENT, TASKS, encoded, framing, splits, steps, text_rows, word_rows
from tiny import CLS, PAD, SEP, UNK, VOCABULARY, byte_level_tokenizer, tokenizer
from torch.utils.data import DataLoader

from nlp_mtl.data.batches import (
    Framing,
    Item,
    MicroBatch,
    StepBatches,
    collate,
    frame,
    item_lengths,
    read_items,
    windowed,
    word_positions,
)
from nlp_mtl.data.encoding import EncodedSplit
from nlp_mtl.data.labels import MISSING
from nlp_mtl.data.sampling import StepPlan

BARE = Framing([], [], PAD, 8, 2)  # of a tokenizer without special tokens


@pytest.fixture(scope="module")
def data() -> list[EncodedSplit]:
    return splits()


def item(pieces: list[int], starts: list[int], labels: dict[str, list[int]], framing: Framing) -> Item:
    (found,) = windowed(0, pieces, starts, labels, framing)
    return found


def carried(batches: list[MicroBatch]) -> dict[str, float]:
    """What the micro-batches count for each task: labelled words, weights of texts."""
    sums = dict.fromkeys((task.name for task in TASKS), 0.0)
    for batch in batches:
        for task, rows in batch.tasks.items():
            weights = rows.weights if rows.labels.ndim == 1 else (rows.labels != MISSING).sum(dim=1) * rows.weights
            sums[task] += float(weights.sum())
    return sums


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two) and one.dtype == two.dtype
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(value, two[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return bool(one == two)


# ---- framing and items


def test_a_frame_holds_the_special_tokens_and_what_remains_for_the_text() -> None:
    found = frame(tokenizer(), 16, 4)
    assert (found.prefix, found.suffix, found.pad_id, found.capacity) == ([CLS], [SEP], PAD, 14)


def test_a_byte_level_frame_is_found_too() -> None:
    assert frame(byte_level_tokenizer(), 16, 4)[:2] == ([CLS], [SEP])


def test_a_tokenizer_without_special_tokens_has_an_empty_frame() -> None:
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = None
    assert frame(bare, 16, 4)[:2] == ([], [])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), max_size=60), st.integers(1, 20), st.integers(0, 12))
def test_shares_of_a_rows_windows_sum_to_one_and_each_word_is_answered_once(
    pieces_a_word: list[int], capacity: int, overlap: int
) -> None:
    ends = np.cumsum(pieces_a_word, dtype=int)
    starts = (ends - pieces_a_word).tolist()
    around = Framing([CLS], [SEP], PAD, capacity + 2, overlap)
    items = windowed(3, list(range(sum(pieces_a_word))), starts, {}, around)
    assert sum(one.share for one in items) == pytest.approx(1)
    assert {one.place for one in items} == {3}
    answered = [word for one in items for word in range(one.window.first_word, one.window.last_word)]
    assert answered == list(range(len(starts)))
    assert (item_lengths(items, around) <= around.max_length).all()
    for one in items:  # the first piece of every answered word is really read
        for word, place in zip(
            range(one.window.first_word, one.window.last_word), word_positions(one, around), strict=True
        ):
            assert [CLS, *one.pieces[one.window.start : one.window.stop], SEP][place] == starts[word]


def test_rows_are_read_in_the_order_asked_for_and_as_often(data: list[EncodedSplit]) -> None:
    words, rows = data[0], [4, 0, 4]
    items = read_items(words, np.array(rows), TASKS, framing(), first_place=10)
    assert [one.place for one in items] == [10, 11, 12]
    assert [list(one.pieces) for one in items] == [words.rows[row]["pieces"] for row in rows]
    assert set(items[0].labels) == {"ner", "pos"}


def test_lengths_are_those_of_the_tensors(data: list[EncodedSplit]) -> None:
    for split in data:
        for around in (framing(), BARE):
            for one in read_items(split, range(len(split)), TASKS, around):
                assert item_lengths([one], around)[0] == collate([one], TASKS, around).inputs["input_ids"].shape[1]


# ---- collate


def test_a_micro_batch_is_what_the_tokenizers_own_padding_makes(data: list[EncodedSplit]) -> None:
    rows = [0, 2, 3]
    found = collate(read_items(data[0], rows, TASKS, framing()), TASKS, framing()).inputs
    words = [word_rows()[row]["tokens"] for row in rows]
    expected = tokenizer()(words, is_split_into_words=True, padding=True, return_tensors="pt")
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.equal(found["attention_mask"], expected["attention_mask"])


def test_labels_stand_at_first_sub_words_only() -> None:
    rows = [
        {"tokens": ["uning", "\u200b", "anna"], "ner": ["O", "O", "B-PER"], "upos": ["VERB", "NOUN", "PROPN"]},
        {"tokens": ["tea"], "ner": ["O"], "upos": ["NOUN"]},
    ]
    found = collate(read_items(encoded("w", rows, [NER, POS]), [0, 1], TASKS, framing()), TASKS, framing())
    un, ing, anna, tea = (VOCABULARY[piece] for piece in ("un", "##ing", "anna", "tea"))
    assert found.inputs["input_ids"].tolist() == [
        [CLS, un, ing, UNK, anna, SEP],
        [CLS, tea, SEP, PAD, PAD, PAD],
    ]
    assert found.inputs["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    none = MISSING
    verb, noun, propn = (POS.labels.index(label) for label in ("VERB", "NOUN", "PROPN"))
    assert found.tasks["pos"].labels.tolist() == [
        [none, verb, none, noun, propn, none],
        [none, noun, none, none, none, none],
    ]
    assert found.tasks["ner"].labels.tolist() == [
        [none, 0, none, 0, NER.labels.index("B-PER"), none],
        [none, 0, none, none, none, none],
    ]
    assert found.tasks["pos"].rows.tolist() == [0, 1]
    assert found.tasks["pos"].weights.tolist() == [1.0, 1.0]
    assert found.tasks["sentiment"].rows.tolist() == []


def test_a_head_sees_only_the_rows_that_carry_its_labels(data: list[EncodedSplit]) -> None:
    around = framing()
    items = read_items(data[0], [0, 1], TASKS, around) + read_items(data[1], [0, 2, 7], TASKS, around)
    found = collate(items, TASKS, around)
    assert {task: rows.rows.tolist() for task, rows in found.tasks.items()} == {
        "ner": [0],  # row 1 has no NER labels
        "pos": [0, 1],
        "sentiment": [2, 4],  # text 2 has no label; text 7 is empty and has one
    }


def test_single_words_without_a_label_are_left_out() -> None:
    around = framing()
    half = collate([item([7, 8], [0, 1], {"pos": [MISSING, 2]}, around)], TASKS, around)
    assert half.tasks["pos"].labels.tolist() == [[MISSING, MISSING, 2, MISSING]]
    none = collate([item([7, 8], [0, 1], {"pos": [MISSING, MISSING]}, around)], TASKS, around)
    assert none.tasks["pos"].rows.tolist() == []


def test_a_text_in_windows_counts_once(data: list[EncodedSplit]) -> None:
    around = framing()
    items = read_items(data[1], [6], TASKS, around)
    rows = collate(items, TASKS, around).tasks["sentiment"]
    assert len(items) > 3
    assert rows.rows.tolist() == list(range(len(items)))
    assert rows.weights.tolist() == pytest.approx([1 / len(items)] * len(items))
    assert set(rows.labels.tolist()) == {SENTIMENT.labels.index("negative")}


def test_a_row_without_pieces_is_its_special_tokens(data: list[EncodedSplit]) -> None:
    found = collate(read_items(data[1], [7], TASKS, framing()), TASKS, framing())
    assert found.inputs["input_ids"].tolist() == [[CLS, SEP]]
    assert found.tasks["sentiment"].labels.tolist() == [SENTIMENT.labels.index("positive")]


def test_a_row_without_any_token_becomes_one_token_of_padding_that_is_attended_to() -> None:
    empty, word = (item(pieces, starts, {"sentiment": [1]}, BARE) for pieces, starts in (([], []), ([5, 6], [0])))
    found = collate([empty, word], TASKS, BARE)
    assert found.inputs["input_ids"].tolist() == [[PAD, PAD], [5, 6]]
    assert found.inputs["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert item_lengths([empty, word], BARE).tolist() == [1, 2]


@pytest.mark.parametrize("around", [Framing([CLS], [SEP], PAD, 16, 4), BARE])
def test_a_micro_batch_without_items_still_has_a_row_for_the_encoder(around: Framing) -> None:
    found = collate([], TASKS, around)
    assert found.inputs["input_ids"].shape[0] == 1
    assert found.inputs["attention_mask"].all()
    tokens = found.inputs["input_ids"].shape[1]
    assert tokens >= 1
    assert {task: tuple(rows.labels.shape) for task, rows in found.tasks.items()} == {
        "ner": (0, tokens), "pos": (0, tokens), "sentiment": (0,),
    }  # fmt: skip


def test_dtypes_are_the_same_with_and_without_rows(data: list[EncodedSplit]) -> None:
    for items in ([], read_items(data[0], [0], TASKS, framing()), read_items(data[1], [0], TASKS, framing())):
        found = collate(items, TASKS, framing())
        assert {tensor.dtype for tensor in found.inputs.values()} == {torch.int64}
        for rows in found.tasks.values():
            assert [tensor.dtype for tensor in rows] == [torch.int64, torch.int64, torch.float32]


# ---- steps


@pytest.mark.parametrize("num_processes", [1, 2, 3, 40])
@pytest.mark.parametrize("max_tokens", [MAX_LENGTH, 50, 10_000])
def test_counts_of_the_plan_are_what_all_micro_batches_carry(
    data: list[EncodedSplit], num_processes: int, max_tokens: int
) -> None:
    dealt = [
        steps(data, batch_size=11, max_tokens=max_tokens, process=process, num_processes=num_processes)
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
        assert sum(int(batch.inputs["attention_mask"].sum()) for batch in batches) - 2 * empty == sum(lengths)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_size=st.integers(1, 15), step=st.integers(0, 1), max_tokens=st.integers(MAX_LENGTH, 400))
def test_threads_share_all_items_of_a_step_about_evenly_and_run_none_without(
    data: list[EncodedSplit], batch_size: int, step: int, max_tokens: int
) -> None:
    one = steps(data, batch_size=batch_size, max_tokens=max_tokens, num_threads=2)
    batches = one[step].micro_batches
    lengths = item_lengths(one.items(one.sampler[step]), framing())
    masks = [batch.inputs["attention_mask"] for batch in batches]
    assert sorted(int(row.sum()) for mask in masks for row in mask) == sorted(lengths)
    assert len(batches) >= min(2, len(lengths))
    assert one[step].counts == pytest.approx(carried(batches))
    first, second = (sum(mask.numel() for mask in masks[thread::2]) for thread in (0, 1))
    assert abs(first - second) <= max(mask.numel() for mask in masks)


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
    assert one.counts(plan)["pos"] == 2 * len(word_rows()[3]["upos"])
    assert len(one.items(plan)) == 3


def test_a_step_is_the_same_again_in_a_new_object_and_from_loader_workers(data: list[EncodedSplit]) -> None:
    options = {"batch_size": 4, "max_tokens": 40, "process": 1, "num_processes": 2}
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

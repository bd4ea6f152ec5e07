import numpy as np
import pytest
import torch
from mixed_steps import NER, POS, SENTIMENT, TASKS, encoded, framing, splits, word_rows
from tiny import CLS, PAD, SEP, UNK, VOCABULARY, tokenizer

from nlp_mtl.data.batches import TaskRows, collate
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.items import Framing, Item, item_lengths, read_items, windowed
from nlp_mtl.tasks import MISSING

BARE = Framing([], [], PAD, 8, 2)  # of a tokenizer without special tokens


@pytest.fixture(scope="module")
def data() -> list[EncodedSplit]:
    return splits()


def item(pieces: list[int], starts: list[int], labels: dict[str, list[int]], framing: Framing) -> Item:
    (found,) = windowed(0, pieces, starts, labels, framing)
    return found


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
            assert [tensor.dtype for tensor in rows[:3]] == [torch.int64, torch.int64, torch.float32]


# Packed: the same rows and labels as padded, without what is between them.


def unpadded(inputs: dict[str, torch.Tensor]) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]


@pytest.mark.parametrize("around", [framing(), BARE])
def test_packed_texts_are_the_padded_ones_without_padding(data: list[EncodedSplit], around: Framing) -> None:
    items = [one for split in data for one in read_items(split, range(len(split)), TASKS, around)]
    texts = unpadded(collate(items, TASKS, around).inputs)
    found = collate(items, TASKS, around, packed=True).inputs
    assert found["input_ids"].tolist() == [[token for text in texts for token in text]]
    assert found["position_ids"].tolist() == [[place for text in texts for place in range(len(text))]]
    assert found["cu_seq_lens"].dtype == torch.int32
    assert found["cu_seq_lens"].tolist() == [0, *np.cumsum([len(text) for text in texts])]
    assert found["lengths"] == [len(text) for text in texts]


def labelled_tokens(rows: TaskRows, mask: torch.Tensor | None) -> list[tuple[int, int]]:
    """(place in the flat row, label) of a token task's labels, from packed rows or padded ones (with their mask)."""
    if mask is None:
        return list(zip(rows.rows.tolist(), rows.labels[0].tolist(), strict=True))
    places = (mask.flatten().cumsum(0) - 1).view(mask.shape)[rows.rows]
    there = rows.labels != MISSING
    return list(zip(places[there].tolist(), rows.labels[there].tolist(), strict=True))


def test_packed_heads_see_the_labels_that_padded_ones_see(data: list[EncodedSplit]) -> None:
    around = framing()
    items = [one for split in data for one in read_items(split, range(len(split)), TASKS, around)]
    padded, packed = collate(items, TASKS, around), collate(items, TASKS, around, packed=True)
    mask = padded.inputs["attention_mask"]
    for task in ("ner", "pos"):
        found = labelled_tokens(packed.tasks[task], None)
        assert found == labelled_tokens(padded.tasks[task], mask)
        assert found
    expected, found = padded.tasks["sentiment"], packed.tasks["sentiment"]
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.weights, expected.weights)
    flat = packed.inputs["input_ids"][0]
    texts = [flat[places[places >= 0]].tolist() for places in found.rows]
    assert texts == [unpadded(padded.inputs)[row] for row in expected.rows.tolist()]


@pytest.mark.parametrize("packed", [False, True])
def test_types_do_not_depend_on_the_rows(data: list[EncodedSplit], packed: bool) -> None:
    around = framing()
    for items in ([], read_items(data[0], [0], TASKS, around), read_items(data[1], [0], TASKS, around)):
        for task, rows in collate(items, TASKS, around, packed=packed).tasks.items():
            assert [tensor.dtype for tensor in rows[:3]] == [torch.int64, torch.int64, torch.float32]
            if packed:
                assert (rows.rows.ndim, rows.labels.ndim) == ((2, 1) if task == "sentiment" else (1, 2))


def test_a_packed_micro_batch_without_items_still_has_a_row_for_the_encoder() -> None:
    found = collate([], TASKS, framing(), packed=True)
    assert found.inputs["input_ids"].tolist() == [[CLS, SEP]]
    assert found.inputs["cu_seq_lens"].tolist() == [0, 2]
    assert all(rows.rows.numel() == rows.labels.numel() == 0 for rows in found.tasks.values())

import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from held import CLASSES, held, problem, resolve
from tiny import write_jsonl

from nlp_mtl.data.labels import MISSING, distinct_values
from nlp_mtl.data.loading import load_splits

# Label sets


def test_strings_are_sorted_whatever_the_order_of_rows() -> None:
    labels = ["b", "a", "c", "a"]
    for seed in range(3):
        random.Random(seed).shuffle(labels)
        task, readers = resolve(held("d", labels))
        assert task.labels == ("a", "b", "c")
        assert [readers["d"](label) for label in ("a", "b", "c")] == [0, 1, 2]


def test_o_comes_first_among_tags() -> None:
    task, _ = resolve(held("d", [["I-PER", "B-PER"], ["O", "B-LOC"]]))
    assert task.labels == ("O", "B-LOC", "B-PER", "I-PER")


def test_labels_that_occur_only_outside_train_belong_to_the_set() -> None:
    assert resolve(held("d", ["a", "b"], test=["c"]))[0].labels == ("a", "b", "c")


def test_class_labels_keep_their_order_and_those_that_never_occur() -> None:
    task, readers = resolve(held("d", [1, 0], CLASSES))
    assert task.labels == ("neg", "pos", "mixed")
    assert [readers["d"](n) for n in range(3)] == [0, 1, 2]


def test_class_labels_can_be_renamed() -> None:
    message = problem(held("d", [1, 0], CLASSES), label_names=["neg", "positive", "mixed"])
    assert "label_names does not list `pos`" in message
    assert "label_map" in message
    task, readers = resolve(held("d", [1, 0, 2], CLASSES), label_map={"mixed": "neg"})
    assert task.labels == ("neg", "pos")
    assert [readers["d"](n) for n in range(3)] == [0, 1, 0]


def test_label_names_order_class_labels_by_name_and_never_swap_them() -> None:
    task, readers = resolve(held("d", [1, 0], CLASSES), label_names=["pos", "mixed", "neg"])
    assert task.labels == ("pos", "mixed", "neg")
    assert [task.labels[readers["d"](n)] for n in range(3)] == CLASSES.names


@pytest.mark.parametrize("width", ["int8", "int64", "uint8"])
def test_numbers_need_names(width: str) -> None:
    numbers = held("d", [1, 0, None], datasets.Value(width))
    task, readers = resolve(numbers, label_names=["neg", "pos"])
    assert task.labels == ("neg", "pos")
    assert [readers["d"](value) for value in (1, 0, None)] == [1, 0, MISSING]
    assert "label_names" in problem(numbers)


def test_a_map_names_numbers_that_do_not_count_from_0() -> None:
    ratings = held("d", [1, 5, 3, None, 1], test=[3])
    task, readers = resolve(ratings, label_map={"5": "good", "1": "bad", "3": "ok"})
    assert task.labels == ("good", "bad", "ok")
    assert [readers["d"](value) for value in (1, 3, 5, None, -1)] == [1, 2, 0, MISSING, MISSING]
    task, readers = resolve(held("d", [-1, 0, 1]), label_map={"-1": "neg", "0": "even", "1": "pos"})
    assert [task.labels[readers["d"](value)] for value in (-1, 0, 1)] == ["neg", "even", "pos"]
    assert readers["d"](MISSING) == MISSING
    tags = held("d", [[7, 9], [9]])
    task, readers = resolve(tags, label_map={"9": "O", "7": "B-X"}, metric="span_f1")
    assert readers["d"](7) == task.labels.index("B-X")
    assert 'label_map: {"1"' in problem(ratings)
    assert 'label_map: {"1"' in problem(ratings, label_map={"one": "bad"})


def test_a_number_that_has_no_name_is_told_with_the_ways_to_name_it() -> None:
    _, readers = resolve(held("d", [1, 3, 5]), label_map={"1": "bad", "3": "ok"})
    with pytest.raises(KeyError):
        readers["d"](5)
    assert '`label_map: {"5": name of 5, ...}`' in str(readers["d"].unknown(5, "row 2"))


def test_lists_of_class_labels_are_tags() -> None:
    feature = datasets.List(datasets.ClassLabel(names=["O", "B-X", "I-X"]))
    task, readers = resolve(held("d", [[1, 2], [0]], feature))
    assert (task.labels, task.metric) == (("O", "B-X", "I-X"), "span_f1")
    assert readers["d"](2) == 2


def test_given_names_set_the_order_of_strings() -> None:
    task, readers = resolve(held("d", ["a", "b"]), label_names=["b", "a", "c"])
    assert task.labels == ("b", "a", "c")
    assert readers["d"]("a") == 1


@pytest.mark.parametrize("value", [None, -1, MISSING])
def test_the_ways_to_say_no_label_in_a_column_of_numbers(value: int | None) -> None:
    _, readers = resolve(held("d", [1, 0], test=[-1, -1]), label_names=["neg", "pos"])
    assert readers["d"](value) == MISSING
    feature = datasets.ClassLabel(names=["neg", "pos"])
    assert resolve(held("d", [1, 0], feature, test=[-1]))[1]["d"](value) == MISSING


def test_a_trained_label_set_holds_whatever_the_data_says() -> None:
    task, readers = resolve(held("d", ["b", "b"]), trained_labels=["c", "b", "a"])
    assert task.labels == ("c", "b", "a")
    assert readers["d"]("b") == 1
    _, readers = resolve(held("d", [1, 0], CLASSES), trained_labels=["pos", "neg"])
    assert [readers["d"](n) for n in (0, 1)] == [1, 0]
    with pytest.raises(KeyError):
        readers["d"](2)


def test_the_default_metric_follows_from_the_labels() -> None:
    assert resolve(held("d", [["O", "B-X"]]))[0].metric == "span_f1"
    assert resolve(held("d", [["NOUN", "VERB"]]))[0].metric == "accuracy"
    assert resolve(held("d", ["a", "b"]))[0].metric == "accuracy"
    assert resolve(held("d", ["a", "b"]), metric="macro_f1")[0].metric == "macro_f1"


# Several datasets


def test_equal_and_overlapping_label_sets_are_merged() -> None:
    assert resolve(held("d", ["a", "b"]), held("e", ["b", "a"]))[0].labels == ("a", "b")
    task, readers = resolve(held("d", ["b", "c"]), held("e", ["a", "b"]))
    assert task.labels == ("a", "b", "c")
    assert readers["d"]("b") == readers["e"]("b") == 1


def test_class_labels_in_another_order_are_merged_by_name() -> None:
    other = datasets.ClassLabel(names=["pos", "neg"])
    task, readers = resolve(held("d", [0, 1], CLASSES), held("e", [0, 1], other))
    assert task.labels == ("neg", "pos", "mixed")
    assert [readers["e"](n) for n in (0, 1)] == [1, 0]
    task, readers = resolve(held("d", [0, 1], CLASSES), held("e", ["pos", "neg"]))
    assert readers["e"]("pos") == readers["d"](1) == 1


def test_disjoint_label_sets_are_refused_with_both() -> None:
    message = problem(held("d", ["a", "b"]), held("e", ["x", "y"]))
    assert all(word in message for word in ("`d`", "`e`", "`a`, `b`", "`x`, `y`", "label_map"))


def test_sharing_only_o_is_not_sharing() -> None:
    assert "share no label" in problem(held("d", [["O", "B-PER"]]), held("e", [["O", "B-person"]]))


def test_a_label_map_brings_label_sets_together() -> None:
    task, readers = resolve(held("d", ["a", "b"]), held("e", ["x", "y"]), label_map={"x": "a", "y": "b"})
    assert task.labels == ("a", "b")
    assert readers["e"]("x") == readers["d"]("a") == 0


def test_a_dataset_may_share_labels_with_the_second_only() -> None:
    task, _ = resolve(held("d", ["a", "b"]), held("e", ["b", "c"]), held("f", ["c", "e"]))
    assert task.labels == ("a", "b", "c", "e")


# What is refused


def test_labels_of_one_class_are_refused() -> None:
    assert "d.label` holds only the label `a`" in problem(held("d", ["a", "a", None]))
    assert "only the label `pos`" in problem(held("d", [1, 1], CLASSES, test=[-1]))
    assert "only the label `pos`" in problem(held("d", [1, 1]), label_names=["neg", "pos"])
    assert "only the label `O`" in problem(held("d", [["O"], ["O", "O"]]))
    assert "only the label `x`" in problem(held("d", ["a", "b"]), label_map={"a": "x", "b": "x"})


@pytest.mark.parametrize("labels", [[None, None], ["", None], [[], None], [[None]]])
def test_no_label_at_all_is_refused(labels: list[Any]) -> None:
    assert "no label at all" in problem(held("d", labels))


def test_a_column_of_nulls_is_no_label_for_either_type() -> None:
    for type_ in ("token-classification", "text-classification"):
        assert "no label at all" in problem(held("d", [None, None]), type=type_)


def test_tags_that_are_not_iob_are_refused_for_spans_with_the_first_place() -> None:
    tags = [["O", "B-X"], ["I-X", "PER"], ["PER"]]
    message = problem(held("d", tags), metric="span_f1")
    assert "found 'PER' in dataset `d`, split train, row 1 " in message
    feature = datasets.List(datasets.ClassLabel(names=["O", "PER"]))
    message = problem(held("d", [[0], [0, 1]], feature), metric="span_f1")
    assert "found 'PER' in dataset `d`, split train, row 1 " in message
    message = problem(held("d", [["O", "B-X"], ["loc"]]), metric="span_f1", label_map={"loc": "LOC"})
    assert "found 'LOC' in dataset `d`, split train, row 1 " in message


def test_a_place_that_is_named_is_that_of_the_file_after_carving(tmp_path: Path) -> None:
    rows = [{"text": ["w"], "label": ["B-X" if n % 2 else "O"]} for n in range(40)]
    rows[23]["label"] = ["oops"]
    write_jsonl(tmp_path / "a.jsonl", rows)
    loaded = load_splits(
        "d", data_dir=str(tmp_path), data_files="a.jsonl", tokens="text", label_columns=["label"],
        validation_fraction=0.1, test_fraction=0.1, seed=1,
    )  # fmt: skip
    told = problem(loaded, metric="span_f1")
    assert "found 'oops' in dataset `d`, split t" in told
    assert f", row 23 of {tmp_path / 'a.jsonl'}" in told


@pytest.mark.parametrize(
    ("labels", "type_", "expected"),
    [
        ([["a"], ["b"]], "text-classification", "holds lists"),
        (["a", "b"], "token-classification", "list of labels a row"),
        ([True, False], "text-classification", "booleans"),
        ([0.5, 1.5], "text-classification", "float64"),
        ([[["a"]], [["b"]]], "token-classification", "lists of"),
    ],
)
def test_a_column_that_holds_no_labels_is_refused(labels: list[Any], type_: str, expected: str) -> None:
    message = problem(held("d", labels), type=type_)
    assert expected in message
    assert "`label` of dataset `d`" in message


def test_text_and_numbers_in_one_column_are_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": 1}])
    loaded = load_splits(
        "d", data_dir=str(tmp_path), data_files="a.jsonl", text="text", label_columns=["label"],
        validation_fraction=0, test_fraction=0,
    )  # fmt: skip
    assert "values of different types" in problem(loaded)


# Values


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a", None, "b", "a"], {"a", "b"}),
        ([["a", "b"], [], None, ["b", None]], {"a", "b"}),
        ([None, None], set()),
        ([3, -1, 3], {3, -1}),
    ],
)
def test_the_values_of_a_column_are_found_without_nulls(labels: list[Any], expected: set[Any]) -> None:
    split = held("d", labels).splits["train"]
    assert distinct_values(split, "label") == expected
    assert distinct_values(split.take(np.array([0])), "label") == set(np.ravel(labels[0])) - {None}


def test_a_label_map_that_renames_nothing_is_told(caplog) -> None:
    resolve(held("d", ["good", "bad"]), label_map={"god": "positive", "bad": "negative"})
    assert [record.getMessage() for record in caplog.records] == [
        "Task `task`: label_map renames `god`, which does not occur. Did you mean `good`?"
    ]


def test_a_mistyped_tag_among_iob_tags_is_refused_with_its_row() -> None:
    tags = [["O", "B-PER", "I-PER"], ["B-LOC", "O"], ["O", "BPER"]]
    told = problem(held("words", tags))
    assert "most labels are IOB tags" in told
    assert "found 'BPER' in dataset `words`, split train, row 2" in told
    assert resolve(held("words", tags), metric="accuracy")[0].metric == "accuracy"
    assert resolve(held("words", tags), label_map={"BPER": "B-PER"})[0].metric == "span_f1"


def test_tags_of_another_kind_are_words_of_their_own() -> None:
    assert resolve(held("words", [["NOUN", "VERB", "O"], ["I-dle", "ADJ"]]))[0].metric == "accuracy"


def test_lists_of_a_fixed_size_hold_labels_too() -> None:
    fixed = datasets.List(datasets.Value("string"), length=2)
    task, _ = resolve(held("words", [["B-X", "O"], ["O", "I-X"]], fixed))
    assert task.labels == ("O", "B-X", "I-X")


def test_a_label_map_to_a_label_that_a_trained_model_lacks_is_refused() -> None:
    told = problem(held("d", ["good", "bad"]), label_map={"good": "great"}, trained_labels=["good", "bad"])
    assert "label_map renames `good` to `great`, which is not in the label set `good`, `bad`" in told

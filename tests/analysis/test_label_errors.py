"""Which labels are listed as likely errors, and what is proposed in their place."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlp_mtl.analysis.label_errors import Judged, entries, proposed, span_changes, summary
from nlp_mtl.analysis.label_quality import Dynamics
from nlp_mtl.data.labelled_items import LabelledItems
from nlp_mtl.tasks import Task, iob2_break

pytest.importorskip("cleanlab")

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
NER = Task("ner", "token-classification", TAGS, "span_f1", decoder="iob2")
TOPIC = Task("topic", "text-classification", ("a", "b", "c"), "accuracy")
SETS = Task("sets", "multi-label-classification", ("x", "y"), "micro_f1")


def judged(
    task: Task, rows: list[list[int]] | np.ndarray, shares: np.ndarray, datasets: list[int] | None = None
) -> Judged:
    """Rows of word labels (-1: none), or of one label or set each."""
    if task.type == "token-classification":
        found = [(row, word, one) for row, labels in enumerate(rows) for word, one in enumerate(labels) if one >= 0]
        numbers, words, labels = (np.array(column) for column in zip(*found, strict=True))
    else:
        numbers, words, labels = np.arange(len(rows)), np.zeros(len(rows), dtype=int), np.array(rows)
    places = np.zeros(len(numbers), dtype=int) if datasets is None else np.array(datasets)
    score = np.array([shares[item][one] if np.ndim(one) == 0 else 0.5 for item, one in enumerate(labels)])
    return Judged(
        task, ["one", "two"], places, LabelledItems(numbers, words, labels), shares, score,
        Dynamics(1 - score, score, score),
    )  # fmt: skip


def probabilities(draw: random.Random, items: int, labels: int) -> np.ndarray:
    found = np.array([[draw.random() ** 4 + 1e-6 for _ in range(labels)] for _ in range(items)])
    return found / found.sum(axis=1, keepdims=True)


def valid_tags(draw: random.Random) -> list[int]:
    """A row in IOB2."""
    row: list[int] = []
    for _ in range(draw.randint(1, 9)):
        inside = [2 if row[-1] in (1, 2) else 4] if row and row[-1] else []
        row.append(draw.choice([0, 0, 1, 3, *inside, *inside]))
    return row


@given(st.randoms(use_true_random=False), st.floats(0, 1))
def test_proposed_tags_are_iob2_beside_the_labels_that_are_not_listed(draw: random.Random, share: float) -> None:
    rows = [valid_tags(draw) for _ in range(draw.randint(1, 4))]
    count = sum(map(len, rows))
    one = judged(NER, rows, probabilities(draw, count, len(TAGS)))
    listed = one.worst("quality", round(share * count))
    labels = np.array(one.items.given)
    labels[listed] = proposed(one, listed)
    for _, items, _ in one.by_row(np.arange(count)):
        assert iob2_break([TAGS[label] for label in labels[items]]) is None
    if len(listed) == count and all(iob2_break([TAGS[n] for n in one.probabilities[items].argmax(1)]) is None
                                    for _, items, _ in one.by_row(listed)):  # fmt: skip
        assert np.array_equal(labels, one.probabilities.argmax(1)), "nothing holds the likeliest ones back"


def test_tags_that_break_iob2_as_given_are_no_obstacle() -> None:
    one = judged(NER, [[2, 0, 4]], np.tile([0.1, 0.6, 0.1, 0.1, 0.1], (3, 1)))
    (tag,) = proposed(one, np.array([1]))
    assert TAGS[tag] == "B-LOC", "what follows needs a beginning"
    one = judged(NER, [[2, 0, 0]], np.tile([0.1, 0.6, 0.1, 0.1, 0.1], (3, 1)))
    (tag,) = proposed(one, np.array([1]))
    assert TAGS[tag] == "B-PER"


def breaks_of(tags: list[str]) -> set[tuple[int, str, str]]:
    """Words whose tag continues nothing, with their tags and those before."""
    pairs = enumerate(zip(tags, ["", *tags], strict=False))
    return {(word, one, old) for word, (one, old) in pairs if one[:2] == "I-" and old[1:] != one[1:]}


@given(st.randoms(use_true_random=False), st.floats(0, 1))
def test_where_given_tags_break_iob2_what_is_proposed_beside_them_breaks_nothing_else(
    draw: random.Random, share: float
) -> None:
    row = draw.choices(range(len(TAGS)), k=draw.randint(1, 7))
    one = judged(NER, [row], probabilities(draw, len(row), len(TAGS)))
    listed = one.worst("quality", round(share * len(row)))
    labels = np.array(row)
    labels[listed] = proposed(one, listed)
    before, after = (breaks_of([TAGS[label] for label in ids]) for ids in (row, labels))
    assert after <= before


def test_words_without_a_label_part_a_row() -> None:
    shares = np.array([[0.1, 0.7, 0.1, 0.05, 0.05], [0.1, 0.1, 0.7, 0.05, 0.05]])
    one = judged(NER, [[1, -1, 2]], shares)
    (begins,) = proposed(one, np.array([1]))
    assert TAGS[begins][:2] != "I-", "behind a word of which nothing is known, nothing goes on"


def test_of_texts_the_likeliest_label_is_proposed_and_of_sets_all_that_are_likely() -> None:
    one = judged(TOPIC, np.array([0, 1]), np.array([[0.1, 0.2, 0.7], [0.3, 0.4, 0.3]]))
    assert proposed(one, np.array([1, 0])).tolist() == [1, 2]
    many = judged(SETS, np.array([[1, 0], [0, 0]]), np.array([[0.4, 0.9], [0.2, 0.3]]))
    assert proposed(many, np.array([0, 1])).tolist() == [[0, 1], [0, 0]]


def test_the_worst_come_first_by_what_they_are_ranked_by_and_equal_ones_as_they_stand() -> None:
    one = judged(TOPIC, np.array([0, 0, 0, 1]), np.array([[0.5, 0.5, 0], [0.1, 0.9, 0], [0.5, 0.2, 0.3], [0, 1, 0]]))
    assert one.worst("quality", 3).tolist() == [1, 0, 2]
    assert one.worst("confidence", 2).tolist() == [3, 0]
    assert one.scores("both").tolist() == [0.5] * 4
    assert [one.share(share) for share in (0.01, 0.5, 0.9)] == [1, 2, 4]


def test_items_go_by_rows_of_all_datasets() -> None:
    one = judged(NER, [[0, 1], [0], [1]], np.full((4, 5), 0.2), datasets=[0, 0, 0, 1])
    found = [(row, items.tolist(), asked.tolist()) for row, items, asked in one.by_row(np.array([3, 1]))]
    assert found == [(("one", 0), [0, 1], [1]), (("two", 2), [3], [3])]
    assert list(one.by_row(np.array([], dtype=int))) == []


def test_a_line_tells_where_and_what() -> None:
    one = judged(NER, [[0], [0, 1]], np.tile([0.1, 0.2, 0.3, 0.3, 0.1], (3, 1)))
    shown = {("one", 1): {"row": 17, "tokens": ["in", "Rome"]}}
    (line,) = entries(one, np.array([2]), np.array([3]), shown)
    assert line == {
        "dataset": "one", "row": 17, "tokens": ["in", "Rome"], "task": "ner", "word": 1, "given": "B-PER",
        "proposed": "B-LOC", "quality": 0.2, "confidence": 0.8, "variability": 0.2, "correctness": 0.2,
    }  # fmt: skip
    many = judged(SETS, np.array([[1, 1]]), np.array([[0.4, 0.1]]))
    (line,) = entries(many, np.array([0]), proposed(many, np.array([0])), {("one", 0): {"row": 0, "text": "t"}})
    assert (line["given"], line["proposed"]) == (["x", "y"], [])
    assert "word" not in line


def test_a_summary_counts_labels_and_pairs_of_them() -> None:
    shares = np.array([[0.1, 0.9, 0], [0.2, 0.8, 0], [0.9, 0.1, 0], [0.3, 0.3, 0.4]])
    one = judged(TOPIC, np.array([0, 0, 0, 0]), shares)
    told = summary(one, 3, np.array([0, 1, 3]), np.array([1, 1, 2]))
    assert told["labels"] == told["rows"] == 4
    assert (told["estimated"], told["listed"], told["agreement"], told["most_frequent"]) == (3, 3, 0.25, 1)
    assert told["of_labels"]["a"] == {"labels": 4, "listed": 3}
    assert told["pairs"] == [
        {"given": "a", "proposed": "b", "count": 2}, {"given": "a", "proposed": "c", "count": 1}
    ]  # fmt: skip
    many = judged(SETS, np.array([[1, 0], [1, 1]]), np.array([[0.1, 0.9], [0.9, 0.9]]))
    told = summary(many, 1, np.array([0]), np.array([[0, 1]]))
    assert {(one["given"], one["proposed"]) for one in told["pairs"]} == {(None, "y"), ("x", None)}
    assert told["most_frequent"] == 0.5


def test_changes_of_spans_are_of_other_kinds_or_words_gone_or_new() -> None:
    rows = [[1, 2, 0, 0], [3, 0, 1, 2], [0, 0], [1, 0]]
    one = judged(NER, rows, np.full((12, 5), 0.2))
    new = np.array([
        1, 2, 2, 0,  # one word more
        1, 0, 0, 0,  # another kind; gone
        3, 4,  # new
        1, 0,
    ])  # fmt: skip
    listed = np.flatnonzero(new != one.items.given)
    found = span_changes(one, listed, new[listed])
    assert found == {"given": 3, "other_kind": 1, "other_words": 1, "gone": 1, "new": 1}

import json

import numpy as np
import pytest
from mixed_steps import NER, POS, SENTIMENT

from nlp_mtl.task_types import kind_of
from nlp_mtl.task_types.kind import Decision

TEXT = "Anna Roe  met\tBob"
WORDS = [(0, 4), (5, 8), (10, 13), (14, 17)]


def sure_of(labels: list[str], scores: list[float]) -> Decision:
    """Of labels with such probabilities, the rest of which the other labels share."""
    found = np.zeros((len(labels), len(NER.labels)), dtype=np.float32)
    for row, label, score in zip(found, labels, scores, strict=True):
        row[:] = (1 - score) / (len(row) - 1)
        row[NER.labels.index(label)] = score
    return Decision(found.argmax(-1), found)


def spans(labels: list[str]) -> list[tuple[str, str]]:
    return [(e["label"], e["text"]) for e in kind_of(NER).answer(NER, sure_of(labels, [0.9] * 4), TEXT, WORDS)]


def test_a_span_is_the_users_text_between_its_ends_and_scores_the_mean_of_its_words() -> None:
    found = kind_of(NER).answer(NER, sure_of(["B-PER", "I-PER", "O", "B-LOC"], [0.9, 0.5, 0.8, 0.7]), TEXT, WORDS)
    assert found == [
        {"text": "Anna Roe", "label": "PER", "start": 0, "end": 8, "score": pytest.approx(0.7)},
        {"text": "Bob", "label": "LOC", "start": 14, "end": 17, "score": pytest.approx(0.7)},
    ]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["O", "O", "O", "O"], []),
        (["I-PER", "I-PER", "O", "O"], [("PER", "Anna Roe")]),
        (["B-PER", "B-PER", "O", "I-LOC"], [("PER", "Anna"), ("PER", "Roe"), ("LOC", "Bob")]),
        (["B-PER", "I-LOC", "I-LOC", "O"], [("PER", "Anna"), ("LOC", "Roe  met")]),
        (["B-ORG", "I-ORG", "I-ORG", "I-ORG"], [("ORG", TEXT)]),
    ],
)
def test_spans_are_read_as_a_reader_means_them(labels: list[str], expected: list[tuple[str, str]]) -> None:
    assert spans(labels) == expected


def test_labels_that_are_no_iob_tags_give_an_entry_a_word() -> None:
    found = kind_of(POS).answer(POS, Decision(np.arange(4), np.eye(4, dtype=np.float32)), TEXT, WORDS)
    assert [(e["text"], e["label"], e["score"]) for e in found] == [
        (TEXT[a:b], label, 1.0) for (a, b), label in zip(WORDS, POS.labels, strict=True)
    ]


def test_a_text_without_words_has_no_entries_and_no_label() -> None:
    assert kind_of(NER).answer(NER, Decision(np.zeros(0, np.int64), np.zeros((0, 7))), " ", []) == []
    assert kind_of(SENTIMENT).answer(SENTIMENT, Decision(np.array([1]), np.array([0.4, 0.6])), " ", []) == {
        "label": None,
        "score": None,
    }


def test_a_texts_answer_is_its_likeliest_label() -> None:
    found = kind_of(SENTIMENT).answer(
        SENTIMENT, Decision(np.array([1]), np.array([0.25, 0.75], np.float32)), TEXT, WORDS
    )
    assert found == {"label": "positive", "score": 0.75}
    assert type(found["score"]) is float

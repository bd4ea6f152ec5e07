"""Sequences of IOB2 tags: the best allowed one against all there are, and where it is the default."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp_mtl import DataError, Recipe, RecipeError
from nlp_mtl.build_data import prepare
from nlp_mtl.metrics import span_scores
from nlp_mtl.task_types import kind_of
from nlp_mtl.task_types.chains import iob2_transitions, marginals
from nlp_mtl.tasks import Task, iob2_break, iob_spans

TAGS = Task("ner", "token-classification", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), "span_f1", decoder="iob2")
ALONE = Task("ner", "token-classification", TAGS.labels, "span_f1")


def drawn(lengths: list[int], seed: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.normal(0, 2, (length, len(TAGS.labels))).astype(np.float32) for length in lengths]


def names(ids: np.ndarray) -> list[str]:
    return [TAGS.labels[i] for i in ids]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 4), max_size=5), st.integers(0, 10_000))
def test_iob2_chooses_the_best_of_all_allowed_sequences_of_each_row(lengths: list[int], seed: int) -> None:
    rows = drawn(lengths, seed)
    for logits, (chosen, scores) in zip(rows, kind_of(TAGS).decide(TAGS, rows, None), strict=True):
        allowed = [
            one
            for one in itertools.product(range(len(TAGS.labels)), repeat=len(logits))
            if iob2_break(names(np.array(one, dtype=int))) is None
        ]
        sums = [sum(logits[word, label] for word, label in enumerate(one)) for one in allowed]
        assert tuple(chosen) == allowed[int(np.argmax(sums))]
        np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 6), max_size=5), st.integers(0, 10_000))
def test_where_the_likeliest_labels_are_allowed_they_stay_and_scores_are_those_of_softmax(
    lengths: list[int], seed: int
) -> None:
    rows = drawn(lengths, seed)
    together, alone = (kind_of(task).decide(task, rows, None) for task in (TAGS, ALONE))
    for one, other in zip(together, alone, strict=True):
        assert iob2_break(names(one.chosen)) is None
        if iob2_break(names(other.chosen)) is None:
            np.testing.assert_array_equal(one.chosen, other.chosen)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_spans_of_iob2_answers_are_those_that_the_strict_metric_counts() -> None:
    rows = drawn([7] * 40, seed=0)
    chosen = [names(one.chosen) for one in kind_of(TAGS).decide(TAGS, rows, None)]
    assert any(iob_spans(one) for one in chosen)
    scores = span_scores(chosen, chosen)
    assert sum(kind["support"] for kind in scores["per_span"].values()) == sum(len(iob_spans(one)) for one in chosen)


def test_a_tag_that_nothing_else_could_begin_may_begin() -> None:
    labels = ("O", "I-PER", "B-LOC", "I-LOC")
    allowed = iob2_transitions(labels)
    assert not allowed[:, :3].any()
    assert [labels[i] for i in np.flatnonzero(np.isfinite(allowed[:4, 3]))] == ["B-LOC", "I-LOC"]
    assert np.isneginf(allowed[4, 3])


def test_what_may_not_follow_has_no_probability_among_sequences() -> None:
    logits = drawn([5], seed=1)[0]
    found = marginals(logits, iob2_transitions(TAGS.labels))
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
    assert found[0, 2] == found[0, 4] == 0


def test_where_no_sequence_may_be_there_is_no_probability() -> None:
    logits = np.where(np.arange(3)[None] == 2, 0.0, -np.inf).repeat(4, axis=0)  # I-X alone, which may not begin
    found = marginals(logits, iob2_transitions(("O", "B-X", "I-X")))
    np.testing.assert_array_equal(found, np.zeros((4, 3)))


@pytest.mark.parametrize(("wanted", "decoder"), [(None, "iob2"), ("softmax", "softmax"), ("crf", "crf")])
def test_iob_tags_are_decoded_as_iob2_unless_the_recipe_says_otherwise(
    tmp_path: Path, wanted: str | None, decoder: str
) -> None:
    given = tiny.recipe(tmp_path)
    given["tasks"]["ner"]["decoder"] = wanted
    found = {task.name: task.decoder for task in prepare(Recipe.from_dict(given)).tasks}
    assert found.pop("ner") == decoder
    assert {*found.values()} == {"softmax"}


def test_labels_that_are_no_iob_tags_and_texts_cannot_be_decoded_so(tmp_path: Path) -> None:
    given = tiny.recipe(tmp_path)
    given["tasks"]["pos"]["decoder"] = "iob2"
    with pytest.raises(DataError, match="task `pos`: decoder iob2 needs IOB tags"):
        prepare(Recipe.from_dict(given))
    given["tasks"]["sentiment"]["decoder"] = "iob2"
    with pytest.raises(RecipeError, match=r"tasks\.sentiment\.decoder: a text-classification task has no words"):
        Recipe.from_dict(given)

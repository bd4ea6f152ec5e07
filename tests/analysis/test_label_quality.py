"""How likely labels are right: held against cleanlab's own modules, and against what the definitions say."""

import builtins
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nlp_mtl.analysis.label_quality import dynamics, estimated_errors, is_answered, need_cleanlab, quality
from nlp_mtl.errors import MissingExtraError
from nlp_mtl.tasks import Task

cleanlab = pytest.importorskip("cleanlab")

POS = Task("pos", "token-classification", ("A", "B", "C"), "accuracy")
TAGS = Task("tags", "multi-label-classification", ("x", "y", "z"), "micro_f1")


def shares(draw: np.random.Generator, items: int, labels: int = 3) -> np.ndarray:
    logits = 3 * draw.normal(size=(items, labels))
    powers = np.exp(logits)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def test_words_are_scored_as_by_cleanlabs_module_for_words() -> None:
    from cleanlab.token_classification.rank import get_label_quality_scores

    draw = np.random.default_rng(0)
    lengths = [3, 1, 7, 4]
    labels = [draw.integers(3, size=length) for length in lengths]
    probabilities = [shares(draw, length) for length in lengths]
    _, told = get_label_quality_scores([one.tolist() for one in labels], probabilities)
    found = quality(POS, np.concatenate(labels), np.concatenate(probabilities))
    assert found == pytest.approx(np.concatenate([one.to_numpy() for one in told]))


def test_sets_of_labels_are_scored_as_by_cleanlabs_module_for_them() -> None:
    from cleanlab.multilabel_classification import get_label_quality_scores

    draw = np.random.default_rng(0)
    labels, probabilities = draw.integers(2, size=(20, 3)), draw.random((20, 3))
    told = get_label_quality_scores([np.flatnonzero(one).tolist() for one in labels], probabilities)
    assert quality(TAGS, labels, probabilities) == pytest.approx(told)


def test_rows_that_have_none_of_several_labels_are_scored_though_cleanlab_reads_no_list_of_them() -> None:
    probabilities = np.array([[0.1, 0.2, 0.1], [0.9, 0.1, 0.1]])
    found = quality(TAGS, np.zeros((2, 3), dtype=int), probabilities)
    assert found[0] > found[1]
    assert len(quality(TAGS, np.zeros((0, 3), dtype=int), np.zeros((0, 3)))) == 0


def test_probabilities_that_are_off_by_rounding_are_taken() -> None:
    found = quality(POS, np.array([0, 1]), np.array([[1.0000012, 0, 0], [0.5, 0.5, -1e-9]]))
    assert found == pytest.approx([1, 0.5])


@given(st.integers(0, 1000), st.floats(0.02, 0.3))
def test_the_estimate_is_near_what_was_planted_where_models_are_sure(seed: int, noise: float) -> None:
    draw = np.random.default_rng(seed)
    true = draw.integers(3, size=2000)
    wrong = draw.random(2000) < noise
    labels = np.where(wrong, (true + draw.integers(1, 3, size=2000)) % 3, true)
    probabilities = np.full((2000, 3), 0.05)
    probabilities[np.arange(2000), true] = 0.9
    assert estimated_errors(POS, labels, probabilities) == pytest.approx(wrong.sum(), rel=0.1, abs=3)
    assert is_answered(POS, labels, probabilities).tolist() == (~wrong).tolist()


def test_labels_that_occur_nowhere_are_no_errors() -> None:
    probabilities = np.tile([0.6, 0.3, 0.1], (10, 1))
    assert 0 <= estimated_errors(POS, np.array([0, 1] * 5), probabilities) <= 10
    assert 0 <= estimated_errors(TAGS, np.array([[1, 0, 0], [0, 1, 0]] * 5), probabilities) <= 10


@given(st.integers(0, 50), st.integers(0, 2))
def test_a_label_that_all_items_have_is_no_error_and_hinders_no_estimate_for_the_others(seed: int, label: int) -> None:
    from cleanlab.multilabel_classification.filter import find_label_issues

    draw = np.random.default_rng(seed)
    labels, probabilities = draw.integers(2, size=(40, 3)), draw.random((40, 3))
    told = find_label_issues(
        [np.flatnonzero(one).tolist() for one in labels], probabilities, filter_by="confident_learning", n_jobs=1
    )
    assert estimated_errors(TAGS, labels, probabilities) == told.sum()
    labels[:, label] = 1
    others = [one for one in range(3) if one != label]
    two = Task("two", "multi-label-classification", ("x", "y"), "micro_f1")
    expected = estimated_errors(two, labels[:, others], probabilities[:, others])
    assert estimated_errors(TAGS, labels, probabilities) == expected


def test_a_set_of_one_label_is_scored_by_the_probability_that_it_is_rightly_there_or_not() -> None:
    task = Task("spam", "multi-label-classification", ("spam",), "micro_f1")
    labels, shares = np.array([[1], [0], [1], [0]] * 5), np.array([[0.9], [0.2], [0.1], [0.05]] * 5)
    assert quality(task, labels, shares) == pytest.approx([0.9, 0.8, 0.1, 0.95] * 5)
    assert quality(task, labels[:1], shares[:1]) == pytest.approx([0.9])
    assert estimated_errors(task, labels, shares) == 5
    assert estimated_errors(task, np.ones_like(labels), shares) == 0


def test_a_set_of_labels_is_answered_where_all_of_it_is() -> None:
    probabilities = np.array([[0.9, 0.1, 0.6], [0.9, 0.1, 0.4]])
    assert is_answered(TAGS, np.array([[1, 0, 1], [1, 0, 1]]), probabilities).tolist() == [True, False]


@given(arrays.arrays(float, (4, 3), elements=st.floats(0, 1)), arrays.arrays(bool, (4, 3)))
def test_dynamics_are_the_mean_and_deviation_over_the_points(points: np.ndarray, answered: np.ndarray) -> None:
    found = dynamics([*points], [*answered])
    for item in range(3):
        values = [float(one) for one in points[:, item]]
        mean = sum(values) / 4
        assert found.confidence[item] == pytest.approx(mean)
        assert found.variability[item] == pytest.approx((sum((one - mean) ** 2 for one in values) / 4) ** 0.5, abs=1e-9)
        assert found.correctness[item] == pytest.approx(answered[:, item].sum() / 4)


@pytest.mark.parametrize("name", ["cleanlab", "datasketch"])
def test_a_missing_package_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = builtins.__import__

    def without(module: str, *rest: Any) -> Any:
        if module.split(".")[0] == name:
            raise ImportError(f"No module named {name!r}")
        return real(module, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=rf"{name}.*pip install 'nlp_mtl\[label-errors\]'"):
        need_cleanlab()

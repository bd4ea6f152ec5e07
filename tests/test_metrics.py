import warnings

import pytest
import seqeval.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from nlp_mtl.metrics import accuracy, label_scores, macro_f1, span_scores
from nlp_mtl.task_types import score_task
from nlp_mtl.tasks import Task

LABELS = st.sampled_from(["a", "b", "c", "d e"])
LABEL_PAIRS = st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=30)
TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-a-b", "I-a-b"])
ROWS = st.lists(st.lists(st.tuples(TAGS, TAGS), max_size=8), min_size=1, max_size=6)

NER = Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1")
POS = Task("pos", "token-classification", ("NOUN", "VERB"), "accuracy")
TOPIC = Task("topic", "text-classification", ("a", "b"), "macro_f1")


def unzipped(rows):
    return [[gold for gold, _ in row] for row in rows], [[predicted for _, predicted in row] for row in rows]


@given(LABEL_PAIRS)
def test_label_scores_are_scikit_learns(pairs):
    gold, predicted = zip(*pairs, strict=True)
    names = sorted({*gold, *predicted})
    columns = precision_recall_fscore_support(gold, predicted, labels=names, zero_division=0)
    ours = label_scores(gold, predicted)
    assert list(ours) == names
    for name, *expected in zip(names, *columns, strict=True):
        assert list(ours[name].values()) == pytest.approx(expected), name
    assert accuracy(gold, predicted) == pytest.approx(accuracy_score(gold, predicted))
    assert macro_f1(gold, predicted) == pytest.approx(f1_score(gold, predicted, average="macro", zero_division=0))


def test_a_label_that_only_a_wrong_prediction_has_pulls_macro_f1_down():
    assert macro_f1(["a", "a", "b"], ["a", "a", "b"]) == 1
    assert macro_f1(["a", "a", "b"], ["a", "a", "c"]) == pytest.approx(1 / 3)


@settings(deadline=None)
@given(ROWS)
def test_span_scores_are_seqevals_strict_and_lenient_also_of_invalid_tags(rows):
    gold, predicted = unzipped(rows)
    ours = span_scores(gold, predicted)  # warnings are errors: none may come from here
    has_span = any(tag != "O" for rows in (gold, predicted) for row in rows for tag in row)
    strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if has_span:
            assert ours["span_f1"] == pytest.approx(seqeval.metrics.f1_score(gold, predicted, **strict))
            assert ours["span_precision"] == pytest.approx(seqeval.metrics.precision_score(gold, predicted, **strict))
            assert ours["span_recall"] == pytest.approx(seqeval.metrics.recall_score(gold, predicted, **strict))
            assert ours["span_f1_lenient"] == pytest.approx(seqeval.metrics.f1_score(gold, predicted))
            report = seqeval.metrics.classification_report(gold, predicted, output_dict=True, **strict)
        else:
            assert ours["span_f1"] == ours["span_f1_lenient"] == 0
            report = {}
    for name, score in ours["per_span"].items():
        expected = {key.replace("f1-score", "f1"): value for key, value in report[name].items()}
        assert score == pytest.approx(expected), name
    assert set(report) - {"micro avg", "macro avg", "weighted avg"} == set(ours["per_span"])


def test_a_predicted_span_without_its_begin_counts_only_in_the_lenient_score():
    scores = span_scores([["B-PER", "I-PER", "O"]], [["I-PER", "I-PER", "O"]])
    assert (scores["span_f1"], scores["span_f1_lenient"]) == (0, 1)


def test_a_wrong_boundary_is_a_wrong_span():
    scores = span_scores([["B-PER", "I-PER"]], [["B-PER", "O"]])
    assert scores["span_f1"] == scores["span_f1_lenient"] == 0


def test_spans_are_counted_over_the_corpus_not_averaged_over_rows():
    gold = [["B-PER", "B-PER", "B-PER"], ["B-PER"]]
    predicted = [["B-PER", "B-PER", "B-PER"], ["O"]]
    assert span_scores(gold, predicted)["span_recall"] == 3 / 4


def test_a_span_does_not_run_on_into_the_next_row():
    gold = [["B-PER"], ["B-PER"]]
    scores = span_scores(gold, [["B-PER"], ["I-PER"]])
    assert (scores["span_recall"], scores["span_f1_lenient"]) == (0.5, 1)


@pytest.mark.parametrize("name", ["a-b", "micro avg", "macro avg", "work of art", "_", "O", "PER|人", "B-PER"])
def test_types_of_spans_may_have_any_name(name):
    gold = [[f"B-{name}", f"I-{name}", "O", "B-other"]]
    predicted = [[f"B-{name}", f"I-{name}", "O", "O"]]
    scores = span_scores(gold, predicted)
    assert set(scores["per_span"]) == {name, "other"}
    assert scores["per_span"][name] == {"precision": 1, "recall": 1, "f1": 1, "support": 1}
    assert scores["span_recall"] == 0.5


@pytest.mark.parametrize(
    ("gold", "predicted"),
    [([], []), ([[]], [[]]), ([["O"]], [["O"]]), ([["I-X"]], [["O"]]), ([["O"]], [["I-X"]]), ([["I-X"]], [["I-X"]])],
)
def test_a_corpus_without_a_strict_span_scores_zero_and_not_an_error(gold, predicted):
    scores = span_scores(gold, predicted)
    assert (scores["span_precision"], scores["span_recall"], scores["span_f1"]) == (0, 0, 0)
    assert scores["per_span"] == {}


def test_scores_are_plain_numbers_that_json_takes():
    scores = span_scores([["B-X"]], [["B-X"]])
    assert {type(scores[key]) for key in scores if key != "per_span"} == {float}
    assert {type(value) for value in scores["per_span"]["X"].values()} == {float, int}


@pytest.mark.parametrize("tag", ["NOUN", "", "B-", "E-PER", "S-PER"])
def test_a_tag_that_is_not_iob_is_refused_by_name(tag):
    with pytest.raises(ValueError, match=f"IOB.*{tag!r}"):
        span_scores([["O"]], [[tag]])


def test_gold_and_predicted_of_different_length_are_refused():
    with pytest.raises(ValueError, match="zip"):
        accuracy(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="inconsistent"):
        span_scores([["B-X", "O"]], [["B-X"]])


def test_the_main_metric_of_a_task_stands_first():
    tags = [["B-PER", "O"]]
    assert list(score_task(NER, tags, tags)) == [
        "span_f1", "accuracy", "macro_f1", "span_precision", "span_recall", "span_f1_lenient", "per_span",
        "items", "per_label",
    ]  # fmt: skip
    assert list(score_task(TOPIC, ["a"], ["a"])) == ["macro_f1", "accuracy", "items", "per_label"]


def test_tokens_are_counted_over_all_rows():
    scores = score_task(POS, [["NOUN", "VERB", "VERB"], ["NOUN"]], [["NOUN", "VERB", "NOUN"], ["VERB"]])
    assert (scores["accuracy"], scores["items"]) == (0.5, 4)
    assert "span_f1" not in scores
    assert scores["per_label"]["VERB"]["support"] == 2


@pytest.mark.parametrize(("task", "gold"), [(TOPIC, []), (NER, []), (NER, [[], []]), (POS, [[]])])
def test_without_gold_labels_there_is_nothing_to_say(task, gold):
    assert score_task(task, gold, gold) == {}

"""Evaluation against stock single-task models that read the raw rows one by one."""

import itertools
from typing import Any

import pytest
from mixed_steps import NER, POS, SENTIMENT, TASKS, encoded, framing, text_rows, word_rows
from seqeval.metrics import f1_score as span_f1
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score, f1_score
from stock_models import by_hand, stock, tiny_model

from nlp_mtl import evaluation
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.evaluation import evaluate, selection_score
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.tasks import Task


@pytest.fixture(scope="module")
def model() -> MultiTaskModel:
    return tiny_model()


def words_split(rows: list[dict[str, Any]]) -> EncodedSplit:
    return encoded("words", rows, [NER, POS])


def scores(model: MultiTaskModel, splits: dict[str, EncodedSplit], **options: Any) -> dict[str, Any]:
    return evaluate(model, splits, TASKS, framing(), **{"max_tokens": 64, **options})


def said(model: MultiTaskModel, task: Task, column: str, rows: list[dict[str, Any]]) -> tuple[list, list]:
    """Gold and predicted labels of the labelled rows and words, by the stock model of one task."""
    one, gold, predicted = stock(model, task), [], []
    for row in rows:
        if not row[column]:
            continue
        best = by_hand(one, row["tokens"] if "tokens" in row else row["text"].split()).argmax(-1)
        if task is SENTIMENT:
            gold.append(row[column])
            predicted.append(task.labels[best])
            continue
        for labelled, places in itertools.groupby(range(len(best)), lambda n, row=row: row[column][n] is not None):
            kept = list(places) if labelled else []
            gold.append([row[column][n] for n in kept])
            predicted.append([task.labels[best[n]] for n in kept])
    return gold, predicted


def flat(rows: list[list[str]]) -> list[str]:
    return [label for row in rows for label in row]


def test_scores_of_tokens_are_those_of_stock_models_and_seqeval(model: MultiTaskModel) -> None:
    rows = word_rows()
    found = scores(model, {"words": words_split(rows)})
    gold, predicted = said(model, NER, "ner", rows)
    assert found["ner"]["span_f1"] == pytest.approx(span_f1(gold, predicted, mode="strict", scheme=IOB2))
    assert found["ner"]["span_f1_lenient"] == pytest.approx(span_f1(gold, predicted))
    assert found["ner"]["accuracy"] == pytest.approx(accuracy_score(flat(gold), flat(predicted)))
    gold, predicted = said(model, POS, "upos", rows)
    assert found["pos"]["accuracy"] == pytest.approx(accuracy_score(flat(gold), flat(predicted)))
    assert found["pos"]["macro_f1"] == pytest.approx(f1_score(flat(gold), flat(predicted), average="macro"))
    assert 0 < found["pos"]["accuracy"] < 1  # the test could tell


def test_scores_of_texts_are_those_of_the_stock_model(model: MultiTaskModel) -> None:
    rows = text_rows()
    found = scores(model, {"texts": encoded("texts", rows, [SENTIMENT])})["sentiment"]
    gold, predicted = said(model, SENTIMENT, "label", rows)
    assert found["accuracy"] == pytest.approx(accuracy_score(gold, predicted))
    assert found["macro_f1"] == pytest.approx(f1_score(gold, predicted, average="macro"))
    assert found["items"] == len(rows) - 1  # one row has no label


def test_every_labelled_word_counts_also_in_rows_of_several_windows(model: MultiTaskModel) -> None:
    rows = word_rows()
    assert max(len(row["tokens"]) for row in rows) > framing().max_length
    found = scores(model, {"words": words_split(rows)})
    for task, column in (("ner", "ner"), ("pos", "upos")):
        assert found[task]["items"] == sum(len(row[column] or ()) for row in rows)


def test_words_without_a_label_are_not_counted(model: MultiTaskModel) -> None:
    rows = word_rows()
    rows[0]["upos"] = [None, *rows[0]["upos"][1:]]
    found = scores(model, {"words": words_split(rows)})["pos"]
    gold, predicted = said(model, POS, "upos", rows)
    assert found["items"] == len(flat(gold)) == sum(len(row["upos"]) for row in rows) - 1
    assert found["accuracy"] == pytest.approx(accuracy_score(flat(gold), flat(predicted)))


def test_several_datasets_of_a_task_are_scored_together_and_each(model: MultiTaskModel) -> None:
    rows = word_rows()
    one, two = words_split(rows[:3]), words_split(rows[3:])
    found = scores(model, {"one": one, "two": two})
    whole = scores(model, {"words": words_split(rows)})
    for task in ("ner", "pos"):
        per_dataset = found[task].pop("per_dataset")
        assert found[task] == whole[task]
        assert per_dataset == {"one": scores(model, {"one": one})[task], "two": scores(model, {"two": two})[task]}


def test_a_dataset_without_labels_of_a_task_takes_no_part(model: MultiTaskModel) -> None:
    bare = [{**row, "ner": None} for row in word_rows()]
    assert set(scores(model, {"bare": words_split(bare)})) == {"pos"}
    both = scores(model, {"bare": words_split(bare), "words": words_split(word_rows())})
    assert "per_dataset" not in both["ner"]
    assert set(both["pos"]["per_dataset"]) == {"bare", "words"}
    assert scores(model, {}) == {}


def test_rows_are_read_in_portions_without_losing_any(model: MultiTaskModel, monkeypatch: pytest.MonkeyPatch) -> None:
    split = words_split(word_rows())
    whole = scores(model, {"words": split})
    monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", 2)
    assert scores(model, {"words": split}, max_tokens=16) == whole


def test_a_text_is_read_once_for_all_tasks(model: MultiTaskModel) -> None:
    read: list[int] = []
    hook = model.encoder.register_forward_hook(
        lambda module, args, kwargs, output: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    scores(model, {"words": words_split(word_rows()[:1])})
    hook.remove()
    assert sum(read) == 1


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_put_back_into_its_mode(model: MultiTaskModel, training: bool) -> None:
    model.train(training)
    scores(model, {"words": words_split(word_rows())})
    assert model.training is training
    model.eval()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"ner": 1, "pos": 1, "sentiment": 1}, 0.7),
        ({"ner": 3, "pos": 1, "sentiment": 0}, 0.6),
        ({"ner": 2, "pos": 0, "sentiment": 0}, 0.5),
        ({"ner": 0, "pos": 1, "sentiment": 9}, 0.9),
        ({"ner": 0, "pos": 0, "sentiment": 1}, None),
    ],
)
def test_the_selection_score_is_the_mean_of_the_main_metrics_that_were_scored(
    weights: dict[str, float], expected: float | None
) -> None:
    results = {"ner": {"span_f1": 0.5}, "pos": {"accuracy": 0.9}}
    assert selection_score(results, TASKS, weights) == (None if expected is None else pytest.approx(expected))


def test_a_span_does_not_reach_over_a_word_without_a_label(model: MultiTaskModel) -> None:
    rows = [{"tokens": ["anna", "and", "bob"], "ner": ["B-PER", None, "I-PER"], "upos": ["PROPN", "NOUN", "PROPN"]}] * 2
    found = scores(model, {"words": words_split(rows)})["ner"]
    assert found["items"] == 4
    # Two stretches of one word a row: the broken I-PER is no entity of the strict scheme.
    assert found["per_span"]["PER"]["support"] == 2

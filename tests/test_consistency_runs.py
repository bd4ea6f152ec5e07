"""Runs whose recipe says which labels go together: counted on train, weighed on validation, saved, answered with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import values

from nlp_mtl import DataError, Recipe, RecipeError, evaluate, load, train
from nlp_mtl.build import new_model
from nlp_mtl.build_consistency import CONSISTENCY_WEIGHTS, consistency, is_another, settle_consistency
from nlp_mtl.build_data import prepare
from nlp_mtl.run_evaluation import answers
from nlp_mtl.task_types.consistency import association

TEXTS = ["anna loves rome .", "bob sees the teas", "the good film of acme"]


def recipe_of(folder: Path, *pairs: dict[str, Any], **training: Any) -> Recipe:
    return Recipe.from_dict(
        {**values(folder, **{"max_steps": 4, "eval_every": 4, **training}), "consistency": [*pairs]}
    )


def pair(**options: Any) -> dict[str, Any]:
    return {"tasks": ["ner", "pos"], **options}


def test_a_table_is_counted_on_the_training_rows_and_rules_are_places_in_it(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, pair(weight=0.5, allowed={"PER": ["PROPN"]}))
    prepared = prepare(recipe)
    ner, pos = (next(task for task in prepared.tasks if task.name == name) for name in ("ner", "pos"))
    rows = [json.loads(line) for line in (tmp_path / "corpus" / "words" / "train.jsonl").read_text().splitlines()]
    counts = np.zeros((len(ner.labels), len(pos.labels)))
    for row in rows:
        for one, other in zip(row["ner"], row["upos"], strict=True):
            counts[ner.labels.index(one), pos.labels.index(other)] += 1
    (found,) = consistency(recipe, prepared)
    np.testing.assert_allclose(found["table"], association(counts))
    assert (found["tasks"], found["weight"]) == (["ner", "pos"], 0.5)
    assert {(ner.labels[a], pos.labels[b]) for a, b in found["forbidden"]} == {
        (one, other) for one in ("B-PER", "I-PER") if one in ner.labels for other in pos.labels if other != "PROPN"
    }


def test_evaluation_and_prediction_keep_a_rule_also_where_one_task_alone_is_asked_for(tmp_path: Path) -> None:
    train(recipe_of(tmp_path, pair(weight=0, allowed={"PER": ["PROPN"], "LOC": ["PROPN"], "ORG": ["PROPN"]})))
    nlp = load(tmp_path / "run")
    nlp.model.head("ner").classifier.bias.data[1] += 3  # it sees spans everywhere
    assert nlp.model.config.consistency is not None
    for text in TEXTS:
        answer = nlp(text)
        words = {(word["start"], word["end"]): word["label"] for word in answer["pos"]}
        inside = [label for (a, b), label in words.items() if any(s["start"] <= a < s["end"] for s in answer["ner"])]
        assert inside == ["PROPN"] * len(inside)
        for task in ("ner", "pos"):
            assert nlp(text, tasks=[task])[task] == answer[task]
    assert any(nlp(text)["ner"] for text in TEXTS)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert evaluate(tmp_path / "run") == results["scores"]["test"]


def test_a_weight_that_is_auto_is_the_one_that_scores_best_on_validation(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, pair())
    prepared = prepare(recipe)
    model = new_model(recipe, prepared)
    told = iter([0.5, 0.7, 0.9, 0.9, 0.1])
    seen = []

    def score() -> dict[str, Any]:
        seen.append(model.config.consistency[0]["weight"])
        value = next(told)
        return {"ner": {"span_f1": value}, "pos": {"accuracy": value}, "sentiment": {"accuracy": 1 - value}}

    settle_consistency(recipe, prepared, model, score)
    assert seen == [*CONSISTENCY_WEIGHTS]
    assert model.config.consistency[0]["weight"] == CONSISTENCY_WEIGHTS[2]  # of equals the smallest
    settle_consistency(recipe, prepared, model, dict)
    assert model.config.consistency[0]["weight"] == 0


def test_a_saved_model_has_the_weight_that_was_chosen(tmp_path: Path) -> None:
    train(recipe_of(tmp_path, pair()))
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["consistency"][0]["weight"] in CONSISTENCY_WEIGHTS


@pytest.mark.parametrize(
    ("pairs", "told"),
    [
        ([pair(tasks=["ner", "poss"])], r"consistency\.0\.tasks: there is no task `poss`\. Did you mean `pos`"),
        ([pair(tasks=["ner", "sentiment"])], "two token-classification or two text-classification tasks"),
        ([pair(), pair(tasks=["pos", "ner"])], r"consistency\.1\.tasks: `pos` stands twice"),
        ([pair(tasks=["ner", "ner"])], "`ner` stands twice"),
        ([pair(tasks=["ner"])], r"consistency\.0\.tasks"),
        ([pair(weight=-1)], r"consistency\.0\.weight"),
        ([pair(allowed={"PER": []})], r"consistency\.0\.allowed\.PER: .*at least one entry"),
        ([pair(weight="much")], r"consistency\.0\.weight"),
    ],
)
def test_pairs_that_do_not_go_together_are_refused(tmp_path: Path, pairs: list[Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        recipe_of(tmp_path, *pairs)


def test_labels_that_do_not_exist_and_rows_without_both_labels_are_told(tmp_path: Path) -> None:
    for allowed, told in (
        ({"PRE": ["PROPN"]}, r"consistency\.0\.allowed: `ner` has no label `PRE`.* Did you mean `PER`"),
        ({"PER": ["PROP"]}, r"consistency\.0\.allowed\.PER: `pos` has no label `PROP`.* Did you mean `PROPN`"),
    ):
        recipe = recipe_of(tmp_path, pair(allowed=allowed))
        with pytest.raises(RecipeError, match=told):
            consistency(recipe, prepare(recipe))
    given = recipe_of(tmp_path, pair()).to_dict()
    words = given["datasets"]["words"]
    given["datasets"]["more"] = words
    given["tasks"]["pos"]["dataset"] = "more"
    recipe = Recipe.from_dict(given)
    with pytest.raises(DataError, match="no training row that was read has labels of both"):
        consistency(recipe, prepare(recipe))
    crf = given | {"tasks": {n: {**t, "decoder": "crf"} if n != "sentiment" else t for n, t in given["tasks"].items()}}
    with pytest.raises(RecipeError, match="both have the decoder crf"):
        Recipe.from_dict(crf)


def test_what_an_evaluation_says_of_it_counts_without_training_anew(tmp_path: Path) -> None:
    given = recipe_of(tmp_path)
    train(given)
    changed = given.to_dict() | {"consistency": [pair(weight="auto", allowed={"PER": ["NOUN"]})]}
    prepared, found = answers(tmp_path / "run", Recipe.from_dict(changed), split="test")
    assert {"train", "validation", "test"} <= {*prepared.encoded["words"]}
    both = zip(found["ner"]["words"].predicted, found["pos"]["words"].predicted, strict=True)
    words = [(tag, pos) for tags, labels in both for tag, pos in zip(tags, labels, strict=True)]
    assert all(pos == "NOUN" for tag, pos in words if tag.endswith("-PER"))
    with pytest.raises(RecipeError, match="has no label `NOUNN`"):
        evaluate(
            tmp_path / "run", Recipe.from_dict(changed | {"consistency": [pair(weight=0, allowed={"PER": ["NOUNN"]})]})
        )


def test_a_recipe_says_another_consistency_than_a_model_only_if_it_says_one(tmp_path: Path) -> None:
    told = [pair(weight="auto", allowed={"PER": ["PROPN"]})]
    given = recipe_of(tmp_path, *told)
    train(given)
    config = load(tmp_path / "run").model.config
    silent = {key: value for key, value in given.to_dict().items() if key != "consistency"}
    assert not is_another(given, config)
    assert not is_another(Recipe.from_dict(silent), config)
    for other in ([], [pair(weight=0.75, allowed={"PER": ["PROPN"]})], [pair(weight="auto")]):
        assert is_another(Recipe.from_dict(silent | {"consistency": other}), config)

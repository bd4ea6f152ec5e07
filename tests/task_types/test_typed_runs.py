"""Runs with several labels a text and with numbers: data, steps, evaluation, prediction, export, what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny
import torch
import yaml
from held import held, problem, resolve
from huggingface_hub import ModelCard
from tiny_runs import finish, start, weights, write_yaml
from tiny_runs import lines as metric_lines
from transformers import pipeline
from typed_runs import TAGS, values

from nlp_mtl import DataError, ModelError, Recipe, RecipeError, evaluate, load, train
from nlp_mtl.build import balancer, new_model, steps
from nlp_mtl.build_data import prepare
from nlp_mtl.hub.export import export, stock
from nlp_mtl.models.multitask import from_encoder
from nlp_mtl.models.taken_heads import take_head
from nlp_mtl.reports import print_check, print_scores
from nlp_mtl.run_check import check
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task
from nlp_mtl.training.balancing import summed_loss

TYPE = "multi-label-classification"
TASKS = [
    Task("tags", TYPE, TAGS, "micro_f1"),
    Task("rating", "regression", ("value",), "pearson"),
    Task("mood", "text-classification", ("bad", "good"), "accuracy"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("typed")
    train(Recipe.from_dict(values(folder)))
    return folder / "run"


# Data


@pytest.mark.parametrize(
    ("labels", "feature", "options"),
    [
        ([["b", "a"], ["c"], [], None], None, {}),
        ([[1, 0], [2], [], None], datasets.List(datasets.ClassLabel(names=["a", "b", "c"])), {}),
        ([[1, 0], [2], [], None], None, {"label_names": ["a", "b", "c"]}),
        ([[1, 1, 0], [0, 0, 1], [0, 0, 0], None], None, {"label_names": ["a", "b", "c"]}),
        ([[True, True, False], [False, False, True], [False] * 3, None], None, {"label_names": ["a", "b", "c"]}),
        ([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0] * 3, None], None, {"label_names": ["a", "b", "c"]}),
    ],
    ids=["names", "classes", "ids", "indicators", "booleans", "floats"],
)
def test_several_labels_come_as_names_ids_or_indicators(labels: Any, feature: Any, options: dict[str, Any]) -> None:
    source = held("d", labels, feature)
    task, readers = resolve(source, type=TYPE, **options)
    assert (task.labels, task.metric) == (("a", "b", "c"), "micro_f1")
    found = [kind_of(task).target(readers["d"], cell, 1, lambda: "") for cell in source.splits["train"].rows["label"]]
    assert found == [[1, 1, 0], [0, 0, 1], [0, 0, 0], []]


def test_labels_are_renamed_and_merged() -> None:
    task, readers = resolve(held("d", [["b", "a"], ["c"]]), type=TYPE, label_map={"c": "a"})
    assert task.labels == ("a", "b")
    assert kind_of(task).target(readers["d"], ["c", "a"], 1, lambda: "") == [1, 0]


@pytest.mark.parametrize(
    ("labels", "type_", "told"),
    [
        (["a", "b"], TYPE, "holds one value a row, but multi-label-classification needs a list of labels a row"),
        ([[True], [False]], TYPE, "say which labels they are for: `label_names"),
        ([[0, 1]], TYPE, "holds numbers; say what they mean"),
        (["a", "b"], "regression", "holds values of type string, but regression needs numbers"),
        ([["a"]], "regression", "holds lists of values of type string, but regression needs numbers"),
    ],
)
def test_a_column_that_does_not_fit_the_type_is_refused(labels: Any, type_: str, told: str) -> None:
    assert told in problem(held("d", labels), type=type_)


def test_floats_that_are_no_indicators_are_refused() -> None:
    told = problem(held("d", [[0.5, 1.0]]), type=TYPE, label_names=["a", "b"])
    assert "expected a 0 or 1 for each of `a`, `b`" in told


@pytest.mark.parametrize("odd", [[], [0, 1], [0, 1, 0, 1]])
def test_lists_of_0_and_1_are_not_taken_for_ids_where_one_has_another_length(odd: list[int]) -> None:
    rows = [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0], odd]
    dataset = held("d", rows)
    task, readers = resolve(dataset, type=TYPE, label_names=["a", "b", "c"])
    target = kind_of(task).target
    with pytest.raises(DataError, match=r"row 3 has 0 more than once in \[0, 1, 0\], so it is no list of ids") as told:
        target(readers["d"], rows[0], 3, lambda: "row 3")
    assert "`splits: {test: null}`" in str(told.value)
    _, readers = resolve(held("d", rows[:-1]), type=TYPE, label_names=["a", "b", "c"])
    with pytest.raises(DataError, match=rf"row 3 has {len(odd)} values; expected 3, a 0 or 1 for each label"):
        target(readers["d"], odd, 3, lambda: "row 3")  # of a stream, whose later rows nobody had seen
    assert target(readers["d"], [-1], 3, lambda: "row 3") == target(readers["d"], None, 3, lambda: "row 3") == []


def test_numbers_that_happen_to_be_whole_in_one_file_go_with_others(tmp_path: Path) -> None:
    given = values(tmp_path)
    file = tmp_path / "corpus" / "texts" / "validation.jsonl"
    rows = [json.loads(line) | {"rating": float(n % 3)} for n, line in enumerate(file.read_text().splitlines())]
    rows[1]["rating"] = None
    tiny.write_jsonl(file, rows)
    prepared = prepare(Recipe.from_dict(given))
    split = prepared.encoded["texts"]["validation"]
    rating = next(task for task in prepared.tasks if task.name == "rating")
    assert split.numbers(rating).tolist() == [row["rating"] for row in rows if row["rating"] is not None]
    assert split.labelled["rating"].tolist() == [row["rating"] is not None for row in rows]
    assert split.labelled["tags"].tolist() == [1] * len(rows)
    assert split.rows.features["labels/rating"].feature.dtype == "float64"


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [("rating", 2.0, "only the number 2"), ("tags", ["good"], "the same labels everywhere")],
)
def test_targets_that_do_not_vary_are_refused(tmp_path: Path, column: str, value: Any, told: str) -> None:
    given = values(tmp_path)
    file = tmp_path / "corpus" / "texts" / "train.jsonl"
    tiny.write_jsonl(file, [json.loads(line) | {column: value} for line in file.read_text().splitlines()])
    recipe = Recipe.from_dict(given)
    with pytest.raises(DataError, match=f"task `{column}` has {told} in the train splits"):
        steps(recipe, prepare(recipe))


# Steps


def losses(recipe: Recipe, **layout: Any) -> tuple[dict[str, float], dict[str, int]]:
    """The losses of the first step, however it is laid out."""
    prepared = prepare(recipe)
    torch.manual_seed(0)
    model = new_model(recipe, prepared).eval()
    if layout.get("packed"):
        assert model.packs("packed")
    data = steps(recipe, prepared, packed=layout.get("packed", False))
    data.max_tokens, data.num_threads = layout.get("max_tokens", 128), 1
    sums = dict.fromkeys((task.name for task in prepared.tasks), 0.0)
    batches = data[0]
    with torch.no_grad():
        for batch in batches.micro_batches:
            logits = model(**batch.inputs, rows={name: rows.rows for name, rows in batch.tasks.items()})
            for name, rows in batch.tasks.items():
                sums[name] += float(summed_loss(logits[name], rows))
    return sums, batches.counts


def test_losses_do_not_depend_on_the_layout(tmp_path: Path) -> None:
    recipe = Recipe.from_dict({**values(tmp_path), "max_length": 16})
    padded, counts = losses(recipe)
    for other in ({"packed": True}, {"max_tokens": 16}, {"max_tokens": 32, "packed": True}):
        assert losses(recipe, **other) == (pytest.approx(padded, rel=1e-4), counts)
    assert counts["tags"] == counts["rating"] == counts["sentiment"] > 0


@pytest.mark.slow
def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    plain = values(tmp_path, max_tokens=64, max_steps=5)
    train(Recipe.from_dict({**plain, "output_dir": str(tmp_path / "one")}))
    file = write_yaml(tmp_path, {**plain, "output_dir": str(tmp_path / "two")})
    code, _, errors = finish(start("train", file, processes=2))
    assert code == 0, errors
    for name, tensor in weights(tmp_path / "one").items():
        if not name.endswith("attention.self.key.bias"):  # see assert_close, which would have numbers equal to the bit
            torch.testing.assert_close(weights(tmp_path / "two")[name], tensor, atol=1e-5, rtol=1e-5)
    for one, two in zip(metric_lines(tmp_path / "one"), metric_lines(tmp_path / "two"), strict=True):
        for key in ("losses", *one.get("scores", {})):
            left, right = (line.get(key) or line.get("scores", {}).get(key, {}) for line in (one, two))
            numbers = {name for name, value in left.items() if isinstance(value, float)}
            assert {n: left[n] for n in numbers} == pytest.approx({n: right[n] for n in numbers}, abs=1e-3)


# A run


def test_a_run_logs_and_scores_all_types(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    mains = {"pos": "accuracy", "sentiment": "accuracy", "tags": "micro_f1", "rating": "pearson"}
    assert results["main_metrics"] == mains
    test = results["scores"]["test"]
    assert {"micro_f1", "macro_f1", "exact_match", "per_label"} < {*test["tags"]}
    assert {"pearson", "spearman", "mse", "mae"} < {*test["rating"]}
    assert all(np.isfinite(list(line["losses"].values())).all() for line in metric_lines(run) if "losses" in line)
    assert evaluate(run) == test


def test_scores_of_each_kind_have_a_table_that_fits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((run / "results.json").read_text())
    print_scores(results["scores"], results["main_metrics"])
    shown = capsys.readouterr().out
    assert "…" not in shown
    for task, metric in results["main_metrics"].items():
        assert re.search(rf"{task} .*test .*{results['scores']['test'][task][metric]:.4f}\*", shown), task


def test_a_pipeline_of_the_export_answers_as_the_predictor(run: Path, tmp_path: Path) -> None:
    texts = ["anna loves good paris .", "bad film", "rome"]
    answers = load(run)(texts)
    for task in ("tags", "rating"):
        kind, _ = export(run, task, tmp_path / task)
        found = pipeline(kind, str(tmp_path / task))(texts, top_k=None)
        for labels, answer in zip(found, (answer[task] for answer in answers), strict=True):
            if task == "tags":
                said = [(one["label"], pytest.approx(one["score"], abs=1e-5)) for one in labels if one["score"] > 0.5]
                assert [(one["label"], one["score"]) for one in answer] == said
            else:
                assert [(one["label"], one["score"]) for one in labels] == [
                    ("value", pytest.approx(answer["value"], abs=1e-5))
                ]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_exports_with_the_problem_type_and_the_same_logits(family: str) -> None:
    torch.manual_seed(0)
    model = from_encoder(tiny.encoder(family), TASKS, max_length=32).eval()
    ids = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(ids)
        for task, problem_type in zip(TASKS, ("multi_label", "regression", "single_label"), strict=True):
            one = stock(model, task.name)
            assert one.config.problem_type.removesuffix("_classification") == problem_type
            assert torch.equal(one(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, logits[task.name])


def test_a_card_has_the_hubs_own_names(run: Path, tmp_path: Path) -> None:
    card = ModelCard.load(run / "model" / "README.md").data.to_dict()
    assert {"token-classification", "text-classification"} < {*card["tags"]}
    assert "regression" not in card["tags"]
    assert {result["task"]["type"] for result in yaml.safe_load(json.dumps(card["model-index"]))[0]["results"]} == {
        "token-classification", "text-classification",
    }  # fmt: skip
    export(run, "rating", tmp_path / "rating")
    one = ModelCard.load(tmp_path / "rating" / "README.md").data.to_dict()
    assert one["pipeline_tag"] == "text-classification"


def test_check_counts_labels_and_measures_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check(Recipe.from_dict(values(tmp_path)))
    rows = [json.loads(line) for line in (tmp_path / "corpus" / "texts" / "train.jsonl").read_text().splitlines()]
    told = {row["task"]: row for row in report["labels"] if row["split"] == "train"}
    assert told["tags"]["counts"] == {tag: sum(tag in row["tags"] for row in rows) for tag in TAGS}
    assert told["tags"]["labelled_items"] == told["rating"]["labelled_items"] == len(rows)
    assert told["rating"]["numbers"]["mean"] == pytest.approx(np.mean([row["rating"] for row in rows]))
    assert {frozenset(one["tasks"]) for one in report["agreement"]} == set()
    print_check(report)
    assert "deviation" in capsys.readouterr().out


# What starts from a checkpoint, what is refused


def test_a_regression_head_starts_from_any_checkpoint_of_one_output(tmp_path: Path) -> None:
    model = from_encoder(tiny.encoder(), TASKS, max_length=32).eval()
    made = stock(model, "rating")
    made.config.id2label, made.config.label2id = {0: "LABEL_0"}, {"LABEL_0": 0}
    made.save_pretrained(tmp_path / "rating")
    tiny.tokenizer().save_pretrained(tmp_path / "rating")
    torch.manual_seed(9)
    other = from_encoder(tiny.encoder(), TASKS, max_length=32)
    take_head(other, TASKS[1], str(tmp_path / "rating"))
    assert torch.equal(
        other.head("rating").state_dict()["classifier.weight"], model.head("rating").state_dict()["classifier.weight"]
    )
    with pytest.raises(ModelError, match="its problem_type is regression, and that of a multi-label-classification"):
        take_head(other, Task("t", TYPE, ("LABEL_0",), "micro_f1"), str(tmp_path / "rating"))


@pytest.mark.parametrize(
    ("change", "path", "told"),
    [
        ({"tasks": {"rating": {"label_names": ["a", "b"]}}}, "tasks.rating.label_names", "has numbers, no labels"),
        ({"tasks": {"rating": {"metric": "accuracy"}}}, "tasks.rating.metric", "allowed for regression: `pearson`"),
        ({"tasks": {"tags": {"metric": "accuracy"}}}, "tasks.tags.metric", "`micro_f1`, `macro_f1`, `exact_match`"),
        ({"datasets": {"texts": {"oversample": "tags"}}}, "datasets.texts.oversample", "any number of labels a text"),
        ({"datasets": {"texts": {"undersample": "rating"}}}, "datasets.texts.undersample", "has numbers, no classes"),
        ({"balancing": {"scale": "log_classes"}}, "balancing.scale", "what guessing loses follows from labels"),
        ({"sampling": {"strategy": "dynamic", "need": "loss"}}, "sampling.need", "take `need: metric`"),
    ],
)
def test_what_does_not_go_with_a_type_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, Any], path: str, told: str
) -> None:
    given = values(tmp_path)
    for section, keys in change.items():
        for key, value in keys.items():
            whole = given.setdefault(section, {})
            whole[key] = {**whole[key], **value} if isinstance(value, dict) else value
    with pytest.raises(RecipeError) as refused:
        Recipe.from_dict(given)
    (one,) = refused.value.problems
    assert one.path == path
    assert told in one.message


def test_losses_of_several_labels_are_scaled_by_what_coins_lose(tmp_path: Path) -> None:
    given = values(tmp_path)
    del given["tasks"]["rating"]
    recipe = Recipe.from_dict({**given, "balancing": {"scale": "log_classes"}})
    found = balancer(recipe, prepare(recipe))
    assert found.fixed.tolist() == pytest.approx([1 / np.log(4), 1 / np.log(2), 1 / (3 * np.log(2))])


@pytest.mark.parametrize("strategy", ["pcgrad", "gradnorm"])
def test_gradients_are_told_apart(tmp_path: Path, strategy: str) -> None:
    given = {**values(tmp_path, max_steps=3), "gradients": {"strategy": strategy}}
    given["balancing"] = {"strategy": "famo" if strategy == "pcgrad" else "uncertainty"}
    results = train(Recipe.from_dict(given))
    assert {*results["scores"]["test"]} == {"pos", "sentiment", "tags", "rating"}

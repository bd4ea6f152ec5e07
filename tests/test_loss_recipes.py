"""Recipes that change their tasks' losses: weights of classes, focus, smoothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import assert_resumes_exactly, loss_lines, streamed_values, values

from nlp_mtl import Recipe, RecipeError, train
from nlp_mtl.build_data import prepare
from nlp_mtl.errors import DataError
from nlp_mtl.tasks import LossShape, task_from_dict


def changed(folder: Path, task: str = "sentiment", **keys: Any) -> dict[str, Any]:
    given = values(folder, num_epochs=1)
    given["tasks"][task] |= keys
    return given


def shape_of(given: dict[str, Any], task: str = "sentiment") -> LossShape:
    return next(one for one in prepare(Recipe.from_dict(given)).tasks if one.name == task).loss


@pytest.mark.parametrize("task", ["ner", "sentiment"])
def test_balanced_weights_give_all_labels_the_same_sum_and_items_one_on_average(tmp_path: Path, task: str) -> None:
    prepared = prepare(Recipe.from_dict(changed(tmp_path, task, class_weights="balanced")))
    (found,) = [one for one in prepared.tasks if one.name == task]
    (split,) = [splits["train"] for splits in prepared.encoded.values() if task in splits["train"].tasks]
    counts = split.label_counts(found)
    sums = counts * np.array(found.loss.class_weights)
    assert sums[counts > 0] == pytest.approx(counts.sum() / (counts > 0).sum())
    assert sums.sum() == pytest.approx(counts.sum())
    assert all(np.array(found.loss.class_weights)[counts == 0] == 1)


def test_weights_by_name_are_in_the_order_of_labels(tmp_path: Path) -> None:
    given = changed(tmp_path, class_weights={"positive": 3})
    prepared = prepare(Recipe.from_dict(given))
    (task,) = [one for one in prepared.tasks if one.name == "sentiment"]
    assert dict(zip(task.labels, task.loss.class_weights, strict=True)) == {
        label: 3.0 if label == "positive" else 1.0 for label in task.labels
    }
    with pytest.raises(DataError, match=r"tasks\.sentiment\.class_weights: there is no label `positiv`.*Did you mean"):
        shape_of(changed(tmp_path, class_weights={"positiv": 3}))


def test_labels_of_a_stream_cannot_be_balanced(tmp_path: Path) -> None:
    given = streamed_values(tmp_path, max_steps=4, eval_every=2)
    given["tasks"]["sentiment"]["class_weights"] = "balanced"
    with pytest.raises(DataError, match=r"class_weights: nobody knows how often labels occur in `texts`"):
        prepare(Recipe.from_dict(given))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"class_weights": "balance"}, r"tasks\.ner\.class_weights"),
        ({"class_weights": {"O": 0}}, r"tasks\.ner\.class_weights"),
        ({"focal_gamma": -1}, r"tasks\.ner\.focal_gamma"),
        ({"focal_gamma": 2, "label_smoothing": 0.1}, r"tasks\.ner\.label_smoothing: `focal_gamma` asks"),
        ({"decoder": "crf", "focal_gamma": 2}, r"tasks\.ner\.focal_gamma: `decoder: crf` learns whole sequences"),
        ({"decoder": "crf", "class_weights": "balanced"}, r"tasks\.ner\.class_weights: `decoder: crf`"),
        ({"type": "regression", "label_smoothing": 0.1}, r"tasks\.ner\.label_smoothing: a regression task has numbers"),
    ],
)
def test_what_does_not_go_with_a_task_is_told(tmp_path: Path, keys: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict(changed(tmp_path, "ner", **keys))


@pytest.mark.parametrize(
    "keys", [{"class_weights": "balanced", "focal_gamma": 2}, {"label_smoothing": 0.1}, {"class_weights": {"O": 0.5}}]
)
def test_a_run_learns_by_it_and_resumes_exactly(tmp_path: Path, keys: dict[str, Any]) -> None:
    given = changed(tmp_path, "ner", **keys)
    plain = Recipe.from_dict({**changed(tmp_path), "output_dir": str(tmp_path / "plain")})
    train(plain)
    given["training"] |= {"save_every": 1, "keep_last": 20}
    assert_resumes_exactly(Recipe.from_dict({**given, "output_dir": str(tmp_path / "whole")}), 3, tmp_path / "stopped")
    first, other = loss_lines(tmp_path / "whole")[0]["losses"], loss_lines(tmp_path / "plain")[0]["losses"]
    assert first["ner"] != pytest.approx(other["ner"], rel=1e-3)
    assert first["pos"] == pytest.approx(other["pos"], rel=1e-6)


def test_a_step_does_not_depend_on_how_it_is_cut(tmp_path: Path) -> None:
    found = []
    for max_tokens, layout in ((4096, "padded"), (64, "padded"), (128, "packed")):
        given = changed(tmp_path, "ner", class_weights="balanced", focal_gamma=1.5)
        given["tasks"]["sentiment"]["label_smoothing"] = 0.2
        given["training"] |= {"max_tokens": max_tokens, "layout": layout}
        given |= {"max_length": 48, "window_overlap": 8, "output_dir": str(tmp_path / f"{max_tokens}-{layout}")}
        train(Recipe.from_dict(given))
        found.append(loss_lines(tmp_path / f"{max_tokens}-{layout}"))
    for lines in zip(*found, strict=True):
        for line in lines[1:]:
            assert line["losses"] == pytest.approx(lines[0]["losses"], rel=1e-3)
            assert line["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=1e-2)


def test_a_model_keeps_nothing_of_it(tmp_path: Path) -> None:
    train(Recipe.from_dict(changed(tmp_path, focal_gamma=2)))
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert all("loss" not in task for task in config["tasks"])
    assert task_from_dict(config["tasks"][0]).loss == LossShape()

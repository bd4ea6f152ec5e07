"""Runs that learn from a stream: resumed, with loader workers, on several processes, and from the Hub."""

import json
from pathlib import Path
from typing import Any

import pytest
import spawned
import torch
from local_hub import served
from tiny_runs import (
    assert_same_end,
    finish,
    loss_lines,
    moved,
    start,
    stopped_after,
    streamed_values,
    weights,
    write_yaml,
)

from nlp_mtl import DataError, Recipe, RecipeError, train
from nlp_mtl.build_data import prepare
from nlp_mtl.run_check import check
from nlp_mtl.run_evaluation import evaluate


def streamed(folder: Path, **training: Any) -> dict[str, Any]:
    return streamed_values(folder, **{"max_steps": 12, "eval_every": 4, "save_every": 1, "keep_last": 99, **training})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_in_the_stream_and_ends_bit_for_bit_as_one_left_alone(
    tmp_path: Path, workers: int
) -> None:
    recipe = Recipe.from_dict(streamed(tmp_path, dropout=0.2, num_workers=workers))
    train(recipe)
    for step in (1, 5, 11):  # in the first and second pass over the stream, and across their border
        copy = stopped_after(tmp_path / "run", step, tmp_path / f"stopped-{step}")
        train(moved(recipe, copy), resume=True)
        assert_same_end(tmp_path / "run", copy)


@pytest.mark.slow
def test_loader_workers_and_processes_learn_from_the_same_rows(tmp_path: Path) -> None:
    given = streamed(tmp_path, num_workers=0)
    train(Recipe.from_dict({**given, "output_dir": str(tmp_path / "one")}))
    given["training"]["num_workers"] = 2
    file = write_yaml(tmp_path, {**given, "output_dir": str(tmp_path / "two")})
    code, _, errors = finish(start("train", file, processes=2))
    assert code == 0, errors
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["num_processes"] == 2
    for one, two in zip(*(loss_lines(tmp_path / run) for run in ("one", "two")), strict=True):
        assert one["losses"] == pytest.approx(two["losses"], abs=1e-4)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in one.items():
        if not name.endswith("attention.self.key.bias"):  # its gradient is nothing but rounding error
            torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_wrong_row_of_a_stream_ends_the_run_with_a_message_also_when_a_worker_reads_it(tmp_path: Path) -> None:
    given = streamed(tmp_path, num_workers=1, max_steps=40)
    corpus = Path(given["data_dir"])
    with (corpus / "texts" / "train-2.jsonl").open("a") as file:
        file.write('{"text": "a row like others", "label": "positive"}\n' * 60)  # those are looked at before
        file.write('{"text": "a row too much", "label": "positiv"}\n')
    code, _, errors = finish(start("train", write_yaml(tmp_path, given)))
    assert code == 2, errors
    assert "Traceback" not in errors
    assert "unknown label 'positiv' in dataset `texts`, split train (streamed), line 69 of " in errors


def test_tasks_without_a_label_in_the_stream_are_told_at_the_beginning_and_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = streamed(tmp_path, max_steps=2)
    for file in (Path(given["data_dir"]) / "texts").glob("train-*.jsonl"):
        rows = [json.loads(line) | {"label": None} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train(Recipe.from_dict(given))
    assert "none of the first 48 rows has a label of the task `sentiment` (column `label`)" in caplog.text
    assert "No row of the steps 1 to 2 had a label of `sentiment`" in caplog.text


def test_a_wrong_label_among_the_first_rows_is_told_before_training(tmp_path: Path) -> None:
    given = streamed(tmp_path)
    file = Path(given["data_dir"]) / "texts" / "train-0.jsonl"
    file.write_text(file.read_text().replace('"positive"', '"positiv"'))
    with pytest.raises(
        DataError, match=r"unknown label 'positiv' in dataset `texts`, split train \(streamed\), line \d+ of"
    ):
        train(Recipe.from_dict(given))
    assert not (tmp_path / "run").exists()


def test_a_run_that_a_wrong_row_ended_goes_on_when_the_row_is_mended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = streamed(tmp_path, max_steps=40, save_every=1)
    file = Path(given["data_dir"]) / "texts" / "train-2.jsonl"
    good = file.read_text() + '{"text": "a row like others", "label": "positive"}\n' * 61
    file.write_text(good.rpartition('"positive"')[0] + '"positiv"}\n')
    with pytest.raises(DataError, match="unknown label 'positiv'"):
        train(Recipe.from_dict(given))
    file.write_text(good)
    assert train(Recipe.from_dict(given), resume=True)["steps"] == 40


@pytest.mark.parametrize("strategy", ["proportional", "temperature", "annealed"])
def test_a_stream_of_unknown_size_needs_counts_in_steps_and_shares(tmp_path: Path, strategy: str) -> None:
    given = streamed(tmp_path, max_steps=None, eval_every=None)
    del given["tasks"]["sentiment"]["label_names"]
    given["sampling"] = {"strategy": strategy}
    given["balancing"] = {"strategy": "dwa"}
    recipe = Recipe.from_dict(given)
    with pytest.raises(RecipeError) as refused:
        prepare(recipe)
    assert [problem.path for problem in refused.value.problems] == [
        "tasks.sentiment.label_names", "sampling.strategy", "training.max_steps", "training.eval_every",
        "balancing.period",
    ]  # fmt: skip


def test_keys_that_do_not_go_with_a_stream_are_refused(tmp_path: Path) -> None:
    given = streamed(tmp_path)
    given["datasets"]["texts"]["test_fraction"] = 0.2
    given["datasets"]["words"]["buffer_size"] = 7
    with pytest.raises(RecipeError) as refused:
        Recipe.from_dict(given)
    assert {problem.path for problem in refused.value.problems} == {
        "datasets.texts.test_fraction", "datasets.words.buffer_size",
    }  # fmt: skip


def test_check_tells_that_a_stream_is_not_looked_through(tmp_path: Path) -> None:
    report = check(Recipe.from_dict(streamed(tmp_path)))
    assert any("texts: train is streamed (nobody knows how many rows)" in note for note in report["notes"])
    words, texts = report["sampling"]
    assert (texts["dataset"], texts["rows"], texts["passes"]) == ("texts", None, None)
    assert (words["rows"], words["share"]) == (48, pytest.approx(1 / 3))
    assert ("texts", "train") not in [(row["dataset"], row["split"]) for row in report["splits"]]
    assert not any("never" in odd for odd in report["odd"])


def test_streamed_rows_are_not_scored_and_evaluate_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = Recipe.from_dict(streamed(tmp_path, max_steps=1))
    train(recipe)
    assert {*evaluate(tmp_path / "run", split="train")} == {"ner", "pos"}
    assert "The training rows of `texts` are streamed; they are not scored" in caplog.text


@pytest.mark.long
def test_a_dataset_on_the_hub_is_streamed_by_its_id_and_its_card_tells_the_size(tmp_path: Path) -> None:
    given = streamed(tmp_path, num_workers=2, max_steps=None, num_epochs=1, eval_every=None)
    del given["sampling"]
    hub = tmp_path / "hub"
    folder = hub / "datasets" / "someone" / "reviews"
    folder.mkdir(parents=True)
    corpus = Path(given["data_dir"])
    for part in range(3):
        (folder / f"train-{part}.jsonl").write_bytes((corpus / "texts" / f"train-{part}.jsonl").read_bytes())
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train-*.jsonl\n"
        "dataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype: string\n"
        "  splits:\n  - name: train\n    num_bytes: 4000\n    num_examples: 48\n---\n"
    )
    given["datasets"]["texts"] = {"path": "someone/reviews", "text": "text", "streaming": True, "buffer_size": 16}
    file = write_yaml(tmp_path, given)
    with served(hub) as (environment, requests):
        found = spawned.python("-m", "nlp_mtl", "train", file, environment=environment)
    assert found.returncode == 0, found.stderr
    assert "texts: train is streamed (48 rows)" in found.stderr
    assert sum("/resolve/" in request and "train-" in request for request in requests) > 3
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["steps"] == 6  # 96 rows, 16 a step
    assert results["data"]["texts"]["splits"] == {
        "train": {"rows": 48, "taken_from": "train", "files": [], "streamed": True}
    }
    kept = [
        path for path in (hub / "home").rglob("*") if "reviews" in str(path) and path.suffix in (".arrow", ".jsonl")
    ]
    assert not kept

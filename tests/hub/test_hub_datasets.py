"""Datasets that were pushed to a Hub are trained on by their id, through the command line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import spawned
from hub_runs import nlp_mtl
from tiny_runs import values, write_yaml
from writable_hub import TOKEN, Fault, Hub, writable_hub

PUSH = """
import random, sys
sys.path[:0] = [sys.argv[1]]
import tiny
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

names = ["negative", "positive"]
features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
draw = random.Random(0)


def texts(count):
    rows = [tiny.text_row(draw) for _ in range(count)]
    rows = [{"text": row["text"], "label": names.index(row["label"])} for row in rows]
    return Dataset.from_list(rows, features=features)


DatasetDict({"train": texts(60), "validation": texts(20), "test": texts(10)}).push_to_hub("me/reviews", private=True)
DatasetDict({"train": texts(30)}).push_to_hub("me/reviews", config_name="second")
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """One with a private dataset of two configurations."""
    with writable_hub(tmp_path_factory.mktemp("hub")) as running:
        tests = Path(__file__).resolve().parents[1]
        done = spawned.python("-c", PUSH, tests, environment=running.environment)
        assert done.returncode == 0, done.stderr
        yield running


def trained(
    hub: Hub, folder: Path, dataset: dict[str, Any], *, token: str | None = TOKEN, **training: Any
) -> tuple[int, str, dict[str, Any]]:
    """Exit code, errors and results of ``nlp-mtl train`` on a dataset of the Hub besides files."""
    given = values(folder, **{"num_epochs": 1, **training})
    given["datasets"]["texts"] = {"text": "text", **dataset}
    environment = {**hub.environment, "HF_HOME": str(folder / "home")}
    if token is None:
        del environment["HF_TOKEN"]
    else:
        environment["HF_TOKEN"] = token
    done = spawned.python("-m", "nlp_mtl", "train", write_yaml(folder, given), environment=environment)
    assert TOKEN not in done.stdout + done.stderr
    results = folder / "run" / "results.json"
    for file in (folder / "run").rglob("*") if results.exists() else ():
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), file
    return done.returncode, done.stderr, json.loads(results.read_text()) if results.exists() else {}


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_private_dataset_is_trained_on_by_its_id(hub: Hub, tmp_path: Path, streaming: bool) -> None:
    code, errors, results = trained(hub, tmp_path, {"path": "me/reviews", "streaming": streaming})
    assert code == 0, errors
    splits = results["data"]["texts"]["splits"]
    assert {split: told["rows"] for split, told in splits.items()} == {"train": 60, "validation": 20, "test": 10}
    assert results["steps"] == 7  # 108 rows, 16 a step: the card tells the size of a stream
    assert results["scores"]["test"]["sentiment"]["items"] == 10


@pytest.mark.slow
def test_a_private_dataset_is_not_seen_without_the_token(hub: Hub, tmp_path: Path) -> None:
    code, errors, _ = trained(hub, tmp_path, {"path": "me/reviews"}, token=None, max_steps=1)
    assert code == 2
    assert "for a gated or private one run `hf auth login`" in errors


@pytest.mark.slow
def test_a_configuration_is_chosen_by_its_name(hub: Hub, tmp_path: Path) -> None:
    code, errors, results = trained(hub, tmp_path, {"path": "me/reviews", "name": "second"}, max_steps=1)
    assert code == 0, errors
    assert results["data"]["texts"]["splits"]["train"]["rows"] == 24  # validation and test are held out
    code, errors, _ = trained(hub, tmp_path / "other", {"path": "me/reviews", "name": "thrid"}, max_steps=1)
    assert code == 2
    assert "second" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault("datasets/me/reviews", 401, 99, {"X-Error-Code": "RepoNotFound"}), "run `hf auth login`"),
        (Fault("datasets/me/reviews", 403, 99, {"X-Error-Code": "GatedRepo"}), "gated"),
        (
            Fault("datasets/me/reviews", 404, 99, {"X-Error-Code": "RepoNotFound"}),
            "neither a folder here nor a dataset",
        ),
    ],
    ids=["401", "gated", "404"],
)
def test_a_dataset_that_cannot_be_seen_is_told_in_one_message(
    hub: Hub, tmp_path: Path, fault: Fault, told: str
) -> None:
    hub.faults[:] = [fault]
    code, errors, _ = trained(hub, tmp_path, {"path": "me/reviews"}, max_steps=1)
    hub.faults.clear()
    assert code == 2, errors
    assert told in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.long)])
def test_what_fails_for_the_moment_while_data_is_read_is_tried_again(hub: Hub, tmp_path: Path, streaming: bool) -> None:
    hub.faults[:] = [
        Fault("GET .*/resolve/.*train", 500),
        Fault("GET .*/resolve/.*train", 429, headers={"Retry-After": "1"}),
        Fault("GET .*/resolve/.*train", 0),
        Fault("GET .*/resolve/.*train", 200, delay=1.5),
    ]
    code, errors, results = trained(hub, tmp_path, {"path": "me/reviews", "streaming": streaming}, max_steps=2)
    left = [fault.times for fault in hub.faults]
    hub.faults.clear()
    assert code == 0, errors
    assert left == [0] * 4
    assert results["steps"] == 2


@pytest.mark.slow
def test_the_rows_of_a_private_dataset_are_answered_by_its_id(hub: Hub, run: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    options = ["--input", "me/reviews", "--keep", "label", "--output", output]
    environment = {"HF_HOME": str(tmp_path / "home")}
    told = nlp_mtl(hub, "predict", run, *options, **environment)
    assert told.returncode == 2
    assert "has the splits `train`, `validation`, `test`: say which" in told.stderr

    done = nlp_mtl(hub, "predict", run, *options, "--split", "test", **environment)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 10
    assert all(row["text"] and row["label"] in (0, 1) and row["predictions"]["sentiment"]["label"] for row in rows)

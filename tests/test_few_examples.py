"""scripts/benchmark_few_examples on small files of the corpora's names and columns."""

import gzip
import json
import random
import runpy
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import spawned
import tiny

from nlp_mtl import Recipe

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "benchmark_few_examples.py"
PROGRAM = f"import runpy, sys; sys.argv[0] = {str(SCRIPT)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
GENRES = ("weblog", "email", "reviews", "answers", "newsgroup")
TOPICS = ("World", "Sports", "Business", "Sci/Tech")


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("corpora"), random.Random(0)
    (folder / "ewt_joint").mkdir()
    with gzip.open(folder / "ewt_joint" / "train.jsonl.gz", "wt") as rows:
        for n in range(100):
            rows.write(json.dumps({"id": f"{GENRES[n % 5]}-{n}", **tiny.token_row(draw)}) + "\n")
    for split, count in {"train": 80, "test": 24}.items():
        topics = [{**tiny.text_row(draw), "label": TOPICS[n % 4]} for n in range(count)]
        tiny.write_jsonl(folder / "ag_news" / f"{split}.jsonl", topics)
        tiny.write_jsonl(folder / "sst2" / f"{split}.jsonl", [tiny.text_row(draw) for _ in range(count)])
    tiny.save_encoder(folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_more_examples_are_those_of_fewer_and_others_of_held_out_labels_alone(
    corpora: Path, script: dict[str, Any]
) -> None:
    options = Namespace(data=str(corpora), test_rows=10)
    for task, labels in (("topic", {"Business", "Sci/Tech"}), ("sentiment", {"negative", "positive"})):
        few, more = (script["few_rows"](options, task, count, 3) for count in (2, 5))
        assert {row["label"] for row in more} == labels
        assert (len(few), len(more)) == (4, 10)
        assert all(row in more for row in few)
        assert script["few_rows"](options, task, 5, 4) != more
        rows = script["test_rows"](options, task)
        assert len(rows) == 10
        assert {row["label"] for row in rows} == labels


def test_the_table_holds_means_spreads_and_what_a_method_gains_seed_by_seed(script: dict[str, Any]) -> None:
    options = Namespace(examples=[8], seeds=[0, 1], methods=["fine-tuning", "joint, then fine-tuning"])
    known = {
        (method, task, 8, seed): 0.5 + 0.1 * seed + 0.2 * (method != "fine-tuning")
        for method in options.methods for task in ("topic", "sentiment") for seed in (0, 1)
    }  # fmt: skip
    lines = script["table"](known, options).splitlines()
    assert lines[0] == "| | topic, 8 | sentiment, 8 | less fine-tuning |"
    assert lines[2] == "| fine-tuning | 55.0 (7.1) | 55.0 (7.1) |  |"
    assert lines[3] == "| joint, then fine-tuning | 75.0 (7.1) | 75.0 (7.1) | +20.0 (0.0) |"


def test_an_encoder_that_learned_otherwise_is_not_taken(
    corpora: Path, tmp_path: Path, script: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Namespace(
        data=str(corpora), folder=tmp_path, encoder=str(corpora / "encoder"), outer_steps=3, learning_rate=2e-4,
        head_learning_rate=1e-3,
    )  # fmt: skip

    def finished(recipe: Recipe, **_: Any) -> None:
        run = Path(recipe.output_dir)
        run.mkdir()
        (run / "recipe.yaml").write_text(recipe.to_yaml())
        (run / "results.json").write_text("{}")

    learned_first = script["learned_first"]
    monkeypatch.setitem(learned_first.__globals__, "train", finished)
    for kind in ("joint", "reptile"):
        for _ in range(2):
            assert learned_first(options, kind) == str(tmp_path / kind)
    more = Namespace(**{**vars(options), "outer_steps": 30})
    with pytest.raises(SystemExit, match=r"training\.max_steps: 3 -> 30\): give another --folder"):
        learned_first(more, "reptile")
    with pytest.raises(SystemExit, match="joint holds an encoder that learned otherwise"):
        learned_first(more, "joint")


@pytest.mark.slow
def test_all_methods_run_and_the_same_command_goes_on_where_it_stopped(corpora: Path, tmp_path: Path) -> None:
    arguments = [
        "--data", corpora, "--encoder", corpora / "encoder", "--folder", tmp_path / "few", "--outer-steps", "1",
        "--steps", "1", "--frozen-steps", "2", "--examples", "2", "--test-rows", "6", "--temporary", tmp_path,
    ]  # fmt: skip
    for seeds in (["0"], ["0", "1"]):
        found = spawned.python("-c", PROGRAM, *arguments, "--seeds", *seeds)
        assert found.returncode == 0, found.stderr
        results = (tmp_path / "few" / "results.jsonl").read_text().splitlines()
        assert len(results) == 6 * 2 * len(seeds)
    assert len([line for line in found.stdout.splitlines() if line.startswith("| ")]) == 7
    assert "joint:" not in found.stderr  # encoders were there

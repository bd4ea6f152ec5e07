"""Joint runs of which ``nlp-mtl compare`` cannot tell everything, or nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import write_jsonl
from tiny_runs import values

from nlp_mtl import Recipe, RecipeError
from nlp_mtl.compare import compare


def two_tasks(folder: Path, **training: Any) -> dict[str, Any]:
    given = values(folder, **training)
    given["tasks"].pop("pos")
    return given


@pytest.mark.parametrize("frozen", [2, "encoder"])
def test_tasks_that_share_nothing_that_learns_are_compared_without_their_conflicts(
    tmp_path: Path, frozen: int | str
) -> None:
    _, report = compare(Recipe.from_dict(two_tasks(tmp_path, max_steps=4, frozen_layers=frozen)), seeds=1)
    assert report["conflicts_missing"] == "the tasks share nothing that learns"


def test_a_joint_run_that_draws_no_row_of_a_task_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    given = two_tasks(tmp_path, max_steps=2)
    given["sampling"] = {"strategy": "fixed", "shares": {"words": 1, "texts": 0.001}}
    with pytest.raises(RecipeError, match=r"training\.max_steps: in 2 steps the joint run draws no row of `texts`"):
        compare(Recipe.from_dict(given))
    assert not (tmp_path / "run-compare" / "runs").exists()


def test_rows_of_different_splits_are_different_rows(tmp_path: Path) -> None:
    given = values(tmp_path, max_steps=2, eval_every=2)
    given["tasks"].pop("sentiment")
    given["datasets"].pop("texts")
    file = tmp_path / "corpus" / "words" / "test.jsonl"
    rows = [json.loads(line) | {"upos": None} for line in file.read_text().splitlines()]
    write_jsonl(file, rows)
    _, report = compare(Recipe.from_dict(given), seeds=1, measure_conflicts=False)
    assert [report["tasks"][task]["split"] for task in ("ner", "pos")] == ["test", "validation"]
    assert report["mean"]["rows"] == sum(report["tasks"][task]["rows"] for task in ("ner", "pos"))

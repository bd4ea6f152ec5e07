"""A search for label errors, stopped or killed anywhere: the same call ends as one that was left alone."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from dying import Killed, dies
from planted import planted, rows_of
from searched import command
from tiny_runs import finish, lines, start, wait_for_lines, write_yaml

import nlp_mtl.label_error_folds
import nlp_mtl.label_errors
from nlp_mtl import Recipe, RunStopped
from nlp_mtl.label_errors import label_errors
from nlp_mtl.training import checkpoint

pytest.importorskip("cleanlab")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe whose search was left alone."""
    given, _ = planted(tmp_path_factory.mktemp("alone"), train=24, num_epochs=1)
    recipe = Recipe.from_dict(given)
    label_errors(recipe, folds=2, drop=0.2, review=False)
    return recipe


WRITTEN = ("label_errors.jsonl", "report.json", "dropped/texts/train.jsonl", "dropped/words/train.jsonl")


@pytest.mark.parametrize(
    ("place", "name", "call"),
    [
        (nlp_mtl.label_error_search, "same_texts", 0),
        (nlp_mtl.label_error_folds, "train_part", 0),
        (nlp_mtl.label_error_folds, "train_part", 1),
        (nlp_mtl.label_error_folds, "probabilities", 1),  # the first point was asked for one dataset
        (nlp_mtl.label_error_folds, "probabilities", 9),
        (checkpoint, "save_checkpoint", 0),  # a point was measured of a step that is not saved
        (checkpoint, "save_checkpoint", 1),
        (checkpoint, "save_checkpoint", 3),
        (nlp_mtl.label_error_folds, "dynamics", 0),
        (nlp_mtl.run, "save_results", 0),  # a fold has said all that it has to say, and its run has not ended
        (nlp_mtl.label_error_folds, "remove", 1),  # its run has ended, and its checkpoints are still there
        (nlp_mtl.label_errors, "write_lines", 0),
        (nlp_mtl.label_errors, "write_dataset", 0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_wherever_a_search_dies_the_same_call_ends_as_one_left_alone(
    alone: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, call: int
) -> None:
    whole = Path(f"{alone.output_dir}-label-errors")
    mend = dies(monkeypatch, place, name, call)
    with pytest.raises(Killed):
        label_errors(alone, folds=2, drop=0.2, output_dir=tmp_path)
    mend()
    label_errors(alone, folds=2, drop=0.2, output_dir=tmp_path)
    for file in WRITTEN:
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes(), file
    for number in range(2):
        runs = [folder / "folds" / f"fold-{number}" for folder in (tmp_path, whole)]
        assert (runs[0] / "metrics.jsonl").read_bytes() == (runs[1] / "metrics.jsonl").read_bytes()
        scores = [json.loads((run / "results.json").read_text())["scores"] for run in runs]
        assert scores[0] == scores[1]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in whole.iterdir()}
    assert not [*tmp_path.rglob("checkpoints"), *tmp_path.rglob("*.partial")]


@pytest.mark.long
@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_a_search_that_is_stopped_inside_a_fold_goes_on_and_ends_as_one_left_alone(
    tmp_path: Path, how: signal.Signals, code: int
) -> None:
    given, _ = planted(tmp_path, train=40, num_epochs=6, save_every=1)
    file = write_yaml(tmp_path, given)
    whole, _ = label_errors(Recipe.from_yaml(file), folds=2, output_dir=tmp_path / "whole")
    options = ("label-errors", file, "--folds", "2", "--output-dir", tmp_path / "stopped")
    one_thread = {"OMP_NUM_THREADS": "1"}  # as these tests have
    search = start(*options, environment=one_thread)
    run = tmp_path / "stopped" / "folds" / "fold-1"
    wait_for_lines(run, 6)
    search.send_signal(how)
    ended, _, errors = finish(search)
    assert ended == code, errors
    assert how != signal.SIGTERM or "fold 2: stopped after step" in errors
    ended, _, errors = finish(start(*options, environment=one_thread))
    assert ended == 0, errors
    assert "Fold 1 of 2: 36 rows are held out, done before" in errors
    assert "resumed" in json.loads((run / "environment.json").read_text())
    assert rows_of(tmp_path / "stopped" / "label_errors.jsonl") == rows_of(whole / "label_errors.jsonl")
    assert len(lines(run)) == len(lines(whole / "folds" / "fold-1"))


def test_a_stopped_search_says_which_fold_and_how_to_go_on(
    alone: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise RunStopped("stopped after step 1 of 4, which is saved: resume the run from there")

    monkeypatch.setattr(nlp_mtl.label_error_folds, "train_part", stopped)
    assert command(write_yaml(tmp_path, alone.to_dict()), "--output-dir", tmp_path / "search") == 75
    assert "fold 1: stopped after step 1 of 4, which is saved: resume the run from there (the same command goes on" in (
        capsys.readouterr().err
    )

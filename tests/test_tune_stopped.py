"""``nlp-mtl tune``, stopped or killed anywhere: the same command ends as a search that was left alone."""

import json
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from dying import Killed, dies
from tiny_runs import finish, lines, start, wait_for_lines, write_yaml
from tuned_runs import TWO_RATES, at, recipe_of, recipe_values, rows, runs

import nlp_mtl.tune
from nlp_mtl import Recipe
from nlp_mtl.training import checkpoint
from nlp_mtl.tune import tune


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGKILL, -9), pytest.param(signal.SIGTERM, 75, marks=pytest.mark.long)]
)
def test_a_search_that_is_stopped_inside_a_trial_goes_on_and_ends_as_one_left_alone(
    tmp_path: Path, how: signal.Signals, code: int
) -> None:
    given = recipe_values(tmp_path, TWO_RATES, max_steps=24, save_every=1)
    recipe = Recipe.from_dict(given)
    tune(at(recipe, tmp_path / "alone"))
    file = write_yaml(tmp_path, given)
    folder, second = tmp_path / "run", tmp_path / "run" / "trials" / "trial-1"
    one_thread = {"OMP_NUM_THREADS": "1"}  # as these tests have
    search = start("tune", file, environment=one_thread)
    wait_for_lines(second, 6)
    search.send_signal(how)
    ended, _, errors = finish(search)
    assert ended == code
    assert how != signal.SIGTERM or "nlp-mtl: trial 1 stopped after step" in errors
    assert how != signal.SIGTERM or "by the same command" in errors
    assert len(lines(second)) < 24 + 12  # it was killed before its end
    ended, _, errors = finish(start("tune", file, environment=one_thread))
    assert ended == 0, errors
    assert "Trial 0 " not in errors
    assert "resumed" in json.loads((second / "environment.json").read_text())
    assert rows(folder) == rows(tmp_path / "alone")
    for one, other in zip(runs(folder), runs(tmp_path / "alone"), strict=True):
        assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
        assert not (one / "checkpoints").exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe whose search was left alone."""
    recipe = recipe_of(tmp_path_factory.mktemp("alone"), TWO_RATES)
    tune(recipe)
    return recipe


@pytest.mark.parametrize(
    ("place", "name", "call"),
    [
        (optuna.Study, "ask", 1),
        (optuna.trial.Trial, "suggest_float", 2),
        (optuna.trial.Trial, "suggest_float", 3),  # a trial has one of its values, and lacks the other
        (nlp_mtl.tune, "train_trial", 1),
        (optuna.trial.Trial, "report", 1),
        (checkpoint, "save_checkpoint", 2),  # right after an evaluation was reported
        (optuna.Study, "tell", 1),
        (nlp_mtl.tune, "tidy", 1),
        (nlp_mtl.tune, "save_best", 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_wherever_a_search_dies_each_trial_comes_once_with_the_values_it_would_have_had(
    alone: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, call: int
) -> None:
    recipe = at(alone, tmp_path / "run")
    mend = dies(monkeypatch, place, name, call)
    with pytest.raises(Killed):
        tune(recipe)
    mend()
    tune(recipe)
    assert rows(tmp_path / "run") == rows(Path(alone.output_dir))
    best = [Recipe.from_yaml(folder / "best.yaml") for folder in (tmp_path / "run", Path(alone.output_dir))]
    assert best[0] == best[1].model_copy(update={"output_dir": str(tmp_path / "run" / "best")})
    assert not [*(tmp_path / "run").glob("trials/*/checkpoints*")]

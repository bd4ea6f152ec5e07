"""``nlp-mtl tune``: every trial once; the best recipe scores what its trial did."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import lines, score_lines, write_yaml
from tuned_runs import HEADS, RATE, SMALL_GRID, TWO_RATES, WEIGHT, at, recipe_of, recipe_values, rows, runs

import nlp_mtl.build_data
import nlp_mtl.tune_folder
from nlp_mtl import Recipe, RecipeError, RunError, train
from nlp_mtl.cli import main
from nlp_mtl.errors import DataError
from nlp_mtl.hub.portable import portable_recipe
from nlp_mtl.run_folder import saved_recipe
from nlp_mtl.search_space import grid, search_space
from nlp_mtl.storage import held
from nlp_mtl.tune import tune


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    else:
        code = 0
    return code, *capsys.readouterr()


def test_the_best_recipe_is_one_that_train_takes_and_scores_what_its_trial_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = recipe_values(tmp_path, {"trials": 9})
    given["hub"] = {"repo_id": "me/tuned"}  # no trial is pushed; there is no Hub to be reached
    file = write_yaml(tmp_path, given)
    search = ["--search", f"{WEIGHT}=0.5,1,2", "--search", f"{RATE}=1e-3..8e-3:log", "--search", f"{HEADS}=0.01"]
    code, out, err = command(capsys, "tune", file, *search, "--trials", 3, "--seed", 7, "--no-prune")
    assert code == 0, err
    trials = rows(tmp_path / "run")
    best = max(trials, key=lambda row: float(row["score"]))
    assert f"Best: trial {best['trial']}, selection score {float(best['score']):.4f}" in out
    assert "learning_rate" in out
    assert "head_learning_rate" not in out  # of a key with one value there is no column
    found = tmp_path / "run" / "best.yaml"
    assert found.read_text().startswith(
        f"# The best of 3 trials, number {best['trial']}: selection score {best['score']}"
    )
    recipe = Recipe.from_yaml(found)
    assert recipe.tasks["ner"].loss_weight == float(best[WEIGHT])
    assert recipe.training.learning_rate == float(best[RATE])
    assert recipe.training.head_learning_rate == 0.01
    assert (recipe.tune, recipe.hub.repo_id) == (None, "me/tuned")  # type: ignore[union-attr]
    code, _, err = command(capsys, "train", found, "hub=null")
    assert code == 0, err
    results = json.loads((tmp_path / "run" / "best" / "results.json").read_text())
    assert results["selection"]["score"] == float(best["score"])
    assert results["step"] == int(best["step"])
    assert "test" in results["scores"]


def test_a_grid_runs_every_point_once_and_keeps_what_is_small(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, SMALL_GRID)
    folder = Path(recipe.output_dir)
    tune(at(recipe, folder, trials=1))
    assert len(rows(folder)) == 1
    found = tune(recipe)  # goes on with the rest
    tried = []
    for run in runs(folder):
        tried.append((saved_recipe(run)["tasks"]["ner"]["loss_weight"], saved_recipe(run)["training"]["learning_rate"]))
        kept = {path.name for path in run.iterdir()}
        assert kept == {"environment.json", "metrics.jsonl", "recipe.yaml", "results.json"}
    assert sorted(tried) == [(0.5, 1e-3), (0.5, 4e-3), (2.0, 1e-3), (2.0, 4e-3)]
    assert [row["state"] for row in rows(folder)] == ["finished"] * 4
    assert found["score"] == max(float(row["score"]) for row in rows(folder))
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")
    before = (folder / "trials.csv").read_bytes()
    tune(recipe)  # there is nothing left to run
    assert (folder / "trials.csv").read_bytes() == before
    assert len(runs(folder)) == 4


def test_the_test_split_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    encode = nlp_mtl.build_data.encode_split

    def noted(dataset: Any, split: str, *rest: Any) -> Any:
        read.append(split)
        return encode(dataset, split, *rest)

    monkeypatch.setattr(nlp_mtl.build_data, "encode_split", noted)
    recipe = recipe_of(tmp_path, {"trials": 2, "search": {RATE: "1e-3..4e-3"}})
    tune(recipe)
    assert {*read} == {"train", "validation"}
    for run in runs(Path(recipe.output_dir)):
        assert json.loads((run / "results.json").read_text())["scores"].keys() == {"validation"}
    train(Recipe.from_yaml(Path(recipe.output_dir) / "best.yaml"))
    assert "test" in read


@pytest.mark.parametrize(
    ("prune", "state", "steps"), [(True, "pruned", 6), pytest.param(False, "finished", 12, marks=pytest.mark.slow)]
)
def test_a_trial_that_is_worse_than_the_median_is_stopped_unless_that_is_not_wanted(
    tmp_path: Path, prune: bool, state: str, steps: int
) -> None:
    # Heads on an encoder that does not learn: they learn which labels are frequent, or nothing.
    tuned = {"method": "grid", "prune": prune, "search": {HEADS: [0.05, 0.06, 0.07, 0.08, 0.09, 1e-9]}}
    recipe = recipe_of(tmp_path, tuned, max_steps=12, eval_every=6, frozen_layers="encoder")
    space = search_space(recipe)
    bad_last = next(seed for seed in range(99) if grid(space, seed)[-1][HEADS] == 1e-9)
    folder = tmp_path / "run"
    found = tune(at(recipe, folder, seed=bad_last))
    assert [row["state"] for row in rows(folder)] == ["finished"] * 5 + [state]
    bad = folder / "trials" / "trial-5"
    assert lines(bad)[-1]["step"] == steps
    assert float(rows(folder)[5]["score"]) == max(line["selection_score"] for line in score_lines(bad))
    assert found["best"] != 5
    assert not (bad / "checkpoints").exists()
    assert (bad / "results.json").exists() == (state == "finished")


def test_a_trial_whose_loss_is_no_number_fails_and_the_search_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(tmp_path, {"method": "grid", "search": {RATE: [1e30, 2e-3]}})
    found = tune(recipe)
    states = {row[RATE]: row["state"] for row in rows(tmp_path / "run")}
    assert states == {"1e+30": "failed", "0.002": "finished"}
    (failed,) = [row for row in found["trials"] if row["state"] == "failed"]
    assert "the loss of task `ner` is nan at step 2" in failed["reason"]
    assert f"Trial {failed['trial']} has failed" in caplog.text
    with pytest.raises(RunError, match=r"none of 1 trials in .* was finished.*is nan at step 2"):
        tune(at(recipe, tmp_path / "bad", search={RATE: [1e30]}))


def test_a_trial_whose_model_cannot_be_fails_and_a_search_of_nothing_else_ends(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"method": "grid", "search": {"training.frozen_layers": [7, 0]}})
    found = tune(recipe)
    states = {row["training.frozen_layers"]: row["state"] for row in rows(tmp_path / "run")}
    assert states == {"7": "failed", "0": "finished"}
    (failed,) = [row for row in found["trials"] if row["state"] == "failed"]
    assert "frozen_layers" in failed["reason"]
    hopeless = at(recipe, tmp_path / "bad", search={"max_length": [8], RATE: [1e-3, 2e-3, 3e-3, 4e-3]})
    with pytest.raises(RecipeError, match="windows of 8 tokens are too short"):
        tune(hopeless)
    assert [row["state"] for row in rows(tmp_path / "bad")] == ["failed"] * 3 + ["waiting"]


def test_another_recipe_or_space_is_refused_and_named_and_more_trials_are_not(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"trials": 1, "search": {RATE: "1e-3..4e-3"}})
    tune(recipe)
    changed = recipe.model_copy(update={"training": recipe.training.model_copy(update={"weight_decay": 0.5})})
    with pytest.raises(RunError, match=r"training\.weight_decay: 0\.01 -> 0\.5"):
        tune(changed)
    with pytest.raises(
        RunError, match=r"tune\.search\.training\.learning_rate: '0\.001\.\.0\.004' -> '0\.001\.\.0\.008'"
    ):
        tune(at(recipe, tmp_path / "run", search={RATE: "1e-3..8e-3"}))
    with pytest.raises(RunError, match=r"tune\.seed: 0 -> 1"):
        tune(at(recipe, tmp_path / "run", seed=1))
    kept = rows(tmp_path / "run")
    elsewhere = recipe.model_copy(update={"training": recipe.training.model_copy(update={"max_tokens": 256})})
    tune(at(elsewhere, tmp_path / "run", trials=2))
    assert rows(tmp_path / "run")[:1] == kept
    assert len(rows(tmp_path / "run")) == 2
    tune(changed, overwrite=True)
    assert len(rows(tmp_path / "run")) == 1


def test_a_folder_that_is_anothers_is_refused_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path, {"trials": 1, "search": {RATE: "1e-3..4e-3"}})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="already holds files, but no search: use another output_dir"):
            tune(recipe, overwrite=overwrite)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]
    (tmp_path / "run" / "recipe.yaml").unlink()
    monkeypatch.setattr(nlp_mtl.tune_folder, "held", partial(held, wait=0))
    with held(tmp_path / "run"), pytest.raises(RunError, match="another process works in"):
        tune(recipe)
    (tmp_path / "run" / "tune.db").write_text("no database" * 100)
    with pytest.raises(RunError, match=r"tune\.db cannot be read, --overwrite starts again"):
        tune(recipe)
    tune(recipe, overwrite=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="trials run one after the other in one process"):
        tune(recipe)


def test_without_labels_to_select_by_nothing_is_trained(tmp_path: Path) -> None:
    given = recipe_values(tmp_path, {"trials": 1, "search": {RATE: "1e-3..4e-3"}})
    for dataset in given["datasets"].values():
        dataset |= {"splits": {"validation": None}, "validation_fraction": 0}
        del dataset["data_files"]["validation"]
    with pytest.raises(DataError, match="has labels on validation, so no trial is better"):
        tune(Recipe.from_dict(given))
    assert not (tmp_path / "run" / "trials").exists()


def test_paths_with_signs_of_addresses_and_templates_are_paths(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"trials": 1, "search": {RATE: "1e-3..4e-3"}}, max_steps=1)
    folder = tmp_path / "100% {of} a?b#c"
    tune(at(recipe, folder))
    assert (folder / "tune.db").stat().st_size > 0
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "encoder", folder.name}


def test_without_optuna_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = command(capsys, "tune", write_yaml(tmp_path, recipe_values(tmp_path, {})))
    assert code == 2
    assert "pip install 'nlp_mtl[tune]'" in err
    assert not (tmp_path / "run").exists()


def test_a_wrong_space_is_told_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_yaml(tmp_path, recipe_values(tmp_path, {}))
    code, out, err = command(capsys, "tune", file, "--search", "training.learning_rat=1,2", "--method", "tpe")
    assert (code, out) == (2, "")
    assert "Did you mean `learning_rate`?" in err
    assert not (tmp_path / "run").exists()


def test_train_takes_a_recipe_with_a_space_and_does_not_search(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, TWO_RATES, max_steps=1)
    train(recipe)
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["tune"]["trials"] == 2
    assert not os.path.exists(tmp_path / "run" / "trials")


def test_a_space_is_not_told_to_others_as_it_may_name_folders(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"search": {"encoder": [str(tmp_path / "encoder"), str(tmp_path / "other")]}})
    assert str(tmp_path) not in json.dumps(portable_recipe(recipe.to_dict(), "tuned"))

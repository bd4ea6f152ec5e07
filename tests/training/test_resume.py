"""A run that was stopped, in whatever way, and resumed ends as one that was not: bit for bit."""

import json
import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import (
    assert_same_end,
    children,
    finish,
    lines,
    moved,
    start,
    stopped_after,
    tiny_recipe,
    values,
    wait_for_lines,
    write_yaml,
)
from trained import Run, run, same

from nlp_mtl import Recipe, RunError, train


@pytest.mark.parametrize(
    ("cores", "precision", "workers", "ema_decay"),
    [(1, "no", 0, 0), (2, "no", 2, 0.9), (2, "bf16", 0, 0.9), (1, "bf16", 2, 0)],
    indirect=["cores"],
)
@pytest.mark.usefixtures("cores")
def test_a_run_resumed_after_any_checkpoint_ends_as_if_it_had_not_stopped(
    tmp_path: Path, precision: str, workers: int, ema_decay: float
) -> None:
    recipe = tiny_recipe(
        tmp_path, dropout=0.2, mixed_precision=precision, num_workers=workers, ema_decay=ema_decay,
        num_epochs=1.5, save_every=1, eval_every=4, log_every=3, keep_last=99,
    )  # fmt: skip
    train(recipe)
    run = tmp_path / "run"
    steps = range(1, 10)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step-{step}" for step in steps]
    for step in steps if workers == 0 else (3, 4, 8):  # 4 is an evaluation, 3 a line, 8 neither line nor start
        copy = stopped_after(run, step, tmp_path / f"stopped-{step}")
        torch.manual_seed(step)
        train(moved(recipe, copy), resume=True)
        assert_same_end(run, copy)


def test_a_run_that_stopped_early_and_is_resumed_does_not_go_on(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, learning_rate=1e-9, head_learning_rate=1e-9, eval_every=1,
                         early_stopping_patience=2, num_epochs=2)  # fmt: skip
    results = train(recipe)
    assert results["steps"] == 3 < 12
    run = tmp_path / "run"
    before = tmp_path / "before"
    shutil.copytree(run, before)
    assert train(recipe, resume=True) == results
    assert_same_end(run, before)


def test_a_finished_run_resumed_again_gives_what_it_gave(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, dropout=0.1)
    results = train(recipe)
    before = tmp_path / "before"
    shutil.copytree(tmp_path / "run", before)
    assert train(recipe, resume=True) == results
    assert_same_end(tmp_path / "run", before)


def test_a_run_that_died_while_it_removed_checkpoints_after_its_last_save_is_tidied_by_resuming(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, save_every=2, eval_every=12)
    train(recipe)
    folder = tmp_path / "run" / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-12"]
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    for name in ("step-10", "step-8.partial"):
        shutil.copytree(folder / "step-12", folder / name)
    state = json.loads((folder / "step-10" / "state.json").read_text())
    (folder / "step-10" / "state.json").write_text(json.dumps(state | {"step": 10, "score": None, "finished": False}))
    train(recipe, resume=True)
    assert [path.name for path in folder.iterdir()] == ["step-12"]
    assert_same_end(tmp_path / "run", tmp_path / "before")


def test_a_run_that_died_before_its_model_was_saved_is_completed_by_resuming(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, eval_every=4)
    train(recipe)
    run, before = tmp_path / "run", tmp_path / "before"
    shutil.copytree(run, before)
    shutil.rmtree(run / "model")
    (run / "results.json").unlink()
    (run / "model.partial").mkdir()
    train(recipe, resume=True)
    assert_same_end(run, before)
    assert not (run / "model.partial").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training": {"learning_rate": 1e-4}}, ["training.learning_rate: 0.002 -> 0.0001"]),
        ({"seed": 7, "training": {"batch_size": 8}}, ["training.batch_size: 16 -> 8", "seed: 0 -> 7"]),
        ({"tasks": {"pos": {"loss_weight": 0.5}}}, ["tasks.pos.loss_weight: 1.0 -> 0.5"]),
    ],
)
def test_another_recipe_is_refused_and_the_changed_keys_named(tmp_path: Path, changes: dict, told: list[str]) -> None:
    plain = values(tmp_path, max_steps=2)
    train(Recipe.from_dict(plain))
    content = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    def merge(old: dict, new: dict) -> dict:
        return {**old, **{k: merge(old[k], v) if isinstance(v, dict) else v for k, v in new.items()}}

    with pytest.raises(RunError, match="another recipe") as error:
        train(Recipe.from_dict(merge(plain, changes)), resume=True)
    assert str(error.value).splitlines()[1:] == [f"  {change}" for change in told]
    assert content == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.mark.parametrize("section", ["datasets", "tasks"])
def test_a_recipe_in_another_order_is_another_recipe(tmp_path: Path, section: str) -> None:
    plain = values(tmp_path, max_steps=2)
    train(Recipe.from_dict(plain))
    plain[section] = dict(reversed(plain[section].items()))
    with pytest.raises(RunError, match=f"{section}: in another order"):
        train(Recipe.from_dict(plain), resume=True)


def test_a_run_folder_that_was_moved_can_be_resumed(tmp_path: Path, monkeypatch) -> None:
    recipe = tiny_recipe(tmp_path, save_every=2, eval_every=4, keep_last=9)
    train(recipe)
    copy = stopped_after(tmp_path / "run", 6, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    train(moved(recipe, Path("elsewhere")), resume=True)
    assert_same_end(tmp_path / "run", copy)


def test_resuming_if_there_is_something_to_resume(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, dropout=0.2, num_epochs=1, save_every=2, eval_every=6, keep_last=99)
    run, whole = tmp_path / "run", tmp_path / "whole"
    train(moved(recipe, whole), resume="auto")  # nothing there yet
    train(moved(recipe, run), resume="auto")
    stopped_after(run, 4, tmp_path / "stopped")
    train(moved(recipe, tmp_path / "stopped"), resume="auto")
    assert len(json.loads((tmp_path / "stopped" / "environment.json").read_text())["resumed"]) == 1
    assert_same_end(whole, tmp_path / "stopped")
    shutil.rmtree(run / "checkpoints")  # as if it had died before its first checkpoint
    train(moved(recipe, run), resume="auto")
    assert "resumed" not in json.loads((run / "environment.json").read_text())
    assert_same_end(whole, run)


@pytest.mark.parametrize("checkpoints", [True, False])
def test_another_recipes_run_and_other_files_are_not_touched_by_resuming_if_there_is_something(
    tmp_path: Path, checkpoints: bool
) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=2)
    train(recipe)
    run = tmp_path / "run"
    if not checkpoints:
        shutil.rmtree(run / "checkpoints")
    before = sorted(run.rglob("*"))
    with pytest.raises(RunError, match="another recipe"):
        train(moved(recipe, run, batch_size=8), resume="auto")
    assert sorted(run.rglob("*")) == before
    (run / "environment.json").unlink()
    with pytest.raises(RunError, match="already holds files"):
        train(recipe, resume="auto")


def test_resuming_without_a_checkpoint_says_what_to_do_instead(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=2)
    with pytest.raises(RunError, match=r"no run to resume .*without --resume"):
        train(recipe, resume=True)
    train(recipe)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(RunError, match=r"no checkpoint to resume from .*--overwrite"):
        train(recipe, resume=True)
    train(recipe, overwrite=True)


def damage(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8] + b"\0" * 8)


@pytest.mark.parametrize("keep_last", [1, 9])
def test_a_damaged_newest_checkpoint_is_told_and_the_older_one_taken(
    tmp_path: Path, keep_last: int, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe(tmp_path, save_every=2, eval_every=4, keep_last=9, num_epochs=1, dropout=0.2)
    train(recipe)
    run, copy = tmp_path / "run", stopped_after(tmp_path / "run", 4, tmp_path / "copy")
    damage(copy / "checkpoints" / "step-4")
    train(moved(recipe, copy, keep_last=keep_last), resume=True)
    assert "step-4 is damaged (model.safetensors does not hold what was written)" in caplog.text
    assert (copy / "checkpoints" / "step-4.damaged").is_dir()
    shutil.rmtree(copy / "checkpoints" / "step-4.damaged")
    shutil.rmtree(copy / "checkpoints" / "step-2", ignore_errors=True)
    assert_same_end(run, copy)


def test_when_the_best_checkpoint_is_damaged_the_best_is_sought_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(tmp_path, [0.9, 0.5, 0.7, 0.6], max_steps=4, eval_every=1, keep_last=9)
    first.train()
    folder = tmp_path / "run" / "checkpoints"
    for step in (3, 4):
        shutil.rmtree(folder / f"step-{step}")
    damage(folder / "step-1")
    again = Run(first.recipe, [0.7, 0.6])
    state = again.train(resume=True)
    assert "step 1, the best so far, is gone or damaged" in caplog.text
    assert (state.best_step, state.best_score) == (3, 0.7)
    assert same(again.weights(), again.evaluated[0])


def test_without_any_sound_checkpoint_nothing_is_resumed_and_nothing_touched(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=1)
    train(recipe)
    damage(tmp_path / "run" / "checkpoints" / "step-1")
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(RunError, match=r"no sound checkpoint to resume from .*--overwrite"):
        train(recipe, resume=True)
    assert sorted((tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "\x00\x01"])
def test_a_damaged_recipe_in_the_run_folder_is_told(tmp_path: Path, content: str) -> None:
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "environment.json").write_text('{"versions": {"nlp_mtl": "0.1.0"}}')
    (tmp_path / "run" / "recipe.yaml").write_text(content)
    with pytest.raises(RunError, match=r"recipe\.yaml .*cannot be resumed"):
        train(recipe, resume=True)


def long_run(folder: Path, num_workers: int) -> tuple[Recipe, Path]:
    """A recipe of 120 steps, and as a file for another run folder."""
    folder.mkdir()
    plain = values(folder, dropout=0.2, num_epochs=20, save_every=3, eval_every=25, num_workers=num_workers)
    return Recipe.from_dict(plain), write_yaml(folder, {**plain, "output_dir": str(folder / "killed")})


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.usefixtures("cores")
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(tmp_path: Path, seed: int) -> None:
    recipe, file = long_run(tmp_path / "files", num_workers=2 * seed)
    train(recipe)
    killed, random_ = tmp_path / "files" / "killed", random.Random(seed)
    process = start("train", file)
    for kills in range(3):
        wait_for_lines(killed, 5 + 30 * kills + random_.randrange(20))
        time.sleep(random_.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        assert finish(process)[0] == -signal.SIGKILL
        process = start("train", file, "--resume")
    code, _, errors = finish(process)
    assert code == 0, errors
    assert_same_end(Path(recipe.output_dir), killed)


@pytest.mark.slow
@pytest.mark.usefixtures("cores")
def test_a_run_that_is_interrupted_saves_its_step_first_and_can_be_resumed(tmp_path: Path) -> None:
    recipe, file = long_run(tmp_path / "files", num_workers=0)
    killed = tmp_path / "files" / "killed"
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    process = start("train", file)
    signal.signal(signal.SIGINT, handler)
    wait_for_lines(killed, 10)
    process.send_signal(signal.SIGINT)
    found, _, errors = finish(process, timeout=20)
    assert found == 130
    assert "Traceback" not in errors
    assert "Ctrl-C again stops at once" in errors
    step = lines(killed)[-1]["step"]
    assert step < 120
    assert (killed / "checkpoints" / f"step-{step}").is_dir()
    assert f"stopped after step {step} of" in errors
    found, _, errors = finish(start("train", file, "--resume"))
    assert found == 0, errors
    train(recipe)
    assert_same_end(Path(recipe.output_dir), killed)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds loader workers in Linux's /proc")
@pytest.mark.usefixtures("cores")
def test_a_run_that_is_terminated_with_all_its_workers_saves_first_and_loses_no_step(tmp_path: Path) -> None:
    recipe, file = long_run(tmp_path / "files", num_workers=2)
    killed = tmp_path / "files" / "killed"
    process = start("train", file, "--resume", "auto")
    wait_for_lines(killed, 10)
    for pid in (*children(process), process.pid):
        os.kill(pid, signal.SIGTERM)
    found, _, errors = finish(process, timeout=20)
    assert found == 75, errors
    assert "Traceback" not in errors
    stopped = int(re.search(r"stopped after step (\d+) of 120, which is saved", errors)[1])
    assert lines(killed)[-1]["step"] <= stopped < 120
    assert (killed / "checkpoints" / f"step-{stopped}" / "state.json").is_file()
    found, _, errors = finish(start("train", file, "--resume", "auto"))
    assert found == 0, errors
    assert f"Resuming after step {stopped} of 120" in errors
    train(recipe)
    assert_same_end(Path(recipe.output_dir), killed)

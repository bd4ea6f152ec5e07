"""Runs that extend a model resume exactly, and end on several processes where they do on one."""

import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from extensions import base_run, new_values
from safetensors.torch import load_file, save_file
from tiny_runs import assert_close, assert_same_end, finish, start, stopped_after, wait_for_lines, write_yaml

from nlp_mtl import RunError, extend

ALL_WAYS: dict[str, Any] = {
    "replay": 10, "l2_to_start": 10.0, "importance": "fisher", "fisher_rows": 12, "distillation": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_run(tmp_path_factory.mktemp("base"), num_epochs=2, dropout=0.2)


@pytest.mark.parametrize("cores", [2], indirect=True)
@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize(
    ("extension", "training"),
    [
        ({}, {"num_workers": 0}),
        ({"freeze": "heads", "replay": 0.25}, {"num_workers": 2, "unfreeze_every": 3}),
        (ALL_WAYS, {"num_workers": 0, "ema_decay": 0.9}),
    ],
    ids=["frozen", "replay", "all ways"],
)
def test_a_run_resumed_after_a_checkpoint_ends_as_if_it_had_not_stopped(
    base: Path, tmp_path: Path, extension: dict[str, Any], training: dict[str, Any]
) -> None:
    given = new_values(tmp_path, extension, save_every=1, eval_every=3, keep_last=99, **training)
    given["sampling"] = {"strategy": "uniform"}
    whole = extend(base, given)
    run = tmp_path / "extended"
    for step in (1, 4):
        copy = stopped_after(run, step, tmp_path / f"stopped-{step}")
        assert extend(base, {**given, "output_dir": str(copy)}, resume=True)["scores"] == whole["scores"]
        assert_same_end(run, copy)


def test_a_finished_run_resumed_again_gives_what_it_gave_and_auto_starts_where_there_is_none(
    base: Path, tmp_path: Path
) -> None:
    given = new_values(tmp_path, ALL_WAYS)
    results = extend(base, given, resume="auto")
    shutil.copytree(tmp_path / "extended", tmp_path / "before")
    assert extend(base, given, resume="auto") == results
    assert_same_end(tmp_path / "extended", tmp_path / "before")
    with pytest.raises(RunError, match="already holds a run"):
        extend(base, given)
    assert extend(base, given, overwrite=True) == results


def test_what_was_found_before_training_is_read_not_found_again(base: Path, tmp_path: Path) -> None:
    """Importance that was kept counts for a resumed run, even if it were found otherwise now."""
    given = new_values(tmp_path, {**ALL_WAYS, "replay": None, "distillation": False}, save_every=2, keep_last=9)
    extend(base, given)
    copy = stopped_after(tmp_path / "extended", 2, tmp_path / "stopped")
    file = copy / "extension" / "importance.safetensors"
    kept = load_file(file)
    save_file({name: tensor * 0 for name, tensor in kept.items()}, file)
    extend(base, {**given, "output_dir": str(copy)}, resume=True)
    one, two = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "extended", copy))
    assert any(not one[name].equal(two[name]) for name in one)


def test_another_model_and_damage_are_told_and_nothing_is_touched(base: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(base, copied)
    given = new_values(tmp_path, ALL_WAYS)
    extend(copied, given)
    weights = copied / "model" / "model.safetensors"
    moved = {name: tensor + 1e-3 for name, tensor in load_file(weights).items()}
    save_file(moved, weights, metadata={"format": "pt"})
    before = sorted((tmp_path / "extended").rglob("*"))
    with pytest.raises(RunError, match=r"was started with another model than that in .*--overwrite"):
        extend(copied, given, resume=True)
    with pytest.raises(RunError, match=r"extension\.l2_to_start: 10\.0 -> 5\.0"):
        extend(base, new_values(tmp_path, {**ALL_WAYS, "l2_to_start": 5.0}), resume=True)
    (tmp_path / "extended" / "extension" / "importance.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"extension, which a resumed run reads, is damaged"):
        extend(base, given, resume=True)
    assert sorted((tmp_path / "extended").rglob("*")) == before


@pytest.mark.slow
@pytest.mark.usefixtures("cores")
def test_a_run_killed_at_a_random_moment_ends_as_one_that_was_not(base: Path, tmp_path: Path) -> None:
    given = new_values(tmp_path, ALL_WAYS, num_epochs=8, save_every=3, eval_every=25)
    extend(base, given)
    killed, random_ = tmp_path / "killed", random.Random(0)
    command = ["extend", base, write_yaml(tmp_path / "files", {**given, "output_dir": str(killed)}), "--resume", "auto"]
    process = start(*command)
    wait_for_lines(killed, 5 + random_.randrange(20))
    time.sleep(random_.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    process = start(*command)
    code, printed, errors = finish(process)
    assert code == 0, errors
    assert "Old tasks, before and after" in printed
    assert_same_end(tmp_path / "extended", killed)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP"])
@pytest.mark.parametrize("extension", [{}, ALL_WAYS], ids=["frozen", "all ways"])
def test_two_processes_end_where_one_does(base: Path, tmp_path: Path, sharded: bool, extension: dict[str, Any]) -> None:
    given = new_values(tmp_path, extension, dropout=0.0)
    extend(base, given)
    two = write_yaml(tmp_path / "files", {**given, "output_dir": str(tmp_path / "two")})
    script = Path(__file__).with_name("sharded_on_cpu.py") if sharded else None
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if sharded else None
    code, printed, errors = finish(start("extend", base, two, processes=2, script=script, environment=environment))
    assert code == 0, errors
    assert printed.count("Old tasks, before and after") == 1
    assert_close(tmp_path / "extended", tmp_path / "two")

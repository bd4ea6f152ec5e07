"""Several real processes (gloo) train as one does. torchrun starts them: `accelerate launch --cpu` starts one."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator, DistributedType
from tiny_runs import (
    assert_close,
    children,
    finish,
    start,
    values,
    wait_for_lines,
    weights,
    write_yaml,
)

from nlp_mtl import Recipe, RunError, train
from nlp_mtl.build import new_model, steps
from nlp_mtl.build_data import prepare

slow = pytest.mark.slow  # every process imports torch
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def both(folder: Path, plain: dict[str, Any] | None = None, processes: int = 2, **options: Any) -> tuple[Path, Path]:
    """The run folders of one process, and of several."""
    plain = plain or values(folder, **options)
    train(Recipe.from_dict({**plain, "output_dir": str(folder / "one")}))
    file = write_yaml(folder, {**plain, "output_dir": str(folder / "two")})
    code, _, errors = finish(start("train", file, processes=processes))
    assert code == 0, errors
    assert json.loads((folder / "two" / "environment.json").read_text())["num_processes"] == processes
    return folder / "one", folder / "two"


def tasks_of_processes(recipe: Recipe, processes: int) -> list[list[set[str]]]:
    """For each step and process that has rows, the tasks that they carry labels of."""
    prepared = prepare(recipe)
    found = []
    for process in range(processes):
        data = steps(recipe, prepared, process=process, num_processes=processes)
        data.packed = new_model(recipe, prepared).packs(recipe.training.layout)
        parts = []
        for batches in data:
            assert len(batches.micro_batches) == 1
            rows_of_tasks = batches.micro_batches[0].tasks
            parts.append({task for task, (rows, *_) in rows_of_tasks.items() if len(rows)})
        found.append(parts)
    return [[part for part in step if part] for step in zip(*found, strict=True)]


def test_two_processes_end_where_one_does_and_write_everything_once(tmp_path: Path) -> None:
    # Micro-batches of 64 tokens: several a step on each process. The last step has 2 rows for 2 processes.
    plain = values(
        tmp_path, max_tokens=64, batch_size=30, num_epochs=1.58, save_every=3, keep_last=99, eval_every=4
    )  # fmt: skip
    recipe = Recipe.from_dict(plain)
    data = steps(recipe, prepare(recipe), num_processes=2)
    assert [len(batches.micro_batches) > 1 for batches in data] == [True] * 5 + [False]
    assert len(data.sampler[5].rows) == 2
    one, two = both(tmp_path, plain)
    assert_close(one, two)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    names = [{path.name for path in (run / "checkpoints").iterdir()} for run in (one, two)]
    assert names[0] == names[1] == {"step-3", "step-4", "step-6"}


def test_a_process_without_any_row_takes_part(tmp_path: Path) -> None:
    # One row a step: the other process has none, and each step lacks two tasks or one.
    one, two = both(tmp_path, batch_size=1, max_steps=8, weight_decay=0.5, eval_every=8)
    assert_close(one, two)


@slow
@pytest.mark.parametrize("layout", ["packed", pytest.param("padded", marks=pytest.mark.long)])
def test_three_processes_with_one_row_each_so_that_none_has_all_tasks_end_where_one_does(
    tmp_path: Path, layout: str
) -> None:
    plain = values(tmp_path, layout=layout, batch_size=3, max_steps=12, eval_every=12)
    tasks = tasks_of_processes(Recipe.from_dict(plain), 3)
    assert all(len(step) == 3 for step in tasks)  # each has a row in each step
    of_words, of_texts = {"ner", "pos"}, {"sentiment"}
    assert {frozenset(part) for step in tasks for part in step} == {frozenset(of_words), frozenset(of_texts)}
    assert any(of_words in step and of_texts in step for step in tasks)
    assert_close(*both(tmp_path, plain, processes=3))


@slow
@pytest.mark.parametrize("layout", [pytest.param("packed", marks=pytest.mark.long), "padded"])
def test_a_dataset_that_is_gone_over_several_times_in_a_step_is_learned_by_three_processes_as_by_one(
    tmp_path: Path, layout: str
) -> None:
    plain = values(tmp_path, layout=layout, batch_size=32, num_epochs=9, max_steps=8, eval_every=8)
    plain["sampling"] = {"strategy": "uniform"}
    plain["datasets"]["texts"]["max_rows"] = {"train": 3}
    recipe = Recipe.from_dict(plain)
    data = steps(recipe, prepare(recipe))
    assert [len(split) for split in data.splits] == [48, 3]
    for plan in data.sampler:
        assert np.bincount(plan.rows[plan.datasets == 1], minlength=3).min() >= 4
    assert_close(*both(tmp_path, plain, processes=3))


@slow
def test_a_run_of_two_processes_is_resumed_bit_for_bit_by_two_and_to_rounding_error_by_one(tmp_path: Path) -> None:
    one, two = both(tmp_path, save_every=2, eval_every=4, keep_last=9, num_epochs=1, num_workers=1)
    for processes in (1, 2):
        copy = tmp_path / f"resumed-by-{processes}"
        shutil.copytree(two, copy)
        shutil.rmtree(copy / "checkpoints" / "step-6")
        shutil.rmtree(copy / "checkpoints" / "step-4")
        file = tmp_path / "recipe.yaml"
        code, _, errors = finish(start("train", file, f"output_dir={copy}", "--resume", processes=processes))
        assert code == 0, errors
        assert_close(one, copy)
        if processes == 2:
            for name in ("metrics.jsonl", "model/model.safetensors", "checkpoints/step-6/optimizer.safetensors"):
                assert (copy / name).read_bytes() == (two / name).read_bytes(), name


@pytest.mark.long
def test_a_run_of_two_processes_with_dropout_can_be_repeated_bit_for_bit(tmp_path: Path) -> None:
    plain = values(tmp_path, dropout=0.2, max_steps=4, mixed_precision="bf16")
    file = write_yaml(tmp_path, plain)
    for name in ("first", "second"):
        code, _, errors = finish(start("train", file, f"output_dir={tmp_path / name}", processes=2))
        assert code == 0, errors
    assert (tmp_path / "first/metrics.jsonl").read_bytes() == (tmp_path / "second/metrics.jsonl").read_bytes()
    assert all(
        torch.equal(tensor, weights(tmp_path / "second")[n]) for n, tensor in weights(tmp_path / "first").items()
    )


@pytest.mark.long
def test_a_loss_that_explodes_stops_all_processes(tmp_path: Path) -> None:
    file = write_yaml(tmp_path, values(tmp_path, learning_rate=1e30, warmup_fraction=0))
    code, _, errors = finish(start("train", file, processes=2), timeout=60)
    assert code != 0
    assert "at step 2. Nothing was saved" in errors
    assert not (tmp_path / "run" / "checkpoints").exists()


@slow
def test_a_checkpoint_that_the_first_process_cannot_write_does_not_leave_the_other_waiting(tmp_path: Path) -> None:
    plain = values(tmp_path, save_every=2)
    train(Recipe.from_dict({**plain, "training": {**plain["training"], "keep_last": 9}}))
    checkpoints = tmp_path / "run" / "checkpoints"
    for path in checkpoints.iterdir():
        if path.name != "step-2":
            shutil.rmtree(path)
    (checkpoints / "step-4.partial").write_text("a file where a folder should be")
    file = write_yaml(tmp_path, {**plain, "training": {**plain["training"], "keep_last": 9}})
    code, _, errors = finish(start("train", file, "--resume", processes=2), timeout=60)
    assert code != 0
    assert "step-4 cannot be written" in errors
    assert [path.name for path in checkpoints.iterdir() if path.is_dir()] == ["step-2"]


@pytest.mark.long
def test_data_that_cannot_be_read_stops_all_processes(tmp_path: Path) -> None:
    plain = values(tmp_path)
    (tmp_path / "broken.jsonl").write_text("not json\n")
    plain["datasets"]["texts"]["data_files"] = {"train": str(tmp_path / "broken.jsonl")}
    code, _, errors = finish(start("train", write_yaml(tmp_path, plain), processes=2), timeout=60)
    assert code != 0
    assert "broken.jsonl" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the launcher's processes in Linux's /proc")
def test_when_one_of_two_processes_is_terminated_both_save_the_same_step_and_the_run_can_be_resumed(
    tmp_path: Path,
) -> None:
    plain = values(tmp_path, dropout=0.2, num_epochs=20, eval_every=120)
    file = write_yaml(tmp_path, plain)
    launcher = start("train", file, "--resume", "auto", processes=2)
    run = Path(plain["output_dir"])
    wait_for_lines(run, 5)
    os.kill(children(launcher)[1], signal.SIGTERM)
    code, _, errors = finish(launcher)
    assert code != 0
    (stopped,) = re.findall(r"stopped after step (\d+) of 120, which is saved", errors)  # told once
    assert (run / "checkpoints" / f"step-{stopped}" / "state.json").is_file()
    code, _, errors = finish(start("train", file, "--resume", "auto", processes=2))
    assert code == 0, errors
    code, _, errors = finish(start("train", file, f"output_dir={tmp_path / 'whole'}", processes=2))
    assert code == 0, errors
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@slow
def test_a_launcher_that_is_terminated_lets_its_processes_save_the_step(tmp_path: Path) -> None:
    plain = values(tmp_path, num_epochs=20, eval_every=120)
    launcher = start("train", write_yaml(tmp_path, plain), "--resume", "auto", processes=2)
    run = Path(plain["output_dir"])
    wait_for_lines(run, 5)
    launcher.terminate()  # as Slurm and Kubernetes do; torchrun hands it on
    code, _, errors = finish(launcher)
    assert code == 1  # torchrun's own
    (stopped,) = re.findall(r"stopped after step (\d+) of 120, which is saved", errors)
    assert (run / "checkpoints" / f"step-{stopped}" / "state.json").is_file()


def test_processes_that_accelerate_does_not_see_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # as on a pod of a job of several, without a local rank
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    plain = values(tmp_path)
    with pytest.raises(RunError, match="started 4 processes, but Accelerate sees 1"):
        train(Recipe.from_dict(plain))
    assert not Path(plain["output_dir"]).exists()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, r"asks for `DeepSpeed`, but only data parallelism \(DDP\).* MULTI_GPU"),
        ({"ACCELERATE_USE_FSDP": "true"}, r"asks for FSDP version 1, but only .* fsdp_version: 2 below fsdp_config"),
        ({**FSDP, "FSDP_VERSION": "1"}, r"asks for FSDP version 1, but only .* fsdp_version: 2 below fsdp_config"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params: true is not supported: set it to false"),
        ({**FSDP, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "and training.gradient_checkpointing: true in the recipe"),
        (FSDP, r"\(device: cpu, processes: 1\): it shards on several GPUs, not on CPU. Start with torchrun"),
    ],
)
def test_a_launcher_that_asks_for_what_is_not_supported_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], told: str
) -> None:
    for name, value in variables.items():  # as `accelerate launch` does; on CPU Accelerate itself would say nothing
        monkeypatch.setenv(name, value)
    plain = values(tmp_path)
    with pytest.raises(RunError, match=told):
        train(Recipe.from_dict(plain))
    assert not Path(plain["output_dir"]).exists()


def test_a_kind_of_run_that_is_not_data_parallel_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.XLA)
    plain = values(tmp_path)
    with pytest.raises(RunError, match="a run of the kind XLA, but only data parallelism"):
        train(Recipe.from_dict(plain))
    assert not Path(plain["output_dir"]).exists()


def test_processes_that_do_not_find_the_same_checkpoints_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine that does not share the folder of the first one.
    monkeypatch.setattr("nlp_mtl.run.gather_object", lambda found: [not found[0], *found])
    plain = values(tmp_path)
    with pytest.raises(RunError, match="output_dir has to be on a file system that all machines share"):
        train(Recipe.from_dict(plain), resume="auto")
    assert not Path(plain["output_dir"]).exists()

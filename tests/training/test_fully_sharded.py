"""Two real processes (gloo) that each hold a part of the model (FSDP 2) train as one that holds all of it.

Accelerate shards on GPUs alone: ``sharded_on_cpu.py`` makes it take the CPU for some.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from tiny_runs import assert_close, assert_same_end, children, finish, start, values, wait_for_lines, write_yaml
from two_tasks import in_training

from nlp_mtl import Recipe, load, train
from nlp_mtl.compress import compress
from nlp_mtl.compression.magnitude import share_of_zeros
from nlp_mtl.models.fully_sharded import gathered, is_sharded, load_weights, missing_passes, part_of, reshard, whole
from nlp_mtl.models.loading import load_model
from nlp_mtl.recipe_compression import CompressionSpec

HERE = Path(__file__).parent
SCRIPT = HERE / "sharded_on_cpu.py"
PAGE = (HERE.parents[1] / "docs" / "scaling.md").read_text(encoding="utf-8")
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
slow = pytest.mark.slow  # every process imports torch


def sharded(*arguments: str | Path, seen: Path | None = None) -> None:
    """``nlp-mtl ARGUMENTS`` on two processes that share a model, to its end."""
    environment = {**FSDP, **({"SEEN": str(seen)} if seen else {})}
    code, _, errors = finish(start(*arguments, processes=2, script=SCRIPT, environment=environment))
    assert code == 0, errors


def assert_sharded(seen: Path, steps: int) -> None:
    """Both processes held about half of the parameters at each step."""
    notes = [json.loads((seen / f"{process}.json").read_text()) for process in range(2)]
    assert [note["processes"] for note in notes] == [2, 2]
    assert [len(note["steps"]) for note in notes] == [steps, steps]
    for (one, all_of_it), (other, _) in zip(notes[0]["steps"], notes[1]["steps"], strict=True):
        assert one + other == all_of_it
        assert 0.45 * all_of_it < one < 0.55 * all_of_it


def resumable(run: Path, step: int, copy: Path) -> Path:
    """A copy of a run folder that has no later checkpoint than that of a step."""
    shutil.copytree(run, copy)
    for path in (copy / "checkpoints").iterdir():
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    return copy


@slow
def test_a_sharded_model_that_was_compressed_keeps_its_zeros(tmp_path: Path) -> None:
    plain = values(tmp_path, max_steps=4)
    train(Recipe.from_dict(plain))
    spec = CompressionSpec(heads=0.25, magnitude=0.5)
    compress(plain["output_dir"], tmp_path / "small", compression=spec)
    plain["compression"] = {"model": str(tmp_path / "small" / "model")}
    train(Recipe.from_dict({**plain, "output_dir": str(tmp_path / "one")}))
    sharded("train", write_yaml(tmp_path, {**plain, "output_dir": str(tmp_path / "two")}))
    assert_close(tmp_path / "one", tmp_path / "two")
    assert share_of_zeros(load_model(tmp_path / "two")[0]) == pytest.approx(0.5, abs=1e-3)


@slow
@pytest.mark.parametrize(
    ("layout", "training"),
    [
        ("packed", {"max_tokens": 64, "batch_size": 30, "save_every": 3}),  # several micro-batches a step
        pytest.param("padded", {"batch_size": 1, "weight_decay": 0.5},  # one process has no row, a step not all tasks
                     marks=pytest.mark.long),
        pytest.param("packed", {
            "ema_decay": 0.5, "frozen_layers": "embeddings", "unfreeze_every": 3, "layer_decay": 0.8,
            "l1_penalty": 1e-3, "l2_penalty": 1e-2, "max_grad_norm": 0.5, "gradient_checkpointing": True,
        }, marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_a_sharded_model_learns_what_a_whole_one_does(tmp_path: Path, layout: str, training: dict[str, Any]) -> None:
    plain = values(tmp_path, layout=layout, eval_every=4, max_steps=8, num_epochs=9, **training)
    plain["tasks"]["ner"]["decoder"] = "crf"  # its transitions are read outside of any layer
    plain["datasets"]["texts"]["max_rows"] = {"validation": 1}  # a process has none to read, and none of its own passes
    train(Recipe.from_dict({**plain, "output_dir": str(tmp_path / "one")}))
    sharded("train", write_yaml(tmp_path, {**plain, "output_dir": str(tmp_path / "two")}), seen=tmp_path)
    assert_sharded(tmp_path, steps=8)
    one, two = tmp_path / "one", tmp_path / "two"
    assert_close(one, two)
    assert json.loads((two / "environment.json").read_text())["fully_sharded"]
    # Nothing of it is left in what is saved.
    assert (one / "model" / "config.json").read_bytes() == (two / "model" / "config.json").read_bytes()
    names = [{path.relative_to(run) for path in run.rglob("*")} for run in (one, two)]
    assert names[0] == names[1]
    text = "Anna loves Paris ."
    assert load(two)(text)["sentiment"]["score"] == pytest.approx(load(one)(text)["sentiment"]["score"], abs=1e-4)


@slow
def test_checkpoints_are_resumed_bit_for_bit_sharded_and_to_rounding_error_from_and_to_one_process(
    tmp_path: Path,
) -> None:
    plain = values(tmp_path, num_epochs=1, save_every=2, eval_every=4, keep_last=9, ema_decay=0.5)
    file = write_yaml(tmp_path, plain)
    one, two = tmp_path / "one", tmp_path / "two"
    train(Recipe.from_dict({**plain, "output_dir": str(one)}))
    sharded("train", file, f"output_dir={two}")
    again = resumable(two, 2, tmp_path / "again")
    sharded("train", file, f"output_dir={again}", "--resume")
    assert_same_end(two, again)
    to_one = resumable(two, 2, tmp_path / "to_one")
    train(Recipe.from_dict({**plain, "output_dir": str(to_one)}), resume=True)
    assert_close(one, to_one)
    from_one = resumable(one, 2, tmp_path / "from_one")
    sharded("train", file, f"output_dir={from_one}", "--resume")
    assert_close(one, from_one)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the launcher's processes in Linux's /proc")
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_a_sharded_run_that_was_stopped_or_killed_ends_in_the_same_weights(
    tmp_path: Path, kind: signal.Signals
) -> None:
    plain = values(tmp_path, dropout=0.2, mixed_precision="bf16", num_epochs=6, eval_every=36, save_every=4)
    file = write_yaml(tmp_path, plain)
    run, whole_run = Path(plain["output_dir"]), tmp_path / "whole"
    launcher = start("train", file, processes=2, script=SCRIPT, environment=FSDP)
    wait_for_lines(run, 6)
    os.kill(children(launcher)[1], kind)
    code, _, errors = finish(launcher)
    assert code != 0
    if kind == signal.SIGTERM:
        (stopped,) = re.findall(r"stopped after step (\d+) of 36, which is saved", errors)
        assert (run / "checkpoints" / f"step-{stopped}" / "state.json").is_file()
    sharded("train", file, "--resume")
    sharded("train", file, f"output_dir={whole_run}")
    assert_same_end(whole_run, run)


@pytest.mark.long
def test_gradients_of_all_families_and_sharings_are_those_of_whole_models(tmp_path: Path) -> None:
    path = os.pathsep.join([str(HERE.parent), *sys.path])
    code, _, errors = finish(
        start(
            tmp_path / "units.json", processes=2, script=HERE / "sharded_families.py",
            environment={**FSDP, "PYTHONPATH": path},
        )
    )  # fmt: skip
    assert code == 0, errors
    units = json.loads((tmp_path / "units.json").read_text())
    assert set(tiny.FAMILIES) | {"layer_mix", "gate", "mmoe", "ple", "towers", "lora"} == units.keys()
    words, layer = "encoder.embeddings.word_embeddings", "encoder.encoder.layer"
    assert units["bert"] == ["", words, f"{layer}.0", f"{layer}.1"]
    assert units["albert"] == ["", words, "encoder.encoder.albert_layer_groups.0"]
    assert all(len(found) == 4 for family, found in units.items() if family != "albert")


@pytest.mark.long
def test_the_pages_config_file_for_accelerate_shards_the_model_and_is_refused_on_cpu(tmp_path: Path) -> None:
    (block,) = (one for one in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL) if "fsdp_config" in one)
    config = {**yaml.safe_load(block), "num_processes": 2}
    (tmp_path / "fsdp.yaml").write_text(yaml.safe_dump(config))
    plain = values(tmp_path, max_steps=2)
    file = write_yaml(tmp_path, plain)

    def launch(*program: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(tmp_path / "fsdp.yaml"),
             "--main_process_port", "0", *program, "train", str(file)],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "SEEN": str(tmp_path)},
            text=True, capture_output=True, timeout=120, check=False,
        )  # fmt: skip

    refused = launch("-m", "nlp_mtl")
    assert refused.returncode != 0
    assert "(device: cpu, processes: 2): it shards on several GPUs, not on CPU" in refused.stderr
    assert not Path(plain["output_dir"]).exists()
    done = launch(str(SCRIPT))
    assert done.returncode == 0, done.stderr
    assert_sharded(tmp_path, steps=2)


def test_whole_models_and_tensors_stay_as_they_are() -> None:
    model = in_training("bert")
    state = model.state_dict()
    assert not is_sharded(model)
    assert missing_passes(model, 3) == 0
    reshard(model)
    some = torch.ones(3)
    assert whole(some) is some
    assert part_of(some, torch.zeros(3)) is some
    assert gathered(state, keep=False) == {}
    found = gathered(state, keep=True)
    other = in_training("bert")
    load_weights(other, found)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in state.items())
    with pytest.raises(RuntimeError, match="Unexpected key"):
        load_weights(other, {**found, "more": some})


@slow
def test_compiled_layers_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    file = write_yaml(tmp_path, values(tmp_path, compile=True))
    code, _, errors = finish(start("train", file, processes=2, script=SCRIPT, environment=FSDP))
    assert code
    assert "training.compile: not together with FSDP" in errors
    assert not (tmp_path / "run").exists()

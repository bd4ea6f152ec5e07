"""Tiny runs: what the tests of training, run folders and several processes share."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny import recipe, save_encoder

from nlp_mtl import Recipe, train


def values(folder: Path, *, dropout: float = 0.0, **training: Any) -> dict[str, Any]:
    """A tiny recipe's values that learn something: 96 rows, 6 steps an epoch."""
    encoder = save_encoder(folder / "encoder", dropout=dropout)
    return recipe(folder, encoder_folder=encoder, **{"learning_rate": 2e-3, "head_learning_rate": 1e-2, **training})


def streamed_values(folder: Path, **options: Any) -> dict[str, Any]:
    """The same, but the texts are streamed, from three files; ``max_steps`` and ``eval_every`` have to be said."""
    given = values(folder, **options)
    corpus = Path(given["data_dir"])
    rows = (corpus / "texts" / "train.jsonl").read_text().splitlines(keepends=True)
    for part, (first, stop) in enumerate([(0, 20), (20, 40), (40, 48)]):
        (corpus / "texts" / f"train-{part}.jsonl").write_text("".join(rows[first:stop]))
    texts = {"data_files": {"train": "texts/train-*.jsonl", "validation": "texts/validation.jsonl"}, "text": "text"}
    given["datasets"]["texts"] = {**texts, "streaming": True, "buffer_size": 16}
    given["tasks"]["sentiment"]["label_names"] = sorted({json.loads(row)["label"] for row in rows})
    given["sampling"] = {"strategy": "fixed", "shares": {"words": 1, "texts": 2}}
    return given


def tiny_recipe(folder: Path, **options: Any) -> Recipe:
    return Recipe.from_dict(values(folder, **options))


def lines(run: Path) -> list[dict[str, Any]]:
    """All of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def loss_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run) if "losses" in line]


def score_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run) if "scores" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The saved model's."""
    return load_file(run / "model" / "model.safetensors")


def assert_same_end(run: Path, other: Path) -> None:
    """Two runs ended in the same weights, optimizer state, metrics and scores, bit for bit."""
    logs = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (run, other)]
    assert logs[0] == logs[1]
    assert (run / "model" / "model.safetensors").read_bytes() == (other / "model" / "model.safetensors").read_bytes()
    newest = sorted((run / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))[-1].name
    one, two = (folder / "checkpoints" / newest for folder in (run, other))
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (run, other))
    where = {"command": "", "encoder": ""}  # the folders of a test's encoders differ
    assert one | where == two | where


def assert_close(one: Path, two: Path) -> None:
    """The same weights and lines to rounding error, the same scores."""
    for name, tensor in weights(one).items():
        if name.endswith("attention.self.key.bias"):
            continue  # softmax does not see it: its gradient is nothing but rounding error, which AdamW blows up
        torch.testing.assert_close(weights(two)[name], tensor, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert [line["step"] for line in lines(one)] == [line["step"] for line in lines(two)]
    for left, right in zip(loss_lines(one), loss_lines(two), strict=True):
        assert left["losses"] == pytest.approx(right["losses"], abs=1e-4)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
    assert score_lines(one) == score_lines(two)
    scores = [json.loads((run / "results.json").read_text())["scores"] for run in (one, two)]
    assert scores[0] == scores[1]


def write_yaml(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def alone_and_in_two(folder: Path, given: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Lines with losses of a run by one process and of the same by two, in ``folder/run`` and ``folder/two``."""
    train(Recipe.from_dict(given))
    two = {**given, "output_dir": str(folder / "two")}
    code, _, errors = finish(start("train", write_yaml(folder, two), processes=2))
    assert code == 0, errors
    return zip(loss_lines(Path(given["output_dir"])), loss_lines(folder / "two"), strict=True)


def stopped_after(run: Path, step: int, folder: Path) -> Path:
    """A copy of a run folder as it was when the process died some time after a checkpoint."""
    shutil.copytree(run, folder)
    for path in (folder / "checkpoints").iterdir():
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    shutil.rmtree(folder / "model")
    (folder / "results.json").unlink()
    log = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    later = [line for line in log if json.loads(line)["step"] <= step + 1]
    (folder / "metrics.jsonl").write_text("".join(later) + '{"step": 99, "lo')  # it died while writing
    (folder / "checkpoints" / f"step-{step + 1}.partial").mkdir()
    return folder


def moved(recipe: Recipe, output_dir: Path, **training: Any) -> Recipe:
    changed = recipe.training.model_copy(update=training)
    return recipe.model_copy(update={"output_dir": str(output_dir), "training": changed})


def assert_resumes_exactly(recipe: Recipe, step: int, folder: Path) -> None:
    """A run ends in the same bits as one that died some time after the checkpoint of a step, and was resumed."""
    train(recipe)
    stopped = stopped_after(Path(recipe.output_dir), step, folder)
    train(moved(recipe, stopped), resume=True)
    assert_same_end(Path(recipe.output_dir), stopped)


def start(
    *arguments: str | Path,
    processes: int = 1,
    cwd: Path | None = None,
    script: Path | None = None,
    environment: dict[str, str] | None = None,
) -> "subprocess.Popen[str]":
    """Start ``nlp-mtl ARGUMENTS`` (or ``script ARGUMENTS``) in real processes of their own; several on the CPU."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    program = [str(script)] if script else ["-m", "nlp_mtl"]
    threads = "2" if processes == 1 else "1"
    given = {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    if processes > 1:
        given["CUDA_VISIBLE_DEVICES"] = ""
    given |= environment or {}
    return subprocess.Popen(
        [*launcher, *program, *map(str, arguments)],
        cwd=cwd, env={**os.environ, **given}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]", timeout: float = 120) -> tuple[int, str, str]:
    """Exit code, output, errors. A process that hangs is killed, and fails the test."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, output, errors


def children(process: "subprocess.Popen[str]") -> list[int]:
    """The processes that a process started."""
    return [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for_lines(run: Path, count: int) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.002)
    raise TimeoutError(f"{run} has not logged {count} lines")


@contextmanager
def full_disk(file_size: int = 0) -> Iterator[None]:
    """No file can grow past ``file_size`` bytes: what a full disk does, to this process alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

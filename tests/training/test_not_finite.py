"""A loss or a gradient that is no number stops the run, and is told with step, task and rows."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from tiny_runs import loss_lines
from trained import Run, run

from nlp_mtl import TrainingError


def test_a_learning_rate_that_explodes_stops_the_run_and_saves_nothing_after(tmp_path: Path) -> None:
    a_run = run(tmp_path, learning_rate=1e30, save_every=1, keep_last=99, log_every=100, warmup_fraction=0)
    with pytest.raises(TrainingError, match=r"at step 2\. .*learning_rate") as error:
        a_run.train()
    assert re.search(r"task `(ner|pos|sentiment)` is nan|gradient of .* is (nan|inf)", str(error.value))
    assert a_run.checkpoints() == {1}
    assert not (a_run.folder / "metrics.jsonl").exists()


def poison_at(a_run: Run, step: int, parameter: str, value: float) -> None:
    """One weight becomes ``value`` before a step, counted from 1 (each has one micro-batch)."""
    calls = itertools.count(1)

    def poison(*_: object) -> None:
        if next(calls) == step:
            with torch.no_grad():
                dict(a_run.model.named_parameters())[parameter].flatten()[0] = value

    a_run.model.register_forward_pre_hook(poison)


@pytest.mark.parametrize("step", [1, 5])
def test_a_loss_that_is_no_number_is_told_with_its_step_its_task_and_its_rows(tmp_path: Path, step: int) -> None:
    a_run = run(tmp_path, save_every=2, log_every=3, keep_last=99, eval_every=100, max_tokens=4096)
    poison_at(a_run, step, "heads.sentiment_head.classifier.weight", float("nan"))
    with pytest.raises(TrainingError) as error:
        a_run.train()
    message = str(error.value)
    assert f"the loss of task `sentiment` is nan at step {step}." in message
    plan = a_run.data.sampler[step - 1]
    rows = plan.rows[plan.datasets == 1].tolist()
    told = re.findall(r"texts.train\.jsonl.*?(\d+)", message)
    assert "words" not in message
    assert len(told) == min(len(rows), 8)
    assert all(place in message for place in a_run.data.where(plan, "sentiment")[:8])
    assert a_run.checkpoints() == ({2, 4} if step == 5 else set())
    log = a_run.folder / "metrics.jsonl"
    assert ([line["step"] for line in loss_lines(a_run.folder)] if log.exists() else []) == ([3] if step == 5 else [])


def test_an_infinite_gradient_of_a_finite_loss_is_told_with_its_own_step(tmp_path: Path) -> None:
    a_run = run(tmp_path, log_every=4, save_every=4, eval_every=100, max_tokens=4096)
    calls = itertools.count(1)
    weight = dict(a_run.model.named_parameters())["heads.pos_head.classifier.weight"]
    weight.register_hook(lambda gradient: gradient * (float("inf") if next(calls) == 2 else 1))
    with pytest.raises(TrainingError, match=r"gradient of `ner`, `pos`, `sentiment` is (inf|nan) at step 2\.") as error:
        a_run.train()
    assert "train.jsonl" in str(error.value)
    assert a_run.checkpoints() == set()


def test_the_rows_named_are_at_most_eight_and_the_rest_counted(tmp_path: Path) -> None:
    a_run = run(tmp_path, batch_size=32, log_every=1, max_tokens=4096)
    poison_at(a_run, 1, "heads.pos_head.classifier.bias", float("inf"))
    with pytest.raises(TrainingError, match="and 8 more") as error:
        a_run.train()
    assert str(error.value).count("train.jsonl") == 8

"""What runs say together: verdicts, transfer, conflicts, and what changes over time."""

from typing import Any

import numpy as np
import pytest

from nlp_mtl.analysis.bootstrap import RowAnswers
from nlp_mtl.analysis.comparison import (
    FinishedRun,
    compared,
    conflicts,
    learning_curves,
    mean_report,
    spread,
    task_report,
    transfer,
    weights_over_time,
)
from nlp_mtl.tasks import Task

MOOD = Task("mood", "text-classification", ("a", "b"), "accuracy")
TOPIC = Task("topic", "text-classification", ("a", "b"), "accuracy")


def run(model: str, seed: int, right: int, of: int = 200, lines: Any = (), tasks: Any = (MOOD,)) -> FinishedRun:
    """A run that answers the first ``right`` of ``of`` rows rightly."""
    said = ["a"] * right + ["b"] * (of - right)
    found = RowAnswers([("data", row) for row in range(of)], ["a"] * of, said)
    return FinishedRun(model, seed, {task.name: found for task in tasks}, lines)


def verdict(joint: list[int], alone: list[int]) -> str:
    runs = [[run("", seed, right) for seed, right in enumerate(counts)] for counts in (joint, alone)]
    return compared(MOOD, *runs)["verdict"]


def test_a_verdict_needs_an_interval_without_0_and_all_seeds() -> None:
    assert verdict([180, 182], [150, 152]) == "helped"
    assert verdict([150, 152], [180, 182]) == "hurt"
    assert verdict([150, 151], [150, 150]) == "no difference"  # the interval holds 0
    assert verdict([150, 150], [150, 150]) == "no difference"
    assert verdict([190, 149], [150, 150]) == "no difference"  # the seeds disagree


def test_the_sentence_tells_scores_interval_and_seeds() -> None:
    runs = {
        "joint": [run("joint", 0, 180), run("joint", 1, 184)],
        "only-mood": [run("only-mood", s, 150) for s in (0, 1)],
    }
    report = task_report(MOOD, "test", runs)
    assert report["joint"] == spread([0.9, 0.92])
    assert report["joint"]["sd"] == pytest.approx(np.std([0.9, 0.92], ddof=1))
    assert (report["rows"], report["split"], report["metric"]) == (200, "test", "accuracy")
    assert report["difference"] == pytest.approx(0.16)
    assert report["differences"] == pytest.approx([0.15, 0.17])
    low, high = report["interval"]
    assert 0 < low < 0.16 < high
    assert report["sentence"] == (
        "mood: joint training helped. accuracy 0.9100 jointly against 0.7500 alone, +0.1600 (95% interval over 200 "
        f"test rows {low:+.4f} to {high:+.4f}; by seed +0.1500 to +0.1700)."
    )


def test_the_mean_over_tasks_is_judged_as_a_task_is() -> None:
    both = (MOOD, TOPIC)
    runs = {
        "joint": [run("joint", seed, right, tasks=both) for seed, right in enumerate((180, 184))],
        "only-mood": [run("only-mood", seed, 150) for seed in (0, 1)],
        "only-topic": [run("only-topic", seed, 170, tasks=(TOPIC,)) for seed in (0, 1)],
    }
    report = mean_report(both, runs)
    assert report["joint"]["scores"] == pytest.approx([0.9, 0.92])
    assert report["alone"]["scores"] == pytest.approx([0.8, 0.8])
    assert report["differences"] == pytest.approx([0.1, 0.12])
    assert report["difference"] == pytest.approx(0.11)
    low, high = report["interval"]
    assert 0 < low < 0.11 < high
    assert report["sentence"].startswith("all 2 tasks: joint training helped. mean of the main metrics 0.9100 jointly")


def test_one_seed_and_seeds_that_disagree_are_told() -> None:
    runs = {"joint": [run("joint", 0, 180)], "only-mood": [run("only-mood", 0, 150)]}
    assert "one seed, so chance in training is not seen" in task_report(MOOD, "test", runs)["sentence"]
    runs = {
        "joint": [run("joint", 0, 195), run("joint", 1, 149)],
        "only-mood": [run("only-mood", s, 150) for s in (0, 1)],
    }
    sentence = task_report(MOOD, "test", runs)["sentence"]
    assert sentence.startswith("mood: no difference at this sample size.")
    assert sentence.endswith("The interval leaves out 0, but not all seeds say so: 1 above, 1 below.")


def test_transfer_is_what_another_task_gives() -> None:
    both = (MOOD, TOPIC)
    runs = {"joint": [run("joint", 0, 180, tasks=both)], "only-mood": [run("only-mood", 0, 150)],
            "only-topic": [run("only-topic", 0, 190, tasks=[TOPIC])]}  # fmt: skip
    found = transfer(
        both, runs, {("mood", "topic"): ("joint", "only-mood"), ("topic", "mood"): ("joint", "only-topic")}
    )
    assert found["mood"]["topic"]["difference"] == pytest.approx(0.15)
    assert found["topic"]["mood"]["difference"] == pytest.approx(-0.05)


def test_conflicts_are_means_over_runs_and_steps() -> None:
    lines = [
        {"step": 10, "gradient_cosines": {"a/b": 0.5}},
        {"step": 15},
        {"step": 20, "gradient_cosines": {"a/b": -0.1}},
    ]
    other = [{"step": 10, "gradient_cosines": {"a/b": -0.2, "a/c": 0.4}}]
    found = conflicts([run("joint", 3, 1, lines=lines), run("joint", 4, 1, lines=other)])
    assert found["mean"] == pytest.approx({"a/b": 0.2 / 3, "a/c": 0.4})
    assert found["negative"] == pytest.approx({"a/b": 2 / 3, "a/c": 0})
    assert found["over_time"]["3"] == [[10, {"a/b": 0.5}], [20, {"a/b": -0.1}]]
    assert conflicts([run("joint", 0, 1, lines=[{"step": 1, "gradient_cosines": {}}])]) == {}


def test_only_what_changes_is_shown_over_time() -> None:
    lines = [{"step": step, "weights": {"a": 1.0}, "gradient_weights": {"a": step / 10}} for step in (1, 2)]
    found = weights_over_time([run("joint", 0, 1, lines=lines)])
    assert found == {"gradient_weights": {"0": [[1, {"a": 0.1}], [2, {"a": 0.2}]]}}


def test_learning_curves_go_by_the_share_of_the_run() -> None:
    def lines(last: int) -> list[dict[str, Any]]:
        return [{"step": step, "scores": {"mood": {"accuracy": step / 100}}} for step in (last // 2, last)]

    runs = {"joint": [run("joint", 0, 1, lines=lines(20))], "only-mood": [run("only-mood", 0, 1, lines=lines(8))]}
    found = learning_curves([MOOD], runs)
    assert found == {"mood": {"joint": {"0": [[0.5, 0.1], [1.0, 0.2]]}, "only-mood": {"0": [[0.5, 0.04], [1.0, 0.08]]}}}

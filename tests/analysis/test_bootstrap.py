"""The paired bootstrap against closed forms, scipy, and scores computed anew for each draw."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp_mtl.analysis import bootstrap
from nlp_mtl.analysis.bootstrap import RowAnswers, compare_runs, compare_tasks, draws, row_sums
from nlp_mtl.metrics import set_scores
from nlp_mtl.task_types import score_task
from nlp_mtl.tasks import Task

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TASKS = [
    Task("topic", "text-classification", ("a", "b", "c"), "accuracy"),
    Task("topic", "text-classification", ("a", "b", "c"), "macro_f1"),
    Task("pos", "token-classification", ("a", "b", "c"), "accuracy"),
    Task("pos", "token-classification", ("a", "b", "c"), "macro_f1"),
    Task("ner", "token-classification", TAGS, "span_f1"),
    Task("tags", "multi-label-classification", ("a", "b", "c"), "micro_f1"),
    Task("tags", "multi-label-classification", ("a", "b", "c"), "macro_f1"),
    Task("tags", "multi-label-classification", ("a", "b", "c"), "exact_match"),
]
TOPIC = TASKS[0]
NAMES = [f"{task.name}-{task.metric}" for task in TASKS]


def answers(task: Task, num_rows: int, right: float, seed: int, gold_seed: int = 0) -> RowAnswers:
    """Random answers, a share of which is right; rows of words are cut in two here and there, some sets are empty."""
    random, of_gold = np.random.default_rng([1, seed]), np.random.default_rng([2, gold_seed])
    rows: list[Any] = []
    gold: list[Any] = []
    predicted: list[Any] = []
    for row in range(num_rows):
        if task.type == "multi-label-classification":
            holds = of_gold.random(len(task.labels)) < 0.3
            said_to = np.where(random.random(len(task.labels)) < right, holds, random.random(len(task.labels)) < 0.3)
            rows.append(("data", row))
            gold.append([task.labels[place] for place in np.flatnonzero(holds)])
            predicted.append([task.labels[place] for place in np.flatnonzero(said_to)])
            continue
        for _ in range(1 if task.type == "text-classification" else int(of_gold.integers(1, 3))):
            size = 1 if task.type == "text-classification" else int(of_gold.integers(1, 7))
            labels = [str(label) for label in of_gold.choice(task.labels, size)]
            said = [a if random.random() < right else str(random.choice(task.labels)) for a in labels]
            rows.append(("data", row))
            gold.append(labels if task.type == "token-classification" else labels[0])
            predicted.append(said if task.type == "token-classification" else said[0])
    return RowAnswers(rows, gold, predicted)


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), right=st.floats(0, 1), num_rows=st.integers(1, 12))
def test_sums_over_rows_give_the_score_of_the_whole(task: Task, seed: int, right: float, num_rows: int) -> None:
    found = answers(task, num_rows, right, seed, gold_seed=seed)
    sums = row_sums(task, found.gold, found.predicted)
    assert sums is not None
    expected = score_task(task, found.gold, found.predicted)[task.metric]
    assert sums.score(sums.of_rows.sum(axis=0)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("task", TASKS, ids=NAMES)
def test_draws_scored_by_sums_are_those_scored_anew(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [answers(task, 25, right, seed) for right, seed in ((0.8, 0), (0.7, 1), (0.6, 2))]
    monkeypatch.setattr(bootstrap, "RESAMPLES", 40)
    monkeypatch.setattr(bootstrap, "FEW_RESAMPLES", 40)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 250)  # ten draws at a time
    by_sums = compare_runs(task, runs[:2], runs[2:])
    monkeypatch.setattr(bootstrap, "row_sums", lambda *_: None)
    assert compare_runs(task, runs[:2], runs[2:]) == pytest.approx(by_sums, abs=1e-12)
    assert by_sums.low < by_sums.difference < by_sums.high


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1", "exact_match"])
def test_sets_without_any_label_score_as_the_metrics_say(metric: Any) -> None:
    task = Task("tags", "multi-label-classification", ("a", "b"), metric)
    gold, predicted = [[], [], ["a"]], [[], [], ["a", "b"]]
    sums = row_sums(task, gold, predicted)
    assert sums is not None
    times = np.array([[3, 0, 0], [0, 0, 3], [1, 1, 1], [2, 1, 0]])
    expected = [
        set_scores(
            *([answer for answer, n in zip(said, row, strict=True) for _ in range(n)] for said in (gold, predicted))
        )
        for row in times
    ]
    assert sums.score(times @ sums.of_rows) == pytest.approx([found[metric] for found in expected], abs=1e-12)
    assert expected[0][metric] == (1 if metric == "exact_match" else 0)


def test_equal_answers_differ_by_nothing_at_all() -> None:
    for task in TASKS:
        runs = [answers(task, 30, 0.7, seed) for seed in range(3)]
        assert compare_runs(task, runs, runs)[:3] == (0.0, 0.0, 0.0)


def test_the_other_way_round_the_interval_is_mirrored() -> None:
    one, other = ([answers(TOPIC, 80, right, seed) for seed in range(2)] for right in (0.8, 0.5))
    there, back = compare_runs(TOPIC, one, other), compare_runs(TOPIC, other, one)
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))


def test_the_difference_is_that_of_the_means_over_runs() -> None:
    one, other = (
        [answers(TOPIC, 50, 0.9, seed) for seed in range(3)],
        [answers(TOPIC, 50, 0.5, seed) for seed in (7, 8)],
    )
    accuracies = [[np.mean([a == b for a, b in zip(run.gold, run.predicted, strict=True)]) for run in runs]
                  for runs in (one, other)]  # fmt: skip
    assert compare_runs(TOPIC, one, other).difference == pytest.approx(np.mean(accuracies[0]) - np.mean(accuracies[1]))


def test_the_mean_over_tasks_of_the_same_rows_is_drawn_together() -> None:
    one, other = [answers(TOPIC, 200, 0.8, 0)], [answers(TOPIC, 200, 0.6, 1)]
    alone = compare_runs(TOPIC, one, other)
    assert compare_tasks([(TOPIC, one, other)] * 2) == pytest.approx(alone)
    # What one task gains on a row and the other loses there is nothing in any draw.
    assert compare_tasks([(TOPIC, one, other), (TOPIC, other, one)])[:3] == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_mean_over_tasks_of_rows_of_their_own_is_drawn_apart() -> None:
    one, other = answers(TOPIC, 400, 0.8, 0), answers(TOPIC, 400, 0.6, 1)
    elsewhere = [run._replace(rows=[("more", row) for _, row in run.rows]) for run in (one, other)]
    alone = compare_runs(TOPIC, [one], [other])
    found = compare_tasks([(TOPIC, [one], [other]), (TOPIC, elsewhere[:1], elsewhere[1:])])
    assert found.difference == pytest.approx(alone.difference)
    assert (found.high - found.low) * 2**0.5 == pytest.approx(alone.high - alone.low, rel=0.1)


def test_tasks_that_label_some_rows_in_common_are_compared_on_all_of_theirs() -> None:
    pos, ner = TASKS[2], TASKS[4]
    runs = {task: [answers(task, 60, right, seed) for right, seed in ((0.9, 0), (0.5, 1))] for task in (pos, ner)}
    kept = [[place for place, (_, row) in enumerate(run.rows) if row % 3 == 0] for run in runs[ner]]
    runs[ner] = [RowAnswers(*([column[place] for place in places] for column in run))
                 for run, places in zip(runs[ner], kept, strict=True)]  # fmt: skip
    third = TOPIC, [answers(TOPIC, 5, 0.9, 0)], [answers(TOPIC, 5, 0.5, 1)]  # with rows of the others as well
    pairs = [(task, runs[task][:1], runs[task][1:]) for task in (pos, ner)] + [third]
    found = compare_tasks(pairs)
    assert found.difference == pytest.approx(np.mean([compare_runs(*pair).difference for pair in pairs]))
    assert found.low < found.difference < found.high
    assert found == compare_tasks(pairs)


def test_the_interval_is_the_closed_form_of_a_mean_and_that_of_scipy() -> None:
    one, other = answers(TOPIC, 400, 0.8, 0), answers(TOPIC, 400, 0.6, 1)
    right = [np.array([a == b for a, b in zip(run.gold, run.predicted, strict=True)], float) for run in (one, other)]
    found = compare_runs(TOPIC, [one], [other])
    gains = right[0] - right[1]
    half = 1.96 * gains.std() / np.sqrt(len(gains))
    assert (found.low, found.high) == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.08 * half)
    stock = scipy.stats.bootstrap(
        right, lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True, vectorized=True, method="percentile",
        n_resamples=9999, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((stock.low, stock.high), abs=0.08 * half)


def test_intervals_hold_the_true_difference_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 400)
    truth = (0.8 - 0.65) * 2 / 3  # of wrong draws a third is right by chance
    held = 0
    for trial in range(200):
        one, other = (
            answers(TOPIC, 120, right, seed, trial) for right, seed in ((0.8, 2 * trial), (0.65, 2 * trial + 1))
        )
        found = compare_runs(TOPIC, [one], [other], seed=trial)
        held += found.low <= truth <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_entries_of_a_row_are_drawn_together() -> None:
    """Ten rows of a hundred equal words each are ten rows, not a thousand."""
    task, right = TASKS[2], [True] * 6 + [False] * 4
    rows = [("data", row) for row in range(10)]
    gold = [["a"] * 100] * 10
    one, other = RowAnswers(rows, gold, gold), RowAnswers(rows, gold, [["a" if ok else "b"] * 100 for ok in right])
    found = compare_runs(task, [one], [other])
    texts = Task("topic", "text-classification", ("a", "b"), "accuracy")
    flat = [RowAnswers(rows, ["a"] * 10, said) for said in (["a"] * 10, ["a" if ok else "b" for ok in right])]
    assert found == pytest.approx(compare_runs(texts, [flat[0]], [flat[1]]))
    assert found.high - found.low > 0.4


def test_runs_that_answer_for_other_rows_are_refused() -> None:
    one = answers(TOPIC, 10, 0.8, 0)
    for other in (answers(TOPIC, 9, 0.8, 0), answers(TOPIC, 10, 0.8, 0, gold_seed=1)):
        with pytest.raises(ValueError, match="different rows"):
            compare_runs(TOPIC, [one], [other])
    with pytest.raises(ValueError, match="no rows"):
        compare_runs(TOPIC, [RowAnswers([], [], [])], [RowAnswers([], [], [])])


def test_draws_are_seeded_whole_and_uniform() -> None:
    found = np.concatenate(list(draws(50, 2000, seed=1)))
    assert found.shape == (2000, 50)
    assert (found == np.concatenate(list(draws(50, 2000, seed=1)))).all()
    assert (found != np.concatenate(list(draws(50, 2000, seed=2)))).any()
    assert scipy.stats.chisquare(np.bincount(found.ravel())).pvalue > 0.001


@pytest.mark.parametrize(
    ("task", "gold", "good", "bad"),
    [
        (
            Task("tags", "multi-label-classification", ("a", "b"), "micro_f1"),
            [["a"], [], ["a", "b"], ["b"]],
            [["a"], [], ["a", "b"], ["b"]],
            [["b"], [], ["a"], ["a", "b"]],
        ),
        (
            Task("rating", "regression", ("value",), "pearson"),
            [1.0, 2.0, 3.0, 5.0],
            [1.0, 2.5, 3.0, 4.0],
            [4.0, 2.0, 3.0, 1.0],
        ),
    ],
    ids=["several labels", "numbers"],
)
def test_tasks_of_any_type_are_compared(task: Task, gold: list, good: list, bad: list) -> None:
    rows = [*range(4)]
    found = compare_runs(task, [RowAnswers(rows, gold, good)], [RowAnswers(rows, gold, bad)])
    better, worse = (score_task(task, gold, said)[task.metric] for said in (good, bad))
    assert found.difference == pytest.approx(better - worse)
    assert found.low <= found.difference <= found.high

"""Episodes: small tasks made of a run's tasks."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_steps import NER, POS, SENTIMENT, TASKS, encoded, framing
from tiny import text_row, token_row

from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.episode_steps import EpisodeSteps
from nlp_mtl.data.episodes import EpisodeShape, EpisodeSource, learnable, passes, relabelled
from nlp_mtl.data.items import read_items
from nlp_mtl.errors import DataError
from nlp_mtl.tasks import MISSING, LossShape, Task

SHAPE = EpisodeShape(ways=3, shots=3, query=2)
WORDS, TEXTS = 0, 1


@pytest.fixture(scope="module")
def splits() -> list[EncodedSplit]:
    draw = random.Random(3)
    words = encoded("words", [token_row(draw) for _ in range(60)], [NER, POS])
    texts = encoded("texts", [text_row(draw) for _ in range(40)], [SENTIMENT])
    return [words, texts]


def steps_of(splits: list[EncodedSplit], **changes: Any) -> EpisodeSteps:
    how: dict[str, Any] = {
        "shape": SHAPE, "rates": [0.5, 0.5], "num_steps": 6, "episodes": 4, "inner_steps": 2, "batch_size": 4,
        "seed": 0, "max_tokens": 64,
    }  # fmt: skip
    return EpisodeSteps(splits, TASKS, framing(), **{**how, **changes})


def labels_of(split: EncodedSplit, task: Task, rows: np.ndarray) -> list[list[str]]:
    return [[task.labels[one] for one in target] for target in split.batch(rows)[f"labels/{task.name}"]]


def test_an_episode_of_a_text_task_has_so_many_rows_of_each_of_its_labels(splits: list[EncodedSplit]) -> None:
    source = EpisodeSource(splits[TEXTS], SENTIMENT, SHAPE)
    for seed in range(5):
        plan = source(np.random.default_rng(seed))
        assert plan.task.labels == SENTIMENT.labels
        for rows, count in ((plan.support, 3), (plan.query, 2)):
            given = [one for (one,) in labels_of(splits[TEXTS], SENTIMENT, rows)]
            assert {label: given.count(label) for label in SENTIMENT.labels} == dict.fromkeys(SENTIMENT.labels, count)
        assert not {*plan.support} & {*plan.query}


def test_episodes_of_spans_know_some_kinds_and_call_all_else_o(splits: list[EncodedSplit]) -> None:
    source, seen = EpisodeSource(splits[WORDS], NER, SHAPE), set()
    for seed in range(12):
        plan = source(np.random.default_rng(seed))
        kinds = {label[2:] for label in plan.task.labels if label != "O"}
        seen.add(frozenset(kinds))
        assert plan.task.labels == tuple(one for one in NER.labels if one == "O" or one[2:] in kinds)
        items = relabelled(read_items(splits[WORDS], plan.support, TASKS, framing()), plan)
        before = labels_of(splits[WORDS], NER, plan.support)
        for item in items:
            assert [*item.labels] == ["ner"]
            expected = [one if one[2:] in kinds else "O" for one in before[item.place]]
            assert [plan.task.labels[one] for one in item.labels["ner"]] == expected
        assert all(any(one[2:] in kinds for one in row) for row in before)
    assert len(seen) > 3


def test_episodes_of_other_labels_of_words_leave_out_words_with_others(splits: list[EncodedSplit]) -> None:
    plan = EpisodeSource(splits[WORDS], POS, SHAPE._replace(ways=2))(np.random.default_rng(1))
    assert len(plan.task.labels) == 2
    items = relabelled(read_items(splits[WORDS], plan.support, TASKS, framing()), plan)
    for item, before in zip(items, labels_of(splits[WORDS], POS, plan.support), strict=False):
        found = item.labels["pos"]
        expected = [plan.task.labels.index(one) if one in plan.task.labels else MISSING for one in before]
        assert [*found] == expected


def test_an_episode_of_words_has_all_its_rows_unless_labels_share_too_many(splits: list[EncodedSplit]) -> None:
    shape, seen = SHAPE._replace(shots=8, query=7), set()
    for name in (NER, POS):
        source = EpisodeSource(splits[WORDS], name, shape)
        least = 1 if name is NER else 2
        for seed in range(40):
            plan = source(np.random.default_rng(seed))
            kinds = {one.split("-")[-1] for one in plan.task.labels} - {"O"}
            rows = [*plan.support, *plan.query]
            assert len({*rows}) == len(rows)
            assert least <= len(kinds) <= shape.ways
            if len(kinds) > least:
                assert (len(plan.support), len(plan.query)) == (8 * len(kinds), 7 * len(kinds))
            seen.add((name.name, len(kinds)))
    assert len(seen) > 3


def test_labels_that_always_come_together_make_an_episode_with_fewer_rows() -> None:
    rows = [{"tokens": ["a", "b"], "upos": [*POS.labels[:2]]} for _ in range(6)]
    split = encoded("words", rows, [POS])
    plan = EpisodeSource(split, POS, EpisodeShape(4, 3, 2))(np.random.default_rng(0))
    assert plan.task.labels == POS.labels[:2]
    assert sorted([*plan.support, *plan.query]) == [*range(6)]
    assert len(plan.query) == 2


def test_weights_of_labels_are_those_of_the_labels_that_an_episode_knows(splits: list[EncodedSplit]) -> None:
    weights = tuple(float(place) for place in range(len(NER.labels)))
    task = Task(NER.name, NER.type, NER.labels, NER.metric, loss=LossShape(weights, 2.0))
    plan = EpisodeSource(splits[WORDS], task, SHAPE)(np.random.default_rng(0))
    assert plan.task.loss.class_weights == tuple(float(NER.labels.index(one)) for one in plan.task.labels)
    assert plan.task.loss.focal_gamma == 2.0


def test_what_has_too_few_rows_is_told_with_what_to_lower(splits: list[EncodedSplit]) -> None:
    told = (
        r"0 of the labels of task `sentiment` have 50 rows or more, and an episode needs 2: lower meta\.shots or meta"
    )
    with pytest.raises(DataError, match=told):
        EpisodeSource(splits[TEXTS], SENTIMENT, EpisodeShape(2, 40, 10))


@settings(max_examples=25)
@given(rows=st.integers(1, 20), batch_size=st.integers(1, 25), count=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_inside_a_pass_over_an_episode_each_row_comes_once(rows: int, batch_size: int, count: int, seed: int) -> None:
    batches = passes(np.arange(rows), batch_size, count, np.random.default_rng(seed))
    assert [len(batch) for batch in batches] == [min(batch_size, rows)] * count
    order = np.concatenate(batches)
    for first in range(0, len(order), rows):
        part = order[first : first + rows]
        assert len({*part}) == len(part)


def test_a_step_is_a_function_of_the_seed_and_its_number(splits: list[EncodedSplit]) -> None:
    one, again, other = steps_of(splits), steps_of(splits), steps_of(splits, seed=1)
    for step in (3, 0, 5):
        found = [
            [(n, plan.task.labels, *plan.support, *plan.query) for n, _, plan in a.plans(step)]
            for a in (one, again, other)
        ]
        assert found[0] == found[1] != found[2]
        left, right = (steps[step] for steps in (one, again))
        assert left.counts == right.counts
        for first, second in zip(left.episodes, right.episodes, strict=True):
            for (batches, count), (others, other_count) in zip(first.inner, second.inner, strict=True):
                assert count == other_count
                assert all(
                    a.inputs["input_ids"].equal(b.inputs["input_ids"]) for a, b in zip(batches, others, strict=True)
                )


def test_processes_share_the_episodes_of_a_step(splits: list[EncodedSplit]) -> None:
    whole = steps_of(splits)[2]
    parts = [steps_of(splits, process=process, num_processes=3)[2] for process in range(3)]
    assert [part.counts for part in parts] == [whole.counts] * 3
    assert sum(whole.counts.values()) == 4
    seeds = [episode.seed for part in parts for episode in part.episodes]
    assert sorted(seeds) == sorted(episode.seed for episode in whole.episodes)


def test_datasets_get_episodes_by_their_rates_and_tasks_by_their_loss_weights(splits: list[EncodedSplit]) -> None:
    steps = steps_of(splits, rates=[0.75, 0.25], num_steps=200)
    names = [plan.task.name for step in range(200) for _, _, plan in steps.plans(step)]
    assert names.count("sentiment") == 200
    weights = learnable(TASKS, splits[WORDS])  # ner 1, pos 0.5
    assert weights == {"ner": pytest.approx(2 / 3), "pos": pytest.approx(1 / 3)}
    assert names.count("ner") / 600 == pytest.approx(2 / 3, abs=0.06)


def test_places_for_messages_are_those_of_the_rows_of_a_task_s_episodes(splits: list[EncodedSplit]) -> None:
    steps = steps_of(splits)
    plans = [plan for _, _, plan in steps.plans(0) if plan.task.name == "sentiment"]
    rows = [int(row) for plan in plans for row in (*plan.support, *plan.query)]
    assert steps.where(steps.sampler[0], "sentiment") == [splits[TEXTS].where(row) for row in rows]


def test_without_a_query_nothing_is_tried(splits: list[EncodedSplit]) -> None:
    (episode, *_) = steps_of(splits, shape=SHAPE._replace(query=0))[0].episodes
    assert episode.query == ([], 0)
    assert len(episode.inner) == 2

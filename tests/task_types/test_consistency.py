"""Labels of two tasks chosen together, against all pairs of sequences there are."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlp_mtl.task_types import kind_of
from nlp_mtl.task_types.chains import iob2_transitions
from nlp_mtl.task_types.consistency import Consistency, association, bound, decide_together, only_allowed
from nlp_mtl.tasks import Decoder, Task


def tags(decoder: Decoder, name: str = "ner") -> Task:
    return Task(name, "token-classification", ("O", "B-X", "I-X"), "span_f1", decoder=decoder)


POS = Task("pos", "token-classification", ("NOUN", "VERB"), "accuracy")
MOOD = Task("mood", "text-classification", ("bad", "good"), "accuracy")
TOPIC = Task("topic", "text-classification", ("food", "sport", "art"), "accuracy")
DECODERS: list[tuple[Decoder, Decoder | None]] = [
    ("softmax", None), ("iob2", None), ("crf", None), ("softmax", "iob2"), ("iob2", "iob2"), ("crf", "iob2"),
]  # fmt: skip


def chain_score(task: Task, sequence: Any, transitions: np.ndarray | None) -> float:
    """What its chain adds to a sequence, a term at a time."""
    if task.decoder == "softmax":
        return 0.0
    rule = iob2_transitions(task.labels) + (0 if transitions is None else transitions)
    inner = sum(rule[a, b] for a, b in itertools.pairwise(sequence))
    return float(rule[len(task.labels), sequence[0]] + inner + rule[len(task.labels) + 1, sequence[-1]])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@settings(deadline=None, max_examples=25)
@pytest.mark.parametrize(("first", "second"), DECODERS)
@given(lengths=st.lists(st.integers(0, 3), max_size=3), seed=st.integers(0, 10_000), forbids=st.booleans())
def test_both_sequences_are_the_best_of_all_pairs(
    first: Decoder, second: Decoder | None, lengths: list[int], seed: int, forbids: bool
) -> None:
    draw = np.random.default_rng(seed)
    tasks = tags(first), POS if second is None else tags(second, "chunks")
    sizes = [len(task.labels) for task in tasks]
    table = draw.normal(0, 2, sizes)
    if forbids:
        table[1, 0] = table[2, 0] = -np.inf
    rows = [[draw.normal(0, 2, (length, size)) for length in lengths] for size in sizes]
    learned = [
        draw.normal(0, 2, (size + 2, size)) if t.decoder == "crf" else None
        for t, size in zip(tasks, sizes, strict=True)
    ]
    found = decide_together(Consistency(*tasks, table), rows, learned)
    for row, length in enumerate(lengths):
        if not length:
            assert all(len(decisions[row].chosen) == 0 for decisions in found)
            continue
        joint = bound(*(log_softmax(of_task[row]) for of_task in rows), table)
        every = [[*itertools.product(range(size), repeat=length)] for size in sizes]
        scores = np.array(
            [
                [
                    sum(joint[w, a, b] for w, (a, b) in enumerate(zip(one, two, strict=True)))
                    + chain_score(tasks[0], one, learned[0])
                    + chain_score(tasks[1], two, learned[1])
                    for two in every[1]
                ]
                for one in every[0]
            ]
        )
        best = np.unravel_index(scores.argmax(), scores.shape)
        assert [tuple(decisions[row].chosen) for decisions in found] == [every[0][best[0]], every[1][best[1]]]
        if first == "crf" and second is None:  # with one chain, scores are those over all its sequences
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            for place, decisions in enumerate(found):
                over = shares.sum(1 - place)
                expected = [
                    [sum(over[n] for n, one in enumerate(every[place]) if one[w] == label) for label in range(size)]
                    for w in range(length)
                    for size in [sizes[place]]
                ]
                np.testing.assert_allclose(decisions[row].scores, expected, atol=1e-5)
        for decisions in found:
            np.testing.assert_allclose(decisions[row].scores.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("decoder", ["softmax", "iob2", "crf"])
def test_a_table_of_zeros_changes_nothing(decoder: Decoder) -> None:
    draw = np.random.default_rng(0)
    task = tags(decoder)
    rows = [[draw.normal(0, 2, (length, size)) for length in (5, 0, 7, 1)] for size in (3, 2)]
    learned = draw.normal(0, 1, (5, 3)) if decoder == "crf" else None
    together = decide_together(Consistency(task, POS, np.zeros((3, 2))), rows, [learned, None])
    alone = kind_of(task).decide(task, rows[0], learned), kind_of(POS).decide(POS, rows[1], None)
    for one, other in zip(together, alone, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a.chosen, b.chosen)
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)


def test_texts_have_one_item_each() -> None:
    draw = np.random.default_rng(1)
    rows = [[draw.normal(0, 1, size) for _ in range(4)] for size in (2, 3)]
    table = draw.normal(0, 3, (2, 3))
    moods, topics = decide_together(Consistency(MOOD, TOPIC, table), rows)
    for row in range(4):
        own = [log_softmax(of_task[row]) for of_task in rows]
        (joint,) = bound(own[0][None], own[1][None], table)
        best = np.unravel_index(joint.argmax(), joint.shape)
        assert (moods[row].chosen.tolist(), topics[row].chosen.tolist()) == ([best[0]], [best[1]])
        np.testing.assert_allclose(moods[row].scores, np.exp(own[0]), atol=1e-4)  # each task keeps its own
        np.testing.assert_allclose(topics[row].scores, np.exp(own[1]), atol=1e-4)


def test_labels_are_bound_by_the_odds_of_the_table_and_keep_their_own_probabilities() -> None:
    draw = np.random.default_rng(3)
    own = [log_softmax(draw.normal(0, 3, (50, size))) for size in (3, 2)]
    table = draw.normal(0, 2, (3, 2))
    joint = bound(*own, table)
    for place, one in enumerate(own):
        np.testing.assert_allclose(np.exp(joint).sum(2 - place), np.exp(one), atol=1e-3)
    odds = joint[:, 1:, 1] - joint[:, 1:, 0] - joint[:, :1, 1] + joint[:, :1, 0]
    expected = table[1:, 1] - table[1:, 0] - table[0, 1] + table[0, 0]
    np.testing.assert_allclose(odds, np.broadcast_to(expected, odds.shape), atol=1e-6)


def test_what_one_task_is_sure_of_does_not_talk_the_other_over_but_two_that_waver_agree() -> None:
    task, table = tags("softmax"), association(np.array([[90, 10], [0, 9], [0, 1]]))  # an X is mostly a VERB
    spans = [np.array([[0.2, 0, -9]])]
    for words, expected in (([np.array([[-9.0, 0]])], [[0], [1]]), ([np.array([[0.0, 0.3]])], [[1], [1]])):
        found = decide_together(Consistency(task, POS, table), [spans, words])
        assert [decisions[0].chosen.tolist() for decisions in found] == expected


def test_a_rule_is_kept_in_every_answer() -> None:
    draw = np.random.default_rng(2)
    task = tags("iob2")
    rows = [[draw.normal(0, 2, (9, size)) for _ in range(30)] for size in (3, 2)]
    table = only_allowed(task, POS, {"X": ["NOUN"]})
    spans, words = decide_together(Consistency(task, POS, table), rows)
    inside = np.concatenate([one.chosen for one in spans]) > 0
    assert inside.any()
    assert not np.concatenate([one.chosen for one in words])[inside].any()
    np.testing.assert_array_equal(only_allowed(POS, task, {"VERB": ["O"]})[1], [0, -np.inf, -np.inf])


def test_a_rule_for_a_label_hits_no_other_that_ends_like_it() -> None:
    words = Task("pos", "token-classification", ("X", "AUX", "B-X"), "accuracy")  # no IOB tags: there is no O
    np.testing.assert_array_equal(np.isneginf(only_allowed(words, POS, {"X": ["NOUN"]})[:, 1]), [True, False, False])
    spans = Task("ner", "token-classification", ("O", "B-X", "I-X", "B-AUX", "I-AUX", "B-Y-X"), "span_f1")
    for name, hit in (("X", [1, 2]), ("B-X", [1]), ("O", [0]), ("Y-X", [5])):
        assert np.flatnonzero(only_allowed(spans, POS, {name: ["NOUN"]})[:, 1]).tolist() == hit


def test_association_is_pointwise_mutual_information_and_says_nothing_of_what_it_has_not_seen() -> None:
    counts = np.array([[30, 10, 0], [5, 55, 0]])
    shares = counts / 100
    expected = np.log(shares[:, :2] / np.outer(shares.sum(1), shares.sum(0)[:2]))
    found = association(counts, prior=0)
    np.testing.assert_allclose(found[:, :2], expected)
    assert not found[:, 2].any()
    never = np.array([[50, 0], [0, 50]])
    assert np.isfinite(association(never)).all()
    assert association(never)[0, 1] < -2 < 0 < association(never)[0, 0]
    assert not association(np.zeros((2, 2))).any()
    independent = np.outer([2, 3], [4, 1]) * 10
    np.testing.assert_allclose(association(independent), 0, atol=1e-12)

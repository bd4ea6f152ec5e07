"""Two tasks whose labels are chosen together: pairs of labels that go well with each other count more, others less.

The score of a pair of labels of an item (a word, or a text) is its log-probability: of all distributions of pairs, that
in which each task's labels keep the probabilities that the task gives them, and which a table binds together. Where
labels of words also follow each other (IOB2, a learned chain), the best two sequences are found together: exact, by
dynamic programming over pairs of labels.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nlp_mtl.task_types.chains import breaks, iob2_transitions, marginals
from nlp_mtl.task_types.kind import Decision
from nlp_mtl.tasks import Task

_ROUNDS = 20
"""Of fitting; sums are then right to several digits."""


class Consistency(NamedTuple):
    """Two tasks, and how their labels go together."""

    first: Task
    second: Task
    table: np.ndarray
    """[labels of the first, labels of the second] How much better two labels go together than by chance, in nats; minus
    infinity: never together."""


def association(counts: np.ndarray, prior: float | None = None) -> np.ndarray:
    """How much more often two labels come together than by chance: their pointwise mutual information, in nats.

    (Church and Hanks 1990, "Word association norms, mutual information, and lexicography".)

    Args:
        counts: [labels, labels] how often an item has each two.
        prior: so many more items are thought to be labelled by chance: what was never seen stays possible. Default: one
            for each two labels.

    Returns:
        [labels, labels]; 0 where one of both labels never occurs, as nothing is known of it.
    """
    total = counts.sum()
    prior = counts.size if prior is None else prior
    chance = np.outer(counts.sum(1), counts.sum(0)) / max(total, 1) ** 2
    shares = (counts + prior * chance) / (total + prior)
    known = chance > 0
    return np.where(known, np.log(np.where(known, shares, 1) / np.where(known, chance, 1)), 0.0)


def only_allowed(first: Task, second: Task, allowed: Mapping[str, Sequence[str]]) -> np.ndarray:
    """[labels, labels] 0, and minus infinity where a label of the first does not allow one of the second.

    Args:
        allowed: ``{label of the first, or kind of span: labels of the second that go with it}``; others go with all.
    """
    table = np.zeros((len(first.labels), len(second.labels)))
    for name, others in allowed.items():
        named = [name, f"B-{name}", f"I-{name}"] if first.is_spans else [name]
        rows = [place for place, label in enumerate(first.labels) if label in named]
        table[np.ix_(rows, [place for place, label in enumerate(second.labels) if label not in others])] = -np.inf
    return table


def bound(first: np.ndarray, second: np.ndarray, table: np.ndarray) -> np.ndarray:
    """[words, labels, labels] Log-probabilities of pairs of labels, which sum to each task's own probabilities.

    The table is not just added: both tasks read the same text, so what speaks for one label has mostly been heard by
    the other task, and would count twice. (Iterative proportional fitting; Deming and Stephan 1940, "On a least squares
    adjustment of a sampled frequency table". It keeps the odds ratios, which are the table's.)

    Args:
        first, second: log-probabilities of the tasks' labels, [words, labels] each.
        table: what binds them; pairs with minus infinity are left out at the end, so that others' shares do not move.
    """
    is_allowed = np.isfinite(table)
    joint = np.asarray(first[:, :, None] + second[:, None, :])
    if table[is_allowed].any():
        own = [np.exp(one) for one in (first, second)]
        shares = np.maximum(np.exp(joint + np.where(is_allowed, table, 0)), 1e-300)
        for _ in range(_ROUNDS):
            shares *= (own[0] / shares.sum(2))[:, :, None]
            shares *= (own[1] / shares.sum(1))[:, None, :]
        joint = np.log(np.maximum(shares, 1e-300))
    return np.where(is_allowed, joint, -np.inf)


def decide_together(
    pair: Consistency,
    logits: Sequence[Sequence[np.ndarray]],
    transitions: Sequence[np.ndarray | None] = (None, None),
) -> tuple[list[Decision], list[Decision]]:
    """The best labels of both tasks for each row, and how probable each label is given the other task's.

    Args:
        logits: for both tasks, of each row [words, labels], or [labels] for texts.
        transitions: learned ones of each task, where it has a chain.
    """
    if not len(logits[0]):
        return [], []
    of_words = logits[0][0].ndim == 2
    if not of_words:
        logits = [[row[None] for row in rows] for rows in logits]
    chains = [_chain(task, learned) for task, learned in zip(pair[:2], transitions, strict=True)]
    is_learned = any(learned is not None for learned in transitions)
    ends = np.cumsum([len(row) for row in logits[0]], dtype=np.int64)
    starts = np.concatenate([[0], ends])[: len(ends)]
    flat = [_log_softmax(np.concatenate(rows)) for rows in logits]
    joint = bound(flat[0], flat[1], pair.table)
    best = joint.reshape(len(joint), joint.shape[1] * joint.shape[2]).argmax(-1)
    chosen = [*np.divmod(best, joint.shape[2])]
    scores = _both_marginals(joint)
    is_first = np.isin(np.arange(len(joint)), starts)
    broken = np.zeros(len(joint), dtype=bool)
    for labels, chain in zip(chosen, chains, strict=True):
        if chain is not None:
            broken |= breaks(labels, is_first, chain)
    rows = np.searchsorted(ends, np.flatnonzero(broken | is_learned), side="right")
    for row in np.unique(rows):
        part = slice(starts[row], ends[row])
        for labels, found in zip(chosen, _best_sequences(joint[part], chains), strict=True):
            labels[part] = found
        if is_learned:
            for of_task, found in zip(scores, _chained_marginals(joint[part], transitions, chains), strict=True):
                of_task[part] = found
    decisions = []
    for labels, of_task in zip(chosen, scores, strict=True):
        parts = [(labels[start:end], of_task[start:end]) for start, end in zip(starts, ends, strict=True)]
        decisions.append([Decision(one, two if of_words else two[0]) for one, two in parts])
    return decisions[0], decisions[1]


def _chain(task: Task, learned: np.ndarray | None) -> np.ndarray | None:
    """Which label may follow which, and how well; None: all, alike."""
    if learned is not None:
        return np.asarray(learned + iob2_transitions(task.labels))
    return iob2_transitions(task.labels) if task.decoder == "iob2" else None


def _best_sequences(joint: np.ndarray, chains: Sequence[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
    """The two sequences that score best together (Viterbi), [words] each; ``joint``: [words, labels, labels]."""
    count, *sizes = joint.shape
    one, two = (
        np.zeros((size + 2, size)) if chain is None else chain for size, chain in zip(sizes, chains, strict=True)
    )
    best = joint[0] + one[-2][:, None] + two[-2]
    came_from = []
    for word in range(1, count):
        # What came before is chosen in two steps: the first task's label, then the second's.
        steps = best[:, None, :] + one[:-2, :, None]  # [before, now, second's before]
        before_first = steps.argmax(0)
        half = np.take_along_axis(steps, before_first[None], 0)[0]
        steps = half[:, :, None] + two[:-2]  # [now, second's before, second's now]
        before_second = steps.argmax(1)
        best = np.take_along_axis(steps, before_second[:, None], 1)[:, 0] + joint[word]
        came_from.append((before_first, before_second))
    last = (best + one[-1][:, None] + two[-1]).argmax()
    labels = [tuple(int(place) for place in np.unravel_index(last, best.shape))]
    for before_first, before_second in reversed(came_from):
        first, second = labels[-1]
        earlier = int(before_second[first, second])
        labels.append((int(before_first[first, earlier]), earlier))
    found = np.array(labels[::-1], dtype=np.int64)
    return found[:, 0], found[:, 1]


def _both_marginals(joint: np.ndarray) -> list[np.ndarray]:
    """Of scores of pairs of labels, the probabilities of each task's own: [words, labels] each."""
    if not len(joint):
        return [np.zeros(joint.shape[:2]), np.zeros((0, joint.shape[2]))]
    powers = np.exp(joint - joint.max(axis=(1, 2), keepdims=True))
    shares = powers / powers.sum(axis=(1, 2), keepdims=True)
    return [shares.sum(2), shares.sum(1)]


def _chained_marginals(
    joint: np.ndarray, learned: Sequence[np.ndarray | None], chains: Sequence[np.ndarray | None]
) -> list[np.ndarray]:
    """The same, where one task's labels are those of a learned chain: of all sequences of that task."""
    place = 0 if learned[0] is not None else 1
    swapped = joint if place == 0 else joint.transpose(0, 2, 1)
    largest = swapped.max(axis=2, keepdims=True)
    largest = np.where(np.isfinite(largest), largest, 0)
    powers = np.exp(swapped - largest)
    sums = powers.sum(2)
    with np.errstate(divide="ignore"):  # a label that goes with no other has no probability
        emissions = np.log(sums) + largest[..., 0]
    chain = chains[place]
    assert chain is not None
    own = marginals(emissions, chain)
    given = powers / np.where(sums > 0, sums, 1)[..., None]  # [words, labels, other's labels]
    other = (own[..., None] * given).sum(1)
    return [own, other] if place == 0 else [other, own]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))

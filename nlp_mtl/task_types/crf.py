"""Labels of words chosen together: a linear-chain conditional random field (Lafferty et al. 2001, ICML).

The score of a sequence of labels is the sum of the head's logits, one a word, and of a learned score for each two
labels that follow each other, for the first label and for the last. The chain goes over words, by their
first sub-words. It is broken where words have no label, as spans are, and where a text was cut into windows; answers
are always those of a whole text.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nlp_mtl.task_types.chains import best_sequence, iob2_transitions, marginals
from nlp_mtl.task_types.kind import Decision
from nlp_mtl.task_types.token_classification import TOKEN_CLASSIFICATION
from nlp_mtl.tasks import MISSING, Task

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Chains(NamedTuple):
    """The labelled words of r rows as chains."""

    steps: "Tensor"
    """[r, longest] The place of each among all tokens of the logits, rows flattened; -1 behind a row's last."""
    links: "Tensor"
    """[r, longest] 1 where a step follows the one before directly, and for a first step where it begins its text; else
    0."""
    ends: "Tensor"
    """[r] 1 where the last step ends its text; else 0."""


def links_of(ids: np.ndarray, first_word: int, num_words: int) -> tuple[np.ndarray, float]:
    """How the labelled words of a stretch of a text hang together.

    Args:
        ids: [words] the labels of the stretch, MISSING where there is none.
        first_word: where in its text the stretch begins.
        num_words: words of the text.

    Returns:
        ``links`` and ``ends`` of a row of :class:`Chains`.
    """
    places = first_word + np.flatnonzero(ids != MISSING)
    if not len(places):
        return np.zeros(0, dtype=np.float32), 0.0
    return (np.diff(places, prepend=-1) == 1).astype(np.float32), float(places[-1] == num_words - 1)


def summed_loss(logits: "Tensor", transitions: "Tensor", targets: "Tensor", chains: Chains) -> "Tensor":
    """The negative log-likelihood of all chains, in float32; differentiable, 0 of none.

    Args:
        logits: [r, tokens, labels], or [1, tokens, labels].
        transitions: [labels + 2, labels] scores of the second label behind the first; then of the first label of a
            text, then of the last.
        targets: [r, tokens] or [1, tokens] label ids.
        chains: which of the tokens are steps.
    """
    import torch

    logits, transitions = logits.flatten(0, 1).float(), transitions.float()
    between, begin, end = transitions[:-2], transitions[-2], transitions[-1]
    there = chains.steps >= 0  # [r, longest]
    places = chains.steps.clamp(min=0)
    if not len(places):
        return logits.sum() + transitions.sum() * 0
    emissions = logits[places]  # [r, longest, labels]
    labels = torch.where(there, targets.flatten()[places], 0)
    links = chains.links
    # The score of the given sequence.
    scores = torch.where(there, emissions.gather(-1, labels[..., None]).squeeze(-1), 0.0).sum(-1)
    follows = between[labels[:, :-1], labels[:, 1:]] * links[:, 1:]
    last = labels.gather(1, there.sum(-1, keepdim=True) - 1).squeeze(-1)
    scores = scores + torch.where(there[:, 1:], follows, 0.0).sum(-1) + links[:, 0] * begin[labels[:, 0]]
    scores = scores + chains.ends * end[last]
    # That of all sequences, word by word: [r, labels] those that end in each label.
    forward = emissions[:, 0] + links[:, :1] * begin
    for step in range(1, emissions.shape[1]):
        grown = torch.logsumexp(forward[:, :, None] + links[:, step, None, None] * between, dim=1) + emissions[:, step]
        forward = torch.where(there[:, step, None], grown, forward)
    return (torch.logsumexp(forward + chains.ends[:, None] * end, dim=-1) - scores).sum()


def drawn(
    logits: "Tensor", transitions: "Tensor", targets: "Tensor", chains: Chains, generator: "Generator"
) -> "Tensor":
    """Other targets, drawn as likely as whole sequences are: forward sums, then labels from the last word to the first.

    Arguments as in :func:`summed_loss`.
    """
    emissions, transitions = logits.flatten(0, 1).double(), transitions.double()
    between, begin, end = transitions[:-2], transitions[-2], transitions[-1]
    found = targets.clone().flatten()
    for places, links, ends in zip(chains.steps, chains.links.double(), chains.ends, strict=True):
        steps = places[places >= 0]
        forward = [emissions[steps[0]] + links[0] * begin] if len(steps) else []
        for number, step in enumerate(steps[1:], start=1):
            forward.append((forward[-1][:, None] + links[number] * between).logsumexp(0) + emissions[step])
        behind = ends * end  # what stands behind a word, for each of its labels
        for number in reversed(range(len(steps))):
            label = (forward[number] + behind).softmax(0).multinomial(1, generator=generator)[0]
            found[steps[number]] = label
            behind = links[number] * between[:, label]
    return found.reshape(targets.shape)


def decide(task: Task, logits: Sequence[np.ndarray], transitions: np.ndarray | None) -> list[Decision]:
    """The best sequence of each text, and the probability of each label over all its sequences.

    Args:
        transitions: as in :func:`summed_loss`. What IOB2 forbids is left out, where labels are its tags.
    """
    if not logits:  # nor has a process without rows any transitions
        return []
    assert transitions is not None, "a chain comes with its transitions"
    allowed = transitions + iob2_transitions(task.labels)
    return [Decision(best_sequence(one, allowed), marginals(one, allowed)) for one in logits]


CRF_TOKEN_CLASSIFICATION = replace(TOKEN_CLASSIFICATION, decide=decide)
"""Its loss needs more than logits: :func:`summed_loss`. An item is a word: guessing loses the same with and without."""

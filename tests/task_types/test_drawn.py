"""Targets that are drawn as likely as a model finds them: frequencies against probabilities."""

import itertools

import numpy as np
import pytest
import torch

from nlp_mtl.task_types import KINDS, crf
from nlp_mtl.task_types.crf import Chains
from nlp_mtl.tasks import MISSING

DRAWS = 4000


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_labels_of_texts_have_their_probabilities() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]]).repeat(DRAWS, 1)
    found = KINDS["text-classification"].drawn(logits, torch.zeros(DRAWS, dtype=torch.long), generator())
    shares = torch.bincount(found, minlength=3) / DRAWS
    torch.testing.assert_close(shares, logits[0].softmax(0), atol=0.02, rtol=0)


def test_words_without_a_label_get_none() -> None:
    logits = torch.tensor([0.0, 1.0]).repeat(1, DRAWS, 1)
    targets = torch.zeros(1, DRAWS, dtype=torch.long)
    targets[0, ::2] = MISSING
    found = KINDS["token-classification"].drawn(logits, targets, generator())
    assert (found[0, ::2] == MISSING).all()
    assert found[0, 1::2].float().mean() == pytest.approx(torch.sigmoid(torch.tensor(1.0)).item(), abs=0.03)
    nothing = torch.full((1, 3), MISSING)
    assert torch.equal(KINDS["token-classification"].drawn(torch.zeros(1, 3, 2), nothing, generator()), nothing)


def test_each_of_several_labels_holds_for_itself() -> None:
    logits = torch.tensor([[1.5, -2.0]]).repeat(DRAWS, 1)
    found = KINDS["multi-label-classification"].drawn(logits, torch.zeros(DRAWS, 2), generator())
    assert {*found.unique().tolist()} == {0.0, 1.0}
    torch.testing.assert_close(found.mean(0), logits[0].sigmoid(), atol=0.02, rtol=0)
    assert abs(np.corrcoef(found.numpy().T)[0, 1]) < 0.05


def test_numbers_lie_around_the_answer_with_the_variance_a_half() -> None:
    found = KINDS["regression"].drawn(torch.full((DRAWS, 1), 3.0), torch.zeros(DRAWS), generator())
    assert found.mean().item() == pytest.approx(3, abs=0.05)
    assert found.var().item() == pytest.approx(0.5, abs=0.05)


def test_sequences_of_a_chain_have_the_probabilities_that_its_loss_gives_them() -> None:
    """Three words, the last of them behind a break: their chain starts anew there."""
    torch.manual_seed(0)
    logits, transitions = torch.randn(1, 4, 2), torch.randn(4, 2)
    chains = Chains(torch.tensor([[0, 1, 3]]), torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([1.0]))
    targets = torch.tensor([[0, 0, MISSING, 0]])
    draw = generator()
    found = [crf.drawn(logits, transitions, targets, chains, draw) for _ in range(DRAWS)]
    assert all(one[0, 2] == MISSING for one in found)
    counts: dict[tuple[int, ...], int] = {}
    for one in found:
        key = tuple(one[0, [0, 1, 3]].tolist())
        counts[key] = counts.get(key, 0) + 1
    for labels in itertools.product(range(2), repeat=3):
        given = targets.clone()
        given[0, [0, 1, 3]] = torch.tensor(labels)
        probability = torch.exp(-crf.summed_loss(logits, transitions, given, chains)).item()
        assert counts.get(labels, 0) / DRAWS == pytest.approx(probability, abs=0.02)


def test_of_nothing_nothing_is_drawn() -> None:
    assert (
        len(KINDS["text-classification"].drawn(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), generator())) == 0
    )
    chains = Chains(torch.full((1, 1), -1), torch.zeros(1, 1), torch.zeros(1))
    targets = torch.full((1, 2), MISSING)
    assert torch.equal(crf.drawn(torch.zeros(1, 2, 2), torch.zeros(4, 2), targets, chains, generator()), targets)

"""Two threads that share a step compute what one does, and the same bits each time."""

import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from mixed_steps import MAX_LENGTH, TASKS, splits, steps
from torch import Tensor, nn
from trained import run, same

from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.steps import StepBatches
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.models.precision import autocast
from nlp_mtl.training import trainer
from nlp_mtl.training.balancing import summed_loss, weighted_sum
from nlp_mtl.training.cpu import zero_gradients
from nlp_mtl.training.threads import SharedSteps, draws_only_quick_dropout, num_threads, twin

pytestmark = pytest.mark.usefixtures("cores")
LOSS_WEIGHTS = torch.tensor([task.loss_weight for task in TASKS])


@pytest.fixture(scope="module")
def data() -> list[EncodedSplit]:
    return splits()


def in_training(family: str = "bert", dropout: float = 0.0) -> MultiTaskModel:
    return from_encoder(tiny.encoder(family, dropout=dropout), TASKS, max_length=MAX_LENGTH, window_overlap=4).train()


def learn(model: nn.Module, batches: StepBatches, mixed_precision: str = "no") -> Tensor:
    losses = torch.zeros(len(TASKS))
    for batch in batches.micro_batches:
        with autocast(torch.device("cpu"), mixed_precision):
            logits = model(**batch.inputs, rows={task: rows.rows for task, rows in batch.tasks.items()})
        sums = {task: summed_loss(logits[task], rows) for task, rows in batch.tasks.items()}
        loss, shares = weighted_sum(sums, batches.counts, LOSS_WEIGHTS)
        loss.backward()
        losses += shares
    return losses


def gradients(model: MultiTaskModel) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def clear(model: MultiTaskModel) -> None:
    zero_gradients(torch.optim.SGD(model.parameters()), model.get_input_embeddings())


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_two_threads_give_the_gradients_and_losses_of_one(family: str, layout: str, data: list[EncodedSplit]) -> None:
    model = in_training(family)
    if layout == "packed" and not model.packs("auto"):
        pytest.skip("the family cannot pack")
    batches = steps(data, max_tokens=40, num_threads=2, packed=layout == "packed")[0]
    assert len(batches.micro_batches) > 4
    clear(model)
    expected_losses = learn(model, batches)
    expected = gradients(model)
    shared = SharedSteps(model)
    for _ in range(2):  # the second step finds nothing of the first
        clear(model)
        losses = shared(learn, batches, seed=0)
        torch.testing.assert_close(losses, expected_losses)
        found = gradients(model)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert found[name].layout == torch.strided
            torch.testing.assert_close(found[name], gradient, msg=lambda m, n=name: f"{n}: {m}")
        assert all(parameter.grad is None for parameter in shared.twin.parameters())


@pytest.mark.parametrize("packed", [False, True])
def test_gradients_with_dropout_are_the_same_bits_whichever_thread_is_the_quicker(
    packed: bool, data: list[EncodedSplit]
) -> None:
    model = in_training(dropout=0.3)
    model.packs("packed")
    batches = steps(data, max_tokens=40, num_threads=2, packed=packed)[0]

    def slowly(slow: nn.Module | None, called: nn.Module, batches: StepBatches) -> Tensor:
        if called is slow:
            time.sleep(0.1)
        return learn(called, batches)

    shared = SharedSteps(model)
    found = []
    for slow, seed in [(None, 0), (shared.model, 0), (shared.twin, 0), (None, 1)]:
        clear(model)
        shared(lambda called, batches, slow=slow: slowly(slow, called, batches), batches, seed)
        found.append(gradients(model))
    first, second, third, of_another_seed = found
    assert same(first, second)
    assert same(first, third)
    assert not same(first, of_another_seed)


@pytest.mark.parametrize("family", ["albert", "deberta-v2"])
def test_weights_that_a_pass_reads_more_than_once_give_the_same_bits_in_bfloat16(
    family: str, data: list[EncodedSplit]
) -> None:
    model = in_training(family, dropout=0.1)
    batches = steps(data, max_tokens=40, num_threads=2)[0]
    shared = SharedSteps(model)
    found = []
    for _ in range(20):
        clear(model)
        shared(partial(learn, mixed_precision="bf16"), batches, seed=0)
        found.append(gradients(model))
    assert all(same(found[0], other) for other in found)


def test_the_two_threads_drop_out_differently(data: list[EncodedSplit]) -> None:
    model = in_training(dropout=0.3)
    batch = steps(data, max_tokens=10_000, micro_batch_cost=10_000)[0]
    (micro_batch,) = batch.micro_batches
    seen: list[Tensor] = []

    def keep(called: nn.Module, batches: StepBatches) -> Tensor:
        for one in batches.micro_batches:
            seen.append(called(**one.inputs)["sentiment"].detach())
        return torch.zeros(1)

    SharedSteps(model)(keep, batch._replace(micro_batches=[micro_batch, micro_batch]), seed=0)
    assert len(seen) == 2
    assert not torch.equal(*seen)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_twin_has_the_weights_of_the_model_and_gradients_of_its_own(family: str) -> None:
    model = in_training(family)
    other = twin(model)
    ids = torch.arange(5, 15)[None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(ids)["ner"].sum().backward()
    assert all(parameter.grad is None for parameter in other.parameters())
    before = other(ids)["ner"].detach()
    optimizer.step()
    assert torch.equal(other(ids)["ner"], model(ids)["ner"])
    assert not torch.equal(other(ids)["ner"], before)
    storages = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in other.parameters()} == storages


def test_what_is_frozen_or_tied_is_so_in_the_twin() -> None:
    model = in_training()
    model.encoder.embeddings.requires_grad_(False)
    model.head("ner").classifier.bias = model.head("pos").dense_tied = nn.Parameter(torch.zeros(7))
    other = twin(model)
    assert not any(parameter.requires_grad for parameter in other.encoder.embeddings.parameters())
    assert other.head("ner").classifier.bias is other.head("pos").dense_tied
    assert len(list(other.parameters())) == len(list(model.parameters()))


@pytest.mark.parametrize("failing", ["model", "twin"])
def test_an_error_in_either_thread_is_raised_and_leaves_the_number_of_threads(
    failing: str, data: list[EncodedSplit]
) -> None:
    shared = SharedSteps(in_training())
    ended = []

    def fail(called: nn.Module, _: StepBatches) -> Tensor:
        if called is getattr(shared, failing):
            raise ZeroDivisionError(failing)
        time.sleep(0.1)
        ended.append(called)
        return torch.zeros(1)

    with pytest.raises(ZeroDivisionError, match=failing):
        shared(fail, steps(data, num_threads=2)[0], seed=0)
    assert len(ended) == 1  # the other was waited for
    assert torch.get_num_threads() == 2


def test_two_threads_share_where_one_process_has_an_even_number_of_cores_and_is_not_pinned_to_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert num_threads("cpu", 1) == 2
    assert num_threads("cpu", 2) == 1
    assert num_threads("cuda", 1) == 1
    for cores, usable, expected in [(1, 1, 1), (3, 4, 1), (8, 8, 2), (8, 16, 2), (8, 1, 1)]:
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, usable=usable: set(range(usable)), raising=False)
        assert num_threads("cpu", 1) == expected
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS and Windows have none
    assert num_threads("cpu", 1) == 2


class Noisy(nn.Module):
    """Draws from a global generator, as no dropout does."""

    def __init__(self, draw: Callable[[], object] = lambda: torch.rand(())) -> None:
        super().__init__()
        self.draw, self.passes = draw, 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.passes += 1
        return hidden + float(self.draw())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_draws_nothing_but_quick_dropout(family: str) -> None:
    model = in_training(family, dropout=0.3)
    before = torch.get_rng_state()
    assert draws_only_quick_dropout(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), lambda: np.random.rand(), random.random])
def test_a_draw_from_any_global_generator_is_found_and_the_model_left_as_it_was(draw: Callable[[], object]) -> None:
    model = in_training(dropout=0.3)
    model.head("ner").dropout = Noisy(draw)
    assert not draws_only_quick_dropout(model)
    assert model.head("ner").dropout.passes == 0


@pytest.mark.parametrize("noisy", [False, True])
def test_a_model_that_draws_from_torchs_generator_is_trained_on_one_thread_and_ends_in_the_same_bits(
    noisy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: set[nn.Module] = set()
    original = trainer.forward_backward

    def watched(model: nn.Module, *arguments: Any, **options: Any) -> Tensor:
        learned.add(model)
        return original(model, *arguments, **options)

    monkeypatch.setattr(trainer, "forward_backward", watched)
    ends = []
    for name in ("a", "b"):
        learned.clear()
        made = run(tmp_path / name, dropout=0.2, num_epochs=1)
        if noisy:
            made.model.head("ner").dropout = Noisy()
        assert made.data.num_threads == 2
        made.train()
        assert len(learned) == (1 if noisy else 2)
        ends.append(made.weights())
    assert same(*ends)

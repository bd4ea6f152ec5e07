"""What is done for speed on CPU gives what stock torch gives: the same rates, attention and gradients."""

import os
import platform
import subprocess
import sys

import pytest
import tiny
import torch
from torch import Tensor, nn
from two_tasks import IDS, in_training

from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.training.cpu import keep_freed_memory, sparse_gradient, zero_gradients

CODE = "from nlp_mtl.training.cpu import keep_freed_memory; print(keep_freed_memory())"


def told(**environment: str) -> str:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    found = subprocess.run([sys.executable, "-c", CODE], env=plain | environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.long
def test_freed_memory_is_kept_unless_the_user_chose_otherwise() -> None:
    assert told() == "True"
    assert told(MALLOC_ARENA_MAX="2") == "False"
    assert told(GLIBC_TUNABLES="glibc.malloc.trim_threshold=1000") == "False"


def test_a_library_that_is_not_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False


# Gradients of embeddings.


def gradients(model: MultiTaskModel) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_step_of_several_micro_batches_gives_the_dense_gradients(family: str) -> None:
    model = in_training(family, dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters())
    embedding = model.get_input_embeddings()
    ids = [IDS, IDS[:1].repeat(3, 1), torch.full((2, 4), tiny.PAD)]  # rows read twice, and the one that is padding

    def step() -> dict[str, Tensor]:
        for part in ids:
            sum(logits.square().sum() for logits in model(part).values()).backward()
        return gradients(model)

    dense = step()
    for _ in range(2):  # the second step finds the gradients of the first
        zero_gradients(optimizer, embedding)
        with sparse_gradient(embedding):
            sparse = step()
        assert sparse.keys() == dense.keys()
        for name, gradient in dense.items():
            assert sparse[name].layout == torch.strided
            torch.testing.assert_close(sparse[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


def test_only_the_rows_that_were_read_are_made_in_the_backward_pass() -> None:
    model = in_training("bert")
    embedding = model.get_input_embeddings()
    made: list[torch.layout] = []
    next(embedding.parameters()).register_hook(lambda gradient: made.append(gradient.layout))
    zero_gradients(torch.optim.SGD(model.parameters()), embedding)
    with sparse_gradient(embedding):
        model(IDS)["ner"].sum().backward()
    model(IDS)["ner"].sum().backward()
    assert made == [torch.sparse_coo, torch.strided]


def test_an_embedding_is_as_it_was_behind_an_error() -> None:
    embedding = nn.Embedding(5, 2)

    def fail() -> None:
        with sparse_gradient(embedding):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert embedding.sparse is False


def test_embeddings_that_are_frozen_or_of_another_kind_get_no_gradient() -> None:
    frozen = nn.Embedding(5, 2)
    frozen.weight.requires_grad_(False)
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters())
    zero_gradients(optimizer, frozen)
    assert frozen.weight.grad is None
    with sparse_gradient(other):
        other(torch.ones(1, 2)).sum().backward()
    zero_gradients(optimizer, frozen)
    assert all(parameter.grad is None for parameter in other.parameters())


def test_adding_rows_gives_the_same_bits_with_several_threads() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(0)
        embedding = nn.Embedding(20_000, 64)
        ids = torch.randint(0, 50, (4, 400))  # read again and again
        optimizer = torch.optim.SGD(embedding.parameters())
        found = []
        for _ in range(5):
            zero_gradients(optimizer, embedding)
            with sparse_gradient(embedding):
                for row in ids:
                    embedding(row).square().sum().backward()
            assert embedding.weight.grad is not None
            found.append(embedding.weight.grad.clone())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert found[0].count_nonzero() == 50 * 64

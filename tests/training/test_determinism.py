"""Kernels that repeat a run; what they give on a GPU is in models/test_packing_on_gpu.py."""

import os
from collections.abc import Iterator

import pytest
import torch

from nlp_mtl.errors import TrainingError
from nlp_mtl.training.determinism import deterministic_kernels

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def settings() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = settings()
    yield
    assert settings() == before


def test_on_cuda_only_deterministic_kernels_run_and_then_all_is_as_before() -> None:
    with deterministic_kernels(CUDA):
        assert settings() == (True, False, False)  # warnings alone would leave attention as it was
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_what_the_environment_says_of_cublas_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic_kernels(CUDA):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.parametrize(("device", "wanted"), [(CPU, True), (CUDA, False)])
def test_elsewhere_and_where_they_are_not_wanted_nothing_changes(device: torch.device, wanted: bool) -> None:
    before = settings()
    with deterministic_kernels(device, wanted):
        assert settings() == before
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_an_operation_without_such_a_kernel_is_named_with_the_way_out() -> None:
    # This one has none on CPU either, so that torch itself writes the message.
    with pytest.raises(TrainingError) as failure, deterministic_kernels(CUDA):
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
    assert "put_" in str(failure.value)
    assert "training.deterministic: false" in str(failure.value)
    assert "torch.use_deterministic_algorithms" not in str(failure.value)


def test_cublas_that_was_used_before_is_told_with_both_ways_out() -> None:
    message = (
        "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or ..., but this "
        "operation is not deterministic. To enable it, set CUBLAS_WORKSPACE_CONFIG=:4096:8"
    )
    with pytest.raises(TrainingError, match=r"before Python starts.*deterministic: false"), deterministic_kernels(CUDA):
        raise RuntimeError(message)


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^out of memory$"), deterministic_kernels(CUDA):
        raise RuntimeError("out of memory")

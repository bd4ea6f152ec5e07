"""Compiled layers compute what the plain ones do. ``aot_eager`` traces and cuts as ``inductor`` does, in seconds."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from mixed_steps import TASKS, splits, steps
from tiny_runs import assert_same_end, finish, loss_lines, start, stopped_after, values, weights, write_yaml
from torch import Tensor, nn
from torch._dynamo.utils import counters
from trained import same

from nlp_mtl import Recipe, train
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.steps import StepBatches
from nlp_mtl.errors import ModelError, TrainingError
from nlp_mtl.models.encoder import checkpoint_gradients
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.training import compiled
from nlp_mtl.training.balancing import summed_loss, weighted_sum
from nlp_mtl.training.compiled import CompiledLayers
from nlp_mtl.training.cpu import zero_gradients

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)
# Torch looks at gradients of what it traces, and hides its own warning that it should not.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
Result = tuple[Tensor, dict[str, Tensor]]


@pytest.fixture(scope="module")
def data() -> list[EncodedSplit]:
    return splits()


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def in_training(family: str = "bert", dropout: float = 0.0) -> MultiTaskModel:
    return from_encoder(tiny.encoder(family, dropout=dropout), TASKS, max_length=16, window_overlap=4).train()


def learn(model: MultiTaskModel, batches: StepBatches) -> Result:
    """Losses and gradients of a step."""
    zero_gradients(torch.optim.SGD(model.parameters()), model.get_input_embeddings())
    losses = torch.zeros(len(TASKS))
    for batch in batches.micro_batches:
        logits = model(**batch.inputs, rows={task: rows.rows for task, rows in batch.tasks.items()})
        sums = {task: summed_loss(logits[task], rows) for task, rows in batch.tasks.items()}
        loss, shares = weighted_sum(sums, batches.counts, torch.tensor([task.loss_weight for task in TASKS]))
        loss.backward()
        losses += shares.detach()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: Result, expected: Result) -> None:
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


SLOW_FAMILIES = [pytest.param(family, marks=pytest.mark.slow) for family in tiny.FAMILIES if family != "bert"]


@pytest.mark.parametrize("family", ["bert", *SLOW_FAMILIES])
def test_losses_and_gradients_are_those_of_plain_layers_and_other_numbers_of_rows_need_no_other_code(
    family: str, data: list[EncodedSplit]
) -> None:
    model = in_training(family)
    names = list(model.state_dict())
    layers = CompiledLayers(model.encoder, "aot_eager")
    shapes, graphs = set(), []
    # Micro-batches of many rows, of one, and of none but special tokens.
    for options in ({"max_tokens": 64}, {"max_tokens": 16}, {"process": 39, "num_processes": 40}, {"max_tokens": 96}):
        batches = steps(data, is_bucketed=True, **options)[0]
        shapes |= {tuple(batch.inputs["input_ids"].shape) for batch in batches.micro_batches}
        expected = learn(model, batches)
        with layers.step():
            assert_close(learn(model, batches), expected)
            assert list(model.state_dict()) == names
        graphs.append(counters["stats"]["unique_graphs"])
    assert len({rows for rows, _ in shapes}) > 3
    assert (1, 16) in shapes
    kinds = 2 if family == "modernbert" else 1  # of layers: with and without a norm before attention
    assert graphs[-1] <= 4 * kinds  # a single row and many, with padding and without
    assert graphs[1] == graphs[-1]
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.slow
def test_layers_that_run_again_in_the_backward_pass_can_be_compiled(data: list[EncodedSplit]) -> None:
    model = in_training()
    checkpoint_gradients(model.encoder)
    batches = steps(data, is_bucketed=True)[0]
    expected = learn(model, batches)
    with CompiledLayers(model.encoder, "aot_eager").step():
        assert_close(learn(model, batches), expected)


@pytest.mark.slow
def test_frozen_layers_can_be_compiled(data: list[EncodedSplit]) -> None:
    model = in_training()
    model.encoder.embeddings.requires_grad_(False)
    model.encoder.encoder.layer[0].requires_grad_(False)
    batches = steps(data, is_bucketed=True)[0]
    expected = learn(model, batches)
    with CompiledLayers(model.encoder, "aot_eager").step():
        assert_close(learn(model, batches), expected)


def test_compiling_draws_no_random_numbers(data: list[EncodedSplit]) -> None:
    model = in_training(dropout=0.3)
    batches = steps(data, is_bucketed=True)[0]
    found = []
    with CompiledLayers(model.encoder, "aot_eager").step():
        for seed in (0, 0, 1):  # the first time it compiles
            torch.manual_seed(seed)
            found.append(learn(model, batches)[1])
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_a_limit_of_torch_is_told_and_nothing_falls_back_to_plain_layers(
    data: list[EncodedSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_MOST_GRAPHS", 1)
    model = in_training()
    many, single = (steps(data, max_tokens=max_tokens, is_bucketed=True)[0] for max_tokens in (64, 16))
    with CompiledLayers(model.encoder, "aot_eager").step():
        learn(model, many)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            learn(model, single)
    with (
        pytest.raises(TrainingError, match=r"training\.compile: the layers of a bert .*RecompileLimit.*leave it out"),
        CompiledLayers(model.encoder, "aot_eager").step(),
    ):
        learn(model, single)
    assert not any("forward" in vars(module) for module in model.modules())


class Curious(nn.Module):
    """Looks at a number in between: what follows cannot be compiled with what came before."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, *arguments: Any, **named: Any) -> Any:
        return self.layer(hidden if hidden.sum().item() > 0 else -hidden, *arguments, **named)


def test_a_layer_that_cannot_be_compiled_whole_is_refused(data: list[EncodedSplit]) -> None:
    model = in_training()
    model.encoder.encoder.layer[1] = Curious(model.encoder.encoder.layer[1])
    with pytest.raises(TrainingError, match=r"training\.compile"), CompiledLayers(model.encoder, "aot_eager").step():
        learn(model, steps(data, is_bucketed=True)[0])


def test_an_encoder_without_layers_is_refused() -> None:
    model = in_training()
    model.encoder.encoder.layer = nn.Sequential(*model.encoder.encoder.layer)
    with pytest.raises(ModelError, match=r"training\.compile: no list of layers is found in a bert"):
        CompiledLayers(model.encoder)


@pytest.mark.slow
def test_a_missing_compiler_is_told_before_anything_is_written(tmp_path: Path) -> None:
    file = write_yaml(tmp_path, values(tmp_path, compile=True))
    nowhere = {"CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    code, _, errors = finish(start("train", file, environment=nowhere))
    assert code == 2, errors
    assert "Traceback" not in errors
    assert "nlp-mtl: training.compile needs a C++ compiler" in errors
    assert "apt install g++" in errors
    assert not (tmp_path / "run").exists()


# ---- whole runs, with compiled code of their own


def in_a_process(file: Path, cache: Path, *arguments: str, processes: int = 1) -> str:
    """Train in a process that finds nothing compiled; returns what it told."""
    own = {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    code, _, errors = finish(start("train", file, *arguments, processes=processes, environment=own), timeout=900)
    assert code == 0, errors
    return errors


@pytest.mark.long
@needs_compiler
def test_a_compiled_run_that_is_resumed_and_compiled_anew_ends_in_the_same_bits(tmp_path: Path) -> None:
    plain = values(
        tmp_path, compile=True, dropout=0.2, num_epochs=1, batch_size=17, max_tokens=200, save_every=1, eval_every=6,
        keep_last=9, ema_decay=0.5,
    )  # fmt: skip
    run = tmp_path / "run"
    told = in_a_process(write_yaml(tmp_path / "file", plain), tmp_path / "cache")
    assert "Compiled for texts of 32 tokens, padded" in told
    for step in (1, 4):
        copy = stopped_after(run, step, tmp_path / f"stopped-{step}")
        file = write_yaml(tmp_path / f"file-{step}", {**plain, "output_dir": str(copy)})
        in_a_process(file, tmp_path / f"cache-{step}", "--resume")
        assert_same_end(run, copy)


@pytest.mark.long
@needs_compiler
@pytest.mark.parametrize("processes", [1, 2])
def test_a_compiled_run_ends_where_a_plain_one_does_on_any_number_of_processes(tmp_path: Path, processes: int) -> None:
    plain = values(tmp_path, layout="padded", num_epochs=1, batch_size=17, max_tokens=200)
    train(Recipe.from_dict(plain))
    plain["training"] |= {"compile": True}
    other = {**plain, "output_dir": str(tmp_path / "compiled")}
    in_a_process(write_yaml(tmp_path / "file", other), tmp_path / "cache", processes=processes)
    found = weights(tmp_path / "compiled")
    for name, tensor in weights(tmp_path / "run").items():
        if not name.endswith("attention.self.key.bias"):  # its gradient is nothing but rounding error
            torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    for one, two in zip(loss_lines(tmp_path / "run"), loss_lines(tmp_path / "compiled"), strict=True):
        assert one["losses"] == pytest.approx(two["losses"], abs=1e-4)

"""``torch.compile`` of an encoder's layers, for the forward and backward passes of training.

The layers, and not the whole encoder: they are alike, so that one piece of code serves all of them; and the gradient
of embeddings is left to torch, whose sums are the same bits each time (in compiled code, threads add up in any order).
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from nlp_mtl.errors import ModelError, TrainingError, first_line
from nlp_mtl.models.precision import autocast
from nlp_mtl.training.cpu import sparse_gradient

logger = logging.getLogger(__name__)

_TOKENS = 1024
"""Of the texts that code is made with."""

_MOST_GRAPHS = 256
"""Torch's own limit (8) is less than the lengths that texts are padded to, times the kinds of layers."""

Forward = Callable[..., Any]


class CompiledLayers:
    """Runs an encoder with compiled layers within :meth:`step`, and leaves it as it is outside.

    Code is made for each length of rows when the first micro-batch of it comes: for any number of rows and for a
    single one (which torch takes for a constant), with padding and without. It is made with texts of a fixed number,
    never with the micro-batch: what the compiler chooses by their number would else depend on where a run was resumed.
    """

    def __init__(self, encoder: PreTrainedModel, backend: str = "inductor") -> None:
        """
        Raises:
            ModelError: the encoder has no list of layers.
        """
        self.encoder = encoder
        lists = (module for module in encoder.modules() if isinstance(module, nn.ModuleList))
        self.layers = list(next(lists, ()))
        if not self.layers:
            family = encoder.config.model_type
            raise ModelError(f"training.compile: no list of layers is found in a {family}; leave it out")
        self._compiled = [self._compile(layer.forward, backend) for layer in self.layers]
        self._encode: Forward = encoder.forward
        self._known: set[tuple[int, bool, bool]] = set()
        self._rows_made_with = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """All forward and backward passes of a step belong inside.

        Raises:
            TrainingError: something cannot be compiled.
        """
        dynamo: Any = torch._dynamo
        embeddings = self.encoder.get_input_embeddings()
        for layer, compiled in zip(self.layers, self._compiled, strict=True):
            layer.forward = compiled
        self.encoder.forward = self._forward
        try:
            # DDP would cut what is compiled where its own buckets end; a layer is small enough as it is.
            with (
                dynamo.config.patch(recompile_limit=_MOST_GRAPHS, optimize_ddp=False),
                sparse_gradient(embeddings) if self.encoder.device.type == "cpu" else nullcontext(),
            ):
                yield
        except (dynamo.exc.TorchDynamoException, dynamo.exc.FailOnRecompileLimitHit) as error:
            raise TrainingError(
                f"training.compile: the layers of a {self.encoder.config.model_type} cannot be compiled "
                f"({type(error).__name__}: {first_line(error)}): leave it out"
            ) from error
        finally:
            for module in (self.encoder, *self.layers):
                del module.forward  # the class's own shows again

    def _forward(self, *, input_ids: Tensor, attention_mask: Tensor, **segments: Tensor) -> Any:
        rows, length = input_ids.shape
        shape = (length, rows == 1, bool(attention_mask.all()))  # without padding, layers may get no mask
        if shape not in self._known:
            self._make(*shape, input_ids.device)
            self._known.add(shape)
        # Segments are added to embeddings: layers are compiled without.
        return self._encode(input_ids=input_ids, attention_mask=attention_mask, **segments)

    def _make(self, length: int, single: bool, full: bool, device: torch.device) -> None:
        """Run on texts of one token over and over. The state of torch's generators stays as it is."""
        start = time.perf_counter()
        rows = 1 if single else max(2, _TOKENS // length)
        mask = torch.ones((rows, length), dtype=torch.long, device=device)
        kept = {} if device.type == "cpu" else {"device_type": device.type}
        if not full:
            mask[:, 1:] = 0
        self._rows_made_with = rows
        try:
            with torch.random.fork_rng([device] if kept else [], **kept):
                self._encode(input_ids=torch.zeros_like(mask), attention_mask=mask)
        finally:
            self._rows_made_with = 0
        what = "a single text" if single else "texts"
        seconds = time.perf_counter() - start
        logger.info("Compiled for %s of %d tokens%s: %.0f s", what, length, "" if full else ", padded", seconds)

    def _compile(self, forward: Forward, backend: str) -> Forward:
        # Whole layers, or an error: nothing falls back to slow code without a word.
        compiled = torch.compile(forward, fullgraph=True, dynamic=False, backend=backend)

        def call(*arguments: Any, **named: Any) -> Any:
            if self._rows_made_with > 1:
                for tensor in _tensors([*arguments, *named.values()]):
                    if tensor.ndim and len(tensor) == self._rows_made_with:
                        torch._dynamo.mark_dynamic(tensor, 0)
            return compiled(*arguments, **named)

        return call


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def try_compiler(encoder: PreTrainedModel, max_length: int, mixed_precision: str) -> None:
    """Compile an encoder's layers for a few short texts, to see before training that it can be done.

    Args:
        max_length: the most tokens of a text.

    Raises:
        TrainingError: there is no C++ compiler, or the layers cannot be compiled.
        ModelError: the encoder has no list of layers.
    """
    if encoder.device.type == "cpu":
        _require_cpp_compiler()
    was_training = encoder.training
    encoder.train()
    ids = torch.zeros((2, min(32, max_length)), dtype=torch.long, device=encoder.device)
    mask = torch.ones_like(ids)
    mask[0, 1:] = 0
    with CompiledLayers(encoder).step(), autocast(encoder.device, mixed_precision):
        encoder(input_ids=ids, attention_mask=mask)
    encoder.train(was_training)


def _require_cpp_compiler() -> None:
    """Asked for itself, as what torch compiled in an earlier run needs none: the next length would."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # seconds to import

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise TrainingError(
            f"training.compile needs a C++ compiler, and there is none that works ({first_line(error)}): install one "
            "(apt install g++), name another with the environment variable CXX, or leave training.compile out"
        ) from error

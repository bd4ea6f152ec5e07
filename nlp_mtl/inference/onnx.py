"""A model as one ONNX graph with all heads: written, and run on onnxruntime with the same answers."""

import copy
import logging
import math
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from nlp_mtl.errors import MissingExtraError, ModelError, first_line
from nlp_mtl.inference.quantization import quantize
from nlp_mtl.models.adapters import key
from nlp_mtl.models.configuration import MultiTaskConfig
from nlp_mtl.models.encoder import load_tokenizer
from nlp_mtl.models.loading import load_config, load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.storage import save_tokenizer, written_folder
from nlp_mtl.tasks import transitions_key

logger = logging.getLogger(__name__)

GRAPH = "model.onnx"
"""The file of the graph, beside ``config.json`` and the tokenizer's files."""

TOLERANCE = 1e-3
"""What logits may differ by at most from the model's, in units of the largest; rounding makes a hundredth of it."""

_SLOW = ["SkipLayerNormFusion", "BiasGeluFusion"]
"""What onnxruntime (1.32) makes of these on a CPU takes longer than the steps that it stands for: with both, texts take
a seventh more time."""


class OnnxModel(nn.Module):
    """A graph that is called as a :class:`MultiTaskModel` is, with padded texts, on the CPU."""

    reads_once_a_task = False

    def __init__(self, folder: Path, config: MultiTaskConfig, threads: int | None = None) -> None:
        """
        Args:
            folder: that :func:`export_onnx` wrote.
            threads: of onnxruntime; default: as many as torch has.

        Raises:
            MissingExtraError: onnxruntime is not installed.
            ModelError: the graph cannot be read.
        """
        super().__init__()
        runtime = _imported("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3  # errors: they come as exceptions as well
        try:
            self._session = runtime.InferenceSession(
                str(folder / GRAPH), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOW
            )
        except Exception as error:  # onnxruntime has a kind for each cause, and none for all
            raise ModelError(f"{folder / GRAPH} cannot be read: {first_line(error)}") from error
        self.config, self._file = config, folder / GRAPH
        self.device = torch.device("cpu")
        self._inputs = {one.name for one in self._session.get_inputs()}
        self._outputs = {one.name for one in self._session.get_outputs()}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        tasks: Sequence[str],
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``{task: logits}``, and the transitions of those that have some; see :meth:`MultiTaskModel.forward`."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "token_type_ids" in self._inputs:
            given["token_type_ids"] = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        wanted = [name for task in tasks for name in (task, transitions_key(task)) if name in self._outputs]
        try:
            found = self._session.run(wanted, {name: tensor.numpy() for name, tensor in given.items()})
        except Exception as error:  # of a kind for each cause, as above
            raise ModelError(f"{self._file} cannot answer: {first_line(error)}") from error
        return {name: torch.from_numpy(value) for name, value in zip(wanted, found, strict=True)}

    def packs(self, layout: str) -> bool:
        """Never: the graph reads padded texts.

        Raises:
            ModelError: texts should be packed.
        """
        if layout == "packed":
            raise ModelError("layout: packed, but an ONNX graph reads padded texts: auto or padded")
        return False

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """The graph's bytes: what answers follow from, for checksums. Past 2 GB, weights have a file of their own."""
        files = self._file.parent.glob(f"{GRAPH}*")
        return {file.name: torch.from_numpy(np.fromfile(file, dtype=np.uint8)) for file in files}


def load_onnx(folder: Path, threads: int | None = None) -> tuple[OnnxModel, PreTrainedTokenizerBase]:
    """The graph and tokenizer of a folder that :func:`export_onnx` wrote.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: it cannot be read, or is not one of ours.
    """
    return OnnxModel(folder, load_config(folder), threads), load_tokenizer(str(folder))


def load_either(
    path: str | Path, *, revision: str | None = None
) -> tuple[MultiTaskModel | OnnxModel, PreTrainedTokenizerBase]:
    """The graph of a folder that holds one, or else the model, as :func:`nlp_mtl.models.loading.load_model` finds it.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: there is no model, or it is not one of ours.
    """
    folder = Path(path).expanduser()
    if not (folder / GRAPH).is_file():
        return load_model(path, revision=revision)
    if revision is not None:
        raise ModelError(f"revision {revision!r} is for models on the Hub, but {path} is a folder: leave it out")
    return load_onnx(folder)


class _Graph(nn.Module):
    """A model with its inputs in a row, as graphs have them."""

    def __init__(self, model: MultiTaskModel, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **segments}
        found = _one_by_one(self.model, inputs) if self.model.reads_once_a_task else self.model(**inputs)
        return tuple(found[name] for name in self.outputs)


def _one_by_one(model: MultiTaskModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the model gives, with one adapter after the other: which rows each is for would fix how many there are."""
    adapted: list[Any] = [module for module in model.encoder.modules() if hasattr(module, "lora_A")]
    found = {}
    for task in model.config.task_list():
        for module in adapted:
            module.row_adapters = None
            module.set_adapter(key(task.name))
        output, head = model.encoder(**inputs), model.head(task.name)
        found[task.name] = head(output, attention_mask=inputs["attention_mask"]).logits
        if task.decoder == "crf":
            found[transitions_key(task.name)] = head.get_parameter("transitions").clone()
    return found


def export_onnx(
    model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, int8: bool = False
) -> float:
    """Write a model as a graph with its tokenizer and configuration: complete or not at all.

    Args:
        model: freshly loaded, on the CPU.
        int8: matrices and embeddings in 8 bits, and what matrices are multiplied with as well, with a scale for each
            token (dynamic quantisation): faster and smaller, a little less exact.

    Returns:
        the largest difference of logits to the model's, in units of the largest logit, on random texts; of the graph
        before its matrices were cut to 8 bits.

    Raises:
        MissingExtraError: a package is not installed.
        ModelError: ``folder`` holds something already; or the encoder cannot be a graph, or its graph says
            something else.
        RunError: it cannot be written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _imported(package)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} holds something already: choose another folder, or empty it")
    model.eval()
    outputs = [
        name
        for task in model.config.task_list()
        for name in (task.name, *([transitions_key(task.name)] if task.decoder == "crf" else []))
    ]
    inputs = _texts(model, rows=2, tokens=9)
    with written_folder(folder) as partial:
        whole = partial / "whole" if int8 else partial
        whole.mkdir(exist_ok=True)
        with _plain_attention(model):
            _write_graph(model, inputs, outputs, whole / GRAPH)
        difference = _difference(model, whole)
        if not difference <= TOLERANCE:
            raise ModelError(
                f"the graph of this {model.config.encoder_config.model_type} answers otherwise than the model: logits "
                f"differ by {difference:.2g} of the largest"
            )
        if int8:
            quantize(whole / GRAPH, partial / GRAPH)
            shutil.rmtree(whole)
            if not math.isfinite(_difference(model, partial)):  # how far it may be off is for scores to tell
                raise ModelError("the graph in 8 bits gives no numbers: take one without")
        config = copy.deepcopy(model.config)
        vars(config).pop("auto_map", None)  # it names code that goes with a model of torch
        config.save_pretrained(partial)
        save_tokenizer(tokenizer, partial)
    return difference


@contextmanager
def _plain_attention(model: MultiTaskModel) -> Iterator[None]:
    """With attention in plain steps: what torch's own becomes in a graph also looks after texts without tokens."""
    before = model.encoder.config._attn_implementation
    model.encoder.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.encoder.set_attn_implementation(before)


def _write_graph(model: MultiTaskModel, inputs: dict[str, Tensor], outputs: Sequence[str], file: Path) -> None:
    axes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens", min=2)}
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                _Graph(model, outputs), tuple(inputs.values()), dynamo=True, verbose=False,
                input_names=list(inputs), output_names=list(outputs), dynamic_shapes=tuple(axes for _ in inputs),
            )  # fmt: skip
            assert program is not None
            program.save(str(file))
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
            family = model.config.encoder_config.model_type
            reason = first_line(error.__cause__ or error)
            raise ModelError(f"the encoder, a {family}, cannot be made a graph: {reason}") from error


def _texts(model: MultiTaskModel, rows: int, tokens: int) -> dict[str, Tensor]:
    """Random texts, one of which is shorter."""
    generator = torch.Generator().manual_seed(rows + tokens)
    size = model.config.encoder_config.vocab_size
    mask = torch.ones((rows, tokens), dtype=torch.long)
    mask[-1, -(tokens // 3) :] = 0
    found = {"input_ids": torch.randint(1, size, (rows, tokens), generator=generator), "attention_mask": mask}
    if model.reads_pairs and model.has_segments:
        found["token_type_ids"] = torch.randint(0, 2, (rows, tokens), generator=generator) * mask
    return found


@torch.no_grad()
def _difference(model: MultiTaskModel, folder: Path) -> float:
    graph, tasks = OnnxModel(folder, model.config), [task.name for task in model.config.task_list()]
    found = [0.0]
    longest = min(70, model.config.max_length)
    for rows, tokens in ((1, 3), (3, longest), (5, longest // 2 + 1)):
        inputs = _texts(model, rows, tokens)
        expected, given = model(**inputs), graph(**inputs, tasks=tasks)
        for name, tensor in expected.items():
            if tensor.ndim == 3:  # what stands in the place of padding is nobody's
                kept = inputs["attention_mask"].bool()
                tensor, given[name] = tensor[kept], given[name][kept]
            found.append(((tensor - given[name]).abs().max() / tensor.abs().max().clamp(min=1)).item())
    return max(found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries say of themselves."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _imported(package: str) -> Any:
    try:
        return __import__(package)
    except ImportError as error:
        raise MissingExtraError(f"ONNX graphs need {package}: pip install 'nlp_mtl[onnx]'") from error

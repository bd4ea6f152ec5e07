"""Texts in, plain values out: all tasks from one pass."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, overload

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from nlp_mtl.data.batches import frame, windowed
from nlp_mtl.data.tokenization import encode_words
from nlp_mtl.errors import ModelError, did_you_mean, listed
from nlp_mtl.inference.decoding import decode_text, decode_tokens
from nlp_mtl.inference.scoring import score_items
from nlp_mtl.models.encoder import load_tokenizer
from nlp_mtl.models.multitask import MultiTaskConfig, MultiTaskModel
from nlp_mtl.words import WORD_SPLITTERS, split_words

Answer = dict[str, Any]
"""``{task: answer}``: a list of entries for token tasks, one entry for text tasks."""


class Predictor:
    """Answers for texts. Make one with :func:`load`; call it like a function."""

    def __init__(
        self,
        model: MultiTaskModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int = 4096,
        mixed_precision: str = "no",
    ) -> None:
        """
        Args:
            model: on the device where it is to run.
            max_tokens: tokens in a micro-batch, padding counted; a single window may be longer.
            mixed_precision: ``bf16`` is faster and a little less exact.
        """
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.tasks = model.config.task_list()
        self.max_tokens = max_tokens
        self.mixed_precision = mixed_precision
        self._framing = frame(tokenizer, model.config.max_length, model.config.window_overlap)

    @overload  # a string is itself a sequence of strings, so order matters
    def __call__(self, texts: str, *, tasks: Sequence[str] | None = None) -> Answer: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(
        self, texts: Iterable[str] | Iterable[Sequence[str]], *, tasks: Sequence[str] | None = None
    ) -> list[Answer]: ...
    def __call__(
        self, texts: str | Iterable[str] | Iterable[Sequence[str]], *, tasks: Sequence[str] | None = None
    ) -> Answer | list[Answer]:
        """Answer for one text, or for several.

        Args:
            texts: a text; several texts; or several texts that come as lists of words. Offsets index into the text as
                it was given; for words, into the words joined by single spaces.
            tasks: names of the tasks to answer; default: all. Other heads are not run.

        Returns:
            ``{task: answer}``, or a list of them in the order of the texts. Spans and words have ``text``, ``label``,
            ``start``, ``end`` and ``score``; a text has ``label`` and ``score`` (None where it holds no word).

        Raises:
            ModelError: there is no such task.
            TypeError: a text is not a string or a list of strings; ``tasks`` is not a list of names.
        """
        chosen = self._choose(tasks)
        if isinstance(texts, str):
            return self._answer([texts], chosen)[0]
        unordered = isinstance(texts, bytes | bytearray | Mapping | AbstractSet)
        if unordered or not isinstance(texts, Iterable):
            raise TypeError(f"expected a text or a list of texts, but found {type(texts).__name__}: {texts!r:.60}")
        return self._answer(list(texts), chosen)

    def _choose(self, names: Sequence[str] | None) -> list[Any]:
        known = {task.name: task for task in self.tasks}
        if names is None:
            return self.tasks
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise TypeError(f"`tasks` should be a list of names, but it is {names!r:.60}")
        names = list(names)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"`tasks` should be a list of names, but it holds {name!r:.60}")
            if name not in known:
                raise ModelError(
                    f"there is no task `{name}`; the model has {listed(known)}.{did_you_mean(name, known)}"
                )
        return [task for task in self.tasks if task.name in names]

    def _answer(self, texts: Sequence[str | Sequence[str]], tasks: list[Any]) -> list[Answer]:
        if not tasks:
            return [{} for _ in texts]
        whole, spans = [], []
        for place, text in enumerate(texts):
            joined, words = _find_words(text, place, self.model.config.word_splitter)
            whole.append(joined)
            spans.append(words)
        pieces, starts = encode_words(
            self.tokenizer, [[text[a:b] for a, b in words] for text, words in zip(whole, spans, strict=True)]
        )
        items = [
            item
            for place in range(len(texts))
            for item in windowed(place, pieces[place], starts[place], {}, self._framing)
        ]
        max_tokens = max(self.max_tokens, self._framing.max_length)
        found = score_items(
            self.model, items, len(texts), tasks, self._framing,
            max_tokens=max_tokens, mixed_precision=self.mixed_precision,
        )  # fmt: skip
        return [
            {
                task.name: decode_tokens(task, found[task.name][place], whole[place], spans[place])
                if task.type == "token-classification"
                else decode_text(task, found[task.name][place], not spans[place])
                for task in tasks
            }
            for place in range(len(texts))
        ]


def _find_words(text: str | Sequence[str], place: int, word_splitter: str) -> tuple[str, list[tuple[int, int]]]:
    """A text and where its words lie."""
    if isinstance(text, str):
        return text, split_words(text, word_splitter)
    if not isinstance(text, list | tuple) or not all(isinstance(word, str) for word in text):
        raise TypeError(f"text {place} should be a string or a list of words, but it is {text!r:.60}")
    spans, end = [], -1
    for word in text:
        spans.append((end + 1, end + 1 + len(word)))
        end = spans[-1][1]
    return " ".join(text), spans


def load(path: str | Path, *, revision: str | None = None, device: str | None = None, **options: Any) -> Predictor:
    """A predictor from a run folder, a model folder, or a Hub id.

    Args:
        revision: branch, tag or commit on the Hub.
        device: where to run; default: the GPU if there is one.
        options: ``max_tokens`` and ``mixed_precision`` of :class:`Predictor`.

    Raises:
        ModelError: there is no model, or it is not one of ours.
    """
    model, tokenizer = load_model(path, revision=revision)
    torch.nn.Module.to(model, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return Predictor(model, tokenizer, **options)


def load_model(path: str | Path, *, revision: str | None = None) -> tuple[MultiTaskModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a run folder, a model folder, or a Hub id, on the CPU in float32.

    Raises:
        ModelError: there is no model, or it is not one of ours.
    """
    name = os.path.expanduser(path)
    if (Path(name) / "recipe.yaml").is_file():
        name = str(Path(name) / "model")
        if not Path(name).is_dir():
            raise ModelError(f"the run folder {path} has no model yet; its training has not finished (see --resume)")
    looks_local = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if Path(name).is_dir():
        _check_is_ours(Path(name))
    elif looks_local or Path(name).exists():
        raise ModelError(f"there is no model folder {path}")
    try:
        config = MultiTaskConfig.from_pretrained(name, revision=revision or "main")
        if config.model_type != MultiTaskConfig.model_type or not config.tasks:
            raise ModelError(f"`{name}` is not a model of nlp_mtl: its config has no tasks")
        _check_config(config, name)
        loaded: Any = MultiTaskModel.from_pretrained(
            name, config=config, revision=revision or "main", dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError, HfHubHTTPError, HFValidationError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model `{path}` cannot be loaded: {first}") from error
    except RuntimeError as error:  # of other shapes
        raise ModelError(f"model `{path}` cannot be loaded: its weights do not fit its config.json") from error
    model: MultiTaskModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:  # they would be random
        raise ModelError(f"model `{path}` cannot be loaded: its weights lack {listed(missing)}")
    return model.eval(), load_tokenizer(name, revision)


def _check_config(config: MultiTaskConfig, name: str) -> None:
    """That what only an answer would run into is sound."""
    try:
        config.task_list()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the config.json of `{name}` has tasks that cannot be read: {error!r}") from error
    if config.word_splitter not in WORD_SPLITTERS:
        raise ModelError(
            f"the config.json of `{name}` has the word_splitter `{config.word_splitter}`; known are "
            f"{listed(WORD_SPLITTERS)}"
        )


def _check_is_ours(folder: Path) -> None:
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != MultiTaskConfig.model_type:
        raise ModelError(
            f"{folder} holds a model of the type `{found}`, not one of nlp_mtl; "
            "to train on top of it, give it as `encoder:` in a recipe"
        )

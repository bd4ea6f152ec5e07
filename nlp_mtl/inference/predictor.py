"""Texts in, plain values out: all tasks from one pass."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from transformers import PreTrainedTokenizerBase

from nlp_mtl.cleaning.cleaning import Cleaning
from nlp_mtl.data.items import frame, paired, windowed
from nlp_mtl.data.tokenization import encode_pairs, encode_words
from nlp_mtl.errors import ModelError, did_you_mean, first_line, listed
from nlp_mtl.inference.onnx import GRAPH, OnnxModel, load_onnx
from nlp_mtl.inference.scoring import score_items
from nlp_mtl.inference.texts import check_iterable, chunks, find_words, listed_texts
from nlp_mtl.models.checksum import answers_checksum
from nlp_mtl.models.loading import load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task

Answer = dict[str, Any]
"""``{task: answer}``: a list of entries for token tasks and for several labels, one entry for other text tasks."""


Texts = Iterable[str] | Iterable[Sequence[str]]
"""Several texts, or several lists of words."""

TOKENS, TOKENS_OF_GRAPH = 4096, 640
"""Of a micro-batch, where nobody says."""

logger = logging.getLogger(__name__)


class Predictor:
    """Answers for texts. Make one with :func:`load`; call it like a function."""

    def __init__(
        self,
        model: MultiTaskModel | OnnxModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_tokens: int | None = None,
        layout: str = "auto",
        mixed_precision: str = "no",
    ) -> None:
        """
        Args:
            model: on the device where it is to run.
            max_tokens: tokens in a micro-batch, padding counted where there is any; a single window may be longer.
                Default: 4,096; 640 for a graph, each of whose steps would otherwise leave the cache before the next.
            layout: ``packed``: texts without padding, which not all encoders can read; ``padded``; ``auto``: packed
                where the encoder can.
            mixed_precision: ``no``, or ``bf16``, which is faster and a little less exact.

        Raises:
            ValueError: an argument is not what is said here.
            ModelError: texts should be packed, but the encoder cannot read them so; or bf16 is asked of a graph.
        """
        if mixed_precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision is {mixed_precision!r}; expected 'no' or 'bf16'")
        if layout not in ("auto", "padded", "packed"):
            raise ValueError(f"layout is {layout!r}; expected 'auto', 'padded' or 'packed'")
        if max_tokens is None:
            max_tokens = TOKENS_OF_GRAPH if isinstance(model, OnnxModel) else TOKENS
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; expected at least 1")
        if mixed_precision != "no" and isinstance(model, OnnxModel):
            raise ModelError(
                "bf16 is for models of torch: an ONNX graph has the formats that it was written with (export --int8)"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.tasks = model.config.task_list()
        self.cleaning = Cleaning.from_dict(model.config.cleaning)
        self.max_tokens = max_tokens
        self.packed = model.packs(layout)
        self.mixed_precision = mixed_precision
        self._framing = frame(tokenizer, model.config.max_length, model.config.window_overlap)

    @overload  # a string is itself a sequence of strings, so order matters
    def __call__(  # type: ignore[overload-overlap]
        self, texts: str, *, text_pair: str | None = None, tasks: Sequence[str] | None = None, all_scores: bool = False
    ) -> Answer: ...
    @overload
    def __call__(
        self,
        texts: Texts,
        *,
        text_pair: Texts | None = None,
        tasks: Sequence[str] | None = None,
        all_scores: bool = False,
    ) -> list[Answer]: ...
    def __call__(
        self,
        texts: str | Texts,
        *,
        text_pair: str | Texts | None = None,
        tasks: Sequence[str] | None = None,
        all_scores: bool = False,
    ) -> Answer | list[Answer]:
        """Answer for one text or pair of texts, or for several.

        Args:
            texts: a text; several texts; or several texts that come as lists of words. Offsets index into the text as
                it was given; for words, into the words joined by single spaces (empty ones left out).
            text_pair: the second text, or of each of the texts the second, for tasks that learned from pairs. Pairs of
                more tokens than the model reads at once are cut, the longer text first; a warning tells how many.
            tasks: names of the tasks to answer; default: all that read what is given, pairs or single texts. Other
                heads are not run.
            all_scores: give the probabilities of all labels as well.

        Returns:
            ``{task: answer}``, or a list of them in the order of the texts. Spans and words have ``text``, ``label``,
            ``start``, ``end`` and ``score``; a text has ``label`` and ``score`` (None where it holds no word), a list
            of such for a task of several labels, or a ``value`` for regression. With ``all_scores`` also ``scores``,
            ``{label: probability}``, of a span the mean over its words; of several labels all are listed, and
            ``holds`` tells which hold.

        Raises:
            ModelError: there is no such task, or it reads pairs where single texts are given, or the reverse.
            TypeError: a text is not a string or a list of strings; ``tasks`` is not a list of names.
            ValueError: there are more texts than second ones, or fewer.
        """
        if isinstance(texts, str):
            if not isinstance(text_pair, str | None):
                raise TypeError(f"the second text of one text should be a string, but it is {text_pair!r:.60}")
            pair = None if text_pair is None else [text_pair]
            (answer,) = self.stream([texts], text_pair=pair, tasks=tasks, all_scores=all_scores)  # to its last warning
            return answer
        given = listed_texts(texts)
        others = None if text_pair is None else listed_texts(text_pair)
        if others is not None and len(others) != len(given):
            raise ValueError(f"found {len(given)} texts, but {len(others)} in text_pair; each needs one")
        return list(self.stream(given, text_pair=others, tasks=tasks, all_scores=all_scores))

    def stream(
        self,
        texts: Texts,
        *,
        text_pair: Texts | None = None,
        tasks: Sequence[str] | None = None,
        all_scores: bool = False,
    ) -> Iterator[Answer]:
        """Answers one by one, in the order of the texts, which are asked for only as far as they are needed.

        However many there are, no more than a thousand of them, or a million characters, are held at a time: these are
        sorted by length and answered together. Arguments and errors are those of a call; what is wrong with a text, or
        goes wrong where it comes from, is told behind the answers of those before it.
        """
        for given in (texts, *([] if text_pair is None else [text_pair])):
            check_iterable(given)
        return self._stream(texts, text_pair, self.chosen_tasks(tasks, is_pair=text_pair is not None), all_scores)

    def _stream(
        self, texts: Iterable[Any], text_pair: Iterable[Any] | None, tasks: list[Task], all_scores: bool
    ) -> Iterator[Answer]:
        place, cut = 0, 0
        for firsts, seconds in chunks(texts, text_pair):
            answers, cut_here = self._answer(firsts, seconds, tasks, all_scores)
            place, cut = place + len(firsts), cut + cut_here
            yield from answers
        if cut:
            logger.warning(
                "%d of %d pairs of texts are longer than %d tokens: the longer text of each was cut",
                cut, place, self._framing.max_length,
            )  # fmt: skip

    def chosen_tasks(self, names: Sequence[str] | None, is_pair: bool) -> list[Task]:
        """The tasks that answer single texts or pairs of them: all that can, or those of these names.

        Raises:
            ModelError: there is no such task, or it cannot.
            TypeError: ``names`` is not a list of names.
        """
        known = {task.name: task for task in self.tasks}
        fit = [task for task in self.tasks if task.pairs == is_pair]
        if names is None and (fit or not self.tasks):
            return fit
        if names is None:
            raise ModelError(_unfit(known, is_pair))
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise TypeError(f"`tasks` should be a list of names, but it is {names!r:.60}")
        names = list(names)
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"`tasks` should be a list of names, but it holds {name!r:.60}")
            if name not in known:
                shown = name[:60].encode(errors="backslashreplace").decode()  # lone surrogates cannot be printed
                raise ModelError(
                    f"there is no task `{shown}`; the model has {listed(known)}.{did_you_mean(name, known)}"
                )
        if other := [name for name in names if known[name].pairs != is_pair]:
            raise ModelError(_unfit(other, is_pair))
        return [task for task in fit if task.name in names]

    def _answer(
        self,
        texts: Sequence[str | Sequence[str]],
        text_pair: Sequence[str | Sequence[str]] | None,
        tasks: list[Task],
        all_scores: bool,
    ) -> tuple[list[Answer], int]:
        """The answers, and how many pairs were cut."""
        whole, spans, words = self._words(texts)
        cut = 0
        if text_pair is None:
            pieces, starts = encode_words(self.tokenizer, words)
            items = [
                item
                for place in range(len(texts))
                for item in windowed(place, pieces[place], starts[place], {}, self._framing)
            ]
        else:
            _, other_spans, other_words = self._words(text_pair)
            spans = [[*one, *other] for one, other in zip(spans, other_spans, strict=True)]
            pieces, _, second = encode_pairs(self.tokenizer, words, other_words)
            items = [paired(place, pieces[place], second[place][0], {}, self._framing) for place in range(len(texts))]
            cut = sum(len(found) > self._framing.pair_capacity for found in pieces)
        if not tasks:
            return [{} for _ in texts], cut
        found = score_items(
            self.model, items, len(texts), tasks, self._framing,
            max_tokens=self.max_tokens, packed=self.packed, mixed_precision=self.mixed_precision,
        )  # fmt: skip
        columns = {}
        for task in tasks:
            decisions, to_answer = found[task.name], kind_of(task).answer
            columns[task.name] = [
                to_answer(task, *row, all_scores) for row in zip(decisions, whole, spans, strict=True)
            ]
        return [{name: rows[place] for name, rows in columns.items()} for place in range(len(texts))], cut

    def digest(self) -> str:
        """A checksum of the weights, and of what else the answers follow from."""
        return answers_checksum(self.model, self.tokenizer, self.cleaning)

    def _words(
        self, texts: Sequence[str | Sequence[str]]
    ) -> tuple[list[str], list[list[tuple[int, int]]], list[list[str]]]:
        """Texts, where the words of each lie, and these words, cleaned."""
        splitter = self.model.config.word_splitter
        found = [find_words(text, splitter, self.cleaning) for text in texts]
        return [text for text, _, _ in found], [spans for _, spans, _ in found], [words for _, _, words in found]


def _unfit(names: Iterable[str], is_pair: bool) -> str:
    """Why tasks cannot answer."""
    if is_pair:
        return f"{listed(names)} learned from single texts: leave out text_pair"
    return f"{listed(names)} learned from pairs of texts: give the second text as text_pair"


def load(
    path: str | Path,
    *,
    revision: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> Predictor:
    """A predictor from a run folder, a model folder, a folder with an ONNX graph, or a Hub id.

    Args:
        revision: branch, tag or commit on the Hub.
        device: where to run; default: the GPU if there is one (of several processes, each has its own).
        threads: of the CPU, for all that torch does in this process; default: as it was.
        options: ``max_tokens``, ``layout`` and ``mixed_precision`` of :class:`Predictor`.

    Raises:
        ModelError: there is no model, or it is not one of ours; or there is no such device.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    folder = Path(path).expanduser()
    if (folder / GRAPH).is_file():
        if revision is not None or device not in (None, "cpu"):
            raise ModelError(f"{path} is an ONNX graph in a folder, for the CPU: leave out revision and device")
        return Predictor(*load_onnx(folder, threads), **options)
    model, tokenizer = load_model(path, revision=revision)
    try:
        torch.nn.Module.to(model, device or _default_device())
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"the device `{device}` cannot be used: {first_line(error)}") from error
    return Predictor(model, tokenizer, **options)


def _default_device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"

"""Training rows that are changed a little each time they come: other words, the labels that go with them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from nlp_mtl.data.encoded_splits import EncodedSplit, label_column
from nlp_mtl.data.tokenization import encode_pairs, encode_words, unknown_id
from nlp_mtl.task_types import KINDS
from nlp_mtl.task_types.kind import Target
from nlp_mtl.tasks import MISSING, Task, iob_spans

SHORTEST_TYPO = 4
"""Letters of the shortest words that get typing errors: shorter ones become other words (Belinkov and Bisk 2018)."""

Words = list[str]


@dataclass(frozen=True)
class Augmentation:
    """What is done to training rows; each a probability. The recipe's keys of the same names."""

    rows: float = 1.0
    """Of a row to be changed at all, each time it comes."""
    word_dropout: float = 0.0
    """Of a word to be hidden: the mask token stands for it, or the unknown one. Its label stays (Iyyer et al. 2015)."""
    case_noise: float = 0.0
    """Of a word to be written in capitals, in small letters, or with a capital."""
    typos: float = 0.0
    """Of a word to get a typing error (arXiv 1711.02173)."""
    entity_swap: float = 0.0
    """Of an entity to become another one of its kind in the training rows (mention replacement, Dai and Adel 2020,
    arXiv 2010.11683)."""

    def __bool__(self) -> bool:
        return any(getattr(self, one.name) for one in fields(self) if one.name != "rows")


class Mention(NamedTuple):
    """An entity in the training rows."""

    row: int
    start: int
    stop: int
    """Words ``[start, stop)``."""


class Augmenter:
    """Changes rows of a training split as steps read them: a pure function of the seed, the step and the row."""

    def __init__(
        self,
        split: EncodedSplit,
        words_of: Callable[[Sequence[int]], list[tuple[Words, Words | None]]],
        tasks: Sequence[Task],
        tokenizer: PreTrainedTokenizerBase,
        settings: Augmentation,
        *,
        seed: int,
        place: int,
    ) -> None:
        """
        Args:
            words_of: the words of rows of the split, cleaned; of pairs those of the second text as well.
            tasks: those that read labels here. One of them has IOB tags, where entities are swapped.
            seed, place: of what is drawn, with the dataset's place.
        """
        self.split, self.words_of, self.tokenizer, self.settings = split, words_of, tokenizer, settings
        self.seed, self.place = seed, place
        self.hidden = unknown_id(tokenizer) if tokenizer.mask_token_id is None else int(tokenizer.mask_token_id)
        self.of_words = [task.name for task in tasks if KINDS[task.type].reads_words and task.name in split.tasks]
        self.spans_of = next((task for task in tasks if task.is_spans and task.name in split.tasks), None)
        self.mentions: dict[str, list[Mention]] = {}
        if settings.entity_swap and self.spans_of is not None:
            self.mentions = _mentions(split, self.spans_of)

    def __call__(self, step: int, rows: Sequence[int] | np.ndarray, batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        """The columns of rows, changed.

        Args:
            rows: their numbers.
            batch: their columns as they are; see :class:`nlp_mtl.data.encoded_splits.EncodedSplit`.
        """
        draws = [np.random.default_rng([self.seed, 4, self.place, step, int(row)]) for row in rows]
        chosen = [place for place, draw in enumerate(draws) if draw.random() < self.settings.rows]
        columns = {name: list(values) for name, values in batch.items()}
        if not chosen:
            return columns
        texts = self.words_of([int(rows[place]) for place in chosen])
        changed = []
        for place, (first, second) in zip(chosen, texts, strict=True):
            labels = {task: list(columns[label_column(task)][place]) for task in self.of_words}
            if self.mentions:
                first, labels = self._swapped(first, labels, draws[place])
            noisy = [[self._noisy(word, draws[place]) for word in words] for words in (first, second or [])]
            changed.append((noisy[0], noisy[1] if second is not None else None))
            for task, target in labels.items():
                columns[label_column(task)][place] = target
        self._encode(columns, chosen, changed, draws)
        return columns

    def _encode(
        self,
        columns: dict[str, list[Any]],
        chosen: Sequence[int],
        texts: Sequence[tuple[Words, Words | None]],
        draws: Sequence[np.random.Generator],
    ) -> None:
        firsts = [first for first, _ in texts]
        seconds = [second for _, second in texts if second is not None]
        if seconds:
            pieces, starts, borders = encode_pairs(self.tokenizer, firsts, seconds)
        else:
            (pieces, starts), borders = encode_words(self.tokenizer, firsts), []
        for number, place in enumerate(chosen):
            border = borders[number][0] if borders else None
            found = self._hidden(pieces[number], starts[number], border, draws[place])
            columns["pieces"][place], columns["starts"][place], border = found
            if borders:
                columns["second"][place] = [border]

    def _hidden(
        self, pieces: list[int], starts: list[int], border: int | None, draw: np.random.Generator
    ) -> tuple[list[int], list[int], int | None]:
        """Pieces with some words hidden, where words then start, and where the second text does."""
        hides = draw.random(len(starts)) < self.settings.word_dropout
        if not hides.any():
            return pieces, starts, border
        found: list[int] = []
        places: list[int] = []
        moved = None
        for start, stop, is_hidden in zip(starts, [*starts[1:], len(pieces)], hides, strict=True):
            if border is not None and moved is None and start >= border:
                moved = len(found)
            places.append(len(found))
            found += [self.hidden] if is_hidden else pieces[start:stop]
        return found, places, len(found) if border is not None and moved is None else moved

    def _noisy(self, word: str, draw: np.random.Generator) -> str:
        of_case, of_typo = draw.random(2)
        if of_typo < self.settings.typos:
            word = with_typo(word, draw)
        if of_case < self.settings.case_noise:
            word = with_case(word, draw)
        return word

    def _swapped(
        self, words: Words, labels: dict[str, Target], draw: np.random.Generator
    ) -> tuple[Words, dict[str, Target]]:
        """Entities become others of their kind, with the labels that all tasks on words have for these."""
        task = self.spans_of
        assert task is not None
        tags = [task.labels[int(one)] if one != MISSING else "O" for one in labels[task.name]]
        for kind, start, stop in reversed(iob_spans(tags)):  # from the end, so that places before it stay
            if draw.random() >= self.settings.entity_swap:
                continue
            candidates = self.mentions[kind]
            mention = candidates[draw.integers(len(candidates))]
            ((other, _),) = self.words_of([mention.row])
            given = self.split.batch([mention.row])
            count = mention.stop - mention.start
            words = [*words[:start], *other[mention.start : mention.stop], *words[stop:]]
            for name, target in labels.items():
                if not target:
                    continue  # the row has no labels of this task
                theirs = given[label_column(name)][0][mention.start : mention.stop]
                labels[name] = [*target[:start], *(theirs or [MISSING] * count), *target[stop:]]
            # Read again: it may have begun with I-, where it came from or here.
            known = [tag for tag in (f"B-{kind}", f"I-{kind}") if tag in task.labels]
            begin, inside = task.labels.index(known[0]), task.labels.index(known[-1])
            labels[task.name][start : start + count] = [begin, *[inside] * (count - 1)]
        return words, labels


def with_case(word: str, draw: np.random.Generator) -> str:
    """A word in capitals, in small letters, or with a capital and as it was behind it."""
    return (word.upper(), word.lower(), word[:1].title() + word[1:])[draw.integers(3)]


def with_typo(word: str, draw: np.random.Generator) -> str:
    """A word in which two letters are swapped, or one is left out, doubled, or becomes another one of the word; never
    its first or last one. Words of few letters stay, and so do numbers and signs; all others change."""
    letters = [place for place, character in enumerate(word) if character.isalpha()]
    if len(letters) < SHORTEST_TYPO:
        return word
    inner = letters[1:-1]
    place = inner[draw.integers(len(inner))]
    one, after = word[place], word[place + 1 :]
    typos = [after, one + one + after]
    if place + 1 in inner and after[0] != one:
        typos.append(after[0] + one + after[1:])
    others = [word[other] for other in letters if word[other] != one]
    if others:
        typos.append(others[draw.integers(len(others))] + after)
    return word[:place] + typos[draw.integers(len(typos))]


def _mentions(split: EncodedSplit, task: Task) -> dict[str, list[Mention]]:
    """All entities of a split by their kind."""
    found: dict[str, list[Mention]] = {}
    for row, target in enumerate(split.rows[label_column(task.name)]):
        tags = [task.labels[one] if one != MISSING else "O" for one in target]
        for kind, start, stop in iob_spans(tags):
            found.setdefault(kind, []).append(Mention(row, start, stop))
    return found

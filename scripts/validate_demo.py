"""Check a demo corpus: train.jsonl, validation.jsonl and test.jsonl in one folder.

Prints a table of counts and "ok", or every problem with its file and line, and then exits 1.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nlp_mtl.tasks import iob2_break, iob_spans
from nlp_mtl.words import split_words

SHIPPED = Path(__file__).resolve().parent.parent / "recipes" / "demo"

ROWS = {"train": 400, "validation": 100, "test": 100}
"""The fewest sentences of each split."""
ROWS_IN_ALL = 600
FEWEST_TOPICS = 5
MOST_ALIKE = 0.34
"""Of the three-word sequences of the shorter of two texts, the share that may be in the other as well."""
MOST_OF_ONE_START = 3

KEYS = ("id", "register", "text", "tokens", "upos", "ner", "sentiment", "topic")
LISTS = ("tokens", "upos", "ner")

REGISTERS = ("news", "review", "chat", "email", "howto", "story")
SENTIMENTS = ("positive", "negative", "neutral")
ENTITIES = ("PER", "ORG", "LOC", "MISC")
NER = ("O", *(f"{place}-{entity}" for entity in ENTITIES for place in "BI"))
UPOS = (
    *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM"),
    *("PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM", "VERB", "X"),
)
MAY_BE_ABSENT = {"X"}
"""Known labels that a corpus of whole English sentences need not have."""
KNOWN = {"register": REGISTERS, "upos": UPOS, "ner": NER, "sentiment": SENTIMENTS}
TASKS = ("upos", "ner", "sentiment", "topic")

Trigram = tuple[str, ...]


class Row(NamedTuple):
    """A line that has the keys and the types of a row, and where it stands."""

    place: str
    values: dict[str, Any]

    def labels(self, key: str) -> list[str]:
        """The labels of one task: one a word, or one for the text."""
        value = self.values[key]
        return value if key in LISTS else [value]


Corpus = dict[str, list[Row]]


def all_rows(corpus: Corpus) -> Iterator[Row]:
    for rows in corpus.values():
        yield from rows


def difference(found: Any, expected: Any) -> str:
    return f"found {found!r}, expected {expected!r}"


# Reading: lines that are no rows at all.


def shape_problem(values: Any) -> str | None:
    """What keeps a JSON value from being a row."""
    if not isinstance(values, dict):
        return f"found {type(values).__name__}, expected a JSON object"
    if tuple(values) != KEYS:
        return f"keys: {difference(list(values), list(KEYS))}"
    for key, value in values.items():
        if key not in LISTS and not (isinstance(value, str) and value.strip()):
            return f"{key}: found {value!r}, expected a text that is not empty"
        if key in LISTS and not (value and isinstance(value, list) and all(isinstance(v, str) for v in value)):
            return f"{key}: found {value!r}, expected a list of texts that is not empty"
    return None


def read_split(path: Path, problems: list[str]) -> list[Row]:
    """The rows of one file; lines that are none are told in ``problems``."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read as UTF-8 text: {error}")
        return []
    for number, line in enumerate(lines, start=1):
        place = f"{path}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{place}: found no JSON ({error.msg}), expected one JSON object a line")
            continue
        if problem := shape_problem(values):
            problems.append(f"{place}: {problem}")
        else:
            rows.append(Row(place, values))
    return rows


# One row by itself.


def word_problems(row: Row) -> Iterator[str]:
    """The tokens are the words that the English splitter finds, in order."""
    text, tokens = row.values["text"], row.values["tokens"]
    words = [text[start:end] for start, end in split_words(text, "english")]
    for number, (token, word) in enumerate(zip(tokens, words, strict=False), start=1):
        if token != word:
            yield f"tokens: word {number}: {difference(token, word)} (the English splitter's)"
            return
    if len(tokens) != len(words):
        yield f"tokens: found {len(tokens)}, expected the English splitter's {len(words)}"


def length_problems(row: Row) -> Iterator[str]:
    """Every word has a label in each of the word tasks."""
    expected = len(row.values["tokens"])
    for key in ("upos", "ner"):
        if (found := len(row.values[key])) != expected:
            yield f"{key}: found {found} labels, expected {expected}, one for each token"


def label_problems(row: Row) -> Iterator[str]:
    """Labels are of the known sets."""
    for key, known in KNOWN.items():
        for number, label in enumerate(row.labels(key), start=1):
            if label not in known:
                where = f"{key}: word {number}" if key in LISTS else key
                yield f"{where}: found {label!r}, expected one of {', '.join(known)}"


def span_problems(row: Row) -> Iterator[str]:
    """Entity labels are valid IOB2."""
    ner = row.values["ner"]
    if (place := iob2_break(ner)) is not None:
        before = f"after {ner[place - 1]}" if place else "at the start"
        kind = ner[place][2:]
        yield f"ner: word {place + 1}: found {ner[place]} {before}, expected B-{kind} or I-{kind} after B-{kind}"


ROW_CHECKS = (word_problems, length_problems, label_problems, span_problems)


def row_problems(corpus: Corpus) -> Iterator[str]:
    for row in all_rows(corpus):
        for row_check in ROW_CHECKS:
            yield from (f"{row.place}: {problem}" for problem in row_check(row))


# The corpus as a whole.


def size_problems(corpus: Corpus) -> Iterator[str]:
    """Splits and corpus are large enough."""
    for split, expected in ROWS.items():
        if (found := len(corpus[split])) < expected:
            yield f"{split}: found {found} sentences, expected at least {expected}"
    if (found := sum(map(len, corpus.values()))) < ROWS_IN_ALL:
        yield f"corpus: found {found} sentences, expected at least {ROWS_IN_ALL}"


def label_counts(rows: list[Row], key: str) -> Counter[str]:
    return Counter(label for row in rows for label in row.labels(key))


def coverage_problems(corpus: Corpus) -> Iterator[str]:
    """There are topics enough, and every split has every label of every task."""
    found = {key: {split: label_counts(rows, key) for split, rows in corpus.items()} for key in TASKS}
    topics = sorted(set().union(*found["topic"].values()))
    if len(topics) < FEWEST_TOPICS:
        yield f"corpus: found {len(topics)} topics ({', '.join(topics)}), expected at least {FEWEST_TOPICS}"
    for key, counts in found.items():
        used = set().union(*counts.values())
        expected = used if key == "topic" else (set(KNOWN[key]) - MAY_BE_ABSENT) | (used & MAY_BE_ABSENT)
        for split, labels in counts.items():
            if missing := sorted(expected - set(labels)):
                yield f"{split}: {key}: found no {', '.join(missing)}, expected every label in every split"


def id_problems(corpus: Corpus) -> Iterator[str]:
    """No id is used twice."""
    first: dict[str, Row] = {}
    for row in all_rows(corpus):
        earlier = first.setdefault(row.values["id"], row)
        if earlier is not row:
            yield f"{row.place}: id: found {row.values['id']!r} as in {earlier.place}, expected ids used once"


def start_problems(corpus: Corpus) -> Iterator[str]:
    """Sentences begin in different ways."""
    starts: dict[Trigram, list[Row]] = defaultdict(list)
    for row in all_rows(corpus):
        starts[tuple(token.lower() for token in row.values["tokens"][:3])].append(row)
    for start, rows in starts.items():
        if len(rows) > MOST_OF_ONE_START:
            yield (
                f"{rows[MOST_OF_ONE_START].place}: text: found {len(rows)} that start with {' '.join(start)!r}, "
                f"expected at most {MOST_OF_ONE_START}"
            )


def trigrams(row: Row) -> set[Trigram]:
    """The three-word sequences of a text, all words of entities being one and the same."""
    pairs = zip(row.values["tokens"], row.values["ner"], strict=False)
    words = [token.lower() if label == "O" else "<E>" for token, label in pairs]
    return {tuple(words[k : k + 3]) for k in range(len(words) - 2)}


def likeness_problems(corpus: Corpus) -> Iterator[str]:
    """No text is a variation of another one."""
    rows = list(all_rows(corpus))
    grams = [trigrams(row) for row in rows]
    holders: dict[Trigram, list[int]] = defaultdict(list)
    for later, own in enumerate(grams):
        shared = Counter(earlier for gram in own for earlier in holders[gram])
        for earlier, count in shared.items():
            share = count / min(len(own), len(grams[earlier]))
            if share > MOST_ALIKE:
                yield (
                    f"{rows[later].place}: text: found {share:.2f} in common with {rows[earlier].place}, "
                    f"expected at most {MOST_ALIKE}"
                )
        for gram in own:
            holders[gram].append(later)


CORPUS_CHECKS = (size_problems, coverage_problems, id_problems, start_problems, likeness_problems)


def check(folder: Path) -> tuple[Corpus, list[str]]:
    """The corpus in a folder, and all that is wrong with it."""
    problems: list[str] = []
    corpus = {split: read_split(folder / f"{split}.jsonl", problems) for split in ROWS}
    problems += row_problems(corpus)
    if all(corpus.values()):  # an empty split is told already, by what is wrong with its file
        for corpus_check in CORPUS_CHECKS:
            problems += corpus_check(corpus)
    return corpus, problems


# The table.


def entity_counts(rows: list[Row]) -> Counter[str]:
    return Counter(kind for row in rows for kind, _, _ in iob_spans(row.values["ner"]))


def table(corpus: Corpus) -> Iterator[str]:
    """Counts, a column for each split and one for all of them."""
    columns = {**corpus, "all": list(all_rows(corpus))}

    def line(name: str, counts: list[int]) -> str:
        return f"{name:<22}" + "".join(f"{count:>12}" for count in counts)

    yield " " * 22 + "".join(f"{split:>12}" for split in columns)
    yield line("sentences", [len(rows) for rows in columns.values()])
    yield line("words", [sum(len(row.values["tokens"]) for row in rows) for rows in columns.values()])
    for key in ("register", "topic", "sentiment", "ner", "upos"):
        counts = [entity_counts(rows) if key == "ner" else label_counts(rows, key) for rows in columns.values()]
        for label, _ in sorted(counts[-1].items(), key=lambda item: (-item[1], item[0])):
            yield line(f"{key} {label}", [count[label] for count in counts])


def main() -> int:
    parser = argparse.ArgumentParser(description="Check a demo corpus (train, validation and test.jsonl).")
    parser.add_argument("folder", nargs="?", type=Path, default=SHIPPED, help="default: recipes/demo")
    corpus, problems = check(parser.parse_args().folder)
    if problems:
        print(*problems, sep="\n")
        print(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}")
        return 1
    print(*table(corpus), sep="\n")
    print("ok")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

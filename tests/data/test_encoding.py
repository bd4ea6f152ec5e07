import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import UNK, VOCABULARY, byte_level_tokenizer, text_row, token_row, tokenizer, write_jsonl
from transformers import PreTrainedTokenizerBase

from nlp_mtl.data import encoding
from nlp_mtl.data.encoded_splits import EncodedSplit, label_column
from nlp_mtl.data.encoding import encode_split
from nlp_mtl.data.labels import MISSING, resolve_task
from nlp_mtl.data.loading import LoadedDataset, load_splits
from nlp_mtl.errors import DataError

TYPES = {"ner": "token-classification", "upos": "token-classification", "label": "text-classification"}


def load(folder: Path, rows: list[dict[str, Any]] | None, column: str = "tokens", **options: Any) -> LoadedDataset:
    """The rows, written to a file first; None: those that are there."""
    if rows is not None:
        write_jsonl(folder / "rows.jsonl", rows)
    content = (folder / "rows.jsonl").read_text(encoding="utf-8")
    labels = [name for name in TYPES if f'"{name}"' in content]
    given = {"validation_fraction": 0, "test_fraction": 0, "tokens" if column == "tokens" else "text": column}
    return load_splits(
        "demo", data_dir=str(folder), data_files="rows.jsonl", label_columns=labels, **{**given, **options}
    )


def encode(
    loaded: LoadedDataset,
    *,
    made: PreTrainedTokenizerBase | None = None,
    splitter: str = "unicode",
    split: str = "train",
    label_names: dict[str, list[str]] | None = None,
) -> EncodedSplit:
    """Each label column is a task of its name."""
    readings = []
    for name, type_ in TYPES.items():
        if name in loaded.splits[split].rows.column_names:
            names = (label_names or {}).get(name)
            task, readers = resolve_task(name, type_, {"demo": name}, {"demo": loaded}, label_names=names)
            readings.append((task, name, readers["demo"]))
    return encode_split(loaded, split, readings, made or tokenizer(), splitter)


def problem(loaded: LoadedDataset, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        encode(loaded, **options)
    return str(error.value)


def column(encoded: EncodedSplit, name: str) -> list[list[int]]:
    return [list(row) for row in encoded.rows[name]]


PEOPLE = {"ner": ["O", "B-PER", "I-PER"], "label": ["bad", "good"]}


# What comes out


def test_words_become_pieces_and_labels_ids_one_a_word(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["Anna", "t\u200b", "tt", "\u200b"], "ner": ["B-PER", "I-PER", "O", "O"], "label": "good"},
        {"tokens": ["tea"], "ner": ["O"], "label": "bad"},
    ]
    encoded = encode(load(tmp_path, rows), label_names=PEOPLE)
    anna, t, end, tea = (VOCABULARY[piece] for piece in ("anna", "t", "##t", "tea"))
    assert column(encoded, "pieces") == [[anna, t, t, end, UNK], [tea]]
    assert column(encoded, "starts") == [[0, 1, 2, 4], [0]]
    assert column(encoded, label_column("ner")) == [[1, 2, 0, 0], [0]]
    assert column(encoded, label_column("label")) == [[1], [0]]
    assert encoded.lengths.tolist() == [5, 1]
    assert {task: counts.tolist() for task, counts in encoded.labelled.items()} == {"ner": [4, 1], "label": [1, 1]}
    assert len(encoded) == 2


def test_texts_are_split_into_words_as_the_splitter_says(tmp_path: Path) -> None:
    loaded = load(tmp_path, [{"text": "Tea, tea!", "label": "good"}, {"text": "bad", "label": "bad"}], "text")
    tea, comma, bang = (VOCABULARY[piece] for piece in ("tea", ",", "!"))
    by_unicode, by_space = encode(loaded), encode(loaded, splitter="whitespace")
    assert column(by_unicode, "pieces")[0] == column(by_space, "pieces")[0] == [tea, comma, tea, bang]
    assert column(by_unicode, "starts")[0] == [0, 1, 2, 3]
    assert column(by_space, "starts")[0] == [0, 2]


def test_rows_without_a_label_of_a_task_have_none_and_are_not_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"tokens": ["anna", "sees"], "ner": ["B-PER", "O"], "label": "good"},
        {"tokens": ["anna", "sees"], "ner": None, "label": None},
        {"tokens": ["anna", "sees"], "ner": [], "label": "bad"},
        {"tokens": ["anna", "sees"]},
        {"tokens": ["anna", "sees"], "ner": [None, "O"]},
        {"tokens": [], "ner": []},
        {"tokens": None, "ner": None},
    ]
    encoded = encode(load(tmp_path, rows), label_names=PEOPLE)
    assert column(encoded, label_column("ner")) == [[1, 0], [], [], [], [MISSING, 0], [], []]
    assert column(encoded, label_column("label")) == [[1], [], [0], [], [], [], []]
    assert encoded.labelled["ner"].tolist() == [2, 0, 0, 0, 1, 0, 0]
    assert encoded.labelled["label"].tolist() == [1, 0, 1, 0, 0, 0, 0]
    assert encoded.lengths.tolist() == [2, 2, 2, 2, 2, 0, 0]


def test_numbers_that_mean_no_label_are_missing(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["anna", "sees"], "ner": [1, MISSING], "label": 1},
        {"tokens": ["tea", "a"], "ner": [-1, 0], "label": -1},
        {"tokens": ["tea"], "ner": [0], "label": 0},
    ]
    encoded = encode(load(tmp_path, rows), label_names=PEOPLE)
    assert column(encoded, label_column("ner")) == [[1, MISSING], [MISSING, 0], [0]]
    assert column(encoded, label_column("label")) == [[1], [], [0]]
    assert encoded.labelled["ner"].tolist() == [1, 1, 1]


def test_null_and_empty_texts_are_rows_without_words(tmp_path: Path) -> None:
    rows = [{"text": text, "label": label} for text, label in zip([None, "", " \t", "tea"], "gbbb", strict=True)]
    encoded = encode(load(tmp_path, rows, "text"))
    assert encoded.lengths.tolist() == [0, 0, 0, 1]
    assert encoded.labelled["label"].tolist() == [1, 1, 1, 1]


def test_counts_and_lengths_agree_with_the_rows_over_many_batches(tmp_path: Path) -> None:
    random_ = random.Random(0)
    rows: list[dict[str, Any]] = []
    for n in range(12_000):  # more than are counted at once
        row = token_row(random_) if n < 50 else random_.choice(rows[:50]).copy()
        rows.append(row | ({"ner": None} if n % 3 == 0 else {}))
    loaded = load(tmp_path, rows, max_rows={"train": 11_000})
    encoded = encode(loaded)
    assert encoded.lengths.tolist() == [len(row) for row in encoded.rows["pieces"]]
    for task in ("ner", "upos"):
        ids = encoded.rows[label_column(task)]
        assert encoded.labelled[task].tolist() == [sum(id_ != MISSING for id_ in row) for row in ids]
    words = loaded.splits["train"].rows["tokens"]
    assert [len(row) for row in words] == [len(row) for row in encoded.rows["starts"]]


def test_encoding_takes_time_in_proportion_to_the_rows(tmp_path: Path) -> None:
    random_ = random.Random(0)
    loaded = load(tmp_path, [text_row(random_) for _ in range(20_000)], "text", test_fraction=0.5)
    start = time.monotonic()
    encode(loaded)
    assert time.monotonic() - start < 10  # about half a second; a row at a time through `datasets` would take minutes


# What is refused


def bad_row(row: dict[str, Any]) -> Callable[[Path], LoadedDataset]:
    """Thirty rows of which number 17 is ``row``; the splits are carved, and train is capped."""

    def make(folder: Path) -> LoadedDataset:
        rows: list[dict[str, Any]] = [
            {"tokens": ["anna", "sees"], "ner": ["B-PER", "O"], "label": "good" if n % 2 else "bad"} for n in range(30)
        ]
        rows[17] |= row
        for seed in range(50):  # one that leaves the row in train, at another place
            loaded = load(folder, rows, test_fraction=0.2, max_rows={"train": 20}, seed=seed)
            places = loaded.splits["train"].source_rows.tolist()
            if 17 in places and places.index(17) != 17:
                return loaded
        raise AssertionError("no such seed")

    return make


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"ner": ["O"]}, ["task `ner`", "has 2 words but 1 labels"]),
        ({"ner": ["O"] * 3}, ["task `ner`", "has 2 words but 3 labels"]),
        ({"tokens": []}, ["task `ner`", "has 0 words but 2 labels"]),
        ({"tokens": None}, ["task `ner`", "has 0 words but 2 labels"]),
        ({"tokens": ["anna", None]}, ["word 1 is null"]),
        ({"ner": ["O", "B-PRE"]}, ["task `ner`", "unknown label 'B-PRE'", "word 1", "Did you mean `B-PER`?"]),
        ({"ner": ["O", ""]}, ["task `ner`", "unknown label ''", "word 1"]),
        ({"label": "goood"}, ["task `label`", "unknown label 'goood'", "Did you mean `good`?"]),
    ],
)
def test_a_bad_row_is_told_with_dataset_split_file_and_its_number_there(
    tmp_path: Path, row: dict[str, Any], expected: list[str]
) -> None:
    message = problem(bad_row(row)(tmp_path), label_names=PEOPLE)
    place = f"dataset `demo`, split train, row 17 of {tmp_path / 'rows.jsonl'} (counted from 0)"
    for part in (*expected, place):
        assert part in message


def test_a_class_number_without_a_name_is_told(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 2}]
    message = problem(load(tmp_path, rows, "text"), label_names=PEOPLE)
    assert "unknown label 2 in dataset `demo`, split train, row 1 " in message
    assert "`bad`, `good`" in message


# The cache


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever words are really turned into pieces."""
    calls: list[int] = []

    def encode_words(tokenizer: Any, texts: Any) -> Any:
        calls.append(len(texts))
        return original(tokenizer, texts)

    original = encoding.encode_words
    monkeypatch.setattr(encoding, "encode_words", encode_words)
    return calls


TEXTS = [
    {"text": "Tea, good tea!", "label": "good"},
    {"text": "bad tea", "label": "bad"},
    {"text": "a", "label": "bad"},
]


def test_data_from_files_is_encoded_once(tmp_path: Path, counted: list[int]) -> None:
    options: dict[str, Any] = {"test_fraction": 0.4, "max_rows": {"train": 1}}
    first = encode(load(tmp_path, TEXTS, "text", **options))
    assert counted == [1]
    used = tokenizer()
    used(["a", "tea tea"], padding=True, truncation=True, max_length=5)  # leaves its mark on the tokenizer
    again = encode(load(tmp_path, None, "text", **options), made=used)
    assert counted == [1]
    assert column(first, "pieces") == column(again, "pieces")
    assert first.lengths.tolist() == again.lengths.tolist()


@pytest.mark.parametrize(
    "change",
    [
        {"made": byte_level_tokenizer()},
        {"splitter": "whitespace"},
        {"label_names": {"label": ["good", "bad"]}},
        {"label_names": {"label": ["bad", "good", "odd"]}},
    ],
    ids=["tokenizer", "splitter", "label order", "label set"],
)
def test_what_changes_the_encoding_is_encoded_anew(tmp_path: Path, counted: list[int], change: dict[str, Any]) -> None:
    loaded = load(tmp_path, TEXTS, "text")
    encode(loaded)
    changed = encode(loaded, **change)
    encode(loaded)
    assert len(counted) == 2
    if change.get("label_names"):
        names = change["label_names"]["label"]
        assert column(changed, label_column("label")) == [[names.index(row["label"])] for row in TEXTS]


def test_word_lists_do_not_depend_on_the_splitter(tmp_path: Path, counted: list[int]) -> None:
    loaded = load(tmp_path, [{"tokens": ["anna"], "ner": ["B-PER"]}, {"tokens": ["a"], "ner": ["O"]}])
    encode(loaded, splitter="unicode")
    encode(loaded, splitter="english")
    assert len(counted) == 1


def test_a_changed_file_is_read_and_encoded_anew(tmp_path: Path, counted: list[int]) -> None:
    encode(load(tmp_path, TEXTS, "text"))
    encoded = encode(load(tmp_path, [*TEXTS, {"text": "tea", "label": "bad"}], "text"))
    assert len(encoded) == 4
    assert counted == [3, 4]

"""The shipped demo corpus is in order, and scripts/validate_demo.py finds what is not."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "validate_demo.py"
CORPUS = ROOT / "recipes" / "demo"

Values = dict[str, Any]


def load_script() -> ModuleType:
    spec = spec_from_loader("validate_demo", SourceFileLoader("validate_demo", str(SCRIPT)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


validate_demo = load_script()


def run_script(*arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the corpus, to break."""
    for path in CORPUS.glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    return tmp_path


def read(path: Path) -> list[Values]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write(path: Path, rows: list[Values]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def problems(folder: Path) -> list[str]:
    return validate_demo.check(folder)[1]


def break_row(folder: Path, change: Callable[[Values], object], *, split: str = "train", line: int = 7) -> str:
    """Change one row of a corpus, and say the only problem that is then found, from its line on."""
    path = folder / f"{split}.jsonl"
    rows = read(path)
    change(rows[line - 1])
    write(path, rows)
    return the_problem(folder, f"{path}:{line}: ")


def the_problem(folder: Path, start: str) -> str:
    found = problems(folder)
    assert len(found) == 1, found
    assert found[0].startswith(start)
    return found[0].removeprefix(start)


def text_row(number: int, text: str) -> Values:
    """A row that the script finds sound, without entities."""
    words = [text[start:end] for start, end in validate_demo.split_words(text, "english")]
    return {
        "id": f"more-{number}",
        "register": "news",
        "text": text,
        "tokens": words,
        "upos": ["NOUN"] * len(words),
        "ner": ["O"] * len(words),
        "sentiment": "neutral",
        "topic": "food",
    }


# The shipped corpus.


def test_the_shipped_corpus_has_no_problem():
    assert problems(CORPUS) == []


def test_the_script_prints_counts_and_ok_for_the_shipped_corpus():
    result = run_script()
    assert result.returncode == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["train", "validation", "test", "all"]
    assert lines[1].split() == ["sentences", "432", "108", "108", "648"]
    assert lines[-1] == "ok"


def test_the_readme_tells_the_counts_that_the_script_prints():
    readme = (CORPUS / "README.md").read_text(encoding="utf-8")
    cells = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in readme.splitlines()}
    for line in list(validate_demo.table(validate_demo.check(CORPUS)[0]))[1:]:
        name, *counts = line.rsplit(maxsplit=4)
        assert (name.split()[-1], *counts) in cells


# Broken lines.


def test_the_script_tells_file_and_line_and_fails(folder: Path):
    break_row(folder, lambda row: row.update(sentiment="mixed"), split="test", line=3)
    result = run_script(folder)
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        f"{folder / 'test.jsonl'}:3: sentiment: found 'mixed', expected one of positive, negative, neutral",
        "1 problem",
    ]


def test_all_problems_are_told_at_once(folder: Path):
    rows = read(folder / "test.jsonl")
    rows[0]["sentiment"], rows[1]["upos"][0] = "mixed", "NOUNS"
    write(folder / "test.jsonl", rows)
    assert len(problems(folder)) == 2


def test_a_missing_file_is_found(folder: Path):
    (folder / "test.jsonl").unlink()
    the_problem(folder, f"{folder / 'test.jsonl'}: cannot be read as UTF-8 text: ")


def test_an_empty_file_is_found(folder: Path):
    (folder / "test.jsonl").write_text("")
    assert the_problem(folder, f"{folder / 'test.jsonl'}:1: ").startswith("found no JSON (Expecting value)")


def test_text_that_is_not_utf_8_is_found(folder: Path):
    (folder / "test.jsonl").write_bytes("München".encode("latin-1"))
    the_problem(folder, f"{folder / 'test.jsonl'}: cannot be read as UTF-8 text: ")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{'id': 1}", "found no JSON (Expecting property name enclosed in double quotes)"),
        ("", "found no JSON (Expecting value)"),
        ("[1]", "found list, expected a JSON object"),
    ],
)
def test_a_line_that_is_no_json_object_is_found(folder: Path, line: str, problem: str):
    with (folder / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    assert the_problem(folder, f"{folder / 'train.jsonl'}:433: ").startswith(problem)


def test_a_missing_key_is_found(folder: Path):
    assert break_row(folder, lambda row: row.pop("topic")).startswith("keys: found ['id',")


def test_an_unknown_key_is_found(folder: Path):
    assert "'author'], expected ['id'," in break_row(folder, lambda row: row.update(author="me"))


@pytest.mark.parametrize("value", [None, 1, "", " ", ["a"]])
def test_a_text_of_another_type_or_empty_is_found(folder: Path, value: object):
    problem = break_row(folder, lambda row: row.update(text=value))
    assert problem == f"text: found {value!r}, expected a text that is not empty"


@pytest.mark.parametrize("value", [None, "O O", [], [1], {"O": 1}])
def test_labels_that_are_no_list_of_texts_are_found(folder: Path, value: object):
    problem = break_row(folder, lambda row: row.update(ner=value))
    assert problem == f"ner: found {value!r}, expected a list of texts that is not empty"


# Broken rows.


def test_a_token_that_is_not_the_splitters_is_found(folder: Path):
    problem = break_row(folder, lambda row: row["tokens"].__setitem__(0, "Hm"))
    assert problem.startswith("tokens: word 1: found 'Hm', expected ")


def test_a_token_too_many_is_found(folder: Path):
    def lengthen(row: Values) -> None:
        row["tokens"].append("!")
        row["upos"].append("PUNCT")
        row["ner"].append("O")

    count = len(read(folder / "train.jsonl")[6]["tokens"])
    problem = break_row(folder, lengthen)
    assert problem == f"tokens: found {count + 1}, expected the English splitter's {count}"


@pytest.mark.parametrize("key", ["upos", "ner"])
def test_a_missing_word_label_is_found(folder: Path, key: str):
    count = len(read(folder / "train.jsonl")[6]["tokens"])
    problem = break_row(folder, lambda row: row[key].pop())
    assert problem == f"{key}: found {count - 1} labels, expected {count}, one for each token"


@pytest.mark.parametrize(("key", "label"), [("upos", "CONJ"), ("ner", "B-GPE")])
def test_an_unknown_word_label_is_found(folder: Path, key: str, label: str):
    problem = break_row(folder, lambda row: row[key].__setitem__(0, label))
    assert problem.startswith(f"{key}: word 1: found '{label}', expected one of ")


@pytest.mark.parametrize("key", ["register", "sentiment"])
def test_an_unknown_text_label_is_found(folder: Path, key: str):
    problem = break_row(folder, lambda row: row.update({key: "other"}))
    assert problem.startswith(f"{key}: found 'other', expected one of ")


def test_an_entity_that_does_not_begin_with_b_is_found(folder: Path):
    def start_inside(row: Values) -> None:
        row["ner"] = ["I-PER", *["O"] * (len(row["tokens"]) - 1)]

    problem = break_row(folder, start_inside)
    assert problem == "ner: word 1: found I-PER at the start, expected B-PER or I-PER after B-PER"


def test_an_entity_that_goes_on_as_another_kind_is_found(folder: Path):
    def mix(row: Values) -> None:
        row["ner"] = ["B-PER", "I-LOC", *["O"] * (len(row["tokens"]) - 2)]

    problem = break_row(folder, mix)
    assert problem == "ner: word 2: found I-LOC after B-PER, expected B-LOC or I-LOC after B-LOC"


# A corpus that is broken as a whole.


@pytest.mark.parametrize(("split", "fewest"), [("train", 400), ("validation", 100), ("test", 100)])
def test_a_split_that_is_too_small_is_found(folder: Path, split: str, fewest: int):
    path = folder / f"{split}.jsonl"
    write(path, read(path)[: fewest - 1])
    problem = f"{split}: found {fewest - 1} sentences, expected at least {fewest}"
    assert problem in problems(folder)


def test_a_corpus_that_is_too_small_is_found(folder: Path):
    for split, size in (("train", 400), ("validation", 100), ("test", 99)):
        write(folder / f"{split}.jsonl", read(folder / f"{split}.jsonl")[:size])
    assert "corpus: found 599 sentences, expected at least 600" in problems(folder)


def test_too_few_topics_are_found(folder: Path):
    for path in folder.glob("*.jsonl"):
        rows = read(path)
        for row in rows:
            row["topic"] = {"food": "health", "travel": "sports"}.get(row["topic"], row["topic"])
        write(path, rows)
    start = "corpus: found 4 topics (business, health, sports, technology), "
    assert the_problem(folder, start) == "expected at least 5"


@pytest.mark.parametrize(
    ("key", "gone", "instead"),
    [
        ("topic", "food", "health"),
        ("sentiment", "neutral", "positive"),
        ("upos", "SYM", "PUNCT"),
        ("ner", "I-MISC", "B-MISC"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_that_a_split_lacks_is_found(folder: Path, split: str, key: str, gone: str, instead: str):
    path = folder / f"{split}.jsonl"
    rows = read(path)
    for row in rows:
        if isinstance(row[key], list):
            row[key] = [instead if label == gone else label for label in row[key]]
        elif row[key] == gone:
            row[key] = instead
    write(path, rows)
    found = [problem for problem in problems(folder) if problem.startswith(f"{split}: ")]
    assert found == [f"{split}: {key}: found no {gone}, expected every label in every split"]


def test_a_label_that_only_one_split_has_is_found(folder: Path):
    problem = "found no X, expected every label in every split"
    path = folder / "test.jsonl"
    rows = read(path)
    rows[0]["upos"][0] = "X"
    write(path, rows)
    assert problems(folder) == [f"train: upos: {problem}", f"validation: upos: {problem}"]


def test_an_id_used_in_two_splits_is_found(folder: Path):
    path = folder / "train.jsonl"
    used = read(path)[0]["id"]
    problem = break_row(folder, lambda row: row.update(id=used), split="test")
    assert problem == f"id: found {used!r} as in {path}:1, expected ids used once"


def test_a_text_like_one_of_another_split_is_found(folder: Path):
    source, path = folder / "train.jsonl", folder / "test.jsonl"
    write(path, [*read(path), {**read(source)[4], "id": "news-999"}])
    problem = the_problem(folder, f"{path}:109: ")
    assert problem == f"text: found 1.00 in common with {source}:5, expected at most 0.34"


def test_a_text_with_other_names_only_is_found(folder: Path):
    path = folder / "train.jsonl"
    rows = read(path)
    number, row = next((n, r) for n, r in enumerate(rows, start=1) if r["ner"].count("B-LOC") == 1)
    place = row["ner"].index("B-LOC")
    other = json.loads(json.dumps(row).replace(row["tokens"][place], "Zanzibar"))
    write(path, [*rows, {**other, "id": "news-999"}])
    problem = the_problem(folder, f"{path}:433: ")
    assert problem.startswith(f"text: found 1.00 in common with {path}:{number}, ")


def test_more_than_three_texts_of_one_start_are_found(folder: Path):
    path = folder / "train.jsonl"
    endings = ["ate plums quietly", "flew over hills", "sang old songs", "lost its key"]
    more = [text_row(number, f"Some purple penguin {ending}.") for number, ending in enumerate(endings)]
    write(path, [*read(path), *more[:3]])
    assert problems(folder) == []
    write(path, [*read(path), more[3]])
    problem = the_problem(folder, f"{path}:436: ")
    assert problem == "text: found 4 that start with 'some purple penguin', expected at most 3"

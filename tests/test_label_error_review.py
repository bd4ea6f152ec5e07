"""Labels that a person mends: what is written there is what is learned."""

import re
from pathlib import Path
from typing import Any

import pytest
from planted import planted, rows_of
from searched import Made, again, new_data, searched, train_rows
from tiny import write_jsonl
from tiny_runs import write_yaml

import nlp_mtl.label_error_folds
from nlp_mtl import DataError, Recipe, RunError
from nlp_mtl.build_data import prepare
from nlp_mtl.cli import main
from nlp_mtl.label_error_review import read_review

pytest.importorskip("cleanlab")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return searched(tmp_path_factory.mktemp("search"))


def edited(made: Made, file: Path, change: Any) -> list[dict[str, Any]]:
    """A review after a person's work; ``change`` takes its lines, and changes them."""
    lines = rows_of(made[1] / "review.jsonl")
    change(lines)
    write_jsonl(file, lines)
    return lines


def test_a_review_has_a_line_a_row_and_task_the_worst_first_with_what_is_proposed(made: Made) -> None:
    _, folder, _ = made
    errors, lines = rows_of(folder / "label_errors.jsonl"), rows_of(folder / "review.jsonl")
    places = [(line["task"], line["row"]) for line in lines]
    assert places == [*dict.fromkeys((line["task"], line["row"]) for line in errors)]
    for line in lines:
        assert line["label"] == line["given"]
        of_row = [one for one in errors if (one["task"], one["row"]) == (line["task"], line["row"])]
        if line["task"] == "sentiment":
            assert (line["given"], line["proposed"]) == (of_row[0]["given"], of_row[0]["proposed"])
            continue
        expected = [*line["given"]]
        for one in of_row:
            expected[one["word"]] = one["proposed"]
        assert line["proposed"] == expected
        assert [(one["word"], one["token"]) for one in line["suspects"]] == sorted(
            (one["word"], one["tokens"][one["word"]]) for one in of_row
        )


def test_what_a_person_writes_is_what_is_learned_and_all_else_is_as_it_was(made: Made, tmp_path: Path) -> None:
    changed: dict[str, dict[int, Any]] = {"pos": {}, "sentiment": {}}

    def mend(lines: list[dict[str, Any]]) -> None:
        texts = [line for line in lines if line["task"] == "sentiment"]
        words = [line for line in lines if line["task"] == "pos"]
        texts[0]["label"] = "negative" if texts[0]["given"] == "positive" else "positive"
        texts[1]["label"] = None
        words[0]["label"] = ["X" if label is None else "VERB" for label in words[0]["given"]]
        words[1]["label"] = [None, *words[1]["given"][1:]]
        for line in (*texts[:2], *words[:2]):
            changed[line["task"]][line["row"]] = line["label"]
        lines.remove(texts[2])  # nobody looked at it: it stays
        lines.reverse()

    edited(made, tmp_path / "mine.jsonl", mend)
    given, _, _ = made
    written = new_data(made, apply=tmp_path / "mine.jsonl")
    recipe, clean = Recipe.from_dict(given), Recipe.from_yaml(written["recipe"])
    numbers = prepare(recipe).loaded["texts"].splits["train"].source_rows.tolist()
    expected = [
        {**row, "label": changed["sentiment"].get(number, row["label"])}
        for number, row in zip(numbers, train_rows(recipe, "texts"), strict=True)
    ]
    assert train_rows(clean, "texts") == [row for row in expected if row["label"] is not None]
    expected = [
        {**row, "upos": changed["pos"].get(number, row["upos"])}
        for number, row in enumerate(train_rows(recipe, "words"))
    ]
    assert train_rows(clean, "words") == expected
    assert written["datasets"]["texts"] == {"rows": len(numbers) - 1, "left_out": 1, "edited": 1}
    assert clean.output_dir.endswith("-reviewed")


def test_a_review_is_taken_in_without_training_and_kept_by_the_next_call(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given, folder, _ = made
    monkeypatch.setattr(nlp_mtl.label_error_folds, "train_part", None)
    again(made, review=True)  # it is as it was written
    untouched = (folder / "review.jsonl").read_text()

    def accept(lines: list[dict[str, Any]]) -> None:
        for line in lines:
            line["label"] = line["proposed"]

    edited(made, folder / "review.jsonl", accept)
    with pytest.raises(RunError, match="or was edited"):
        again(made, review=True)
    path = write_yaml(tmp_path, given)
    with pytest.raises(SystemExit) as ended:
        main(["label-errors", str(path), "--output-dir", str(folder), "--apply", str(folder / "review.jsonl")])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert f"To use them: nlp-mtl train {folder / 'reviewed' / 'recipe.yaml'}" in printed
    (folder / "review.jsonl").write_text(untouched)


def problem(made: Made, file: Path, change: Any) -> str:
    """The message for a review that cannot be taken in."""
    edited(made, file, change)
    with pytest.raises(DataError) as error:
        again(made, apply=file)
    assert str(error.value).startswith(str(file))
    return str(error.value)


def of_task(lines: list[dict[str, Any]], task: str) -> dict[str, Any]:
    return next(line for line in lines if line["task"] == task)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: of_task(lines, "sentiment").update(label="positiv"), "Did you mean `positive`"),
        (lambda lines: of_task(lines, "sentiment").update(label=["positive"]), "is none of `negative`, `positive`"),
        (lambda lines: of_task(lines, "pos")["label"].append("VERB"), r"labels for \d+ words"),
        (lambda lines: of_task(lines, "pos").update(label="VERB"), "expected a list of labels"),
        (lambda lines: of_task(lines, "pos")["label"].__setitem__(0, "VRB"), "'VRB' of word 0 is none of"),
        (lambda lines: of_task(lines, "sentiment").update(text="other"), "`text` is not that of the row"),
        (lambda lines: of_task(lines, "sentiment").update(given="other"), "not what `given` says"),
        (lambda lines: of_task(lines, "sentiment").update(row=10**6), "has no train row 1000000"),
        (lambda lines: of_task(lines, "sentiment").update(row="first"), "has no train row 'first'"),
        (lambda lines: of_task(lines, "sentiment").update(task="topic"), "there is no task 'topic'"),
        (lambda lines: of_task(lines, "sentiment").update(dataset="words"), "reads no train rows of a dataset 'words'"),
        (lambda lines: of_task(lines, "sentiment").pop("label"), "`label` is missing"),
        (lambda lines: lines.append(lines[0]), "the row was on line 1 already"),
        (lambda lines: None, "so there is nothing to write"),
    ],
)
def test_what_cannot_be_taken_in_is_told_with_its_line(made: Made, tmp_path: Path, change: Any, message: str) -> None:

    assert re.search(message, problem(made, tmp_path / "review.jsonl", change))
    assert not (made[1] / "reviewed.partial").exists()


def test_files_that_are_no_reviews_are_told(made: Made, tmp_path: Path) -> None:
    for content, message in ((b"{", "line 1 is not valid JSON"), (b"[1]", "not a JSON object"), (b"\xff", "utf-8")):
        (tmp_path / "review.jsonl").write_bytes(content + b"\n")
        with pytest.raises(DataError, match=message):
            again(made, apply=tmp_path / "review.jsonl")
    with pytest.raises(DataError, match="no such file"):
        again(made, apply=tmp_path / "nowhere.jsonl")


def test_edited_tags_are_iob2(tmp_path: Path) -> None:
    given, _ = planted(tmp_path, train=24)
    given["tasks"] = {"ner": {"type": "token-classification", "dataset": "words", "labels": "ner"}}
    del given["datasets"]["texts"]
    file = tmp_path / "corpus" / "words" / "train.jsonl"
    rows = rows_of(file)
    rows[0] = {"tokens": ["anna", "of", "paris"], "ner": ["B-PER", "I-PER", "B-LOC"], "upos": ["X"] * 3}
    rows[1] = {"tokens": ["a", "of"], "ner": ["I-PER", "O"], "upos": ["X"] * 2}  # as it was given
    write_jsonl(file, rows)
    prepared = prepare(Recipe.from_dict(given), splits=("train",))
    head = {"dataset": "words", "task": "ner"}

    def edits(row: int, label: Any) -> Any:
        one = {**head, "row": row, "tokens": rows[row]["tokens"], "given": rows[row]["ner"], "label": label}
        return read_review(write_jsonl(tmp_path / "review.jsonl", [one]), prepared)

    for label in (["O", "I-PER", "B-LOC"], ["B-PER", None, "I-PER"], [None, "I-PER", "O"]):
        with pytest.raises(DataError, match=r"'I-PER' of word \d continues nothing"):
            edits(0, label)
    labels = prepared.tasks[0].labels
    assert edits(0, ["B-PER", "O", None]) == {"words": {0: {"ner": [labels.index("B-PER"), 0, -100]}}}
    assert edits(0, None) == {"words": {0: {"ner": []}}}
    assert edits(1, ["I-PER", "O"]) == {}, "what is left as it is may be what it is"
    assert edits(1, ["I-PER", "B-LOC"]) == {"words": {1: {"ner": [labels.index("I-PER"), labels.index("B-LOC")]}}}
    with pytest.raises(DataError, match="'I-LOC' of word 1 continues nothing"):
        edits(1, ["I-PER", "I-LOC"])
    with pytest.raises(DataError, match="'I-LOC' of word 0 continues nothing"):
        edits(1, ["I-LOC", "O"])

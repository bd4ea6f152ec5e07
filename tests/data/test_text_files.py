"""Files of text are read line by line, as they are read without streaming; what is wrong is told by file and line."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shards import LABELS, loaded, numbers, stream, write_shards
from tiny import write_jsonl

from nlp_mtl.errors import DataError

GOOD = '{"text": "a", "label": "no"}\n'


@pytest.mark.parametrize(
    ("form", "last", "told"),
    [
        ("jsonl", GOOD + '{"text": "broken\n', r"cannot be read: line 2 is not valid JSON"),
        ("jsonl", GOOD + "[1, 2]\n", r"cannot be read: line 2 is not a JSON object: \[1, 2\]"),
        (
            "jsonl",
            GOOD + '{"text": "caf\udce9", "label": "no"}\n',
            r"cannot be read: line 2 is not text in UTF-8 \(byte 0xe9\)",
        ),
        ("jsonl", '{"txt": "a", "label": "no"}\n', r"has no column `text`; it has `txt`, `label`. Did you mean `txt`"),
        ("jsonl", GOOD + '{"text": 7, "label": "no"}\n', r"line 2 of .*part-9.jsonl: `text` holds 7, no text"),
        ("csv", "text,label\na,no\nb,no,too many\n", r"cannot be read: line 3 has 3 fields, but there are 2 columns"),
        ("csv", "text,lable\na,no\n", r"has no column `label`; it has `text`, `lable`. Did you mean `lable`"),
        ("csv", 'text,label\n"a,no\n', r"cannot be read: it stops behind line \d: unexpected end of data"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_line(tmp_path: Path, form: str, last: str, told: str) -> None:
    (tmp_path / f"part-0.{form}").write_text(GOOD * 200 if form == "jsonl" else "text,label\n" + "a,no\n" * 200)
    (tmp_path / f"part-9.{form}").write_text(last, errors="surrogateescape")
    with pytest.raises(DataError, match=rf"dataset `demo`, split train.*part-9.{form}.*{told}|{told}"):
        stream(tmp_path, form).batch(range(600))


def test_a_value_of_another_type_among_the_first_rows_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text(GOOD * 4 + '{"text": 17, "label": "no"}\n' + GOOD)
    with pytest.raises(
        DataError, match=r"split train, line 5 of .*part-0.jsonl: the column `text` holds 17, and 'a' before"
    ):
        stream(tmp_path)


def test_a_compressed_file_that_was_cut_is_told(tmp_path: Path) -> None:
    whole = gzip.compress("".join(json.dumps({"text": f"row {n}", "label": "no"}) + "\n" for n in range(5000)).encode())
    (tmp_path / "part-0.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"part-0.jsonl.gz cannot be read: it stops behind line \d+: Compressed file ended"
    ):
        stream(tmp_path, "jsonl.gz").batch(range(5000))


def test_a_header_that_the_recipe_names_again_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part-0.csv").write_text("text,label\na,no\n")
    with pytest.raises(
        DataError, match=r"part-0.csv cannot be read: .*it has a header of its own; leave out `columns`"
    ):
        loaded(tmp_path, "csv", columns=["text", "label"])


def test_files_may_differ_in_columns_nobody_asked_for_and_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text(GOOD * 3)
    (tmp_path / "part-1.jsonl").write_text('{"label": "yes", "meta": {"n": 1}, "text": "b"}\n' * 3)
    found = stream(tmp_path).batch(range(6))
    assert sorted(zip(*found.values(), strict=True)) == [("a", "no")] * 3 + [("b", "yes")] * 3
    (tmp_path / "part-0.csv").write_text("text,label\na,no\n")
    (tmp_path / "part-1.csv").write_text("n,label,text\n7,yes,b\n")
    assert sorted(zip(*stream(tmp_path, "csv").batch(range(2)).values(), strict=True)) == [("a", "no"), ("b", "yes")]


def test_rows_without_a_label_may_come_first(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text('{"text": "a", "label": null}\n' * 300)
    (tmp_path / "part-1.jsonl").write_text('{"text": "b", "label": "yes"}\n{"text": "c"}\n')
    found = stream(tmp_path).batch(range(302))
    assert sorted(zip(*found.values(), strict=True), key=str)[-2:] == [("b", "yes"), ("c", None)]


def test_class_numbers_of_csv_are_numbers_and_gaps_are_null(tmp_path: Path) -> None:
    (tmp_path / "part-0.csv").write_text("text,label\n12,1\nb,0\n")
    (tmp_path / "part-1.csv").write_text("text,label\nc,\n34\n")
    found = stream(tmp_path, "csv").batch(range(4))
    assert sorted(zip(*found.values(), strict=True), key=str) == [("12", 1), ("34", None), ("b", 0), ("c", None)]
    (tmp_path / "part-0.csv").write_text("text,label\n" + "a,1\n" * 100)
    (tmp_path / "part-1.csv").write_text("text,label\nc,high\n")
    with pytest.raises(DataError, match=r"line 2 of .*part-1.csv: the column `label` held numbers, and now 'high'"):
        stream(tmp_path, "csv").batch(range(101))


def test_a_text_among_lists_of_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text('{"text": ["a"], "label": "no"}\n' * 100 + '{"text": "ab", "label": "no"}\n')
    with pytest.raises(DataError, match=r"line 101 of .*: `text` holds 'ab', no list of words"):
        stream(tmp_path, tokens="text", text=None).batch(range(101))


def test_a_number_among_words_and_one_among_second_texts_are_refused(tmp_path: Path) -> None:
    good, words = {"text": "a", "other": "b", "label": "no"}, {"text": ["a", None], "label": "no"}
    write_jsonl(tmp_path / "part-0.jsonl", [good] * 100 + [good | {"other": None}, good | {"other": 7}])
    with pytest.raises(DataError, match=r"line 102 of .*: `other` holds 7, no text"):
        stream(tmp_path, text_pair="other").batch(range(102))
    write_jsonl(tmp_path / "part-0.jsonl", [words] * 100 + [words | {"text": ["a", 7]}])
    with pytest.raises(DataError, match=r"line 101 of .*: `text` holds \['a', 7\], no list of words"):
        stream(tmp_path, tokens="text", text=None).batch(range(101))


def test_a_list_of_objects_is_read_as_well(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text(json.dumps([{"text": f"row {n}", "label": "no"} for n in range(5)]))
    assert sorted(numbers(stream(tmp_path).batch(range(5)))) == [0, 1, 2, 3, 4]


def test_an_empty_file_and_files_of_two_formats_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "part-9.jsonl").write_text("")
    with pytest.raises(DataError, match=r"part-9.jsonl is empty"):
        loaded(tmp_path)
    (tmp_path / "part-9.jsonl").unlink()
    write_shards(tmp_path, "csv")
    with pytest.raises(DataError, match=r"files of one format; these are `csv`, `json`"):
        loaded(tmp_path, data_files="part-*")


TEXTS = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00\x1a\r\ufeff"), min_size=1, max_size=12
).map("x{}".format)  # no text looks like a number, for pandas would take it for one


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXTS, st.sampled_from([*LABELS, None])), min_size=2, max_size=12))
@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "conll"])
def test_a_stream_reads_of_a_file_what_is_read_without_streaming(
    tmp_path: Path, form: str, rows: list[tuple[str, str | None]]
) -> None:
    file = tmp_path / f"part-0.{form}"
    if form == "conll":
        words = [("".join(text.split()), label or "O") for text, label in rows]
        words = [(word, label) for word, label in words if not word.startswith(("-DOCSTART-", "#"))] or [("a", "no")]
        file.write_text("".join(f"{word} {label}\n\n" for word, label in words), encoding="utf-8", newline="\n")
    elif form == "jsonl":
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    else:
        cleaned = [(text if form == "csv" else " ".join(text.split()), label) for text, label in rows]
        with file.open("w", newline="", encoding="utf-8") as opened:
            if form == "csv":
                csv.writer(opened, lineterminator="\n").writerows([("text", "label"), *cleaned])
            else:
                opened.write("".join(f"{text}\t{label or ''}\n" for text, label in [("text", "label"), *cleaned]))
    plain = loaded(tmp_path, form, streaming=False, validation_fraction=0, test_fraction=0).splits["train"].rows
    found = stream(tmp_path, form).batch(range(len(plain)))
    columns = plain.column_names
    expected = [tuple(row[column] for column in columns) for row in plain.to_list()]
    assert sorted(zip(*(found[column] for column in columns), strict=True), key=repr) == sorted(expected, key=repr)

import bz2
import gc
import gzip
import json
import os
from pathlib import Path

import datasets
import pytest
from loaded import ROWS, load, problem, values
from tiny import write_jsonl


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz", ".tsv.gz"])
def test_every_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    rows = [
        {"text": 'a "quoted", text', "label": "NA"},
        {"text": "naïve 🙂", "label": None},
        {"text": "5", "label": "b"},
    ]
    file = tmp_path / f"data{ending}"
    data = datasets.Dataset.from_list(rows)
    if "json" in ending:
        content = "".join(json.dumps(row) + "\n" for row in rows)
    elif "csv" in ending:
        content = 'text,label\n"a ""quoted"", text",NA\nnaïve 🙂,\n5,b\n'
    else:
        content = 'text\tlabel\na "quoted", text\tNA\nnaïve 🙂\t\n5\tb\n'
    if ending == ".parquet":
        data.to_parquet(file)
    else:
        file.write_bytes(gzip.compress(content.encode()) if ending.endswith(".gz") else content.encode())
    loaded = load(tmp_path, data_files=file.name)
    assert [dict(row) for row in loaded.splits["train"].rows] == rows


def test_a_json_file_may_be_one_list(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1))
    assert values(load(tmp_path, data_files="a.json"), "text") == [row["text"] for row in ROWS]


def test_quotes_in_tsv_are_text_and_never_join_rows(tmp_path: Path) -> None:
    texts = ['5" nails', '"begins quoted', 'ends quoted"', '"whole"', "it's"]
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{text}\tx\n" for text in texts))
    assert values(load(tmp_path, data_files="a.tsv"), "text") == texts


def test_csv_with_a_tab_as_delimiter_keeps_the_quoting_of_csv(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('text\tlabel\n"two\nlines, ""one"" field"\tx\n')
    loaded = load(tmp_path, path="csv", delimiter="\t", data_files="a.tsv")
    assert values(loaded, "text") == ['two\nlines, "one" field']


def test_words_that_spreadsheets_read_as_missing_are_labels_and_texts(tmp_path: Path) -> None:
    words = ["None", "NA", "null", "nan", "N/A"]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{word},{word}\n" for word in words) + ",\n")
    loaded = load(tmp_path, data_files="a.csv")
    assert values(loaded, "text") == values(loaded, "label") == [*words, None]


def test_class_numbers_with_gaps_in_csv_stay_numbers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,1\nb,\nc,0\n")
    (tmp_path / "b.csv").write_text("text,label\na,\n")
    (tmp_path / "c.csv").write_text("text,label\na,1\n")
    loaded = load(tmp_path, data_files={"train": "a.csv", "validation": "b.csv", "test": "c.csv"})
    assert [values(loaded, "label", split) for split in ("train", "validation", "test")] == [[1, None, 0], [None], [1]]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # by `datasets`, when a chunk cannot be cast
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_label_that_first_occurs_late_in_a_file_is_read(tmp_path: Path, ending: str) -> None:
    """A column's type is guessed from the beginning of a file, which may be unlabelled."""
    file = tmp_path / f"a.{ending}"
    if ending == "csv":  # 10,000 rows are seen at once
        file.write_text("text,label\n" + f"{'x' * 30},\n" * 10_001 + "y,good\n")
    else:  # 10 MB
        file.write_text((json.dumps({"text": "x" * 10_000}) + "\n") * 1100 + '{"text": "y", "label": "good"}\n')
    assert set(values(load(tmp_path, data_files=file.name), "label")) == {None, "good"}
    gc.collect()


CONLL = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n\nPeter NNP B-NP B-PER\n"


def test_conll_2003_files_are_read_by_their_columns(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(CONLL)
    options = {"path": "conll", "text": None, "tokens": "words", "columns": ["words", "pos", "chunk", "ner"]}
    loaded = load(tmp_path, data_files="a.txt", label_columns=["ner", "pos"], **options)
    assert values(loaded, "words") == [["EU", "rejects"], ["Peter"]]
    assert values(loaded, "ner") == [["B-ORG", "O"], ["B-PER"]]


CONLLU = """\
# sent_id = 1
# text = Vámonos # now
1-2\tVámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tVamos\tir\tVERB\t_\tMood=Imp\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
2.1\tempty\t_\tX\t_\t_\t_\t_\t_\t_
3\t#\t#\tSYM\t_\t_\t1\tdep\t_\t_
4\tde facto\t_\tADV\t_\t_\t1\tadvmod\t_\t_
5\t_\t_\t_\t_\t_\t1\tpunct\t_\t_

1\tSí\tsí\tINTJ\t_\t_\t0\troot\t_\t_
"""


@pytest.mark.parametrize("ending", ["conllu", "conllu.gz"])
def test_conllu_gives_syntactic_words_without_ranges_and_empty_nodes(tmp_path: Path, ending: str) -> None:
    content = CONLLU.encode()
    (tmp_path / f"a.{ending}").write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    loaded = load(tmp_path, data_files=f"a.{ending}", text=None, tokens="form", label_columns=["upos"])
    assert values(loaded, "form") == [["Vamos", "nos", "#", "de facto", "_"], ["Sí"]]
    assert values(loaded, "upos") == [["VERB", "PRON", "SYM", "ADV", None], ["INTJ"]]


def test_file_patterns_and_files_of_the_home_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "parts" / "2.jsonl", ROWS[30:])
    write_jsonl(tmp_path / "parts" / "1.jsonl", ROWS[:30])
    for pattern in ("parts/*.jsonl", "~/parts/*.jsonl", "**/?.jsonl"):
        assert values(load(tmp_path, data_files=pattern), "text") == [row["text"] for row in ROWS]


# Bad input


def test_a_missing_file_is_told_with_the_likely_one(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    assert "Did you mean `train.jsonl`?" in problem(tmp_path, data_files="trian.jsonl")
    assert "there is no folder" in problem(tmp_path, data_files="data/train.jsonl")
    assert "no such file" in problem(tmp_path, data_files="*.csv")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.conllu", "a.jsonl.gz", "a.json"])
@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_file_is_told(tmp_path: Path, name: str, content: str) -> None:
    data = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    write_jsonl(tmp_path / "good.jsonl", ROWS)
    message = problem(tmp_path, data_files=name, tokens=None)
    assert f"split train: {tmp_path / name} is empty" in message


def test_files_with_a_header_and_no_rows_are_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n")
    datasets.Dataset.from_dict({"text": [], "label": []}).to_parquet(tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        assert f"{name} is empty" in problem(tmp_path, data_files=name)


@pytest.mark.parametrize("packed", [False, True])
def test_a_broken_json_line_is_told_with_file_and_line(tmp_path: Path, packed: bool) -> None:
    content = '{"text": "a", "label": "x"}\n\n{"text": "b", "label": \n{"text": "c", "label": "x"}\n'
    name = "bad.jsonl.gz" if packed else "bad.jsonl"
    (tmp_path / name).write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    write_jsonl(tmp_path / "good.jsonl", ROWS)
    message = problem(tmp_path, data_files={"train": ["good.jsonl", name]})
    assert f"{tmp_path / name} cannot be read: line 3 is not valid JSON" in message


def test_a_json_line_that_is_no_object_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "x"}\n"only text"\n')
    assert 'line 2 is not a JSON object: "only text"' in problem(tmp_path, data_files="a.jsonl")


def test_rows_that_do_not_fit_the_header_are_told(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("text,label\na,x\na,b,c,x\n")
    (tmp_path / "all.csv").write_text("text,label\na,b,x\nc,d,x\n")
    assert "some.csv cannot be read" in problem(tmp_path, data_files="some.csv")
    assert "line 3" in problem(tmp_path, data_files="some.csv")
    assert "double quotes" in problem(tmp_path, data_files="some.csv")
    assert "more fields than its header" in problem(tmp_path, data_files="all.csv")


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz"])
def test_a_file_that_is_not_what_its_ending_says_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"neither this nor that")
    assert f"{tmp_path / name} cannot be read" in problem(tmp_path, data_files=name)


def test_an_ending_that_tells_no_format_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.iob").write_text("a O\n")
    assert "`conll`" in problem(tmp_path, data_files="a.iob")


def test_a_file_name_with_brackets_names_that_file_and_no_other(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a1.jsonl", [{"text": "other", "label": "x"}])
    write_jsonl(tmp_path / "a[1].jsonl", [{"text": "wanted", "label": "x"}])
    assert values(load(tmp_path, data_files="a[1].jsonl"), "text") == ["wanted"]
    assert values(load(tmp_path, data_files="a[1]*"), "text") == ["other"]  # a pattern


@pytest.mark.parametrize("ending", ["jsonl", "csv", "conllu"])
def test_a_compressed_file_that_was_cut_is_told(tmp_path: Path, ending: str) -> None:
    content = gzip.compress(b"".join(b'{"text": "%d", "label": "x"}\n' % n for n in range(5000)))
    (tmp_path / f"a.{ending}.gz").write_bytes(content[: len(content) // 2])
    message = problem(tmp_path, data_files=f"a.{ending}.gz")
    assert f"a.{ending}.gz cannot be read" in message
    assert "end" in message.lower()


@pytest.mark.parametrize("ending", ["jsonl.gz", "csv.gz", "csv.bz2"])
def test_a_compressed_file_with_a_damaged_inside_is_told_and_not_taken_for_another_encoding(
    tmp_path: Path, ending: str
) -> None:
    rows = b"".join(b'{"text": "%d", "label": "x"}\n' % (n * 7919) for n in range(5000))
    content = bytearray(bz2.compress(rows) if ending.endswith("bz2") else gzip.compress(rows))
    content[len(content) // 2 : len(content) // 2 + 40] = b"\xff" * 40
    (tmp_path / f"a.{ending}").write_bytes(content)
    message = problem(tmp_path, data_files=f"a.{ending}")
    assert f"a.{ending} cannot be read" in message
    assert "UTF-8" not in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.conllu", "a.jsonl.gz"])
def test_a_file_that_is_not_text_is_told_with_the_line(tmp_path: Path, name: str) -> None:
    content = b"text\tlabel\ncaf\xe9\tx\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    message = problem(tmp_path, data_files=name)
    assert f"{tmp_path / name} cannot be read: line 2 is not text in UTF-8 (byte 0xe9): save it as UTF-8" in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("row", [b'{"text": "caf\xe9", "label": "x"}\n', b'{"text": "caf", "label": "\xe9"}\n'])
@pytest.mark.parametrize("as_folder", [False, True])
def test_a_json_line_with_a_byte_that_is_no_text_is_told(
    tmp_path: Path, name: str, row: bytes, as_folder: bool
) -> None:
    content = b'{"text": "tea", "label": "y"}\n' * 3 + row
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    options = {"path": "folder"} if as_folder else {"data_files": f"folder/{name}"}
    message = problem(tmp_path, **options)
    assert f"{name} cannot be read: line 4 is not text in UTF-8 (byte 0xe9): save it as UTF-8" in message


def test_columns_name_those_of_csv_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one,x\ntwo,y\n")
    (tmp_path / "b.tsv").write_text("one\tx\ntwo\ty\n")
    for file in ("a.csv", "b.tsv"):
        assert values(load(tmp_path, data_files=file, columns=["text", "label"]), "text") == ["one", "two"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"columns": ["text"]}, "`columns` is for CSV, TSV and CoNLL files"),
        ({"delimiter": ";"}, "`delimiter` is for CSV, TSV and CoNLL files"),
        ({"name": "en"}, "`name` is for datasets on the Hub"),
        ({"revision": "main"}, "`revision` is for datasets on the Hub"),
        ({"max_rows": {"test": 3}}, "max_rows limits test, but there is no such split"),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path: Path, options: dict, told: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert told in problem(tmp_path, data_files="a.jsonl", **options)


def test_labels_that_are_objects_or_too_large_are_told_also_where_splits_are_carved(tmp_path: Path) -> None:
    for label in ({"a": 1}, 1e300):
        write_jsonl(tmp_path / f"{label}.jsonl", [{"text": "x", "label": label}] * 30)
    assert "cannot be read" in problem(tmp_path, data_files="1e+300.jsonl", test_fraction=0.2)
    load(tmp_path, data_files="{'a'*.jsonl", test_fraction=0.2)  # whoever reads the labels tells


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_file_that_was_rewritten_is_read_anew_even_if_its_time_was_kept(tmp_path: Path, as_folder: bool) -> None:
    source = {"path": "./texts"} if as_folder else {"data_files": ["texts/a.jsonl", "texts/b.jsonl"]}
    for name in "ab":
        write_jsonl(tmp_path / "texts" / f"{name}.jsonl", [{"text": f"{name} old", "label": "x"}])
    before = load(tmp_path, **source)
    for name in "ba":
        file = tmp_path / "texts" / f"{name}.jsonl"
        times = os.stat(file)
        write_jsonl(file, [{"text": f"{name} new", "label": "x"}])
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        now = load(tmp_path, **source)
        assert f"{name} new" in values(now, "text")
        assert now.splits["train"].rows._fingerprint != before.splits["train"].rows._fingerprint
        before = now
    again = load(tmp_path, **source)
    assert again.splits["train"].rows._fingerprint == before.splits["train"].rows._fingerprint


@pytest.mark.parametrize("columns", [["tokens", "ner"], ["tokens", "pos", "chunk", "ner", "more"]])
@pytest.mark.parametrize("start", ["", "-DOCSTART- O\n\n", "# id 1\n"])
def test_a_conll_file_with_another_number_of_columns_than_named_is_refused(
    tmp_path: Path, columns: list[str], start: str
) -> None:
    (tmp_path / "a.txt").write_text(start + "EU NNP I-NP B-ORG\nrejects VBZ I-VP O\n")
    told = problem(
        tmp_path, path="conll", data_files="a.txt", columns=columns, text=None, tokens="tokens", label_columns=["ner"]
    )
    assert f"a.txt has 4 columns (`EU`, `NNP`, `I-NP`, `B-ORG`), but `columns` names {len(columns)}" in told


def test_columns_for_a_csv_file_that_has_a_header_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nfine,good\n")
    assert "has a header of its own; leave out `columns`" in problem(
        tmp_path, data_files="a.csv", columns=["text", "label"]
    )


@pytest.mark.parametrize("nothing", [[], {"train": []}, ""])
def test_no_file_at_all_is_told(tmp_path: Path, nothing: object) -> None:
    assert "data_files names no file" in problem(tmp_path, data_files=nothing)


def test_a_folder_where_a_file_should_be_is_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "texts" / "a.jsonl", ROWS)
    assert "`texts` is a folder; say `texts/*`" in problem(tmp_path, data_files="texts")
    assert len(load(tmp_path, data_files="texts/*").splits["train"].rows) == len(ROWS)


def test_a_conll_line_with_too_few_columns_is_told_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("EU NNP B-ORG\n\nrejects VBZ O\nGerman JJ\n")
    told = problem(
        tmp_path, path="conll", data_files="a.txt", columns=["tokens", "pos", "ner"],
        text=None, tokens="tokens", label_columns=["ner"],
    )  # fmt: skip
    assert "line 4 of" in told
    assert "a.txt has 2 columns (`German`, `JJ`), but `columns` names 3: `tokens`, `pos`, `ner`" in told

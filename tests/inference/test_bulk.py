"""Whole files answered into files: every row once and in order, whatever kills it and however many share it."""

import gzip
import json
import math
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_values import SAME
from rows_to_answer import NLP, TEXTS, lines, write_lines, written_texts
from stock_models import rounded, tiny_model
from tiny import tokenizer

from nlp_mtl import DataError
from nlp_mtl.inference import bulk
from nlp_mtl.inference.bulk import predict_rows
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.inference.rows import open_rows
from nlp_mtl.tasks import Task

TAGS = Task("tags", "multi-label-classification", ("a", "b", "c"), "micro_f1")
RATING = Task("rating", "regression", ("value",), "pearson")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written_texts(tmp_path)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "ROWS_AT_ONCE", 3)


def test_json_lines_hold_each_row_in_order_with_what_is_kept(file: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "answers.jsonl"
    assert predict_rows(NLP, open_rows(str(file), keep=["id"]), output) == len(TEXTS)
    found = lines(output)
    assert [*found[0]] == ["id", "text", "predictions"]
    assert [row["text"] for row in found] == TEXTS
    assert [row["id"] for row in found] == [*range(len(TEXTS))]
    assert rounded([row["predictions"] for row in found]) == rounded(NLP(TEXTS))
    assert [path.name for path in output.parent.iterdir()] == ["answers.jsonl"]


@pytest.mark.parametrize("all_scores", [False, True])
def test_parquet_holds_what_json_lines_hold(file: Path, tmp_path: Path, all_scores: bool) -> None:
    nlp = Predictor(tiny_model(tasks=[*NLP.tasks, TAGS, RATING]), tokenizer())
    rows = open_rows(str(file), keep=["id"])
    for name in ("a.parquet", "a.jsonl"):
        predict_rows(nlp, rows, tmp_path / name, all_scores=all_scores)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.to_pylist() == lines(tmp_path / "a.jsonl")
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 1
    assert table.schema.field("id").type == pa.int64()


def test_columns_of_any_kind_are_kept(tmp_path: Path) -> None:
    at = datetime(2026, 2, 3, 4, 5)
    kept: dict[str, list[Any]] = {
        "when": [at, None], "raw": [b"\xff", b""], "number": [math.nan, 0.5], "cost": [Decimal("1.10"), None],
        "nested": [{"a": [1, 2]}, None], "kind": ["x", "y"],
    }  # fmt: skip
    datasets.Dataset.from_dict({"text": TEXTS[:2], **kept}).to_parquet(str(tmp_path / "t.parquet"))
    rows = open_rows(str(tmp_path / "t.parquet"), keep=[*kept])
    for name in ("a.jsonl", "a.parquet"):
        predict_rows(NLP, rows, tmp_path / name, tasks=["sentiment"])
    table = pq.read_table(tmp_path / "a.parquet")
    found = {name: table.column(name).to_pylist() for name in kept}
    assert math.isnan(found["number"].pop(0))
    assert found == {**kept, "number": [0.5]}
    first, second = lines(tmp_path / "a.jsonl")
    assert {name: first[name] for name in kept} == {
        "when": "2026-02-03T04:05:00", "raw": "/w==", "number": None, "cost": "1.10", "nested": {"a": [1, 2]},
        "kind": "x",
    }  # fmt: skip
    assert (second["raw"], second["number"], second["nested"]) == ("", 0.5, None)


def test_columns_of_mixed_kinds_are_kept_as_json(tmp_path: Path) -> None:
    mixed = [{"a": 1}, ["b"], "c", 4, None]
    path = write_lines(tmp_path / "t.jsonl", [{"text": "anna", "meta": one} for one in mixed])
    rows = open_rows(str(path), keep=["meta"])
    for name in ("a.jsonl", "a.parquet"):
        predict_rows(NLP, rows, tmp_path / name, tasks=["sentiment"])
    assert [row["meta"] for row in lines(tmp_path / "a.jsonl")] == mixed
    found = pq.read_table(tmp_path / "a.parquet").column("meta").to_pylist()
    assert [None if one is None else json.loads(one) for one in found] == mixed


def test_columns_of_files_cannot_be_kept(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "picture": datasets.List(datasets.Image())})
    table = datasets.Dataset.from_dict({"text": ["anna"], "picture": [[]]}, features=features)
    table.to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(DataError, match=r"`picture` holds files \(images, sound\), which cannot be kept"):
        open_rows(str(tmp_path / "t.parquet"), keep=["picture"])


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("t.txt", "\n".join(TEXTS[:7]) + "\n"),
        ("t.csv", "text,n\n" + "".join(f"{text},1\n" for text in TEXTS[:7])),
        ("t.tsv", "n\tsentence\n" + "".join(f"1\t{text}\n" for text in TEXTS[:7])),
        ("t.jsonl", "".join(json.dumps({"text": text or None}) + "\n" for text in TEXTS[:7])),
        ("t.txt.gz", gzip.compress(("\ufeff" + "\n".join(TEXTS[:7])).encode(), mtime=0)),
        ("t.txt.gz", gzip.compress("\r\n".join(TEXTS[:7]).encode(), mtime=0)),
    ],
    ids=["lines", "csv", "tsv", "json lines", "packed with a byte-order mark", "packed lines"],
)
def test_texts_come_in_files_of_many_kinds(tmp_path: Path, name: str, written: str | bytes) -> None:
    path = tmp_path / name
    path.write_bytes(written if isinstance(written, bytes) else written.encode())
    predict_rows(NLP, open_rows(str(path)), tmp_path / "a.jsonl", tasks=["sentiment"])
    found = lines(tmp_path / "a.jsonl")
    assert [row["text"] for row in found] == TEXTS[:7]
    assert rounded([row["predictions"] for row in found]) == rounded(NLP(TEXTS[:7], tasks=["sentiment"]))


def test_bytes_that_are_no_text_are_replaced_in_lines_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "t.txt").write_bytes("\ufffd\n".encode() + b"anna \xff rome\nbob\n")
    predict_rows(NLP, open_rows(str(tmp_path / "t.txt")), tmp_path / "a.jsonl")
    assert [row["text"] for row in lines(tmp_path / "a.jsonl")] == ["\ufffd", "anna \ufffd rome", "bob"]
    assert "t.txt: line 2 is not text in UTF-8 (byte 0xff)" in caplog.text


def test_word_lists_pairs_and_folders_of_a_dataset(tmp_path: Path) -> None:
    words = [["anna", "loves", "", "rome"], [], ["bob"]]
    path = write_lines(tmp_path / "w.jsonl", [{"tokens": one} for one in words])
    predict_rows(NLP, open_rows(str(path), tokens="tokens"), tmp_path / "w.parquet", tasks=["pos"])
    found = pq.read_table(tmp_path / "w.parquet").to_pylist()
    assert [row["text"] for row in found] == ["anna loves rome", "", "bob"]
    assert [[word["text"] for word in row["predictions"]["pos"]] for row in found] == words

    folder = tmp_path / "folder"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [{"one": "anna", "two": f"{split} {n}"} for n in range(4)]
        datasets.Dataset.from_list(rows).to_parquet(str(folder / f"{split}.parquet"))
    with pytest.raises(DataError, match="has the splits `train`, `test`: say which"):
        open_rows(str(folder), text="one")
    with pytest.raises(DataError, match=r"has no split `tets`; it has `train`, `test`\. Did you mean `test`"):
        open_rows(str(folder), text="one", split="tets")
    nlp = Predictor(tiny_model(tasks=[SAME]), tokenizer())
    pairs = open_rows(str(folder), split="test", text="one", text_pair="two")
    predict_rows(nlp, pairs, tmp_path / "p.jsonl")
    assert [(row["text"], row["text_pair"]) for row in lines(tmp_path / "p.jsonl")] == [
        ("anna", f"test {n}") for n in range(4)
    ]


def test_columns_that_do_not_fit_are_told(file: Path, tmp_path: Path) -> None:
    for options, told in (
        ({"text": "txt"}, "there is no column `txt`.* Did you mean `text`"),
        ({"text": "id"}, "the column `id` should hold text"),
        ({"tokens": "text"}, "should be a column of word lists"),
        ({"keep": ["idd"]}, "there is no column `idd`"),
        ({"tokens": "text", "text_pair": "text"}, "lists of words are single texts"),
        ({"split": "train"}, "is a file, which has no split"),
    ):
        with pytest.raises(DataError, match=told):
            open_rows(str(file), **options)  # type: ignore[arg-type]
    other = write_lines(tmp_path / "o.jsonl", [{"a": "x", "b": "y"}])
    with pytest.raises(DataError, match="has no column `text`; columns of text are `a`, `b`: say which"):
        open_rows(str(other))
    for name, written, told in (
        ("e.txt", "", "empty"),
        ("e.jsonl", "{", "cannot be read"),
        ("e.xyz", "x", "no format"),
    ):
        (tmp_path / name).write_text(written)
        with pytest.raises(DataError, match=told):
            open_rows(str(tmp_path / name))
    with pytest.raises(DataError, match=r"textz\.jsonl: no such file in .*\. Did you mean `texts\.jsonl`\?"):
        open_rows(str(tmp_path / "textz.jsonl"))
    with pytest.raises(DataError, match=r"nowhere/texts\.csv\.gz: there is no folder `nowhere`"):
        open_rows("nowhere/texts.csv.gz")  # the Hub is not asked
    with pytest.raises(DataError, match="there is no folder"):
        open_rows(str(tmp_path / "nothing"))

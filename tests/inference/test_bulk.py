"""Whole files answered into files: every row once and in order, whatever kills it and however many share it."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_values import SAME
from stock_models import rounded, saved, tiny_model
from tiny import tokenizer
from tiny_runs import finish, full_disk, start

from nlp_mtl import DataError, ModelError, RunError
from nlp_mtl.cli import main
from nlp_mtl.inference import bulk
from nlp_mtl.inference.bulk import predict_rows
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.inference.rows import open_rows
from nlp_mtl.tasks import Task

TAGS = Task("tags", "multi-label-classification", ("a", "b", "c"), "micro_f1")
RATING = Task("rating", "regression", ("value",), "pearson")
NLP = Predictor(tiny_model(), tokenizer())
TEXTS = [f"anna loves rome {'and good tea ' * (n % 4)}. {n}" for n in range(10)]
TEXTS[3], TEXTS[7] = "", "é 👍🏽 \u2028 x\x85y"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "texts.jsonl", [{"id": n, "text": text} for n, text in enumerate(TEXTS)])


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "ROWS_AT_ONCE", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bulk") / "model")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


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


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("t.txt", "\n".join(TEXTS[:7]) + "\n"),
        ("t.csv", "text,n\n" + "".join(f"{text},1\n" for text in TEXTS[:7])),
        ("t.tsv", "n\tsentence\n" + "".join(f"1\t{text}\n" for text in TEXTS[:7])),
        ("t.jsonl", "".join(json.dumps({"text": text or None}) + "\n" for text in TEXTS[:7])),
        ("t.txt.gz", gzip.compress("\r\n".join(TEXTS[:7]).encode(), mtime=0)),
    ],
    ids=["lines", "csv", "tsv", "json lines", "packed lines"],
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


# ---- stopped and gone on


class Killed(BaseException):
    pass


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@pytest.mark.parametrize("at", [0, 2, 3, "join"])
def test_wherever_it_dies_the_same_call_answers_the_rest_and_no_row_twice(
    file: Path, tmp_path: Path, ending: str, at: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = open_rows(str(file), keep=["id"])
    predict_rows(NLP, rows, tmp_path / f"whole{ending}")
    output = tmp_path / f"killed{ending}"
    real, calls = bulk.Parts.write, iter(range(100))

    def write(self: Any, *arguments: Any) -> None:
        if next(calls) == at:
            raise Killed
        real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(bulk.Parts, "write", write)
        if at == "join":
            patched.setattr(bulk, "_join_tables", _die)
            patched.setattr(bulk.shutil, "copyfileobj", _die)
        with pytest.raises(Killed):
            predict_rows(NLP, rows, output)
    assert not output.exists()
    assert predict_rows(NLP, rows, output) == len(TEXTS) - (9 + 1 if at == "join" else 3 * int(at))
    assert output.read_bytes() == (tmp_path / f"whole{ending}").read_bytes()
    assert not bulk.Parts(output).folder.exists()


def _die(*_: Any) -> None:
    raise Killed


def test_another_job_does_not_go_on_and_nothing_is_removed_unasked(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rows = tmp_path / "a.jsonl", open_rows(str(file))
    with monkeypatch.context() as patched:
        patched.setattr(bulk.Parts, "join", _die)
        with pytest.raises(Killed):
            predict_rows(NLP, rows, output)
    other = Predictor(tiny_model("electra"), tokenizer())
    for nlp, given, options, told in (
        (other, rows, {}, "`model` differ"),
        (NLP, rows, {"tasks": ["ner"]}, "`tasks` differ"),
        (NLP, open_rows(str(file), keep=["id"]), {}, "`rows` differ"),
        (NLP, rows, {"all_scores": True}, "`all_scores` differ"),
    ):
        with pytest.raises(RunError, match=told):
            predict_rows(nlp, given, output, **options)  # type: ignore[arg-type]
    assert predict_rows(NLP, rows, output) == 0
    with pytest.raises(RunError, match="is there already"):
        predict_rows(NLP, rows, output)
    before = output.read_bytes()
    assert predict_rows(other, rows, output, overwrite=True) == len(TEXTS)
    assert output.read_bytes() != before
    (tmp_path / "b.jsonl.parts").mkdir()
    (tmp_path / "b.jsonl.parts" / "mine").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="holds something else"):
            predict_rows(NLP, rows, tmp_path / "b.jsonl", overwrite=overwrite)
    with pytest.raises(RunError, match=r"should end in `\.jsonl`, `\.parquet`"):
        predict_rows(NLP, rows, tmp_path / "a.csv")
    with pytest.raises(ModelError, match="there is no task `nerr`"):
        predict_rows(NLP, rows, tmp_path / "c.jsonl", tasks=["nerr"])
    assert not [*tmp_path.glob("c.*")]


def test_a_full_disk_is_told_and_what_was_answered_stays(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rows = tmp_path / "a.jsonl", open_rows(str(file))
    monkeypatch.setattr(bulk, "tqdm", lambda **_: FullAfter(1))
    with pytest.raises(RunError, match="cannot be written: File too large"):
        predict_rows(NLP, rows, output)
    monkeypatch.undo()
    monkeypatch.setattr(bulk, "ROWS_AT_ONCE", 3)
    assert predict_rows(NLP, rows, output) == len(TEXTS) - 3
    assert [row["text"] for row in lines(output)] == TEXTS


class FullAfter:
    """A bar; the disk is full once it was told of so many parts."""

    n = 0

    def __init__(self, count: int) -> None:
        self.count, self.disk = count, full_disk(10)

    def __enter__(self) -> "FullAfter":
        return self

    def update(self, _: int) -> None:
        self.count -= 1
        if not self.count:
            self.disk.__enter__()

    def __exit__(self, *_: Any) -> None:
        self.disk.__exit__(None, None, None)


# ---- real processes


def many(folder: Path, count: int) -> Path:
    return write_lines(folder / "many.jsonl", [{"id": n, "text": f"{TEXTS[n % 10]} {n}"} for n in range(count)])


@pytest.mark.slow
def test_a_process_that_is_killed_loses_and_repeats_no_row(model: Path, tmp_path: Path) -> None:
    source, output = many(tmp_path, 6000), tmp_path / "a.jsonl"
    arguments = ["predict", model, "--input", source, "--output", output, "--keep", "id", "--tasks", "pos"]
    process = start(*arguments)
    deadline = time.monotonic() + 100
    while not [*tmp_path.glob("a.jsonl.parts/0*.jsonl")] and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    finish(process)
    assert not output.exists()
    code, told, errors = finish(start(*arguments))
    assert code == 0, errors
    assert "by an earlier call" in told
    assert [row["id"] for row in lines(output)] == [*range(6000)]


@pytest.mark.slow
def test_processes_share_the_rows_and_one_goes_on_where_two_were_killed(model: Path, tmp_path: Path) -> None:
    source = many(tmp_path, 4000)
    arguments = ["predict", model, "--input", source, "--keep", "id", "--tasks", "sentiment", "--output"]
    code, _, errors = finish(start(*arguments, tmp_path / "two.jsonl", processes=2))
    assert code == 0, errors
    assert [row["id"] for row in lines(tmp_path / "two.jsonl")] == [*range(4000)]
    code, _, errors = finish(start(*arguments, tmp_path / "one.jsonl"))
    assert code == 0, errors
    assert rounded(lines(tmp_path / "one.jsonl")) == rounded(lines(tmp_path / "two.jsonl"))


def test_the_verb_tells_what_goes_with_what(model: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = file.with_name("a.jsonl")
    for arguments, told in (
        (["--input", file], "rows of --input go to --output"),
        (["--output", output], "rows of --input go to --output"),
        (["anna", "--input", file, "--output", output], "rows of --input go to --output"),
        (["anna", "--keep", "id"], "only --input reads it"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["predict", str(model), *map(str, arguments)])
        assert exit_.value.code == 2
        assert told in " ".join(capsys.readouterr().err.replace("│", " ").split())
    with pytest.raises(SystemExit) as exit_:
        main(["predict", str(model), "--input", str(file), "--output", str(output), "--all-scores", "--keep", "id"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"10 rows: {output}\n"
    assert [*lines(output)[0]["predictions"]["sentiment"]] == ["label", "score", "scores"]

"""Files of answers that are not whole yet: a kill, a full disk, another job, several processes."""

import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rows_to_answer import NLP, TEXTS, lines, write_lines, written_texts
from stock_models import rounded, saved, tiny_model
from tiny import tokenizer
from tiny_runs import finish, full_disk, start

from nlp_mtl import ModelError, RunError
from nlp_mtl.cli import main
from nlp_mtl.inference import bulk, parts, texts
from nlp_mtl.inference.bulk import predict_rows
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.inference.rows import open_rows


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written_texts(tmp_path)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "ROWS_AT_ONCE", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("bulk") / "model")


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
    real, calls = bulk._answered, iter(range(100))

    def answered(*arguments: Any) -> Any:
        place = next(calls)
        for one in real(*arguments):
            yield one
            if place == at:  # something of the part is written
                raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(bulk, "_answered", answered)
        if at == "join":
            patched.setattr(parts, "join_tables", _die)
            patched.setattr(parts.shutil, "copyfileobj", _die)
        with pytest.raises(Killed):
            predict_rows(NLP, rows, output)
    assert not output.exists()
    assert predict_rows(NLP, rows, output) == len(TEXTS) - (9 + 1 if at == "join" else 3 * int(at))
    assert output.read_bytes() == (tmp_path / f"whole{ending}").read_bytes()
    assert not bulk.Parts(output).folder.exists()


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_answers_are_written_as_they_come_and_a_part_is_never_held_whole(
    file: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = open_rows(str(file), keep=["id"])
    monkeypatch.setattr(bulk, "ROWS_AT_ONCE", 100)
    predict_rows(NLP, rows, tmp_path / f"whole{ending}")
    sizes, call = [], Predictor.__call__

    def counted(self: Any, texts: Any, **options: Any) -> Any:
        sizes.append(len(texts))
        return call(self, texts, **options)

    monkeypatch.setattr(texts, "CHARACTERS_AT_ONCE", 40)
    monkeypatch.setattr(parts, "_GROUP_BYTES", 1)
    monkeypatch.setattr(Predictor, "__call__", counted)
    predict_rows(NLP, rows, tmp_path / f"few{ending}")
    assert len(sizes) > 4
    assert sum(sizes) == len(TEXTS)
    if ending == ".parquet":
        assert pq.ParquetFile(tmp_path / "few.parquet").num_row_groups == len(sizes)
        found = [pq.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in ("few", "whole")]
    else:
        found = [lines(tmp_path / f"{name}.jsonl") for name in ("few", "whole")]
    assert rounded(found[0]) == rounded(found[1])


@pytest.mark.parametrize("left", [["000000001.jsonl", "000000002.jsonl.partial"], ["job.json.partial"], []])
def test_a_folder_of_parts_that_a_kill_left_without_its_job_is_begun_anew(
    file: Path, tmp_path: Path, left: list[str]
) -> None:
    folder = tmp_path / "a.jsonl.parts"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("half")
    assert predict_rows(NLP, open_rows(str(file)), tmp_path / "a.jsonl") == len(TEXTS)
    assert [row["text"] for row in lines(tmp_path / "a.jsonl")] == TEXTS
    assert not folder.exists()


def test_the_job_is_the_last_that_is_removed(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, rows = tmp_path / "a.jsonl", open_rows(str(file))
    removed, unlink = [], Path.unlink

    def noted(self: Path, **options: Any) -> None:
        removed.append(self.name)
        unlink(self, **options)

    monkeypatch.setattr(Path, "unlink", noted)
    predict_rows(NLP, rows, output)
    assert removed[-1] == "job.json"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("left", [1, 3])
def test_a_kill_when_the_file_is_whole_leaves_nothing_to_answer(
    file: Path, tmp_path: Path, left: int, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rows = tmp_path / "a.jsonl", open_rows(str(file))
    unlink, calls = Path.unlink, iter(range(100))

    def killed(self: Path, **options: Any) -> None:
        if output.exists() and next(calls) == left:
            raise Killed
        unlink(self, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(Killed):
            predict_rows(NLP, rows, output)
    before = output.read_bytes()
    assert bulk.Parts(output).folder.exists()
    assert predict_rows(NLP, rows, output, overwrite=overwrite) == 0
    assert output.read_bytes() == before
    assert not bulk.Parts(output).folder.exists()


def test_a_damaged_job_is_another_one(file: Path, tmp_path: Path) -> None:
    output, rows = tmp_path / "a.jsonl", open_rows(str(file))
    bulk.Parts(output).folder.mkdir()
    (bulk.Parts(output).folder / "job.json").write_text("{")
    with pytest.raises(RunError, match="holds answers of another job"):
        predict_rows(NLP, rows, output)
    assert predict_rows(NLP, rows, output, overwrite=True) == len(TEXTS)


def test_lines_are_on_the_disk_while_the_next_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "long.jsonl", [{"text": "anna " * 4000} for _ in range(3)])
    sizes, call = [], Predictor.__call__

    def counted(self: Any, given: Any, **options: Any) -> Any:
        sizes.append(sum(one.stat().st_size for one in tmp_path.glob("a.jsonl.parts/0*.partial")))
        return call(self, given, **options)

    monkeypatch.setattr(texts, "CHARACTERS_AT_ONCE", 10_000)
    monkeypatch.setattr(Predictor, "__call__", counted)
    predict_rows(NLP, open_rows(str(path)), tmp_path / "a.jsonl", tasks=["sentiment"])
    assert sizes[0] < 10_000 < sizes[1] < 30_000 < sizes[2]


def test_what_replaces_a_file_goes_on_as_well_and_the_file_stays_until_then(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rows = tmp_path / "a.jsonl", open_rows(str(file))
    output.write_text("before")
    with monkeypatch.context() as patched:
        patched.setattr(bulk.Parts, "join", _die)
        with pytest.raises(Killed):
            predict_rows(NLP, rows, output, overwrite=True)
    assert output.read_text() == "before"
    assert predict_rows(NLP, rows, output, overwrite=True) == 0
    assert [row["text"] for row in lines(output)] == TEXTS


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
    spelt = tokenizer()
    spelt.backend_tokenizer.normalizer = None
    for nlp, given, options, told in (
        (other, rows, {}, "`model` differ"),
        (Predictor(tiny_model(), spelt), rows, {}, "`model` differ"),
        (NLP, rows, {"tasks": ["ner"]}, "`tasks` differ"),
        (NLP, open_rows(str(file), keep=["id"]), {}, "`rows`, `columns` differ"),
        (NLP, rows, {"all_scores": True}, "`all_scores` differ"),
    ):
        with pytest.raises(RunError, match=told):
            predict_rows(nlp, given, output, **options)  # type: ignore[arg-type]
    assert predict_rows(NLP, rows, output) == 0
    with pytest.raises(RunError, match="is there already"):
        predict_rows(NLP, rows, output)
    assert not bulk.Parts(output).folder.exists()
    before = output.read_bytes()
    assert predict_rows(other, rows, output, overwrite=True) == len(TEXTS)
    assert output.read_bytes() != before
    (tmp_path / "b.jsonl.parts").mkdir()
    (tmp_path / "b.jsonl.parts" / "mine").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RunError, match=r"holds something else \(`mine`\)"):
            predict_rows(NLP, rows, tmp_path / "b.jsonl", overwrite=overwrite)
    with pytest.raises(RunError, match=r"should end in `\.jsonl`, `\.parquet`"):
        predict_rows(NLP, rows, tmp_path / "a.csv")
    with pytest.raises(RunError, match="no task is asked for"):
        predict_rows(NLP, rows, tmp_path / "c.jsonl", tasks=[])
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
    source = many(tmp_path, 9000)
    arguments = ["predict", model, "--input", source, "--keep", "id", "--tasks", "sentiment", "--output"]
    code, _, errors = finish(start(*arguments, tmp_path / "whole.jsonl", processes=2))
    assert code == 0, errors
    whole = lines(tmp_path / "whole.jsonl")
    assert [row["id"] for row in whole] == [*range(9000)]
    for first, then in ((2, 1), (1, 2)):
        output = tmp_path / f"{first}-{then}.jsonl"
        process = start(*arguments, output, processes=first)
        deadline = time.monotonic() + 100
        while not [*tmp_path.glob(f"{output.name}.parts/0*.jsonl")] and time.monotonic() < deadline:
            time.sleep(0.01)
        process.terminate()
        finish(process)
        assert not output.exists()
        code, told, errors = finish(start(*arguments, output, processes=then))
        assert code == 0, errors
        assert "by an earlier call" in told
        assert rounded(lines(output)) == rounded(whole)


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

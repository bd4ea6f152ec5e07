"""The command line as users meet it: results on stdout, messages on stderr."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import assert_clear, caller, trained_folder, write_recipe

from nlp_mtl.cli import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    return caller(capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory.mktemp("trained"))


def test_train_prints_scores_and_the_run_folder(trained: Path, tmp_path: Path, run: Any) -> None:
    done = run("train", trained / "recipe.yaml", f"output_dir={tmp_path / 'run'}", "training.max_steps=1")
    assert done.code == 0
    assert "span f1" in done.out
    assert "sentiment" in done.out
    assert f"Run folder: {tmp_path / 'run'}" in done.out


def test_evaluate_reproduces_the_scores_of_the_run(trained: Path, run: Any) -> None:
    results = json.loads((trained / "run" / "results.json").read_text())
    for split in ("validation", "test"):
        done = run("evaluate", trained / "run", "--split", split, "--json")
        assert json.loads(done.out) == results["scores"][split]


def test_evaluate_takes_a_model_folder_with_a_recipe(trained: Path, run: Any) -> None:
    done = run("evaluate", trained / "run" / "model", "--recipe", trained / "recipe.yaml")
    assert done.code == 0
    assert "ner" in done.out


def test_predict_writes_one_json_object_a_text(trained: Path, run: Any) -> None:
    done = run("predict", trained / "run", "anna loves rome .", "bad film")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["text"] for line in lines] == ["anna loves rome .", "bad film"]
    assert list(lines[0]["predictions"]) == ["ner", "pos", "sentiment"]
    assert [word["text"] for word in lines[1]["predictions"]["pos"]] == ["bad", "film"]


def test_predict_reads_lines_from_standard_input_and_keeps_empty_ones(
    trained: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("anna\n\nbob 🎉\r\n".encode())))
    done = run("predict", trained / "run", "-", "--tasks", "sentiment")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["text"] for line in lines] == ["anna", "", "bob 🎉"]
    assert lines[1]["predictions"] == {"sentiment": {"label": None, "score": None}}
    assert all(list(line["predictions"]) == ["sentiment"] for line in lines)


def test_a_byte_order_mark_is_no_word(trained: Path, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffanna\nbob\n".encode())))
    done = run("predict", trained / "run", "--tasks", "pos")
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == ["anna", "bob"]
    (tmp_path / "t.txt").write_text("\ufeffanna\nbob\n", encoding="utf-8")
    run("predict", trained / "run", "--input", tmp_path / "t.txt", "--output", tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["anna", "bob"]


def test_lines_ahead_of_a_broken_one_are_answered(trained: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "anna"}\n{"text": "bob"}\n{"text"\n')))
    done = run("predict", trained / "run", "--json-lines", "--tasks", "sentiment")
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == ["anna", "bob"]
    assert done.code == 2
    assert "line 3 of standard input is not JSON" in done.err


def test_several_processes_do_not_share_standard_input(
    trained: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for texts in ([], ["anna"]):
        assert_clear(run("predict", trained / "run", *texts), "several processes", "--input and --output")


def test_a_line_that_is_not_utf_8_is_answered_and_told(
    trained: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("anna\ncafé\n".encode("latin-1") + b"\xff\n")))
    done = run("predict", trained / "run", "--tasks", "sentiment")
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == ["anna", "caf\ufffd", "\ufffd"]
    assert done.err.count("line 2 is not text in UTF-8") == done.err.count("nlp-mtl:") == 1


def test_a_text_that_is_not_utf_8_is_answered_and_told(trained: Path, run: Any) -> None:
    done = run("predict", trained / "run", "anna", "caf\udce9", "\udcff", "--tasks", "sentiment")
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == ["anna", "caf\ufffd", "\ufffd"]
    assert done.err.count("text 2 is not text in UTF-8") == done.err.count("nlp-mtl:") == 1


def test_the_name_of_a_file_is_a_text_and_told_to_be_one(trained: Path, run: Any) -> None:
    file = str(trained / "recipe.yaml")
    done = run("predict", trained / "run", file, "anna", "--tasks", "sentiment")
    assert [json.loads(line)["text"] for line in done.out.splitlines()] == [file, "anna"]
    assert f"--input {file}" in done.err


def test_check_tells_rows_labels_sampling_and_padding(trained: Path, run: Any) -> None:
    done = run("check", trained / "recipe.yaml")
    assert done.code == 0
    for word in ("Lengths in tokens", "Labels", "Sampling", "padding", "labelled rows: ner"):
        assert word in done.out
    report = json.loads(run("check", trained / "recipe.yaml", "--json").out)
    assert {row["dataset"]: row["rows"] for row in report["sampling"]} == {"words": 48, "texts": 48}
    assert report["steps"]["steps"] == 6


def test_check_names_what_is_odd_with_file_and_row(tmp_path: Path, run: Any) -> None:
    values = tiny.recipe(tmp_path)
    train = tmp_path / "corpus" / "words" / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    rows[3] = {"tokens": ["anna", "bob"], "ner": ["O", "I-PER"], "upos": ["PROPN", "PROPN"]}
    rows[5] = {"tokens": [], "ner": [], "upos": []}
    tiny.write_jsonl(train, rows)
    test = tmp_path / "corpus" / "words" / "test.jsonl"
    extra = [rows[0], {"tokens": ["tea"], "ner": ["O"], "upos": ["RARE"]}]
    tiny.write_jsonl(test, [json.loads(line) for line in test.read_text().splitlines()] + extra)
    odd = "\n".join(json.loads(run("check", write_recipe(tmp_path, values), "--json").out)["odd"])
    assert f"invalid IOB2 in dataset `words`, split train, row 3 of {train}" in odd
    assert f"dataset `words`, split train, row 5 of {train} (counted from 0): no word in it" in odd
    assert "task `pos`: the label `RARE` occurs in test but never in train" in odd
    assert f"row 0 of {train} (counted from 0) and in dataset `words`, split test, row 16 of {test}" in odd


def test_copy_lists_recipes_and_copies_one_with_its_data(tmp_path: Path, run: Any) -> None:
    listed = run("copy").out
    assert "demo" in listed
    assert "ewt_sst2_agnews" in listed
    assert run("copy", "demo", tmp_path / "mine").code == 0
    assert (tmp_path / "mine" / "demo.yaml").is_file()
    assert (tmp_path / "mine" / "demo" / "train.jsonl").is_file()
    assert_clear(run("copy", "demo", tmp_path / "mine"), "exists already")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "nlp_mtl", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "train" in done.stdout


def test_debug_shows_the_traceback_and_ends_with_the_same_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--debug"]):
        with pytest.raises(SystemExit) as ended:
            main(["train", str(tmp_path / "none.yaml"), *more])
        assert ended.value.code == 2
        errors = capsys.readouterr().err
        assert "no such file" in errors
        assert ("Traceback" in errors) == bool(more)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nobody_reads_is_no_error(unbuffered: str) -> None:
    command = f"{sys.executable} -m nlp_mtl copy | {{ exec <&-; sleep 2; }}"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_resume_auto_starts_or_resumes(trained: Path, tmp_path: Path, run: Any) -> None:
    recipe, folder = trained / "recipe.yaml", tmp_path / "new"
    changes = [f"output_dir={folder}", "training.max_steps=1"]
    for _ in range(2):
        done = run("train", recipe, "--resume", "auto", *changes)
        assert done.code == 0, done.err
    assert len(json.loads((folder / "environment.json").read_text())["resumed"]) == 1
    assert_clear(run("train", recipe, *changes, "--resume", "auto", "training.batch_size=8"), "another recipe")
    assert_clear(run("train", recipe, *changes, "auto"), "`auto`")


def test_labels_that_look_like_markup_are_shown_as_they_are(run: Any, tmp_path: Path) -> None:
    values = tiny.recipe(tmp_path)
    names = {"negative": "[/b]", "positive": "[bold] :smile:"}
    values["tasks"]["sentiment"]["label_map"] = names
    found = run("check", write_recipe(tmp_path, values))
    assert found.code == 0, found.err
    assert all(name in found.out for name in names.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "encoding", ["ascii", *(pytest.param(name, marks=pytest.mark.long) for name in ("latin-1", "utf-8"))]
)
def test_answers_are_json_whatever_standard_output_can_hold(trained: Path, encoding: str) -> None:
    text = "Zoë sees 🙂 in paris"
    found = subprocess.run(
        [sys.executable, "-m", "nlp_mtl", "predict", str(trained / "run"), text],
        env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr.decode()
    assert json.loads(found.stdout.decode(encoding))["text"] == text

"""The command line as users meet it: results on stdout, one clear message and exit code 2 for bad input."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from nlp_mtl.cli import main


class Outcome:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run_(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run_


def write_recipe(folder: Path, values: dict[str, Any], name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``recipe.yaml``, a corpus, an encoder, and a finished run in ``run``."""
    folder = tmp_path_factory.mktemp("trained")
    path = write_recipe(folder, tiny.recipe(folder, num_epochs=1))
    with pytest.raises(SystemExit) as exit_:
        main(["train", str(path)])
    assert exit_.value.code in (0, None)
    return folder


def assert_clear(outcome: Outcome, *words: str) -> None:
    """Exit code 2, and a message on stderr that holds the words and no traceback."""
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    for word in words:
        assert word in outcome.err


# What works


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


# What bad input gets


def test_a_recipe_with_five_mistakes_tells_all_five(tmp_path: Path, run: Any) -> None:
    values = tiny.recipe(tmp_path)
    values["training"] |= {"learning_rat": 1e-3, "batch_size": "many"}
    values["tasks"]["ner"]["type"] = "token-clasification"
    values["tasks"]["pos"]["dataset"] = "word"
    values["datasets"]["texts"]["tokens"] = "text"
    outcome = run("train", write_recipe(tmp_path, values))
    assert_clear(
        outcome,
        "5 problems",
        "training.learning_rat: unknown key `learning_rat`. Did you mean `learning_rate`?",
        "training.batch_size: found 'many'",
        "tasks.ner.type: found 'token-clasification'",
        "tasks.pos.dataset: there is no dataset `word`; there are `words`, `texts`. Did you mean `words`?",
        "datasets.texts: give one of `text`",
    )
    assert not (tmp_path / "run").exists()


def test_a_missing_recipe_or_data_file(tmp_path: Path, run: Any) -> None:
    path = write_recipe(tmp_path, tiny.recipe(tmp_path))
    assert_clear(run("train", tmp_path / "recip.yaml"), "no such file", "Did you mean `recipe.yaml`?")
    assert_clear(
        run("train", path, "datasets.words.data_files.train=words/tran.jsonl"),
        "dataset `words`", "words/tran.jsonl", "Did you mean `train.jsonl`?",
    )  # fmt: skip


def test_a_hub_id_that_cannot_be_reached(tmp_path: Path, run: Any) -> None:
    path = write_recipe(tmp_path, tiny.recipe(tmp_path))
    dataset = ["datasets.texts={path: some/dataset, text: text}"]
    assert_clear(run("train", path, *dataset), "dataset `texts`", "some/dataset", "Hub")
    assert_clear(run("train", path, "encoder=some/encoder"), "encoder", "`some/encoder`")
    assert_clear(run("predict", "some/model", "text"), "`some/model`")


def test_a_missing_column(tmp_path: Path, run: Any) -> None:
    path = write_recipe(tmp_path, tiny.recipe(tmp_path))
    assert_clear(
        run("train", path, "tasks.pos.labels=upo"),
        "no column `upo`", "`tokens`, `ner`, `upos`", "Did you mean `upos`?",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tokens": ["anna", "bob"], "ner": ["B-PER"], "upos": ["PROPN", "PROPN"]}, ["`ner`", "2 words but 1 labels"]),
        ({"tokens": ["anna"], "ner": ["PERSON"], "upos": ["PROPN"]}, ["`ner`", "IOB", "'PERSON'"]),
    ],
)
def test_labels_that_do_not_fit_their_words(tmp_path: Path, run: Any, row: dict[str, Any], words: list[str]) -> None:
    values = tiny.recipe(tmp_path)
    values["tasks"]["ner"]["metric"] = "span_f1"
    file = tmp_path / "corpus" / "words" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    tiny.write_jsonl(file, [*rows[:7], row, *rows[7:]])
    assert_clear(run("train", write_recipe(tmp_path, values)), "dataset `words`, split train, row 7", *words)


def test_an_unknown_label_names_its_row(tmp_path: Path, run: Any) -> None:
    values = tiny.recipe(tmp_path)
    values["tasks"]["sentiment"]["label_names"] = ["positive", "negatives"]
    assert_clear(
        run("train", write_recipe(tmp_path, values)),
        "task `sentiment`: unknown label 'negative'", "dataset `texts`, split train, row", "Did you mean `negatives`?",
    )  # fmt: skip


def test_an_empty_dataset_and_a_text_column_of_numbers(tmp_path: Path, run: Any) -> None:
    path = write_recipe(tmp_path, tiny.recipe(tmp_path))
    (tmp_path / "corpus" / "empty.jsonl").write_text("")
    assert_clear(run("train", path, "datasets.texts.data_files.train=empty.jsonl"), "dataset `texts`", "empty")
    tiny.write_jsonl(tmp_path / "corpus" / "numbers.jsonl", [{"text": 1, "label": "positive"}] * 20)
    assert_clear(
        run("train", path, "datasets.texts.data_files=numbers.jsonl"),
        "dataset `texts`", "column `text` should hold text", "int64",
    )  # fmt: skip


def test_labels_of_one_class_only(tmp_path: Path, run: Any) -> None:
    path = write_recipe(tmp_path, tiny.recipe(tmp_path))
    tiny.write_jsonl(tmp_path / "corpus" / "same.jsonl", [{"text": f"tea {i}", "label": "positive"} for i in range(20)])
    assert_clear(run("train", path, "datasets.texts.data_files=same.jsonl"), "`sentiment`", "only the label `positive`")


def test_a_model_folder_that_is_not_ours(tmp_path: Path, run: Any) -> None:
    tiny.save_encoder(tmp_path / "encoder")
    (tmp_path / "nothing").mkdir()
    assert_clear(run("predict", tmp_path / "encoder", "text"), "type `bert`", "not one of nlp_mtl")
    assert_clear(run("predict", tmp_path / "nothing", "text"), "no config.json")
    assert_clear(run("predict", tmp_path / "missing", "text"), "no model folder")
    assert_clear(run("evaluate", tmp_path / "encoder"), "not a run folder", "--recipe")


def test_an_unknown_task_or_split(trained: Path, run: Any) -> None:
    assert_clear(run("predict", trained / "run", "text", "--tasks", "nerr"), "`nerr`", "Did you mean `ner`?")
    assert_clear(run("evaluate", trained / "run", "--split", "dev"), "validation")


def test_resume_without_a_checkpoint_or_with_another_recipe(trained: Path, tmp_path: Path, run: Any) -> None:
    recipe = trained / "recipe.yaml"
    assert_clear(run("train", recipe, f"output_dir={tmp_path / 'new'}", "--resume"), "no run to resume")
    before = (trained / "run" / "metrics.jsonl").read_bytes()
    outcome = run("train", recipe, "--resume", "training.batch_size=8")
    assert_clear(outcome, "another recipe", "training.batch_size: 16 -> 8")
    assert_clear(run("train", recipe), "already holds a run", "--resume", "--overwrite")
    assert (trained / "run" / "metrics.jsonl").read_bytes() == before


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

"""The command line and bad input: one clear message and exit code 2."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from command_line import assert_clear, caller, trained_folder, write_recipe


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    return caller(capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_folder(tmp_path_factory.mktemp("trained"))


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

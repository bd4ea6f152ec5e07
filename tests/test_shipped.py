import gzip
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml

from nlp_mtl import Recipe, RunError, extend, train
from nlp_mtl.metrics import old_scores
from nlp_mtl.shipped import copy_recipe, recipes_folder, shipped_recipes

FILES = sorted(recipes_folder().rglob("*.yaml"))


def test_recipes_are_shipped():
    assert {"demo", "ewt_sst2_agnews", "four_tasks", "german", "multilingual"} <= {path.stem for path in FILES}
    assert set(shipped_recipes()) == {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_and_writes_where_its_name_says(path):
    recipe = Recipe.from_yaml(path)
    assert recipe.output_dir == f"runs/{path.stem}"
    assert all(task.metric for task in recipe.tasks.values()), "its main metrics are said out loud"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_recipe_begins_with_what_it_is_and_the_commands_that_run_it(path):
    head = re.match(r"(?:#.*\n)+", path.read_text(encoding="utf-8")).group()
    assert head.splitlines()[0].endswith(".")
    extends = Recipe.from_yaml(path).extension is not None
    commands = re.findall(r"nlp-mtl extend \S+ (\S+)(.*)" if extends else r"nlp-mtl train (\S+)(.*)", head)
    assert commands
    assert f"recipes/{path.name}" in dict(commands)
    for recipe, rest in commands:  # of others, too, where runs follow each other
        shown = recipes_folder() / recipe.removeprefix("recipes/")
        Recipe.from_yaml(shown, rest.split("#")[0].split())  # the overrides that it shows are right


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_numbers_in_shipped_recipes_are_numbers_to_any_yaml_reader(path):
    training = yaml.safe_load(path.read_text(encoding="utf-8"))["training"]
    assert isinstance(training["learning_rate"], float)
    assert isinstance(training["head_learning_rate"], float)


def files_of(recipe):
    for spec in recipe.datasets.values():
        for files in (spec.data_files or {}).values():
            yield from [files] if isinstance(files, str) else files


def test_recipes_are_listed_with_the_first_line_of_their_description():
    for name, description in shipped_recipes().items():
        assert description
        assert not description.startswith("#")
        assert description in (recipes_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]


@pytest.mark.parametrize("name", ["demo", "demo.yaml"])
def test_a_copied_demo_recipe_finds_its_data(tmp_path, name):
    folder = tmp_path / "new" / "folder"
    written = copy_recipe(name, folder)
    assert written == [folder / "demo.yaml", folder / "demo"]
    recipe = Recipe.from_yaml(folder / "demo.yaml")
    files = [Path(recipe.data_dir) / file for file in files_of(recipe)]
    assert len(files) == 3
    assert all(file.is_file() and file.is_relative_to(folder) for file in files)
    assert (folder / "demo" / "LICENSE").is_file()


def test_a_recipe_without_data_is_copied_alone(tmp_path):
    assert copy_recipe("four_tasks", tmp_path) == [tmp_path / "four_tasks.yaml"]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "four_tasks.yaml"]


@pytest.mark.parametrize("obstacle", ["demo.yaml", "demo"])
def test_copying_overwrites_nothing_and_leaves_nothing_half_done(tmp_path, obstacle):
    (tmp_path / obstacle).write_text("mine")
    with pytest.raises(RunError, match=f"{obstacle} exists already"):
        copy_recipe("demo", tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(obstacle, "mine")]


def test_copying_into_a_file_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"cannot write to .*file"):
        copy_recipe("demo", tmp_path / "file")
    with pytest.raises(RunError, match=r"cannot write to .*file"):
        copy_recipe("demo", tmp_path / "file" / "below")


@pytest.mark.parametrize("name", ["dmo", "../demo", "demo/", "", "demo.yml"])
def test_an_unknown_recipe_is_told_with_those_that_there_are(tmp_path, name):
    with pytest.raises(RunError, match=r"no shipped recipe .*`demo`, .*`distilled`, `emotions`, `entities_crf`, "):
        copy_recipe(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_likely_recipe_is_suggested(tmp_path):
    with pytest.raises(RunError, match=r"Did you mean `four_tasks`\?"):
        copy_recipe("four_task", tmp_path)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Small files with the names and columns that recipes/ewt_sst2_agnews.yaml reads, and an encoder."""
    folder = tmp_path_factory.mktemp("corpora")
    draw = random.Random(0)
    for split, count in {"train": 60, "dev": 12, "test": 12}.items():
        file = folder / "ewt_joint" / f"{split}.jsonl.gz"
        file.parent.mkdir(exist_ok=True)
        with gzip.open(file, "wt") as rows:
            rows.writelines(json.dumps(tiny.token_row(draw)) + "\n" for _ in range(count))
        tiny.write_jsonl(folder / "sst2" / f"{split}.jsonl", [tiny.text_row(draw) for _ in range(count)])
    for split in ("train", "test"):
        rows = [tiny.text_row(draw) | {"label": ["World", "Sports"][n % 2]} for n in range(40)]
        tiny.write_jsonl(folder / "ag_news" / f"{split}.jsonl", rows)
    tiny.save_encoder(folder / "encoder")
    return folder


def test_the_recipe_on_local_files_runs_on_files_of_its_names_and_columns(corpora, tmp_path):
    overrides = [f"data_dir={corpora}", f"encoder={corpora / 'encoder'}", f"output_dir={tmp_path / 'run'}"]
    recipe = Recipe.from_yaml(recipes_folder() / "ewt_sst2_agnews.yaml", [*overrides, "training.max_steps=3"])
    results = train(recipe)
    assert results["main_metrics"] == {
        "ner": "span_f1",
        "pos": "accuracy",
        "sentiment": "accuracy",
        "topic": "accuracy",
    }
    assert results["scores"]["validation"].keys() == results["scores"]["test"].keys() == results["main_metrics"].keys()


def test_the_recipe_that_adds_topic_extends_the_one_of_three_tasks(corpora, tmp_path):
    same = [f"data_dir={corpora}", f"encoder={corpora / 'encoder'}", "training.max_steps=3", "training.max_tokens=256"]
    three = Recipe.from_yaml(recipes_folder() / "ewt_sst2.yaml", [*same, f"output_dir={tmp_path / 'three'}"])
    train(three)
    overrides = [*same, f"output_dir={tmp_path / 'four'}"]
    results = extend(tmp_path / "three", recipes_folder() / "extend_topic.yaml", overrides=overrides)
    assert [*results["scores"]["test"]] == ["ner", "pos", "sentiment", "topic"]
    assert results["data"]["ewt"]["splits"]["train"]["rows"] == 6  # a tenth
    assert {row["task"] for row in old_scores(results)} == {"ner", "pos", "sentiment"}


@pytest.mark.long
def test_the_benchmark_of_forgetting_tells_each_variant(corpora, tmp_path):
    script = Path(__file__).resolve().parent.parent / "scripts" / "benchmark_extend.py"
    arguments = ["--data", corpora, "--folder", tmp_path, "--epochs", "0.5", "--test-rows", "12"]
    variants = ["--variant", "frozen: extension.freeze=model", "--variant", "replay, few: extension.replay=5"]
    found = subprocess.run(
        [sys.executable, script, *arguments, *variants, "--set", f"encoder={corpora / 'encoder'}",
         "--set", "training.max_tokens=256"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    rows = {
        line.split("|")[1].strip(): line
        for line in lines[lines.index("| variant | ner | pos | sentiment | topic | old tasks |") :]
    }
    assert [*rows][2:] == ["before", "frozen", "replay, few", "all four from the start"]
    assert rows["frozen"].endswith("| +0.00 |")


@pytest.mark.long
def test_the_benchmark_measures_ours_and_the_stock_trainer(corpora):
    script = Path(__file__).resolve().parent.parent / "scripts" / "benchmark.py"
    parts = ["padded-32", "packed-32-bf16", "stock"]
    found = subprocess.run(
        [
            sys.executable, script, "--data", corpora, "--encoder", corpora / "encoder", "--rows", "64", "--json",
            "--only", *parts,
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    reports = json.loads(found.stdout.splitlines()[-1])
    assert [*reports] == parts
    assert all(report["tokens_a_second"] > 0 and report["memory"] > 2**20 for report in reports.values())
    padded, packed, stock = reports.values()
    assert 0 < padded["padding"] < 1
    assert packed["padding"] == 0
    assert 0 < packed["waiting"] < 1
    assert len({report["rows"] for report in reports.values()}) == 1
    assert padded["tokens"] == packed["tokens"] == stock["tokens"]

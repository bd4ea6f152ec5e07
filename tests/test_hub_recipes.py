"""Recipes for public datasets: pinned, and run on stand-ins of the same ids, revisions, configurations and columns."""

import gzip
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import spawned
import tiny
import yaml
from local_hub import served

from nlp_mtl import Recipe
from nlp_mtl.shipped import recipes_folder
from nlp_mtl.task_types import KINDS

PARQUET = "refs/convert/parquet"
PINS = {
    "eriktks/conll2003": PARQUET,  # its main branch holds a loading script
    "universal-dependencies/universal_dependencies": PARQUET,
    "google-research-datasets/go_emotions": "add492243ff905527e67aeb8b80c082af02207c3",
    "nyu-mll/glue": "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c",
    "stanfordnlp/sst2": "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb",
    "fancyzhx/ag_news": "eb185aade064a813bc0b7f42de02595523103ca4",
    "unimelb-nlp/wikiann": "f0a3be6dc5564c0cc4150bb660144800a1f539d4",
    "mteb/tweet_sentiment_multilingual": "d522bb117c32f5e0207344f69f7075fc9941168b",
    "mteb/TenKGnadClassification": "ae9862bbcddc27b4bd93e2a7b463b7b5d05c6c55",
    "mteb/sib200": "a74d7350ea12af010cfb1c21e34f1f81fd2e615b",
    "tblard/allocine": "a4654f4896408912913a62ace89614879a549287",
    "FacebookAI/xlm-roberta-base": "e73636d4f797dec63c3081bb6ed5c7b0bb3f2089",
    "answerdotai/ModernBERT-base": "8949b909ec900327062f0ebf497f51aef5e6f0c8",
}
"""Revisions that public code names for these ids, and that hold no loading script."""

RECIPES = {path.stem: Recipe.from_yaml(path) for path in sorted(recipes_folder().glob("*.yaml"))}
RECIPES = {name: recipe for name, recipe in RECIPES.items() if any(spec.path for spec in recipe.datasets.values())}
TYPES = {"FacebookAI/xlm-roberta-base": "xlm-roberta", "answerdotai/ModernBERT-base": "modernbert"}
TEXT = datasets.Value("string")
TAGS = datasets.ClassLabel(names=["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"])
UPOS = datasets.ClassLabel(names=["NOUN", "PUNCT", "VERB", "PROPN", "_", "X"])


def before(recipe: Recipe) -> str | None:
    """The recipe whose run's encoder a recipe starts from."""
    runs = {f"./{other.output_dir}": name for name, other in RECIPES.items()}
    return runs.get(recipe.encoder)


def test_there_are_recipes_for_four_tasks_in_several_languages() -> None:
    four = {name for name, recipe in RECIPES.items() if [*recipe.tasks] == ["ner", "pos", "sentiment", "topic"]}
    assert four == {"four_tasks", "french", "german", "multilingual", "spanish"}


def test_there_is_a_recipe_for_each_task_type() -> None:
    assert {task.type for recipe in RECIPES.values() for task in recipe.tasks.values()} == {*KINDS}
    assert any(task.decoder == "crf" for recipe in RECIPES.values() for task in recipe.tasks.values())
    assert any(spec.text_pair for recipe in RECIPES.values() for spec in recipe.datasets.values())


@pytest.mark.parametrize("name", RECIPES)
def test_each_dataset_and_encoder_has_the_revision_that_is_known_to_need_no_script(name: str) -> None:
    recipe = RECIPES[name]
    if before(recipe) is None:
        assert recipe.encoder_revision == PINS[recipe.encoder]
    for dataset, spec in recipe.datasets.items():
        assert spec.path is not None, dataset
        assert spec.revision == PINS[spec.path], dataset


def test_the_table_of_recipes_names_each_of_them_with_its_datasets() -> None:
    text = (recipes_folder() / "README.md").read_text()
    for path in recipes_folder().glob("*.yaml"):
        assert f"[{path.name}]({path.name})" in text
    for name, revision in PINS.items():
        assert re.search(rf"`{name}`.*`{revision[:8]}", text), name


def rows_of(path: str, name: str | None, split: str) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    """Features of a stand-in, and its rows by number; every label occurs."""
    draw = random.Random(split)

    def words(column: str, label: str) -> Callable[[int], dict[str, Any]]:
        return lambda _: {"tokens": (row := tiny.token_row(draw))["tokens"], column: row[label]}

    def text(column: str, label: str, values: list[Any]) -> Callable[[int], dict[str, Any]]:
        return lambda n: {column: tiny.text_row(draw)["text"], label: values[n % len(values)]}

    def pair(values: list[Any]) -> Callable[[int], dict[str, Any]]:
        one = text("sentence1", "label", values)
        return lambda n: {**one(n), "sentence2": tiny.text_row(draw)["text"]}

    emotions = datasets.ClassLabel(names=["admiration", "joy", "neutral"])
    number, tokens = datasets.Value("int64"), {"tokens": datasets.List(TEXT)}
    two, answers = {"sentence1": TEXT, "sentence2": TEXT}, [[-1], [0, 1]][name != "rte" or split != "test"]
    topics = ["entertainment", "geography", "health", "politics", "science/technology", "sports", "travel"]
    if name == "mnli":
        one = pair([0, 1, 2])
        labels = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
        renamed = {"sentence1": "premise", "sentence2": "hypothesis", "label": "label"}
        return (
            {"premise": TEXT, "hypothesis": TEXT, "label": labels},
            lambda n: {renamed[key]: value for key, value in one(n).items()},
        )
    if name == "stsb":  # its test split has no numbers, but says so by one
        similar = [-1.0] if split == "test" else [0.0, 2.5, 3.75, 5.0]
        return {**two, "label": datasets.Value("float32")}, pair(similar)
    return {
        "nyu-mll/glue": ({**two, "label": datasets.ClassLabel(names=["no", "yes"])}, pair(answers)),
        "eriktks/conll2003": (tokens | {"ner_tags": datasets.List(TAGS)}, words("ner_tags", "ner")),
        "unimelb-nlp/wikiann": (tokens | {"ner_tags": datasets.List(TAGS)}, words("ner_tags", "ner")),
        "universal-dependencies/universal_dependencies": (
            tokens | {"upos": datasets.List(UPOS)}, words("upos", "upos"),
        ),
        "google-research-datasets/go_emotions": (
            {"text": TEXT, "labels": datasets.List(emotions)}, text("text", "labels", [[0], [1], [2], [0, 1]]),
        ),
        "stanfordnlp/sst2": (
            {"sentence": TEXT, "label": datasets.ClassLabel(names=["negative", "positive"])},
            text("sentence", "label", [0, 1]),
        ),
        "fancyzhx/ag_news": (
            {"text": TEXT, "label": datasets.ClassLabel(names=["World", "Sports", "Business", "Sci/Tech"])},
            text("text", "label", [0, 1, 2, 3]),
        ),
        "tblard/allocine": (
            {"review": TEXT, "label": datasets.ClassLabel(names=["neg", "pos"])}, text("review", "label", [0, 1]),
        ),
        "mteb/tweet_sentiment_multilingual": ({"text": TEXT, "label": number}, text("text", "label", [0, 1, 2])),
        "mteb/TenKGnadClassification": ({"text": TEXT, "label": number}, text("text", "label", [*range(9)])),
        "mteb/sib200": ({"text": TEXT, "category": TEXT}, text("text", "category", topics)),
    }[path]  # fmt: skip


def stand_in(hub: Path, path: str, name: str | None, data_files: Any) -> None:
    """A dataset on a local Hub, at its pin: rows in the files that the recipe names, or in those of a configuration."""
    revision = PINS[path]
    home = hub / "datasets" / f"{path}@{revision.replace('/', '_')}"
    has_no_validation = path in ("fancyzhx/ag_news", "mteb/TenKGnadClassification")
    has_dev = path.startswith("universal")
    splits = ["train", "test"] if has_no_validation else ["train", "dev" if has_dev else "validation", "test"]
    if name == "mnli":
        splits = ["train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"]
    if data_files is not None:
        for split, files in data_files.items():
            for file in [files] if isinstance(files, str) else files:
                row = rows_of(path, name, split)[1]
                (home / file).parent.mkdir(parents=True, exist_ok=True)
                with gzip.open(home / file, "wt") as lines:
                    lines.writelines(json.dumps(row(n)) + "\n" for n in range(40))
        return
    folder = home / (name or "data")
    for split in splits:
        features, row = rows_of(path, name, split)
        file = folder / split / "0000.parquet" if revision == PARQUET else folder / f"{split}-0000.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        made = datasets.Dataset.from_list([row(n) for n in range(40)], features=datasets.Features(features))
        made.to_parquet(file)
    if name is not None and revision != PARQUET:
        known = sorted(path.name for path in home.iterdir() if path.is_dir())
        configs = [
            {
                "config_name": one,
                "data_files": [
                    {"split": split, "path": f"{one}/{split}-*"}
                    for split in sorted(file.name.removesuffix("-0000.parquet") for file in (home / one).iterdir())
                ],
            }
            for one in known
        ]
        (home / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name in ("french", "spanish", "german", "multilingual")))
        for name in RECIPES
    ],
)
def test_a_recipe_runs_on_datasets_of_its_ids_revisions_configurations_and_columns(name: str, tmp_path: Path) -> None:
    recipe, hub = RECIPES[name], tmp_path / "hub"
    first = RECIPES.get(before(recipe) or name, recipe)
    encoder = hub / "models" / f"{first.encoder}@{first.encoder_revision}"
    tiny.encoder(TYPES[first.encoder]).save_pretrained(encoder)
    tiny.tokenizer().save_pretrained(encoder)
    for spec in (*first.datasets.values(), *recipe.datasets.values()):
        assert spec.path is not None
        stand_in(hub, spec.path, spec.name, spec.data_files)
    unread = (
        hub / "datasets" / f"universal-dependencies/universal_dependencies@{PARQUET.replace('/', '_')}" / "nl_lassy"
    )
    (unread / "train").mkdir(parents=True)
    (unread / "train" / "0000.parquet").write_bytes(b"no parquet")
    with served(hub) as (environment, requests):
        for recipe_file, output_dir in ((before(recipe), first.output_dir), (name, tmp_path / "run")):
            if recipe_file is None:
                continue
            found = spawned.python(
                "-m", "nlp_mtl", "train", recipes_folder() / f"{recipe_file}.yaml", "training.max_steps=3",
                f"output_dir={output_dir}", environment=environment, cwd=tmp_path,
            )  # fmt: skip
            assert found.returncode == 0, found.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [*results["main_metrics"]] == [*recipe.tasks]
    assert {*results["scores"]["validation"]} == {*recipe.tasks}
    for dataset, told in results["data"].items():
        rows = told["splits"]["train"]["rows"]
        files = (recipe.datasets[dataset].data_files or {"train": "one"})["train"]
        whole = 40 * (1 if isinstance(files, str) else len(files))
        assert rows in (whole, whole * 9 // 10), dataset  # a missing validation split is held out
    assert not any("nl_lassy" in request and "resolve" in request for request in requests)

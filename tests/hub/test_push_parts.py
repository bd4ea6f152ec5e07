"""Parts go to the Hub as well: one task as a stock checkpoint, and a model that is in memory."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from stock_models import saved
from tiny_runs import tiny_recipe
from writable_hub import TOKEN, Fault, Hub, writable_hub

from nlp_mtl import load, train

LICENSED = {"me/reviews": "---\nlicense: cc-by-4.0\nlanguage:\n- da\n---\n"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tiny_recipe(tmp_path_factory.mktemp("run"), max_steps=2)
    train(recipe)
    return Path(recipe.output_dir)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with writable_hub(tmp_path / "hub") as running:
        yield running


def nlp_mtl(hub: Hub, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "nlp_mtl", *map(str, arguments)],
        env=hub.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert TOKEN not in done.stdout + done.stderr
    return done


def python(hub: Hub, program: str, *arguments: str | Path) -> Any:
    """What a program prints as JSON."""
    found = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=hub.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def commits(hub: Hub) -> list[dict[str, Any]]:
    return [one for one in hub.commits if "commit" in one]


PIPELINE = """
import json, sys
from transformers import pipeline
found = pipeline("token-classification", sys.argv[1])("anna loves paris .")
print(json.dumps([[one["entity"], float(one["score"])] for one in found]))
"""


@pytest.mark.slow
def test_an_exported_task_is_pushed_and_used_by_a_stock_pipeline(run: Path, hub: Hub, tmp_path: Path) -> None:
    done = nlp_mtl(hub, "export", run, tmp_path / "ner", "--task", "ner", "--push", "me/ner", "--license", "mit")
    assert done.returncode == 0, done.stderr
    (commit,) = commits(hub)
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= {*commit["files"]}
    card = ModelCard((hub.root / "models" / "me" / "ner" / "README.md").read_text(), ignore_metadata_errors=False)
    assert card.data.to_dict()["license"] == "mit"
    assert card.data.to_dict()["model-index"][0]["results"]
    assert str(tmp_path) not in card.content
    assert python(hub, PIPELINE, "me/ner") == python(hub, PIPELINE, tmp_path / "ner")


@pytest.mark.slow
def test_what_was_exported_stays_when_the_push_fails(run: Path, hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault("POST .*/preupload", 403, times=99))
    done = nlp_mtl(hub, "export", run, tmp_path / "ner", "--task", "ner", "--push", "me/ner")
    assert done.returncode == 2
    assert f"it is written to {tmp_path / 'ner'}; push that: hf upload me/ner {tmp_path / 'ner'} ." in done.stderr
    assert (tmp_path / "ner" / "model.safetensors").is_file()


def test_options_of_a_push_without_a_push_are_refused(run: Path, hub: Hub, tmp_path: Path) -> None:
    done = nlp_mtl(hub, "export", run, tmp_path / "ner", "--task", "ner", "--private")
    assert done.returncode == 2
    assert "only --push reads it" in done.stderr


MODEL = """
import json, sys
from nlp_mtl import load
nlp = load(sys.argv[1])
print(json.dumps(nlp.model.push_to_hub("me/memory", tokenizer=nlp.tokenizer, private=True, tags=["mine"])))
"""
ANSWER = "import json, sys, nlp_mtl; print(json.dumps(nlp_mtl.load(sys.argv[1])('anna loves paris .')))"


@pytest.mark.slow
def test_a_model_in_memory_is_pushed_with_a_card_and_loads_by_its_id(run: Path, hub: Hub) -> None:
    assert "/me/memory/commit/" in python(hub, MODEL, run)
    assert hub.commits[0]["visibility"] == "private"
    assert python(hub, ANSWER, "me/memory") == json.loads(json.dumps(load(run)("anna loves paris .")))
    card = ModelCard((hub.root / "models" / "me" / "memory" / "README.md").read_text(), ignore_metadata_errors=False)
    assert "mine" in card.data.to_dict()["tags"]
    assert "| ner | token-classification |" in card.text


def test_a_saved_model_brings_the_code_that_loads_it_without_the_package(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_nlp_mtl.MultiTaskModel"
    assert (folder / "modeling_nlp_mtl.py").is_file()


@pytest.mark.slow
def test_a_card_tells_licence_and_language_of_datasets_from_their_pages(run: Path, hub: Hub, tmp_path: Path) -> None:
    import shutil

    import yaml

    for name, text in LICENSED.items():
        (hub.root / "datasets" / name).mkdir(parents=True)
        (hub.root / "datasets" / name / "README.md").write_text(text)
    told = shutil.copytree(run, tmp_path / "told")
    recipe = yaml.safe_load((told / "recipe.yaml").read_text())
    recipe["datasets"]["texts"]["path"] = "me/reviews"
    recipe["datasets"]["words"]["path"] = "they/hidden"  # nobody can see it
    (told / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = nlp_mtl(hub, "push", told, "me/tiny")
    assert done.returncode == 0, done.stderr
    card = ModelCard((hub.root / "models" / "me" / "tiny" / "README.md").read_text())
    assert card.data.to_dict()["language"] == ["da"]
    assert "me/reviews) | cc-by-4.0 | da |" in card.text
    assert "they/hidden) | not told | not told |" in card.text

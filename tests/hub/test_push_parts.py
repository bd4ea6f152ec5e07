"""Parts go to the Hub as well: one task as a stock checkpoint, and a model that is in memory."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hub_runs import ANSWER, commits, nlp_mtl, python
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from stock_models import saved
from tiny_runs import values, write_yaml
from writable_hub import Fault, Hub

from nlp_mtl import load

LICENSED = {"me/reviews": "---\nlicense: cc-by-4.0\nlanguage:\n- da\n---\n"}


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
    done = nlp_mtl(hub, "export", run, tmp_path / "ner", "--task", "ner", "--push", "me/ner", "--private")
    assert done.returncode == 2
    assert "# me/ner" in (tmp_path / "ner" / "README.md").read_text()
    assert (
        f"it is written to {tmp_path / 'ner'}; push that: hf upload me/ner {tmp_path / 'ner'} . --private"
        in done.stderr
    )
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


@pytest.mark.slow
def test_a_model_in_memory_is_pushed_with_a_card_and_loads_by_its_id(run: Path, hub: Hub) -> None:
    assert "/me/memory/commit/" in python(hub, MODEL, run)
    assert hub.commits[0]["visibility"] == "private"
    assert python(hub, ANSWER, "me/memory") == json.loads(json.dumps(load(run)("anna loves paris .")))
    card = ModelCard((hub.root / "models" / "me" / "memory" / "README.md").read_text(), ignore_metadata_errors=False)
    assert "mine" in card.data.to_dict()["tags"]
    assert "| ner | token-classification |" in card.text


SHARDED = """
import json, sys, torch
from nlp_mtl import load
nlp = load(sys.argv[1])
nlp.model.push_to_hub("me/memory", tokenizer=nlp.tokenizer)
with torch.no_grad():
    nlp.model.head("sentiment").classifier.bias += torch.tensor([5.0, -5.0])
nlp.model.push_to_hub("me/memory", tokenizer=nlp.tokenizer, max_shard_size="20KB", commit_description="In parts.")
print(json.dumps(nlp("anna loves paris .")))
"""


@pytest.mark.long
def test_weights_of_an_earlier_push_go_where_a_later_one_brings_others(run: Path, hub: Hub) -> None:
    changed = python(hub, SHARDED, run)
    files = {path.name for path in (hub.root / "models" / "me" / "memory").iterdir()}
    assert "model.safetensors.index.json" in files
    assert "model.safetensors" not in files
    assert python(hub, ANSWER, "me/memory") == changed


@pytest.mark.long
def test_plots_and_results_of_a_run_go_where_a_model_without_one_is_pushed(run: Path, hub: Hub) -> None:
    assert nlp_mtl(hub, "push", run, "me/memory").returncode == 0
    repository = hub.root / "models" / "me" / "memory"
    (repository / "mine.txt").write_text("mine")
    python(hub, MODEL, run)
    assert {"recipe.yaml", "results.json"}.isdisjoint(path.name for path in repository.iterdir())
    assert not [*(repository / "plots").glob("*")]
    assert (repository / "mine.txt").read_text() == "mine"


def test_saving_does_not_push_half_a_model(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    with pytest.raises(ValueError, match="call push_to_hub"):
        load(folder).model.save_pretrained(tmp_path / "other", push_to_hub=True)


def test_a_saved_model_brings_the_code_that_loads_it_without_the_package(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_nlp_mtl.MultiTaskModel"
    assert (folder / "modeling_nlp_mtl.py").is_file()


@pytest.mark.slow
def test_a_card_tells_licence_and_language_of_datasets_from_their_pages(run: Path, hub: Hub, tmp_path: Path) -> None:
    for name, text in LICENSED.items():
        (hub.root / "datasets" / name).mkdir(parents=True)
        (hub.root / "datasets" / name / "README.md").write_text(text)
    told = shutil.copytree(run, tmp_path / "told")
    results = json.loads((told / "results.json").read_text())
    results["data"]["texts"] |= {"path": "me/reviews", "from_hub": True}
    results["data"]["words"] |= {"path": "they/hid--den", "from_hub": True}  # no id at all
    (told / "results.json").write_text(json.dumps(results))
    hub.faults.append(Fault("datasets/they", 403, times=9))
    done = nlp_mtl(hub, "push", told, "me/tiny")
    assert done.returncode == 0, done.stderr
    card = ModelCard((hub.root / "models" / "me" / "tiny" / "README.md").read_text())
    assert card.data.to_dict()["language"] == ["da"]
    assert "me/reviews) | cc-by-4.0 | da |" in card.text
    assert "they/hid--den) | not told | not told |" in card.text


@pytest.mark.slow
def test_a_task_starts_from_a_checkpoint_on_the_hub_at_a_revision(run: Path, hub: Hub, tmp_path: Path) -> None:
    stock = hub.root / "models" / "me" / "ner@v1"
    assert nlp_mtl(hub, "export", run, stock, "--task", "ner").returncode == 0
    given = values(tmp_path, max_steps=1, learning_rate=1e-12, head_learning_rate=1e-12)
    given |= {"encoder": "me/ner", "encoder_revision": "v1"}
    given["tasks"]["ner"] |= {"init_from": "me/ner", "init_from_revision": "v1"}
    done = nlp_mtl(hub, "train", write_yaml(tmp_path, given))
    assert done.returncode == 0, done.stderr
    taken = load_file(tmp_path / "run" / "model" / "model.safetensors")["heads.ner_head.classifier.weight"]
    torch.testing.assert_close(taken, load_file(stock / "model.safetensors")["classifier.weight"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["encoder"] == {"name": "me/ner", "revision": "v1", "from_hub": True}

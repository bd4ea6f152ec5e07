"""Models that are on a Hub are loaded by id: private ones with the token alone, revisions as they were."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hub_runs import nlp_mtl, python
from safetensors.torch import load_file, save_file
from writable_hub import Hub

from nlp_mtl import load
from nlp_mtl.hub.card_header import About
from nlp_mtl.hub.pushing import assemble


@pytest.mark.long
def test_a_private_model_is_seen_with_the_token_alone(run: Path, hub: Hub) -> None:
    assert nlp_mtl(hub, "push", run, "me/secret", "--private").returncode == 0
    assert nlp_mtl(hub, "predict", "me/secret", "anna").returncode == 0
    done = nlp_mtl(hub, "predict", "me/secret", "anna", HF_TOKEN="hf_of_somebody_else", HF_HOME=str(hub.root / "other"))
    assert done.returncode == 2
    assert "no such model on the Hub that you can see" in done.stderr


@pytest.mark.slow
def test_a_revision_is_loaded_as_it_was(run: Path, hub: Hub, tmp_path: Path) -> None:
    repository = hub.root / "models" / "me" / "tiny"
    other = shutil.copytree(run, tmp_path / "other")
    weights = load_file(other / "model" / "model.safetensors")
    weights["heads.sentiment_head.classifier.bias"] += torch.tensor([5.0, -5.0])
    save_file(weights, other / "model" / "model.safetensors", metadata={"format": "pt"})
    for source, folder in ((run, repository.with_name("tiny@v2")), (other, repository)):
        folder.mkdir(parents=True)
        assemble(source, folder, "me/tiny", None, About())
    old, new = (json.loads(json.dumps(load(path)("anna loves paris ."))) for path in (run, other))
    assert old != new
    program = """
import json, nlp_mtl
from huggingface_hub import HfApi
commit = HfApi().model_info("me/tiny", revision="v2").sha
print(json.dumps([
    nlp_mtl.load("me/tiny", revision=revision)("anna loves paris .") for revision in (None, "v2", commit)
]))
"""
    assert python(hub, program) == [new, old, old]


@pytest.mark.slow
def test_with_the_package_auto_classes_load_by_id_without_trust(run: Path, hub: Hub) -> None:
    (hub.root / "models" / "me" / "tiny").mkdir(parents=True)
    assemble(run, hub.root / "models" / "me" / "tiny", "me/tiny", None, About())
    program = """
import json, nlp_mtl
from nlp_mtl import MultiTaskModel
from transformers import AutoModel
print(json.dumps(type(AutoModel.from_pretrained("me/tiny")) is MultiTaskModel))
"""
    assert python(hub, program)

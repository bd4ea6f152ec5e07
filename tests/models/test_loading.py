import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from stock_models import saved
from tiny import encoder

from nlp_mtl import ModelError
from nlp_mtl.models.loading import load_model as load


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "~/nowhere/x", "a/b/c"])
def test_a_folder_that_is_not_there_is_said_so(name: str) -> None:
    with pytest.raises(ModelError, match=f"there is no model folder {name}"):
        load(name)


def test_what_is_not_a_model_of_ours_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a model folder: it has no config\.json"):
        load(tmp_path)
    encoder().save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match=r"type `bert`, not one of nlp_mtl; .* give it as `encoder:` in a recipe"):
        load(tmp_path / "bert")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="there is no model folder"):
        load(tmp_path / "file")


def set_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def cut(name: str, stop: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:stop])

    return change


def change_weight(weight: torch.Tensor | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights.pop("heads.pos_head.classifier.weight")
        if weight is not None:
            weights["heads.pos_head.classifier.weight"] = weight
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


BROKEN = {
    "weights empty": (cut("model.safetensors", 0), "cannot be loaded: .*header"),
    "header cut": (cut("model.safetensors", 100), "cannot be loaded: .*header"),
    "weights cut": (cut("model.safetensors", -100), "weights are damaged .*incomplete.*save them anew"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "it has no model.safetensors"),
    "a weight missing": (change_weight(None), "its weights lack `heads.pos_head.classifier.weight`"),
    "a weight of another shape": (change_weight(torch.zeros(2, 16)), "its weights do not fit its config.json"),
    "config cut": (cut("config.json", 50), "config.json is not valid JSON"),
    "config not text": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), "not valid JSON"),
    "config a list": (lambda folder: (folder / "config.json").write_text("[]"), "not one of nlp_mtl"),
    "no tasks": (set_config(tasks=[]), "its config has no tasks"),
    "a task without labels": (set_config(tasks=[{"name": "x"}]), "tasks that cannot be read: .*labels"),
    "tasks of another kind": (set_config(tasks=["ner"]), "tasks that cannot be read"),
    "a window of no token": (set_config(max_length=0), "max_length 0; expected a number from 1 on"),
    "an overlap in words": (set_config(window_overlap="many"), "window_overlap 'many'; expected a number"),
    "unknown splitter": (set_config(word_splitter="words"), "word_splitter `words`; known are `unicode`"),
    "unknown encoder": (set_config(encoder_config={"model_type": "nosuch"}), "cannot be loaded: .*nosuch"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "the tokenizer of .* is not there"),
    "tokenizer cut": (cut("tokenizer.json", 100), "the tokenizer of .* cannot be loaded"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_model_folder_is_one_clear_error(tmp_path: Path, model_folder: Path, case: str) -> None:
    damage, message = BROKEN[case]
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    damage(folder)
    with pytest.raises(ModelError, match=message) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_hub_id_that_cannot_be_reached_is_one_clear_error() -> None:
    with pytest.raises(ModelError, match="model `someone/model` cannot be loaded"):
        load("someone/model")


def test_a_revision_of_a_folder_is_refused(model_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"revision 'v2' is for models on the Hub, but .* is a folder: leave it out"):
        load(model_folder, revision="v2")

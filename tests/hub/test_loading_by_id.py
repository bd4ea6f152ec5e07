"""Models that cannot be had from a Hub are told in one message; what a hostile repository holds is refused."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import spawned
import tiny
import torch
from safetensors.torch import load_file, save_file
from stock_models import saved
from tiny_runs import values, write_yaml
from writable_hub import TOKEN, Fault, Hub, writable_hub

from nlp_mtl import ModelError
from nlp_mtl.models.encoder import load_encoder
from nlp_mtl.models.loading import load_model

TINY = "models/me/tiny"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """One with the model ``me/tiny``, one whose weights are a pickle, and one whose index points out of it."""
    root = tmp_path_factory.mktemp("hub")
    saved(root / "models" / "me" / "tiny")
    pickled(saved(root / "models" / "me" / "pickled"))
    hostile = saved(root / "models" / "me" / "hostile")
    (hostile / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"any": "../../../../etc/outside.safetensors"}}
    (hostile / "model.safetensors.index.json").write_text(json.dumps(index))
    with writable_hub(root) as running:
        yield running


def pickled(folder: Path) -> Path:
    """A model whose weights are no safetensors any more."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def predicted(hub: Hub, name: str, home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**hub.environment, "HF_HOME": str(home)}
    done = spawned.python("-m", "nlp_mtl", "predict", name, "anna loves paris", *arguments, environment=environment)
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault("me/tiny", 401, 99, {"X-Error-Code": "RepoNotFound"}), "hf auth login"),
        (Fault("me/tiny", 403, 99, {"X-Error-Code": "GatedRepo"}), "gated"),
        (Fault("me/tiny", 404, 99, {"X-Error-Code": "RepoNotFound"}), "hf auth login"),
    ],
    ids=["401", "gated", "404"],
)
def test_a_model_that_cannot_be_seen_is_told_in_one_message(hub: Hub, tmp_path: Path, fault: Fault, told: str) -> None:
    hub.faults[:] = [fault]
    done = predicted(hub, "me/tiny", tmp_path)
    hub.faults.clear()
    assert done.returncode == 2
    assert told in done.stderr
    assert "me/tiny" in done.stderr


@pytest.mark.slow
def test_a_run_starts_from_the_encoder_of_a_model_of_ours_by_id(hub: Hub, tmp_path: Path) -> None:
    given = values(tmp_path, max_steps=1) | {"encoder": "me/tiny"}
    file = write_yaml(tmp_path, given)
    environment = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
    done = spawned.python("-m", "nlp_mtl", "train", file, "training.learning_rate=1e-12", environment=environment)
    assert done.returncode == 0, done.stderr
    found, learned = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "run" / "model", hub.root / TINY)
    )
    names = [name for name in learned if name.startswith("encoder.") and "pooler" not in name]
    assert names
    assert all(torch.allclose(found[name], learned[name], atol=1e-6) for name in names)
    origin = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["encoder_origin"]
    assert [(step["name"], step["from_hub"], [*step["tasks"]]) for step in origin] == [
        ("me/tiny", True, ["ner", "pos", "sentiment"])
    ]
    assert "base_model: me/tiny" in (tmp_path / "run" / "model" / "README.md").read_text()


@pytest.mark.slow
def test_a_revision_that_is_not_there_is_told(hub: Hub, tmp_path: Path) -> None:
    done = predicted(hub, "me/tiny", tmp_path, "--revision", "v9")
    assert done.returncode == 2
    assert "v9" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("status", [500, 429, 0])
def test_what_fails_for_the_moment_is_tried_again(hub: Hub, tmp_path: Path, status: int) -> None:
    once = Fault("GET .*resolve.*safetensors", status, headers={"Retry-After": "1"} if status == 429 else {})
    hub.faults[:] = [once]
    done = predicted(hub, "me/tiny", tmp_path)
    hub.faults.clear()
    assert done.returncode == 0, done.stderr
    assert once.times == 0
    assert json.loads(done.stdout)["predictions"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "told"), [("pickled", "no model.safetensors"), ("hostile", "outside the model")])
def test_a_pickle_and_a_path_out_of_the_repository_are_refused_by_id_as_well(
    hub: Hub, tmp_path: Path, name: str, told: str
) -> None:
    done = predicted(hub, f"me/{name}", tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    asked = hub.requests
    assert not any(
        "outside" in path or ("pytorch_model.bin" in path.rpartition("/")[2] and "GET" in path) for path in asked
    )
    assert not any("commits" in path or "discussions" in path for path in asked), "for a conversion"


def test_weights_that_would_have_to_be_unpickled_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model\.safetensors, and other formats .* are pickles"):
        load_model(pickled(saved(tmp_path / "model")))
    encoder = pickled(Path(tiny.save_encoder(tmp_path / "encoder")))
    with pytest.raises(ModelError, match=r"encoder .* no model\.safetensors.* refs/pr/N"):
        load_encoder(str(encoder))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "a/../../outside.safetensors"])
def test_an_index_that_names_files_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(weights, tmp_path / "outside.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"names a file outside the model: "):
        load_model(folder)


def test_labels_that_the_weights_do_not_have_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["tasks"][0]["labels"].append("one too many")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"its weights do not fit its config\.json"):
        load_model(folder)

"""``hub:`` in a recipe: the model is pushed when it is trained, or with every checkpoint as well."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hub_runs import commits, nlp_mtl
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny_runs import assert_same_end, finish, start, values, write_yaml
from writable_hub import TOKEN, Fault, Hub

from nlp_mtl import Recipe, RecipeError

SHARDED = Path(__file__).resolve().parent.parent / "training" / "sharded_on_cpu.py"


def trained(
    hub: Hub, folder: Path, section: dict[str, Any] | None, *arguments: str, token: str = TOKEN, **training: Any
) -> "subprocess.CompletedProcess[str]":
    """``nlp-mtl train`` of a recipe with a ``hub`` section, in a process of its own."""
    given = values(folder, **{"max_steps": 6, "eval_every": 2, "log_every": 1, **training})
    return nlp_mtl(hub, "train", write_yaml(folder, given | {"hub": section}), *arguments, HF_TOKEN=token)


@pytest.mark.slow
def test_a_run_is_pushed_at_its_end_with_what_the_recipe_says_of_it(hub: Hub, tmp_path: Path) -> None:
    section = {"repo_id": "me/tiny", "private": True, "license": "mit", "language": "en", "tags": ["mine"]}
    done = trained(hub, tmp_path, section)
    assert done.returncode == 0, done.stderr
    (commit,) = commits(hub)
    assert commit["message"] == "Model of nlp_mtl (run)"
    assert hub.commits[0]["visibility"] == "private"
    assert "Pushed: http" in done.stderr
    header = ModelCard((hub.root / "models" / "me" / "tiny" / "README.md").read_text()).data.to_dict()
    assert (header["license"], header["language"]) == ("mit", ["en"])
    assert "mine" in header["tags"]


@pytest.mark.long
def test_a_save_after_a_push_that_ended_is_pushed_as_well_and_one_during_it_is_left_out(
    hub: Hub, tmp_path: Path
) -> None:
    hub.faults.append(Fault("POST .*/commit/main", 200, delay=5))
    section = {"repo_id": "me/tiny", "push": "every_save"}
    done = trained(hub, tmp_path, section, eval_every=20, num_epochs=400, max_steps=2400, log_every=100)
    assert done.returncode == 0, done.stderr
    messages = [commit["message"].rpartition(": ")[2] for commit in commits(hub)]
    assert messages[0] == "step 20", done.stderr
    assert len(messages) > 2
    assert "Step 40 is not pushed: the push of step 20 is still under way" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ema_decay", [0.0, pytest.param(0.5, marks=pytest.mark.long)])
def test_every_save_is_pushed_and_the_run_ends_in_the_same_bits(hub: Hub, tmp_path: Path, ema_decay: float) -> None:
    plain = trained(hub, tmp_path / "plain", None, dropout=0.1, ema_decay=ema_decay)
    assert plain.returncode == 0, plain.stderr
    section = {"repo_id": "me/tiny", "push": "every_save", "commit_message": "Mine"}
    done = trained(hub, tmp_path / "pushed", section, dropout=0.1, ema_decay=ema_decay)
    assert done.returncode == 0, done.stderr
    messages = [commit["message"] for commit in commits(hub)]
    assert messages[0] == "Mine: step 2"  # a later one is left out while this one is under way
    assert messages[-1] == "Mine"
    assert set(messages) <= {"Mine: step 2", "Mine: step 4", "Mine"}
    for commit in commits(hub):
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "recipe.yaml"} <= {*commit["files"]}
    assert_same_end(tmp_path / "plain" / "run", tmp_path / "pushed" / "run")
    assert not (tmp_path / "pushed" / "run" / "pushing").exists()


@pytest.mark.slow
def test_what_fails_meanwhile_stops_nothing_and_a_failed_end_is_told_and_can_be_repeated(
    hub: Hub, tmp_path: Path
) -> None:
    hub.faults.append(Fault("POST .*/commit/main", 403, times=99))
    section = {"repo_id": "me/tiny", "push": "every_save"}
    done = trained(hub, tmp_path, section)
    assert done.returncode == 2
    assert "Step 2 was not pushed, training goes on: the token may not write to `me/tiny`" in done.stderr
    assert f"push it again: nlp-mtl push {tmp_path / 'run'}" in done.stderr
    assert json.loads((tmp_path / "run" / "results.json").read_text())["steps"] == 6
    assert not commits(hub)
    hub.faults[0].times = 0
    again = nlp_mtl(hub, "push", tmp_path / "run")
    assert again.returncode == 0, again.stderr
    assert len(commits(hub)) == 1


@pytest.mark.long
def test_a_model_pushed_meanwhile_says_so_and_loads_from_a_copy_of_its_repository(hub: Hub, tmp_path: Path) -> None:
    given = trained(hub, tmp_path, {"repo_id": "me/tiny", "push": "every_save"}, eval_every=3)
    assert given.returncode == 0, given.stderr
    first = next(commit for commit in commits(hub) if commit["message"].endswith("step 3"))
    repository = first["folder"]
    text = (repository / "README.md").read_text()
    assert "Its training was under way when this was pushed: this is the model after step 3." in text
    found = nlp_mtl(hub, "predict", repository, "anna loves paris .")
    assert found.returncode == 0, found.stderr
    assert {*json.loads(found.stdout)["predictions"]} == {"ner", "pos", "sentiment"}


@pytest.mark.long
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_of_several_processes_one_pushes_the_whole_model(hub: Hub, tmp_path: Path, sharded: bool) -> None:
    section = {"repo_id": "me/tiny", "push": "every_save"}
    given = values(tmp_path, max_steps=4, eval_every=2, log_every=1)
    file = write_yaml(tmp_path, given | {"hub": section})
    environment = {**hub.environment, "HF_HUB_OFFLINE": "0"}
    if sharded:
        environment |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    code, _, errors = finish(
        start("train", file, processes=2, script=SHARDED if sharded else None, environment=environment)
    )
    assert code == 0, errors
    assert errors.count("Pushed: ") == 1
    pushed = commits(hub)
    assert pushed[0]["message"].endswith("step 2")
    whole = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for commit in pushed:
        sent = load_file(commit["folder"] / "model.safetensors")
        assert {name: tensor.shape for name, tensor in sent.items()} == {
            name: tensor.shape for name, tensor in whole.items()
        }
    last = load_file(hub.root / "models" / "me" / "tiny" / "model.safetensors")
    assert all((last[name] == whole[name]).all() for name in whole)


@pytest.mark.slow
def test_what_the_hub_refuses_is_told_before_anything_is_trained(hub: Hub, tmp_path: Path) -> None:
    done = trained(hub, tmp_path, {"repo_id": "me/tiny"}, token="hf_wrong_secret")
    assert done.returncode == 2
    assert "run `hf auth login`, or set HF_TOKEN" in done.stderr
    assert "hf_wrong_secret" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_save_before_the_first_line_of_metrics_is_pushed(hub: Hub, tmp_path: Path) -> None:
    section = {"repo_id": "me/tiny", "push": "every_save"}
    done = trained(hub, tmp_path, section, save_every=1, eval_every=6, log_every=6)
    assert done.returncode == 0, done.stderr
    assert commits(hub)[0]["message"].endswith("step 1")


@pytest.mark.slow
def test_metadata_that_the_hub_refuses_are_told_before_anything_is_trained(hub: Hub, tmp_path: Path) -> None:
    done = trained(hub, tmp_path, {"repo_id": "me/tiny", "license": "my-own"})
    assert done.returncode == 2
    assert '"license" must be one of' in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_resumed_run_may_push_elsewhere(hub: Hub, tmp_path: Path) -> None:
    assert trained(hub, tmp_path, None).returncode == 0
    done = trained(hub, tmp_path, {"repo_id": "me/later"}, "--resume")
    assert done.returncode == 0, done.stderr
    assert [commit["commit"] for commit in commits(hub)] == ["me/later"]


@pytest.mark.slow
def test_the_token_is_in_no_log_and_in_no_file_of_the_run_or_the_repository(hub: Hub, tmp_path: Path) -> None:
    section = {"repo_id": "me/tiny", "push": "every_save"}
    done = trained(hub, tmp_path, section, trackers=["tensorboard", "trackio"])
    assert done.returncode == 0, done.stderr
    looked_at = 0
    for folder in (tmp_path / "run", hub.root / "models"):
        for name, _, files in os.walk(folder):
            for file in files:
                assert TOKEN.encode() not in (Path(name) / file).read_bytes(), file
                looked_at += 1
    assert looked_at > 20


def test_a_recipe_tells_what_is_wrong_with_its_hub(tmp_path: Path) -> None:
    given = values(tmp_path)
    with pytest.raises(RecipeError, match=r"hub\.push: .*end.*every_save"):
        Recipe.from_dict({**given, "hub": {"repo_id": "me/tiny", "push": "always"}})
    with pytest.raises(RecipeError, match=r"hub\.repo_id: .*`user/name`"):
        Recipe.from_dict({**given, "hub": {"repo_id": "me/ti ny"}})
    with pytest.raises(RecipeError, match=r"hub\.licence: unknown key `licence`\. Did you mean `license`"):
        Recipe.from_dict({**given, "hub": {"repo_id": "me/tiny", "licence": "mit"}})
    with pytest.raises(RecipeError, match=r"hub\.create_pr: .*a pull request for each"):
        Recipe.from_dict({**given, "hub": {"repo_id": "me/tiny", "push": "every_save", "create_pr": True}})


def test_norwegian_is_a_language(tmp_path: Path) -> None:
    recipe = Recipe.from_dict({**values(tmp_path), "hub": {"repo_id": "me/tiny", "language": [False, "sv"]}})
    assert recipe.hub is not None
    assert recipe.hub.language == ["no", "sv"]  # what YAML makes of a bare no

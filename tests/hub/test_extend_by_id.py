"""A model of the Hub is extended by its id; the recipe beside it tells its tasks' data."""

import json
from pathlib import Path

import pytest
from extensions import new_values
from hub_runs import nlp_mtl
from huggingface_hub import ModelCard
from tiny_runs import write_yaml
from writable_hub import TOKEN, Hub

from nlp_mtl.run_evaluation import run_recipe


@pytest.mark.slow
def test_a_model_of_the_hub_is_extended_and_pushed_again(run: Path, hub: Hub, tmp_path: Path) -> None:
    assert nlp_mtl(hub, "push", run, "me/tiny", HF_TOKEN=TOKEN).returncode == 0
    file = write_yaml(tmp_path / "files", new_values(tmp_path, max_steps=2))
    extended = tmp_path / "extended"
    done = nlp_mtl(hub, "extend", "me/tiny", file)
    # Its data are files of another machine: nobody knows where they lie here.
    assert done.returncode == 2
    assert "`extension.data_dir`" in done.stderr
    assert not extended.exists()
    data_dir = run_recipe(run).data_dir
    done = nlp_mtl(hub, "extend", "me/tiny", file, f"extension.data_dir={data_dir}")
    assert done.returncode == 0, done.stderr
    assert "Old tasks, before and after" in done.stdout
    results = json.loads((extended / "results.json").read_text())
    assert results["extension"]["before"] == json.loads((run / "results.json").read_text())["scores"]
    assert (results["extension"]["model"], results["extension"]["from_hub"]) == ("me/tiny", True)
    assert nlp_mtl(hub, "push", extended, "me/more", HF_TOKEN=TOKEN).returncode == 0
    pushed = hub.root / "models" / "me" / "more"
    card = ModelCard((pushed / "README.md").read_text())
    assert card.data.base_model == "me/tiny"
    assert "[me/tiny](https://huggingface.co/me/tiny)" in card.text
    for name in ("recipe.yaml", "results.json", "README.md"):
        told = (pushed / name).read_text()
        assert str(tmp_path) not in told
        assert data_dir not in told
    alone = nlp_mtl(hub, "extend", "me/more", file, "output_dir=" + str(tmp_path / "again"), "extension.old_tasks=[]",
                    "tasks.tone={type: text-classification, dataset: news, labels: topic}", "tasks.topic=null",
                    "--revision", "main")  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    assert "Not scored, as their data were not read: ner, pos, sentiment, topic" in alone.stdout


@pytest.mark.slow
def test_a_model_that_is_not_there_is_told(hub: Hub, tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "files", new_values(tmp_path))
    done = nlp_mtl(hub, "extend", "me/nothing", file)
    assert done.returncode == 2
    assert "`me/nothing`" in done.stderr

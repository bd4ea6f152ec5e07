"""What a compressed model is good for: it is trained, taught, extended and compressed like any other."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from compressions import ALL, TEXT, command, trained_run
from extensions import new_values
from tiny import byte_level_tokenizer, encoder_config, write_corpus
from tiny import recipe as recipe_values
from transformers import AutoModel

from nlp_mtl import ModelError, Recipe, RecipeError, evaluate, extend, load, train
from nlp_mtl.compress import compress
from nlp_mtl.compression.magnitude import share_of_zeros
from nlp_mtl.models.extending import extended
from nlp_mtl.models.loading import load_model
from nlp_mtl.recipe_compression import CompressionSpec, own_recipe
from nlp_mtl.tasks import Task


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something; no test changes it."""
    return trained_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def small(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All that can be done, and training afterwards: the folder, and what the report says."""
    folder = tmp_path_factory.mktemp("small") / "run"
    return folder, compress(run, folder, compression=ALL)


def test_a_compressed_run_can_be_compressed_again_without_doing_all_of_it_twice(
    small: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = command(capsys, "compress", small[0], tmp_path / "again", "--magnitude", 0.5, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert {*report["done"]} == {"magnitude"}
    model, _ = load_model(tmp_path / "again")
    assert model.config.heads_per_layer == [1]
    assert share_of_zeros(model) == pytest.approx(0.5, abs=1e-3)


def test_training_by_hand_starts_from_a_compressed_model_heads_and_all(
    run: Path, small: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    values |= {"compression": {"model": str(small[0] / "compressed")}, "output_dir": str(tmp_path / "run")}
    values["training"] |= {"max_steps": 1, "learning_rate": 1e-9, "head_learning_rate": 1e-9, "dropout": 0.3}
    results = train(Recipe.from_dict(values))
    assert results["scores"] == small[1]["compressed"]["scores"]
    assert own_recipe(tmp_path / "run") == (tmp_path / "run" / "recipe.yaml", ["compression=null"])  # it is done
    model, _ = load_model(tmp_path / "run")
    assert model.config.heads_per_layer == [1]
    assert model.config.encoder_config.hidden_dropout_prob == 0.3
    assert share_of_zeros(model) == pytest.approx(0.25, abs=1e-3)
    with pytest.raises(ModelError, match="not a model folder"):
        train(Recipe.from_dict({**values, "compression": {"model": str(tmp_path)}, "output_dir": str(tmp_path / "x")}))


@pytest.mark.parametrize("way", ["train", "compress"])
def test_what_the_model_keeps_cannot_be_said_otherwise_by_the_recipe(way: str, run: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    values |= {"output_dir": str(tmp_path / "new"), "word_splitter": "english", "max_length": 32, "window_overlap": 8}
    values |= {"cleaning": {"lowercase": True}, "encoder": "some/other"}
    values["tasks"]["ner"]["decoder"] = "crf"
    values["tasks"]["more"] = {**values["tasks"]["pos"]}
    recipe = Recipe.from_dict({**values, "compression": {"model": str(run / "model")}})
    spec = CompressionSpec(layers=1, finetune_steps=1)
    with pytest.raises(RecipeError) as error:
        train(recipe) if way == "train" else compress(run, tmp_path / "new", recipe, spec)
    found = {problem.path: problem.message for problem in error.value.problems}
    assert {*found} == {
        "word_splitter", "max_length", "window_overlap", "cleaning", "encoder", "tasks.ner.decoder", "tasks.more",
    }  # fmt: skip
    assert found["word_splitter"].startswith("found 'english', but the model to train on has 'unicode'")
    assert found["encoder"].startswith("found 'some/other', but the model to train on has 'encoder'")
    assert found["tasks.ner.decoder"].startswith("found 'crf', but the model to train on has 'iob2'")
    assert "`nlp-mtl extend`" in found["tasks.more"]
    assert not (tmp_path / "new").exists()


def test_a_smaller_model_learns_from_the_one_that_it_was(run: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    values["output_dir"] = str(tmp_path / "small")
    values["distillation"] = {"teachers": dict.fromkeys(values["tasks"], str(run))}
    spec = CompressionSpec(layers=1, heads=0.5, vocabulary=["train"], finetune_steps=2)
    report = compress(run, tmp_path / "small", Recipe.from_dict(values), spec)
    assert report["finetuned"]["step"] == 2
    results = json.loads((tmp_path / "small" / "results.json").read_text())
    assert {*results["teachers"]} == {*values["tasks"]}


def test_a_compressed_model_gets_more_tasks_as_any_other(run: Path, small: tuple[Path, dict[str, Any]]) -> None:
    model, _ = load_model(small[0])
    more = extended(model, [*model.config.task_list(), Task("more", "text-classification", ("a", "b"), "accuracy")])
    assert more.config.heads_per_layer == [1]
    assert more.config.keep_zeros
    ids = torch.arange(5, 14)[None]
    with torch.no_grad():
        old, new = model(ids), more.eval()(ids)
    for task, one in old.items():
        torch.testing.assert_close(new[task], one)
    assert new["more"].shape == (1, 2)


def test_an_encoder_that_heads_were_taken_out_of_starts_no_other_run(
    run: Path, small: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe = Recipe.from_dict({**values, "encoder": str(small[0]), "output_dir": str(tmp_path / "run")})
    with pytest.raises(ModelError, match="attention heads were taken out of it, and no stock encoder has a place"):
        train(recipe)
    compress(run, tmp_path / "units", compression=CompressionSpec(intermediate=0.5, vocabulary=["train"]))
    train(recipe.model_copy(update={"encoder": str(tmp_path / "units")}))
    assert load_model(tmp_path / "run")[0].config.encoder_config.intermediate_size == 16


def test_an_extended_model_is_trained_afterwards_by_a_recipe_of_all_tasks(run: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(run / "recipe.yaml")
    extension = SimpleNamespace(old_splits={})
    with pytest.raises(RecipeError, match=r"compression\.finetune_steps: the model was extended"):
        compress(run, tmp_path / "small", recipe.model_copy(update={"extension": extension}), ALL)


@pytest.mark.parametrize("sampling", [{}, {"strategy": "fixed", "shares": {"news": 1}}], ids=["default", "fixed"])
def test_an_extended_model_loses_heads_and_units_that_matter_least_to_all_tasks(
    sampling: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    extend(run, {**new_values(tmp_path), "sampling": sampling})
    spec = CompressionSpec(heads=0.5, intermediate=0.5, importance_rows=48)
    report = compress(tmp_path / "extended", tmp_path / "small", compression=spec)
    assert report["done"]["heads"]["after"] == 2
    assert {*report["compressed"]["scores"]["test"]} == {"ner", "pos", "sentiment", "topic"}


@pytest.mark.parametrize(
    "family",
    ["roberta", *(pytest.param(one, marks=pytest.mark.slow) for one in ("modernbert", "albert", "deberta-v2"))],
)
def test_other_families_and_byte_level_vocabularies_go_the_same_way(family: str, tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    config = encoder_config(family)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    AutoModel.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    values = recipe_values(
        tmp_path, corpus=write_corpus(tmp_path / "corpus"), encoder_folder=tmp_path / "encoder", max_steps=2
    )
    train(Recipe.from_dict(values))
    spec = ALL.model_copy(update={"finetune_steps": 2})
    report = compress(tmp_path / "run", tmp_path / "small", compression=spec)
    assert report["done"]["vocabulary"]["after"] < report["done"]["vocabulary"]["before"]
    assert report["finetuned"]["scores"]["test"] == evaluate(tmp_path / "small")
    assert load(tmp_path / "small")(TEXT)

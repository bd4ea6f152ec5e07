"""Runs that start from the encoder of another run: intermediate training."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import moved, tiny_recipe, values, weights
from trained import copied

from nlp_mtl import ModelError, Recipe, load, train
from nlp_mtl.build import new_model
from nlp_mtl.build_data import prepare
from nlp_mtl.hub.export import export
from nlp_mtl.models.encoder import encoder_origin, load_encoder, load_tokenizer, trained_config
from nlp_mtl.models.multitask import from_encoder
from nlp_mtl.tasks import Task

NER = Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1")
MOOD = Task("mood", "text-classification", ("bad", "good"), "accuracy")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that learned three tasks."""
    folder = tmp_path_factory.mktemp("first")
    train(tiny_recipe(folder, max_steps=3))
    return folder / "run"


def after(first: Path, folder: Path, **training: Any) -> dict[str, Any]:
    """A recipe's values that go on with one of its tasks, from its encoder."""
    given = values(folder, **{"max_steps": 2, **training})
    del given["tasks"]["ner"], given["tasks"]["pos"], given["datasets"]["words"]
    return {**given, "encoder": str(first)}


@pytest.mark.parametrize("part", ["", "model"])
def test_a_run_starts_from_the_encoder_of_another_with_new_heads(first: Path, tmp_path: Path, part: str) -> None:
    recipe = Recipe.from_dict(after(first / part, tmp_path))
    found, learned = copied(new_model(recipe, prepare(recipe))), weights(first)
    encoder = {name for name in found if name.startswith("encoder.")}
    assert encoder == {name for name in learned if name.startswith("encoder.")}
    assert all(torch.equal(found[name], learned[name]) for name in encoder)
    head = "heads.sentiment_head.classifier.weight"
    assert not torch.equal(found[head], learned[head])


def test_an_intermediate_run_is_trained_resumed_and_told(first: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(after(first, tmp_path, save_every=1, keep_last=9))
    results = train(recipe)
    assert results["encoder"] == {"name": str(first), "revision": None, "from_hub": False}
    folder = tmp_path / "run" / "model"
    origin = json.loads((folder / "config.json").read_text())["encoder_origin"]
    types = {"ner": "token-classification", "pos": "token-classification", "sentiment": "text-classification"}
    assert origin == [{"name": "encoder", "from_hub": False}, {"name": "run", "from_hub": False, "tasks": types}]
    told = "The encoder started as `encoder` and learned, before these tasks: `ner`, `pos`, `sentiment` (in `run`)."
    assert told in (folder / "README.md").read_text()
    assert str(tmp_path) not in (folder / "README.md").read_text() + (folder / "config.json").read_text()
    assert set(load(tmp_path / "run")("anna loves paris .")) == {"sentiment"}
    last = encoder_origin(str(tmp_path / "run"))
    assert [step["name"] for step in last] == ["encoder", "run", "run"]
    assert train(recipe, resume=True) == results


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("tasks", [[NER], [MOOD], [NER, MOOD]], ids=["tokens", "texts", "both"])
def test_what_an_encoder_learned_is_loaded_whatever_its_family_and_heads(
    tmp_path: Path, family: str, tasks: list[Task]
) -> None:
    model = from_encoder(tiny.encoder(family), tasks, max_length=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    expected, found = copied(model.encoder), copied(load_encoder(str(tmp_path)))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert all(name.startswith("pooler.") for name in found.keys() - expected.keys())


def test_dropout_of_a_recipe_is_that_of_a_trained_encoder_as_well(first: Path) -> None:
    assert load_encoder(str(first), dropout=0.37).config.hidden_dropout_prob == 0.37
    assert trained_config(str(first)).encoder_config.hidden_dropout_prob == 0.0  # type: ignore[union-attr]


def test_the_tokenizer_is_that_of_the_first_run(first: Path) -> None:
    assert load_tokenizer(str(first)).get_vocab() == tiny.tokenizer().get_vocab()


@pytest.mark.parametrize("strategy", ["layer_mix", "task_embedding", "gate", "mmoe", "ple"])
def test_what_lay_between_encoder_and_heads_stays_behind(tmp_path: Path, strategy: str) -> None:
    sharing = {"strategy": strategy, "num_experts": 2, "expert_size": 4, "num_task_experts": 1, "num_levels": 1}
    model = from_encoder(tiny.encoder(), [NER, MOOD], max_length=32, sharing=sharing)
    model.save_pretrained(tmp_path)
    found = copied(load_encoder(str(tmp_path)))
    assert all(torch.equal(found[name], tensor) for name, tensor in copied(model.encoder).items())


@pytest.mark.parametrize(
    ("sharing", "told"),
    [
        ({"strategy": "towers", "num_layers": 1, "cross_stitch": False}, r"layers of its own .*nlp-mtl export"),
        ({"strategy": "towers", "num_layers": 1, "cross_stitch": True}, r"train it with another `sharing`"),
        ({"strategy": "lora", "rank": 2, "alpha": 4}, r"adapters of its own .*nlp-mtl export .* --task TASK"),
    ],
    ids=["towers", "cross-stitched", "lora"],
)
def test_an_encoder_that_each_task_has_for_itself_is_refused_with_the_way_out(
    tmp_path: Path, sharing: dict[str, Any], told: str
) -> None:
    model = from_encoder(tiny.encoder(), [NER, MOOD], max_length=32, sharing=sharing)
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=told):
        load_encoder(str(tmp_path / "model"))
    if sharing.get("cross_stitch") is not True:  # the way out is one
        export(tmp_path / "model", "mood", tmp_path / "mood")
        assert load_encoder(str(tmp_path / "mood")).config.model_type == "bert"


def test_a_run_that_has_not_finished_is_told(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("encoder: x\n")
    with pytest.raises(ModelError, match=r"has no model yet; its training has not finished"):
        load_encoder(str(tmp_path))


def test_weights_that_lack_a_part_of_the_encoder_are_refused(first: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(first / "model", tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"its weights lack `encoder\.layer\.1\.output\.dense\.weight`"):
        load_encoder(str(folder))


def test_a_head_cannot_start_from_a_multi_task_model(first: Path, tmp_path: Path) -> None:
    given = after(first, tmp_path)
    given["tasks"]["sentiment"]["init_from"] = str(first)
    recipe = Recipe.from_dict(given)
    with pytest.raises(ModelError, match=r"task `sentiment`: init_from: .* is a multi-task model: .*nlp-mtl export"):
        new_model(recipe, prepare(recipe))


def test_other_cleaning_and_other_words_than_the_encoder_learned_from_are_told(
    first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = after(first, tmp_path)
    prepare(Recipe.from_dict(given))
    assert not [message for message in caplog.messages if "learned from" in message]
    prepare(Recipe.from_dict({**given, "cleaning": {"lowercase": True}, "word_splitter": "whitespace"}))
    told = [message for message in caplog.messages if "learned from" in message]
    assert len(told) == 2
    assert "another `cleaning` (none) than this recipe's ({'lowercase': True})" in told[0]
    assert "`word_splitter: unicode`, and this recipe says whitespace" in told[1]


def test_a_recipe_moves_with_its_encoder_named_by_its_last_part(first: Path, tmp_path: Path) -> None:
    recipe = moved(Recipe.from_dict(after(first, tmp_path)), tmp_path / "other")
    train(recipe)
    assert str(first) in (tmp_path / "other" / "recipe.yaml").read_text()
    assert str(first.parent) not in (tmp_path / "other" / "model" / "README.md").read_text()

"""A head that starts from a stock checkpoint gives the stock model's logits, label by label."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_runs import values
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from nlp_mtl import ModelError, Recipe, RecipeError
from nlp_mtl.build import new_model
from nlp_mtl.build_data import prepare
from nlp_mtl.models.encoder import load_encoder
from nlp_mtl.models.multitask import from_encoder
from nlp_mtl.models.taken_heads import take_head
from nlp_mtl.tasks import Task

GIVEN = ("I-PER", "O", "B-PER", "B-LOC")


def checkpoint(
    folder: Path,
    family: str = "bert",
    kind: Any = AutoModelForTokenClassification,
    labels: Sequence[str] = GIVEN,
) -> Any:
    """A stock checkpoint with weights of its own, labels in an order of its own."""
    config = tiny.encoder_config(family)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: place for place, label in enumerate(labels)}
    torch.manual_seed(7)
    model = kind.from_config(config).eval()
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(
    ("kind", "type"),
    [
        (AutoModelForTokenClassification, "token-classification"),
        (AutoModelForSequenceClassification, "text-classification"),
    ],
    ids=["token", "text"],
)
def test_encoder_and_head_of_one_checkpoint_give_its_logits(tmp_path: Path, family: str, kind: Any, type: Any) -> None:
    given = checkpoint(tmp_path, family, kind)
    task = Task("t", type, ("O", "B-PER", "I-PER"), "accuracy")  # one of its labels is not wanted
    model = from_encoder(load_encoder(str(tmp_path)), [task], max_length=32).eval()
    take_head(model, task, str(tmp_path))
    ids = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = given(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        found = model(ids)["t"]
    torch.testing.assert_close(found, expected[..., [GIVEN.index(label) for label in task.labels]])


def test_a_recipe_starts_a_task_from_a_checkpoint_and_the_others_anew(tmp_path: Path) -> None:
    given = values(tmp_path)
    plain = Recipe.from_dict(given)
    prepared = prepare(plain)
    labels = next(task.labels for task in prepared.tasks if task.name == "ner")
    stock = checkpoint(tmp_path / "ner", labels=labels[::-1])
    given["encoder"] = str(tmp_path / "ner")
    given["tasks"]["ner"]["init_from"] = str(tmp_path / "ner")
    torch.manual_seed(0)
    model = new_model(Recipe.from_dict(given), prepared)
    assert torch.equal(model.head("ner").state_dict()["classifier.weight"], stock.classifier.weight.flip(0))
    torch.manual_seed(0)
    anew = new_model(plain, prepared)
    assert torch.equal(
        model.head("pos").state_dict()["classifier.bias"], anew.head("pos").state_dict()["classifier.bias"]
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"labels": ("O", "B-ORG")}, "it lacks the labels `B-ORG`; it has `I-PER`, `O`, `B-PER`, `B-LOC`"),
        ({"type": "text-classification"}, "it is a `BertForTokenClassification`, and a text-classification head is a"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    checkpoint(tmp_path)
    task = Task(
        **{"name": "t", "type": "token-classification", "labels": ("O", "B-PER"), "metric": "accuracy", **change}
    )
    model = from_encoder(tiny.encoder(), [task], max_length=32)
    with pytest.raises(ModelError, match=f"task `t`: init_from: .* does not fit: {told}"):
        take_head(model, task, str(tmp_path))


def test_a_checkpoint_without_a_head_is_refused(tmp_path: Path) -> None:
    tiny.encoder().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": None}
    names = dict(enumerate(GIVEN))
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": names}))
    task = Task("t", "token-classification", ("O", "B-PER"), "accuracy")
    model = from_encoder(tiny.encoder(), [task], max_length=32)
    with pytest.raises(ModelError, match=r"it has no token-classification head \(no `classifier"):
        take_head(model, task, str(tmp_path))


def test_a_checkpoint_of_another_family_or_nowhere_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, "roberta")
    task = Task("t", "token-classification", ("O", "B-PER"), "accuracy")
    model = from_encoder(tiny.encoder(), [task], max_length=32)
    with pytest.raises(ModelError, match="its model_type is roberta, the encoder's bert"):
        take_head(model, task, str(tmp_path))
    with pytest.raises(ModelError, match="there is no such folder"):
        take_head(model, task, str(tmp_path / "nowhere"))


def test_label_map_renames_the_labels_of_the_checkpoint(tmp_path: Path) -> None:
    given = checkpoint(tmp_path)
    task = Task("t", "token-classification", ("O", "person"), "accuracy")
    model = from_encoder(load_encoder(str(tmp_path)), [task], max_length=32).eval()
    take_head(model, task, str(tmp_path), label_map={"B-PER": "person"})
    weight = model.head("t").state_dict()["classifier.weight"]
    assert torch.equal(weight, given.classifier.weight[[1, 2]])


def test_a_revision_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    given = values(tmp_path)
    given["tasks"]["ner"]["init_from_revision"] = "v1"
    with pytest.raises(RecipeError, match=r"tasks\.ner\.init_from_revision: there is no `init_from`"):
        Recipe.from_dict(given)

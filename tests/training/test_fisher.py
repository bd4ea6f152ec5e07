"""The diagonal Fisher information, against closed forms of heads whose gradients are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from extensions import base_run
from tiny import write_jsonl
from tiny_runs import values
from typed_runs import values as typed_values

from nlp_mtl import Recipe
from nlp_mtl.build import new_model
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.items import read_items
from nlp_mtl.models.loading import load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.run_evaluation import run_recipe
from nlp_mtl.tasks import Task
from nlp_mtl.training.fisher import diagonal_fisher, labelled_rows


def made(recipe: Recipe) -> tuple[Prepared, MultiTaskModel]:
    prepared = prepare(recipe)
    torch.manual_seed(1)
    return prepared, new_model(recipe, prepared).eval()


def of_tasks(prepared: Prepared, *names: str) -> list[Task]:
    return [task for task in prepared.tasks if task.name in names]


def train_splits(prepared: Prepared) -> list[EncodedSplit]:
    return [*prepared.split("train").values()]


def pooled_states(model: MultiTaskModel, split: EncodedSplit, prepared: Prepared) -> torch.Tensor:
    """[rows, hidden] What a text head's last layer reads of each row."""
    found = []
    framing = prepared.framing
    for row in range(len(split)):
        ids = torch.tensor([[*framing.prefix, *split.batch([row])["pieces"][0], *framing.suffix]])
        with torch.no_grad():
            found.append(model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output[0])
    return torch.stack(found)


def of_bias(model: MultiTaskModel, prepared: Prepared, task: str) -> np.ndarray:
    """That of a head's bias: labels are drawn, so its mean over four times as many draws as there are rows."""
    given = (model, train_splits(prepared), of_tasks(prepared, task), prepared.framing)
    found = [diagonal_fisher(*given, num_rows=48, seed=seed) for seed in range(4)]
    return np.mean([one[f"heads.{task}_head.classifier.bias"].numpy() for one in found], axis=0)


def test_of_a_head_that_finds_two_labels_alike_it_is_a_quarter_of_the_squared_features(tmp_path: Path) -> None:
    """Of softmax regression it is p (1 - p) times the squared features; at p = 1/2 whatever label is drawn."""
    prepared, model = made(Recipe.from_dict(values(tmp_path)))
    classifier = model.head("sentiment").classifier
    torch.nn.init.zeros_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    tasks, splits = of_tasks(prepared, "sentiment"), train_splits(prepared)
    found = diagonal_fisher(model, splits, tasks, prepared.framing, num_rows=10_000, seed=3)
    squares = pooled_states(model, splits[1], prepared).square()
    wanted = squares.mean(0)[None] / 4
    torch.testing.assert_close(found["heads.sentiment_head.classifier.weight"], wanted.expand(2, -1))
    torch.testing.assert_close(found["heads.sentiment_head.classifier.bias"], torch.full((2,), 0.25))
    assert not found["encoder.encoder.layer.0.attention.self.query.weight"].any()  # a head of zeros hands nothing on


def test_labels_are_drawn_as_likely_as_the_model_finds_them(tmp_path: Path) -> None:
    """With a bias alone, the Fisher information is p (1 - p), and that of the labels that are there is another."""
    prepared, model = made(Recipe.from_dict(values(tmp_path)))
    classifier = model.head("sentiment").classifier
    torch.nn.init.zeros_(classifier.weight)
    classifier.bias.data = torch.tensor([2.0, 0.0])
    found = of_bias(model, prepared, "sentiment")
    share = torch.tensor([2.0, 0.0]).softmax(0)[0].item()
    assert found == pytest.approx([share * (1 - share)] * 2, abs=0.05)


def test_of_a_squared_error_it_is_twice_the_squared_features(tmp_path: Path) -> None:
    """The density of a normal distribution with variance 1/2; drawn, so its mean over many draws."""
    prepared, model = made(Recipe.from_dict(typed_values(tmp_path)))
    torch.nn.init.zeros_(model.head("rating").classifier.weight)
    assert of_bias(model, prepared, "rating") == pytest.approx([2.0], abs=0.5)


def test_a_text_in_several_windows_has_one_answer(tmp_path: Path) -> None:
    """That of the mean of their logits: at p = 1/2 the information on a bias is a quarter, however long texts are."""
    given = values(tmp_path) | {"max_length": 16, "window_overlap": 4}
    file = Path(given["data_dir"]) / "texts" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    write_jsonl(file, [row | {"text": row["text"] + " film" * (place % 4 * 15)} for place, row in enumerate(rows)])
    prepared, model = made(Recipe.from_dict(given))
    split, tasks = train_splits(prepared)[1], of_tasks(prepared, "sentiment")
    assert max(np.bincount([item.place for item in read_items(split, range(48), tasks, prepared.framing)])) > 3
    torch.nn.init.zeros_(model.head("sentiment").classifier.weight)
    torch.nn.init.zeros_(model.head("sentiment").classifier.bias)
    assert of_bias(model, prepared, "sentiment") == pytest.approx([0.25, 0.25])


def test_gradients_are_those_of_single_rows_whatever_tasks_they_have(tmp_path: Path) -> None:
    """The mean over rows of squares, not the square of the mean; and rows of a dataset count for all its tasks."""
    prepared, model = made(Recipe.from_dict(values(tmp_path)))
    splits = train_splits(prepared)
    whole = diagonal_fisher(model, splits, prepared.tasks, prepared.framing, num_rows=96, seed=0)
    chosen = labelled_rows(splits, prepared.tasks)
    assert chosen.tolist() == [[place, row] for place in range(2) for row in range(48)]
    for name in (
        *(f"heads.{task}_head.classifier.bias" for task in ("ner", "pos", "sentiment")),
        "encoder.embeddings.word_embeddings.weight",
        "encoder.encoder.layer.1.output.dense.weight",
    ):
        assert (whole[name] >= 0).all()
        assert whole[name].any()
    unseen = {*range(42)} - {token for split in splits for row in split.rows["pieces"] for token in row}
    assert not whole["encoder.embeddings.word_embeddings.weight"][sorted(unseen - {1, 2})].any()


def test_it_is_the_same_for_the_same_seed_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    run = base_run(tmp_path, max_steps=2, num_epochs=1, eval_every=2)
    model, _ = load_model(run)
    prepared = prepare(run_recipe(run))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = (model, train_splits(prepared), prepared.tasks, prepared.framing)
    torch.manual_seed(1)
    one = diagonal_fisher(*arguments, num_rows=9, seed=0)
    torch.manual_seed(2)
    two = diagonal_fisher(*arguments, num_rows=9, seed=0, accelerator=Accelerator())
    other = diagonal_fisher(*arguments, num_rows=9, seed=1)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_a_labelled_row_there_is_nothing(tmp_path: Path) -> None:
    prepared, model = made(Recipe.from_dict(values(tmp_path)))
    stranger = Task("stranger", "text-classification", ("a", "b"), "accuracy")
    assert diagonal_fisher(model, train_splits(prepared), [stranger], prepared.framing, num_rows=9, seed=0) == {}

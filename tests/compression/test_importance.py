"""What heads and units matter: the gradient of a switch in front of each, text by text."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from mixed_steps import NER, POS, SENTIMENT, TASKS, splits, steps
from stock_models import tiny_model

from nlp_mtl.compression.heads import find_heads
from nlp_mtl.compression.importance import best_units, importances, least_heads
from nlp_mtl.compression.units import find_units
from nlp_mtl.data.batches import collate
from nlp_mtl.data.items import read_items
from nlp_mtl.data.steps import StepDataset
from nlp_mtl.errors import DataError
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.tasks import Task
from nlp_mtl.training.balancing import summed_loss


def outputs_of(model: MultiTaskModel) -> dict[str, int]:
    """``{linear map: numbers that belong together}``"""
    heads = {f"encoder.{one.output_name}": one.head_size for one in find_heads(model)}
    return heads | dict.fromkeys(find_units(model).outputs.values(), 1)


def data(**options: Any) -> StepDataset:
    """Each row once, in steps whose micro-batches hold labels of the same tasks."""
    made = steps(splits(), one_set_every=1, **options)
    made.sampler.num_rows = 15
    return made


def by_switches(model: MultiTaskModel, task: Task, outputs: dict[str, int]) -> dict[str, torch.Tensor]:
    """For each window of the corpus with labels of the task, read alone: the gradients of its loss by switches that are
    on, absolute, summed over windows."""
    scores = {name: torch.zeros(model.get_submodule(name).in_features // size) for name, size in outputs.items()}
    for split in splits():
        for item in read_items(split, range(len(split)), TASKS, data().framing):
            batch = collate([item], TASKS, data().framing, packed=False)
            rows = batch.tasks[task.name]
            switches = {name: torch.ones_like(one, requires_grad=True) for name, one in scores.items()}
            handles = [
                model.get_submodule(name).register_forward_pre_hook(
                    lambda _, given, on=on, size=outputs[name]: (given[0] * on.repeat_interleave(size),)
                )
                for name, on in switches.items()
            ]
            logits = model(**batch.inputs, rows={task.name: rows.rows})[task.name]
            gradients = torch.autograd.grad(summed_loss(logits, rows), [*switches.values()], allow_unused=True)
            for handle in handles:
                handle.remove()
            for name, gradient in zip(switches, gradients, strict=True):
                if gradient is not None:
                    scores[name] += gradient.abs()
    return scores


@pytest.mark.parametrize("family", ["bert", "modernbert", "albert", "deberta-v2"])
def test_scores_are_the_gradients_of_switches_text_by_text_each_task_alike(family: str) -> None:
    model = tiny_model(family)
    outputs = outputs_of(model)
    found = importances(model, data(), TASKS, outputs, accelerator=Accelerator())
    expected: dict[str, Any] = dict.fromkeys(outputs, 0)
    for task in TASKS:
        for name, scores in by_switches(model, task, outputs).items():
            expected[name] = expected[name] + scores / scores.norm()
    for name in outputs:
        torch.testing.assert_close(found[name].float(), expected[name], rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scores_do_not_depend_on_how_steps_are_cut_nor_on_dropout() -> None:
    model = tiny_model()
    outputs = outputs_of(model)
    one = importances(model, data(), TASKS, outputs, accelerator=Accelerator())
    other = importances(model.train(), data(max_tokens=24, batch_size=4), TASKS, outputs, accelerator=Accelerator())
    assert model.training
    for name in outputs:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_what_says_nothing_and_what_nobody_hears_matters_nothing() -> None:
    model = tiny_model()
    outputs = outputs_of(model)
    first, *_ = outputs
    with torch.no_grad():
        model.get_submodule(first).weight[:, :8] = 0  # the first of two heads
    scores = importances(model, data(), TASKS, outputs, accelerator=Accelerator())[first]
    assert scores[0] == 0 < scores[1]
    assert least_heads([scores, torch.ones(2)], 0.25) == [[1], [0, 1]]


def test_a_task_that_is_not_learned_has_no_say() -> None:
    model = tiny_model()
    outputs = outputs_of(model)
    silent = Task(**{**SENTIMENT.to_dict(), "loss_weight": 0.0})
    with_it = importances(model, data(), (NER, POS, silent), outputs, accelerator=Accelerator())
    without = importances(model, data(), (NER, POS), outputs, accelerator=Accelerator())
    assert all(torch.equal(one, without[name]) for name, one in with_it.items())


def test_a_task_without_a_labelled_row_is_told() -> None:
    alone = data()
    alone.sampler.num_rows = 0
    with pytest.raises(DataError, match=r"has labels of `ner`, `pos`, `sentiment`.*raise compression\.importance_rows"):
        importances(tiny_model(), alone, TASKS, outputs_of(tiny_model()), accelerator=Accelerator())


@pytest.mark.parametrize(
    ("share", "left"),
    [
        (0.0, [[0, 1, 2], [0, 1, 2]]),
        (0.2, [[0, 1, 2], [0, 2]]),  # 1.2 heads
        (0.5, [[1, 2], [2]]),
        (0.99, [[2], [2]]),  # one stays in each layer
    ],
)
def test_the_heads_that_matter_least_go_wherever_they_are(share: float, left: list[list[int]]) -> None:
    assert least_heads([torch.tensor([0.5, 0.6, 0.9]), torch.tensor([0.3, 0.1, 0.4])], share) == left


def test_of_equal_heads_and_units_the_result_is_one() -> None:
    assert least_heads([torch.ones(2), torch.ones(2)], 0.5) == [[1], [1]]
    assert best_units(torch.tensor([1.0, 3.0, 1.0, 2.0, 1.0]), 3).tolist() == [0, 1, 3]

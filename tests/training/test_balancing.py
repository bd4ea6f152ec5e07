import math
from collections.abc import Mapping

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixed_steps import COLUMNS, MAX_LENGTH, TASKS, framing, splits, steps, text_rows, word_rows
from tiny import CLS, FAMILIES, SEP, UNK, encoder, tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel

from nlp_mtl.data.batches import TaskRows
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.sampling import StepPlan
from nlp_mtl.data.steps import StepBatches, StepDataset
from nlp_mtl.models.heads import head_config
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.tasks import MISSING, Task
from nlp_mtl.training.balancing import summed_loss, weighted_sum

LOSS_WEIGHTS = torch.tensor([task.loss_weight for task in TASKS])
Gradients = dict[str, Tensor]
MEAN_POOLING = ", mean pooling"


@pytest.fixture(scope="module")
def data() -> list[EncodedSplit]:
    return splits()


def tiny_model(family: str = "bert") -> MultiTaskModel:
    """With heads that are far from zero, so that no gradient is."""
    base = encoder(family.removesuffix(MEAN_POOLING))
    if family.endswith(MEAN_POOLING):
        base.config.classifier_pooling = "mean"  # its text head reads the attention mask
    model = from_encoder(base, TASKS, max_length=MAX_LENGTH, window_overlap=4)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


def gradients_of(model: MultiTaskModel) -> Gradients:
    """Takes them off the model."""
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        found[name] = parameter.grad
        parameter.grad = None
    return found


def backward(model: MultiTaskModel, batches: StepBatches) -> tuple[Gradients, Tensor]:
    """Gradients and the tasks' losses of what one process computes."""
    losses = torch.zeros(len(TASKS))
    for batch in batches.micro_batches:
        logits = model(**batch.inputs, rows={task: rows.rows for task, rows in batch.tasks.items()})
        sums = {task: summed_loss(logits[task], rows) for task, rows in batch.tasks.items()}
        loss, shares = weighted_sum(sums, batches.counts, LOSS_WEIGHTS)
        loss.backward()
        losses += shares
    return gradients_of(model), losses


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """To 1e-5 of the gradient's norm, and 1e-6 everywhere."""
    assert found.keys() == expected.keys()
    flat, wanted = (torch.cat([gradients[name].flatten() for name in expected]) for gradients in (found, expected))
    assert float(wanted.norm()) > 0.1
    assert float((flat - wanted).norm()) <= 1e-5 * float(wanted.norm())
    assert float((flat - wanted).abs().max()) <= 1e-6


# ---- the plain reference: stock models, one row at a time, tensors made by hand


def stock_model(model: MultiTaskModel, task: Task) -> PreTrainedModel:
    """The stock model of a task on the very same parameters."""
    stock_class = {
        "token-classification": AutoModelForTokenClassification,
        "text-classification": AutoModelForSequenceClassification,
    }[task.type]
    stock = stock_class.from_config(head_config(model.encoder.config, task.labels))
    head = model.head(task.name)
    for name, child in head.named_children():
        setattr(stock, name, model.encoder if name == head.base_model_prefix else child)
    return stock.train()


def by_hand(model: MultiTaskModel, plan: StepPlan) -> tuple[Gradients, Tensor]:
    """Gradients and losses of a plan's rows, from the raw data."""
    data = (word_rows(), text_rows())
    rows = [data[dataset][row] for dataset, row in zip(plan.datasets, plan.rows, strict=True)]
    losses = torch.zeros(len(TASKS))
    total = torch.zeros(())
    for place, task in enumerate(TASKS):
        stock, column = stock_model(model, task), COLUMNS[task.name]
        terms, count = [], 0
        for row in rows:
            if row.get(column) is None:
                continue
            words = row["tokens"] if "tokens" in row else row["text"].split()
            pieces, starts = [], []
            for word in words:
                starts.append(len(pieces))
                pieces += tokenizer()(word, add_special_tokens=False)["input_ids"] or [UNK]
            windows = framing().windows(starts, len(pieces))
            count += len(row[column]) if task.type == "token-classification" else 1
            for window in windows:
                ids = torch.tensor([[CLS, *pieces[window.start : window.stop], SEP]])
                logits = stock(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
                if task.type == "text-classification":
                    label = torch.tensor(task.labels.index(row[column]))
                    terms.append(functional.cross_entropy(logits, label) / len(windows))
                    continue
                for word in range(window.first_word, window.last_word):
                    label = torch.tensor(task.labels.index(row[column][word]))
                    terms.append(functional.cross_entropy(logits[starts[word] - window.start + 1], label))
        loss = torch.stack(terms).sum() / count
        losses[place] = loss.detach()
        total = total + task.loss_weight * loss
    total.backward()
    return gradients_of(model), losses


@pytest.mark.parametrize("family", [*FAMILIES, "modernbert" + MEAN_POOLING])
def test_the_gradient_of_a_mixed_step_is_that_of_its_rows_one_by_one_for_any_max_tokens(
    family: str, data: list[EncodedSplit]
) -> None:
    model = tiny_model(family)
    plan = steps(data).sampler[0]
    assert len(plan.rows) == 15  # all rows: texts and word lists in several windows, empty ones, some without labels
    expected, expected_losses = by_hand(model, plan)
    numbers = set()
    for max_tokens, micro_batch_cost in [(MAX_LENGTH, 8), (40, 8), (150, 0), (10_000, 10_000)]:
        batches = steps(data, max_tokens=max_tokens, micro_batch_cost=micro_batch_cost)[0]
        numbers.add(len(batches.micro_batches))
        found, losses = backward(model, batches)
        assert_same(found, expected)
        torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert len(numbers) == 4
    assert min(numbers) == 1


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    max_tokens=st.integers(MAX_LENGTH, 400),
    micro_batch_cost=st.integers(0, 300),
    batch_size=st.integers(1, 15),
    step=st.integers(0, 1),
    num_processes=st.integers(1, 4),
)
def test_the_gradient_of_any_step_is_that_of_one_micro_batch(
    data: list[EncodedSplit], max_tokens: int, micro_batch_cost: int, batch_size: int, step: int, num_processes: int
) -> None:
    model = tiny_model()
    whole = steps(data, batch_size=batch_size, max_tokens=10**6, micro_batch_cost=10**6)[step]
    assert len(whole.micro_batches) == 1
    expected, expected_losses = backward(model, whole)
    found: Gradients = {name: torch.zeros_like(gradient) for name, gradient in expected.items()}
    losses = torch.zeros_like(expected_losses)
    for process in range(num_processes):
        options = {"process": process, "num_processes": num_processes, "micro_batch_cost": micro_batch_cost}
        part = steps(data, batch_size=batch_size, max_tokens=max_tokens, **options)[step]
        gradients, part_losses = backward(model, part)
        found = {name: found[name] + gradient for name, gradient in gradients.items()}
        losses += part_losses
    assert_same(found, expected)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "modernbert", "roberta"])
@pytest.mark.parametrize("num_processes", [2, 3, 40])
def test_the_gradient_of_a_step_does_not_depend_on_the_number_of_processes(
    family: str, num_processes: int, data: list[EncodedSplit]
) -> None:
    model = tiny_model(family)
    expected, expected_losses = backward(model, steps(data)[0])
    parts = [
        backward(model, steps(data, process=process, num_processes=num_processes)[0])
        for process in range(num_processes)
    ]
    assert_same({name: sum(gradients[name] for gradients, _ in parts) for name in expected}, expected)
    torch.testing.assert_close(sum(losses for _, losses in parts), expected_losses)


def test_every_micro_batch_gives_every_parameter_a_gradient(data: list[EncodedSplit]) -> None:
    model = tiny_model()
    batches = steps(data, max_tokens=MAX_LENGTH)[0]
    for batch in batches.micro_batches:
        backward(model, batches._replace(micro_batches=[batch]))  # gradients_of asks for each


def one_dataset(data: list[EncodedSplit], dataset: int) -> StepDataset:
    """Steps that draw from one of the two datasets only."""
    return steps(data, rates=[1.0 - dataset, float(dataset)], batch_size=6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dataset", "idle"), [(0, {"sentiment"}), (1, {"ner", "pos"})])
def test_a_head_without_rows_in_a_step_gets_zero_gradients_and_is_told_as_unused(
    family: str, dataset: int, idle: set[str], data: list[EncodedSplit]
) -> None:
    model = tiny_model(family)
    batches = one_dataset(data, dataset)[0]
    assert {task for task, count in batches.counts.items() if not count} == idle
    gradients, losses = backward(model, batches)
    without = {name for name, gradient in gradients.items() if not gradient.any()}
    heads = {f"heads.{task}_head." for task in idle}
    assert {name for name in gradients if name.startswith(tuple(heads))} <= without
    names = {parameter: name for name, parameter in model.named_parameters()}
    unused = {names[parameter] for parameter in model.unused_parameters({"ner", "pos", "sentiment"} - idle)}
    assert {name for name in unused if name.startswith("heads.")} == {
        name for name in gradients if name.startswith(tuple(heads))
    }
    assert unused <= without
    used_heads = {name for name in gradients if name.startswith("heads.")} - unused
    assert not used_heads & without
    assert [bool(loss) for loss in losses] == [task.name not in idle for task in TASKS]


def test_a_process_without_rows_adds_nothing(data: list[EncodedSplit]) -> None:
    model = tiny_model()
    dealt = [steps(data, batch_size=2, process=process, num_processes=20)[0] for process in range(20)]
    empty = [
        part for part in dealt
        if not any(len(rows.rows) for batch in part.micro_batches for rows in batch.tasks.values())
    ]  # fmt: skip
    assert empty
    assert any(empty[0].counts.values())
    gradients, losses = backward(model, empty[0])
    assert not any(gradient.any() for gradient in gradients.values())
    assert not losses.any()


# ---- the functions themselves


def task_rows(labels: Tensor, weights: list[float] | None = None) -> TaskRows:
    count = len(labels)
    kind = "token-classification" if labels.ndim == 2 else "text-classification"
    return TaskRows(torch.arange(count), labels, torch.tensor(weights or [1.0] * count), kind)


def test_a_token_tasks_loss_is_the_sum_over_its_labelled_words() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4)
    labels = torch.tensor([[MISSING, 1, 3], [0, MISSING, MISSING]])
    expected = sum(-torch.log_softmax(logits[place], -1)[labels[place]] for place in [(0, 1), (0, 2), (1, 0)])
    torch.testing.assert_close(summed_loss(logits, task_rows(labels)), expected)


def test_a_text_tasks_loss_is_weighted_by_the_windows_shares() -> None:
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    found = summed_loss(logits, task_rows(torch.tensor([0, 1, 1]), [1.0, 0.5, 0.5]))
    assert float(found) == pytest.approx(1.5 * math.log(2) + 0.5 * math.log(1 + math.exp(2)))


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.zeros(0, 5, 3), torch.zeros(0, 5, dtype=torch.long)),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)),
        (torch.randn(2, 4, 3), torch.full((2, 4), MISSING)),
    ],
)
def test_the_sum_of_nothing_is_zero_and_has_a_gradient(logits: Tensor, labels: Tensor) -> None:
    logits = logits.clone().requires_grad_()
    loss = summed_loss(logits, task_rows(labels))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_losses_are_summed_in_float32_whatever_the_logits_are_in() -> None:
    logits = torch.randn(1, 4000, 3)
    labels = torch.ones(1, 4000, dtype=torch.long)
    half = summed_loss(logits.bfloat16(), task_rows(labels))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, summed_loss(logits.bfloat16().float(), task_rows(labels)))
    assert summed_loss(logits[0].bfloat16(), task_rows(labels[0])).dtype == torch.float32


def test_each_task_is_divided_by_its_own_count_and_weighted() -> None:
    sums = {"a": torch.tensor(6.0, requires_grad=True), "b": torch.tensor(8.0, requires_grad=True)}
    loss, shares = weighted_sum(sums, {"b": 4, "a": 3}, torch.tensor([1.0, 0.25]))
    assert float(loss.detach()) == pytest.approx(6 / 3 + 0.25 * 8 / 4)
    assert shares.tolist() == [2.0, 2.0]
    assert not shares.requires_grad
    loss.backward()
    assert float(sums["a"].grad) == pytest.approx(1 / 3)
    assert float(sums["b"].grad) == pytest.approx(0.25 / 4)


def test_a_task_that_no_row_of_the_step_carries_adds_zero() -> None:
    loss, shares = weighted_sum({"a": torch.tensor(6.0), "b": torch.tensor(0.0)}, {"a": 3, "b": 0}, torch.ones(2))
    assert float(loss) == 2.0
    assert shares.tolist() == [2.0, 0.0]

"""Each task type against scikit-learn, scipy, torch and the stock classes of transformers."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error
from sklearn.preprocessing import MultiLabelBinarizer
from transformers import AutoModelForSequenceClassification

from nlp_mtl.errors import DataError
from nlp_mtl.hub.card_header import METRICS, TITLES
from nlp_mtl.metrics import number_scores, set_scores
from nlp_mtl.models.heads import head_config
from nlp_mtl.reports import TABLES
from nlp_mtl.task_types import KINDS, TaskKind, score_task
from nlp_mtl.tasks import MISSING, PLAIN_LOSS, Metric, Task, TaskType
from nlp_mtl.training.balancing import guess_loss

TAGS = Task("tags", "multi-label-classification", ("a", "b", "c"), "micro_f1")
RATING = Task("rating", "regression", ("value",), "pearson")
SETS = st.lists(st.tuples(*[st.sets(st.sampled_from(TAGS.labels))] * 2), min_size=1, max_size=12)
NUMBERS = st.lists(st.tuples(*[st.integers(-50, 50)] * 2), min_size=3, max_size=20)


def test_every_name_of_a_type_is_a_kind_and_every_metric_is_told_by_reports_and_cards() -> None:
    assert [*KINDS] == [*get_args(TaskType)]
    named = {metric for kind in KINDS.values() for metric in kind.metrics}
    assert named == {*get_args(Metric)}
    assert named <= {metric for table in TABLES for metric in table} == {*TITLES} == {*METRICS}


@settings(deadline=None)
@given(SETS)
def test_scores_of_sets_are_scikit_learns(pairs: list[tuple[set[str], set[str]]]) -> None:
    gold, predicted = zip(*pairs, strict=True)
    binary = MultiLabelBinarizer(classes=TAGS.labels)
    one, other = binary.fit_transform(gold), binary.transform(predicted)
    found = set_scores(gold, predicted)
    assert found["micro_f1"] == pytest.approx(f1_score(one, other, average="micro", zero_division=0))
    assert found["exact_match"] == pytest.approx(accuracy_score(one, other))
    occurring = np.flatnonzero(one.any(0) | other.any(0))
    if len(occurring):
        macro = f1_score(one, other, labels=occurring, average="macro", zero_division=0)
        assert found["macro_f1"] == pytest.approx(macro)
    assert {*found["per_label"]} == {TAGS.labels[place] for place in occurring}


@settings(deadline=None)
@given(NUMBERS)
def test_scores_of_numbers_are_scipys_and_those_of_what_does_not_vary_0(pairs: list[tuple[int, int]]) -> None:
    gold, predicted = (np.array(values) / 4 for values in zip(*pairs, strict=True))
    found = number_scores(gold, predicted)
    assert found["mse"] == pytest.approx(mean_squared_error(gold, predicted))
    assert found["mae"] == pytest.approx(mean_absolute_error(gold, predicted))
    if len({*gold}) > 1 < len({*predicted}):
        assert found["pearson"] == pytest.approx(pearsonr(gold, predicted).statistic)
        assert found["spearman"] == pytest.approx(spearmanr(gold, predicted).statistic)
    else:
        assert (found["pearson"], found["spearman"]) == (0, 0)


@pytest.mark.parametrize("gold", [[1.5], [2.0, 2.0]])
def test_one_number_and_equal_numbers_have_no_correlation_and_no_warning(gold: list[float]) -> None:
    assert number_scores(gold, gold) == {"pearson": 0, "spearman": 0, "mse": 0, "mae": 0, "items": len(gold)}


def test_the_main_metric_stands_first() -> None:
    assert [*score_task(TAGS, [{"a"}], [{"a"}])] == ["micro_f1", "macro_f1", "exact_match", "items", "per_label"]
    assert [*score_task(RATING, [1.0, 2.0], [1.0, 2.0])] == ["pearson", "spearman", "mse", "mae", "items"]
    for task in (TAGS, RATING):
        assert score_task(task, [], []) == {}


@pytest.mark.parametrize("task", [TAGS, RATING], ids=lambda task: task.name)
def test_a_loss_is_that_of_the_stock_class(task: Task) -> None:
    kind = KINDS[task.type]
    config = head_config(tiny.encoder_config("bert"), task.labels, kind.problem_type)
    torch.manual_seed(0)
    stock = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.randint(5, 30, (4, 7))
    targets = kind.tensor(
        [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]] if task is TAGS else [[0.5], [-3.0], [2.0], [9.0]]
    )
    with torch.no_grad():
        output = stock(input_ids=ids, labels=targets)
        found = kind.summed_loss(output.logits, targets, torch.ones(4))
        # Theirs is the mean over texts and labels, ours the sum.
        torch.testing.assert_close(found, output.loss * 4 * len(task.labels))
        half = kind.summed_loss(output.logits, targets, torch.full((4,), 0.5))
        torch.testing.assert_close(half, found / 2)
        assert kind.summed_loss(output.logits.bfloat16(), targets, torch.ones(4)).dtype == torch.float32


@pytest.mark.parametrize("task", [TAGS, RATING], ids=lambda task: task.name)
def test_the_loss_of_no_text_is_0_and_has_a_gradient(task: Task) -> None:
    kind = KINDS[task.type]
    logits = torch.zeros(0, len(task.labels), requires_grad=True)
    loss = kind.summed_loss(logits, kind.tensor([]), torch.ones(0))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None


def test_guessing_loses_a_coin_for_each_label_and_is_not_known_of_numbers() -> None:
    kind = KINDS[TAGS.type]
    guessed = kind.summed_loss(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(1))
    assert guess_loss(TAGS) == pytest.approx(float(guessed)) == pytest.approx(3 * math.log(2))
    with pytest.raises(ValueError, match="regression task `rating`: it has no labels"):
        guess_loss(RATING)


def test_labels_of_more_than_half_a_probability_are_answered_the_surest_first() -> None:
    kind = KINDS[TAGS.type]
    (decided,) = kind.decide(TAGS, [np.array([0.1, -900.0, 2.0])], None)
    assert decided.chosen.tolist() == [1, 0, 1]
    assert [one["label"] for one in kind.answer(TAGS, decided, "good film", [(0, 4)], False)] == ["c", "a"]
    assert kind.answer(TAGS, decided, "good film", [(0, 4)], False)[1]["score"] == pytest.approx(
        1 / (1 + math.exp(-0.1))
    )
    assert kind.answer(TAGS, decided, " ", [], False) == []
    (number,) = KINDS[RATING.type].decide(RATING, [np.array([2.5])], None)
    assert KINDS[RATING.type].answer(RATING, number, "good", [(0, 4)], False) == {"value": 2.5}
    assert KINDS[RATING.type].answer(RATING, number, "", [], False) == {"value": None}


class Reader:
    """Letters to places; -1: none."""

    task, labels = "tags", TAGS.labels

    def __init__(self, indicators: bool = False) -> None:
        self.indicators = 3 if indicators else 0

    def __call__(self, value: Any, /) -> int:
        return {
            **{label: place for place, label in enumerate(TAGS.labels)},
            0: 0,
            1: 1,
            2: 2,
            -1: MISSING,
            MISSING: MISSING,
        }[value]

    def unknown(self, value: Any, where: str) -> Exception:
        return DataError(f"unknown {value} in {where}")


def test_the_example_of_the_docs_is_a_kind_of_its_own() -> None:
    page = Path(__file__).parents[2] / "docs" / "task_types.md"
    (program,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(program, "task_types.md", "exec"), names)
    kind: TaskKind = names["COUNT_REGRESSION"]
    logits, targets = torch.tensor([[0.0], [1.0]]), kind.tensor([[2.0], [3.0]])
    expected = torch.nn.PoissonNLLLoss(reduction="sum")(logits[:, 0], targets)
    torch.testing.assert_close(kind.summed_loss(logits, targets, torch.ones(2), PLAIN_LOSS), expected)
    assert kind.decide(RATING, [np.array([math.log(3)])], None)[0].chosen == pytest.approx(3)
    assert read(kind, 4) == [4.0]
    with pytest.raises(DataError, match="row 7 has -1; expected a count"):
        read(kind, -1)


def read(kind: TaskKind, cell: Any, *, indicators: bool = False) -> Sequence[float]:
    return kind.target(Reader(indicators), cell, 3, lambda: "row 7")


@pytest.mark.parametrize(
    ("cell", "indicators", "target"),
    [
        (["c", "a"], False, [1, 0, 1]),
        (["b", "b"], False, [0, 1, 0]),
        ([2], False, [0, 0, 1]),
        ([], False, [0, 0, 0]),
        (None, False, []),
        ([-1], False, []),
        ([1, 0, 1], True, [1, 0, 1]),
        ([True, False, False], True, [1, 0, 0]),
        ([0.0, 1.0, 0.0], True, [0, 1, 0]),
        ([-1, -1, -1], True, []),
    ],
)
def test_a_cell_of_several_labels_says_which_hold_and_null_says_nothing(
    cell: Any, indicators: bool, target: list[int]
) -> None:
    kind = KINDS[TAGS.type]
    assert read(kind, cell, indicators=indicators) == target
    assert kind.num_items(target) == bool(target)
    assert kind.labels_of(target) == [place for place, one in enumerate(target) if one]


def test_cells_that_cannot_be_read_are_refused_with_their_place() -> None:
    for cell, indicators, told in (
        (["a", "z"], False, "unknown z in row 7"),
        ([-1, "a"], False, "row 7 has labels and says that it has none"),
        ([0, 3, 0], True, "row 7 has 3 in a list of 0 and 1"),
    ):
        with pytest.raises(DataError, match=told):
            read(KINDS[TAGS.type], cell, indicators=indicators)
    for cell in (math.nan, -math.inf, 10**400, "good", True, [1.0]):
        with pytest.raises(DataError, match=r"row 7 has .{1,60}; expected a number"):
            read(KINDS[RATING.type], cell)
    for kind in (KINDS[TAGS.type], KINDS["token-classification"]):
        for cell in (3, "a", {"a": 1}):
            with pytest.raises(DataError, match=f"row 7 has {cell!r}; expected a list of labels"):
                read(kind, cell)
    assert read(KINDS[RATING.type], None) == []
    assert read(KINDS[RATING.type], 3) == [3.0]

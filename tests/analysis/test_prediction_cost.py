"""What is answered for when predictions are timed: each task for what it reads."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from stock_models import tiny_model
from tiny import tokenizer

from nlp_mtl.analysis.prediction_cost import REPEATS, prediction_cost
from nlp_mtl.inference.predictor import Predictor
from nlp_mtl.tasks import Task

MOOD = Task("mood", "text-classification", ("bad", "good"), "accuracy")
POS = Task("pos", "token-classification", ("NOUN", "VERB"), "accuracy")
SAME = Task("same", "text-classification", ("no", "yes"), "accuracy", pairs=True)
CLOSE = Task("close", "regression", ("value",), "pearson", pairs=True)
TEXTS = ["anna loves rome", ["the", "film"], ""] * 4
PAIRS = [("anna loves rome", "the film"), ("tea", "")] * 5


def saved(folder: Path, tasks: list[Task]) -> Path:
    tiny_model(tasks=tasks).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "tasks", [[MOOD, SAME], [MOOD, POS], [SAME, CLOSE], [SAME, POS, CLOSE]], ids=lambda tasks: "+".join(
        task.name for task in tasks
    )
)  # fmt: skip
def test_every_task_answers_for_all_that_it_reads_jointly_and_alone(
    tmp_path: Path, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: Counter[tuple[str, int]] = Counter()
    stock: Any = Predictor.__call__

    def counted(self: Predictor, texts: Any, **options: Any) -> Any:
        found = stock(self, texts, **options)
        answered.update((task, len(self.tasks)) for answer in found for task in answer)
        return found

    monkeypatch.setattr(Predictor, "__call__", counted)
    alone = {task.name: saved(tmp_path / task.name, [task]) for task in tasks}
    kinds = {task.pairs for task in tasks}
    texts, pairs = TEXTS if False in kinds else [], PAIRS if True in kinds else []
    found = prediction_cost(saved(tmp_path / "joint", tasks), alone, texts, pairs, device="cpu")
    assert (found["texts"], found["pairs"]) == (len(texts), len(pairs))
    assert found["ratio"] == pytest.approx(found["seconds"]["alone"] / found["seconds"]["joint"])
    wanted = {task.name: 8 + REPEATS * len(PAIRS if task.pairs else TEXTS) for task in tasks}
    assert answered == {(task, size): count for task, count in wanted.items() for size in (1, len(tasks))}

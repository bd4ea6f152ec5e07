"""How well new tasks are learned with few rows: episodes of a split, each learned from a model and tried."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from nlp_mtl.data.episode_steps import EpisodeSteps
from nlp_mtl.data.episodes import relabelled
from nlp_mtl.data.items import read_items
from nlp_mtl.inference.scoring import score_items
from nlp_mtl.metrics import Scores
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.task_types import kind_of, score_task
from nlp_mtl.tasks import Task
from nlp_mtl.training.meta import InnerLoop, learned


def few_shot_scores(
    model: MultiTaskModel, task: Task, data: Sequence[EpisodeSteps], inner: InnerLoop, accelerator: Accelerator
) -> Scores:
    """A task's scores over the rows that episodes were tried on, all together. The model stays what it is.

    Args:
        data: episodes of the task, one in a step, by dataset.
    """
    was_training = model.training
    answers: list[tuple[int, list[Any], list[Any]]] = []
    for place, steps in enumerate(data):
        for number in range(len(steps)):
            if number % accelerator.num_processes == accelerator.process_index:
                answers.append((place * len(steps) + number, *_answers(model, steps, number, inner, accelerator)))
    model.train(was_training)
    if accelerator.num_processes > 1:
        answers = sorted(gather_object(answers), key=lambda one: one[0])
    gold = [one for _, given, _ in answers for one in given]
    return score_task(task, gold, [one for _, _, found in answers for one in found])


def _answers(
    model: MultiTaskModel, steps: EpisodeSteps, number: int, inner: InnerLoop, accelerator: Accelerator
) -> tuple[list[Any], list[Any]]:
    """What is right of the rows that an episode is tried on, and what the model says."""
    ((_, dataset, plan),) = steps.plans(number)
    (episode,) = steps[number].episodes
    items = relabelled(read_items(steps.splits[dataset], plan.query, [plan.task], steps.framing), plan)
    model.train()
    with learned(model, episode, inner, accelerator):
        found = score_items(
            model, items, len(plan.query), [plan.task], steps.framing,
            max_tokens=steps.max_tokens, packed=steps.packed, mixed_precision=inner.mixed_precision,
        )[plan.task.name]  # fmt: skip
    kind, gold, predicted = kind_of(plan.task), [], []
    targets = {item.place: item.labels[plan.task.name] for item in items}
    for row, target in targets.items():
        one, other = kind.compared(plan.task, np.asarray(target), found[row].chosen)
        gold += one
        predicted += other
    return gold, predicted

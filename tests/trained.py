"""A run of the trainer alone, for its tests: evaluation gives the scores that it is told."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tiny_runs import tiny_recipe

from nlp_mtl import Recipe
from nlp_mtl.build import layout, new_model, steps, trainer_arguments
from nlp_mtl.build_data import prepare
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.training.balancing import Balancer
from nlp_mtl.training.checkpoint import TrainingState
from nlp_mtl.training.trainer import train

Weights = dict[str, torch.Tensor]


def copied(model: torch.nn.Module) -> Weights:
    """A model's weights as they are now, on the CPU."""
    return {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}


class Run:
    """A model, its data, and a stand-in for evaluation that gives scores as told and keeps the weights it saw."""

    def __init__(self, recipe: Recipe, scores: Sequence[float | None] = ()) -> None:
        self.recipe = recipe
        prepared = prepare(recipe)
        self.data, self.tasks = steps(recipe, prepared), prepared.tasks
        self.arguments = trainer_arguments(recipe, prepared)
        self.folder = Path(recipe.output_dir)
        self.folder.mkdir(exist_ok=True)
        set_seed(recipe.seed)
        self.model = new_model(recipe, prepared)
        self.data.packed = self.model.packs(layout(recipe))
        self.scores, self.seen = list(scores), []

    def train(self, **changes: Any) -> TrainingState:
        self.seen: list[Weights] = [self.weights()]
        self.evaluated: list[Weights] = []
        accelerator = Accelerator()
        return train(
            self.model, self.data, self.tasks, self._evaluate, Balancer(self.tasks, device=accelerator.device),
            accelerator=accelerator, output_dir=self.folder, **{**self.arguments, **changes},
        )  # fmt: skip

    def weights(self) -> Weights:
        return copied(self.model)

    def checkpoints(self) -> set[int]:
        return {int(path.name.split("-")[1]) for path in (self.folder / "checkpoints").glob("*")}

    def _evaluate(self, model: MultiTaskModel) -> tuple[dict, float | None]:
        self.seen.append(self.weights())
        self.evaluated.append(copied(model))
        return {}, self.scores[len(self.seen) - 2] if len(self.seen) - 2 < len(self.scores) else None


def run(folder: Path, scores: Sequence[float | None] = (), *, dropout: float = 0.0, **training: Any) -> Run:
    return Run(tiny_recipe(folder, dropout=dropout, **training), scores)


def same(one: Weights, two: Weights) -> bool:
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())

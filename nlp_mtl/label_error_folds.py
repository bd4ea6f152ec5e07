"""The runs of a search for label errors: a model a fold, and what it says of labels that it saw, or did not see."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nlp_mtl.analysis.label_errors import Judged
from nlp_mtl.analysis.label_quality import Dynamics, dynamics, is_answered, quality
from nlp_mtl.build import steps, steps_per_epoch
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.folds import part_of
from nlp_mtl.data.labelled_items import LabelledItems, labelled_items
from nlp_mtl.evaluation import probabilities
from nlp_mtl.label_error_search import Search
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe import Recipe
from nlp_mtl.run import train_part
from nlp_mtl.storage import remove, written_file
from nlp_mtl.tasks import Task
from nlp_mtl.training.checkpoint import checkpoints

POINTS = 3
"""Of a run at which the labels that it learns from are looked at, at least: a recipe that evaluates more seldom does so
more often here. As many as the epochs of a usual recipe, so that its runs cost no more evaluations."""


def train_fold(search: Search, number: int) -> None:
    """Train on the rows of all other folds, from the newest checkpoint if there is one; what was done stays.

    The model is asked for the rows that were held out: their labels did not teach it. While it learns, it is asked
    for the rows of the next fold, which it does learn from: each row is looked at so by one run, which costs, over all
    runs, a pass over the training rows for each point.

    Raises:
        RunStopped, NlpMtlError: as :func:`nlp_mtl.run.train`.
    """
    run, points, is_main = search.run(number), search.points(number), search.accelerator.is_main_process
    if not search.is_done(number):
        train_rows = {name: np.flatnonzero(fold != number) for name, fold in search.folds.items()}
        resume = bool(checkpoints(run / "checkpoints"))
        search.accelerator.wait_for_everyone()
        if is_main:
            search.found(number).parent.mkdir(exist_ok=True)
            if not resume:
                remove(search.folder, (str(run), str(points)))
            points.mkdir(parents=True, exist_ok=True)
        search.accelerator.wait_for_everyone()
        recipe = _fold_recipe(search, number, train_rows)
        train_part(recipe, train_rows, _Look(search, number), resume=resume)
    if is_main:
        remove(search.folder, (str(run / "checkpoints"), str(points)))
    search.accelerator.wait_for_everyone()


def _fold_recipe(search: Search, number: int, train_rows: Mapping[str, np.ndarray]) -> Recipe:
    """The recipe of a fold's run: nothing is sent, or kept once it has ended; tasks decide by themselves."""
    prepared = search.prepared
    # What consistency adds comes of labels of other tasks; and teachers, or a model that is made smaller, may have
    # learned the labels that are looked at.
    apart: dict[str, Any] = {"hub": None, "tune": None, "consistency": [], "distillation": None, "compression": None}
    recipe = search.recipe.model_copy(update={"output_dir": str(search.run(number)), **apart})
    encoded = {
        name: {**of_splits, "train": part_of(of_splits["train"], train_rows[name])} if name in train_rows else of_splits
        for name, of_splits in prepared.encoded.items()
    }
    part = replace(prepared, encoded=encoded)
    num_steps, wanted = len(steps(recipe, part)), recipe.training.eval_every or steps_per_epoch(recipe, part)
    eval_every = times = 1
    for times in range(1, wanted + 1):
        eval_every = math.ceil(wanted / times)
        if math.ceil(num_steps / eval_every) >= POINTS:
            break
    patience = recipe.training.early_stopping_patience
    changed: dict[str, Any] = {
        "eval_every": eval_every,
        "early_stopping_patience": patience and patience * times,
        "keep_last": 1,
        "keep_best": 1,
        "trackers": [],
    }
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changed)})


class _Look:
    """What is asked of the model of a fold, and kept."""

    def __init__(self, search: Search, number: int) -> None:
        self.search, self.number = search, number
        next_one = (number + 1) % search.count
        self.held_out, self.learned = (
            {name: part_of(search.split(name), np.flatnonzero(fold == one)) for name, fold in search.folds.items()}
            for one in (number, next_one)
        )

    def __call__(self, model: MultiTaskModel, step: int | None, options: Mapping[str, Any]) -> None:
        if step is None:
            self._end(self._asked(model, self.held_out, options))
            return
        found: dict[str, np.ndarray] = {}
        for (task, dataset), shares in self._asked(model, self.learned, options).items():
            given = labelled_items(self.learned[dataset], task).given
            found[f"{task.name}/{dataset}/quality"] = quality(task, given, shares)
            found[f"{task.name}/{dataset}/answered"] = is_answered(task, given, shares)
        self._write(self.search.points(self.number) / f"step-{step:09}.npz", found)

    def _asked(
        self, model: MultiTaskModel, splits: Mapping[str, EncodedSplit], options: Mapping[str, Any]
    ) -> dict[tuple[Task, str], np.ndarray]:
        found: dict[tuple[Task, str], np.ndarray] = {}
        for dataset, split in splits.items():
            tasks = self.search.read_in(dataset)
            shares = probabilities(model, split, tasks, self.search.prepared.framing, **options)
            found |= {(task, dataset): shares[task.name] for task in tasks}
        return found

    def _end(self, shares: Mapping[tuple[Task, str], np.ndarray]) -> None:
        if not self.search.accelerator.is_main_process:
            return
        files = sorted(self.search.points(self.number).glob("step-*.npz"))
        points = [_read(file) for file in files]
        found = {"steps": np.array([int(file.stem.removeprefix("step-")) for file in files])}
        for task, dataset in shares:
            place = f"{task.name}/{dataset}"
            found[f"{place}/probabilities"] = shares[task, dataset]
            qualities, answered = ([point[f"{place}/{what}"] for point in points] for what in ("quality", "answered"))
            found |= {f"{place}/{name}": one for name, one in dynamics(qualities, answered)._asdict().items()}
        self._write(self.search.found(self.number), found)

    def _write(self, file: Path, arrays: Mapping[str, np.ndarray]) -> None:
        if self.search.accelerator.is_main_process:
            with written_file(file) as partial, partial.open("wb") as whole:
                np.savez(whole, **arrays)  # type: ignore[arg-type]


def _read(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as kept:
        return dict(kept)


def judged(search: Search) -> tuple[list[Judged], list[list[int]]]:
    """What the runs of all folds say of each task's labels, and at which steps of each run dynamics were measured."""
    found = [_read(search.found(number)) for number in range(search.count)]
    return [_judged(search, task, found) for task in search.tasks], [one["steps"].tolist() for one in found]


def _judged(search: Search, task: Task, found: list[dict[str, np.ndarray]]) -> Judged:
    names = [name for name in search.folds if task.name in search.split(name).tasks]
    all_items, all_shares, all_dynamics = [], [], []
    for name in names:
        items = labelled_items(search.split(name), task)
        shares = np.zeros((len(items), len(task.labels)), dtype=np.float32)
        measured = Dynamics(*(np.zeros(len(items)) for _ in Dynamics._fields))
        for number, of_fold in enumerate(found):
            held_out, learned = (
                items.of_rows(np.flatnonzero(search.folds[name] == one))
                for one in (number, (number + 1) % search.count)
            )
            shares[held_out] = of_fold[f"{task.name}/{name}/probabilities"]
            for key, values in measured._asdict().items():
                values[learned] = of_fold[f"{task.name}/{name}/{key}"]
        all_items.append(items)
        all_shares.append(shares)
        all_dynamics.append(measured)
    items = LabelledItems(*map(np.concatenate, zip(*all_items, strict=True)))
    shares = np.concatenate(all_shares)
    measured = Dynamics(*map(np.concatenate, zip(*all_dynamics, strict=True)))
    places = np.repeat(np.arange(len(names)), [len(one) for one in all_items])
    return Judged(task, names, places, items, shares, quality(task, items.given, shares), measured)

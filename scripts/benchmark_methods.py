"""Every sampling, balancing, gradient and sharing method on the four-task recipe, at a small budget.

Each is held against single-task models.

All methods have the same rows a step, steps, learning rates and evaluation, and a loss weight of 1 for every task;
what differs is the one line of the recipe that the table names. A single-task model has as many steps on the rows of
its task as make up the joint run's rows of it under proportional sampling. Scores are the tasks' main metrics on
validation.

- a task's column: the mean over seeds of the joint score less that of the single-task models, in points
- all: the mean over tasks, and in brackets the standard deviation of that over seeds
- step: the processor's time of a step by that of a step with fixed weights, the medians of both over seeds
- answers: the same of an evaluation on validation, which is what prediction costs
- parameters: in millions

It runs on the CPU, in one thread: other work slows it, changes no scores, and what is counted by a fifth. Each run is
kept in the file --results as soon as it ends; the same command goes on where it stopped. Seeds may run side by side
with files of their own; put together (cat), these give the table at once.
"""

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed

from nlp_mtl import Recipe
from nlp_mtl.build import balancer, new_model, steps, task_gradients, trainer_arguments
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.evaluation import evaluate as evaluate_splits
from nlp_mtl.metrics import Scores
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.training.trainer import train

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "ewt_sst2_agnews.yaml"

Line = dict[str, dict[str, Any]]

PLAIN = "fixed weights, proportional"

METHODS: dict[str, Line] = {
    PLAIN: {},
    "loss weights of the shipped recipe": {"tasks": {}},
    "sampling: fixed, 2 of 3 rows EWT": {
        "sampling": {"strategy": "fixed", "shares": {"ewt": 4, "sst2": 1, "agnews": 1}}},
    **{f"sampling: {name}": {"sampling": {"strategy": name}}
       for name in ("temperature", "uniform", "unimax", "annealed", "round_robin")},
    "sampling: dynamic, by metric": {"sampling": {"strategy": "dynamic"}},
    "sampling: dynamic, by loss": {"sampling": {"strategy": "dynamic", "need": "loss"}},
    **{f"sampling: {key} sentiment": {"datasets": {"sst2": {key: "sentiment"}}}
       for key in ("oversample", "undersample")},
    "scale: log_classes": {"balancing": {"scale": "log_classes"}},
    **{f"balancing: {name}": {"balancing": {"strategy": name}}
       for name in ("random", "dwa", "uncertainty", "imtl_l", "log", "maximum", "smooth_maximum", "famo")},
    **{f"gradients: {name}": {"gradients": {"strategy": name}}
       for name in ("pcgrad", "gradvac", "mgda", "cagrad", "imtl_g", "nash_mtl", "fairgrad", "aligned_mtl", "upgrad",
                    "gradnorm")},
    **{f"sharing: {name}": {"sharing": {"strategy": name}}
       for name in ("layer_mix", "task_embedding", "gate", "mmoe", "ple", "towers", "lora")},
    "sharing: ple, 2 levels": {"sharing": {"strategy": "ple", "num_levels": 2}},
    "sharing: towers, not cross-stitched": {"sharing": {"strategy": "towers", "cross_stitch": False}},
}  # fmt: skip


def recipe_with(options: argparse.Namespace, folder: Path, seed: int, line: Line, max_steps: int) -> Recipe:
    """The shipped recipe at this budget, with one line changed."""
    base = Recipe.from_yaml(RECIPE, [f"data_dir={options.data}", f"output_dir={folder}"]).to_dict()
    training = base["training"] | {
        "batch_size": options.batch_size, "max_steps": max_steps, "num_epochs": 1, "eval_every": max_steps,
        "log_every": max_steps, "save_every": None, "keep_last": 1, "ema_decay": 0, "selection_weights": {},
        "early_stopping_patience": None,
    }  # fmt: skip
    plain = {"sampling": {"strategy": "proportional"}, "balancing": {}, "gradients": {}, "sharing": {}, "seed": seed}
    if line.get("sampling", {}).get("strategy") == "dynamic":
        training["eval_every"] = max(1, max_steps // 4)
    balancing = line.get("balancing", {})
    if balancing.get("strategy") == "dwa":
        line = {"balancing": balancing | {"period": max(1, max_steps // 8)}}
    if "tasks" not in line:
        plain["tasks"] = {name: spec | {"loss_weight": 1.0} for name, spec in base["tasks"].items()}
    nested = {
        key: {name: spec | line[key].get(name, {}) for name, spec in base[key].items()}
        for key in ("datasets", "tasks") if key in line
    }  # fmt: skip
    return Recipe.from_dict(base | {"training": training} | plain | line | nested)


def fewer(prepared: Prepared, rows: int) -> Prepared:
    """Of each validation split the first rows."""
    encoded = {}
    for name, splits in prepared.encoded.items():
        whole = splits["validation"]
        chosen = range(min(rows, len(whole)))
        part = type(whole)(whole.source.take(chosen), whole.rows.select(chosen), whole.tasks)
        encoded[name] = {**splits, "validation": part}
    return replace(prepared, encoded=encoded)


def prepared_once(recipe: Recipe, options: argparse.Namespace) -> Prepared:
    """The rows of all runs: what is carved for validation must not depend on the seed."""
    return fewer(
        prepare(recipe.model_copy(update={"seed": 0}), splits=["train", "validation"]), options.validation_rows
    )


def run(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """Train; returns the tasks' scores, the parameters, the processor's seconds of a step (evaluations not counted)
    and of the last evaluation."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    folder = Path(recipe.output_dir)
    folder.mkdir(parents=True)
    data = steps(recipe, prepared, device=accelerator.device.type)
    set_seed(recipe.seed)
    model = new_model(recipe, prepared)
    data.packed = model.packs("auto")
    pauses: list[tuple[float, float]] = []

    def evaluate(scored: MultiTaskModel) -> tuple[dict[str, Scores], float | None]:
        start = time.process_time()
        found = evaluate_splits(
            scored, prepared.split("validation"), prepared.tasks, prepared.framing,
            max_tokens=recipe.training.max_tokens, packed=data.packed,
        )  # fmt: skip
        pauses.append((start, time.process_time()))
        last.update(found)
        return found, None

    last: dict[str, Scores] = {}
    start = time.process_time()
    train(
        model, data, prepared.tasks, evaluate, balancer(recipe, prepared, accelerator.device),
        accelerator=accelerator, gradients=task_gradients(recipe, model, prepared.tasks), output_dir=folder,
        **trainer_arguments(recipe, prepared),
    )  # fmt: skip
    # The last evaluation ends the run but for saving, which does not count.
    seconds = pauses[-1][0] - start - sum(stop - first for first, stop in pauses[:-1])
    return {
        "scores": {task.name: last[task.name][task.metric] for task in prepared.tasks},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds_a_step": seconds / len(data),
        "seconds_an_evaluation": pauses[-1][1] - pauses[-1][0],
    }


def of_one_task(recipe: Recipe, task: str) -> Recipe:
    """A recipe for one task alone."""
    values = recipe.to_dict()
    spec = values["tasks"][task]
    names = spec["dataset"] if isinstance(spec["dataset"], list) else [spec["dataset"]]
    chosen = {name: values["datasets"][name] for name in names}
    return Recipe.from_dict(values | {"tasks": {task: spec}, "datasets": chosen})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("NLP_MTL_DATA", "../shared/data"), help="the corpora's folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--validation-rows", type=int, default=500, help="of each dataset")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="methods that hold one of these")
    parser.add_argument("--results", type=Path, default=Path("methods.jsonl"))
    options = parser.parse_args()
    if not Path(options.data).is_dir():
        sys.exit(f"there is no folder {options.data}: give the corpora with --data")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    wanted = {
        name: line for name, line in METHODS.items() if not options.only or any(one in name for one in options.only)
    }
    wanted = {PLAIN: {}, **wanted}
    budget = {"steps": options.steps, "batch_size": options.batch_size, "validation_rows": options.validation_rows}
    known: dict[tuple[str, int], dict[str, Any]] = {}
    if options.results.exists():
        lines = [json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()]
        known = {(one["method"], one["seed"]): one for one in lines if one["budget"] == budget}
    shared: dict[str, Prepared] = {}  # the same rows for all

    def done(method: str, seed: int, recipe: Recipe) -> dict[str, Any]:
        if (method, seed) in known:
            return known[method, seed]
        key = ",".join(recipe.tasks)
        if key not in shared:
            shared[key] = prepared_once(recipe, options)
        tasks = [replace(task, loss_weight=recipe.tasks[task.name].loss_weight) for task in shared[key].tasks]
        found = {"method": method, "seed": seed, "budget": budget, **run(recipe, replace(shared[key], tasks=tasks))}
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        told = f"{json.dumps(found['scores'])} {found['seconds_a_step']:.3f} s a step"
        print(f"{method}, seed {seed}: {told}", file=sys.stderr, flush=True)
        return found

    with tempfile.TemporaryDirectory() as temporary:
        singles: list[dict[str, float]] = []
        joint: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
        for seed in options.seeds:
            # Methods by turns: what slows the machine for a while slows all of them.
            for number, (name, line) in enumerate(wanted.items()):
                folder = Path(temporary) / f"{number}-{seed}"
                joint[name].append(done(name, seed, recipe_with(options, folder, seed, line, options.steps)))
            whole = recipe_with(options, Path(temporary) / f"whole-{seed}", seed, {}, options.steps)
            singles.append({})
            for task in whole.tasks:
                share = _share(whole, task, shared, options)
                folder = Path(temporary) / f"{task}-{seed}"
                alone = of_one_task(recipe_with(options, folder, seed, {}, max(1, round(options.steps * share))), task)
                singles[-1] |= done(f"single-task: {task}", seed, alone)["scores"]
    print_table(joint, singles)


def _share(recipe: Recipe, task: str, shared: dict[str, Prepared], options: argparse.Namespace) -> float:
    """The share of a joint run's rows that a task's datasets give."""
    key = ",".join(recipe.tasks)
    if key not in shared:
        shared[key] = prepared_once(recipe, options)
    sizes = {name: len(splits["train"]) for name, splits in shared[key].encoded.items()}
    spec = recipe.tasks[task].dataset
    return sum(sizes[name] for name in ([spec] if isinstance(spec, str) else spec)) / sum(sizes.values())


def print_table(joint: dict[str, list[dict[str, Any]]], singles: list[dict[str, float]]) -> None:
    """In Markdown."""
    tasks = list(singles[0])
    plain = joint[PLAIN]
    print(f"| | {' | '.join(tasks)} | all | step | answers | parameters |\n|---|{'---:|' * (len(tasks) + 4)}")
    alone = [f"{statistics.mean(one[task] for one in singles):.4f}" for task in tasks]
    print(f"| single-task models | {' | '.join(alone)} | | | | |")
    for name, runs in joint.items():
        gains = [[100 * (one["scores"][task] - single[task]) for task in tasks]
                 for one, single in zip(runs, singles, strict=True)]  # fmt: skip
        of_tasks = [f"{statistics.mean(column):+.1f}" for column in zip(*gains, strict=True)]
        means = [statistics.mean(row) for row in gains]
        spread = f" ({statistics.stdev(means):.1f})" if len(means) > 1 else ""
        costs = [
            statistics.median(one[key] for one in runs) / statistics.median(one[key] for one in plain)
            for key in ("seconds_a_step", "seconds_an_evaluation")
        ]
        print(
            f"| {name} | {' | '.join(of_tasks)} | {statistics.mean(means):+.1f}{spread} | {costs[0]:.2f} | "
            f"{costs[1]:.2f} | {runs[0]['parameters'] / 1e6:.1f} |"
        )


if __name__ == "__main__":
    main()

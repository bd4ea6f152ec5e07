"""Every sampling, balancing, gradient and sharing method on the four-task recipe, at a small budget.

Each is held against single-task models.

All methods have the same rows a step, steps, learning rates and evaluation, and a loss weight of 1 for every task;
what differs is the one line of the recipe that the table names. A single-task model has as many steps on the rows of
its task as make up the joint run's rows of it under proportional sampling. Scores are the tasks' main metrics on
validation.

- a task's column: the mean over seeds of the joint score less that of the single-task models, in points
- all: the mean over tasks, and in brackets the standard deviation of that over seeds
- fixed: the same mean less that of fixed weights, seed by seed, which differ in nothing else
- step: the processor's time of a step by that of a step with fixed weights, the medians of both over seeds; not of
  dynamic sampling, where the checkpoint of each evaluation would count
- answers: the same of an evaluation on validation, which is what prediction costs, where sharing may change it
- parameters: in millions

On the CPU a run has one thread: other work slows it, changes no scores, and what is counted by a fifth. --processes
trains as many runs side by side, and --device cuda trains them on a GPU, where the processor's time tells little of a
step: --costs takes both costs from another file of results, say of a few steps on the CPU.

Each run is kept in the file --results as soon as it ends; the same command goes on where it stopped, and prints the
table where nothing is missing. What cannot be run (adapters without peft) says so in its row.
"""

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed

from nlp_mtl import Recipe
from nlp_mtl.build import balancer, new_model, steps, task_gradients, trainer_arguments
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.errors import NlpMtlError
from nlp_mtl.evaluation import evaluate as evaluate_splits
from nlp_mtl.metrics import Scores
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.training.determinism import deterministic_kernels
from nlp_mtl.training.trainer import train

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "ewt_sst2_agnews.yaml"

Line = dict[str, dict[str, Any]]
Key = tuple[str, int]  # a method or single-task model, and its seed

PLAIN = "fixed weights, proportional"
SINGLE = "single-task: "

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
        chosen = np.arange(min(rows, len(whole)))
        part = type(whole)(whole.source.take(chosen), whole.rows.select(chosen), whole.tasks)
        encoded[name] = {**splits, "validation": part}
    return replace(prepared, encoded=encoded)


def of_one_task(recipe: Recipe, task: str) -> Recipe:
    """A recipe for one task alone."""
    values = recipe.to_dict()
    spec = values["tasks"][task]
    names = spec["dataset"] if isinstance(spec["dataset"], list) else [spec["dataset"]]
    alone = {
        "tasks": {task: spec}, "datasets": {name: values["datasets"][name] for name in names}, "sampling": {},
        "training": values["training"] | {"selection_weights": {}},
    }  # fmt: skip
    return Recipe.from_dict(values | alone)


@lru_cache
def prepared_once(data: str, validation_rows: int, task: str | None) -> Prepared:
    """The rows of all runs: what is carved for validation must not depend on the seed."""
    recipe = Recipe.from_yaml(RECIPE, [f"data_dir={data}", "seed=0"])
    recipe = recipe if task is None else of_one_task(recipe, task)
    return fewer(prepare(recipe, splits=["train", "validation"]), validation_rows)


def run(recipe: Recipe, prepared: Prepared, device: str) -> dict[str, Any]:
    """Train; returns the tasks' scores, the parameters, the processor's seconds of a step (evaluations not counted)
    and of the last evaluation."""
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
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
    with deterministic_kernels(accelerator.device):
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


def share(prepared: Prepared, recipe: Recipe, task: str) -> float:
    """The share of a joint run's rows that a task's datasets give."""
    sizes = {name: len(splits["train"]) for name, splits in prepared.encoded.items()}
    spec = recipe.tasks[task].dataset
    return sum(sizes[name] for name in ([spec] if isinstance(spec, str) else spec)) / sum(sizes.values())


def done(options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """One run, in whatever process."""
    task = method.removeprefix(SINGLE) if method.startswith(SINGLE) else None
    prepared = prepared_once(options.data, options.validation_rows, task)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        if task is None:
            recipe = recipe_with(options, folder, seed, METHODS[method], options.steps)
        else:
            whole = recipe_with(options, folder, seed, {}, options.steps)
            part = share(prepared_once(options.data, options.validation_rows, None), whole, task)
            recipe = of_one_task(recipe_with(options, folder, seed, {}, max(1, round(options.steps * part))), task)
        tasks = [replace(one, loss_weight=recipe.tasks[one.name].loss_weight) for one in prepared.tasks]
        found = run(recipe, replace(prepared, tasks=tasks), options.device)
    return {"method": method, "seed": seed, "budget": budget(options), **found}


def budget(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "steps": options.steps, "batch_size": options.batch_size, "validation_rows": options.validation_rows,
        "device": options.device,
    }  # fmt: skip


def quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("NLP_MTL_DATA", "../shared/data"), help="the corpora's folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--validation-rows", type=int, default=500, help="of each dataset")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="methods that hold one of these")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="runs side by side")
    parser.add_argument("--results", type=Path, default=Path("methods.jsonl"))
    parser.add_argument("--costs", type=Path, help="results whose costs the table tells")
    options = parser.parse_args()
    if not Path(options.data).is_dir():
        sys.exit(f"there is no folder {options.data}: give the corpora with --data")
    if options.costs and not options.costs.exists():
        sys.exit(f"there is no file {options.costs}: give results with --costs")
    wanted = [name for name in METHODS if not options.only or any(one in name for one in options.only)]
    wanted = [PLAIN, *(name for name in wanted if name != PLAIN)]
    singles = [f"{SINGLE}{task}" for task in Recipe.from_yaml(RECIPE, [f"data_dir={options.data}"]).tasks]
    known = {(one["method"], one["seed"]): one for one in results(options.results) if one["budget"] == budget(options)}
    # Methods by turns: what slows the machine for a while slows all of them.
    missing = [key for seed in options.seeds for name in (*wanted, *singles) if (key := (name, seed)) not in known]
    failed: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context, initializer=quiet) as pool:
        started = {pool.submit(done, options, *key): key for key in missing}
        for ended in as_completed(started):
            error, (name, seed) = ended.exception(), started[ended]
            if isinstance(error, NlpMtlError) and name not in (PLAIN, *singles):
                print(f"{name}, seed {seed}, could not be run: {error}", file=sys.stderr, flush=True)
                failed[name] = str(error)
                continue
            if error:
                pool.shutdown(cancel_futures=True)
            found = ended.result()
            known[found["method"], found["seed"]] = found
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            told = f"{json.dumps(found['scores'])} {found['seconds_a_step']:.3f} s a step"
            print(f"{found['method']}, seed {found['seed']}: {told}", file=sys.stderr, flush=True)
    costs = results(options.costs) if options.costs else list(known.values())
    print_table(known, wanted, singles, options.seeds, costs, failed)


def print_table(
    known: dict[Key, dict[str, Any]], methods: list[str], singles: list[str], seeds: list[int],
    costs: list[dict[str, Any]], failed: dict[str, str],
) -> None:  # fmt: skip
    """In Markdown."""
    tasks = [name.removeprefix(SINGLE) for name in singles]
    alone = [{task: known[SINGLE + task, seed]["scores"][task] for task in tasks} for seed in seeds]

    def cost(name: str, key: str) -> str:
        counts = "dynamic" not in name if key == "seconds_a_step" else name == PLAIN or name.startswith("sharing")
        if not counts:
            return ""
        of, by = ([one[key] for one in costs if one["method"] == method] for method in (name, PLAIN))
        return f"{statistics.median(of) / statistics.median(by):.2f}" if of and by else ""

    print(f"| | {' | '.join(tasks)} | all | fixed | step | answers | parameters |\n|---|{'---:|' * (len(tasks) + 5)}")
    means_alone = [f"{statistics.mean(one[task] for one in alone):.4f}" for task in tasks]
    print(f"| single-task models | {' | '.join(means_alone)} | | | | | |")
    plain: list[float] = []  # the first method's
    for name in methods:
        if name in failed:
            print(f"| {name} | could not be run: {failed[name]} {'| ' * (len(tasks) + 5)}")
            continue
        runs = [known[name, seed] for seed in seeds]
        gains = [[100 * (one["scores"][task] - single[task]) for task in tasks]
                 for one, single in zip(runs, alone, strict=True)]  # fmt: skip
        of_tasks = [f"{statistics.mean(column):+.1f}" for column in zip(*gains, strict=True)]
        means = [statistics.mean(row) for row in gains]
        plain = plain or means
        over = "" if name == PLAIN else _mean_and_spread([one - other for one, other in zip(means, plain, strict=True)])
        print(
            f"| {name} | {' | '.join(of_tasks)} | {_mean_and_spread(means)} | {over} | "
            f"{cost(name, 'seconds_a_step')} | {cost(name, 'seconds_an_evaluation')} | "
            f"{runs[0]['parameters'] / 1e6:.1f} |"
        )


def _mean_and_spread(values: list[float]) -> str:
    spread = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.1f}{spread}"


if __name__ == "__main__":
    main()

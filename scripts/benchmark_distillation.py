"""What distillation gives: single-task models, the joint model, and joint models that learn from them, over seeds.

  scripts/benchmark_distillation recipes/ewt_sst2_agnews.yaml data_dir=PATH --folder runs/distillation

The single-task models and the plain joint one are those of `nlp-mtl compare`, on the same rows at the same budget; they
are also the teachers. A variant is a name and overrides of keys, mostly of the recipe's `distillation`; without any,
teacher annealing and fixed halves are tried. What is finished is not trained again, what was stopped goes on.

- a task's column: the mean over seeds of its main metric on the test split, in percent, and in brackets the standard
  deviation
- difference: the mean over seeds and tasks of what a model scores more than the single-task models, in points, and in
  brackets the standard deviation over seeds of the mean over tasks
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from score_variants import Scores, main_scores, run, run_folder, table

from nlp_mtl import Recipe

VARIANTS = ("distilled, annealed:", "distilled, halves: distillation.annealing=false distillation.weight=0.5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="key=value, of all models")
    parser.add_argument("--variant", action="append", help="'NAME: key=value key=value'")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go")
    arguments = parser.parse_args()
    recipe = Recipe.from_yaml(arguments.recipe, arguments.overrides)
    compared = arguments.folder / "compare"
    options = ["--seeds", str(arguments.seeds), "--no-conflicts", "--output-dir", str(compared)]
    subprocess.run(
        [sys.executable, "-m", "nlp_mtl", "compare", arguments.recipe, *arguments.overrides, *options], check=True
    )
    seeds = range(recipe.seed, recipe.seed + arguments.seeds)
    scores: dict[str, Scores] = {"single-task": [], "joint": []}
    for seed in seeds:
        alone = [main_scores(compared / "runs" / f"only-{task}-seed{seed}") for task in recipe.tasks]
        scores["single-task"].append({task: score for one in alone for task, score in one.items()})
        scores["joint"].append(main_scores(compared / "runs" / f"joint-seed{seed}"))
    split_seed = recipe.seed if recipe.split_seed is None else recipe.split_seed  # the rows of the teachers
    is_given = any(key.startswith("split_seed=") for key in arguments.overrides)
    same_rows = [] if is_given else [f"split_seed={split_seed}"]
    for text in arguments.variant or VARIANTS:
        name, _, keys = text.partition(":")
        scores[name] = []
        for seed in seeds:
            teachers = {task: str((compared / "runs" / f"only-{task}-seed{seed}").absolute()) for task in recipe.tasks}
            overrides = [
                *arguments.overrides,
                *same_rows,
                f"distillation.teachers={json.dumps(teachers)}",
                *shlex.split(keys),
            ]
            folder = run_folder(arguments.folder, name, seed)
            scores[name].append(run(arguments.recipe, overrides, folder, seed))
    print(table(scores))


if __name__ == "__main__":
    main()

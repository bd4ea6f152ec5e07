"""Train variants of a recipe over several seeds, and print what each scores on the test split.

A variant is a name and overrides of keys, as on the command line of `nlp-mtl train`:

  scripts/score_variants recipes/cleaning.yaml data_dir=PATH --folder runs/cleaning-variants \\
      --variant 'as it is:' --variant 'cleaned: cleaning.remove_html=escaped'

The first is what the others are held against, seed by seed. Seeds have the same rows held out. Each run is a folder of
its own; one that is finished is not trained again, and one that was stopped goes on.

- a task's column: the mean over seeds of its main metric, in percent, and in brackets the standard deviation
- difference: the mean over seeds and tasks of what a variant scores more than the first one, in points, and in
  brackets the standard deviation over seeds of the mean over tasks
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

Scores = list[dict[str, float]]
"""``{task: main metric}`` of each seed."""


def run(recipe: str, overrides: Sequence[str], folder: Path, seed: int) -> dict[str, float]:
    """Train once, if it was not done before: ``{task: main metric on test}``."""
    own = [] if any(key.startswith("split_seed=") for key in overrides) else ["split_seed=0"]
    return finished(["train", recipe, *overrides, f"seed={seed}", *own], folder)


def finished(command: Sequence[str], folder: Path) -> dict[str, float]:
    """What the run of a command scored; it is run, or goes on, if it was not done before."""
    if not (folder / "results.json").is_file():
        words = [sys.executable, "-m", "nlp_mtl", *command, f"output_dir={folder}", "--resume", "auto"]
        subprocess.run(words, check=True)  # in a process of its own, as a user would: nothing is left in memory
    return main_scores(folder)


def main_scores(folder: Path) -> dict[str, float]:
    """``{task: main metric on test}`` of a run."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {task: results["scores"]["test"][task][metric] for task, metric in results["main_metrics"].items()}


def run_folder(folder: Path, variant: str, seed: int) -> Path:
    """Where the run of a variant lies."""
    return folder / f"{variant.replace(',', '').replace(' ', '-')}-seed{seed}"


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation."""
    deviation = f" ({statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{deviation}"


def table(scores: Mapping[str, Scores], difference: str = "difference") -> str:
    """A row a variant, in Markdown; the difference is of the tasks that the first one has."""
    first = next(iter(scores.values()))
    tasks = list(dict.fromkeys(task for seeds in scores.values() for task in seeds[0]))
    lines = [f"| variant | {' | '.join(tasks)} | {difference} |", f"|---|{'---:|' * (len(tasks) + 1)}"]
    for name, seeds in scores.items():
        cells = [spread([100 * one[task] for one in seeds]) if task in seeds[0] else "" for task in tasks]
        more = [
            statistics.mean(100 * (one[task] - score) for task, score in plain.items())
            for one, plain in zip(seeds, first, strict=True)
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {spread(more, '+') if seeds is not first else ''} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", help="key=value, of all variants")
    parser.add_argument("--variant", action="append", required=True, help="'NAME: key=value key=value'")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, required=True, help="where the runs go")
    arguments = parser.parse_args()
    scores: dict[str, Scores] = {}
    for text in arguments.variant:
        name, _, keys = text.partition(":")
        scores[name] = [
            run(
                arguments.recipe,
                [*arguments.overrides, *shlex.split(keys)],
                run_folder(arguments.folder, name, seed),
                seed,
            )
            for seed in arguments.seeds
        ]
    print(table(scores))


if __name__ == "__main__":
    main()

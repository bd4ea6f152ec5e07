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
    if not (folder / "results.json").is_file():
        own = [] if any(key.startswith("split_seed=") for key in overrides) else ["split_seed=0"]
        keys = [*overrides, f"seed={seed}", *own, f"output_dir={folder}"]
        # In a process of its own, as a user would: nothing of a run is left in memory.
        subprocess.run([sys.executable, "-m", "nlp_mtl", "train", recipe, *keys, "--resume", "auto"], check=True)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {task: results["scores"]["test"][task][metric] for task, metric in results["main_metrics"].items()}


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation."""
    deviation = f" ({statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.2f}{deviation}"


def table(scores: Mapping[str, Scores]) -> str:
    """A row a variant, in Markdown."""
    first = next(iter(scores.values()))
    tasks = [*first[0]]
    lines = [f"| variant | {' | '.join(tasks)} | difference |", f"|---|{'---:|' * (len(tasks) + 1)}"]
    for name, seeds in scores.items():
        cells = [spread([100 * one[task] for one in seeds]) for task in tasks]
        more = [
            statistics.mean(100 * (one[task] - plain[task]) for task in tasks)
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
                arguments.folder / f"{name.replace(' ', '-')}-seed{seed}",
                seed,
            )
            for seed in arguments.seeds
        ]
    print(table(scores))


if __name__ == "__main__":
    main()

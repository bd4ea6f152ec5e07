"""What a run holds and how long it takes to start when there is much data. Linux only.

    scripts/benchmark_scale                    # a few minutes on two cores
    scripts/benchmark_scale --only plan
    scripts/benchmark_scale --only data --rows 20000 --num-proc 2

plan: the step plan of 1,000 datasets of very different sizes, 100 million rows in all, under proportional and
temperature sampling. Seconds until the first step (of a new run, and of one that is resumed in its middle), of the
steps after it, and the memory it adds to the process.

data: training steps over n, 10 n and 100 n generated rows. They are read as a recipe says (two datasets of JSON Lines,
three tasks, validation and test held out), by a process that tokenises them, by a second one that finds them in the
cache, and by one that streams them, which keeps nothing and holds nothing out. Memory is the process's own (RssAnon):
not the pages of mapped files, which the system takes back when it needs them. The steady figure: after the steps.

Every line is measured in a process of its own.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("plan", "data")
STRATEGIES = ("proportional", "temperature")


def own_memory() -> int:
    """Bytes of anonymous memory that the process holds."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


class Peak:
    """The most that :func:`own_memory` gives while the ``with`` block runs."""

    def __enter__(self) -> "Peak":
        self.value = own_memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.value = max(self.value, own_memory())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.value = max(self.value, own_memory())


# ---- the step plan


def sizes_of(num_datasets: int, num_rows: int) -> list[int]:
    """Sizes from one row to a seventh of all rows."""
    import numpy as np

    weights = np.exp(np.random.default_rng(0).normal(0, 2.5, num_datasets))
    sizes = np.maximum(1, num_rows * weights / weights.sum()).astype(np.int64)
    sizes[np.argmax(sizes)] += num_rows - sizes.sum()
    return sizes.tolist()


def measure_plan(strategy: str, place: float, num_datasets: int, num_rows: int) -> dict[str, Any]:
    """The plan of three epochs from one of its steps on; ``place``: 0 the first, 0.5 that in the middle."""
    import numpy as np

    from nlp_mtl.data.sampling import Sampler, sampling_rates

    sizes = sizes_of(num_datasets, num_rows)
    before = own_memory()
    with Peak() as peak:
        start = time.perf_counter()
        rates = sampling_rates(sizes, strategy, 2.0)
        sampler = Sampler(sizes, rates, batch_size=256, num_rows=3 * num_rows)
        built = time.perf_counter()
        first = int(place * len(sampler))
        sampler[first]
        seconds = {"build": built - start, "first": time.perf_counter() - built}
        times = []
        for step in range(first + 1, first + 2001):
            start = time.perf_counter()
            sampler[step]
            times.append(time.perf_counter() - start)
        held = own_memory()
    return {
        "sizes": [min(sizes), int(np.median(sizes)), max(sizes)],
        **seconds,
        "median": float(np.median(times)),
        "longest": max(times),
        "held": (held - before) / num_rows,
        "peak": (max(peak.value, held) - before) / num_rows,
    }


def plan_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for strategy, place in itertools.product(STRATEGIES, (0, 0.5)):
        found = in_new_process("measure_plan", strategy, place, options.datasets, options.plan_rows)
        if not rows:
            smallest, median, largest = found["sizes"]
            print(
                f"Step plan: {options.datasets:,} datasets of {smallest:,} to {largest:,} rows (median {median:,}), "
                f"{options.plan_rows:,} rows in all, batch_size 256, 3 epochs\n"
                f"{'':32} build s  first step s  step ms (median, longest of 2,000)  bytes a row (held, peak)"
            )
        name = f"{strategy}, {'from the middle on' if place else 'from the start'}"
        print(
            f"{name:32} {found['build']:7.2f} {found['first']:13.2f} {1e3 * found['median']:16.2f} "
            f"{1e3 * found['longest']:18.0f} {found['held']:18.2f} {found['peak']:7.2f}",
            flush=True,
        )
        rows.append({"strategy": strategy, "place": place, **found})
    return rows


# ---- data


def write_corpus(folder: Path, num_rows: int) -> int:
    """Half of the rows words with two token tasks, half texts with a text task; no validation or test. Their bytes."""
    import tiny

    random_ = random.Random(0)
    for name, row in (("words", tiny.token_row), ("texts", tiny.text_row)):
        (folder / name).mkdir(parents=True)
        with open(folder / name / "train.jsonl", "w", encoding="utf-8") as file:
            for _ in range(num_rows // 2):
                file.write(json.dumps(row(random_)) + "\n")
    return sum(file.stat().st_size for file in folder.rglob("*.jsonl"))


def measure_data(values: dict[str, Any], num_steps: int) -> dict[str, Any]:
    """Reading the first steps of a recipe."""
    import datasets
    import torch
    import transformers

    from nlp_mtl import Recipe
    from nlp_mtl.build import steps
    from nlp_mtl.build_data import prepare

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(2)
    recipe = Recipe.from_dict(values)
    before = own_memory()
    with Peak() as peak:
        start = time.perf_counter()
        prepared = prepare(recipe)
        data = steps(recipe, prepared)
        data.digest()  # what training keeps with its checkpoints
        data[0]
        first = time.perf_counter() - start
        start = time.perf_counter()
        for step in range(1, num_steps):
            data[step]
        later = time.perf_counter() - start
    return {
        "first": first,
        "rows_a_second": (num_steps - 1) * recipe.training.batch_size / later,
        "peak": peak.value - before,
        "steady": own_memory() - before,
        "before": before,
        "rows": sum(len(split) for splits in prepared.encoded.values() for split in splits.values()),
    }


def streamed(values: dict[str, Any]) -> dict[str, Any]:
    """The same recipe as one that streams: it says its labels, and counts in steps."""
    labels: dict[str, set[str]] = {"ner": set(), "upos": set(), "label": set()}
    for dataset in values["datasets"]:
        with open(Path(values["data_dir"]) / dataset / "train.jsonl", encoding="utf-8") as file:
            for line in itertools.islice(file, 2000):
                row = json.loads(line)
                for column in labels.keys() & row.keys():
                    labels[column].update(row[column] if isinstance(row[column], list) else [row[column]])
    return {
        **values,
        "datasets": {name: {**spec, "streaming": True} for name, spec in values["datasets"].items()},
        "tasks": {
            name: {**task, "label_names": sorted(labels[task["labels"]])} for name, task in values["tasks"].items()
        },
        "sampling": {"strategy": "uniform"},
        "training": {**values["training"], "max_steps": 200, "eval_every": 200},
    }


def data_part(options: argparse.Namespace) -> list[dict[str, Any]]:
    import tiny
    import transformers

    rows: list[dict[str, Any]] = []
    print(
        "\nTraining steps over files, MB of the process's own memory on top of what it has before\n"
        f"{'':34} text MB  tokenised MB  to first step s    peak  steady  rows a second then"
    )
    with tempfile.TemporaryDirectory() as name:
        transformers.logging.disable_progress_bar()
        encoder = tiny.save_encoder(Path(name) / "encoder")
        for factor in (1, 10, 100):
            count, folder = factor * options.rows, Path(name) / str(factor)
            text = write_corpus(folder / "corpus", count)
            values = tiny.recipe(folder, corpus=folder / "corpus", encoder_folder=encoder)
            for dataset, spec in values["datasets"].items():
                spec["data_files"] = {"train": f"{dataset}/train.jsonl"}
            values["num_proc"] = options.num_proc
            cache = folder / "cache"
            for kind in ("tokenises", "reads the cache", "streams"):
                given = streamed(values) if kind == "streams" else values
                found = in_new_process("measure_data", given, 200, HF_DATASETS_CACHE=str(cache))
                assert found["rows"] == (0 if kind == "streams" else 2 * (count // 2)), found
                mapped = sum(file.stat().st_size for file in cache.rglob("cache-*.arrow"))
                print(
                    f"{f'{count:,} rows, {kind}':34} {text / 1e6:7.1f} {mapped / 1e6:13.1f} {found['first']:16.1f} "
                    f"{found['peak'] / 1e6:7.1f} {found['steady'] / 1e6:7.1f} {found['rows_a_second']:15,.0f}",
                    flush=True,
                )
                rows.append({**found, "rows": count, "kind": kind, "text": text, "tokenised": mapped})
    for small, large in zip(rows[:3], rows[-3:], strict=True):
        grown = {what: (large[what] - small[what]) / (large["rows"] - small["rows"]) for what in ("peak", "steady")}
        figures = f"peak {grown['peak']:.0f}, steady {grown['steady']:.0f} bytes a row"
        print(f"growth of a process that {small['kind']}: {figures}")
    return rows


# ---- processes


def in_new_process(function: str, *arguments: Any, **environment: str) -> dict[str, Any]:
    """What a function of this file returns in a process of its own."""
    command = [sys.executable, __file__, "--call", json.dumps([function, *arguments])]
    given = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **environment}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=given)
    if done.returncode:
        sys.exit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="leave the other out")
    parser.add_argument("--datasets", type=int, default=1000, help="of the plan")
    parser.add_argument("--plan-rows", type=int, default=100_000_000)
    parser.add_argument("--rows", type=int, default=5_000, help="n of the data")
    parser.add_argument("--num-proc", type=int, default=1, help="processes that tokenise")
    parser.add_argument("--json", action="store_true", help="print JSON as well")
    parser.add_argument("--call", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))  # for the tiny encoder
    if options.call:
        function, *arguments = json.loads(options.call)
        print(json.dumps(globals()[function](*arguments)))
        return
    parts = [options.only] if options.only else PARTS
    report = {part: {"plan": plan_part, "data": data_part}[part](options) for part in parts}
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()

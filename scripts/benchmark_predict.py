"""Speed of prediction: all tasks from one pass, against a stock pipeline a task, in one run on the same texts.

    scripts/benchmark predict --model RUN --data PATH
    scripts/benchmark predict --model RUN --data PATH --only one-pass stock --texts 3000

RUN is the run folder of `recipes/ewt_sst2_agnews.yaml`. Its tasks are exported to stock checkpoints, which answer with
the same weights: each text goes through four pipelines of transformers, 32 texts a batch. Texts are those of the test
rows of the three datasets, equally many of each, in random order. Answers hold decoded labels, spans and offsets, on
both sides.

Each part has a process of its own, in which it answers some texts before it is timed, and then all of them, again and
again for ten seconds at least. All take their turn, several times, and the median counts: what slows the machine for a
while slows all.

- texts/s: texts a second, all tasks
- ratio: to the stock pipelines
- p50, p99: milliseconds for one text alone, all tasks
- memory: the most that the process held

The parts `onnx` and `onnx-int8` run graphs that `nlp-mtl export --onnx` writes of the same model. The part `server` is
`nlp-mtl serve`, asked by 64 clients at a time, each text a request of its own (scripts/load_server.py, on the same
machine): its ratio is to one pass without a server, its times are those of a request among the others, and answers that
are missing are told.
"""

import argparse
import json
import logging
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import pipeline

from nlp_mtl import load
from nlp_mtl.hub.export import export_task
from nlp_mtl.inference.onnx import export_onnx
from nlp_mtl.models.loading import load_model
from nlp_mtl.task_types import kind_of

PARTS = {
    "one-pass": "one pass for all tasks",
    "one-pass-bf16": "one pass for all tasks, bf16",
    "onnx": "one pass for all tasks, ONNX",
    "onnx-int8": "one pass for all tasks, ONNX, int8",
    "server": "one pass for all tasks, served to 64 clients",
    "stock": "stock pipelines, batches of 32 texts as they come",
    "stock-sorted": "stock pipelines, batches of 32 texts sorted by length",
}

CLIENTS = 64
SECONDS = 10
"""For which a part is timed, at least: one pass over some hundred texts is over in two."""

MEMORY_UNIT = 1 if sys.platform == "darwin" else 1024

Answer = Callable[[list[str]], Any]


def texts_of(data: Path, count: int, seed: int = 0) -> list[str]:
    """As many texts of each dataset's test rows, in random order."""
    found = []
    for file in ("ewt_joint/test.jsonl.gz", "sst2/test.jsonl", "ag_news/test.jsonl"):
        rows = datasets.load_dataset("json", data_files=str(data / file), split="train").shuffle(seed)
        rows = rows.select(range(min(len(rows), -(-count // 3))))
        found += [row["text"] if "text" in row else " ".join(row["tokens"]) for row in rows]
    random.Random(seed).shuffle(found)
    return found[:count]


def answerer(part: str, model: str, exported: Path) -> Answer:
    """What answers texts, all tasks."""
    if part.startswith("onnx"):
        return load(exported / part)
    if part.startswith("one-pass"):
        nlp = load(model, mixed_precision="bf16" if part.endswith("bf16") else "no")
        return lambda texts: nlp(texts)
    stock = []
    for folder in sorted(exported.glob("*@*")):
        kind = folder.name.split("@")[0]
        options = {"aggregation_strategy": "first"} if kind == "token-classification" else {}
        stock.append(pipeline(kind, str(folder), batch_size=32, **options))

    def answer(texts: list[str]) -> list[Any]:
        given = sorted(texts, key=len) if part == "stock-sorted" else texts
        return [one(given) for one in stock]

    return answer


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One part, in this process."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)
    texts = texts_of(Path(options.data), options.texts)
    if options.only == ["server"]:
        return measure_server(options.model, texts)
    answer = answerer(options.only[0], options.model, Path(options.exported))
    answer(texts[:64])
    start, answered, seconds = time.perf_counter(), 0, 0.0
    while seconds < SECONDS:
        answer(texts)
        answered += len(texts)
        seconds = time.perf_counter() - start
    alone = []
    for text in texts[: options.alone]:
        start = time.perf_counter()
        answer([text])
        alone.append(1000 * (time.perf_counter() - start))
    marks = statistics.quantiles(alone, n=100, method="inclusive")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MEMORY_UNIT
    return {"texts_a_second": answered / seconds, "p50": marks[49], "p99": marks[98], "memory": memory}


def measure_server(model: str, texts: list[str]) -> dict[str, float]:
    """A server, in a process of its own, asked by another."""
    command = [sys.executable, "-m", "nlp_mtl", "serve", model, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = next(line.split()[2] for line in server.stdout if line.startswith("Serving on "))
        client = [sys.executable, str(Path(__file__).with_name("load_server.py")), url, "--clients", str(CLIENTS)]
        first = ask(client, texts)
        found = ask(client, texts * math.ceil(SECONDS / first["seconds"]))
    finally:
        server.terminate()
        server.wait()
    return {
        "texts_a_second": found["answered"] / found["seconds"], "p50": found["p50"], "p99": found["p99"],
        "memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * MEMORY_UNIT,
        "lost": sum(one["asked"] - one["answered"] for one in (first, found)),
    }  # fmt: skip


def ask(client: list[str], texts: list[str]) -> dict[str, Any]:
    """What many clients say of a server after so many texts."""
    lines = "".join(f"{json.dumps(text)}\n" for text in texts)
    return json.loads(subprocess.run(client, input=lines, stdout=subprocess.PIPE, text=True, check=True).stdout)


def export_all(model: str, folder: Path, parts: list[str]) -> None:
    """What the parts need: each task as a stock checkpoint, all as a graph."""
    multi_task, tokenizer = load_model(model)
    for part in ("onnx", "onnx-int8"):
        if part in parts:
            export_onnx(multi_task, tokenizer, folder / part, int8=part == "onnx-int8")
    if any(part.startswith("stock") for part in parts):
        for task in multi_task.config.task_list():
            export_task(multi_task, tokenizer, task.name, folder / f"{kind_of(task).stock}@{task.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run folder, or a model folder")
    parser.add_argument(
        "--data", default=os.environ.get("NLP_MTL_DATA", "../shared/data"), help="the folder of the corpora"
    )
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--alone", type=int, default=200, help="texts that are answered one by one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", action="store_true", help="print JSON as well")
    parser.add_argument("--exported", help=argparse.SUPPRESS)  # where the stock checkpoints are; one part, here
    options = parser.parse_args()
    if not Path(options.data).is_dir():
        sys.exit(f"there is no folder {options.data}: give the corpora with --data")
    if options.exported:
        print(json.dumps(measure(options)))
        return
    found: dict[str, list[dict[str, float]]] = {part: [] for part in options.only}
    with tempfile.TemporaryDirectory() as folder:
        export_all(options.model, Path(folder), options.only)
        given = ["--model", options.model, "--data", options.data, "--texts", str(options.texts), "--exported", folder]
        for _ in range(options.repeats):
            for part in options.only:
                command = [sys.executable, __file__, *given, "--alone", str(options.alone), "--only", part]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[part].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{part}: {found[part][-1]['texts_a_second']:.1f} texts/s", flush=True)
    report = {
        part: {key: statistics.median(one[key] for one in runs) for key in runs[0]} for part, runs in found.items()
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    print(f"\n{options.texts} texts; {device}; medians of {options.repeats}")
    print(f"\n{'':56}texts/s  ratio     p50     p99  memory")
    for part, one in report.items():
        base = report.get("one-pass" if part == "server" else "stock", {}).get("texts_a_second")
        ratio = f"{one['texts_a_second'] / base:.2f}" if base else "-"
        times = f"{one['p50']:6.1f}  {one['p99']:6.1f}"
        print(f"{PARTS[part]:56}{one['texts_a_second']:7.1f}  {ratio:>5}  {times}  {one['memory'] / 2**30:.1f} GB")
    if lost := sum(run.get("lost", 0) for run in found.get("server", [])):
        print(f"\nThe server left {lost:.0f} texts without an answer")
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()

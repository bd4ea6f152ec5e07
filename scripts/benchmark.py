"""Speed of training, side by side with a stock transformers Trainer, in one run on the same rows.

    scripts/benchmark --data PATH              # about ten minutes on two cores
    scripts/benchmark --data PATH --only packed-32 packed-32-bf16
    scripts/benchmark --data PATH --only padded-32 compiled-32     # compiling takes many minutes, so only if asked for
    scripts/benchmark --data PATH --random bert-base       # another size of encoder, with random weights

Four tasks on rows of three datasets (EWT with NER and POS, SST-2, AG News) in random order. Ours learns all four in
one run; the stock Trainer, which knows one task, trains four models one after the other on the rows of each. Each
line is measured in a process of its own.

- tokens/s: useful tokens a second: special tokens counted, padding not
- ratio: to the stock Trainer with its default collator
- peak: the share of what a product of two large square matrices reaches, in the same number format and process
- padding: the share of the tokens that go through the encoder
- waiting: the share of the time in which training waits for data (with no loader workers: makes it)
- memory: the most that the process held
"""

import argparse
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from torch import nn
from transformers import AutoModel, BertConfig, ModernBertConfig, PreTrainedConfig, PreTrainedTokenizerBase

from nlp_mtl import Recipe
from nlp_mtl.build import steps, trainer_arguments
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.data.encoded_splits import label_column
from nlp_mtl.data.steps import StepBatches
from nlp_mtl.metrics import Scores
from nlp_mtl.models.encoder import load_encoder, load_tokenizer
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.tasks import Task
from nlp_mtl.training import trainer
from nlp_mtl.training.balancing import Balancer
from nlp_mtl.training.loader import loaded_steps

PARTS = {
    "padded-32": ("padded", 32, "no"),
    "padded-256": ("padded", 256, "no"),
    "compiled-32": ("compiled", 32, "no"),
    "compiled-256": ("compiled", 256, "no"),
    "packed-32": ("packed", 32, "no"),
    "packed-64": ("packed", 64, "no"),
    "packed-256": ("packed", 256, "no"),
    "packed-32-bf16": ("packed", 32, "bf16"),
    "packed-256-bf16": ("packed", 256, "bf16"),
    "packed-1024-bf16": ("packed", 1024, "bf16"),
    "stock": ("random", 32, "no"),
    "stock-by-length": ("group_by_length", 32, "no"),
    "stock-bf16": ("random", 32, "bf16"),
}
"""Layout (or compiled: padded to a few lengths), or the stock Trainer's sampling strategy; rows in a step; format."""

Measured = dict[str, float]

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "ewt_sst2_agnews.yaml"


def matrix_peak(mixed_precision: str, seconds: float = 2.0) -> float:
    """Multiply-adds x 2 a second of a matrix product."""
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    kind = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
    a, b = (torch.rand(size, size, device=device).to(kind) for _ in range(2))
    (a @ b).sum().item()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(5):
            c = a @ b
        c[0, 0].item()
        count += 5
    return 2 * size**3 * count / (time.perf_counter() - start)


def operations_a_token(encoder: nn.Module) -> int:
    """Operations of forward and backward: 6 for each weight of a matrix that a token passes (attention not counted)."""
    return 6 * sum(m.weight.numel() for m in encoder.modules() if isinstance(m, nn.Linear))


def rows_for(prepared: Prepared, wanted: int) -> Prepared:
    """The same share of every training split, ``wanted`` rows in all."""
    total = sum(len(splits["train"]) for splits in prepared.encoded.values())
    encoded = {}
    for name, splits in prepared.encoded.items():
        whole = splits["train"]
        count = round(len(whole) * wanted / total)
        chosen = np.sort(np.random.default_rng(0).permutation(len(whole))[:count])
        part = type(whole)(
            whole.source.take(chosen),
            whole.rows.select(chosen),
            whole.tasks,
        )
        encoded[name] = {"train": part}
    return replace(prepared, encoded=encoded)


class Watched:
    """Steps as training asks for them: how long it waits for each, and what share of their tokens is padding."""

    def __init__(self) -> None:
        self.seconds, self.useful, self.computed = 0.0, 0, 0

    def __call__(self, *arguments: Any) -> Iterator[StepBatches]:
        made = loaded_steps(*arguments)
        while True:
            start = time.perf_counter()
            batches = next(made, None)
            self.seconds += time.perf_counter() - start
            if batches is None:
                return
            self.useful += batches.num_tokens
            self.computed += sum(batch.inputs["input_ids"].numel() for batch in batches.micro_batches)
            yield batches


def ours(recipe: Recipe, prepared: Prepared, layout: str, batch_size: int, precision: str, folder: Path) -> Measured:
    """One epoch of our training loop: every row once, as the stock Trainer has them."""
    once = {"batch_size": batch_size, "num_epochs": 1, "ema_decay": 0, "layer_decay": 1, "selection_weights": {}}
    compiled = layout == "compiled"
    layout = "padded" if compiled else layout
    once |= {"layout": layout, "mixed_precision": precision, "compile": compiled}
    changes = {"sampling": {}, "training": recipe.training.model_dump() | once, "output_dir": str(folder)}
    recipe = Recipe.from_dict(recipe.to_dict() | changes)
    accelerator = Accelerator(mixed_precision="no")
    data = steps(recipe, prepared, device=accelerator.device.type)
    trainer.loaded_steps = watched = Watched()
    model = from_encoder(load_encoder(recipe.encoder), prepared.tasks, max_length=prepared.framing.max_length)
    data.packed = model.packs(layout)
    folder.mkdir(parents=True)
    ends: list[float] = []  # the last step is done when the model is evaluated; saving it does not count

    def evaluate(_: MultiTaskModel) -> tuple[dict[str, Scores], None]:
        ends.append(time.perf_counter())
        return {}, None

    start = time.perf_counter()
    trainer.train(
        model, data, prepared.tasks, evaluate, Balancer(prepared.tasks, device=accelerator.device),
        accelerator=accelerator, output_dir=folder,
        **trainer_arguments(recipe, prepared) | {"eval_every": None},
    )  # fmt: skip
    seconds = ends[-1] - start
    return {"seconds": seconds, "waiting": watched.seconds / seconds, "padding": 1 - watched.useful / watched.computed}


def stock(encoder: str, prepared: Prepared, task: Task, folder: Path, strategy: str, precision: str) -> float:
    """Seconds for one epoch of a stock Trainer on the rows of one task."""
    split = next(splits["train"] for splits in prepared.encoded.values() if task.name in splits["train"].tasks)
    framing, is_tokens = prepared.framing, task.type == "token-classification"

    def to_stock(row: dict[str, list[int]]) -> dict[str, object]:
        pieces, labels = row["pieces"][: framing.capacity], row[label_column(task.name)]
        if is_tokens:
            spread = [-100] * len(pieces)
            for start, label in zip(row["starts"], labels, strict=True):
                if start < len(pieces):
                    spread[start] = label
            found: object = [-100] * len(framing.prefix) + spread + [-100] * len(framing.suffix)
        else:
            found = labels[0]
        ids = framing.prefix + pieces + framing.suffix
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": found}

    rows = split.rows.map(to_stock, remove_columns=split.rows.column_names)
    auto = (
        transformers.AutoModelForTokenClassification if is_tokens else transformers.AutoModelForSequenceClassification
    )
    model = auto.from_pretrained(encoder, num_labels=len(task.labels), dtype=torch.float32)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=32, num_train_epochs=1, learning_rate=2e-4,
        train_sampling_strategy=strategy, bf16=precision == "bf16", use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    # The Trainer's default collator does not pad the labels of tokens; this is the stock one that does.
    collator = transformers.DataCollatorForTokenClassification(prepared.tokenizer) if is_tokens else None
    stock_trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, processing_class=prepared.tokenizer, data_collator=collator
    )
    stock_trainer.remove_callback(transformers.PrinterCallback)
    start = time.perf_counter()
    stock_trainer.train()
    return time.perf_counter() - start


def useful_tokens(prepared: Prepared, task: str | None = None) -> int:
    """Tokens of the rows (that a task labels), special tokens counted, padding not."""
    specials = len(prepared.framing.prefix) + len(prepared.framing.suffix)
    splits = [s["train"] for s in prepared.encoded.values() if task is None or task in s["train"].tasks]
    return sum(int((split.lengths + specials).sum()) for split in splits)


def random_encoder(size: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    """An encoder of a usual size with random weights: speed does not depend on what they are."""
    configs: dict[str, PreTrainedConfig] = {"bert-base": BertConfig(), "modernbert-base": ModernBertConfig()}
    AutoModel.from_config(configs[size], dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=os.environ.get("NLP_MTL_DATA", "../shared/data"), help="the folder of the corpora"
    )
    parser.add_argument("--encoder", help="another encoder than the recipe's")
    parser.add_argument("--random", choices=["bert-base", "modernbert-base"], help="one with random weights")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--max-tokens", type=int, help="the most tokens in a micro-batch, instead of the recipe's")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches ahead")
    left_out = ("compiled-32", "compiled-256", "packed-1024-bf16", "stock-bf16")
    quick = [part for part in PARTS if part not in left_out]
    parser.add_argument("--only", nargs="+", choices=PARTS, default=quick, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", action="store_true", help="print JSON as well")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # one part, in this process
    options = parser.parse_args()
    if not Path(options.data).is_dir():
        sys.exit(f"there is no folder {options.data}: give the corpora with --data")
    with tempfile.TemporaryDirectory() as folder:
        if options.here:
            print(json.dumps(measure(options, Path(folder))))
            return
        arguments = ["--data", options.data, "--rows", str(options.rows), "--workers", str(options.workers)]
        if options.random:
            tokenizer = load_tokenizer(options.encoder or Recipe.from_yaml(RECIPE).encoder)
            options.encoder = random_encoder(options.random, tokenizer, Path(folder))
        arguments += ["--encoder", options.encoder] if options.encoder else []
        arguments += ["--max-tokens", str(options.max_tokens)] if options.max_tokens else []
        reports = {part: in_a_process_of_its_own([*arguments, "--only", part]) for part in options.only}
    print_table(reports)
    if options.json:
        print(json.dumps(reports))


def in_a_process_of_its_own(arguments: list[str]) -> dict[str, Any]:
    """What :func:`measure` finds: what one part does to its process is its own."""
    command = [sys.executable, __file__, *arguments, "--here"]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        sys.exit(found.returncode)
    report: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    print(f"{report['title']}: {report['tokens_a_second']:,.0f} tokens/s", flush=True)
    return report


def print_table(reports: dict[str, dict[str, Any]]) -> None:
    """A line a part."""
    first = next(iter(reports.values()))
    print(f"\n{first['rows']}, {first['tokens']:,} tokens; {first['device']}; matrix peak, GFLOP/s: ", end="")
    peaks = {report["precision"]: report["matrix_peak"] / 1e9 for report in reports.values()}
    print(", ".join(f"{peak:,.0f} ({'float32' if kind == 'no' else kind})" for kind, peak in peaks.items()))
    base = reports.get("stock", {}).get("tokens_a_second")
    print(f"\n{'':56}tokens/s  ratio  peak  padding  waiting  memory")
    for report in reports.values():
        speed = report["tokens_a_second"]
        ratio = f"{speed / base:.2f}" if base else "-"
        share = speed * report["operations_a_token"] / report["matrix_peak"]
        rest = [f"{report[key]:.1%}" if key in report else "-" for key in ("padding", "waiting")]
        memory = f"{report['memory'] / 2**30:.1f} GB"
        print(f"{report['title']:56}{speed:8,.0f}  {ratio:>5}  {share:4.0%}  {rest[0]:>7}  {rest[1]:>7}  {memory}")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One part, in this process."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)

    (part,) = options.only
    kind, batch_size, precision = PARTS[part]
    encoder = [f"encoder={options.encoder}"] if options.encoder else []
    most = [f"training.max_tokens={options.max_tokens}"] if options.max_tokens else []
    most.append(f"training.num_workers={options.workers}")
    recipe = Recipe.from_yaml(RECIPE, [f"data_dir={options.data}", *encoder, *most])
    prepared = rows_for(prepare(recipe, splits=["train"]), options.rows)
    loaded = load_encoder(recipe.encoder)
    device = f"{torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    report: dict[str, Any] = {
        "rows": ", ".join(f"{len(splits['train'])} rows of {name}" for name, splits in prepared.encoded.items()),
        "tokens": useful_tokens(prepared),
        "device": device,
        "precision": precision,
        "matrix_peak": matrix_peak(precision),
        "operations_a_token": operations_a_token(loaded),
    }
    name, is_bf16 = loaded.name_or_path, precision == "bf16"
    del loaded  # not of what is measured
    if part.startswith("stock"):
        count = sum(useful_tokens(prepared, task.name) for task in prepared.tasks)
        names = {"random": "default collator", "group_by_length": "group_by_length"}
        report["title"] = f"stock Trainer, four runs of batch {batch_size}, {names[kind]}" + ", bf16" * is_bf16
        seconds = sum(stock(name, prepared, task, folder / task.name, kind, precision) for task in prepared.tasks)
    else:
        count = report["tokens"]
        report["title"] = f"ours, {kind}, batch_size {batch_size}" + ", bf16" * is_bf16
        # What is compiled in the first run serves the second: it takes all rows, so that all lengths come.
        warm = rows_for(prepared, 128) if kind != "compiled" else prepared
        warm_seconds = ours(recipe, warm, kind, batch_size, precision, folder / "warm")["seconds"]
        measured = ours(recipe, prepared, kind, batch_size, precision, folder / "measured")
        seconds = measured.pop("seconds")
        if kind == "compiled":
            report["title"] += f" ({warm_seconds - seconds:.0f} s to compile)"
        report |= measured
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    memory = on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return report | {"tokens_a_second": count / seconds, "memory": memory}


if __name__ == "__main__":
    main()

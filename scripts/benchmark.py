"""Speed of training, side by side with a stock transformers Trainer, in one run on the same rows.

    scripts/benchmark --data PATH              # about ten minutes on two cores
    scripts/benchmark --data PATH --rows 2000 --only ours

Four tasks on rows of three datasets (EWT with NER and POS, SST-2, AG News) in random order. Ours learns all four in
one run; the stock Trainer, which knows one task, trains four models one after the other on the rows of each. The
figure is useful tokens a second: special tokens counted, padding not. The matrix peak is that of a float32 product of
two square matrices in the process of ours.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import numpy as np
import torch
import transformers
from accelerate import Accelerator
from torch import nn

from nlp_mtl import Recipe
from nlp_mtl.build import Prepared, packs, prepare, steps, trainer_arguments
from nlp_mtl.data.encoding import label_column
from nlp_mtl.metrics import Scores
from nlp_mtl.models.encoder import load_encoder
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.tasks import Task
from nlp_mtl.training.trainer import train

PARTS = ("ours", "stock")
RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "ewt_sst2_agnews.yaml"


def matrix_peak(size: int = 2048, seconds: float = 3.0) -> float:
    """Multiply-adds x 2 a second of a float32 matrix product."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    a @ b
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        a @ b
        count += 1
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
    return Prepared(prepared.tasks, prepared.loaded, encoded, prepared.tokenizer, prepared.framing)


def ours(recipe: Recipe, prepared: Prepared, batch_size: int, folder: Path) -> float:
    """Seconds for one epoch of our training loop: every row once, as the stock Trainer has them."""
    once = {"batch_size": batch_size, "num_epochs": 1, "ema_decay": 0, "layer_decay": 1, "selection_weights": {}}
    changes = {"sampling": {}, "training": recipe.training.model_dump() | once, "output_dir": str(folder)}
    recipe = Recipe.from_dict(recipe.to_dict() | changes)
    accelerator = Accelerator(mixed_precision="no")
    data = steps(recipe, prepared, device=accelerator.device.type)
    model = from_encoder(load_encoder(recipe.encoder), prepared.tasks, max_length=prepared.framing.max_length)
    data.packed = packs(model, recipe.training.layout)
    folder.mkdir(parents=True)
    ends: list[float] = []  # the last step is done when the model is evaluated; saving it does not count

    def evaluate(_: MultiTaskModel) -> tuple[dict[str, Scores], None]:
        ends.append(time.perf_counter())
        return {}, None

    start = time.perf_counter()
    train(
        model, data, prepared.tasks, evaluate,
        accelerator=accelerator, output_dir=folder,
        **trainer_arguments(recipe, prepared) | {"eval_every": None},
    )  # fmt: skip
    return ends[-1] - start


def stock(encoder: str, prepared: Prepared, task: Task, folder: Path, strategy: str, mixed_precision: str) -> float:
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
        train_sampling_strategy=strategy, bf16=mixed_precision == "bf16",
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    # The Trainer's default collator does not pad the labels of tokens; this is the stock one that does.
    collator = transformers.DataCollatorForTokenClassification(prepared.tokenizer) if is_tokens else None
    trainer = transformers.Trainer(
        model, arguments, train_dataset=rows, processing_class=prepared.tokenizer, data_collator=collator
    )
    trainer.remove_callback(transformers.PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def useful_tokens(prepared: Prepared, task: str | None = None) -> int:
    """Tokens of the rows (that a task labels), special tokens counted, padding not."""
    specials = len(prepared.framing.prefix) + len(prepared.framing.suffix)
    splits = [s["train"] for s in prepared.encoded.values() if task is None or task in s["train"].tasks]
    return sum(int((split.lengths + specials).sum()) for split in splits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=os.environ.get("NLP_MTL_DATA", "../shared/data"), help="the folder of the corpora"
    )
    parser.add_argument("--encoder", help="another encoder than the recipe's")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16"])
    parser.add_argument("--only", choices=PARTS, help="leave the other out")
    parser.add_argument("--json", action="store_true", help="print JSON as well")
    options = parser.parse_args()
    if not Path(options.data).is_dir():
        sys.exit(f"there is no folder {options.data}: give the corpora with --data")
    report = measure(options) if options.only else both()
    if options.only is None:
        print_table(report)
    if options.json:
        print(json.dumps(report))


def both() -> dict[str, Any]:
    """Both parts, one after the other, each in a process of its own: what one does to its process is its own."""
    reports: list[dict[str, Any]] = []
    for part in PARTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", part, "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if not line.startswith("{"):
                    print(line, end="", flush=True)
        if process.returncode:
            sys.exit(process.returncode)
        reports.append(json.loads(lines[-1]))
    speeds = {name: speed for report in reports for name, speed in report["tokens_a_second"].items()}
    return {**reports[0], "tokens_a_second": speeds}


def print_table(report: dict[str, Any]) -> None:
    """Speeds, each beside that of the first stock run, and its share of the matrix peak."""
    speeds = report["tokens_a_second"]
    first = next(speed for name, speed in speeds.items() if name.startswith("stock"))
    print(f"\n{'':58} tokens/s  ratio  share of peak")
    for name, speed in speeds.items():
        share = speed * report["operations_a_token"] / report["matrix_peak"]
        print(f"{name:58} {speed:8.0f}  {speed / first:5.2f}  {share:12.0%}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One part, in this process."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.disable(logging.WARNING)

    overrides = [f"data_dir={options.data}", f"training.mixed_precision='{options.mixed_precision}'"]
    recipe = Recipe.from_yaml(RECIPE, overrides + [f"encoder={options.encoder}"] * bool(options.encoder))
    prepared = rows_for(prepare(recipe, splits=["train"]), options.rows)
    tokens = useful_tokens(prepared)
    counts = {name: len(splits["train"]) for name, splits in prepared.encoded.items()}
    encoder = load_encoder(recipe.encoder)
    peak, operations = matrix_peak(), operations_a_token(encoder)
    print(
        f"{sum(counts.values())} rows {counts}, {tokens} tokens; {torch.get_num_threads()} threads; "
        f"matrix peak {peak / 1e9:.0f} GFLOP/s"
    )

    speeds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        _measure(recipe, prepared, Path(folder), options, encoder.name_or_path, tokens, speeds)
    return {"tokens_a_second": speeds, "matrix_peak": peak, "operations_a_token": operations, "rows": counts}


def _measure(
    recipe: Recipe,
    prepared: Prepared,
    folder: Path,
    options: argparse.Namespace,
    encoder: str,
    tokens: int,
    speeds: dict[str, float],
) -> None:
    def note(name: str, seconds: Callable[[], float], count: int) -> None:
        speeds[name] = count / seconds()
        print(f"  {name}: {speeds[name]:.0f} tokens/s", flush=True)

    if options.only == "ours":
        ours(recipe, rows_for(prepared, 128), 32, folder / "warm")
    for batch_size in (32, 64, 256) if options.only == "ours" else ():
        name = f"ours, padded, batch_size {batch_size}"
        note(name, lambda b=batch_size: ours(recipe, prepared, b, folder / f"ours-{b}"), tokens)
    stock_tokens = sum(useful_tokens(prepared, task.name) for task in prepared.tasks)
    strategies = {"random": "default collator", "group_by_length": "group_by_length"}
    for strategy, title in strategies.items() if options.only == "stock" else ():

        def run(strategy: str = strategy) -> float:
            return sum(
                stock(encoder, prepared, task, folder / f"{strategy}-{task.name}", strategy, options.mixed_precision)
                for task in prepared.tasks
            )

        note(f"stock Trainer, four runs of batch 32, {title}", run, stock_tokens)


if __name__ == "__main__":
    main()

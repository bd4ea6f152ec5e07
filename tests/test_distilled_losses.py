"""Losses of distilled runs against an oracle: each window by itself, unpadded, by torch's own losses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny import write_jsonl
from torch import Tensor
from torch.nn import functional
from typed_runs import values

from nlp_mtl import Recipe, train
from nlp_mtl.build import steps
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.build_distillation import taught
from nlp_mtl.data.batches import collate
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.encoding import encode_split
from nlp_mtl.data.items import Framing, frame, read_items, word_positions
from nlp_mtl.data.steps import StepDataset
from nlp_mtl.models.loading import load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.training.passes import summed_losses

COLUMNS = {"pos": "upos", "sentiment": "label", "tags": "tags", "rating": "rating", "same": "same", "close": "close"}
DATASETS = {"pos": "words", "same": "duo", "close": "duo"}
WEIGHT, TEMPERATURE = 0.3, 2.0


def rows_in(given: dict[str, Any], dataset: str, split: str = "train") -> list[dict[str, Any]]:
    file = Path(given["data_dir"]) / dataset / f"{split}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def with_pairs(given: dict[str, Any]) -> dict[str, Any]:
    """The recipe with two tasks of pairs more."""
    files = {split: f"duo/{split}.jsonl" for split in ("train", "validation", "test")}
    for split, name in files.items():
        texts = rows_in(given, "texts", split)
        pairs = [
            {"a": one["text"], "b": two["text"], "same": str(one["label"] == two["label"]), "close": float(place % 5)}
            for place, (one, two) in enumerate(zip(texts, texts[1:] + texts[:1], strict=True))
        ]
        write_jsonl(Path(given["data_dir"]) / name, pairs)
    given["datasets"]["duo"] = {"data_files": files, "text": "a", "text_pair": "b"}
    given["tasks"]["same"] = {"type": "text-classification", "dataset": "duo", "labels": "same"}
    given["tasks"]["close"] = {"type": "regression", "dataset": "duo", "labels": "close"}
    return given


def partly_labelled(given: dict[str, Any]) -> dict[str, Any]:
    """With long texts, and without some of the labels."""
    changed = {
        "texts": [
            row
            | {"text": row["text"] + " film tea" * (place % 4 * 5)}
            | ({"label": None} if place % 3 == 0 else {"tags": None} if place % 3 == 1 else {})
            | ({"rating": None} if place % 4 == 0 else {})
            for place, row in enumerate(rows_in(given, "texts"))
        ],
        "words": [
            {key: value * (3 if place % 3 == 0 else 1) for key, value in row.items()}
            | ({"upos": None} if place % 4 == 0 else {})
            for place, row in enumerate(rows_in(given, "words"))
        ],
        "duo": [row | ({"same": None} if place % 2 else {}) for place, row in enumerate(rows_in(given, "duo"))],
    }
    for name, rows in changed.items():
        write_jsonl(Path(given["data_dir"]) / name / "train.jsonl", rows)
    return given


def logits_of(model: MultiTaskModel, split: EncodedSplit, row: int, framing: Framing) -> dict[str, list[Tensor]]:
    """``{task: of each window}``; of words those that it answers."""
    found: dict[str, list[Tensor]] = {task: [] for task in COLUMNS}
    for item in read_items(split, [row], (), framing):
        with torch.no_grad():
            output = model(**collate([item], (), framing).inputs)
        for task, windows in found.items():
            is_words = task == "pos"
            windows.append(output[task][0][torch.tensor(word_positions(item, framing)) if is_words else ...])
    return found


def losses_of_an_item(
    task: str, logits: Tensor, teacher: Tensor, gold: Any, labels: tuple[str, ...], w: float
) -> float:
    """Of a word or a text."""
    if task in ("rating", "close"):
        divergence = (logits - teacher).square().sum()
        loss = 0.0 if gold is None else (logits[0] - gold) ** 2
    elif task == "tags":
        found, wanted = (torch.distributions.Bernoulli(logits=one / TEMPERATURE) for one in (logits, teacher))
        divergence = torch.distributions.kl_divergence(wanted, found).sum() * TEMPERATURE**2
        targets = torch.tensor([float(label in (gold or ())) for label in labels])
        loss = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    else:
        found, wanted = (torch.distributions.Categorical(logits=one / TEMPERATURE) for one in (logits, teacher))
        divergence = torch.distributions.kl_divergence(wanted, found) * TEMPERATURE**2
        if gold is None:
            return float(divergence)
        smoothing, weight = (0.1, 1.0) if task == "pos" else (0.0, 3.0 if gold == "positive" else 1.0)
        target = torch.tensor(labels.index(gold))
        loss = functional.cross_entropy(logits, target, label_smoothing=smoothing) * weight
    return float(divergence if gold is None else w * divergence + (1 - w) * loss)


def oracle(prepared: Prepared, data: StepDataset, step: int, student: MultiTaskModel, run: Path) -> dict[str, float]:
    teacher, tokenizer = load_model(run)
    framing = frame(tokenizer, teacher.config.max_length, teacher.config.window_overlap)
    labels = {task.name: task.labels for task in data.tasks}
    theirs = {task.name: task.labels for task in teacher.config.task_list()}
    names = list(prepared.loaded)
    read = {name: encode_split(prepared.loaded[name], "train", [], tokenizer, "unicode") for name in names}
    sums, counts = dict.fromkeys(COLUMNS, 0.0), dict.fromkeys(COLUMNS, 0)
    w = WEIGHT * (1 - step / len(data))
    for place, number in zip(data.sampler[step].datasets, data.sampler[step].rows, strict=True):
        name, row = names[place], int(number)
        raw = prepared.loaded[name].splits["train"].rows[row]
        mine, said = (
            logits_of(model, read[name], row, how) for model, how in ((student, data.framing), (teacher, framing))
        )
        for task, column in COLUMNS.items():
            if (name == "duo") != (task in ("same", "close")):
                continue
            order = [theirs[task].index(label) for label in labels[task]]
            gold = raw.get(column) if name == DATASETS.get(task, "texts") else None
            if task == "pos":
                items = zip(torch.cat(mine[task]), torch.cat(said[task])[:, order], strict=True)
                golds = gold or [None] * sum(map(len, mine[task]))
                for (one, other), label in zip(items, golds, strict=True):
                    sums[task] += losses_of_an_item(task, one, other, label, labels[task], w)
                    counts[task] += 1
                continue
            mean = torch.stack(said[task]).mean(0)[order]
            found = [losses_of_an_item(task, one, mean, gold, labels[task], w) for one in mine[task]]
            sums[task] += sum(found) / len(found)
            counts[task] += 1
    return {task: sums[task] / max(counts[task], 1) for task in COLUMNS}


def test_losses_of_all_types_windows_pairs_and_missing_labels_are_those_of_each_row_alone(tmp_path: Path) -> None:
    guide = with_pairs(values(tmp_path / "teacher", num_epochs=2)) | {"max_length": 32, "window_overlap": 8}
    train(Recipe.from_dict(guide))
    given = partly_labelled(with_pairs(values(tmp_path / "student"))) | {"max_length": 16, "window_overlap": 4}
    given["tasks"]["sentiment"] |= {"label_names": ["positive", "negative"], "class_weights": {"positive": 3.0}}
    given["tasks"]["pos"]["label_smoothing"] = 0.1
    given["distillation"] = {"teachers": dict.fromkeys(COLUMNS, guide["output_dir"]), "rows": "all"}
    given["distillation"] |= {"weight": WEIGHT, "temperature": TEMPERATURE}
    student, _ = load_model(guide["output_dir"])
    student.packs("auto")
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    expected = None
    for packed in (False, True):
        recipe = Recipe.from_dict(given)
        prepared = taught(recipe, prepare(recipe), Accelerator(cpu=True))
        data = steps(recipe, prepared, packed=packed)
        expected = expected or oracle(prepared, data, 4, student, Path(guide["output_dir"]))
        batches, found = data[4], dict.fromkeys(COLUMNS, 0.0)
        with torch.no_grad():
            for micro_batch in batches.micro_batches:
                for task, loss in summed_losses(student, micro_batch, Accelerator(cpu=True), "no").items():
                    found[task] += float(loss) / max(batches.counts[task], 1)
        assert found == pytest.approx(expected, abs=1e-5)

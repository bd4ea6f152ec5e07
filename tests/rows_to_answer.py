"""Rows of a file that are answered into another: what the tests of that share."""

import json
from pathlib import Path
from typing import Any

from stock_models import tiny_model
from tiny import tokenizer

from nlp_mtl.inference.predictor import Predictor

NLP = Predictor(tiny_model(), tokenizer())
TEXTS = [f"anna loves rome {'and good tea ' * (n % 4)}. {n}" for n in range(10)]
TEXTS[3], TEXTS[7] = "", "é 👍🏽 \u2028 x\x85y"


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def written_texts(folder: Path) -> Path:
    return write_lines(folder / "texts.jsonl", [{"id": n, "text": text} for n, text in enumerate(TEXTS)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]

"""Shards of numbered rows in every format, and streams of them."""

import csv
import gzip
import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nlp_mtl.data.loading import LoadedDataset, load_splits
from nlp_mtl.data.streaming import Stream

SHARDS = (23, 9, 1, 40)
TOTAL = sum(SHARDS)
LABELS = ("no", "yes")


def shard_rows() -> list[list[dict[str, Any]]]:
    """The rows of each shard; texts are the numbers of rows."""
    starts = [0, *accumulate(SHARDS)]
    return [
        [{"text": f"row {start + n}", "label": LABELS[(start + n) % 2]} for n in range(size)]
        for start, size in zip(starts, SHARDS, strict=False)
    ]


def write_shards(folder: Path, form: str = "jsonl") -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for number, rows in enumerate(shard_rows()):
        file = folder / f"part-{number}.{form}"
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        if form == "jsonl":
            file.write_text(lines)
        elif form == "jsonl.gz":
            file.write_bytes(gzip.compress(lines.encode()))
        elif form == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=7)
        elif form in ("csv", "tsv"):
            with file.open("w", newline="") as opened:
                writer = csv.DictWriter(opened, ["text", "label"], delimiter="," if form == "csv" else "\t")
                writer.writeheader()
                writer.writerows(rows)
        elif form == "conll":
            file.write_text("".join(f"{row['text'].replace(' ', '')} {row['label']}\n\n" for row in rows))
        else:  # conllu
            words = [(row["text"].replace(" ", ""), row["label"]) for row in rows]
            file.write_text(
                "".join(f"1-2\tx{'	_' * 8}\n1\t{word}\t_\t{label}{'	_' * 6}\n\n" for word, label in words)
            )


def loaded(folder: Path, form: str = "jsonl", **options: Any) -> LoadedDataset:
    column = {"conll": "tokens", "conllu": "form"}.get(form, "text")
    of_form: dict[str, Any] = {"columns": ["tokens", "label"], "path": "conll"} if form == "conll" else {}
    return load_splits(
        "demo",
        **{
            "data_files": f"part-*.{form}", "data_dir": str(folder), "text" if column == "text" else "tokens": column,
            "label_columns": ["upos" if form == "conllu" else "label"], "streaming": True, "buffer_size": 16,
            "validation_fraction": 0.1, "test_fraction": 0.1, "seed": 3, **of_form, **options,
        },
    )  # fmt: skip


def stream(folder: Path, form: str = "jsonl", **options: Any) -> Stream:
    found = loaded(folder, form, **options).stream
    assert found is not None
    return found


def numbers(found: dict[str, list[Any]]) -> list[int]:
    texts = [value[0] if isinstance(value, list) else value for value in next(iter(found.values()))]
    return [int(text.removeprefix("row").strip()) for text in texts]

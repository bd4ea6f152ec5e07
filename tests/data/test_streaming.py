"""A stream gives every row once a pass, and each by its position, from wherever it is read."""

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from nlp_mtl.data.loading import LoadedDataset, load_splits
from nlp_mtl.data.streaming import Cursor, Stream
from nlp_mtl.errors import DataError

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


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "parquet", "csv", "tsv", "conll", "conllu"])
def test_each_pass_over_files_of_any_format_holds_every_row_once_with_its_label(tmp_path: Path, form: str) -> None:
    write_shards(tmp_path, form)
    found = stream(tmp_path, form).batch(range(3 * TOTAL))
    order = numbers(found)
    for start in range(0, 3 * TOTAL, TOTAL):
        assert sorted(order[start : start + TOTAL]) == list(range(TOTAL))
    labels = [value[0] if isinstance(value, list) else value for value in list(found.values())[1]]
    assert labels == [LABELS[number % 2] for number in order]
    assert [len(value) for value in found.values()] == [3 * TOTAL] * 2


def test_rows_are_mixed_and_shards_come_in_another_order_each_pass(shards: Path) -> None:
    order = numbers(stream(shards).batch(range(4 * TOTAL)))
    passes = [order[start : start + TOTAL] for start in range(0, 4 * TOTAL, TOTAL)]
    assert len({tuple(one) for one in passes}) == 4
    assert all(np.corrcoef(range(TOTAL), one)[0, 1] < 0.98 for one in passes)
    starts = {one[0] // 23 for one in passes}  # the first shard holds the rows up to 22
    assert len(starts) > 1


def test_another_seed_gives_another_order(shards: Path) -> None:
    one, two = (stream(shards, seed=seed).batch(range(TOTAL)) for seed in (1, 2))
    assert one != two
    assert stream(shards, seed=1).batch(range(TOTAL)) == one


@settings(max_examples=40, deadline=None)
@given(
    buffer_size=st.integers(1, 100),
    reads=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), min_size=1, max_size=6),
    keep=st.integers(0, 5),
)
def test_a_row_is_a_function_of_its_position_however_it_is_read(
    shards: Path, buffer_size: int, reads: list[tuple[int, int]], keep: int
) -> None:
    whole = numbers(stream(shards, buffer_size=buffer_size).batch(range(360)))
    jumping = stream(shards, buffer_size=buffer_size)
    for place, (start, count) in enumerate(reads):
        assert numbers(jumping.batch(range(start, start + count))) == whole[start : start + count]
        if place == keep:  # as a resumed run does, by way of a checkpoint
            cursor = Cursor(*json.loads(json.dumps(jumping.cursor())))
            assert cursor.start <= start + count
            jumping = stream(shards, buffer_size=buffer_size)
            jumping.remember(cursor)


def test_what_lies_before_a_cursor_is_not_read_again(tmp_path: Path) -> None:
    write_shards(tmp_path, "jsonl")
    first = stream(tmp_path, buffer_size=8)
    whole = first.batch(range(TOTAL))
    texts = whole["text"]
    later = stream(tmp_path, buffer_size=8)
    later.remember(first.cursor())
    read = Counter()
    opened = later._opened

    def noted(cursor: Cursor) -> Any:
        rows, tables = opened(cursor)

        def counted() -> Any:
            for table in tables:
                read["rows"] += len(table)
                yield table

        return rows, counted()

    later._opened = noted  # type: ignore[method-assign]
    assert later.batch([TOTAL - 1])["text"] == texts[-1:]
    assert read["rows"] <= 8


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_loader_workers_read_what_one_process_reads(tmp_path: Path, form: str) -> None:
    """`datasets` would deal the shards to the workers."""
    write_shards(tmp_path, form)
    whole = numbers(stream(tmp_path, form).batch(range(120)))

    class Tens:
        def __init__(self) -> None:
            self.stream = stream(tmp_path, form)

        def __getitem__(self, place: int) -> list[int]:
            return numbers(self.stream.batch(range(10 * place, 10 * place + 10)))

    tens = Tens()
    tens[5]  # the process that forks has read, too
    found = list(DataLoader(tens, batch_size=None, sampler=range(12), num_workers=2))  # type: ignore[arg-type]
    assert [number for ten in found for number in ten] == whole


def test_data_that_changed_since_a_cursor_was_made_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path)
    first = stream(tmp_path)
    first.batch(range(40))
    for file in tmp_path.glob("*.jsonl"):
        file.write_text(file.read_text().replace("row ", "line "))
    changed = stream(tmp_path)
    changed.remember(first.cursor())
    with pytest.raises(DataError, match=r"dataset `demo`, split train \(streamed\): the data has changed since"):
        changed.batch([40])


def test_a_row_is_told_by_its_place_in_the_pass_and_how_its_text_begins(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text('{"text": "%s", "label": "no"}\n' % ("word " * 50))
    one = stream(tmp_path)
    beginning = "word word word word word word word word word word word word ..."
    assert one.where(2) == f"dataset `demo`, split train (streamed), row 0 of pass 2 (counted from 0): {beginning!r}"


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ('{"text": "broken\n', r"part-9.jsonl: line 1 is not valid JSON"),
        (
            '{"text": "caf\udce9", "label": "no"}\n',
            r"cannot be read any further, 192 or more rows.*line 1 is not text in",
        ),
        ('{"txt": "a", "label": "no"}\n', r"a file has the columns `txt`, `label`.* those before it `text`, `label`"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_or_place(tmp_path: Path, last: str, told: str) -> None:
    (tmp_path / "part-0.jsonl").write_text('{"text": "a", "label": "no"}\n' * 200)
    (tmp_path / "part-9.jsonl").write_text(last, errors="surrogateescape")
    one = stream(tmp_path)
    with pytest.raises(DataError, match=rf"dataset `demo`, split train .*{told}"):
        one.batch(range(600))


def test_an_empty_file_and_files_of_two_formats_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "part-9.jsonl").write_text("")
    with pytest.raises(DataError, match=r"part-9.jsonl is empty"):
        loaded(tmp_path)
    (tmp_path / "part-9.jsonl").unlink()
    write_shards(tmp_path, "csv")
    with pytest.raises(DataError, match=r"files of one format; these are `csv`, `json`"):
        loaded(tmp_path, data_files="part-*")


def test_splits_for_evaluation_are_read_whole_and_none_is_held_out(shards: Path) -> None:
    files = {"train": "part-*.jsonl", "validation": ["part-0.jsonl", "part-3.jsonl"]}
    found = loaded(shards, data_files=files, max_rows={"validation": 30})
    assert set(found.splits) == {"validation"}
    assert list(found.splits["validation"].rows["text"]) == [f"row {n}" for n in [*range(23), *range(33, 40)]]
    assert any("no test split; none is held out of a stream" in note for note in found.notes)


def test_max_rows_takes_the_first_rows_of_a_stream(shards: Path) -> None:
    found = stream(shards, max_rows={"train": 30}).batch(range(60))
    assert sorted(numbers(found)) == sorted([*range(30)] * 2)


def test_labels_of_a_stream_have_to_be_said(tmp_path: Path) -> None:
    from nlp_mtl.data.labels import resolve_task

    write_shards(tmp_path)
    found = {"demo": loaded(tmp_path)}
    with pytest.raises(DataError, match=r"`demo` is streamed, so the labels in `label` cannot be collected"):
        resolve_task("t", "text-classification", {"demo": "label"}, found)
    task, readers = resolve_task(
        "t", "text-classification", {"demo": "label"}, found, label_names=["A", "yes"], label_map={"no": "A"}
    )
    assert task.labels == ("A", "yes")
    assert readers["demo"]("no") == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stream(tmp_path: Path) -> None:
    """100 times the rows of a block are read, in a process of their own."""
    script = """
import json, resource, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2]]
from test_streaming import stream
one = stream(Path(sys.argv[1]), buffer_size=500)
one.batch(range(2_000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for start in range(2_000, 200_000, 1_000):
    one.batch(range(start, start + 1_000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    for number in range(4):
        row = json.dumps({"text": f"row {number} " + "x" * 500, "label": "no"}) + "\n"
        (tmp_path / f"part-{number}.jsonl").write_text(row * 10_000)
    grown = subprocess.run(
        [sys.executable, "-c", script, tmp_path, str(Path(__file__).parent)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert int(grown) < 40_000, "kilobytes; the rows read are 100 MB"

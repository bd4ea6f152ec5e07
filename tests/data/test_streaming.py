"""A stream gives every row once a pass, and each by its position, from wherever it is read."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shards import LABELS, TOTAL, loaded, numbers, stream, write_shards
from torch.utils.data import DataLoader

from nlp_mtl.data.labels import resolve_task
from nlp_mtl.data.streaming import Cursor
from nlp_mtl.errors import DataError


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


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_files_that_lie_before_a_cursor_are_not_read_again(tmp_path: Path, form: str) -> None:
    write_shards(tmp_path, form)
    first = stream(tmp_path, form, buffer_size=8)
    texts = first.batch(range(TOTAL))["text"]
    last = texts[-1]
    later = stream(tmp_path, form, buffer_size=8)
    later.remember(first.cursor())
    for file in tmp_path.iterdir():
        if f"{last}".encode() not in file.read_bytes():
            file.write_bytes(b"\x00 spoiled \xff")
    if form != "parquet":  # of which `datasets` may look into the file before
        assert later.batch([TOTAL - 1])["text"] == [last]
    assert later.cursor().start == first.cursor().start


def test_a_cursor_that_was_told_is_kept_until_rows_behind_it_are_read(shards: Path) -> None:
    first = stream(shards)
    first.batch(range(60))
    later = stream(shards)
    later.remember(first.cursor())
    assert later.cursor() == first.cursor()


def test_only_so_many_cursors_are_kept(shards: Path) -> None:
    one = stream(shards, buffer_size=1)
    whole = one.batch(range(1000))
    assert len(one._cursors) <= 257
    assert one.batch(range(1000)) == whole


def test_a_stream_can_go_to_other_processes_also_while_it_is_read(shards: Path) -> None:
    one = stream(shards)
    whole = one.batch(range(200))
    one.batch(range(50))
    assert pickle.loads(pickle.dumps(one)).batch(range(200)) == whole


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


def test_rows_that_changed_since_a_cursor_was_made_are_told_and_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shards(tmp_path)
    first = stream(tmp_path)
    first.batch(range(40))
    for file in tmp_path.glob("*.jsonl"):
        file.write_text(file.read_text().replace("row ", "line "))
    changed = stream(tmp_path)
    changed.remember(first.cursor())
    assert changed.batch([40])["text"][0].startswith("line ")
    assert (
        "dataset `demo`, split train (streamed): the data has changed since the run read it, from row " in caplog.text
    )


def test_a_row_is_told_by_its_line_or_where_files_are_not_known_by_how_its_text_begins(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text(
        '{"text": "one", "label": "no"}\n\n{"text": "%s", "label": "no"}\n' % ("word " * 50)
    )
    one = stream(tmp_path)
    places = {one.where(position) for position in (4, 5)}
    title = "dataset `demo`, split train (streamed)"
    assert places == {f"{title}, line {line} of {tmp_path}/part-0.jsonl" for line in (1, 3)}
    pq.write_table(pa.table({"text": ["word " * 50], "label": ["no"]}), tmp_path / "part-0.parquet")
    beginning = "word word word word word word word word word word word word ..."
    where = stream(tmp_path, "parquet").where(2)
    assert where == f"{title}, row 0 of pass 2 (counted from 0): {beginning!r}"


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_files_that_came_or_went_make_another_stream(tmp_path: Path, form: str) -> None:
    write_shards(tmp_path, form)
    before = stream(tmp_path, form).digest()
    assert stream(tmp_path, form).digest() == before
    last = tmp_path / f"part-3.{form}"
    content = last.read_bytes()
    last.unlink()
    assert stream(tmp_path, form).digest() != before
    last.write_bytes(content)
    assert stream(tmp_path, form).digest() == before
    (tmp_path / f"part-2.{form}").rename(tmp_path / f"part-4.{form}")
    assert stream(tmp_path, form).digest() != before


def test_splits_for_evaluation_are_read_whole_and_none_is_held_out(shards: Path) -> None:
    files = {"train": "part-*.jsonl", "validation": ["part-0.jsonl", "part-3.jsonl"]}
    found = loaded(shards, data_files=files, max_rows={"validation": 30})
    assert set(found.splits) == {"validation"}
    texts = list(found.splits["validation"].rows["text"])
    assert len({*texts}) == 30
    assert {*texts} <= {f"row {n}" for n in [*range(23), *range(33, TOTAL)]}
    assert any("no test split; none is held out of a stream" in note for note in found.notes)


def test_max_rows_takes_the_first_rows_of_a_stream(shards: Path) -> None:
    found = stream(shards, max_rows={"train": 30}).batch(range(60))
    assert sorted(numbers(found)) == sorted([*range(30)] * 2)


def test_labels_of_a_stream_have_to_be_said(tmp_path: Path) -> None:
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
from shards import stream
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
        [sys.executable, "-c", script, tmp_path, str(Path(__file__).parents[1])],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert int(grown) < 40_000, "kilobytes; the rows read are 100 MB"

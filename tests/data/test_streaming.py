"""A stream gives every row once a pass, and each by its position, from wherever it is read."""

import csv
import gzip
import json
import pickle
import subprocess
import sys
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
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


GOOD = '{"text": "a", "label": "no"}\n'


@pytest.mark.parametrize(
    ("form", "last", "told"),
    [
        ("jsonl", GOOD + '{"text": "broken\n', r"cannot be read: line 2 is not valid JSON"),
        ("jsonl", GOOD + "[1, 2]\n", r"cannot be read: line 2 is not a JSON object: \[1, 2\]"),
        ("jsonl", GOOD + '{"text": "caf\udce9", "label": "no"}\n', r"is not text in UTF-8 somewhere behind line"),
        ("jsonl", '{"txt": "a", "label": "no"}\n', r"has no column `text`; it has `txt`, `label`. Did you mean `txt`"),
        ("jsonl", GOOD + '{"text": 7, "label": "no"}\n', r"line 2 of .*part-9.jsonl: `text` holds 7, no text"),
        ("csv", "text,label\na,no\nb,no,too many\n", r"cannot be read: line 3 has 3 fields, but there are 2 columns"),
        ("csv", "text,lable\na,no\n", r"has no column `label`; it has `text`, `lable`. Did you mean `lable`"),
        ("csv", 'text,label\n"a,no\n', r"cannot be read: it stops behind line \d: unexpected end of data"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_line(tmp_path: Path, form: str, last: str, told: str) -> None:
    (tmp_path / f"part-0.{form}").write_text(GOOD * 200 if form == "jsonl" else "text,label\n" + "a,no\n" * 200)
    (tmp_path / f"part-9.{form}").write_text(last, errors="surrogateescape")
    with pytest.raises(DataError, match=rf"dataset `demo`, split train.*part-9.{form}.*{told}|{told}"):
        stream(tmp_path, form).batch(range(600))


def test_a_value_of_another_type_among_the_first_rows_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text(GOOD * 4 + '{"text": 17, "label": "no"}\n' + GOOD)
    with pytest.raises(
        DataError, match=r"split train, line 5 of .*part-0.jsonl: the column `text` holds 17, and 'a' before"
    ):
        stream(tmp_path)


def test_a_compressed_file_that_was_cut_is_told(tmp_path: Path) -> None:
    whole = gzip.compress("".join(json.dumps({"text": f"row {n}", "label": "no"}) + "\n" for n in range(5000)).encode())
    (tmp_path / "part-0.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"part-0.jsonl.gz cannot be read: it stops behind line \d+: Compressed file ended"
    ):
        stream(tmp_path, "jsonl.gz").batch(range(5000))


def test_a_header_that_the_recipe_names_again_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part-0.csv").write_text("text,label\na,no\n")
    with pytest.raises(
        DataError, match=r"part-0.csv cannot be read: .*it has a header of its own; leave out `columns`"
    ):
        loaded(tmp_path, "csv", columns=["text", "label"])


def test_files_may_differ_in_columns_nobody_asked_for_and_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text(GOOD * 3)
    (tmp_path / "part-1.jsonl").write_text('{"label": "yes", "meta": {"n": 1}, "text": "b"}\n' * 3)
    found = stream(tmp_path).batch(range(6))
    assert sorted(zip(*found.values(), strict=True)) == [("a", "no")] * 3 + [("b", "yes")] * 3
    (tmp_path / "part-0.csv").write_text("text,label\na,no\n")
    (tmp_path / "part-1.csv").write_text("n,label,text\n7,yes,b\n")
    assert sorted(zip(*stream(tmp_path, "csv").batch(range(2)).values(), strict=True)) == [("a", "no"), ("b", "yes")]


def test_rows_without_a_label_may_come_first(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text('{"text": "a", "label": null}\n' * 300)
    (tmp_path / "part-1.jsonl").write_text('{"text": "b", "label": "yes"}\n{"text": "c"}\n')
    found = stream(tmp_path).batch(range(302))
    assert sorted(zip(*found.values(), strict=True), key=str)[-2:] == [("b", "yes"), ("c", None)]


def test_class_numbers_of_csv_are_numbers_and_gaps_are_null(tmp_path: Path) -> None:
    (tmp_path / "part-0.csv").write_text("text,label\n12,1\nb,0\n")
    (tmp_path / "part-1.csv").write_text("text,label\nc,\n34\n")
    found = stream(tmp_path, "csv").batch(range(4))
    assert sorted(zip(*found.values(), strict=True), key=str) == [("12", 1), ("34", None), ("b", 0), ("c", None)]
    (tmp_path / "part-0.csv").write_text("text,label\n" + "a,1\n" * 100)
    (tmp_path / "part-1.csv").write_text("text,label\nc,high\n")
    with pytest.raises(DataError, match=r"line 2 of .*part-1.csv: the column `label` held numbers, and now 'high'"):
        stream(tmp_path, "csv").batch(range(101))


def test_a_text_among_lists_of_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text('{"text": ["a"], "label": "no"}\n' * 100 + '{"text": "ab", "label": "no"}\n')
    with pytest.raises(DataError, match=r"line 101 of .*: `text` holds 'ab', no list of words"):
        stream(tmp_path, tokens="text", text=None).batch(range(101))


def test_a_list_of_objects_is_read_as_well(tmp_path: Path) -> None:
    (tmp_path / "part-0.jsonl").write_text(json.dumps([{"text": f"row {n}", "label": "no"} for n in range(5)]))
    assert sorted(numbers(stream(tmp_path).batch(range(5)))) == [0, 1, 2, 3, 4]


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
    texts = list(found.splits["validation"].rows["text"])
    assert len({*texts}) == 30
    assert {*texts} <= {f"row {n}" for n in [*range(23), *range(33, TOTAL)]}
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


TEXTS = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00\x1a\r\ufeff"), min_size=1, max_size=12
).map("x{}".format)  # no text looks like a number, for pandas would take it for one


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(TEXTS, st.sampled_from([*LABELS, None])), min_size=2, max_size=12))
@pytest.mark.parametrize("form", ["jsonl", "csv", "tsv", "conll"])
def test_a_stream_reads_of_a_file_what_is_read_without_streaming(
    tmp_path: Path, form: str, rows: list[tuple[str, str | None]]
) -> None:
    file = tmp_path / f"part-0.{form}"
    if form == "conll":
        words = [("".join(text.split()), label or "O") for text, label in rows]
        words = [(word, label) for word, label in words if not word.startswith(("-DOCSTART-", "#"))] or [("a", "no")]
        file.write_text("".join(f"{word} {label}\n\n" for word, label in words), encoding="utf-8", newline="\n")
    elif form == "jsonl":
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    else:
        cleaned = [(text if form == "csv" else " ".join(text.split()), label) for text, label in rows]
        with file.open("w", newline="", encoding="utf-8") as opened:
            if form == "csv":
                csv.writer(opened, lineterminator="\n").writerows([("text", "label"), *cleaned])
            else:
                opened.write("".join(f"{text}\t{label or ''}\n" for text, label in [("text", "label"), *cleaned]))
    plain = loaded(tmp_path, form, streaming=False, validation_fraction=0, test_fraction=0).splits["train"].rows
    found = stream(tmp_path, form).batch(range(len(plain)))
    columns = plain.column_names
    expected = [tuple(row[column] for column in columns) for row in plain.to_list()]
    assert sorted(zip(*(found[column] for column in columns), strict=True), key=repr) == sorted(expected, key=repr)

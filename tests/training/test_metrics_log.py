import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import full_disk

from nlp_mtl.errors import RunError
from nlp_mtl.training.metrics_log import append, cut_after

LINES = [
    {"step": 2, "losses": {"名前": 0.5}},
    {"step": 4, "losses": {}},
    {"step": 4, "scores": {}},
    {"step": 6},
    {"step": 10},
]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(folder: Path) -> Path:
    path = folder / "metrics.jsonl"
    for line in LINES:
        append(path, line)
    return path


def test_each_line_is_one_json_object(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert read(path) == LINES
    assert path.read_bytes().endswith(b"\n")


def test_lines_after_a_step_are_dropped_and_both_lines_of_the_step_kept(tmp_path: Path) -> None:
    path = written(tmp_path)
    cut_after(path, 4)
    assert read(path) == LINES[:3]
    append(path, {"step": 6})
    assert read(path) == LINES[:4]
    cut_after(path, 0)
    assert read(path) == []
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_run_that_logged_nothing_yet_has_nothing_to_cut(tmp_path: Path) -> None:
    cut_after(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_log_torn_at_any_byte_keeps_its_whole_lines(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    path = written(tmp_path_factory.mktemp("log"))
    content = path.read_bytes()
    torn = content[: data.draw(st.integers(0, len(content)))]
    path.write_bytes(torn)
    cut_after(path, 100)
    whole = torn.count(b"\n")
    assert read(path)[:whole] == LINES[:whole]
    append(path, {"step": 11})  # on a line of its own
    assert read(path)[-1] == {"step": 11}
    assert len(read(path)) in (whole + 1, whole + 2)


def test_a_full_disk_is_told_and_leaves_what_was_written_readable(tmp_path: Path) -> None:
    path = written(tmp_path)
    with full_disk(path.stat().st_size + 10), pytest.raises(RunError, match=r"metrics\.jsonl cannot be written"):
        append(path, {"step": 12, "losses": dict.fromkeys(map(str, range(20)), 0.5)})
    assert read(path) == LINES
    append(path, {"step": 12})
    assert read(path) == [*LINES, {"step": 12}]


def test_a_full_disk_while_resuming_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    path = written(tmp_path)
    with full_disk(), pytest.raises(RunError, match=r"metrics\.jsonl cannot be written"):
        cut_after(path, 4)
    assert read(path) == LINES


@pytest.mark.parametrize(
    ("damage", "told"),
    [(b'{"step": 2}\n{"loss": 1}\n', "line 2 of"), (b"[1]\n", "line 1 of"), (b"\xff\xfe", "cannot be read")],
)
def test_lines_that_no_run_wrote_are_told(tmp_path: Path, damage: bytes, told: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(damage)
    with pytest.raises(RunError, match=told):
        cut_after(path, 4)
    assert path.read_bytes() == damage

"""Much data: several processes tokenise it, one of those that start together does, and none holds it in memory."""

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import recipe, text_row, token_row, write_jsonl
from tiny_runs import finish, start, write_yaml

from nlp_mtl import Recipe
from nlp_mtl.build import steps
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.data import encoding
from nlp_mtl.data.loading import load_splits
from nlp_mtl.data.stratification import codes_of, spread
from nlp_mtl.errors import DataError

slow = pytest.mark.slow


def big(folder: Path, rows: int = 400) -> dict[str, Any]:
    """A recipe on two files of ``rows`` rows each, whose validation and test splits are held out."""
    random_ = random.Random(0)
    corpus = folder / "corpus"
    write_jsonl(corpus / "words" / "train.jsonl", [token_row(random_) for _ in range(rows)])
    write_jsonl(corpus / "texts" / "train.jsonl", [text_row(random_) for _ in range(rows)])
    values = recipe(folder, corpus=corpus, max_steps=2)
    for name, spec in values["datasets"].items():
        spec["data_files"] = f"{name}/train.jsonl"
    return values


def contents(prepared: Prepared) -> dict[tuple[str, str], Any]:
    return {(name, split): rows.rows[:] for name, splits in prepared.encoded.items() for split, rows in splits.items()}


@pytest.fixture
def few_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "FEW_ROWS", 30)


def refuse(*_: object) -> Any:
    raise AssertionError("words are tokenized again")


# Several processes tokenise


@pytest.mark.parametrize("counts", [(1, 2), (3, 1), (2, 3)])
def test_any_number_of_processes_encodes_the_same_and_finds_what_another_number_cached(
    tmp_path: Path, few_is_less: None, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, int]
) -> None:
    torch.rand(300, 300) @ torch.rand(300, 300)  # threads that forked processes do not have
    values = big(tmp_path / "one", 90)
    first = prepare(Recipe.from_dict(values | {"num_proc": counts[0]}))
    alone = prepare(Recipe.from_dict(big(tmp_path / "two", 90)))
    assert contents(first) == contents(alone)
    monkeypatch.setattr(encoding, "encode_words", refuse)
    again = prepare(Recipe.from_dict(values | {"num_proc": counts[1]}))
    assert contents(again) == contents(first)
    for name, splits in first.encoded.items():
        for split, rows in splits.items():
            assert rows.digest() == again.encoded[name][split].digest() == alone.encoded[name][split].digest()


def test_a_bad_row_that_another_process_meets_is_told_as_ever(tmp_path: Path, few_is_less: None) -> None:
    values = big(tmp_path, 90)
    file = tmp_path / "corpus" / "words" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[80]["upos"].append("NOUN")
    write_jsonl(file, rows)
    for count in (2, 1):
        with pytest.raises(DataError, match=rf"row 80 of {file} .* has \d+ words but \d+ labels"):
            prepare(Recipe.from_dict(values | {"num_proc": count}))


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_tokenises_in_several_processes_ends_in_the_same_weights(tmp_path: Path, processes: int) -> None:
    values = big(tmp_path, rows=6000)
    runs = [tmp_path / name for name in ("one", "two")]
    for run, count in zip(runs, (1, 2), strict=True):
        cache = {"HF_DATASETS_CACHE": str(run) + "-cache"}
        file = write_yaml(tmp_path, values | {"num_proc": count, "output_dir": str(run)})
        code, _, errors = finish(start("train", file, processes=processes, environment=cache))
        assert code == 0, errors
        caches = {path.name.rpartition("_of_")[2] for path in Path(cache["HF_DATASETS_CACHE"]).rglob("cache-*_of_*")}
        assert caches == ({"00002.arrow"} if count == 2 else set())
    one, two = ((run / "model" / "model.safetensors").read_bytes() for run in runs)
    assert one == two


# Processes that start together

TOKENISES = """
import sys, time
sys.path.insert(0, sys.argv[1])
import conftest, tiny, yaml
from nlp_mtl import Recipe
from nlp_mtl.build_data import prepare
from nlp_mtl.data import encoding

original, calls = encoding.encode_words, []

def slowly(*arguments):
    calls.append(1)
    print("tokenizing", flush=True)
    time.sleep(float(sys.argv[3]))
    return original(*arguments)

encoding.encode_words = slowly
encoding.FEW_ROWS = 30
prepared = prepare(Recipe.from_dict(yaml.safe_load(open(sys.argv[2]))))
print("digests", [rows.digest() for splits in prepared.encoded.values() for rows in splits.values()])
"""


def tokenising(file: Path, cache: Path, seconds: float) -> "subprocess.Popen[str]":
    """A process that prepares a recipe, and takes its time."""
    return subprocess.Popen(
        [sys.executable, "-c", TOKENISES, str(Path(__file__).parent.parent), str(file), str(seconds)],
        env={**os.environ, "HF_DATASETS_CACHE": str(cache), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@slow
def test_of_two_processes_that_start_together_one_tokenises(tmp_path: Path) -> None:
    values = big(tmp_path)
    files = [write_yaml(tmp_path / name, values | {"output_dir": str(tmp_path / name)}) for name in ("one", "two")]
    started = [tokenising(file, tmp_path / "cache", 1.0) for file in files]
    ended = [finish(process) for process in started]
    assert [code for code, *_ in ended] == [0, 0], ended
    outputs = [output.splitlines() for _, output, _ in ended]
    assert sum(line == "tokenizing" for lines in outputs for line in lines) == 6  # two datasets of three splits
    assert outputs[0][-1] == outputs[1][-1]
    assert outputs[0][-1].startswith("digests")


@pytest.mark.long
@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_process_that_is_killed_while_it_tokenises_leaves_neither_a_lock_nor_half_a_cache(
    tmp_path: Path, num_proc: int
) -> None:
    file = write_yaml(tmp_path, big(tmp_path) | {"num_proc": num_proc})
    killed = tokenising(file, tmp_path / "cache", 5.0)
    assert killed.stdout is not None
    while killed.stdout.readline() not in ("tokenizing\n", ""):
        pass
    workers = psutil.Process(killed.pid).children(recursive=True)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    after = time.monotonic()
    code, output, errors = finish(tokenising(file, tmp_path / "cache", 0.0), timeout=60)
    assert code == 0, errors
    assert time.monotonic() - after < 40
    _, whole, _ = finish(tokenising(file, tmp_path / "other cache", 0.0))
    assert output.splitlines()[-1] == whole.splitlines()[-1]
    killed.stdout.close()
    assert killed.stderr is not None
    killed.stderr.close()
    for worker in workers:  # they wait for a parent that is gone
        with suppress(psutil.NoSuchProcess):
            worker.kill()


# Memory


def held(function: Any) -> tuple[Any, int, int]:
    """What a function returns, and the bytes that are then held and were held at most."""
    tracemalloc.start()
    try:
        found = function()
        _, most = tracemalloc.get_traced_memory()
        gc.collect()  # cycles, which wait for the collector's next turn
        now, _ = tracemalloc.get_traced_memory()
        return found, now, most
    finally:
        tracemalloc.stop()


def test_a_row_more_costs_a_few_bytes(tmp_path: Path) -> None:
    # Three numbers of 4 bytes: of the row in its file, in the order of the pass, and in the split.
    grown = []
    for count in (1000, 8000):
        made = Recipe.from_dict(big(tmp_path / str(count), count))
        prepare(made)  # fills the cache

        def read(made: Recipe = made) -> Any:
            prepared = prepare(made)
            data = steps(made, prepared)
            return data, data[0], data[1]

        (data, *_), now, most = held(read)
        grown.append((sum(len(split) for split in data.splits), now, most))
    (rows, now, most), (more_rows, later, more) = grown
    assert (later - now) / (more_rows - rows) < 16
    assert (more - most) / (more_rows - rows) < 150  # while splits are held out


def test_values_and_nulls_have_codes_of_their_own(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": label} for label in [*"abcab", None, *"aacb"] * 7])
    loaded = load_splits("demo", data_dir=str(tmp_path), data_files="a.jsonl", text="text", label_columns=["label"],
                         validation_fraction=0, test_fraction=0)  # fmt: skip
    train = loaded.splits["train"]
    labels = list(train.rows["label"])
    codes = codes_of(train.values("label")).tolist()
    assert len(set(zip(codes, labels, strict=True))) == len(set(codes)) == len(set(labels)) == 4


def test_the_values_of_a_part_are_those_of_its_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"{n}", "label": f"{n % 7}"} for n in range(3500)])
    loaded = load_splits("demo", data_dir=str(tmp_path), data_files="a.jsonl", text="text", label_columns=["label"],
                         validation_fraction=0.4, test_fraction=0.001, max_rows={"train": 9})  # fmt: skip
    for split in loaded.splits.values():
        found = [value for part in split.values("text") for value in part.to_pylist()]
        assert found == list(split.rows["text"]) == [str(n) for n in split.source_rows]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_rows_of_a_code_are_spread_as_a_plain_loop_does(values: list[int], random_: random.Random) -> None:
    order = list(range(len(values)))
    random_.shuffle(order)
    groups = defaultdict(list)
    for place in order:
        groups[values[place]].append(place)
    wanted = [((rank + 0.5) / len(group), place) for group in groups.values() for rank, place in enumerate(group)]
    assert spread(np.array(order), np.array(values)).tolist() == [place for _, place in sorted(wanted)]

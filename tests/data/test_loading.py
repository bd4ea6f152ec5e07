import time
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loaded import ROWS, load, problem, values
from tiny import write_jsonl

from nlp_mtl.errors import DataError

# Splits


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev", "development"])
def test_the_usual_names_of_a_validation_split_are_found(tmp_path: Path, name: str) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", ROWS[:2])
    loaded = load(tmp_path, data_files={"training": "a.jsonl", name: "b.jsonl"})
    assert {split: rows.source for split, rows in loaded.splits.items()} == {"train": "training", "validation": name}


def test_splits_of_any_name_can_be_mapped_and_left_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", ROWS[:5])
    files = {"part-1": "a.jsonl", "held-out": "b.jsonl", "test": "b.jsonl"}
    splits = {"train": "part-1", "validation": "held-out", "test": None}
    loaded = load(tmp_path, data_files=files, splits=splits, test_fraction=0.1)
    assert {split: len(rows.rows) for split, rows in loaded.splits.items()} == {"train": 60, "validation": 5}
    assert loaded.notes == []


def test_a_split_that_is_used_as_validation_is_not_the_test_split_too(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "b.jsonl", ROWS[:5])
    loaded = load(tmp_path, data_files={"train": "a.jsonl", "test": "b.jsonl"}, splits={"validation": "test"})
    assert set(loaded.splits) == {"train", "validation"}


def test_an_unknown_split_is_told_with_those_that_exist(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    message = problem(tmp_path, data_files={"train": "a.jsonl"}, splits={"validation": "trian"})
    assert "no split `trian`" in message
    assert "Did you mean `train`?" in message
    message = problem(tmp_path, data_files={"part1": "a.jsonl"})
    assert "`part1`" in message
    assert "splits: {train: ...}" in message


def test_missing_splits_are_carved_and_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    loaded = load(tmp_path, data_files="a.jsonl", validation_fraction=0.1, test_fraction=0.1)
    assert {split: len(rows.rows) for split, rows in loaded.splits.items()} == {
        "train": 48,
        "validation": 6,
        "test": 6,
    }
    assert [("6 of 60" in note, "held out" in note, "seed 0" in note) for note in loaded.notes] == [(True,) * 3] * 2


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=80),
    fractions=st.tuples(st.floats(0, 0.45), st.floats(0, 0.45)),
    stratify=st.booleans(),
    seed=st.integers(0, 3),
)
def test_carved_splits_are_disjoint_complete_seeded_and_keep_the_label_shares(
    tmp_path: Path, labels: list[str | None], fractions: tuple[float, float], stratify: bool, seed: int
) -> None:
    # The name holds the content: `datasets` knows a file by its path and its time of change.
    name = f"{hash(tuple(labels))}.jsonl"
    write_jsonl(tmp_path / name, [{"text": str(n) + "x", "label": label} for n, label in enumerate(labels)])
    options: dict[str, Any] = {
        "data_files": name,
        "validation_fraction": fractions[0],
        "test_fraction": fractions[1],
        "default_stratify": "label" if stratify else None,
        "seed": seed,
    }
    loaded, again = load(tmp_path, **options), load(tmp_path, **options)
    places = {split: rows.source_rows for split, rows in loaded.splits.items()}
    assert sorted(np.concatenate(list(places.values())).tolist()) == list(range(len(labels)))
    assert len(places["train"])
    for split, rows in loaded.splits.items():
        assert list(rows.rows["text"]) == [f"{n}x" for n in rows.source_rows]
        assert again.splits[split].source_rows.tolist() == rows.source_rows.tolist()
    for split, fraction in zip(("validation", "test"), fractions, strict=True):
        if split in places:
            assert len(places[split]) == round(len(labels) * fraction)
            shares = Counter(labels[n] for n in places[split])
            for label, count in Counter(labels).items():
                if stratify:  # one for the rounding of each of its two borders
                    assert abs(shares[label] - count * fraction) < 2
        else:
            assert fraction == 0 or round(len(labels) * fraction) in (0, len(labels)) or loaded.notes


def test_another_seed_carves_other_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    rows = [load(tmp_path, data_files="a.jsonl", test_fraction=0.2, seed=seed).splits["test"] for seed in (0, 1)]
    assert rows[0].source_rows.tolist() != rows[1].source_rows.tolist()


@pytest.mark.parametrize("caps", [{}, {"max_rows": {"train": 20}}])
def test_with_a_split_seed_other_seeds_have_the_same_rows(tmp_path: Path, caps: dict[str, Any]) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    options = {"data_files": "a.jsonl", "test_fraction": 0.2, **caps}
    loaded = [load(tmp_path, **options, seed=seed, split_seed=5) for seed in (0, 1)]
    loaded.append(load(tmp_path, **options, seed=5))
    rows = [{name: split.source_rows.tolist() for name, split in one.splits.items()} for one in loaded]
    assert rows[0] == rows[1] == rows[2]


def test_a_column_to_stratify_by_goes_before_the_labels(tmp_path: Path) -> None:
    rows = [{**row, "kind": "odd" if place % 5 == 0 else "even"} for place, row in enumerate(ROWS)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    for seed in range(5):
        loaded = load(
            tmp_path, data_files="a.jsonl", test_fraction=0.5, stratify="kind", default_stratify="label", seed=seed
        )
        assert Counter(values(loaded, "kind", "test")) == {"odd": 6, "even": 24}
        assert "stratified by kind" in loaded.notes[0]


def test_a_column_to_stratify_by_that_is_of_no_use_is_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{**row, "words": ["a"]} for row in ROWS])
    for name, options, message in (
        ("label", {}, "none is: leave it out"),
        ("words", {"test_fraction": 0.5}, "is a column of lists"),
        ("lable", {"test_fraction": 0.5}, "there is no column `lable`.*Did you mean `label`"),
    ):
        with pytest.raises(DataError, match=message):
            load(tmp_path, data_files="a.jsonl", stratify=name, **options)


def test_a_rare_label_stays_in_train_when_splits_are_carved(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*ROWS, {"text": "odd", "label": "rare"}])
    for seed in range(5):
        loaded = load(tmp_path, data_files="a.jsonl", test_fraction=0.2, default_stratify="label", seed=seed)
        assert "rare" in values(loaded, "label")


def test_train_too_small_to_carve_is_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS[:3])
    loaded = load(tmp_path, data_files="a.jsonl", test_fraction=0.1)
    assert set(loaded.splits) == {"train"}
    assert "too small" in loaded.notes[0]


def test_caps_take_a_seeded_sample_in_order_and_are_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    loaded = load(tmp_path, data_files="a.jsonl", max_rows={"train": 10})
    rows = loaded.splits["train"].source_rows.tolist()
    assert len(rows) == 10
    assert rows == sorted(rows)
    assert rows != list(range(10))
    assert values(loaded, "text") == [f"text {n}" for n in rows]
    assert "10 of 60" in loaded.notes[0]
    assert load(tmp_path, data_files="a.jsonl", max_rows={"train": 100}).notes == []
    with pytest.raises(DataError, match="max_rows limits test, but there is no such split"):
        load(tmp_path, data_files="a.jsonl", max_rows={"train": 10, "test": 5})


def test_a_row_is_named_as_in_its_file_after_carving_capping_and_joining(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"a.jsonl {n}", "label": "x"} for n in range(7)])
    write_jsonl(tmp_path / "b.jsonl", [{"text": f"b.jsonl {n}", "label": "x"} for n in range(20)])
    files = {"train": ["a.jsonl", "b.jsonl"]}
    whole = load(tmp_path, data_files=files)
    some = load(tmp_path, data_files=files, test_fraction=0.3, max_rows={"train": 12, "test": 6})
    for split in [*whole.splits.values(), *some.splits.values()]:
        for row, text in enumerate(split.rows["text"]):
            file, number = text.split()
            named = f"{split.held_out_as} (held out of train)" if split.held_out_as else "train"
            assert split.where(row) == (
                f"dataset `demo`, split {named}, row {number} of {tmp_path / file} (counted from 0)"
            )


# Folders and the Hub


def test_a_folder_of_files_is_a_dataset(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus" / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "corpus" / "test.jsonl", ROWS[:4])
    loaded = load(tmp_path, path="corpus")
    assert {split: len(rows.rows) for split, rows in loaded.splits.items()} == {"train": 60, "test": 4}
    assert "split train, row 3 (counted" in loaded.splits["train"].where(3)


def test_a_dataset_dict_kept_as_a_folder_of_parquet_is_a_dataset(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "p"])})
    rows = datasets.Dataset.from_list([{"text": "a", "label": 1}, {"text": "b", "label": -1}], features=features)
    (tmp_path / "corpus").mkdir()
    for split, part in datasets.DatasetDict({"train": rows, "validation": rows}).items():
        part.to_parquet(tmp_path / "corpus" / f"{split}.parquet")
    loaded = load(tmp_path, path="corpus")
    assert loaded.splits["train"].rows.features["label"].names == ["n", "p"]
    assert values(loaded, "label", "validation") == [1, -1]


def test_a_stratified_split_by_a_column_of_lists_is_no_crash(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label": ["x"]}] * 20)
    assert (
        len(load(tmp_path, data_files="a.jsonl", test_fraction=0.5, default_stratify="label").splits["test"].rows) == 10
    )


def test_a_format_without_files_and_a_file_as_path_are_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert "`data_files`" in problem(tmp_path, path="csv")
    assert "`data_files: a.jsonl`" in problem(tmp_path, path="a.jsonl")
    assert "there is no folder" in problem(tmp_path, path="./corpus")


def test_a_dataset_that_needs_a_loading_script_is_told_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "corpus.py").write_text("import datasets\n")
    message = problem(tmp_path, path="corpus")
    assert "loading script" in message
    assert "refs/convert/parquet" in message


def test_an_unreachable_hub_is_told_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    message = problem(tmp_path, path="someone/some-dataset")
    assert time.monotonic() - start < 5
    assert "`someone/some-dataset`" in message
    assert "Hub cannot be reached" in message


def test_a_mistyped_format_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    message = problem(tmp_path, path="jsno", data_files="a.jsonl")
    assert "`path: jsno` is neither a folder nor a known format" in message
    assert message.endswith("Did you mean `json`?")


def test_a_folder_whose_card_is_broken_is_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus" / "train.jsonl", ROWS)
    (tmp_path / "corpus" / "README.md").write_text("---\nconfigs: [\n---\n")
    assert "the metadata of its README.md are not valid YAML: while parsing" in problem(tmp_path, path="corpus")

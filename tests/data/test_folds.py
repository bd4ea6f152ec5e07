"""Folds of training rows, and the labelled items that stand in them."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typed_runs
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_jsonl

from nlp_mtl import Recipe
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.data.encoded_splits import label_column
from nlp_mtl.data.folds import folds, part_of, row_codes, same_texts
from nlp_mtl.data.labelled_items import labelled_items
from nlp_mtl.data.row_filter import rows_of
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import MISSING

SIZES = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def alone(rows: int, first: int = 0) -> np.ndarray:
    """Each row says something else."""
    return np.arange(first, first + rows)


@given(st.lists(SIZES, min_size=1, max_size=3), st.integers(2, 5), st.integers(0, 9))
def test_rows_of_one_text_are_in_one_fold_in_all_datasets_and_nothing_else_decides(
    texts: list[list[int]], count: int, seed: int
) -> None:
    groups = [np.array(rows) for rows in texts]
    codes = [np.array(rows) % 2 for rows in texts]
    found = folds(groups, codes, count, seed)
    assert [len(one) for one in found] == [len(one) for one in groups]
    for text in range(5):
        assert len({int(fold) for group, one in zip(groups, found, strict=True) for fold in one[group == text]}) <= 1
    assert all(((one >= 0) & (one < count)).all() for one in found)
    again = folds(groups, codes, count, seed)
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))


@given(st.lists(st.integers(0, 3), min_size=5, max_size=80), st.integers(2, 5), st.integers(0, 9))
def test_folds_have_equal_sizes_and_each_its_part_of_every_label(codes: list[int], count: int, seed: int) -> None:
    labels = np.array(codes)
    (found,) = folds([alone(len(labels))], [labels], count, seed)
    sizes = np.bincount(found, minlength=count)
    assert sizes.max() - sizes.min() <= 1
    for label in np.unique(labels):
        of_label = np.bincount(found[labels == label], minlength=count)
        assert of_label.max() - of_label.min() <= 1


def test_another_seed_gives_other_folds() -> None:
    groups, codes = [alone(40)], [np.zeros(40, dtype=int)]
    assert not np.array_equal(folds(groups, codes, 4, 0)[0], folds(groups, codes, 4, 1)[0])


def test_texts_that_are_nearly_the_same_have_the_number_of_the_first() -> None:
    pytest.importorskip("datasketch")
    long = "the quick brown fox jumps over the lazy dog near the river bank at noon"
    texts = ["a", long, "b", long.replace("noon", "dusk"), "a", long.upper(), "", ""]
    rows = rows_of([(text,) for text in texts], str.split)
    assert same_texts(rows).tolist() == [0, 1, 2, 1, 0, 1, 6, 7]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A task of each type, of which some rows and words have no labels."""
    folder = tmp_path_factory.mktemp("folds")
    values = typed_runs.values(folder)
    draw = random.Random(0)
    for name, keys in (("texts", ("label", "tags", "rating")), ("words", ("upos",))):
        file = folder / "corpus" / name / "train.jsonl"
        rows: list[dict[str, Any]] = [typed_runs.typed_row(draw) if name == "texts" else typed_runs.token_row(draw)
                                      for _ in range(40)]  # fmt: skip
        for row in rows:
            for key in keys:
                if draw.random() < 0.2:
                    row[key] = None
                elif key == "upos":
                    row[key] = [None if draw.random() < 0.2 else label for label in row[key]]
        write_jsonl(file, rows)
    return prepare(Recipe.from_dict(values))


@pytest.mark.parametrize("name", ["pos", "sentiment", "tags"])
def test_labelled_items_are_those_of_the_rows_one_by_one(prepared: Prepared, name: str) -> None:
    task = next(task for task in prepared.tasks if task.name == name)
    (split,) = (split for split in prepared.split("train").values() if name in split.tasks)
    items = labelled_items(split, task)
    expected = []
    for row, target in enumerate(split.rows[label_column(name)]):
        if kind_of(task).reads_words:
            expected += [(row, word, one) for word, one in enumerate(target) if one != MISSING]
        elif target:
            expected.append((row, 0, target if name == "tags" else target[0]))
    assert 0 < len({row for row, _, _ in expected}) < len(split)
    assert [*zip(items.rows.tolist(), items.words.tolist(), items.given.tolist(), strict=True)] == expected
    chosen = np.arange(0, len(split), 3)
    assert items.of_rows(chosen).tolist() == [place for place, item in enumerate(expected) if item[0] % 3 == 0]
    assert items.of_rows(chosen[:0]).tolist() == []
    part = labelled_items(part_of(split, chosen), task)
    assert np.array_equal(part.given, items.given[items.of_rows(chosen)])
    assert np.array_equal(chosen[part.rows], items.rows[items.of_rows(chosen)])


def test_folds_keep_the_labels_of_texts_in_proportion_or_the_rarest_label_of_words(prepared: Prepared) -> None:
    texts, words = prepared.encoded["texts"]["train"], prepared.encoded["words"]["train"]
    codes = row_codes(texts, prepared.tasks)
    assert codes.tolist() == [0 if one == MISSING else one + 1 for one in texts.classes("sentiment")]
    (pos,) = (task for task in prepared.tasks if task.name == "pos")
    counts = words.label_counts(pos)
    for code, target in zip(row_codes(words, prepared.tasks), words.rows[label_column("pos")], strict=True):
        held = [one for one in target if one != MISSING]
        assert code == (1 + min(held, key=lambda one: (counts[one], one)) if held else 0)
    only_sets = [task for task in prepared.tasks if task.name == "tags"]
    tags = only_sets[0]
    counts = texts.label_counts(tags)
    for code, target in zip(row_codes(texts, only_sets), texts.rows[label_column("tags")], strict=True):
        held = [place for place, one in enumerate(target) if one]
        assert code == (1 + min(held, key=lambda one: (counts[one], one)) if held else 0)


def test_a_part_of_a_split_has_the_same_rows_as_its_source(prepared: Prepared, tmp_path: Path) -> None:
    split = prepared.encoded["words"]["train"]
    places = np.array([2, 3, 11, 39])
    part = part_of(split, places)
    assert len(part) == 4
    assert part.batch([1, 3]) == split.batch([3, 39])
    assert [part.where(row) for row in range(4)] == [split.where(int(row)) for row in places]
    assert part.source.rows["tokens"][:] == [split.source.rows["tokens"][int(row)] for row in places]
    assert part.digest() != split.digest()

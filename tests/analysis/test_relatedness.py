from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from tiny import recipe, save_encoder, write_jsonl

from nlp_mtl import Recipe
from nlp_mtl.analysis.relatedness import mean_affinities, normalised_mutual_information, propose_groups
from nlp_mtl.run_check import check

LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(LABELS)
def test_normalised_mutual_information_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    counts = np.zeros((4, 5), dtype=np.int64)
    for pair in pairs:
        counts[pair] += 1
    one, other = zip(*pairs, strict=True)
    found = normalised_mutual_information(counts)
    if len(set(one)) == len(set(other)) == 1:
        assert found == 0  # two constants: scikit-learn calls that 1
    else:
        assert found == pytest.approx(normalized_mutual_info_score(one, other), abs=1e-9)


def agreement(folder: Path, rows: list[dict[str, Any]], tasks: dict[str, str], **types: str) -> list[dict[str, Any]]:
    values = recipe(folder, corpus=folder, encoder_folder=save_encoder(folder / "encoder"))
    file = str(write_jsonl(folder / "train.jsonl", rows))
    values["datasets"] = {"a": {"data_files": {"train": file}, "tokens": "tokens", "validation_fraction": 0,
                                "test_fraction": 0}}  # fmt: skip
    values["tasks"] = {
        name: {"type": types.get(name, "token-classification"), "dataset": "a", "labels": column}
        for name, column in tasks.items()
    }
    return check(Recipe.from_dict(values))["agreement"]


def test_tasks_with_the_same_labels_are_compared_label_by_label(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["anna", "loves", "rome"], "one": ["x", "y", "z"], "two": ["x", "z", "z"]},
        {"tokens": ["anna"], "one": ["y"], "two": ["y"]},
        {"tokens": ["rome"], "one": ["z"], "two": None},
    ]
    assert agreement(tmp_path, rows, {"one": "one", "two": "two"}) == [
        {"tasks": ["one", "two"], "items": 4, "measure": "equal", "value": 0.75}
    ]


def test_a_texts_label_stands_for_each_of_its_words(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["anna", "loves"], "tag": ["x", "x"], "mood": "good"},
        {"tokens": ["rome", "rome", "rome"], "tag": ["y", "y", "y"], "mood": "bad"},
    ]
    (found,) = agreement(tmp_path, rows, {"tag": "tag", "mood": "mood"}, mood="text-classification")
    assert found == {"tasks": ["tag", "mood"], "items": 5, "measure": "nmi", "value": pytest.approx(1)}


def test_tasks_that_share_no_row_are_not_compared(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["anna"], "one": ["x"], "two": None},
        {"tokens": ["rome"], "one": ["y"], "two": None},
        {"tokens": ["anna"], "one": None, "two": ["v"]},
        {"tokens": ["loves"], "one": None, "two": ["w"]},
    ]
    assert agreement(tmp_path, rows, {"one": "one", "two": "two"}) == []


AFFINITIES = {
    "a": {"a": 9.0, "b": 0.2, "c": -0.1, "d": -0.1},
    "b": {"a": 0.2, "b": 9.0, "c": -0.2, "d": 0.0},
    "c": {"a": -0.1, "b": -0.2, "c": 9.0, "d": 0.3},
    "d": {"a": -0.1, "b": 0.0, "c": 0.3, "d": 9.0},
}


def test_tasks_that_help_each_other_are_put_together() -> None:
    assert sorted(map(sorted, propose_groups(AFFINITIES, 4))) == [["a", "b"], ["c", "d"]]
    assert sorted(map(sorted, propose_groups(AFFINITIES, 1))) == [["a", "b", "c", "d"]]
    harmed = {one: dict.fromkeys(others, -1.0) for one, others in AFFINITIES.items()}
    assert sorted(map(sorted, propose_groups(harmed, 4))) == [["a"], ["b"], ["c"], ["d"]]


def test_affinities_of_a_run_are_the_means_over_its_lines() -> None:
    lines = [{"affinities": {"a": {"b": 0.2}}}, {"losses": {}}, {"affinities": {"a": {"b": 0.4}, "b": {"a": 1.0}}}]
    assert mean_affinities(lines) == {"a": {"b": pytest.approx(0.3)}, "b": {"a": 1.0}}

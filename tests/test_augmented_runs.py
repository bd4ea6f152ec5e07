"""Runs whose training rows are changed as they come."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import assert_resumes_exactly, loss_lines, streamed_values, values

from nlp_mtl import Recipe, RecipeError, train
from nlp_mtl.build import steps
from nlp_mtl.build_data import prepare

WORDS = {"word_dropout": 0.2, "typos": 0.2, "case_noise": 0.2, "entity_swap": 0.5, "rows": 0.8}
TEXTS = {"word_dropout": 0.3, "typos": 0.1}


def augmented(folder: Path, **training: Any) -> dict[str, Any]:
    given = values(folder, **{"num_epochs": 2, **training})
    given["datasets"]["words"]["augmentation"] = dict(WORDS)
    given["datasets"]["texts"]["augmentation"] = dict(TEXTS)
    return given


def test_only_training_rows_are_changed_and_differently_in_each_pass(tmp_path: Path) -> None:
    recipe, plain = Recipe.from_dict(augmented(tmp_path)), Recipe.from_dict(values(tmp_path))
    prepared, of_plain = prepare(recipe), prepare(plain)
    for name in ("words", "texts"):
        for split in ("train", "validation", "test"):
            assert prepared.encoded[name][split].digest() == of_plain.encoded[name][split].digest()
    data, as_they_are = steps(recipe, prepared), steps(plain, of_plain)
    first = [[list(item.pieces) for item in one.items(one.sampler[0])] for one in (data, as_they_are)]
    assert first[0] != first[1]
    again = [data.items(plan) for plan in (data.sampler[0], data.sampler[0], data.sampler[0]._replace(step=6))]
    assert [list(item.pieces) for item in again[0]] == [list(item.pieces) for item in again[1]]
    assert [list(item.pieces) for item in again[0]] != [list(item.pieces) for item in again[2]]


def test_a_run_resumes_exactly(tmp_path: Path) -> None:
    given = augmented(tmp_path, save_every=1, keep_last=20)
    recipe = Recipe.from_dict({**given, "output_dir": str(tmp_path / "whole")})
    assert_resumes_exactly(recipe, 5, tmp_path / "stopped")


def test_loader_processes_and_the_cut_of_a_step_change_nothing_of_what_is_drawn(tmp_path: Path) -> None:
    found = []
    for number, changes in enumerate(({}, {"num_workers": 1}, {"max_tokens": 48, "layout": "padded"})):
        given = augmented(tmp_path, num_epochs=1)
        given["training"] |= changes
        given |= {"max_length": 32, "window_overlap": 8, "output_dir": str(tmp_path / f"run-{number}")}
        train(Recipe.from_dict(given))
        found.append(loss_lines(tmp_path / f"run-{number}"))
    for lines in zip(*found, strict=True):
        for line in lines[1:]:
            assert line["losses"] == pytest.approx(lines[0]["losses"], rel=1e-3)


def test_processes_share_the_rows_of_one(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(augmented(tmp_path))
    prepared = prepare(recipe)
    whole = steps(recipe, prepared)
    for step in range(3):
        counts = [steps(recipe, prepared, process=process, num_processes=2)[step].counts for process in range(2)]
        assert counts[0] == counts[1] == whole[step].counts
        tokens = [steps(recipe, prepared, process=process, num_processes=2)[step].num_tokens for process in range(2)]
        assert tokens == [whole[step].num_tokens] * 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"typo": 0.1}, r"datasets\.texts\.augmentation\.typo: unknown key.*Did you mean `typos`"),
        ({"typos": 1.5}, r"datasets\.texts\.augmentation\.typos"),
        ({"rows": 0.5}, r"datasets\.texts\.augmentation\.rows: nothing is done to these rows"),
        ({"rows": 0, "typos": 0.1}, r"datasets\.texts\.augmentation\.rows: 0 changes no row"),
    ],
)
def test_what_does_nothing_or_is_misspelt_is_told(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    given = augmented(tmp_path)
    given["datasets"]["texts"]["augmentation"] = changes
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict(given)


def test_entities_are_swapped_only_where_there_is_one_task_of_them(tmp_path: Path) -> None:
    given = augmented(tmp_path)
    given["datasets"]["texts"]["augmentation"]["entity_swap"] = 0.5
    recipe = Recipe.from_dict(given)
    told = (
        r"datasets\.texts\.augmentation\.entity_swap: it needs one task of IOB tags on the dataset, and there are none"
    )
    with pytest.raises(RecipeError, match=told):
        steps(recipe, prepare(recipe))


def test_a_stream_cannot_be_changed(tmp_path: Path) -> None:
    given = streamed_values(tmp_path, max_steps=4, eval_every=2)
    given["datasets"]["texts"]["augmentation"] = {"typos": 0.1}
    with pytest.raises(RecipeError, match=r"datasets\.texts\.augmentation\.typos: rows of a stream come as they are"):
        Recipe.from_dict(given)


def test_words_are_those_that_cleaning_leaves(tmp_path: Path) -> None:
    given = {**augmented(tmp_path), "cleaning": {"replace_usernames": "@", "lowercase": True}}
    given["datasets"]["texts"]["augmentation"] = {"typos": 1e-9}
    recipe = Recipe.from_dict(given)
    prepared = prepare(recipe)
    data, rows = steps(recipe, prepared), np.arange(48)
    augmenter = data.augmenters[1]
    batch = dict(augmenter.split.batch(rows))
    assert augmenter(0, rows, batch) == batch

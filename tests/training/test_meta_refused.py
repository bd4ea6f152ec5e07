"""Meta runs whose evaluations cannot choose a model are refused before anything is learned."""

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import values

from nlp_mtl import Recipe, RecipeError, train
from nlp_mtl.run import train_trial
from nlp_mtl.run_check import check

TOLD = "too few labels have 33 validation rows each .* lower meta.shots or meta.query"


def large_queries(folder: Path, **training: Any) -> Recipe:
    """A meta run with enough rows to learn from, and too few validation rows (16) for an episode."""
    given = values(folder, **{"max_steps": 1, "batch_size": 8, **training})
    del given["training"]["num_epochs"]
    return Recipe.from_dict({**given, "meta": {"episodes": 1, "shots": 3, "query": 30, "inner_steps": 1}})


@pytest.mark.parametrize(
    ("training", "path"),
    [
        ({"early_stopping_patience": 1}, "early_stopping_patience"),
        ({"selection_weights": {"sentiment": 1}}, "selection_weights.sentiment"),
    ],
)
def test_a_model_is_not_to_be_chosen_by_tasks_that_have_no_episodes(
    tmp_path: Path, training: dict[str, Any], path: str
) -> None:
    recipe = large_queries(tmp_path, **training)
    for verb in (check, train):
        with pytest.raises(RecipeError, match=f"training.{path}: {TOLD}"):
            verb(recipe)
    assert not (tmp_path / "run").exists()


def test_a_trial_is_known_by_episodes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"meta.query: {TOLD}"):
        train_trial(large_queries(tmp_path), lambda number, score: None, resume=False)


def test_where_nothing_is_chosen_the_last_step_is_what_a_meta_run_ends_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    results = train(large_queries(tmp_path))
    assert results["selection"]["score"] is None
    assert results["steps"] == results["step"] == 1
    assert any("Not scored: " in message for message in caplog.messages)

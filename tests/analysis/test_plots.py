"""Pictures of a run: one curve a task, none of what was measured once, none without matplotlib."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_runs import tiny_recipe

from nlp_mtl import MissingExtraError, run_folder, train
from nlp_mtl.analysis import plots
from nlp_mtl.analysis.plots import draw_plots

MAIN = {"ner": "span_f1", "mood": "accuracy"}


def metrics(folder: Path, losses: int, scores: int) -> Path:
    """A run's metrics.jsonl with so many lines of each kind."""
    lines: list[dict[str, Any]] = [
        {"step": step, "losses": {"ner": 1 / step, "mood": 2 / step}} for step in range(1, losses + 1)
    ]
    lines += [
        {"step": step, "selection_score": step / 10, "scores": {"ner": {"span_f1": step / 20}, "mood": {}}}
        for step in range(1, scores + 1)
    ]
    for line in lines:
        if "scores" in line:
            line["scores"]["mood"] = {"accuracy": 0.5}
    file = folder / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def colours(path: Path) -> int:
    """How many colours a picture has; an empty one has few."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        found = picture.convert("RGB").getcolors(maxcolors=1 << 20)
    assert found is not None
    return len(found)


def test_losses_and_scores_are_drawn(tmp_path: Path) -> None:
    drawn = draw_plots(metrics(tmp_path, 5, 3), tmp_path, MAIN)
    assert [path.name for path in drawn] == ["losses.png", "scores.png"]
    assert all(colours(path) > 50 for path in drawn)


def test_each_task_has_a_curve_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    axes = plots._axes
    monkeypatch.setattr(plots, "_axes", lambda: made.append(axes()) or made[-1])
    draw_plots(metrics(tmp_path, 5, 3), tmp_path, MAIN)
    names = [[line.get_label() for line in one.get_lines()] for one in made]
    assert names == [["ner", "mood"], ["ner (span f1)", "mood (accuracy)", "selection score"]]
    assert [*made[1].get_lines()[0].get_ydata()] == [0.05, 0.1, 0.15]


def test_what_was_measured_once_is_not_drawn(tmp_path: Path) -> None:
    assert draw_plots(metrics(tmp_path, 1, 1), tmp_path, MAIN) == []
    assert [path.name for path in draw_plots(metrics(tmp_path, 2, 1), tmp_path, MAIN)] == ["losses.png"]


def test_a_run_keeps_its_plots_and_a_short_one_has_no_folder_for_them(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=2, log_every=1, eval_every=1)
    train(recipe)
    run = Path(recipe.output_dir)
    assert {path.name for path in (run / "plots").iterdir()} == {"losses.png", "scores.png"}
    train(tiny_recipe(tmp_path, max_steps=1), overwrite=True)
    assert not (run / "plots").exists()


def test_without_matplotlib_a_run_goes_on_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_folder, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, logger="nlp_mtl"):
        recipe = tiny_recipe(tmp_path, max_steps=2, log_every=1)
        train(recipe)
    assert "pip install 'nlp_mtl[plots]'" in caplog.text
    assert not (Path(recipe.output_dir) / "plots").exists()


def test_drawing_without_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nlp_mtl\[plots\]'"):
        draw_plots(metrics(tmp_path, 2, 2), tmp_path, MAIN)

"""The verb ``nlp-mtl check``: what is in a recipe's data, and what is odd."""

import sys
from pathlib import Path
from typing import Any

import torch

from nlp_mtl.analysis.cleaning_report import cleaning_report
from nlp_mtl.analysis.data_report import data_report
from nlp_mtl.build import expects_to_pack, steps
from nlp_mtl.build_data import prepare
from nlp_mtl.build_distillation import check_teachers
from nlp_mtl.build_meta import describe_episodes, episode_steps, meta_arguments
from nlp_mtl.build_start import start_arguments
from nlp_mtl.recipe import Recipe
from nlp_mtl.run_evaluation import read_recipe


def check(recipe: Recipe | str | Path) -> dict[str, Any]:
    """What a recipe's data holds and what is odd about it; see :func:`nlp_mtl.analysis.data_report.data_report`, and
    :func:`nlp_mtl.analysis.cleaning_report.cleaning_report` for ``cleaning``."""
    recipe = read_recipe(recipe)
    packed = expects_to_pack(recipe)
    prepared = prepare(recipe, **start_arguments(recipe))
    check_teachers(recipe, prepared.tasks)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = steps(recipe, prepared, device=device, packed=packed)
    progress = sys.stderr.isatty()
    report = data_report(
        prepared.tasks, prepared.loaded, prepared.encoded, prepared.framing, data,
        beyond_labels=recipe.distillation is not None and recipe.distillation.rows == "all",
        progress=progress,
    )  # fmt: skip
    if recipe.meta is not None:
        episode_steps(recipe, prepared)  # what is wrong with it is told
        meta_arguments(recipe, prepared)
        report["episodes"] = {"steps": recipe.training.max_steps, **describe_episodes(recipe)}
    cleaned = cleaning_report(prepared.cleaning, prepared.loaded, word_splitter=recipe.word_splitter, progress=progress)
    return {**report, "cleaning": cleaned}

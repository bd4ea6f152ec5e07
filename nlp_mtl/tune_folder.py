"""The folder of a search: who may use it, and what ``nlp-mtl tune`` writes to it besides its database."""

import csv
import io
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nlp_mtl.analysis.plots import draw_history
from nlp_mtl.errors import RunError
from nlp_mtl.recipe import Recipe
from nlp_mtl.recipe_reading import changed_keys
from nlp_mtl.run_folder import learned_changes, saved_recipe
from nlp_mtl.storage import aside, cannot_write, held, remove, write_text

logger = logging.getLogger(__name__)

DATABASE, TRIALS = "tune.db", "trials"
# The database is the last to go: it tells that a folder is a search's, and what may be removed.
_OURS = ("recipe.yaml", "best.yaml", "trials.csv", "history.png", TRIALS, f"{DATABASE}-journal", DATABASE)


@contextmanager
def study_folder(recipe: Recipe, overwrite: bool) -> Iterator[Path]:
    """A folder that this process alone searches in, ready for the first trial or for the next one.

    Args:
        recipe: with the space in its ``tune`` section.
        overwrite: remove what an earlier search left there.

    Raises:
        RunError: it is in use, holds something else, or another search; nothing was changed.
    """
    folder = Path(recipe.output_dir).absolute()
    if folder.exists() and not folder.is_dir():
        raise RunError(f"output_dir {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / DATABASE).is_file():
        raise RunError(f"output_dir {folder} already holds files, but no search: use another output_dir")
    with held(folder, key="output_dir"):
        if overwrite:
            remove(folder, _OURS)
        if (folder / "recipe.yaml").exists():
            _check_same(folder, recipe)
        # The database first: what holds one is ours to go on with, wherever it was left.
        try:
            (folder / DATABASE).touch()
        except OSError as error:
            raise cannot_write(folder / DATABASE, error) from error
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        yield folder


def _check_same(folder: Path, recipe: Recipe) -> None:
    """Refuse another recipe or space than the folder's; more or fewer trials are the same search."""
    old, new = saved_recipe(folder), recipe.to_dict()
    before, now = ({**(values.get("tune") or {}), "trials": None} for values in (old, new))
    changes = learned_changes(old, new)
    changes += [f"{key}: {left!r} -> {right!r}" for key, left, right in changed_keys(before, now, "tune.")]
    if changes:
        raise RunError(
            f"{folder} holds the search of another recipe or space, so it does not go on with this one (--overwrite "
            "removes it):" + "".join(f"\n  {change}" for change in changes)
        )


def tidy(run: Path) -> None:
    """Remove what a trial needs only while it runs: its checkpoints.

    Raises:
        RunError: they cannot be removed.
    """
    folder = run / "checkpoints"
    try:
        if folder.is_dir():
            folder.rename(aside(folder))  # at once: none of a trial's checkpoints is there without the others
        if aside(folder).is_dir():
            shutil.rmtree(aside(folder))
    except OSError as error:
        raise RunError(f"{folder} cannot be removed: {error.strerror}") from error


def save_trials(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``trials.csv``: a row a trial.

    Raises:
        RunError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "trials.csv", text.getvalue())


def save_best(folder: Path, recipe: Recipe, told: Sequence[str]) -> None:
    """Write ``best.yaml``, with comments in front.

    Raises:
        RunError: it cannot be written.
    """
    write_text(folder / "best.yaml", "".join(f"# {line}\n" for line in told) + "\n" + recipe.to_yaml())


def save_history(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw ``history.png``, if matplotlib is installed and two trials have a score.

    Raises:
        RunError: it cannot be written.
    """
    scores = {row["trial"]: row["score"] for row in rows if row["score"] is not None}
    if len(scores) < 2:
        return
    if find_spec("matplotlib") is None:
        logger.info("Without matplotlib there is no picture of the trials: pip install 'nlp_mtl[plots]'")
        return
    try:
        draw_history(scores, {row["trial"] for row in rows if row["state"] == "pruned"}, folder / "history.png")
    except OSError as error:
        raise cannot_write(folder / "history.png", error) from error

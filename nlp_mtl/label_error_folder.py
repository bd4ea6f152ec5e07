"""The folder of a search for label errors: who may use it, and what is written to it."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nlp_mtl.errors import RunError
from nlp_mtl.inference.texts import as_json
from nlp_mtl.recipe import Recipe
from nlp_mtl.run_folder import command, learned_changes, saved_recipe, versions
from nlp_mtl.storage import PARTIAL, remove, write_text

# The marker is the first to come and the last to go: it tells that a folder is ours, and what may be removed. What
# folds say goes before the recipe that tells what they are of.
_OURS = (
    "out_of_fold", "points", "folds", "folds.npz", "label_errors.jsonl", "report.json", "dropped", "reviewed",
    "recipe.yaml", "search.json",
)  # fmt: skip

REVIEW = "review.jsonl"
"""What a person edits: never removed, nor written over."""


def check_folder(folder: Path, recipe: Recipe, flags: Mapping[str, Any] | None, overwrite: bool) -> None:
    """That a search may use its folder, for the first time or to go on; ``flags``: None, a review of it is applied.

    Raises:
        RunError: it holds something else, or nothing to apply to.
    """
    marker = folder / "search.json"
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file: use another --output-dir")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    occupied = any(not name.endswith(PARTIAL) and name != REVIEW for name in names)
    if occupied and not marker.is_file():
        raise RunError(f"{folder} already holds something that is no search for label errors: use another --output-dir")
    if flags is None and not marker.is_file():
        raise RunError(f"{folder} holds no search for label errors, whose review could be applied: is it another one?")
    if overwrite or not (folder / "recipe.yaml").is_file():
        return
    if changes := learned_changes(saved_recipe(folder), recipe.to_dict()):
        raise RunError(
            f"the search in {folder} was started with another recipe: use another --output-dir, or --overwrite to "
            "remove it" + "".join(f"\n  {change}" for change in changes)
        )
    before = json.loads(marker.read_text(encoding="utf-8")).get("flags", {})
    for key, option in (("folds", "--folds"), ("tasks", "--task")):
        if flags is not None and key in before and before[key] != flags[key]:
            given = before[key] if key == "folds" else ",".join(before[key])
            raise RunError(
                f"the search in {folder} was started with {option} {given}: give that again, use another --output-dir, "
                "or --overwrite to remove it"
            )


def check_review(folder: Path, overwrite: bool) -> None:
    """That a review can be written once all folds are trained, which nobody knows where one is there before.

    Raises:
        RunError: one is there, and is of another search: this one has made no report yet, or begins again.
    """
    file = folder / REVIEW
    if file.exists() and (overwrite or not (folder / "report.json").is_file()):
        raise RunError(
            f"{file} is there already, of an earlier search, and may have been edited: take it in first "
            f"(--apply {file}), move it away, or leave out --review for now"
        )


def start_folder(folder: Path, recipe: Recipe, flags: Mapping[str, Any], overwrite: bool) -> None:
    """Make a folder ready for a search, or for going on.

    Raises:
        RunError: it cannot be written.
    """
    if overwrite:
        remove(folder, _OURS)
    if not (folder / "recipe.yaml").is_file():
        marker = {"versions": search_versions(), "command": command(), "flags": flags}
        write_text(folder / "search.json", json.dumps(marker) + "\n")
    write_text(folder / "recipe.yaml", recipe.to_yaml())


def search_versions() -> dict[str, str]:
    """The versions that what is found may depend on."""
    return versions() | {"cleanlab": version("cleanlab")}


def write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON Lines.

    Raises:
        RunError: they cannot be written; what was there before is untouched.
    """
    write_text(file, "".join(f"{as_json(line)}\n" for line in lines))


def write_review(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a review, unless one is there that is not the same: somebody may have edited it.

    Raises:
        RunError: one is.
    """
    text = "".join(f"{as_json(line)}\n" for line in lines)
    if file.exists() and file.read_text(encoding="utf-8", errors="replace") != text:
        raise RunError(
            f"{file} is there already, and is another one, or was edited: take it in (--apply {file}), or move it away"
        )
    write_text(file, text)

"""What the runs of a comparison answer for its test rows, kept in a file a run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlp_mtl.analysis.bootstrap import RowAnswers
from nlp_mtl.build_data import Prepared
from nlp_mtl.errors import RunError
from nlp_mtl.recipe import Recipe
from nlp_mtl.run_evaluation import answers
from nlp_mtl.storage import write_text


def kept_answers(
    file: Path,
    recipe: Recipe,
    splits: Mapping[str, str],
    digests: Mapping[str, Mapping[str, str]],
    *,
    write: bool = True,
) -> dict[str, RowAnswers]:
    """``{task: a finished run's answers}`` from its file, which is made first where it is missing or of an older run.

    Args:
        file: gets, for each task and dataset, the rows (by their places in the source) with gold and predicted labels.
        recipe: the run's.
        splits: ``{task: the split to answer for}``.
        digests: ``{dataset: {split: what rows_digest gives for it}}`` of the rows that are compared on.
        write: on this process; one does.

    Raises:
        RunError: the run answered for other rows than those.
    """
    folder = Path(recipe.output_dir)
    own_splits = {task: splits[task] for task in recipe.tasks}
    wanted = {
        "results": hashlib.sha256((folder / "results.json").read_bytes()).hexdigest(),
        "splits": own_splits,
    }
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if any(kept.get(key) != value for key, value in wanted.items()):
        made = {**wanted, "tasks": _answered(folder, recipe, own_splits)}
        text = json.dumps(made, ensure_ascii=False, default=sorted)  # sets of labels
        if write:
            write_text(file, text + "\n")
        kept = json.loads(text)  # the same values as those of a run that was kept before
    found = {}
    for task, datasets in kept["tasks"].items():
        for dataset, one in datasets.items():
            if one["digest"] != digests[dataset][splits[task]]:
                raise RunError(
                    f"{file} is of other {splits[task]} rows of `{dataset}` than there are now: bring the data back as "
                    "it was, or start again, with --overwrite"
                )
        found[task] = RowAnswers(
            [(dataset, splits[task], row) for dataset, one in datasets.items() for row in one["rows"]],
            [label for one in datasets.values() for label in one["gold"]],
            [label for one in datasets.values() for label in one["predicted"]],
        )
    return found


def _answered(folder: Path, recipe: Recipe, splits: Mapping[str, str]) -> dict[str, Any]:
    tasks: dict[str, Any] = {task: {} for task in recipe.tasks}
    for split in dict.fromkeys(splits.values()):
        prepared, found = answers(folder, recipe, split=split)
        for task, datasets in found.items():
            if splits[task] != split:
                continue
            for dataset, one in datasets.items():
                rows = prepared.loaded[dataset].splits[split].source_rows[one.rows].tolist()
                digest = rows_digest(prepared, dataset, split)
                tasks[task][dataset] = {"digest": digest, "rows": rows, "gold": one.gold, "predicted": one.predicted}
    return tasks


def rows_digest(prepared: Prepared, dataset: str, split: str) -> str:
    """A checksum of a split's rows: where in the source they stand, and their texts."""
    rows, columns = prepared.loaded[dataset].splits[split], prepared.loaded[dataset].text_columns
    digest = hashlib.sha256(rows.source.encode() + rows.source_rows.astype("u8").tobytes())
    for values in (values for column in columns for values in rows.values(column)):
        digest.update(json.dumps(values.to_pylist()).encode())
    return digest.hexdigest()

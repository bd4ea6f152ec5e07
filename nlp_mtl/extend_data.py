"""The datasets of a trained model's tasks in the recipe of a model that gets more of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from nlp_mtl.build_data import held_out
from nlp_mtl.build_extension import Base
from nlp_mtl.cleaning_checks import augmentations
from nlp_mtl.data.opening import is_on_hub
from nlp_mtl.errors import Problem, listed
from nlp_mtl.recipe import DatasetSpec
from nlp_mtl.recipe_parts import whole_path
from nlp_mtl.strategy_checks import is_true

Values = dict[str, Any]
"""What a recipe says, or a part of it, before it is checked."""


def old_datasets(base: Base, old: Sequence[str], data_dir: Any) -> dict[str, Values]:
    """What old tasks read, each with the folder that its files are in."""
    if base.recipe is None:
        return {}
    read = {name for task in old for name in base.recipe.tasks[task].columns()}
    given = whole_path(data_dir) if isinstance(data_dir, str) else None
    found = {}
    for name, spec in base.recipe.datasets.items():
        if name in read:
            own: Values = {"data_dir": given or spec.data_dir or base.recipe.data_dir}
            # Classes of a task that is left out are not balanced.
            own |= {key: None for key in ("oversample", "undersample") if getattr(spec, key) not in old}
            found[name] = {**spec.model_dump(mode="json"), **own}
    return found


def old_splits(base: Base, old: Mapping[str, Values], own: Values) -> Values:
    """How rows of the datasets that the model was trained on were held out."""
    if base.recipe is None:
        return {}
    again = [
        name for name, spec in base.recipe.datasets.items()
        if name in own and not _ROWS & {*_differing(spec.model_dump(mode="json"), own[name])}
    ]  # fmt: skip
    return {name: held_out(base.recipe, name).model_dump() for name in dict.fromkeys([*old, *again])}


_ROWS = frozenset({
    "path", "name", "revision", "data_files", "text", "text_pair", "tokens", "columns", "delimiter", "splits",
    "validation_fraction", "test_fraction", "stratify", "cleaning",
})  # fmt: skip
"""What says which rows a dataset has, and which of them can be held out; not where they lie and how they are used."""


def _differing(old: Values, own: Any, data_dir: Any = ".") -> dict[str, Any]:
    """What a recipe says otherwise of a dataset than a trained model's: ``{key: what it says}``."""
    try:
        spec = DatasetSpec.model_validate(own).model_dump(mode="json")
    except ValidationError:
        return {}  # it is told elsewhere
    if spec["data_files"] is None and is_on_hub(spec["path"], spec["data_dir"] or str(data_dir)):
        spec["data_dir"] = old["data_dir"]  # it says nothing there
    spec["data_dir"] = spec["data_dir"] or whole_path(str(data_dir))
    return {key: spec[key] for key, value in old.items() if spec[key] != value}


def name_problems(old: Mapping[str, Values], own: Values, data_dir: Any) -> list[Problem]:
    """A dataset of the recipe that has the name of an old one has to be the same."""
    problems = []
    for name in [name for name in old if name in own]:
        if differing := _differing(old[name], own[name], data_dir):
            key, said = next(iter(differing.items()))
            message = (
                f"an old task reads another dataset of this name ({key}: {old[name][key]!r:.100}, here {said!r:.100}): "
                "give this one another name"
            )
            moved = ", or say where the old data lie now, `extension.data_dir`" * ([*differing] == ["data_dir"])
            problems.append(Problem(f"datasets.{name}", message + moved))
    return problems


def row_problems(
    base: Base, key: str, wanted: Any, old: Mapping[str, Values], drawn: Mapping[str, Values]
) -> list[Problem]:
    """Training rows of old tasks that a key asks for and that cannot be had.

    Args:
        wanted: what the key says.
        old: the datasets of old tasks.
        drawn: those of which some rows are drawn.
    """
    streamed = [name for name, spec in drawn.items() if spec["streaming"]]
    if base.recipe is None:
        message = (
            f"it needs rows of old tasks, and there is no recipe beside {base.path} that tells where their data lie: "
            "give the run folder, or name the old tasks and their datasets in this recipe"
        )
    elif not old:
        message = "it needs rows of old tasks, and none is left that this recipe does not name itself: leave it out"
    elif key == "replay" and not drawn and wanted != "all":
        message = "new tasks read all datasets of old tasks, too, whose rows come anyway: say `replay: all`"
    elif streamed:
        message = (
            f"rows of {listed(streamed)} cannot be drawn, as it is streamed: leave its tasks out of "
            "`extension.old_tasks`, or name them in this recipe"
        )
    else:
        return []
    return [Problem(f"extension.{key}", message)]


def share_problems(sampling: Values, extension: Values, old: Mapping[str, Values]) -> list[Problem]:
    """Shares of old datasets, of which nothing is learned unless they are replayed."""
    shares = sampling.get("shares")
    named = [name for name in (shares if isinstance(shares, dict) else {}) if name in old]
    message = (
        "rows of an old dataset are learned from where `extension.replay` says how many: give it, or leave this out"
    )
    return [Problem(f"sampling.shares.{name}", message) for name in named if extension.get("replay") is None]


def share_of(sampling: Values, dataset: str) -> Any:
    """What a recipe says of how much of a dataset is learned from; 1 where it says nothing."""
    shares = sampling.get("shares")
    return shares.get(dataset, 1) if isinstance(shares, dict) else 1


def row_by_row_problems(datasets: Values, own: Values) -> list[Problem]:
    """Datasets that the old model cannot be asked about before training. ``own``: those that the recipe itself has."""
    problems = []
    for name, spec in datasets.items():
        if not isinstance(spec, dict):
            continue
        changes, found = augmentations(spec), []
        if is_true(spec.get("streaming")):
            found.append(("streaming", "the old model is asked of all rows before training"))
        if changes:
            found.append((f"augmentation.{changes[0]}", "the old model is asked of rows as they are"))
        for key, why in found:
            if name in own:
                message = f"{why} (`extension.distillation`): leave it out"
                problems.append(Problem(f"datasets.{name}.{key}", message))
            else:
                message = (
                    f"{why}, and the trained model's recipe says `{key}` of `{name}`: give the dataset that new tasks "
                    "read another name, or leave `distillation` out"
                )
                problems.append(Problem("extension.distillation", message))
    return problems

"""What is wrong with a recipe's extension, which only shows when its keys are held against each other."""

from collections.abc import Iterator
from typing import Any

from nlp_mtl.errors import Problem, listed
from nlp_mtl.strategy_checks import is_true, number

FISHER_ROWS = 1000
"""``fisher_rows``, where the recipe does not say."""

DISTILLATION_DEFAULTS: dict[str, Any] = {"temperature": 2.0, "teacher_weight": 0.5}
"""What ``distillation`` reads, where the recipe does not say. The temperature is that of Li and Hoiem."""


def against_forgetting(extension: dict[str, Any], training: dict[str, Any]) -> list[str]:
    """The keys, besides ``freeze``, that say how old tasks are kept. Reads raw values, whatever they are."""
    found = {
        "extension.replay": extension.get("replay") is not None,
        "extension.l2_to_start": number(extension.get("l2_to_start", 0)) != 0,
        "extension.distillation": distils(extension),
        "training.frozen_layers": training.get("frozen_layers", 0) not in (0, "0", None),
        "training.unfreeze_every": training.get("unfreeze_every") is not None,
    }
    return [key for key, given in found.items() if given]


def distils(extension: dict[str, Any]) -> bool:
    """Whether old tasks learn from the old model. Reads raw values, whatever they are."""
    given = extension.get("distillation")
    return bool(given) if isinstance(given, list) else is_true(given)


def extension_problems(
    extension: dict[str, Any], training: dict[str, Any], values: dict[str, Any]
) -> Iterator[Problem]:
    """Keys that do not go together, or that nothing reads. Reads raw values, whatever they are."""
    if values.get("meta") is not None:
        yield Problem("meta", "a meta run ends in an encoder, without the tasks of a model that it could extend")
    others = against_forgetting(extension, training)
    if extension.get("freeze") == "model" and others:
        message = f"`model` keeps all of the old model as it is, so {listed(others)} has nothing to do; choose one"
        yield Problem("extension.freeze", message)
    if extension.get("importance") == "fisher" and number(extension.get("l2_to_start", 0)) == 0:
        yield Problem("extension.importance", "only `l2_to_start` reads it: give that as well")
    if number(extension.get("fisher_rows", FISHER_ROWS)) != FISHER_ROWS and extension.get("importance") != "fisher":
        yield Problem("extension.fisher_rows", "only `importance: fisher` reads it")
    if not distils(extension):
        for key, default in DISTILLATION_DEFAULTS.items():
            if number(extension.get(key, default)) != default:
                yield Problem(f"extension.{key}", "only `distillation` reads it: give that as well")
    elif values.get("distillation") is not None:
        message = "`distillation` has its own teachers, weights and temperature; choose one of both"
        yield Problem("extension.distillation", message)
    replays, has_teacher = extension.get("replay") is not None, distils(extension)
    if has_teacher and not replays and number(extension.get("teacher_weight", 0.5)) != 0.5:
        yield Problem("extension.teacher_weight", "it is about labels of replayed rows: give `replay` as well")
    if number(extension.get("old_weight", 1)) != 1 and not (replays or has_teacher):
        yield Problem("extension.old_weight", "only `replay` and `distillation` read it: give one of them as well")

"""Reading recipes: YAML, overrides, and every problem told at once with its path and the likely fix."""

import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from nlp_mtl.errors import Problem, RecipeError, did_you_mean, listed
from nlp_mtl.recipe_checks import cross_problems

_Model = TypeVar("_Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice: PyYAML would silently keep the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key `{key.value}` stands twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node


# What a text that is not YAML raises: a date with a 13th month is a ValueError, [[[[[... too deep a recursion.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], list[Problem], str]:
    """The values of a recipe file with overrides applied, problems so far, and the file's name.

    A ``data_dir`` of the file, also of a dataset or of the extension, is taken from the file's folder; one of an
    override stays as it is, and so is relative to the current directory.

    Raises:
        RecipeError: the file cannot be read, or holds no keys.
    """
    text = _read_text(path)
    try:
        values = yaml.load(text, _Loader)
    except _NOT_YAML as error:
        raise RecipeError([Problem("", f"not valid YAML: {_yaml_error(error)}")], str(path)) from error
    if not isinstance(values, dict):
        raise RecipeError([Problem("", f"found {_short(values)}, expected keys such as `encoder:`")], str(path))
    values.setdefault("data_dir", ".")
    datasets = values.get("datasets")
    datasets = datasets if isinstance(datasets, dict) else {}
    for section in (values, values.get("extension"), *datasets.values()):
        if isinstance(section, dict) and isinstance(section.get("data_dir"), str):
            section["data_dir"] = str(path.parent / os.path.expanduser(section["data_dir"]))
    problems = [_apply_override(values, override) for override in overrides]
    return values, [problem for problem in problems if problem], str(path)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        message = f"not a text in UTF-8: {_one_line(error)}"
    except (FileNotFoundError, NotADirectoryError, ValueError):
        near = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        message = f"there is no such file.{did_you_mean(path.name, near)}"
    except IsADirectoryError:
        message = "a folder; give the recipe file itself"
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    raise RecipeError([Problem("", message)], _short(str(path), 200).strip("'"))


def _apply_override(values: dict[str, Any], override: str) -> Problem | None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        return Problem("", f"the override `{override}` is not of the form key=value")
    if not text.strip():
        return Problem(key, f"the override `{override}` has no value; `{key}=null` takes the default")
    try:
        value = yaml.load(text, _Loader)
    except _NOT_YAML as error:
        return Problem(key, f"the override's value is not valid YAML: {_yaml_error(error)}")
    *parents, last = key.split(".")
    section: Any = values
    for depth, parent in enumerate(parents):
        if section.get(parent) is None or section[parent] is _DEFAULT:
            near = did_you_mean(parent, map(str, section)) if parents[:depth] in (["tasks"], ["datasets"]) else ""
            if near:  # a new one would be far from those that are there
                return Problem(key, f"there is no `{parent}` in `{parents[0]}`.{near}")
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            return Problem(key, f"`{'.'.join(parents[: depth + 1])}` is a value, it has no keys below it")
    section[last] = _DEFAULT if value is None else value
    return None


_DEFAULT = object()
"""What an override of null puts in a key's place."""


def without_nulls(cls: type[BaseModel], values: dict[str, Any], place: tuple[str, ...] = ()) -> dict[str, Any]:
    """Values of which keys that overrides set to null are gone, so that they take their defaults; a key that nobody
    knows stays, to be told, and so does a split's name, of which null says that it is not used."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict) and len(place) < 8:  # what holds itself ends somewhere, too
            value = without_nulls(cls, value, (*place, str(key)))
        if value is _DEFAULT:
            known = _place(cls, {"loc": place})[2] if place else [*cls.model_fields]
            if key in known or (not known and place[-1:] != ("splits",)):
                continue
            value = None
        found[key] = value
    return found


def validate(cls: type[_Model], values: dict[str, Any], problems: Sequence[Problem], source: str) -> _Model:
    """The recipe that ``values`` describe.

    Raises:
        RecipeError: with the given problems and all that are found here.
    """
    if not isinstance(values, dict):
        raise RecipeError([Problem("", f"found {_short(values)}, expected keys such as `encoder`")], source)
    values = without_nulls(cls, values)
    recipe, found = None, list(problems)
    try:
        recipe = cls.model_validate(values)
    except ValidationError as error:
        found += _pydantic_problems(cls, error)
    # One problem a path: a union tells the same mistake once for each of its members.
    found = list({problem.path or problem.message: problem for problem in reversed(found)}.values())[::-1]
    told = {problem.path for problem in found}
    found += dict.fromkeys(problem for problem in cross_problems(values) if problem.path not in told)
    if found:
        raise RecipeError(found, source)
    assert recipe is not None
    return recipe


def _pydantic_problems(cls: type[BaseModel], error: ValidationError) -> list[Problem]:
    """All of pydantic's errors in our words, in the order of the recipe's keys."""
    told = [(_problem(cls, detail), _place(cls, detail)[1]) for detail in error.errors()]
    # A mapping with one bad entry is also no text and no list: only the entry is worth telling.
    return [
        problem
        for problem, of_union in told
        if not (of_union and any(other.path.startswith(f"{problem.path}.") for other, _ in told))
    ]


def _place(cls: type[BaseModel], detail: Any) -> tuple[list[Any], bool, list[str]]:
    """Where a pydantic error is: the keys on the way, whether it ends in a union, and the keys known there."""
    place: list[Any] = []
    current: Any = cls
    of_union = False
    for part in detail["loc"]:
        if part == "[key]" and place:  # the key itself is wrong; pydantic writes True as 1
            place[-1] = detail["input"]
            continue
        members = [m for m in get_args(current) if m is not NoneType] if _is_union(current) else []
        of_union = len(members) > 1
        if of_union:  # pydantic names the member of a union here, not a key
            current = next((m for m in members if str(part).startswith((get_origin(m) or m).__name__)), None)
            continue
        place.append(part)
        current = members[0] if members else current
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        else:
            current = get_args(current)[-1] if get_args(current) else None
    current = _section(current)
    return place, of_union, list(current.model_fields) if current else []


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, also where it may be left out; None: it holds a value."""
    members = [m for m in get_args(annotation) if m is not NoneType] if _is_union(annotation) else [annotation]
    one = members[0] if len(members) == 1 else None
    return one if isinstance(one, type) and issubclass(one, BaseModel) else None


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def _problem(cls: type[BaseModel], detail: Any) -> Problem:
    """A pydantic error in our words."""
    place, _, known = _place(cls, detail)
    path = ".".join(map(str, place))
    kind, found = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return Problem(path, unknown_key(cls, place))
    if kind == "missing":
        return Problem(path, "missing; every recipe needs it" if len(place) == 1 else "missing")
    if kind in ("dict_type", "model_type"):
        return Problem(
            path, f"found {_short(found)}, expected keys with values" + (f": {listed(known, 6)}" if known else "")
        )
    if kind == "too_short":
        return Problem(path, f"found {_short(found)}, expected at least one entry")
    if kind == "literal_error":
        allowed = _literals(detail["ctx"]["expected"])
        return Problem(path, f"found {_short(found)}, allowed: {listed(allowed)}.{did_you_mean(str(found), allowed)}")
    if kind == "string_pattern_mismatch":
        return Problem(path, f"the name {found!r} may hold letters, digits, `_` and `-`, and starts with a letter")
    if kind == "string_type" and isinstance(found, bool):
        return Problem(
            path,
            f"found the boolean {found} (YAML reads bare yes, no, on, off as booleans): put it in quotes",
        )
    if kind == "string_type" and isinstance(found, int | float | date):
        return Problem(path, f"found {found}, which is no text: put it in quotes")
    wanted = detail["msg"].split(", unable to parse")[0].replace("Input", "it", 1)
    return Problem(path, f"found {_short(found)}, but {_lower_first(wanted)}")


def unknown_key(cls: type[BaseModel], place: Sequence[Any]) -> str:
    """What to say of a key that is not known where it stands."""
    key = str(place[-1])
    known = _place(cls, {"loc": place[:-1]})[2]
    near = did_you_mean(key, known)
    sections = {name: _section(field.annotation) for name, field in cls.model_fields.items()}
    elsewhere = [*cls.model_fields] + [
        f"{name}.{inner}" for name, section in sections.items() if section for inner in section.model_fields
    ]
    same = [path for path in elsewhere if path.split(".")[-1] == key]
    if same:  # the right key in the wrong place
        near = f" Did you mean `{same[0]}`?"
    return f"unknown key `{key}`." + (near or f" Known here: {listed(known, 50)}")


def changed_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """The paths at which two resolved recipes differ, each with both values."""
    changes = []
    for key in [*old, *(key for key in new if key not in old)]:
        left, right = old.get(key), new.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            changes += changed_keys(left, right, f"{prefix}{key}.")
        elif left != right:
            changes.append((f"{prefix}{key}", left, right))
    return changes


def _literals(expected: str) -> list[str]:
    return [part.strip("' ") for part in expected.replace(" or ", ", ").split(", ")]


def _yaml_error(error: Exception) -> str:
    """What is wrong and where, in one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        told = " ".join(part for part in (error.context, error.problem) if part)
        return f"{told} (line {mark.line + 1}, column {mark.column + 1})"
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _short(value: Any, limit: int = 60) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]

"""What ``nlp-mtl tune`` searches: keys of a recipe, with the values that each may take. No torch, no Optuna."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
import yaml
from pydantic import BaseModel

from nlp_mtl.errors import Problem, RecipeError, did_you_mean, listed
from nlp_mtl.recipe import COMPUTATION, Recipe
from nlp_mtl.recipe_parts import Scalar
from nlp_mtl.recipe_reading import unknown_key

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?(?::(\d+))?")
_SYNTAX = "a list such as 0.5,1,2, or a range such as 0.5..2, 1e-5..1e-4:log or 1e-5..1e-4:log:4 (four of its values)"

MOST_POINTS = 10_000
"""Of a grid: more trials than anybody will wait for."""

# What decides what a score measures, or when: trials that differ in it cannot be held against each other.
_MEASURES = ("training.selection_weights", "training.eval_every")
_OF_TASKS, _OF_DATASETS = (
    ("loss_weight", "init_from", "init_from_revision"),
    ("buffer_size", "oversample", "undersample"),
)


class Choices(NamedTuple):
    """A key that takes one of some values."""

    key: str
    values: tuple[Scalar, ...]

    @property
    def told(self) -> list[Scalar]:
        """As a recipe has it."""
        return [*self.values]


class Range(NamedTuple):
    """A key that takes any number between two, both included."""

    key: str
    low: float
    high: float
    log: bool = False
    """Whether numbers of each size are as likely: 1e-5 to 1e-4 as 1e-4 to 1e-3."""

    @property
    def values(self) -> tuple[float, float]:
        """The ends."""
        return self.low, self.high

    @property
    def told(self) -> str:
        """As a recipe has it."""
        return f"{_shortest(self.low)}..{_shortest(self.high)}{':log' * self.log}"


def _shortest(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


Dimension = Choices | Range
Point = dict[str, Scalar]
"""A value for each key."""


def search_space(recipe: Recipe) -> list[Dimension]:
    """The space that a recipe's ``tune`` section says, or the default one, by the names of its keys.

    Raises:
        RecipeError: a key is not known, is not for searching, or a value is none that the recipe takes; all at once.
    """
    search = recipe.tune.search if recipe.tune else {}
    method = recipe.tune.method if recipe.tune else "tpe"
    if method == "grid" and not search:
        message = "a grid has no default: say the values of each key that is searched"
        raise RecipeError([Problem("tune.search", message)], "the search space")
    problems: list[Problem] = []
    space: list[Dimension] = []
    for key, given in sorted((search or default_search(recipe)).items()):
        found = _key_problem(recipe, key) or _dimension(key, given, _kinds(key) or set())
        if isinstance(found, str):
            problems.append(Problem(key, found))
        elif method == "grid" and isinstance(found, Range):
            problems.append(Problem(key, f"a grid needs points: {found.told}:4, say, takes four of the range"))
        else:
            space.append(found)
    if not problems and method == "grid" and (size := grid_size(space)) > MOST_POINTS:
        problems.append(Problem("tune.search", f"the grid has {size:,} points, {MOST_POINTS:,} are allowed"))
    if not problems:
        problems += _refused(recipe, space)
    if problems:
        raise RecipeError(problems, "the search space")
    return space


def default_search(recipe: Recipe) -> dict[str, Any]:
    """What is searched where nobody says: around the recipe's values, on a scale of logarithms.

    Loss weights by four in both directions (not that of a task alone, and not of one that is not learned), learning
    rates by five; and the temperature of sampling from 1 to 5, where there are several datasets of known size and the
    recipe samples by rows (temperature 1) or by temperature.
    """
    weights = {f"tasks.{name}.loss_weight": task.loss_weight for name, task in recipe.tasks.items() if task.loss_weight}
    search: dict[str, Any] = {}
    for key, value in weights.items() if len(weights) > 1 else ():
        search[key] = _around(value, 4)
    if recipe.training.frozen_layers != "encoder":
        search["training.learning_rate"] = _around(recipe.training.learning_rate, 5)
    search["training.head_learning_rate"] = _around(recipe.training.head_learning_rate, 5)
    known = not any(dataset.streaming for dataset in recipe.datasets.values())
    if len(recipe.datasets) > 1 and known and recipe.sampling.strategy in ("proportional", "temperature"):
        search |= {"sampling.strategy": "temperature", "sampling.temperature": "1..5"}
    return search


def _around(value: float, factor: float) -> str:
    return f"{value / factor:.6g}..{value * factor:.6g}:log"


def parse_search(options: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUES`` of the command line, as a recipe's ``tune.search`` has them.

    Raises:
        RecipeError: one is not of this form, or a key stands twice.
    """
    search: dict[str, Any] = {}
    problems = []
    for option in options:
        key, equals, values = option.partition("=")
        if not (key and equals and values):
            problems.append(Problem("", f"`{option}` is not of the form KEY=VALUES; values are {_SYNTAX}"))
        elif key in search:
            problems.append(Problem(key, "stands twice"))
        search[key] = values
    if problems:
        raise RecipeError(problems, "--search")
    return search


def with_settings(recipe: Recipe, given: Mapping[str, Any]) -> Recipe:
    """The recipe with other settings in its ``tune`` section; None, or no search: as it says.

    Raises:
        RecipeError: it takes no such value.
    """
    values = recipe.to_dict()
    said = {key: value for key, value in given.items() if value not in (None, {})}
    return Recipe.from_dict({**values, "tune": {**(values["tune"] or {}), **said}})


def with_values(recipe: Recipe, point: Mapping[str, Any]) -> Recipe:
    """The recipe with other values.

    Raises:
        RecipeError: it takes no such value.
    """
    values = recipe.to_dict()
    for key, value in point.items():
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section[name] = {} if section[name] is None else section[name]  # what it lacks is told below
            section = section[name]
        section[last] = value
    return Recipe.from_dict(values)


def grid_size(space: Sequence[Dimension]) -> int:
    """The number of a grid's points."""
    return math.prod(len(one.values) for one in space)


def grid(space: Sequence[Dimension], seed: int) -> list[Point]:
    """All points, each once, in an order that the seed draws: where a search ends early, it has seen all sides."""
    keys = [one.key for one in space]
    points = [dict(zip(keys, values, strict=True)) for values in itertools.product(*(one.values for one in space))]
    return [points[place] for place in np.random.default_rng(seed).permutation(len(points))]


def _kinds(key: str) -> set[Any] | None:
    """What a key of a recipe may hold: types, and the values of choices; None: there is no such key."""
    current: Any = Recipe
    for part in key.split("."):
        members = [one for one in _members(current) if one is not NoneType]
        current = members[0] if len(members) == 1 else None
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[part].annotation
        elif get_origin(current) is dict:
            current = get_args(current)[1]
        else:
            return None
    return {*_members(current)}


def _members(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows; of choices their values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _members(arguments[0])
    elif origin is Literal:
        yield from arguments
    elif arguments and origin not in (dict, list):
        for one in arguments:
            yield from _members(one)
    else:
        yield annotation


def _key_problem(recipe: Recipe, key: str) -> str | None:
    """Why a key cannot be searched; None: it can."""
    parts, kinds = key.split("."), _kinds(key)
    if parts[0] in ("tasks", "datasets") and len(parts) > 1:
        known = getattr(recipe, parts[0])
        if parts[1] not in known:
            return f"there is no `{parts[1]}` in `{parts[0]}`.{did_you_mean(parts[1], known)}"
    if kinds is None:
        return unknown_key(Recipe, parts)
    allowed = {"tasks": _OF_TASKS, "datasets": _OF_DATASETS}.get(parts[0])
    if allowed and len(parts) > 2 and parts[2] not in allowed:
        return f"it decides what is read and measured, so it is not searched; of {parts[0]}: {listed(allowed)}"
    if key in ("seed", "split_seed"):
        return "the best of several seeds is chance, and the validation rows may depend on it: it is not searched"
    if ".".join(parts[:2]) in _MEASURES:
        return "it decides what a score measures, or when, so trials could not be compared: it is not searched"
    if key in COMPUTATION or parts[0] in ("hub", "tune"):
        return "it does not say what is learned, so no score depends on it: it is not searched"
    if any((isinstance(one, type) and issubclass(one, BaseModel)) or get_origin(one) in (dict, list) for one in kinds):
        return "it holds several values; a key with a number, a text or a choice is searched"
    return None


def _dimension(key: str, given: Any, kinds: set[Any]) -> Dimension | str:
    """The dimension that a value of ``tune.search`` describes, or what is wrong with it."""
    is_number = bool({int, float} & kinds)
    match = _RANGE.fullmatch(given.replace(" ", "")) if isinstance(given, str) else None
    if match is None:
        values = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
        found = tuple(_scalar(value, is_number) for value in values)
        if not found or "" in found:
            return f"found {given!r}, expected {_SYNTAX}"
        if is_number and any(isinstance(value, str) and ".." in value for value in found):
            return f"found {given!r}, expected {_SYNTAX}"
        if len({(isinstance(value, bool), value) for value in found}) < len(found):
            return f"found {given!r}, in which a value stands twice"
        return Choices(key, found)
    if not is_number:
        return f"found the range {given}, but the key takes no numbers: give a list"
    low, high, log, points = float(match[1]), float(match[2]), bool(match[3]), int(match[4]) if match[4] else None
    whole = int in kinds and float not in kinds
    if low >= high:
        return f"found {given}, but the first number has to be less than the last"
    if log and low <= 0:
        return f"found {given}, but a range of logarithms starts above 0"
    if whole and (low % 1 or high % 1):
        return f"found {given}, but the key takes whole numbers"
    if points is None:
        return Range(key, int(low) if whole else low, int(high) if whole else high, log)
    if points < 2:
        return f"found {given}, but a range has at least two points: its ends"
    spaced = np.geomspace(low, high, points) if log else np.linspace(low, high, points)
    numbers = [round(one) if whole else float(f"{one:.6g}") for one in spaced.tolist()]
    return Choices(key, tuple(dict.fromkeys(numbers)))


def _scalar(value: Any, is_number: bool) -> Any:
    """A value of a list: texts as YAML reads them, and numbers that YAML reads as text."""
    if not isinstance(value, str):
        return value
    try:
        read = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        return value.strip()
    if not isinstance(read, bool | int | float | str | NoneType) or (read is None and not value.strip()):
        return value.strip()
    if is_number and isinstance(read, str) and re.fullmatch(_NUMBER, read):
        return float(read)
    return read


def _refused(recipe: Recipe, space: Sequence[Dimension]) -> list[Problem]:
    """What the recipe says to the values: to each by itself, and, where all are fine, to each two together.

    Of a range the ends are tried: no key takes both and refuses what lies between.
    """
    first = {one.key: one.values[0] for one in space}
    singles = ({one.key: value} for one in space for value in one.values)
    pairs = (
        {one.key: value, other.key: beside}
        for one, other in itertools.combinations(space, 2)
        for value in one.values
        for beside in other.values
    )
    return _problems(recipe, first, singles) or _problems(recipe, first, pairs)


def _problems(recipe: Recipe, first: Point, points: Iterable[Point]) -> list[Problem]:
    """What is wrong with points, each problem once, with the first point that has it."""
    found: dict[Problem, Point] = {}
    for point in points:
        try:
            with_values(recipe, first | point)
        except RecipeError as error:
            found = dict.fromkeys(error.problems, point) | found
    return [Problem(one.path, f"{one.message} (with {_where(one, point, first)})") for one, point in found.items()]


def _where(problem: Problem, point: Point, first: Point) -> str:
    told = " and ".join(f"{key}={value}" for key, value in point.items())
    alone = problem.path in point or len(point) == len(first)
    return told if alone else f"{told} and the first value of each other key"

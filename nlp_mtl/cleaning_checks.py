"""What is wrong with a recipe's cleaning, which only shows when its keys are held against each other."""

from collections.abc import Iterator
from typing import Any

from nlp_mtl.errors import Problem, listed
from nlp_mtl.strategy_checks import is_true, number
from nlp_mtl.task_types import kind_named

ROW_KEYS = ("drop_duplicates", "duplicate_threshold", "min_words", "max_words")
"""Keys of a dataset's ``cleaning`` that say which of its rows are left out; the others are about texts."""

NEAR = 0.8
"""``duplicate_threshold``, where the recipe does not say."""

_LOOKS_BEYOND_WORDS = ("remove_html", "remove_stop_words", "remove_punctuation", "normalize_white_space")
_LEAVES_OUT_WORDS = {"remove_stop_words": None, "remove_punctuation": None, "replace_urls": "", "replace_usernames": ""}
"""Keys, and the value with which they do; None: any."""


def steps_of(cleaning: Any) -> dict[str, Any]:
    """The steps of a `cleaning` section that do something to texts. Reads raw values, whatever they are."""
    given = cleaning if isinstance(cleaning, dict) else {}
    return {key: value for key, value in given.items() if key not in ROW_KEYS and value not in (None, False, [])}


def cleaning_problems(cleaning: Any, datasets: dict[str, Any], tasks: dict[str, Any]) -> Iterator[Problem]:
    """Steps that do not go with what tasks need, or leave open what prediction does."""
    sections = {"cleaning": cleaning}
    specs = {str(name): spec for name, spec in datasets.items() if isinstance(spec, dict)}
    sections |= {f"datasets.{name}.cleaning": spec.get("cleaning") for name, spec in specs.items()}
    kinds = {str(name): kind_named(task.get("type")) for name, task in tasks.items() if isinstance(task, dict)}
    of_words = [name for name, kind in kinds.items() if kind is not None and kind.reads_words]
    for path, section in sections.items():
        for key, value in steps_of(section).items():
            if of_words and key in _LEAVES_OUT_WORDS and _LEAVES_OUT_WORDS[key] in (None, value):
                message = f"it leaves out words, and {listed(of_words)} labels every word of the texts that it reads"
                yield Problem(f"{path}.{key}", f"{message}; leave it out" + (", or give a word" if value == "" else ""))
    for name, spec in specs.items():
        path = f"datasets.{name}.cleaning"
        own = spec.get("cleaning")
        own = own if isinstance(own, dict) else {}
        for key in steps_of(own):
            if spec.get("tokens") and key in _LOOKS_BEYOND_WORDS:
                yield Problem(
                    f"{path}.{key}", "it is for running text, and this dataset's texts come as lists of words"
                )
        yield from _row_problems(path, own, spec)
        yield from _augmentation_problems(f"datasets.{name}.augmentation", spec)
    yield from _open_problems(cleaning, specs)


def _row_problems(path: str, own: dict[str, Any], spec: dict[str, Any]) -> Iterator[Problem]:
    given = [key for key in ROW_KEYS if own.get(key) is not None and key != "duplicate_threshold"]
    if is_true(spec.get("streaming")) and given:
        yield Problem(f"{path}.{given[0]}", "rows of a stream are not looked at before they come; leave it out")
    if number(own.get("duplicate_threshold", NEAR)) != NEAR and own.get("drop_duplicates") != "near":
        yield Problem(f"{path}.duplicate_threshold", "only `drop_duplicates: near` reads it")
    if number(own.get("min_words", 0)) > number(own.get("max_words") or float("inf")):
        yield Problem(f"{path}.min_words", "it is more than `max_words`, which leaves no row")


def augmentations(spec: dict[str, Any]) -> list[str]:
    """The keys of a dataset's `augmentation` that change rows."""
    given = spec.get("augmentation")
    given = given if isinstance(given, dict) else {}
    return [key for key, value in given.items() if key != "rows" and number(value) > 0]


def _augmentation_problems(path: str, spec: dict[str, Any]) -> Iterator[Problem]:
    given = spec.get("augmentation")
    given = {key: number(value) for key, value in given.items()} if isinstance(given, dict) else {}
    changes = augmentations(spec)
    if is_true(spec.get("streaming")) and changes:
        yield Problem(f"{path}.{changes[0]}", "rows of a stream come as they are; leave it out")
    if not changes and given.get("rows", 1) != 1:
        yield Problem(f"{path}.rows", "nothing is done to these rows: give `word_dropout`, `typos`, ... as well")
    if given.get("rows") == 0 and changes:
        yield Problem(f"{path}.rows", "0 changes no row; leave the section out")


def _open_problems(cleaning: Any, specs: dict[str, dict[str, Any]]) -> Iterator[Problem]:
    """Where datasets are cleaned in different ways, and nothing says how texts are at prediction."""
    if steps_of(cleaning):
        return
    found = [steps_of(spec.get("cleaning")) for spec in specs.values()]
    if any(one != found[0] for one in found):
        named = [name for name, one in zip(specs, found, strict=True) if one]
        yield Problem(
            "cleaning",
            f"{listed(named)} cleans texts in its own way, so it is open what is done to texts at prediction: say it "
            "here, for all datasets; a dataset's `cleaning` may then differ",
        )

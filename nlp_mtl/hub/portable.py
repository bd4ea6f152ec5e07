"""A run's recipe and results as others may see them: without folders of the machine that it ran on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def portable_recipe(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A resolved recipe without such folders, without ``hub``, where only its owner can push, and without ``tune``.

    Args:
        name: the run's.
    """
    datasets = {
        dataset: {
            **spec,
            "path": _place(spec.get("path")),
            "data_files": _places(spec.get("data_files")),
            "data_dir": None,
        }
        for dataset, spec in recipe["datasets"].items()
    }
    tasks = {task: {**spec, "init_from": _place(spec.get("init_from"))} for task, spec in recipe["tasks"].items()}
    distillation = recipe.get("distillation")
    if distillation is not None:
        distillation = {**distillation, "teachers": _places(distillation["teachers"])}
    extension = recipe.get("extension")
    if extension is not None:
        extension = {**extension, "model": _place(extension["model"]), "data_dir": None}
    small = recipe.get("compression")
    if small is not None:
        files = _places(small["vocabulary_files"])
        small = {**small, "model": _place(small["model"]), "vocabulary_files": files}
    own = {
        "compression": small,
        "distillation": distillation,
        "extension": extension,
        "encoder": _place(recipe["encoder"]),
        "data_dir": ".",
        "output_dir": f"runs/{name}",
    }
    return {**recipe, "datasets": datasets, "tasks": tasks, **own, "hub": None, "tune": None}


def portable_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """What ``results.json`` holds, without such folders; the command may name some."""
    data = {
        dataset: {
            **{key: _place(value) for key, value in told.items()},
            "splits": {
                split: {**found, "files": _places(found.get("files", []))} for split, found in told["splits"].items()
            },
        }
        for dataset, told in results["data"].items()
    }
    encoder = {**results["encoder"], "name": _place(results["encoder"]["name"])}
    own = {"teachers": _places(results["teachers"])} if "teachers" in results else {}
    if "extension" in results:
        own["extension"] = {**results["extension"], "model": _place(results["extension"]["model"])}
    return {
        **{key: value for key, value in results.items() if key != "command"},
        **own,
        "encoder": encoder,
        "data": data,
    }


def _places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _places(one) for key, one in value.items()}
    return [_places(one) for one in value] if isinstance(value, list) else _place(value)


def _place(value: Any) -> Any:
    """A path outside the recipe's folder by its last part; anything else as it is."""
    if isinstance(value, str) and (value.startswith(("~", "../", "file:")) or Path(value).is_absolute()):
        return f"./{Path(value).name}"
    return value

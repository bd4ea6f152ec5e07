"""What a run read, as its results tell it."""

from pathlib import Path
from typing import Any

from nlp_mtl.build_data import Prepared
from nlp_mtl.data.opening import is_on_hub
from nlp_mtl.recipe import Recipe


def describe_data(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What a run read, for ``results.json``: ``{dataset: where it is from, and its splits}``."""
    described = {}
    for dataset, splits in prepared.encoded.items():
        spec = recipe.datasets[dataset]
        data_dir = spec.data_dir or recipe.data_dir
        told: dict[str, dict[str, Any]] = {
            name: {
                "rows": len(split),
                "taken_from": split.source.source,
                "files": [_relative(file, data_dir) for file in split.source.files],
            }
            for name, split in splits.items()
        }
        if dataset in prepared.streams:
            stream = prepared.streams[dataset].source
            files = [_relative(file, data_dir) for file in stream.source.files]
            train = {"rows": stream.num_rows, "taken_from": stream.split, "files": files, "streamed": True}
            told = {"train": train, **told}
        place = spec.model_dump(include={"path", "name", "revision"}, exclude_none=True)
        described[dataset] = {**place, "from_hub": is_on_hub(spec.path, data_dir), "splits": told}
    return described


def _relative(file: str, data_dir: str) -> str:
    """A file's path as seen from ``data_dir``, where it lies below it."""
    path = Path(file)
    return path.relative_to(data_dir).as_posix() if path.is_relative_to(data_dir) else file

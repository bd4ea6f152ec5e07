"""The folder of a compressed model: who may use it, and ``compression.json``, which tells what was asked and found."""

import gzip
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch

from nlp_mtl.errors import RunError, first_line
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.recipe_compression import REPORT
from nlp_mtl.recipe_reading import changed_keys
from nlp_mtl.run_folder import RUN_FILES, learned_changes
from nlp_mtl.storage import PARTIAL, held, remove, write_text

COMPRESSED = "compressed"
"""The model as it was before training, where it is trained afterwards."""


@contextmanager
def held_folder(folder: Path) -> Iterator[None]:
    """As :func:`nlp_mtl.storage.held`; a folder that was made for it goes again where an error leaves it empty."""
    made = not folder.exists()
    with held(folder):
        try:
            yield
        except BaseException:
            if made:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
            raise


def check_folder(folder: Path, asked: Mapping[str, Any], overwrite: bool) -> dict[str, Any]:
    """What the report of a folder, which is there, holds so far; empty: nothing was found yet.

    Args:
        asked: what is compressed, and how.

    Raises:
        RunError: the folder holds something else; nothing was changed.
    """
    if all(path.name.endswith(PARTIAL) for path in folder.iterdir()):  # empty, or killed in its first report
        return {}
    if not (folder / REPORT).is_file():
        raise RunError(f"{folder} already holds files, but no compressed model: use another folder")
    if overwrite:
        return {}
    try:
        found: dict[str, Any] = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        changes = _changes(found["asked"], asked)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{folder / REPORT} cannot be read, --overwrite starts again: {first_line(error)}") from error
    if changes:
        raise RunError(
            f"{folder} holds what came of something else, so it does not go on with this (--overwrite removes it):"
            + "".join(f"\n  {change}" for change in changes)
        )
    return found


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    changes = [] if old["digest"] == new["digest"] else [f"the model: {old['model']} -> {new['model']}, other weights"]
    # The model lies in the folder, wherever that is, and follows from what is compared here.
    left, right = ({**one["compression"], "model": None} for one in (old, new))
    pairs = changed_keys(left, right, "compression.")
    changes += [f"{key}: {before!r} -> {now!r}" for key, before, now in pairs]
    if (old["recipe"] is None) != (new["recipe"] is None):
        changes.append("a recipe is given" if old["recipe"] is None else "no recipe is given")
    elif new["recipe"] is not None:
        changes += learned_changes(old["recipe"], new["recipe"])
    return changes


def start_folder(folder: Path, asked: Mapping[str, Any]) -> None:
    """Remove what was in a folder before. The new report comes first: the old one would vouch for what is gone.

    Raises:
        RunError: it cannot be written.
    """
    save_report(folder, {"asked": dict(asked)})
    remove(folder, (*RUN_FILES, COMPRESSED))


def save_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write ``compression.json``.

    Raises:
        RunError: it cannot be written.
    """
    write_text(folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def sizes(model: MultiTaskModel, *, zipped: bool) -> dict[str, int]:
    """``parameters``; ``bytes`` of the weights as a file; with ``zipped`` also ``gzip_bytes``, packed by gzip."""
    data = safetensors.torch.save({name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()})
    found = {"parameters": sum(one.numel() for one in model.parameters()), "bytes": len(data)}
    if zipped:
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as file:
            file.write(data)
        found["gzip_bytes"] = packed.tell()
    return found

"""Files and folders that are written whole or not at all: aside, synced to disk, and renamed."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from nlp_mtl.errors import RunError

PARTIAL = ".partial"
"""The end of a name under which something is being written, or removed."""


def aside(path: Path) -> Path:
    """Where a file or folder is written before it gets its name."""
    return path.with_name(path.name + PARTIAL)


def write_text(path: Path, text: str) -> None:
    """Write a file; one that was there before is replaced at once, or untouched.

    Raises:
        RunError: it cannot be written.
    """
    partial = aside(path)
    try:
        try:
            partial.write_text(text, encoding="utf-8")
            _sync(partial)
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def written_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name at the end of the ``with`` block; one that had it before makes way then.

    Raises:
        RunError: it cannot be written; what was there before is untouched.
    """
    partial = aside(folder)
    before = folder.with_name(f"{folder.name}-before{PARTIAL}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        for path in partial.rglob("*"):
            if path.is_file():  # who may read the folder may read its files: safetensors lets only their owner
                path.chmod(partial.stat().st_mode & 0o666)
            _sync(path)
        shutil.rmtree(before, ignore_errors=True)
        if folder.exists():
            os.replace(folder, before)
        os.replace(partial, folder)
        _sync(folder.parent)
    except BaseException as error:  # also what has no place to be told: Ctrl-C leaves nothing half-written
        shutil.rmtree(partial, ignore_errors=True)
        if before.exists() and not folder.exists():
            os.replace(before, folder)
        if isinstance(error, OSError | SafetensorError):
            raise cannot_write(folder, error) from error
        raise
    shutil.rmtree(before, ignore_errors=True)


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files and folders in a folder, in that order; not all of them need be there.

    Raises:
        RunError: one cannot be removed.
    """
    for path in (folder / name for name in names):
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{folder} cannot be written: {error.strerror}") from error


def cannot_write(path: Path, error: Exception) -> RunError:
    """The error for what cannot be written, and why."""
    reason = getattr(error, "strerror", None) or str(error)
    return RunError(f"{path} cannot be written: {reason}. What was there before is intact")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

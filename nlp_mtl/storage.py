"""Files and folders that are written whole or not at all: aside, synced to disk, and renamed."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nlp_mtl.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

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
    with written_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def written_file(path: Path) -> Iterator[Path]:
    """Where to write a file that gets its name at the end of the ``with`` block.

    Raises:
        RunError: it cannot be written; what was there before is untouched.
    """
    partial = aside(path)
    try:
        try:
            yield partial
            _sync(partial)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:
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


@contextmanager
def held(folder: Path, wait: float = 10, key: str = "") -> Iterator[None]:
    """A folder in which no other process works during the ``with`` block; made where there is none.

    A killed process holds nothing, once those that it started have seen it (some seconds: ``wait`` for so many).
    Nothing is held on systems and file systems without locks. ``key``: the recipe's, which names the folder.

    Raises:
        RunError: another process holds it, or it cannot be made.
    """
    handle = _locked(folder, time.monotonic() + wait, key)
    try:
        yield
    finally:
        if fcntl is not None and handle is not None:
            with suppress(OSError):  # there were no locks
                fcntl.flock(handle, fcntl.LOCK_UN)  # also for what was forked meanwhile
            os.close(handle)


def _locked(folder: Path, end: float, key: str) -> int | None:
    """A handle of the folder, which is there, with its lock; None on systems without locks."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY) if fcntl is not None else None
        except OSError as error:
            if isinstance(error, FileNotFoundError) and time.monotonic() < end:
                time.sleep(0.01)
                continue  # another process removed it in between
            raise RunError(f"{key} {folder} cannot be written: {error.strerror}".lstrip()) from error
        if handle is None:
            return None
        try:
            _lock(handle, folder, end)
            if os.path.samestat(os.fstat(handle), folder.stat()):
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # who held it has removed it: a lock on what is gone keeps nobody away


def _lock(handle: int, folder: Path, end: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise RunError(f"another process works in {folder}: wait for it, or use another folder") from error
            time.sleep(0.1)
        except OSError:
            return  # no locks here


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


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's files into a folder.

    Raises:
        OSError: they cannot be written. The tokenizers library has no kind of its own for that.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if "os error" not in str(error):
            raise
        raise OSError(str(error)) from error


def cannot_write(path: Path, error: Exception) -> RunError:
    """The error for what cannot be written, and why."""
    reason = getattr(error, "strerror", None) or str(error)
    if not path.parent.exists():
        return RunError(f"{path} cannot be written: its folder is gone; was it removed meanwhile?")
    return RunError(f"{path} cannot be written: {reason}. What was there before is intact")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

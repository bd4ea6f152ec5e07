"""``metrics.jsonl``: one JSON object a line, for each logging step and each evaluation of a run."""

import json
import os
from pathlib import Path
from typing import Any

from nlp_mtl.errors import RunError
from nlp_mtl.storage import cannot_write, write_text


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line; it is on disk, whole, when this returns.

    Raises:
        RunError: it cannot be written; what was there before stays readable.
    """
    rest = (json.dumps(line) + "\n").encode()
    try:
        with open(path, "ab", buffering=0) as file:
            size = file.tell()
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cut_after(path: Path, step: int) -> None:
    """Drop the lines after a step, and one that a crash left half-written: a resumed run writes them again.

    Raises:
        RunError: it cannot be read or written.
    """
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read, so the run cannot be resumed: {error}") from error
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break  # only the last line can be broken
        except (KeyError, TypeError) as error:
            raise RunError(f"line {number} of {path} is none of a run, it has no step: {line:.80}") from error
    write_text(path, "".join(kept))

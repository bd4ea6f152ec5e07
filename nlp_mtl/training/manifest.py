"""A folder's manifest: what was written to it, so that damage is found."""

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"
"""What files a folder holds: ``{"files": {name: {"size": bytes, "sha256": hexadecimal digits}}}``."""


def write_manifest(folder: Path) -> None:
    """Write the manifest of the files that a folder holds; of a folder that is still being written."""
    files = {path.name: _described(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a folder by its manifest; None: nothing, every byte is as it was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, written in files.items():
            found = (folder / name).stat().st_size
            if found != written["size"]:
                return f"{name} has {found:,} bytes where {written['size']:,} were written"
            if _described(folder / name) != written:
                return f"{name} does not hold what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"it cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not a manifest"
    return None


def _described(file: Path) -> dict[str, int | str]:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(2**20):
            digest.update(chunk)
    return {"size": file.stat().st_size, "sha256": digest.hexdigest()}

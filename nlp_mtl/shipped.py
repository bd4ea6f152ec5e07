"""The recipes that come with the package, and the demo corpus."""

import shutil
from pathlib import Path

from nlp_mtl.errors import RunError, did_you_mean, listed


def recipes_folder() -> Path:
    """Where the shipped recipes lie: in the installed package, or in a checkout beside it."""
    inside = Path(__file__).parent / "recipes"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "recipes"


def shipped_recipes() -> dict[str, str]:
    """``{name: first line of its description}``."""
    found = {}
    for path in sorted(recipes_folder().glob("*.yaml")):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        found[path.stem] = first.lstrip("# ").rstrip()
    return found


def copy_recipe(name: str, folder: Path) -> list[Path]:
    """Copy a shipped recipe, and the data that lies beside it, into a folder; returns what was written.

    Raises:
        RunError: there is no such recipe, a file is in the way, or the folder cannot be written to.
    """
    known = shipped_recipes()
    name = name.removesuffix(".yaml")
    if name not in known:
        raise RunError(f"there is no shipped recipe `{name}`; there are {listed(known)}.{did_you_mean(name, known)}")
    sources = [recipes_folder() / f"{name}.yaml"]
    data = recipes_folder() / name
    if data.is_dir():
        sources.append(data)
    written = [folder / source.name for source in sources]
    for target in written:
        if target.exists():
            raise RunError(f"{target} exists already; move it away or name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in zip(sources, written, strict=True):
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror or error}") from error
    return written

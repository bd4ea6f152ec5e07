"""What the docs' commands need: a small project, and a way to run them."""

import io
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
import yaml

from nlp_mtl.cli import main

ROOT = Path(__file__).resolve().parent.parent


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands(program: str, text: str) -> list[list[str]]:
    """A page's commands of a program, as their words."""
    lines = [line for block in blocks("bash", text) for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} ")]


def tiny_project(folder: Path) -> Path:
    """A copy of the project's recipes whose demo has a tiny encoder and few steps."""
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    tiny.save_encoder(folder / "encoder")
    for name in ("demo", "demo_register"):
        file = folder / "recipes" / f"{name}.yaml"
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        values["encoder"] = str(folder / "encoder")
        values["training"] |= {"num_epochs": 0.1, "max_tokens": 256}
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
    (folder / "texts.txt").write_text("Anna moved to Oslo.\n")
    return folder


def run_command(words: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What an nlp-mtl command prints; it ends well."""
    arguments = [*words[1:]]
    if "<" in arguments:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(arguments.pop()).read_bytes())))
        arguments.remove("<")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code in (0, None), (words, printed.err)
    return printed.out

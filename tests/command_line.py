"""The command line, called in this process, and what its tests share."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from nlp_mtl.cli import main


class Outcome:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


def caller(capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that calls the command line with arguments: their :class:`Outcome`."""

    def run_(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run_


def write_recipe(folder: Path, values: dict[str, Any], name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def trained_folder(folder: Path) -> Path:
    """Train in a folder: it gets ``recipe.yaml``, a corpus, an encoder, and a finished run in ``run``."""
    path = write_recipe(folder, tiny.recipe(folder, num_epochs=1))
    with pytest.raises(SystemExit) as exit_:
        main(["train", str(path)])
    assert exit_.value.code in (0, None)
    return folder


def assert_clear(outcome: Outcome, *words: str) -> None:
    """Exit code 2, and a message on stderr that holds the words and no traceback."""
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    for word in words:
        assert word in outcome.err

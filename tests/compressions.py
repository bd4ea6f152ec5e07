"""A run to be compressed, all that can be done to it, and the command line."""

from pathlib import Path

import pytest
from tiny_runs import tiny_recipe

from nlp_mtl import train
from nlp_mtl.cli import main
from nlp_mtl.recipe_compression import CompressionSpec

ALL = CompressionSpec(
    layers=1, heads=0.5, intermediate=0.5, vocabulary=["train"], magnitude=0.25, finetune_steps=3, importance_rows=48
)
TEXT = "anna loves rome"


def trained_run(folder: Path) -> Path:
    """The folder of a run that has learned something."""
    recipe = tiny_recipe(folder, num_epochs=3, save_every=2)
    train(recipe)
    return Path(recipe.output_dir)


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0), *capsys.readouterr()

import os
import subprocess
import sys

import pytest

import nlp_mtl

PUBLIC = [
    "DataError", "HubError", "MissingExtraError", "ModelError", "MultiTaskConfig", "MultiTaskModel", "NlpMtlError",
    "Predictor", "Recipe", "RecipeError", "RunError", "RunStopped", "TrainingError", "evaluate", "extend", "load",
    "train",
]  # fmt: skip
HEAVY = {"torch", "transformers", "datasets", "accelerate", "tokenizers", "seqeval", "sklearn", "pandas", "pyarrow"}


def run(code):
    """Run code in a fresh interpreter; it fails if any heavy package was imported by the end."""
    check = f"\nimport sys\nheavy = {HEAVY!r} & set(sys.modules)\nassert not heavy, f'imported: {{heavy}}'"
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, "-c", code + check], capture_output=True, text=True, env=environment, check=False
    )


def test_the_public_names_are_exactly_these():
    assert nlp_mtl.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_can_be_imported_is_documented_and_listed(name):
    found = getattr(nlp_mtl, name)
    assert found.__doc__
    assert found.__name__ == name
    assert found.__module__.startswith("nlp_mtl.")
    assert name in dir(nlp_mtl)


def test_all_errors_are_public():
    from nlp_mtl import errors

    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert kinds <= set(PUBLIC)


def test_a_star_import_brings_all_of_them():
    names = {}
    exec("from nlp_mtl import *", names)
    assert set(PUBLIC) <= set(names)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="trian"):
        nlp_mtl.trian  # noqa: B018
    assert not hasattr(nlp_mtl, "trian")


def test_the_version_is_the_installed_packages():
    from importlib.metadata import version

    assert nlp_mtl.__version__ == version("nlp_mtl")


@pytest.mark.parametrize(
    "code",
    [
        "import nlp_mtl",
        "from nlp_mtl import Recipe, NlpMtlError; dir(__import__('nlp_mtl'))",
        "import nlp_mtl.cli",
        "import nlp_mtl.shipped",
        "import nlp_mtl.words, nlp_mtl.tasks",
    ],
)
def test_importing_the_package_or_its_command_line_imports_no_torch(code):
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--help"], 0), (["train", "--help"], 0), (["copy"], 0), (["train", "no/such/recipe.yaml"], 2)],
)
def test_help_the_list_of_recipes_and_a_wrong_recipe_are_told_without_torch(arguments, status):
    code = f"""
from nlp_mtl.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert (end.code or 0) == {status}, end.code
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout if status == 0 else "no such file" in done.stderr


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "nlp_mtl", "copy"], capture_output=True, text=True, check=True)
    assert "demo" in done.stdout

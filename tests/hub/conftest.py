from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_runs import tiny_recipe
from writable_hub import Hub, writable_hub

from nlp_mtl import train


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run that is done; tests leave it as it is."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("run"), max_steps=2, log_every=1, eval_every=1)
    train(recipe)
    return Path(recipe.output_dir)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """An empty Hub."""
    with writable_hub(tmp_path / "hub") as running:
        yield running

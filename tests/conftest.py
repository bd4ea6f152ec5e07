"""What all tests share."""

import os
from collections.abc import Iterator

# Before anything imports the Hub's client: tests never touch the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import hypothesis
import pytest
import torch
import transformers

# The same examples each time: a change that breaks nothing is not held up. The profile `search` draws new ones.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.register_profile("search", print_blob=True)
hypothesis.settings.load_profile("fixed")

torch.set_num_threads(1)  # tiny models: threads cost more than they give


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that two workers end together."""
    items.sort(key=lambda item: item.path.parent.name not in ("training", "hub"))


@pytest.fixture
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """What torch takes for the number of cores; two, unless told otherwise: then two threads share a step."""
    count = getattr(request, "param", 2)
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    yield count
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Datasets are cached in a folder of the test session, so no run sees another's."""
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")

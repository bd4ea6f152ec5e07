"""The recipe's dropout: one rate for every family, though each names its own differently."""

from pathlib import Path

import pytest
import tiny
import torch
from two_tasks import TASKS

from nlp_mtl.models.encoder import load_encoder
from nlp_mtl.models.multitask import from_encoder


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_dropout_reaches_every_layer_and_head_and_is_kept_without_it(family: str, tmp_path: Path) -> None:
    folder = tiny.save_encoder(tmp_path, family, dropout=0.3)
    ids = torch.arange(5, 25).reshape(2, 10)

    off = from_encoder(load_encoder(str(folder), dropout=0.0), TASKS).train()
    first, second = off(ids), off(ids)
    assert all(torch.equal(first[task], second[task]) for task in first)

    as_configured = from_encoder(load_encoder(str(folder)), TASKS).train()
    first, second = as_configured(ids), as_configured(ids)
    assert not any(torch.equal(first[task], second[task]) for task in first)

    # Each dropout alone would be enough to tell these apart; the rates are read off the modules.
    high = from_encoder(load_encoder(str(folder), dropout=0.7), TASKS)
    rates = {module.p for module in high.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.7}

"""Compressed models are pushed as any other, trained afterwards or not, with what became smaller in the card."""

import json
import shutil
from pathlib import Path

import pytest
from stock_models import saved

from nlp_mtl import ModelError, load
from nlp_mtl.compress import compress
from nlp_mtl.hub.card_header import About
from nlp_mtl.hub.pushing import assemble, check_trained
from nlp_mtl.recipe_compression import CompressionSpec


@pytest.fixture(scope="module")
def small(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with one layer, not trained afterwards; no test changes it."""
    folder = tmp_path_factory.mktemp("small") / "run"
    compress(run, folder, compression=CompressionSpec(layers=1, magnitude=0.5))
    return folder


def test_one_that_was_not_trained_afterwards_is_pushed_with_its_scores(small: Path, tmp_path: Path) -> None:
    assemble(small, tmp_path / "out", "me/small", None, About())
    card = (tmp_path / "out" / "README.md").read_text()
    report = json.loads((small / "compression.json").read_text())
    assert "layers 2 -> 1, 50% of the weights in the encoder's layers are 0" in card
    before, after = (report[stage] for stage in ("before", "compressed"))
    assert f"| parameters | {before['parameters']:,} | {after['parameters']:,} |" in card
    old, new = (one["scores"]["test"]["pos"]["accuracy"] for one in (before, after))
    assert f"| pos, Accuracy, test | {old:.4f} | {new:.4f} |" in card
    assert f"| pos | test | Accuracy (main) | {new:.4f} |" in card
    assert "How well it answers has not been told" not in card
    assert str(small.parent) not in card
    assert load(tmp_path / "out")("anna") == load(small)("anna")


def test_one_that_was_trained_afterwards_tells_both(run: Path, tmp_path: Path) -> None:
    spec = CompressionSpec(layers=1, finetune_steps=1)
    report = compress(run, tmp_path / "small", compression=spec)
    assemble(tmp_path / "small", tmp_path / "out", "me/small", None, About())
    card = (tmp_path / "out" / "README.md").read_text()
    old, new = (report[stage]["scores"]["test"]["pos"]["accuracy"] for stage in ("before", "finetuned"))
    assert f"| pos, Accuracy, test | {old:.4f} | {new:.4f} |" in card
    assert card.count("## Scores") == 1
    assert "## How it was trained" in card


def test_one_that_was_made_without_data_is_pushed(tmp_path: Path) -> None:
    compress(saved(tmp_path / "model"), tmp_path / "small", compression=CompressionSpec(layers=1))
    assert check_trained(tmp_path / "small") == tmp_path / "small" / "model"
    assemble(tmp_path / "small", tmp_path / "out", "me/small", None, About())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "From a larger model: layers 2 -> 1." in card
    assert "How well it answers has not been told" in card


def test_one_that_is_not_finished_is_refused(small: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small, tmp_path / "small")
    file = folder / "compression.json"
    report = json.loads(file.read_text())
    del report["speed"]
    file.write_text(json.dumps(report))
    with pytest.raises(ModelError, match="its compressing has not finished"):
        check_trained(folder)
    file.write_text("{")
    with pytest.raises(ModelError, match=r"compression\.json cannot be read"):
        check_trained(folder)
    shutil.copyfile(small / "compression.json", file)
    shutil.rmtree(folder / "model")
    with pytest.raises(ModelError, match="its compressing has not finished"):
        check_trained(folder)

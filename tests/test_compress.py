"""``nlp-mtl compress``: a smaller model that loads like any other, with a report of what it was and is."""

import gzip
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from compressions import ALL, TEXT, command, trained_run
from safetensors.torch import load_file
from stock_models import saved
from tiny import SPECIALS
from tiny_runs import loss_lines, streamed_values, write_yaml
from transformers import pipeline

import nlp_mtl.compress
import nlp_mtl.compress_folder
import nlp_mtl.run
from nlp_mtl import DataError, Recipe, RunError, evaluate, load, train
from nlp_mtl.cli import main
from nlp_mtl.compress import compress
from nlp_mtl.compression.heads import find_heads
from nlp_mtl.compression.magnitude import share_of_zeros
from nlp_mtl.errors import RunStopped
from nlp_mtl.inference.onnx import OnnxModel, export_onnx
from nlp_mtl.models.loading import load_model
from nlp_mtl.recipe_compression import CompressionSpec
from nlp_mtl.training.checkpoint import checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something; no test changes it."""
    return trained_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def small(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """All that can be done, and training afterwards: the folder, and what the report says."""
    folder = tmp_path_factory.mktemp("small") / "run"
    return folder, compress(run, folder, compression=ALL)


def test_the_report_tells_what_the_files_and_an_evaluation_tell(run: Path, small: tuple[Path, dict[str, Any]]) -> None:
    folder, report = small
    assert json.loads((folder / "compression.json").read_text()) == report
    for stage, model in {"before": run, "compressed": folder / "compressed", "finetuned": folder}.items():
        loaded, _ = load_model(model)
        told = report[stage]
        assert told["parameters"] == sum(one.numel() for one in loaded.parameters())
        file = (model if stage == "compressed" else model / "model") / "model.safetensors"
        assert told["bytes"] == pytest.approx(file.stat().st_size, abs=200)  # a header may say who wrote it
        assert told["gzip_bytes"] == pytest.approx(len(gzip.compress(file.read_bytes(), 6)), rel=0.01)
        for split in ("validation", "test"):
            assert told["scores"][split] == evaluate(model, run / "recipe.yaml", split=split)
    assert report["compressed"]["parameters"] == report["finetuned"]["parameters"] < report["before"]["parameters"]
    speed = report["speed"]
    rates = speed["texts_per_second"]
    assert speed["ratio"] == pytest.approx(rates["after"] / rates["before"])
    assert speed["texts"] == 32


def test_all_of_it_is_really_gone(small: tuple[Path, dict[str, Any]]) -> None:
    folder, report = small
    for name in ("compressed", "model"):
        model, tokenizer = load_model(folder / name)
        config, weights = model.config.encoder_config, load_file(folder / name / "model.safetensors")
        assert config.num_hidden_layers == 1
        assert not any(".layer.1." in key for key in weights)
        assert config.intermediate_size == 16
        assert weights["encoder.encoder.layer.0.intermediate.dense.weight"].shape == (16, 16)
        assert model.config.heads_per_layer == [1] == [one.num_heads for one in find_heads(model)]
        assert weights["encoder.encoder.layer.0.attention.self.query.weight"].shape == (8, 16)
        assert len(weights["encoder.embeddings.word_embeddings.weight"]) == len(tokenizer) == config.vocab_size < 47
        assert share_of_zeros(model) == pytest.approx(0.25, abs=1e-3)
    done = report["done"]
    assert [(done[key]["before"], done[key]["after"]) for key in ("layers", "heads", "intermediate")] == [
        (2, 1), (2, 1), (32, 16),
    ]  # fmt: skip
    assert done["vocabulary"]["before"] == 47
    assert done["vocabulary"]["elsewhere"]["test"]["otherwise"] == 0  # all of its words are in train as well
    assert done["magnitude"]["zeros"] == pytest.approx(0.25, abs=1e-3)


def test_it_is_a_run_like_any_other(small: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, report = small
    nlp = load(folder, device="cpu")
    assert {*nlp(TEXT)} == {"ner", "pos", "sentiment"}
    assert len(loss_lines(folder)) == 3
    recipe = Recipe.from_yaml(folder / "recipe.yaml")
    assert recipe.compression == ALL.model_copy(update={"model": str(folder / "compressed")})
    assert recipe.training.max_steps == 3
    assert evaluate(folder) == report["finetuned"]["scores"]["test"]
    graph = tmp_path / "graph"
    export_onnx(*load_model(folder), graph)
    onnx = load(graph)
    assert isinstance(onnx.model, OnnxModel)
    assert onnx(TEXT)["sentiment"]["score"] == pytest.approx(nlp(TEXT)["sentiment"]["score"], abs=1e-4)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(folder), str(tmp_path / "stock"), "--task", "sentiment"])
    assert ended.value.code == 0
    (answer,) = pipeline("text-classification", str(tmp_path / "stock"))(TEXT)
    assert answer["label"] == nlp(TEXT)["sentiment"]["label"]
    assert answer["score"] == pytest.approx(nlp(TEXT)["sentiment"]["score"], abs=1e-4)


def test_the_same_call_gives_the_same_model_and_its_source_stays(
    run: Path, small: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    before = (run / "model" / "model.safetensors").read_bytes()
    again = compress(str(run), tmp_path / "again", compression=ALL)
    folder, report = small
    for stage in ("before", "compressed", "finetuned"):
        assert again[stage] == report[stage]
    for name in ("compressed", "model"):
        one, other = (load_file(path / name / "model.safetensors") for path in (folder, tmp_path / "again"))
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    assert (run / "model" / "model.safetensors").read_bytes() == before


def test_a_finished_one_is_told_again_without_doing_anything(
    run: Path, small: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("compressed", "train", "evaluate", "seconds_to_answer"):
        monkeypatch.delattr(nlp_mtl.compress, name)
    assert compress(run, small[0], compression=ALL) == small[1]


class Stop(Exception):
    pass


@pytest.mark.parametrize("where", ["train", "seconds_to_answer"])
def test_the_same_command_goes_on_though_its_folder_is_spelled_otherwise_or_was_moved(
    where: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise Stop

    monkeypatch.chdir(tmp_path)
    spec = CompressionSpec(layers=1, finetune_steps=1)
    with monkeypatch.context() as patched:
        patched.setattr(nlp_mtl.compress, where, stopped)
        for folder in ("small", tmp_path / "small", "./other/../small"):
            with pytest.raises(Stop):
                compress(run, folder, compression=spec)
    (tmp_path / "small").rename(tmp_path / "moved")
    report = compress(run, "moved", compression=spec)
    assert compress(run, tmp_path / "moved", compression=spec) == report


@pytest.mark.parametrize("where", ["compressed", "_scores", "save_model", "train", "seconds_to_answer"])
def test_one_that_was_stopped_goes_on(
    where: str, run: Path, small: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(nlp_mtl.compress, where, stopped)
        with pytest.raises(Stop):
            compress(run, tmp_path / "run", compression=ALL)
    report = compress(run, tmp_path / "run", compression=ALL)
    assert {stage: report[stage] for stage in ("before", "compressed", "finetuned")} == {
        stage: small[1][stage] for stage in ("before", "compressed", "finetuned")
    }


def test_training_that_was_stopped_goes_on_from_its_checkpoint(
    run: Path, small: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter([False, True])

    @contextmanager
    def terminated() -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(agreed=lambda: next(asked))

    with monkeypatch.context() as patched:
        patched.setattr(nlp_mtl.run, "noted_termination", terminated)
        with pytest.raises(RunStopped, match=r"of the smaller model stopped after step 2 of 3.* by the same command"):
            compress(run, tmp_path / "run", compression=ALL)
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-2"]
    compress(run, tmp_path / "run", compression=ALL)
    assert [line["step"] for line in loss_lines(tmp_path / "run")] == [1, 2, 3]
    one, other = (load_file(path / "model" / "model.safetensors") for path in (small[0], tmp_path / "run"))
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_training_takes_all_steps_that_are_asked_for_though_the_recipe_has_fewer(run: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_yaml(run / "recipe.yaml", ["training.num_epochs=0.5"])  # 3 steps
    report = compress(run, tmp_path / "small", recipe, CompressionSpec(layers=1, finetune_steps=8))
    assert [line["step"] for line in loss_lines(tmp_path / "small")] == [*range(1, 9)]
    assert report["finetuned"]["step"] <= 8
    assert evaluate(tmp_path / "small") == report["finetuned"]["scores"]["test"]


def test_another_asked_for_in_the_same_folder_is_refused_and_named(
    run: Path, small: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = small
    before = (folder / "compression.json").read_text()
    other = ALL.model_copy(update={"heads": 0.25, "finetune_steps": 2})
    with pytest.raises(RunError) as error:
        compress(run, folder, compression=other)
    assert "compression.heads: 0.5 -> 0.25" in str(error.value)
    assert "training.max_steps: 3 -> 2" in str(error.value)
    recipe = Recipe.from_yaml(run / "recipe.yaml", ["window_overlap=4"])
    with pytest.raises(RunError, match="other weights"):
        compress(saved(tmp_path / "model"), folder, recipe, ALL)
    with pytest.raises(RunError, match="already holds files, but no compressed model"):
        compress(run, run.parent / "corpus", compression=ALL)
    with pytest.raises(RunError, match="the model to compress lies in"):
        compress(folder, folder, compression=ALL, overwrite=True)
    assert (folder / "compression.json").read_text() == before


def test_overwrite_leaves_nothing_of_what_was_there(
    run: Path, small: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(small[0], folder)
    report = compress(run, folder, compression=CompressionSpec(layers=1), overwrite=True)
    assert "finetuned" not in report
    assert "gzip_bytes" not in report["before"]
    names = {path.name for path in folder.iterdir()}
    assert names == {"compression.json", "environment.json", "model", "recipe.yaml"}
    assert load_model(folder)[0].config.encoder_config.num_hidden_layers == 1


def test_a_report_never_vouches_for_a_model_that_is_gone(
    run: Path, small: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(small[0], tmp_path / "run")

    def stopped(*_: Any) -> None:
        shutil.rmtree(folder / "model")
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(nlp_mtl.compress_folder, "remove", stopped)
        with pytest.raises(Stop):
            compress(run, folder, compression=CompressionSpec(layers=1), overwrite=True)
    assert {*json.loads((folder / "compression.json").read_text())} == {"asked"}
    compress(run, folder, compression=CompressionSpec(layers=1))
    assert {path.name for path in folder.iterdir()} == {"compression.json", "environment.json", "model", "recipe.yaml"}


def test_a_folder_of_one_that_was_killed_in_its_first_report_is_used(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "compression.json.partial").write_text('{"ask')
    compress(run, tmp_path / "run", compression=CompressionSpec(layers=1))
    assert load_model(tmp_path / "run")[0].config.encoder_config.num_hidden_layers == 1


def test_the_command_line_compresses_and_prints_one_table(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe = write_yaml(tmp_path / "recipe", {**values, "compression": {"vocabulary": ["train", "test"]}})
    options = ["--layers", "2,", "--intermediate", 0.5, "--finetune-steps", 1, "training.learning_rate=1e-4"]
    code, out, err = command(capsys, "compress", run, tmp_path / "small", "--recipe", recipe, *options)
    assert code == 0, err
    for line in ("layers: 1 of 2 layers are left", "intermediate: 16 of 32 units in each layer are left",
                 "words of validation, 0 become other pieces"):  # fmt: skip
        assert line in out
    for row in ("parameters", "weights, MB", "texts a second", "times as fast", "ner, span f1, validation",
                "sentiment, accuracy, test"):  # fmt: skip
        assert row in out
    assert "before" in out
    assert "finetuned" in out
    assert "by gzip" not in out
    kept = Recipe.from_yaml(tmp_path / "small" / "recipe.yaml")
    assert kept.compression == CompressionSpec(
        layers=[2], intermediate=0.5, vocabulary=["train", "test"], finetune_steps=1,
        model=str(tmp_path / "small" / "compressed"),
    )  # fmt: skip
    assert kept.training.learning_rate == 1e-4


def test_without_a_recipe_what_needs_no_data_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("anna sees rome .\n\nthe film\n")
    options = ["--layers", 1, "--vocabulary-files", tmp_path / "texts.txt", "--no-keep-characters"]
    code, out, err = command(capsys, "compress", model, tmp_path / "small", *options)
    assert code == 0, err
    assert "texts a second" in out  # of the file
    _, tokenizer = load_model(tmp_path / "small")
    words = {"anna", "sees", "rome", ".", "the", "film"}
    assert {*tokenizer.get_vocab()} == words | {*SPECIALS}
    assert {path.name for path in (tmp_path / "small").iterdir()} == {"compression.json", "model"}
    assert load(tmp_path / "small")(TEXT)
    code, _, err = command(capsys, "compress", model, tmp_path / "other", "--heads", 0.5, "--finetune-steps", 2)
    assert code == 2
    assert "compression.heads: it needs data, and the model comes without its recipe: give one, --recipe" in err
    assert "compression.finetune_steps: it needs data" in err
    code, _, err = command(capsys, "compress", model, tmp_path / "other", "training.max_steps=2")
    assert code == 2
    assert "KEY=VALUE" in err
    assert not (tmp_path / "other").exists()


def test_words_of_a_stream_are_not_known_beforehand(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(streamed_values(tmp_path, max_steps=2, eval_every=2))
    train(recipe)
    with pytest.raises(DataError, match=r"the training rows of `texts` are streamed.*give files of texts"):
        compress(recipe.output_dir, tmp_path / "small", compression=CompressionSpec(vocabulary=["train"]))
    spec = CompressionSpec(vocabulary=["validation"], heads=0.25, finetune_steps=2)
    report = compress(recipe.output_dir, tmp_path / "other", compression=spec)
    assert report["finetuned"]["step"] == 2

"""``nlp-mtl compress``: what cannot be done is told before anything is done, and leaves nothing behind."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from compressions import ALL, command, trained_run
from tiny_runs import streamed_values

import nlp_mtl.compress
from nlp_mtl import ModelError, Recipe, RecipeError, RunError, train
from nlp_mtl.compress import compress
from nlp_mtl.recipe_compression import CompressionSpec


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something; no test changes it."""
    return trained_run(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--heads", "1.0"], "compression.heads: found 1.0"),
        (["--intermediate", "-0.1"], "compression.intermediate: found -0.1"),
        (["--magnitude", "1"], "compression.magnitude: found 1"),
        (["--layers", "0"], "compression.layers"),
        (["--layers", "x"], "'x' is neither a number nor numbers"),
        (["--layers", "3"], "layers: found 3, but the encoder has the layers 1 to 2"),
        (["--layers", "2"], "which are all that the encoder has"),
        (["--heads", "0.01"], "heads: 0.01 of 4 heads is none"),
        (["--intermediate", "0.01"], "intermediate: 0.01 of 32 units is none"),
        (["--vocabulary", "dev"], "compression.vocabulary.0: found 'dev'"),
        (["--vocabulary-files", "no/such.txt"], "vocabulary_files: no/such.txt cannot be read"),
        ([], "compression: nothing is asked for"),
        (["--no-keep-characters", "--layers", "1"], "compression.keep_characters: only `vocabulary`"),
        (
            ["compression.magnitude_scope=layer", "--layers", "1"],
            "compression.magnitude_scope: only `magnitude` reads it",
        ),
        (["compression.importance_rows=7", "--layers", "1"], "compression.importance_rows: only `heads`"),
        (["--vocabulary-size", "20", "--layers", "1"], "compression.vocabulary_size: only `vocabulary`"),
        (["--layers", "1", "--revision", "main"], "is for models on the Hub"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_what_is_wrong_is_told_and_nothing_is_left_half_done(
    options: list[str], told: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = command(capsys, "compress", run, tmp_path / "small", *options)
    assert code == 2
    assert told in " ".join(err.split())
    assert not (tmp_path / "small").exists()
    code, _, err = command(capsys, "compress", run, tmp_path / "small", "--layers", 1)
    assert code == 0, err


def test_a_model_that_the_recipe_does_not_fit_is_told_before_anything_is_done(run: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    del values["tasks"]["pos"]
    spec = CompressionSpec(layers=1, finetune_steps=2)
    with pytest.raises(ModelError, match="has the tasks `pos`, which the recipe lacks"):
        compress(run, tmp_path / "small", Recipe.from_dict(values), spec)
    for key in ("heads", "intermediate"):
        spec = CompressionSpec.model_validate({key: 0.5})
        with pytest.raises(RecipeError, match=rf"compression\.{key}: what goes would be chosen without `pos`"):
            compress(run, tmp_path / "small", Recipe.from_dict(values), spec)
    spec = CompressionSpec(layers=1, finetune_steps=2)
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    values["sharing"] = {"strategy": "gate"}
    with pytest.raises(
        RecipeError,
        match=r"sharing: found \{'strategy': 'gate'.*, but the model to train on has \{'strategy': 'hard'\}",
    ):
        compress(run, tmp_path / "small", Recipe.from_dict(values), spec)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"training": {"frozen_layers": 2}}, "training.frozen_layers: found 2, but the encoder will have 1 layers"),
        ({"sampling": {"strategy": "unimax", "max_passes": 1}}, "sampling.max_passes: 1 passes over all datasets are"),
        ({"distillation": {"teachers": {"pos": "no/where"}}}, "distillation.teachers.pos"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_what_would_stop_the_training_is_told_before_anything_is_done(
    overrides: dict[str, Any], told: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(nlp_mtl.compress, "compressed")
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    values |= {**overrides, "training": {**values["training"], "num_epochs": 1, **overrides.get("training", {})}}
    with pytest.raises(RecipeError, match=told):
        compress(run, tmp_path / "small", Recipe.from_dict(values), CompressionSpec(layers=1, finetune_steps=99))


def test_training_from_a_model_by_a_stream_needs_its_number_of_steps(tmp_path: Path) -> None:
    values = streamed_values(tmp_path, max_steps=1, eval_every=1)
    train(Recipe.from_dict(values))
    values |= {"compression": {"model": str(tmp_path / "run" / "model")}, "output_dir": str(tmp_path / "more")}
    del values["training"]["max_steps"]
    del values["tasks"]["sentiment"]["label_names"]  # the model has them
    with pytest.raises(RecipeError, match=r"training\.max_steps: needed, as an epoch cannot be counted") as error:
        train(Recipe.from_dict(values))
    assert len(error.value.problems) == 1
    values["training"]["max_steps"] = 1
    assert train(Recipe.from_dict(values))["steps"] == 1


def test_a_launcher_with_several_processes_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match=r"Several GPUs train afterwards: torchrun .* compression\.model=FOLDER/model"):
        compress(run, tmp_path / "small", compression=ALL)

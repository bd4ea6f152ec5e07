import json
import logging
import platform
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import full_disk, loss_lines, score_lines, tiny_recipe, values, weights

from nlp_mtl import DataError, ModelError, Recipe, RunError, TrainingError, evaluate, load, train
from nlp_mtl.run_evaluation import run_recipe


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, dict]:
    """A run that learned its tasks: recipe, folder, results."""
    recipe = tiny_recipe(
        tmp_path_factory.mktemp("run"), learning_rate=1e-2, num_epochs=40, eval_every=80, log_every=30, dropout=0.0
    )
    return recipe, Path(recipe.output_dir), train(recipe)


def test_the_loss_falls_and_the_tasks_are_learned(done) -> None:
    _, run, results = done
    lines = loss_lines(run)
    for task in ("ner", "pos", "sentiment"):
        assert lines[-1]["losses"][task] < 0.2 * lines[0]["losses"][task]
        metric = results["main_metrics"][task]
        assert results["scores"]["test"][task][metric] > 0.8
        assert results["scores"]["validation"][task][metric] > 0.8


def test_a_run_folder_holds_what_was_promised_and_no_remains(done) -> None:
    _, run, _ = done
    wanted = {"recipe.yaml", "environment.json", "metrics.jsonl", "results.json", "model", "plots", "checkpoints"}
    assert {path.name for path in run.iterdir()} == wanted
    assert not list(run.rglob("*.partial"))


def test_results_tell_scores_data_seed_versions_and_command(done) -> None:
    _, run, results = done
    assert json.loads((run / "results.json").read_text()) == results
    assert results["main_metrics"] == {"ner": "span_f1", "pos": "accuracy", "sentiment": "accuracy"}
    assert results["seed"] == 0
    assert results["steps"] == 240
    assert results["versions"]["torch"] == version("torch")
    train_split = {"rows": 48, "taken_from": "train", "files": ["words/train.jsonl"]}
    assert results["data"]["words"]["splits"]["train"] == train_split
    assert results["command"]
    scores = results["scores"]["validation"]
    mean = sum(scores[task][metric] for task, metric in results["main_metrics"].items()) / 3
    assert results["selection"]["score"] == pytest.approx(mean)
    assert results["selection"]["weights"] == {"ner": 1, "pos": 1, "sentiment": 1}
    best = max(score_lines(run), key=lambda line: line["selection_score"])
    assert (results["step"], results["selection"]["score"]) == (best["step"], best["selection_score"])
    assert scores == best["scores"]


def test_the_environment_is_told(done) -> None:
    environment = json.loads((done[1] / "environment.json").read_text())
    assert environment["python"] == platform.python_version()
    assert environment["versions"]["transformers"] == version("transformers")
    assert environment["num_processes"] == 1
    assert torch.device(environment["device"])
    assert environment["git_commit"] is None or re.fullmatch("[0-9a-f]{40}", environment["git_commit"])


def test_the_saved_recipe_is_the_resolved_one(done) -> None:
    recipe, run, _ = done
    assert Recipe.from_yaml(run / "recipe.yaml") == recipe == run_recipe(run)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["training"]["weight_decay"] == 0.01  # a default


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_saved_model_scores_exactly_what_the_results_say(done, split: str) -> None:
    recipe, run, results = done
    assert evaluate(run, split=split) == results["scores"][split]
    assert evaluate(run / "model", recipe, split=split) == results["scores"][split]


def test_the_saved_model_scores_exactly_what_the_results_say_in_bf16(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, mixed_precision="bf16", max_tokens=64)
    assert train(recipe)["scores"]["test"] == evaluate(tmp_path / "run")


def test_the_saved_model_answers(done) -> None:
    answer = load(done[1])("Anna opened the good tram line in Paris .")
    assert answer.keys() == {"ner", "pos", "sentiment"}
    assert ("Paris", "LOC") in [(span["text"], span["label"]) for span in answer["ner"]]
    assert answer["sentiment"]["label"] == "positive"


def test_what_cannot_be_evaluated_is_told(done, tmp_path: Path) -> None:
    recipe, run, _ = done
    with pytest.raises(RunError, match=r"not a run folder.*--recipe"):
        evaluate(run / "model")
    with pytest.raises(RunError, match="there is no run folder"):
        evaluate(tmp_path / "nowhere")
    with pytest.raises(ModelError):
        evaluate(tmp_path, recipe)
    with pytest.raises(DataError, match="split `other`"):
        evaluate(run, split="other")


def test_paths_of_a_recipe_made_in_code_are_kept_whole(tmp_path: Path, monkeypatch) -> None:
    plain = values(tmp_path / "project", max_steps=2)
    monkeypatch.chdir(tmp_path / "project")
    results = train(Recipe.from_dict({**plain, "data_dir": "corpus", "output_dir": "runs/a"}))
    monkeypatch.chdir(tmp_path)
    assert evaluate("project/runs/a") == results["scores"]["test"]


def test_a_program_that_changes_its_directory_while_training_does_not_scatter_the_run(
    tmp_path: Path, monkeypatch
) -> None:
    recipe = Recipe.from_dict({**values(tmp_path, save_every=2), "output_dir": "run"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)

    class Mover(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            monkeypatch.chdir(tmp_path / "elsewhere")

    logger, mover = logging.getLogger("nlp_mtl.training.trainer"), Mover()
    logger.addHandler(mover)
    logger.setLevel(logging.INFO)
    try:
        train(recipe)
    finally:
        logger.removeHandler(mover)
        logger.setLevel(logging.NOTSET)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / "run" / "results.json").is_file()


def without_validation(plain: dict) -> dict:
    for dataset in plain["datasets"].values():
        del dataset["data_files"]["validation"]
        dataset["validation_fraction"] = 0
    return plain


def test_a_run_without_any_validation_data_keeps_its_last_weights(tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO, "nlp_mtl"):
        results = train(Recipe.from_dict(without_validation(values(tmp_path))))
    assert results["scores"].keys() == {"test"}
    assert results["selection"]["score"] is None
    assert (results["step"], results["steps"]) == (12, 12)
    assert "Step 12 of 12: no validation data" in caplog.text
    assert evaluate(tmp_path / "run") == results["scores"]["test"]
    with pytest.raises(DataError, match="`validation`"):
        evaluate(tmp_path / "run", split="validation")


def test_selection_weights_choose_what_the_best_model_is_best_at(tmp_path: Path) -> None:
    results = train(tiny_recipe(tmp_path, selection_weights={"sentiment": 2.0}))
    assert results["selection"]["score"] == results["scores"]["validation"]["sentiment"]["accuracy"]
    assert results["selection"]["weights"] == {"ner": 0, "pos": 0, "sentiment": 2}


def test_a_fraction_of_an_epoch_and_few_steps_can_be_trained(tmp_path: Path) -> None:
    assert train(tiny_recipe(tmp_path / "half", num_epochs=0.5))["steps"] == 3
    assert train(tiny_recipe(tmp_path / "one", max_steps=1))["steps"] == 1


def test_two_identical_runs_give_the_same_model(tmp_path: Path) -> None:
    for name in ("one", "two"):
        torch.manual_seed(len(name) + ord(name[0]))
        train(tiny_recipe(tmp_path / name, dropout=0.1))
    one, two = weights(tmp_path / "one/run"), weights(tmp_path / "two/run")
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_a_folder_that_holds_something_is_not_touched(done, tmp_path: Path) -> None:
    recipe, run, _ = done
    before = contents(run)
    with pytest.raises(RunError, match=r"already holds a run.*--resume.*--overwrite"):
        train(recipe)
    assert contents(run) == before
    (tmp_path / "thesis.tex").write_text("years of work")
    other = recipe.model_copy(update={"output_dir": str(tmp_path)})
    with pytest.raises(RunError, match="already holds files: use another output_dir"):
        train(other)
    with pytest.raises(RunError, match="no run, so --overwrite does not remove"):
        train(other, overwrite=True)
    with pytest.raises(RunError, match="is a file"):
        train(recipe.model_copy(update={"output_dir": str(tmp_path / "thesis.tex")}))
    with pytest.raises(RunError, match="exclude each other"):
        train(recipe, resume=True, overwrite=True)
    with pytest.raises(RunError, match="cannot be written"):
        train(recipe.model_copy(update={"output_dir": str(tmp_path / "thesis.tex" / "run")}))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwriting_removes_the_runs_own_files_and_no_others(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=4, save_every=1, keep_last=9)
    train(recipe)
    run = tmp_path / "run"
    for name in ("notes.txt", "figures/loss.png"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    shorter = recipe.model_copy(update={"training": recipe.training.model_copy(update={"max_steps": 2})})
    train(shorter, overwrite=True)
    assert (run / "notes.txt").read_text() == (run / "figures" / "loss.png").read_text() == "mine"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-1", "step-2"]
    assert [line["step"] for line in loss_lines(run)] == [1, 2]


def test_an_old_run_is_only_removed_when_the_new_one_can_begin(tmp_path: Path) -> None:
    plain = values(tmp_path, max_steps=2)
    train(Recipe.from_dict(plain))
    before = contents(tmp_path / "run")
    (tmp_path / "empty.jsonl").write_text("")
    bad_data = {
        **plain,
        "datasets": {**plain["datasets"], "texts": {"data_files": str(tmp_path / "empty.jsonl"), "text": "text"}},
    }
    with pytest.raises(DataError):
        train(Recipe.from_dict(bad_data), overwrite=True)
    shutil.copytree(tmp_path / "encoder", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").unlink()  # its configuration and tokenizer can be read
    with pytest.raises(ModelError):
        train(Recipe.from_dict({**plain, "encoder": str(tmp_path / "broken")}), overwrite=True)
    assert contents(tmp_path / "run") == before
    with pytest.raises(ModelError):
        train(Recipe.from_dict({**plain, "encoder": str(tmp_path / "broken"), "output_dir": str(tmp_path / "new")}))
    assert not (tmp_path / "new").exists()


def test_an_overwriting_that_was_interrupted_can_be_repeated(tmp_path: Path, monkeypatch) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=2)
    train(recipe)

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", kill)
        with pytest.raises(Killed):
            train(recipe, overwrite=True)
    train(recipe, overwrite=True)


def test_a_loss_that_is_no_number_leaves_a_readable_run_without_a_model(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, learning_rate=1e30, warmup_fraction=0, save_every=1)
    with pytest.raises(TrainingError, match="step 2"):
        train(recipe)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "recipe.yaml", "environment.json", "metrics.jsonl", "checkpoints",
    }  # fmt: skip
    assert [line["step"] for line in loss_lines(tmp_path / "run")] == [1]


@pytest.mark.parametrize("size", [300, 3000, 40_000])
def test_a_disk_that_fills_up_gives_one_of_our_errors_and_the_run_can_go_on(tmp_path: Path, size: int) -> None:
    recipe = tiny_recipe(tmp_path, save_every=2)
    train(recipe)
    finished = contents(tmp_path / "run")
    again = recipe.model_copy(update={"output_dir": str(tmp_path / "again")})
    with full_disk(size), pytest.raises(RunError, match="cannot be written"):
        train(again)
    if list((tmp_path / "again" / "checkpoints").glob("step-*")):
        train(again, resume=True)
    else:
        train(again, overwrite=any((tmp_path / "again").glob("*")))
    same = {"metrics.jsonl", "model/model.safetensors"}
    assert all((tmp_path / "again" / name).read_bytes() == finished[tmp_path / "run" / name] for name in same)

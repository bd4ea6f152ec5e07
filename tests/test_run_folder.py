import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from stock_models import tiny_model
from tiny import tokenizer, write_jsonl
from tiny_runs import assert_same_end, lines, tiny_recipe, values

from nlp_mtl import Recipe, RecipeError, RunError, evaluate, train
from nlp_mtl.run_folder import command, save_model


def resumable(folder: Path, **training: object) -> Recipe:
    """A run that stopped after 4 of 6 steps."""
    recipe = tiny_recipe(folder, num_epochs=1, save_every=2, keep_last=9, log_every=3, **training)
    train(recipe)
    run = Path(recipe.output_dir)
    for name in ("step-5", "step-6"):
        path = run / "checkpoints" / name
        if path.exists():
            path.rename(folder / name)
    (run / "results.json").unlink()
    return recipe


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 4096},
        {"mixed_precision": "bf16"},
        {"num_workers": 2},
        {"log_every": 2},
        {"save_every": 1},
        {"keep_last": 1},
    ],
)
def test_a_resumed_run_may_say_anew_how_it_is_computed(tmp_path: Path, change: dict) -> None:
    recipe = resumable(tmp_path)
    changed = recipe.model_copy(update={"num_proc": 2, "training": recipe.training.model_copy(update=change)})
    assert train(changed, resume=True)["steps"] == 6
    run = Path(recipe.output_dir)
    assert Recipe.from_yaml(run / "recipe.yaml") == changed
    steps = [line["step"] for line in lines(run)]
    assert steps == sorted(steps)
    assert steps[-1] == 6


def test_a_run_whose_data_moved_is_resumed_to_the_same_end_and_evaluated_there(tmp_path: Path) -> None:
    whole = tiny_recipe(tmp_path / "whole", num_epochs=1, save_every=2, keep_last=9, log_every=3, dropout=0.2)
    train(whole)
    recipe = resumable(tmp_path / "part", dropout=0.2)
    elsewhere = tmp_path / "elsewhere"
    Path(recipe.data_dir).rename(elsewhere)
    results = train(recipe.model_copy(update={"data_dir": str(elsewhere)}), resume=True)
    assert_same_end(Path(whole.output_dir), Path(recipe.output_dir))
    assert evaluate(recipe.output_dir) == results["scores"]["test"]


@pytest.mark.parametrize("change", ["rows in another order", "labels swapped", "a word replaced"])
def test_a_run_whose_data_changed_is_not_resumed_and_left_as_it_is(tmp_path: Path, change: str) -> None:
    recipe = resumable(tmp_path)
    data = Path(recipe.data_dir)
    elsewhere = shutil.copytree(data, tmp_path / "elsewhere")
    file = elsewhere / "texts" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if change == "rows in another order":
        rows = rows[1:] + rows[:1]
    elif change == "labels swapped":  # lengths and counts stay
        other = {"positive": "negative", "negative": "positive"}
        rows = [row | {"label": other[row["label"]]} for row in rows]
    else:
        rows[5]["text"] = rows[5]["text"].replace(rows[5]["text"].split()[0], "tea", 1)
    write_jsonl(file, rows)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"the training data, or what teachers say of it, has changed since .*step-4"):
        train(recipe.model_copy(update={"data_dir": str(elsewhere)}), resume=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_only_what_the_recipe_says_of_the_computation_may_change(tmp_path: Path) -> None:
    plain = values(tmp_path, max_steps=2)
    train(Recipe.from_dict(plain))
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    plain["training"] |= {"eval_every": 1, "num_workers": 2}
    with pytest.raises(RunError, match="another recipe") as error:
        train(Recipe.from_dict(plain), resume=True)
    assert str(error.value).splitlines()[1:] == ["  training.eval_every: None -> 1"]
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before
    assert yaml.safe_load(before)["training"]["num_workers"] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["/usr/bin/nlp-mtl", "train", "a b.yaml"], "nlp-mtl train 'a b.yaml'"),
        (["/x/nlp_mtl/__main__.py", "train", "tasks.ner.label_map={a: b}"], None),
    ],
)
def test_the_command_can_be_typed_again(monkeypatch, arguments: list[str], told: str | None) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    assert command() == (told or "python -m nlp_mtl train 'tasks.ner.label_map={a: b}'")
    assert shlex.split(command())[-len(arguments) + 1 :] == arguments[1:]


def test_a_run_can_be_started_from_the_path_of_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values(tmp_path, max_steps=1)))
    assert train(file)["steps"] == train(str(file), overwrite=True)["steps"] == 1


def test_a_disk_that_is_full_when_the_tokenizer_is_saved_leaves_the_old_model(tmp_path: Path) -> None:
    class Full:
        def save_pretrained(self, folder: Path) -> None:
            raise Exception("No space left on device (os error 28)")  # as the tokenizers library says it

    model = tiny_model()
    save_model(tmp_path / "model", model, tokenizer())
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    with pytest.raises(RunError, match="model cannot be written: No space left"):
        save_model(tmp_path / "model", model, Full())
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_is_evaluated_with_its_own_word_splitter(tmp_path: Path) -> None:
    plain = values(tmp_path, max_steps=2)
    plain["tasks"] = {"sentiment": plain["tasks"]["sentiment"]}
    plain["datasets"] = {"texts": plain["datasets"]["texts"]}
    for file in (tmp_path / "corpus" / "texts").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        write_jsonl(file, [row | {"text": row["text"].replace(" ", "-")} for row in rows])
    results = train(Recipe.from_dict(plain | {"word_splitter": "whitespace"}))
    other = Recipe.from_dict(plain | {"word_splitter": "unicode"})
    assert evaluate(tmp_path / "run", other) == results["scores"]["test"]


def test_a_folder_with_a_recipe_of_the_users_own_is_not_taken_for_a_run(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path).model_copy(update={"output_dir": str(tmp_path)})
    (tmp_path / "recipe.yaml").write_text("# mine")
    (tmp_path / "model").mkdir()
    for overwrite in (False, True):
        with pytest.raises(RunError, match="holds files") as error:
            train(recipe, overwrite=overwrite)
        assert overwrite or "--overwrite" not in str(error.value)
    assert (tmp_path / "recipe.yaml").read_text() == "# mine"
    assert (tmp_path / "model").is_dir()


def test_an_id_on_the_hub_may_begin_as_the_run_s_folder_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {**values(tmp_path), "encoder": "me/encoder", "output_dir": "me"}
    assert Recipe.from_dict(given).encoder == "me/encoder"


@pytest.mark.parametrize("reads", ["encoder", "init_from"])
@pytest.mark.parametrize("part", ["", "model"])
def test_a_run_is_not_overwritten_by_one_that_reads_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: str, part: str
) -> None:
    given = values(tmp_path, max_steps=1)
    train(Recipe.from_dict(given))
    monkeypatch.chdir(tmp_path)
    if reads == "encoder":
        given["encoder"] = f"./run/{part}"
    else:
        given["tasks"]["ner"]["init_from"] = f"./run/{part}"
    with pytest.raises(RecipeError, match=f"{reads}: it lies in `output_dir`, where this run writes: use another"):
        train(Recipe.from_dict(given), overwrite=True)
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert (tmp_path / "run" / "results.json").is_file()


def test_the_environment_of_each_resumption_is_kept(tmp_path: Path) -> None:
    recipe = resumable(tmp_path)
    file = tmp_path / "run" / "environment.json"
    first = json.loads(file.read_text())
    train(recipe, resume=True)
    now = json.loads(file.read_text())
    (resumed,) = now.pop("resumed")
    assert now == first
    assert resumed.keys() == first.keys()


def test_a_run_goes_on_though_the_checkpoint_of_its_best_evaluation_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe(tmp_path, num_epochs=1, eval_every=2, save_every=1, keep_last=9)
    train(recipe)
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (4, 5, 6):
        shutil.rmtree(checkpoints / f"step-{step}")
    best = json.loads((checkpoints / "step-3" / "state.json").read_text())["best_step"]
    shutil.rmtree(checkpoints / f"step-{best}")
    with caplog.at_level("WARNING", "nlp_mtl"):
        assert train(recipe, resume=True)["step"] in (4, 6)
    assert f"The checkpoint of step {best}, the best so far, is gone" in caplog.text


def test_a_launchers_accumulation_and_precision_do_not_change_what_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny_recipe(tmp_path / "plain", max_steps=3, max_tokens=64))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with caplog.at_level("WARNING", "nlp_mtl"):
        train(tiny_recipe(tmp_path / "launched", max_steps=3, max_tokens=64))
    assert_same_end(tmp_path / "plain" / "run", tmp_path / "launched" / "run")
    assert "asks for bf16, but the recipe's training.mixed_precision (no) counts" in caplog.text

"""``nlp-mtl compare`` from the command line: its report, what it keeps, and that it goes on where it stopped."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import write_jsonl
from tiny_runs import finish, start, values, weights

from nlp_mtl import Recipe, RecipeError, RunError, RunStopped, evaluate, train
from nlp_mtl import compare as compare_module
from nlp_mtl.analysis.bootstrap import RowAnswers, compare_runs
from nlp_mtl.cli import main
from nlp_mtl.compare import compare
from nlp_mtl.storage import held
from nlp_mtl.tasks import Task


def two_tasks(folder: Path, **training: Any) -> dict[str, Any]:
    """A recipe's values: NER, and a sentiment whose validation and test rows have to be held out."""
    given = values(folder, **{"max_steps": 4, "eval_every": 2, "log_every": 2, **training})
    given["tasks"].pop("pos")
    given["datasets"]["texts"] = {
        "data_files": {"train": "texts/*.jsonl"}, "text": "text", "validation_fraction": 0.2, "test_fraction": 0.3,
    }  # fmt: skip
    return given


def recipe_file(folder: Path, given: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return path


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *map(str, arguments)])
    return int(exit_.value.code or 0)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished comparison of two seeds: its folder and its report."""
    folder = tmp_path_factory.mktemp("compare")
    path = recipe_file(folder, two_tasks(folder, dropout=0.1))
    assert command(path, "--seeds", 2, "--pairs", "--leave-one-out", "seed=5") in (0, None)
    made = folder / "run-compare"
    return made, json.loads((made / "report.json").read_text())


def test_a_comparison_that_another_process_works_on_is_left_alone(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = done
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr("nlp_mtl.compare.held", partial(held, wait=0))
    for overwrite in (False, True):
        with held(folder), pytest.raises(RunError, match=f"another process works in {folder}"):
            compare(Recipe.from_yaml(folder / "recipe.yaml"), seeds=2, output_dir=folder, overwrite=overwrite)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_run_that_another_process_trains_is_left_alone(
    done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = done[0] / "runs" / "joint-seed5"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    monkeypatch.setattr("nlp_mtl.run.held", partial(held, wait=0))
    with held(run), pytest.raises(RunError, match=f"another process works in {run}"):
        train(Recipe.from_yaml(run / "recipe.yaml"), overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


RUNS = [f"{model}-seed{seed}" for seed in (5, 6) for model in ("joint", "only-ner", "only-sentiment")]


def test_the_folder_holds_what_was_promised_and_no_remains(done: tuple[Path, dict[str, Any]]) -> None:
    folder, report = done
    assert {path.name for path in folder.iterdir()} == {
        "comparison.json", "recipe.yaml", "runs", "predictions", "plots", "report.html", "report.json"
    }  # fmt: skip
    assert {path.name for path in (folder / "runs").iterdir()} == {*RUNS}
    assert {path.stem for path in (folder / "predictions").iterdir()} == {*RUNS}
    assert not list(folder.rglob("*.partial"))
    assert not list(folder.rglob("checkpoints"))
    assert {path.stem for path in (folder / "plots").iterdir()} >= {"differences", "learning_curves", "conflicts"}
    assert report["seeds"] == [5, 6]
    assert [run_["folder"] for model in report["models"].values() for run_ in model["runs"]] == [
        f"runs/{model}-seed{seed}" for model in ("joint", "only-ner", "only-sentiment") for seed in (5, 6)
    ]  # fmt: skip


def test_scores_are_those_that_evaluate_prints_for_the_run_folders(done: tuple[Path, dict[str, Any]]) -> None:
    folder, report = done
    for task, metric in (("ner", "span_f1"), ("sentiment", "accuracy")):
        for side, model in (("joint", "joint"), ("alone", f"only-{task}")):
            found = [evaluate(folder / "runs" / f"{model}-seed{seed}")[task][metric] for seed in (5, 6)]
            assert report["tasks"][task][side]["scores"] == pytest.approx(found, abs=1e-12)
            told = [one["scores"]["test"][task][metric] for one in report["models"][model]["runs"]]
            assert told == pytest.approx(found, abs=1e-12)


def test_differences_and_intervals_are_those_of_the_kept_answers(done: tuple[Path, dict[str, Any]]) -> None:
    folder, report = done

    def kept(model: str) -> list[RowAnswers]:
        files = [folder / "predictions" / f"{model}-seed{seed}.json" for seed in (5, 6)]
        found = [json.loads(file.read_text())["tasks"]["sentiment"]["texts"] for file in files]
        return [RowAnswers(one["rows"], one["gold"], one["predicted"]) for one in found]

    task = Task("sentiment", "text-classification", ("negative", "positive"), "accuracy")
    found, told = compare_runs(task, kept("joint"), kept("only-sentiment")), report["tasks"]["sentiment"]
    assert told["difference"] == pytest.approx(found.difference)
    assert told["difference"] == pytest.approx(told["joint"]["mean"] - told["alone"]["mean"])
    assert told["interval"] == pytest.approx([found.low, found.high])
    assert told["rows"] == len(kept("joint")[0].rows) == 24


def test_all_runs_have_the_same_test_rows(done: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = done
    files = [json.loads((folder / "predictions" / f"{name}.json").read_text()) for name in RUNS]
    for task, dataset in (("ner", "words"), ("sentiment", "texts")):
        found = [file["tasks"][task][dataset] for file in files if task in file["tasks"]]
        assert len(found) == 4
        assert all(one["rows"] == found[0]["rows"] and one["gold"] == found[0]["gold"] for one in found)
        assert all(one["digest"] == found[0]["digest"] for one in found)


def test_with_two_tasks_pairs_and_the_rest_are_the_models_that_are_there(done: tuple[Path, dict[str, Any]]) -> None:
    _, report = done
    for kind in ("pairs", "leave_one_out"):
        for task, other in (("ner", "sentiment"), ("sentiment", "ner")):
            found = report["transfer"][kind][task]
            assert {*found} == {other}
            assert found[other]["difference"] == report["tasks"][task]["difference"]


def test_conflicts_and_cost_are_measured(done: tuple[Path, dict[str, Any]]) -> None:
    folder, report = done
    assert {*report["conflicts"]["mean"]} == {"ner/sentiment"}
    assert all(len(points) == 2 for points in report["conflicts"]["over_time"].values())
    assert {name: model["rows"] == model["joint_rows"] for name, model in report["models"].items()} == dict.fromkeys(
        ("joint", "only-ner", "only-sentiment"), True
    )
    cost = report["cost"]
    joint, alone = (sum(tensor.numel() for tensor in weights(folder / "runs" / name).values()) for name in RUNS[:2])
    assert cost["parameters"]["joint"] == joint
    assert alone < joint < cost["parameters"]["alone"]
    assert cost["ratio"] == pytest.approx(cost["seconds"]["alone"] / cost["seconds"]["joint"])
    assert cost["training_tokens"]["alone"] == sum(cost["training_tokens"]["of_models"].values())
    assert cost["training_tokens"]["alone"] == pytest.approx(cost["training_tokens"]["joint"], rel=0.2)


def test_a_run_of_a_comparison_is_an_ordinary_run(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = done
    own = Recipe.from_yaml(folder / "runs" / "only-ner-seed6" / "recipe.yaml")
    train(own.model_copy(update={"output_dir": str(tmp_path / "again")}))
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / "runs" / "only-ner-seed6" / name).read_bytes()


def test_the_terminal_shows_a_sentence_a_task(
    done: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a finished comparison is not trained again, also with fewer seeds."""
    folder, report = done
    monkeypatch.setattr(compare_module, "train", None)
    assert command(folder.parent / "recipe.yaml", "seed=5", "--seeds", 1, "--output-dir", folder) == 0
    printed = capsys.readouterr().out
    assert "- ner: " in printed
    assert f"- {report['mean']['sentence'].split(':')[0]}: " in printed
    assert "one seed" in printed
    assert f"Report: {folder / 'report.html'}" in printed
    assert json.loads((folder / "report.json").read_text())["seeds"] == [5]
    assert command(folder.parent / "recipe.yaml", "seed=5", "--seeds", 2, "--output-dir", folder) == 0
    again = json.loads((folder / "report.json").read_text())
    assert again["tasks"] == report["tasks"]


def test_another_recipe_is_refused_and_named(
    done: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = done
    before = (folder / "report.json").read_bytes()
    path = folder.parent / "recipe.yaml"
    assert command(path, "seed=5", "training.learning_rate=0.5", "--output-dir", folder) == 2
    told = capsys.readouterr().err
    assert "training.learning_rate: 0.002 -> 0.5" in told
    assert "--overwrite" in told
    for flag in ("--same-steps", "--no-conflicts"):
        assert command(path, "seed=5", flag, "--output-dir", folder) == 2
        assert f"was started without {flag}: leave it out" in capsys.readouterr().err
    assert (folder / "report.json").read_bytes() == before


def test_data_that_changed_between_runs_is_told(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = done
    shutil.copytree(folder.parent, tmp_path / "copy")
    corpus = tmp_path / "copy" / "corpus" / "words" / "test.jsonl"
    corpus.write_text(corpus.read_text().replace("anna", "clara").replace("paris", "oslo"))
    given = yaml.safe_load((folder / "recipe.yaml").read_text())
    given["data_dir"] = str(tmp_path / "copy" / "corpus")
    with pytest.raises(RunError, match=r"of other test rows of `words` than there are now.*--overwrite"):
        compare(Recipe.from_dict(given), seeds=1, output_dir=tmp_path / "copy" / "run-compare")


class Killed(Exception):
    """In the place of a kill."""


def killed_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a comparison die when it wants to train its next run after so many."""
    left = [count]

    def dying(*arguments: Any, **options: Any) -> Any:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return train(*arguments, **options)

    monkeypatch.setattr(compare_module, "train", dying)


def test_a_comparison_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.from_dict(two_tasks(tmp_path, max_steps=2, eval_every=1, log_every=1))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    _, report = compare(recipe, seeds=1, output_dir=whole)
    killed_after(1, monkeypatch)
    with pytest.raises(Killed):
        compare(recipe, seeds=1, output_dir=stopped)
    kept = (stopped / "runs" / "joint-seed0" / "model" / "model.safetensors").stat()
    # A kill while the next run's folder was made, and one between a run's end and its answers.
    (stopped / "runs" / "only-ner-seed0").mkdir()
    (stopped / "runs" / "only-ner-seed0" / "environment.json.partial").write_text("{")
    (stopped / "predictions" / "joint-seed0.json").unlink()
    killed_after(2, monkeypatch)
    _, again = compare(recipe, seeds=1, output_dir=stopped)
    assert (stopped / "runs" / "joint-seed0" / "model" / "model.safetensors").stat() == kept
    for key in ("tasks", "conflicts", "learning_curves"):
        assert again[key] == report[key]
    for one in ("joint", "only-ner", "only-sentiment"):
        for name in ("metrics.jsonl", "model/model.safetensors"):
            ours, theirs = (folder / "runs" / f"{one}-seed0" / name for folder in (stopped, whole))
            assert ours.read_bytes() == theirs.read_bytes()


def test_what_is_no_comparison_is_left_alone(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(two_tasks(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("dear diary")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="no comparison"):
            compare(recipe, output_dir=tmp_path / "mine", overwrite=overwrite)
    with pytest.raises(RunError, match="is a file"):
        compare(recipe, output_dir=tmp_path / "mine" / "notes.txt")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "dear diary"


def test_one_task_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    given = two_tasks(tmp_path)
    given["tasks"].pop("sentiment")
    given["datasets"].pop("texts")
    with pytest.raises(RecipeError, match="one task alone"):
        compare(Recipe.from_dict(given))
    assert not (tmp_path / "run-compare").exists()


def test_without_a_test_split_validation_counts_and_it_is_told(tmp_path: Path) -> None:
    given = two_tasks(tmp_path, max_steps=1, eval_every=1)
    given["datasets"]["texts"] |= {"test_fraction": 0.0, "splits": {"test": None}}
    folder, report = compare(Recipe.from_dict(given), seeds=1, measure_conflicts=False, keep_checkpoints=True)
    assert {task: one["split"] for task, one in report["tasks"].items()} == {"ner": "test", "sentiment": "validation"}
    html = (folder / "report.html").read_text()
    assert "sentiment: there is no labelled test split" in html
    assert "Not measured: it was not asked for." in html
    assert (folder / "runs" / "joint-seed0" / "checkpoints").is_dir()


def test_tasks_of_pairs_are_compared_beside_tasks_of_single_texts(tmp_path: Path) -> None:
    given = two_tasks(tmp_path, max_steps=1, eval_every=1)
    files = sorted((Path(given["data_dir"]) / "texts").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    write_jsonl(Path(given["data_dir"]) / "pairs.jsonl", [
        {"first": row["text"], "second": None if place % 7 == 3 else "tea in oslo", "label": row["label"]}
        for place, row in enumerate(rows)
    ])  # fmt: skip
    given["datasets"]["texts"] |= {"data_files": {"train": "pairs.jsonl"}, "text": "first", "text_pair": "second"}
    folder, report = compare(Recipe.from_dict(given), seeds=1, measure_conflicts=False)
    rows_of = {task: one["rows"] for task, one in report["tasks"].items()}
    assert (report["cost"]["texts"], report["cost"]["pairs"]) == (rows_of["ner"], rows_of["sentiment"])
    assert (
        f"seconds for {rows_of['ner']} texts and {rows_of['sentiment']} pairs" in (folder / "report.html").read_text()
    )


def test_a_stopped_comparison_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise RunStopped("stopped after step 1 of 4, which is saved: resume the run from there")

    monkeypatch.setattr(compare_module, "train", stopped)
    assert command(recipe_file(tmp_path, two_tasks(tmp_path))) == 75
    assert (
        "joint, seed 0: stopped after step 1 of 4, which is saved: resume the run from there (the same command goes on"
        in capsys.readouterr().err
    )


@pytest.mark.long
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, two_tasks(tmp_path, max_steps=2, eval_every=2))
    options = ("compare", path, "--seeds", "1", "--output-dir")
    code, _, errors = finish(start(*options, tmp_path / "two", processes=2), timeout=400)
    assert code == 0, errors
    code, _, errors = finish(start(*options, tmp_path / "one"), timeout=400)
    assert code == 0, errors
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    for task in one["tasks"]:
        assert two["tasks"][task]["joint"]["mean"] == pytest.approx(one["tasks"][task]["joint"]["mean"], abs=0.05)
    assert one["cost"]["training_tokens"] == two["cost"]["training_tokens"]

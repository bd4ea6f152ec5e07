import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import finish, lines, start, tiny_recipe, values, write_yaml

from nlp_mtl import MissingExtraError, Recipe, RecipeError, RunError, train
from nlp_mtl.training import trackers
from nlp_mtl.training.trackers import flat


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """``{name: [(step, value)]}`` of TensorBoard's files in a run folder."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted((folder / "trackers").rglob("events.out.*")):
        events = EventAccumulator(str(file)).Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend((event.step, event.value) for event in events.Scalars(name))
    return found


def test_tensorboard_gets_every_line_of_the_metrics_speed_and_the_final_scores(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, trackers=["tensorboard"], num_epochs=1, log_every=2, eval_every=4)
    results = train(recipe)
    run = Path(recipe.output_dir)
    found = scalars(run)
    for line in lines(run):
        for name, value in flat({key: part for key, part in line.items() if key != "scores"}).items():
            if name != "step":
                assert (line["step"], pytest.approx(value, rel=1e-5)) in found[name]
        for name, value in flat(line.get("scores", {})).items():
            assert (line["step"], pytest.approx(value, rel=1e-5)) in found[f"validation/{name}"]
    assert all(speed > 0 for _, speed in found["tokens_a_second"])
    ((_, value),) = found["best/test/pos/accuracy"]
    assert value == pytest.approx(results["scores"]["test"]["pos"]["accuracy"])


@pytest.mark.slow
def test_trackio_gets_the_losses_of_a_run_under_its_folders_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    file = write_yaml(tmp_path, values(tmp_path, trackers=["trackio"], max_steps=4, log_every=1))
    code, _, errors = finish(start("train", file))
    assert code == 0, errors
    (database,) = (tmp_path / "trackio").glob("run*.db")
    with closing(sqlite3.connect(database)) as connection:
        logged = [json.loads(text) for (text,) in connection.execute("SELECT metrics FROM metrics ORDER BY step")]
    losses = [values["losses/ner"] for values in logged if "losses/ner" in values]
    assert losses == pytest.approx([line["losses"]["ner"] for line in lines(tmp_path / "run") if "losses" in line])


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    recipe = tiny_recipe(tmp_path, trackers=["tensorboard", "trackio"])
    with pytest.raises(
        MissingExtraError, match=r"`trackio`, which is not installed: pip install 'nlp_mtl\[trackers\]'"
    ):
        train(recipe)
    assert not Path(recipe.output_dir).exists()


def test_an_unknown_tracker_is_told_with_the_likely_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="tensorboard"):
        Recipe.from_dict(values(tmp_path, trackers=["tensorbord"]))


def test_nested_values_get_paths_and_what_is_none_is_left_out() -> None:
    assert flat({"a": {"b": 1, "c": {"d": 2.5}}, "e": None, "f": "x"}) == {"a/b": 1, "a/c/d": 2.5, "f": "x"}


def test_a_tracker_that_cannot_be_started_is_told_and_the_old_run_is_left(tmp_path: Path, monkeypatch) -> None:
    recipe = tiny_recipe(tmp_path, max_steps=2)
    train(recipe)
    kept = (Path(recipe.output_dir) / "results.json").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the server")

    monkeypatch.setattr(Accelerator, "init_trackers", fail)
    tracked = recipe.model_copy(update={"training": recipe.training.model_copy(update={"trackers": ["tensorboard"]})})
    with pytest.raises(RunError, match=r"training\.trackers: .*tensorboard.* cannot be started: no route"):
        train(tracked, overwrite=True)
    assert (Path(recipe.output_dir) / "results.json").read_bytes() == kept


def test_a_new_run_does_not_keep_the_points_of_the_one_it_overwrites(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, trackers=["tensorboard"], max_steps=2, log_every=1)
    train(recipe)
    train(recipe, overwrite=True)
    assert [step for step, _ in scalars(Path(recipe.output_dir))["loss"]] == [1, 2]

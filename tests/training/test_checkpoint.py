import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import full_disk
from torch import nn

from nlp_mtl import storage
from nlp_mtl.errors import RunError
from nlp_mtl.training.checkpoint import (
    TrainingState,
    checkpoints,
    later_than,
    load_best,
    newest_sound,
    restore,
    rotate,
    save_checkpoint,
    set_aside,
)
from nlp_mtl.training.optimizer import parameter_groups


def trainable(seed: int, width: int = 8) -> tuple[nn.Module, torch.optim.AdamW]:
    """A model whose second head is never used, so it has no optimizer state."""
    torch.manual_seed(seed)
    heads = nn.ModuleDict({"used": nn.Linear(width, 2), "unused": nn.Linear(width, 2)})
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width)), "heads": heads})
    groups = parameter_groups(model, learning_rate=1e-2, head_learning_rate=1e-1, weight_decay=0.1)
    return model, torch.optim.AdamW(groups, fused=True)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        model["heads"]["used"](model["body"](inputs)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def saved(folder: Path, step: int = 3, seed: int = 0) -> tuple[Path, nn.Module, torch.optim.AdamW]:
    model, optimizer = trainable(seed)
    learn(model, optimizer)
    return save_checkpoint(folder, model, optimizer, TrainingState(step)), model, optimizer


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_weights_optimizer_and_state_come_back_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trainable(0)
    learn(model, optimizer)
    state = TrainingState(3, 2, 0.1 + 0.2, 1, True, {"ner": [0.1, 1 / 3]})
    path = save_checkpoint(tmp_path, model, optimizer, state)
    other, other_optimizer = trainable(1)
    learn(other, other_optimizer, 5)  # state of its own, which must not stay
    assert restore(path, other, other_optimizer) == state
    assert_same(model, other)
    one, two = optimizer.state_dict()["state"], other_optimizer.state_dict()["state"]
    assert one.keys() == two.keys()
    assert len(one) == len(list(model.parameters())) - 2  # the unused head's two have none
    for parameter, values in one.items():
        assert values.keys() == two[parameter].keys()
        for key, value in values.items():
            assert torch.equal(value, two[parameter][key])
            assert value.dtype == two[parameter][key].dtype
    learn(model, optimizer)
    learn(other, other_optimizer)
    assert_same(model, other)


def test_averaged_weights_come_back_beside_the_others(tmp_path: Path) -> None:
    model, optimizer = trainable(0)
    average, _ = trainable(7)
    path = save_checkpoint(tmp_path, model, optimizer, TrainingState(3), average)
    other, other_optimizer = trainable(1)
    other_average, _ = trainable(2)
    restore(path, other, other_optimizer, other_average)
    assert_same(model, other)
    assert_same(average, other_average)
    load_best(path, other)
    assert_same(average, other)
    (path / "average.safetensors").unlink()
    with pytest.raises(RunError, match="step-3"):
        restore(path, other, other_optimizer, other_average)
    with pytest.raises(RunError, match=r"average\.safetensors is missing"):
        load_best(path, other)


def test_a_checkpoint_holds_tensors_and_json_and_no_pickle(tmp_path: Path) -> None:
    path, *_ = saved(tmp_path)
    names = ["model.safetensors", "optimizer.safetensors", "state.json"]
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", *names]
    assert json.loads((path / "state.json").read_text())["step"] == 3
    assert list(json.loads((path / "manifest.json").read_text())["files"]) == names


def test_checkpoints_are_in_the_order_of_their_steps_and_nothing_else_is_one(tmp_path: Path) -> None:
    for name in ("step-9", "step-10", "step-100", "step-7.partial", "step-x", "best", "step-", "astep-3"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-9", "step-10", "step-100"]
    assert checkpoints(tmp_path / "nowhere") == []


def test_a_failure_to_rename_leaves_the_older_checkpoint_and_nothing_half_written(tmp_path: Path, monkeypatch) -> None:
    old, model, optimizer = saved(tmp_path)

    def no_rename(*_: object) -> None:
        raise PermissionError("renaming is not allowed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_rename)
        with pytest.raises(RunError, match=r"step-4 cannot be written.*not allowed"):
            save_checkpoint(tmp_path, model, optimizer, TrainingState(4))
    assert list(tmp_path.iterdir()) == [old]
    assert restore(old, *trainable(1)).step == 3


class Killed(BaseException):
    """Nothing that code should catch: the process is gone."""


@pytest.mark.parametrize("moment", ["replace", "fsync"])
def test_a_process_killed_while_saving_leaves_no_checkpoint_and_does_not_hinder_the_next(
    tmp_path: Path, monkeypatch, moment: str
) -> None:
    old, model, optimizer = saved(tmp_path)

    process = os.fork()
    if not process:  # the child goes at once, as one that is killed does
        monkeypatch.setattr(os, moment, lambda *_: os._exit(9))
        save_checkpoint(tmp_path, model, optimizer, TrainingState(4))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert (tmp_path / "step-4.partial").is_dir()
    assert checkpoints(tmp_path) == [old]
    path = save_checkpoint(tmp_path, model, optimizer, TrainingState(4))
    assert checkpoints(tmp_path) == [old, path]
    (tmp_path / "step-5.partial").mkdir()
    rotate(tmp_path, 2)
    assert sorted(tmp_path.iterdir()) == [old, path]


def test_an_interrupt_while_saving_leaves_nothing_half_written(tmp_path: Path, monkeypatch) -> None:
    old, model, optimizer = saved(tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, model, optimizer, TrainingState(4))
    assert list(tmp_path.iterdir()) == [old]


def test_a_process_killed_while_removing_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, monkeypatch
) -> None:
    old, model, optimizer = saved(tmp_path)
    new = save_checkpoint(tmp_path, model, optimizer, TrainingState(4))

    def half(path: Path) -> None:
        (path / "model.safetensors").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", half)
        with pytest.raises(Killed):
            rotate(tmp_path, 1)
    assert checkpoints(tmp_path) == [new]
    assert not old.exists()
    rotate(tmp_path, 1)
    assert list(tmp_path.iterdir()) == [new]


@pytest.mark.parametrize("size", [0, 100, 1500])
def test_a_full_disk_is_told_and_leaves_the_older_checkpoint(tmp_path: Path, size: int) -> None:
    old, model, optimizer = saved(tmp_path)
    with full_disk(size), pytest.raises(RunError, match=r"step-4 cannot be written.*What was there before is intact"):
        save_checkpoint(tmp_path, model, optimizer, TrainingState(4))
    assert list(tmp_path.iterdir()) == [old]
    assert restore(old, *trainable(1)).step == 3


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        save_checkpoint(tmp_path / "checkpoints", *trainable(0), TrainingState(1))


@settings(deadline=None, max_examples=50)
@given(
    steps=st.sets(st.integers(1, 200), min_size=1, max_size=12),
    keep_last=st.integers(1, 5),
    keep_best=st.integers(1, 3),
    data=st.data(),
)
def test_rotation_keeps_the_newest_the_best_and_what_each_of_the_newest_calls_the_best(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], keep_last: int, keep_best: int, data
) -> None:
    folder = tmp_path_factory.mktemp("rotation")
    best: dict[int, int | None] = {}
    scores: dict[int, float | None] = {}
    for step in sorted(steps):
        best[step] = data.draw(st.sampled_from([None, *(other for other in sorted(steps) if other <= step)]))
        (folder / f"step-{step}").mkdir()
        scores[step] = data.draw(st.sampled_from([None, 0.1, 0.5, 0.9]))  # not all are evaluated, some equally good
        state = TrainingState(step, best_step=best[step], score=scores[step])
        (folder / f"step-{step}" / "state.json").write_text(json.dumps(asdict(state)))
    rotate(folder, keep_last, keep_best)
    kept = sorted(steps)[-keep_last:]
    by_score = sorted((step for step in steps if scores[step] is not None), key=lambda step: (-scores[step], step))
    wanted = {*kept, *(best[step] for step in kept), *by_score[:keep_best]} - {None}
    assert {path.name for path in folder.iterdir()} == {f"step-{step}" for step in wanted}


@pytest.mark.parametrize("content", [None, "", "[]", '{"steps": 3}'])
def test_a_damaged_state_does_not_stop_rotation(tmp_path: Path, content: str | None) -> None:
    for step in (1, 2, 3):
        (tmp_path / f"step-{step}").mkdir()
        state = content if step == 2 else json.dumps(asdict(TrainingState(step)))
        if state is not None:
            (tmp_path / f"step-{step}" / "state.json").write_text(state)
    rotate(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"step-2", "step-3"}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half", "noise"])
def test_a_damaged_checkpoint_is_told_with_its_path(tmp_path: Path, name: str, damage: str) -> None:
    path, *_ = saved(tmp_path)
    content = (path / name).read_bytes()
    (path / name).unlink()
    if damage != "missing":
        new = {"empty": b"", "half": content[: len(content) // 2], "noise": b"\xff\x00noise" * 50}[damage]
        (path / name).write_bytes(new)
    with pytest.raises(RunError, match=r"checkpoint .*step-3.*Remove it to resume from an older one") as error:
        restore(path, *trainable(1))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_one_changed_bit_is_found_and_the_newest_sound_checkpoint_taken(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [saved(tmp_path, step)[0] for step in (1, 2, 3)]
    assert newest_sound(tmp_path) == paths[2]
    content = bytearray((paths[2] / name).read_bytes())
    content[len(content) // 2] ^= 1
    (paths[2] / name).write_bytes(content)
    assert newest_sound(tmp_path) == paths[1]
    assert f"{paths[2]} is damaged ({name}" in caplog.text
    with pytest.raises(RunError, match="step-3, the best of the run, is damaged"):
        load_best(paths[2], trainable(1)[0])


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_missing_file_and_one_cut_short_are_damage(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, *_ = saved(tmp_path)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-20])
    assert newest_sound(tmp_path) is None
    (path / name).unlink()
    assert newest_sound(tmp_path) is None
    assert f"{name} is missing" in caplog.text
    (path / name).write_bytes(content)
    assert newest_sound(tmp_path) == path


def test_what_is_set_aside_is_no_checkpoint_any_more_and_is_kept(tmp_path: Path) -> None:
    paths = [saved(tmp_path, step)[0] for step in (1, 2, 3)]
    assert later_than(paths[0]) == paths[1:]
    for _ in range(2):  # also where one of that name was set aside before
        set_aside(later_than(paths[0]))
        assert checkpoints(tmp_path) == paths[:1]
        assert (tmp_path / "step-3.damaged" / "model.safetensors").is_file()
        saved(tmp_path, 3)
    rotate(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"step-3", "step-2.damaged", "step-3.damaged"}


@pytest.mark.parametrize("content", ["[]", "null", '{"stepp": 3}', '"text"'])
def test_a_state_of_another_form_is_told(tmp_path: Path, content: str) -> None:
    path, *_ = saved(tmp_path)
    (path / "state.json").write_text(content)
    with pytest.raises(RunError, match="step-3"):
        restore(path, *trainable(1))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path, *_ = saved(tmp_path)
    with pytest.raises(RunError, match="does not fit the model"):
        restore(path, *trainable(0, width=16))
    with pytest.raises(RunError, match="does not fit the model"):
        load_best(path, nn.Linear(2, 2))


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    path, model, optimizer = saved(tmp_path)
    learn(model, optimizer, 1)
    assert save_checkpoint(tmp_path, model, optimizer, TrainingState(3, best_step=1)) == path
    other, other_optimizer = trainable(1)
    assert restore(path, other, other_optimizer).best_step == 1
    assert_same(model, other)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_renamed_is_on_disk_before(tmp_path: Path, monkeypatch) -> None:
    events: list[str] = []
    rename = os.replace
    monkeypatch.setattr(storage, "_sync", lambda path: events.append(path.name))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("rename"), rename(old, new)))
    saved(tmp_path)
    assert set(events[:4]) == {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert events[4:] == ["rename", tmp_path.name]

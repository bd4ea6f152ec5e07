"""What is written is whole or absent, and what was there before survives every failure."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import full_disk

from nlp_mtl import storage
from nlp_mtl.errors import RunError
from nlp_mtl.storage import held, save_tokenizer, write_text, written_file, written_folder


class Killed(BaseException):
    """Nothing that code should catch: the process is gone."""


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, text: str) -> None:
    with written_folder(folder) as partial:
        (partial / "deep").mkdir()
        (partial / "deep" / "a.txt").write_text(text)
        (partial / "b.txt").write_text(text)


def write_tensors(path: Path) -> None:
    with written_file(path) as partial:
        save_file({"a": torch.zeros(100)}, partial)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("one", "two, longer é", ""):
        write_text(tmp_path / "a.txt", text)
        assert contents(tmp_path) == {"a.txt": text}


HOLDER = """
import sys
from pathlib import Path
from nlp_mtl.storage import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_until_it_ends_however_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"another process works in {folder}"), held(folder, wait=0.2):
            pass
        holder.kill()
    with held(folder), pytest.raises(RunError, match="another process works in"), held(folder, wait=0):
        pass
    with held(folder, wait=0):
        assert not [*folder.iterdir()]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="file cannot be written"), held(tmp_path / "file"):
        pass


def test_who_waits_for_a_folder_that_is_then_removed_holds_the_one_that_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    got, go_on, ended = threading.Event(), threading.Event(), []

    def wait() -> None:
        with held(folder):
            got.set()
            go_on.wait(10)
            ended.append(folder.is_dir())

    with held(folder):
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.2)  # it waits
        folder.rmdir()
    assert got.wait(10)
    with pytest.raises(RunError, match="another process works in"), held(folder, wait=0):
        pass
    go_on.set()
    waiter.join()
    assert ended == [True]


def test_a_file_system_without_locks_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr(storage.fcntl, "flock", refuse)
    with held(tmp_path), held(tmp_path, wait=0):
        pass


def test_a_tokenizer_that_finds_no_room_is_an_os_error_and_other_errors_stay(tmp_path: Path) -> None:
    class Full:
        said = "No space left on device (os error 28)"

        def save_pretrained(self, folder: Path) -> None:
            raise Exception(self.said)

    with pytest.raises(OSError, match="No space left"):
        save_tokenizer(Full(), tmp_path)
    Full.said = "something else"
    with pytest.raises(Exception, match="something else") as told:
        save_tokenizer(Full(), tmp_path)
    assert not isinstance(told.value, OSError)


def test_a_folder_that_was_removed_meanwhile_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a\.txt cannot be written: its folder is gone; was it removed meanwhile\?"):
        write_text(tmp_path / "gone" / "a.txt", "text")


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("one", "two"):
        fill(tmp_path / "new" / "folder", text)
        assert contents(tmp_path) == {"new/folder/deep/a.txt": text, "new/folder/b.txt": text}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


@pytest.mark.parametrize("size", [0, 5])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, size: int) -> None:
    write_text(tmp_path / "a.txt", "before")
    fill(tmp_path / "folder", "before")
    before = contents(tmp_path)
    with full_disk(size), pytest.raises(RunError, match=r"a\.txt cannot be written: .*too large.*before is intact"):
        write_text(tmp_path / "a.txt", "after, longer")
    with full_disk(size), pytest.raises(RunError, match=r"a\.txt cannot be written: .*before is intact"):
        write_tensors(tmp_path / "a.txt")
    with full_disk(size), pytest.raises(RunError, match=r"folder cannot be written: .*too large.*before is intact"):
        fill(tmp_path / "folder", "after, longer")
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_a_folder_that_cannot_get_its_name_leaves_the_old_one(tmp_path: Path, monkeypatch) -> None:
    fill(tmp_path / "folder", "before")
    rename = os.replace

    def no_new_name(old: Path, new: Path) -> None:
        if Path(new).name == "folder" and "before" not in Path(old).name:
            raise PermissionError(1, "not allowed")
        rename(old, new)

    monkeypatch.setattr(os, "replace", no_new_name)
    with pytest.raises(RunError, match="folder cannot be written: not allowed"):
        fill(tmp_path / "folder", "after")
    assert contents(tmp_path) == {"folder/deep/a.txt": "before", "folder/b.txt": "before"}


@pytest.mark.parametrize(("target", "name"), [(os, "fsync"), (os, "replace"), (shutil, "rmtree")])
def test_a_process_killed_at_any_step_leaves_one_whole_folder_or_the_next_attempt_does(
    tmp_path: Path, monkeypatch, target: object, name: str
) -> None:
    real = getattr(target, name)
    for allowed in range(6):
        folder = tmp_path / str(allowed) / "folder"
        fill(folder, "before")
        calls = iter(range(100))

        def dies(*arguments: object, calls=calls, allowed=allowed, **options: object) -> object:
            if next(calls) >= allowed:
                raise Killed
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(target, name, dies)
            try:
                fill(folder, "after")
            except Killed:
                # Either name holds a whole folder: nothing that was written is lost.
                wholes = [contents(path) for path in folder.parent.iterdir() if len(contents(path)) == 2]
                assert {"deep/a.txt": "before", "b.txt": "before"} in wholes or contents(folder)["b.txt"] == "after"
        fill(folder, "again")
        assert contents(folder.parent) == {"folder/deep/a.txt": "again", "folder/b.txt": "again"}


def test_what_gets_a_name_is_on_disk_before(tmp_path: Path, monkeypatch) -> None:
    events: list[str] = []
    rename = os.replace
    monkeypatch.setattr(storage, "_sync", lambda path: events.append(path.name))
    monkeypatch.setattr(os, "replace", lambda old, new: (events.append("rename"), rename(old, new)))
    fill(tmp_path / "folder", "x")
    assert set(events[:3]) == {"deep", "a.txt", "b.txt"}
    assert events[3:] == ["rename", tmp_path.name]
    events.clear()
    write_text(tmp_path / "a.txt", "x")
    assert events == ["a.txt.partial", "rename"]


def test_who_may_read_a_folder_may_read_its_files(tmp_path: Path) -> None:
    with written_folder(tmp_path / "model") as partial:
        (partial / "weights").touch(mode=0o600)
        (partial / "config").touch(mode=0o600)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {(tmp_path / "model").stat().st_mode & 0o666}

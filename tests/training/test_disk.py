"""Runs on a real file system of a few hundred kilobytes, which fills up, or is read-only for a while."""

import mmap
import shutil
import subprocess
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
from tiny_runs import assert_same_end, finish, start, values, write_yaml

from nlp_mtl import Recipe, train
from nlp_mtl.training.checkpoint import checkpoints
from nlp_mtl.training.manifest import damage


class Disk:
    """A tmpfs in a mount namespace of its own: it is gone as soon as the shell that holds it ends, however it ends."""

    def __init__(self, shell: "subprocess.Popen[str]", folder: Path) -> None:
        self.shell = shell
        self.folder = folder
        # Other processes do not see what is mounted there, but come to it through the shell's root.
        self.path = Path(f"/proc/{shell.pid}/root{folder}")

    def mount(self, options: str, size: int = 2**22) -> str:
        """Mount it, or mount it anew with other options; returns what `mount` said."""
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        command = ["mount", "-t", "tmpfs", "-o", f"{options},size={size}", "tmpfs", str(self.folder)]
        self.shell.stdin.write(f"{' '.join(command)} 2>&1; echo done\n")
        self.shell.stdin.flush()
        return "".join(takewhile(lambda line: line != "done\n", self.shell.stdout))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 4 MB, empty."""
    if shutil.which("unshare") is None:
        pytest.skip("a small disk needs a mount namespace, and there is no `unshare` (Linux, util-linux) to make one")
    told = ""
    for namespaces in ("-m", "-rm"):  # as root, else as the root of a user namespace
        made = subprocess.run(["unshare", namespaces, "true"], capture_output=True, text=True, check=False)
        told += made.stderr
        if made.returncode == 0:
            break
    else:
        pytest.skip(f"a small disk needs a mount namespace, which is not allowed here: {told.strip()}")
    folder = tmp_path / "disk"
    folder.mkdir()
    shell = subprocess.Popen(["unshare", namespaces, "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with shell:  # its input ends with the block, and so does it
        disk = Disk(shell, folder)
        refused = disk.mount("rw")
        if refused:
            pytest.skip(f"a small disk cannot be mounted here: {refused.strip()}")
        yield disk
    assert not any(folder.iterdir())


def on_disk(*files: Path) -> int:
    """Bytes that files take on a tmpfs: whole pages."""
    return sum(-(-path.stat().st_size // mmap.PAGESIZE) * mmap.PAGESIZE for path in files)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "checkpoints_that_fit",
    [
        pytest.param(2.6, id="optimizer"),  # what of the third is cut short, in the order in which they are written
        pytest.param(2.1, id="weights", marks=pytest.mark.long),
        pytest.param(2.99, id="manifest", marks=pytest.mark.long),
    ],
)
@pytest.mark.usefixtures("cores")
def test_a_disk_that_fills_while_a_checkpoint_is_written_costs_that_checkpoint_alone(
    tmp_path: Path, disk: Disk, checkpoints_that_fit: float
) -> None:
    plain = values(tmp_path, dropout=0.2, num_epochs=1, save_every=1, eval_every=6, keep_last=9)
    train(Recipe.from_dict(plain))
    whole, run = tmp_path / "run", disk.path / "run"
    one = on_disk(*(whole / "checkpoints" / "step-1").iterdir())
    others = on_disk(whole / "recipe.yaml", whole / "environment.json") + mmap.PAGESIZE  # and the first metrics
    filler = disk.path / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk.path).free - others - int(checkpoints_that_fit * one)))
    file = write_yaml(tmp_path / "file", {**plain, "output_dir": str(run)})

    code, _, errors = finish(start("train", file))
    assert code == 2, errors
    assert "Traceback" not in errors
    assert f"nlp-mtl: {run / 'checkpoints' / 'step-3'} cannot be written: " in errors
    assert "No space left on device" in errors
    assert "What was there before is intact" in errors
    saved = checkpoints(run / "checkpoints")
    assert sorted((run / "checkpoints").iterdir()) == saved == [run / "checkpoints" / f"step-{step}" for step in (1, 2)]
    assert [damage(path) for path in saved] == [None, None]

    filler.unlink()
    code, _, errors = finish(start("train", file, "--resume"))
    assert code == 0, errors
    assert "Resuming after step 2 of 6" in errors
    assert_same_end(whole, run)


@pytest.mark.usefixtures("cores")
def test_a_disk_that_is_read_only_is_told_and_a_run_there_goes_on_when_it_is_not(tmp_path: Path, disk: Disk) -> None:
    plain = values(tmp_path, dropout=0.2, num_epochs=1, save_every=2, eval_every=6, keep_last=9)
    train(Recipe.from_dict(plain))
    whole, run = tmp_path / "run", disk.path / "run"
    file = write_yaml(tmp_path / "file", {**plain, "output_dir": str(run)})
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-6")
    before = contents(run)

    assert disk.mount("remount,ro") == ""
    for arguments, told in ((["--resume"], run / "metrics.jsonl"), ([f"output_dir={disk.path / 'new'}"], "output_dir")):
        code, _, errors = finish(start("train", file, *arguments))
        assert code == 2, errors
        assert "Traceback" not in errors
        assert f"nlp-mtl: {told}" in errors
        assert "cannot be written: Read-only file system" in errors
    assert contents(disk.path) == before

    assert disk.mount("remount,rw") == ""
    code, _, errors = finish(start("train", file, "--resume"))
    assert code == 0, errors
    assert_same_end(whole, run)

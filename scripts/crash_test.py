"""Kill training at random moments, resume it after each, and compare its end with that of a run left alone.

    scripts/crash_test                                  # 30 kills, about ten minutes on two cores
    scripts/crash_test --kills 200 --keep crashed

A tiny model with dropout is trained by ``nlp-mtl train RECIPE --resume auto`` in real processes. SIGKILL ends them all
at once, and the same command starts them again, until the run ends. At least a third of the kills land inside a save: a
half-written checkpoint, ``step-N.partial``, is left behind. Others land wherever the run is some steps later. A run
that ends before all kills are made is followed by a further one, in another folder.

Every file of the checkpoints that are kept (weights, averaged weights, AdamW's state), of the saved model, and
``metrics.jsonl`` must then hold the same bytes as those of the run left alone, and ``results.json`` the same scores.
Where something differs, the first file that does is told, the run folders are kept, and the exit code is 1.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from tiny_runs import finish, start, streamed_values, values, write_yaml  # noqa: E402 (not a package)

STEPS, SAVE_EVERY = 120, 3
STRETCH = 40
"""The most steps between a start and the next kill."""
A_SAVE = 0.01
"""Seconds in which a kill that is aimed at a save follows its begin, mostly in the first quarter: a save takes about
as long, on a quick disk less."""
TIMEOUT = 180.0
"""Seconds without the moment that is waited for, after which a run hangs."""
LEFT_OUT = {"environment.json", "recipe.yaml"}
"""What a run folder holds about the process, the command and the folder."""


class Combination(NamedTuple):
    mixed_precision: str
    num_workers: int
    """Of the data loader, in each process."""
    processes: int = 1
    streamed: bool = False
    """Whether one of the datasets is a stream."""

    def __str__(self) -> str:
        precision = {"no": "float32", "bf16": "bfloat16"}[self.mixed_precision]
        what = ", a stream" if self.streamed else f", {self.processes} process{'es' if self.processes > 1 else ''}"
        return f"{precision}, {self.num_workers} loader workers{what}"


COMBINATIONS = [Combination(precision, workers) for precision in ("no", "bf16") for workers in (0, 2)]
FEWER_KILLS = [Combination("bf16", 2, processes=2), Combination("no", 2, streamed=True)]


@dataclass
class Outcome:
    runs: int = 0
    kills: int = 0
    inside: int = 0
    """Kills that left a half-written checkpoint."""
    repeated: int = 0
    """Steps that were done, and were done again because no checkpoint held them."""
    problem: str | None = None
    """Why a run did not end as the one left alone; None: all did."""


def last_step(run: Path) -> int:
    """The step of the last whole line of a run's metrics.jsonl; 0 without any."""
    try:
        whole = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return int(json.loads(whole[-1])["step"]) if whole else 0


def newest_checkpoint(run: Path) -> int:
    """The step of the newest complete checkpoint; 0 without any."""
    found = [re.fullmatch(r"step-(\d+)", path.name) for path in (run / "checkpoints").glob("step-*")]
    return max((int(match[1]) for match in found if match), default=0)


def half_written(run: Path, since: float) -> bool:
    """Whether a checkpoint newer than all complete ones lies there half-written, touched since a time (seconds)."""
    newest = newest_checkpoint(run)
    for path in (run / "checkpoints").glob("step-*.partial"):
        match = re.fullmatch(r"step-(\d+)\.partial", path.name)
        with suppress(FileNotFoundError):  # it has got its name just now
            if match and int(match[1]) > newest and path.stat().st_ctime >= since:
                return True
    return False


def family(pid: int) -> list[int]:
    """A process and all that it started, and they."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in found for one in family(int(child)))]


def kill_at_random(process: "subprocess.Popen[str]", run: Path, random_: random.Random, aimed: bool) -> bool:
    """SIGKILL a run that was just started, with all its processes, some steps later. False: it ended before.

    Args:
        aimed: wait for a save to begin.
    """
    started, deadline = time.time(), time.monotonic() + TIMEOUT
    first = newest_checkpoint(run)
    before = stamp(run)
    target = first + random_.randint(1, STRETCH)
    known: list[int] = []
    while process.poll() is None:
        if time.monotonic() > deadline:
            kill(process, family(process.pid))
            raise TimeoutError(f"{run} hangs after step {last_step(run)}")
        # Lines after the checkpoint are of the process before until this one has cut them off.
        if stamp(run) != before and last_step(run) > first:
            known = known or family(process.pid)  # loader workers are there when the first step is done
            if last_step(run) >= target and (not aimed or half_written(run, started)):
                time.sleep(random_.random() ** 2 * A_SAVE)
                kill(process, known)
                return True
        time.sleep(0.0002 if known else 0.01)
    return False


def stamp(run: Path) -> tuple[int, int] | None:
    """What changes when metrics.jsonl is written."""
    try:
        found = (run / "metrics.jsonl").stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size


def kill(process: "subprocess.Popen[str]", known: list[int]) -> None:
    for pid in known if process.poll() is None else ():
        with suppress(ProcessLookupError):  # a worker that went with its process
            os.kill(pid, signal.SIGKILL)
    finish(process)


def crash(combination: Combination, folder: Path, kills: int, random_: random.Random) -> Outcome:
    """Runs of a combination in ``folder/run-1``, ..., killed so often in all; ``folder/alone`` is not killed."""
    folder.mkdir(parents=True)
    make = streamed_values if combination.streamed else values
    plain = make(
        folder, dropout=0.2, num_epochs=STEPS, max_steps=STEPS, save_every=SAVE_EVERY, eval_every=25, keep_last=2,
        ema_decay=0.9, mixed_precision=combination.mixed_precision, num_workers=combination.num_workers,
    )  # fmt: skip
    file = write_yaml(folder, plain)

    def started(run: Path) -> "subprocess.Popen[str]":
        return start("train", file, f"output_dir={run}", "--resume", "auto", processes=combination.processes)

    outcome = Outcome()
    code, _, errors = finish(started(folder / "alone"), TIMEOUT)
    if code:
        outcome.problem = f"{folder / 'alone'}: exit code {code}\n{errors}"
    while outcome.problem is None and wanting(outcome, kills):
        outcome.runs += 1
        run = folder / f"run-{outcome.runs}"
        process = started(run)
        while wanting(outcome, kills):
            since = time.time()
            if not kill_at_random(process, run, random_, aimed=2 * outcome.inside <= outcome.kills):
                break
            outcome.kills += 1
            outcome.inside += half_written(run, since)
            outcome.repeated += last_step(run) - newest_checkpoint(run)
            process = started(run)
        code, _, errors = finish(process, TIMEOUT)
        outcome.problem = f"{run}: exit code {code}\n{errors}" if code else difference(run, folder / "alone")
    return outcome


def wanting(outcome: Outcome, kills: int) -> bool:
    """Whether kills are wanting: they are fewer than asked for, or fewer than a third of them were inside a save."""
    return outcome.kills < kills or (3 * outcome.inside < outcome.kills < 3 * kills)


def difference(run: Path, alone: Path) -> str | None:
    """The first file, or folder, in which two runs end differently; None: there is none."""
    names = {path.relative_to(folder) for folder in (run, alone) for path in folder.rglob("*")}
    for name in sorted(names - {Path(name) for name in LEFT_OUT}):
        one, two = content(run / name), content(alone / name)
        if one != two:
            how = "is missing, unlike" if one is None else "is there, unlike" if two is None else "differs from"
            return f"{run / name} {how} {alone / name}"
    return None


def content(path: Path) -> bytes | None:
    """The bytes of a file, none of a folder; None: there is no such thing.

    Of results without the command, of the model card without the name of the run.
    """
    if path.name == "results.json" and path.exists():
        return json.dumps(json.loads(path.read_text()) | {"command": ""}).encode()
    if path.name == "README.md" and path.exists():
        name = re.escape(path.parent.parent.name)
        return re.sub(rf"(USER/|runs/|- name: ){name}\b", r"\1RUN", path.read_text()).encode()
    return path.read_bytes() if path.is_file() else b"" if path.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="over the four combinations of one process "
                        "(20); a quarter as many of two processes, and of one that streams, come on top")  # fmt: skip
    parser.add_argument("--seed", type=int, help="of the moments, as far as they can be repeated (default: a new one)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for the runs, which is kept")
    options = parser.parse_args()
    if options.keep and options.keep.exists():
        parser.error(f"{options.keep} exists already")
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = (options.keep or Path(tempfile.mkdtemp(prefix="crash-test-"))).absolute()
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
    transformers.logging.disable_progress_bar()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    print(f"seed {seed}; runs of {STEPS} steps, a checkpoint every {SAVE_EVERY} steps and every evaluation")
    print(f"{'':44}  runs  kills  of them inside a save  steps repeated  same end", flush=True)
    random_, problems = random.Random(seed), []
    for combination in [*COMBINATIONS, *FEWER_KILLS]:
        name = re.sub(r"\W+", "-", str(combination))
        outcome = crash(combination, folder / name, -(-options.kills // len(COMBINATIONS)), random_)
        if 3 * outcome.inside < outcome.kills:
            problems.append(f"{combination}: fewer than a third of the kills landed inside a save")
        if outcome.problem:
            problems.append(outcome.problem)
        print(
            f"{combination!s:44}  {outcome.runs:4}  {outcome.kills:5}  {outcome.inside:21}  {outcome.repeated:14}"
            f"  {'no' if outcome.problem else 'yes':>8}", flush=True,
        )  # fmt: skip
    if problems:
        print(*problems, f"The run folders are in {folder}", sep="\n")
        return 1
    if not options.keep:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The Slurm script of docs/scaling.md, with stand-ins for Slurm's programs, and its Kubernetes and Accelerate files."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import loss_lines, values, wait_for_lines, write_yaml

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
STAND_INS = {
    "srun": 'echo $$ > srun.pid\nexec "$@"',
    "scancel": '[ "$1" = --signal=TERM ] && kill -TERM "$(cat srun.pid)"',
    "scontrol": '[ "$1" = requeue ] && touch requeued || echo localhost',
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.long
def test_the_slurm_script_saves_when_its_time_is_up_requeues_itself_and_ends_the_second_time(tmp_path: Path) -> None:
    plain = values(tmp_path, num_epochs=8, eval_every=48)
    (script,) = (block for block in blocks("bash") if "#SBATCH" in block)
    for old, new in {"RECIPE": str(write_yaml(tmp_path, plain)), "--nproc_per_node 4": "--nproc_per_node 2"}.items():
        assert old in script
        script = script.replace(old, new)
    (tmp_path / "job.sh").write_text(script)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, lines in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{lines}\n")
        (programs / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost",
        "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    run = Path(plain["output_dir"])

    def submit() -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)

    job = submit()
    wait_for_lines(run, 5)
    os.kill(job.pid, signal.SIGTERM)  # to the script alone, as B: asks for
    assert job.wait(100) == 1
    assert (tmp_path / "requeued").exists()
    assert not (run / "results.json").exists()
    (tmp_path / "requeued").unlink()
    assert submit().wait(100) == 0
    assert not (tmp_path / "requeued").exists()
    assert (run / "results.json").exists()
    assert [line["step"] for line in loss_lines(run)] == list(range(1, 49))  # each once: it went on


def test_the_files_of_the_page_are_yaml_with_the_exit_codes_of_the_program() -> None:
    accelerate, sharding, job = (yaml.safe_load(block) for block in blocks("yaml"))
    assert (accelerate["distributed_type"], accelerate["num_processes"]) == ("MULTI_GPU", 8)
    assert (sharding["distributed_type"], sharding["fsdp_config"]["fsdp_version"]) == ("FSDP", 2)
    rules: list[dict[str, Any]] = job["spec"]["podFailurePolicy"]["rules"]
    codes = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule}
    assert codes == {"Ignore": [75], "FailJob": [2]}

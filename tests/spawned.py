"""Python programs in processes of their own that start quickly: most of a start goes into importing torch.

One process imports torch, scipy and the like, which read nothing of ours from the environment, and forks for each
program; the libraries of the Hub and the package are imported by the program, in the environment it was given. Where a
process has to be killed, be several, or be as a launcher starts it, tests start it themselves (``tiny_runs.start``).
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

FORKS = """
import json, os, sys
import numpy, pandas, pyarrow.dataset, pyarrow.parquet, scipy.optimize, sympy
import torch, torch._dynamo, torch.distributed.tensor
assert not {"huggingface_hub", "datasets", "transformers", "nlp_mtl"} & {*sys.modules}

for line in sys.stdin:
    given = json.loads(line)
    pid = os.fork()
    if pid == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()

os.chdir(given["cwd"])
for name, stream in (("output", 1), ("errors", 2)):
    os.dup2(os.open(given[name], os.O_WRONLY | os.O_CREAT, 0o600), stream)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.environ.clear()
os.environ.update(given["environment"])
sys.path.insert(0, "")  # the folder it runs in
kind, program, *sys.argv[1:] = given["arguments"]
if kind == "-c":
    sys.argv[0] = "-c"
    exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
else:
    import runpy
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


@cache
def _forking() -> "subprocess.Popen[str]":
    """The process that forks."""
    plain = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FORKS]
    process = subprocess.Popen(command, env=plain, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(process.communicate)  # the end of its input ends it
    return process


def python(
    *arguments: str | Path, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """What ``python -m MODULE ...`` or ``python -c PROGRAM ...`` does, once it has ended."""
    process = _forking()
    assert process.stdin is not None
    assert process.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        streams = {name: f"{folder}/{name}" for name in ("output", "errors")}
        given = {
            "arguments": [*map(str, arguments)], "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ if environment is None else environment), **streams,
        }  # fmt: skip
        process.stdin.write(json.dumps(given) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, *(Path(path).read_text() for path in streams.values()))

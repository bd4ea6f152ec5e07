"""What the tests of the Hub share: programs that talk to a local one in processes of their own."""

import json
import subprocess
from pathlib import Path
from typing import Any

import spawned
from writable_hub import TOKEN, Hub

ANSWER = "import json, sys, nlp_mtl; print(json.dumps(nlp_mtl.load(sys.argv[1])('anna loves paris .')))"
"""A program that answers with the model that its argument names."""

ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "nlp_mtl":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""
"""A program's first lines, where it is not to have the package."""


def nlp_mtl(hub: Hub, *arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """``nlp-mtl ARGUMENTS``. The token is told nowhere, and nothing ends in a traceback."""
    done = spawned.python("-m", "nlp_mtl", *arguments, environment={**hub.environment, **environment})
    assert TOKEN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def python(hub: Hub, program: str, *arguments: str | Path, **environment: str) -> Any:
    """What a program prints as JSON in its last line."""
    found = spawned.python("-c", program, *arguments, environment={**hub.environment, **environment})
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


def commits(hub: Hub) -> list[dict[str, Any]]:
    """Those that were made, oldest first."""
    return [one for one in hub.commits if "commit" in one]

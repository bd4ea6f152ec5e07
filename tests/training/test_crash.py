"""scripts/crash_test with its defaults: no kill, wherever it lands, changes how a run ends."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "crash_test.py"


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes of a run in Linux's /proc")
def test_runs_killed_at_random_moments_and_inside_saves_end_as_those_left_alone() -> None:
    found = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count(" yes\n") == 6

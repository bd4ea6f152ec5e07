import os
import platform
import subprocess
import sys

import pytest

CODE = "from nlp_mtl.training.memory import keep_freed_memory; print(keep_freed_memory())"


def told(**environment: str) -> str:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    found = subprocess.run([sys.executable, "-c", CODE], env=plain | environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_unless_the_user_chose_otherwise() -> None:
    assert told() == "True"
    assert told(MALLOC_ARENA_MAX="2") == "False"
    assert told(GLIBC_TUNABLES="glibc.malloc.trim_threshold=1000") == "False"


def test_a_library_that_is_not_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from nlp_mtl.training.memory import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False

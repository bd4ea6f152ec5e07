"""`nlp-mtl serve` as a process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx


class Server(NamedTuple):
    process: "subprocess.Popen[str]"
    url: str

    def post(self, texts: object) -> httpx.Response:
        return httpx.post(f"{self.url}/predict", json={"texts": texts}, timeout=60)


@contextmanager
def started(model: Path, *options: str | Path, **environment: str) -> Iterator[Server]:
    """A server at a free port, which is killed when the block is left, if it has not ended."""
    command = [sys.executable, "-m", "nlp_mtl", "serve", str(model), "--port", "0", *map(str, options)]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, handler)
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith("Serving on ")), "")
        assert line, process.communicate()[1]
        yield Server(process, line.split()[2])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()

"""Many clients of a running server: what `scripts/benchmark predict` measures it with.

    python scripts/load_server.py URL --clients 64 < texts.jsonl

Each line of the input is a JSON string, a text, and a request of its own. Prints JSON: seconds, how many were asked and
answered, and the milliseconds that a request took.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

REQUEST = "POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


async def client(host: str, port: int, texts: Iterator[str], taken: list[float], statuses: dict[int, int]) -> None:
    """A client with one connection, which asks again as soon as it was answered."""
    reader, writer = await asyncio.open_connection(host, port)
    for text in texts:
        body = json.dumps({"texts": text}).encode()
        head = f"{REQUEST}content-length: {len(body)}\r\n\r\n"
        start = time.perf_counter()
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        answer = await reader.readexactly(length)
        taken.append(1000 * (time.perf_counter() - start))
        status = int(lines[0].split()[1])
        assert (status == 200) == answer.startswith(b'{"predictions"'), answer[:200]
        if status in (401, 403):
            raise SystemExit(f"the server says {status}: {answer.decode()}")
        statuses[status] = statuses.get(status, 0) + 1
    writer.close()


async def load(url: str, texts: list[str], clients: int) -> dict[str, Any]:
    """All texts, each once, by so many clients."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    taken: list[float] = []
    statuses: dict[int, int] = {}
    rest = iter(texts)
    start = time.perf_counter()
    asking = [client(address.hostname, address.port, rest, taken, statuses) for _ in range(clients)]
    await asyncio.gather(*asking)
    seconds = time.perf_counter() - start
    marks = statistics.quantiles(taken, n=100, method="inclusive")
    return {
        "seconds": seconds,
        "answered": statuses.get(200, 0),
        "asked": len(texts),
        "p50": marks[49],
        "p99": marks[98],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    texts = [json.loads(line) for line in sys.stdin]
    print(json.dumps(asyncio.run(load(options.url, texts, options.clients))))


if __name__ == "__main__":
    main()

"""A Hub on 127.0.0.1: models and datasets in folders, served over HTTP as huggingface_hub reads them.

A repository is a folder ``models/USER/NAME`` or ``datasets/USER/NAME``; a revision is a folder ``NAME@REVISION`` beside
it, with ``/`` in the revision as ``_``. Only what reading needs is here.
"""

import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

_REPOSITORY = r"(?P<user>[\w.-]+)/(?P<name>[\w.-]+)"
_API = re.compile(rf"/api/(?P<kind>models|datasets)/{_REPOSITORY}(?:/(?P<what>[\w-]+)(?:/(?P<rest>.*))?)?")
_FILE = re.compile(rf"(?:/(?P<kind>datasets))?/{_REPOSITORY}/resolve/(?P<rest>.+)")


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none; anything else is told as ever."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self._answer(json.loads(body) if body.startswith("{") else parse_qs(body))

    def do_GET(self) -> None:
        self._answer({})

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, form: dict[str, Any]) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        if found := _FILE.fullmatch(path):
            folder, rest = self._folder(found["kind"] or "models", found["user"], found["name"], found["rest"])
            if folder is not None and (folder / rest).is_file():
                self._send(folder / rest, folder, "application/octet-stream")
            else:
                self._missing("EntryNotFound" if folder else self._what_lacks(found))
        elif found := _API.fullmatch(path):
            what, rest = found["what"] or "revision", found["rest"] or "main"
            folder, rest = self._folder(found["kind"], found["user"], found["name"], rest)
            if folder is None:
                self._missing(self._what_lacks(found))
            else:
                if what == "tree" and rest and not (folder / rest).exists():
                    self._missing("EntryNotFound")
                    return
                answers = {"revision": _info, "tree": _tree, "paths-info": _paths, "refs": _refs}
                answer = answers[what](folder, f"{found['user']}/{found['name']}", rest, form)
                self._send(json.dumps(answer).encode(), folder, "application/json")
        else:
            self._missing("EntryNotFound")

    def _what_lacks(self, found: re.Match[str]) -> str:
        known = (self.root / (found["kind"] or "models") / found["user"] / found["name"]).is_dir()
        return "RevisionNotFound" if known else "RepoNotFound"

    def _folder(self, kind: str, user: str, name: str, rest: str) -> tuple[Path | None, str]:
        """The folder of a repository at the revision that ``rest`` begins with, and what is left of it."""
        home = self.root / kind / user
        for revision in sorted({path.name.partition("@")[2] for path in home.glob(f"{name}@*")}, key=len):
            plain = revision.replace("_", "/")
            if rest == plain or rest.startswith((f"{plain}/", _commit(home / f"{name}@{revision}"))):
                size = len(plain) if rest.startswith(plain) else 40
                return home / f"{name}@{revision}", rest[size:].lstrip("/")
        plain, _, rest = rest.partition("/")
        is_main = (home / name).is_dir() and plain in ("main", _commit(home / name))
        return (home / name, rest) if is_main else (None, rest)

    def _send(self, body: bytes | Path, folder: Path, kind: str) -> None:
        total = len(body) if isinstance(body, bytes) else body.stat().st_size
        checksum = hashlib.sha1(body).hexdigest() if isinstance(body, bytes) else _checksum(body)
        start, stop = 0, total
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            start, stop = int(wanted[1]), min(int(wanted[2]) + 1, total) if wanted[2] else total
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{total}")
        self.send_header("Content-Type", kind)
        self.send_header("ETag", f'"{checksum}"')
        self.send_header("X-Repo-Commit", _commit(folder))
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write((body if isinstance(body, bytes) else body.read_bytes())[start:stop])

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _commit(folder: Path) -> str:
    """Another one for other content: clients keep what they have read by it."""
    files = ((path.relative_to(folder), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    found = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in files]
    return hashlib.sha1(repr((folder.name, *found)).encode()).hexdigest()


def _checksum(path: Path) -> str:
    stat = path.stat()
    return _read_once(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _read_once(path: Path, *_: int) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _files(folder: Path) -> list[dict[str, Any]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {
            "type": "file", "path": path.relative_to(folder).as_posix(), "size": path.stat().st_size,
            "oid": _checksum(path),
        }
        for path in files
    ]  # fmt: skip


def _info(folder: Path, repository: str, *_: Any) -> dict[str, Any]:
    siblings = [{"rfilename": file["path"]} for file in _files(folder)]
    plain = {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
    return {**plain, "id": repository, "sha": _commit(folder), "siblings": siblings, "cardData": _header(folder)}


def _header(folder: Path) -> dict[str, Any] | None:
    """The metadata of a repository's card."""
    card = folder / "README.md"
    parts = card.read_text(errors="replace").split("---\n", 2) if card.is_file() else []
    return yaml.safe_load(parts[1]) if len(parts) == 3 else None


def _folders(folder: Path) -> list[dict[str, Any]]:
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir())
    return [{"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest()} for name in names]


def _tree(folder: Path, _: str, inside: str, __: Any) -> list[dict[str, Any]]:
    prefix = f"{inside}/" if inside else ""
    return [entry for entry in [*_folders(folder), *_files(folder)] if entry["path"].startswith(prefix)]


def _paths(folder: Path, _: str, __: str, form: dict[str, Any]) -> list[dict[str, Any]]:
    wanted = form.get("paths", [])
    return [entry for entry in [*_folders(folder), *_files(folder)] if entry["path"] in wanted]


def _refs(folder: Path, *_: Any) -> dict[str, Any]:
    return {"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": _commit(folder)}], "tags": []}


@contextmanager
def served(
    root: Path, kind: type[_Handler] = _Handler, **attributes: Any
) -> Iterator[tuple[dict[str, str], list[str]]]:
    """A running Hub: the environment in which a process talks to it alone, and the requests so far."""
    requests: list[str] = []
    handler = type("Handler", (kind,), {"root": root, "requests": requests, **attributes})
    server = _Server(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    home = root / "home"
    left_out = ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE", "HF_HUB_CACHE")
    environment = {key: value for key, value in os.environ.items() if key not in left_out} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    try:
        yield environment, requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

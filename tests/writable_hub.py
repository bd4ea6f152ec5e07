"""A Hub on 127.0.0.1 that takes pushes as well, one commit at a time, and fails where it is told to."""

import base64
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from local_hub import _commit, _Handler, served

TOKEN = "hf_marked_token_that_nobody_may_see"
"""The only one that may write."""


@dataclass
class Fault:
    """What happens, so many times, to requests that fit."""

    request: str
    """A pattern of ``METHOD path``."""
    status: int = 500
    """0: the connection is cut; -1: what was asked for is done, then it is cut."""
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


class _WritableHandler(_Handler):
    faults: list[Fault]
    objects: dict[str, bytes]
    commits: list[dict[str, Any]]
    private: set[str]

    def do_GET(self) -> None:
        if self._failed():
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and any(
            f"/{name}/" in f"{unquote(urlsplit(self.path).path)}/" for name in self.private
        ):
            self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commits/.+", unquote(urlsplit(self.path).path)):
            made = [one for one in self.commits if one.get("commit") == found[1]]
            dated = {"date": "2026-01-01T00:00:00.000Z", "message": "", "authors": []}
            self._json([{"id": one["id"], "title": one["message"], **dated} for one in reversed(made)])
        elif self.path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            role = {"accessToken": {"displayName": "local", "role": "write"}}
            user = {"type": "user", "name": "me", "orgs": [], "auth": role}
            self._json(user if known else {"error": "?"}, 200 if known else 401)
        else:
            super().do_GET()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        if self._failed():
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = self.path.rpartition("/")[2]
        assert sha256(body).hexdigest() == name
        self.objects[name] = body
        self._json({})

    def do_POST(self) -> None:
        if self._failed():
            return
        path = unquote(urlsplit(self.path).path)
        if path.endswith("/paths-info") or "/paths-info/" in path:
            super().do_POST()
            return
        self.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":  # needs no token
            errors = [{"message": message} for message in _wrong_with(json.loads(body)["content"])]
            self._json({"errors": errors, "warnings": []}, 400 if errors else 200)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            home = f"http://{self.headers['Host']}/lfs"
            objects = [
                {**one, "actions": {"upload": {"href": f"{home}/{one['oid']}", "header": {}}}}
                for one in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(preupload|commit|branch)/(.+)", path):
            self._write(*found.groups(), body)
        else:
            self._missing("RepoNotFound")

    def _create(self, form: dict[str, Any]) -> None:
        kind = f"{form.get('type') or 'model'}s"
        user = form.get("organization") or "me"
        folder = self.root / kind / user / form["name"]
        known = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".gitattributes").touch()
        if form.get("visibility") == "private" or form.get("private"):
            self.private.add(f"{user}/{form['name']}")
        self.commits.append({"created": f"{user}/{form['name']}", **form})
        self._json({"url": f"http://{self.headers['Host']}/{user}/{form['name']}"}, 409 if known else 200)

    def _write(self, kind: str, name: str, what: str, rest: str, body: bytes) -> None:
        folder = self.root / kind / name
        if not folder.is_dir():
            self._missing("RepoNotFound")
        elif what == "branch":
            target = folder.with_name(f"{folder.name}@{rest}")
            known = target.is_dir()
            if not known:
                shutil.copytree(folder, target)
            self._json({}, 409 if known else 200)
        elif what == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False} for f in files]
            self._json({"files": modes})
        else:
            self._commit(folder if rest == "main" else folder.with_name(f"{folder.name}@{rest}"), name, body)

    def _commit(self, folder: Path, name: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.decode().splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, _commit(folder)):
            self._json({"error": "A commit has happened since. Please refresh and try again."}, 412)
            return
        made: dict[str, bytes] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                made[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                made[value["path"]] = self.objects[value["oid"]]
        pull = parse_qs(urlsplit(self.path).query).get("create_pr") == ["1"]
        target = folder.with_name(f"{folder.name}@refs_pr_1") if pull else folder
        if pull:
            shutil.copytree(folder, target, dirs_exist_ok=True)
        for line in lines:
            if line["key"] == "deletedFile":
                (target / line["value"]["path"]).unlink()
        for path, content in made.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(content)
        number = sum("commit" in one for one in self.commits)
        kept = self.root / "kept" / f"{target.name}-{number}"  # as it is now, whatever comes later
        shutil.copytree(target, kept)
        self.commits.append(
            {
                "commit": name,
                "message": header["summary"],
                "files": sorted(made),
                "pull": pull,
                "folder": kept,
                "id": _commit(target),
            }
        )
        url = f"http://{self.headers['Host']}/{name}"
        self._json(
            {"commitUrl": f"{url}/commit/{_commit(folder)}", "commitOid": _commit(folder),
             "pullRequestUrl": f"{url}/discussions/1" if pull else None}
        )  # fmt: skip

    def _failed(self) -> bool:
        for fault in self.faults:
            if fault.times and re.search(fault.request, f"{self.command} {unquote(self.path)}"):
                fault.times -= 1
                time.sleep(fault.delay)
                if fault.status == 200:
                    return False
                if fault.status == 0:
                    self.close_connection = True
                    self.connection.close()
                    return True
                if fault.status == -1:  # it is done, but nobody is told
                    answer, self._json = self._json, lambda *_: None  # type: ignore[method-assign]
                    self.do_POST()
                    self._json = answer  # type: ignore[method-assign]
                    self.close_connection = True
                    self.connection.close()
                    return True
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self._json({"error": "injected"}, fault.status, fault.headers)
                return True
        return False

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, one in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, one)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


_LICENSES = {"mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "other"}
"""Some of those that the Hub knows."""


def _wrong_with(card: str) -> list[str]:
    """What the Hub's checks find in a card's metadata: what tests need of them."""
    parts = card.split("---\n", 2)
    header = yaml.safe_load(parts[1]) if len(parts) == 3 else {}
    if not isinstance(header, dict):
        return ["YAML metadata should be an object"]
    wrong = []
    if header.get("license") not in {None, *_LICENSES}:
        wrong.append(f'"license" must be one of {sorted(_LICENSES)}')
    languages = header.get("language", [])
    for one in [languages] if isinstance(languages, str) else languages:
        if not isinstance(one, str) or not re.fullmatch("[a-z]{2,3}", one):
            wrong.append(f'"language" {one!r} must be a code of two or three letters')
    for model in header.get("model-index", []):
        for result in model["results"]:
            lacks = [key for key in ("type", "name") if not result["dataset"].get(key)]
            lacks += [key for key in ("type",) if not result["task"].get(key)]
            lacks += [key for metric in result["metrics"] for key in ("type", "value") if metric.get(key) is None]
            wrong += [f'"model-index": "{key}" is required' for key in lacks]
    return wrong


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".parquet", ".png")) else "regular"


@dataclass
class Hub:
    """A running one."""

    environment: dict[str, str]
    """In which a process talks to it alone, with the token that may write."""
    requests: list[str]
    commits: list[dict[str, Any]]
    faults: list[Fault]
    root: Path


@contextmanager
def writable_hub(root: Path) -> Iterator[Hub]:
    """A Hub in a folder, to which processes can push."""
    faults: list[Fault] = []
    commits: list[dict[str, Any]] = []
    kept: dict[str, bytes] = {}
    options = {"faults": faults, "commits": commits, "objects": kept, "private": set()}
    with served(root, _WritableHandler, **options) as (environment, requests):
        yield Hub({**environment, "HF_TOKEN": TOKEN}, requests, commits, faults, root)

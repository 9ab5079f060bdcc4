"""A Hub on loopback: enough of the HTTP API for the real clients of models and datasets, in memory, on threads."""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

USER, TOKEN, READ_ONLY = "alice", "hf_alice", "hf_reader"
DATE = "2026-01-01T00:00:00.000Z"


@dataclass
class Repository:
    """Its commits, oldest first: an id, and the content of each path."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits.append((oid, files))
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a branch or an id."""
        named = dict(self.commits) if revision != "main" else {"main": self.commits[-1][1]}
        if revision not in named:
            return None
        return (self.commits[-1][0] if revision == "main" else revision), named[revision]


@dataclass
class Trouble:
    """What happens to the next requests whose "METHOD /path" matches.

    Attributes:
        status: the answer; 0 drops the connection in the middle of the request.
        times: how many requests it meets.
        delay: seconds before the request is dealt with.
        die: the server is gone, with all its connections.
    """

    pattern: str
    status: int | None = None
    times: int = 10**9
    delay: float = 0.0
    die: bool = False


class Hub(ThreadingHTTPServer):
    """The server. `with Hub() as hub:` serves until the block ends; `hub.kill()` ends it in the middle of whatever."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}  # by "models/alice/codec"
        self.objects: dict[str, bytes] = {}
        self.troubles: list[Trouble] = []
        self.requests: list[str] = []
        self.connections: list[Any] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Closes the port and every connection."""
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with_shutdown(connection)

    def trouble(self, pattern: str, **how: Any) -> None:
        """Makes requests fail or wait; see `Trouble`."""
        self.troubles.append(Trouble(pattern, **how))

    def files(self, name: str) -> dict[str, bytes]:
        """What the newest commit of "models/alice/codec" holds."""
        return self.repositories[name].commits[-1][1]

    def count(self, pattern: str) -> int:
        """How many requests matched."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def wait_for(self, pattern: str, seconds: float = 60) -> None:
        """Returns once a request has matched."""
        end = time.monotonic() + seconds
        while not self.count(pattern):
            assert time.monotonic() < end, f"no request {pattern} in {seconds} s: {self.requests}"
            time.sleep(0.02)


def with_shutdown(connection: Any) -> None:
    """Ends a socket, whatever its state."""
    with suppress(OSError):
        connection.shutdown(2)
    connection.close()


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.server.requests.append(request)
        trouble = next((t for t in self.server.troubles if t.times > 0 and re.search(t.pattern, request)), None)
        if trouble:
            trouble.times -= 1
            time.sleep(trouble.delay)
            if trouble.die:
                self.server.kill()
                return
            if trouble.status == 0:
                self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
                with_shutdown(self.connection)
                self.close_connection = True
                return
        body = self.body()
        if trouble and trouble.status:
            self.reply(trouble.status, {"error": f"trouble {trouble.status}"})
            return
        for pattern, route in ROUTES:
            if match := re.fullmatch(pattern, request):
                try:
                    with self.server.lock:
                        route(self, body, **match.groupdict())
                except Refused as refused:
                    headers = {"X-Error-Code": refused.code} if refused.code else {}
                    self.reply(refused.status, {"error": refused.message}, headers)
                return
        self.reply(404, {"error": f"no route {request}"})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(self.chunks())
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def reply(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def require_user(self, write: bool = True) -> None:
        if self.token() not in (TOKEN, READ_ONLY):
            raise Refused(401, message="Invalid credentials")
        if write and self.token() == READ_ONLY:
            raise Refused(403, message="This token has no write permission")

    def repository(self, kind: str, repo: str) -> Repository:
        found = self.server.repositories.get(f"{kind}/{repo}")
        if found is None or (found.private and self.token() not in (TOKEN, READ_ONLY)):
            raise Refused(404 if self.token() else 401, "RepoNotFound", "Repository Not Found")
        return found

    def commit_at(self, kind: str, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        found = self.repository(kind, repo).at(revision)
        if found is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # The routes. Each is called with the lock held.

    def whoami(self, _: bytes) -> None:
        self.require_user(write=False)
        role = "write" if self.token() == TOKEN else "read"
        access = {"accessToken": {"displayName": "test", "role": role}}
        self.reply(200, {"type": "user", "name": USER, "orgs": [], "auth": access})

    def create(self, body: bytes) -> None:
        self.require_user()
        asked = json.loads(body)
        owner = asked.get("organization") or USER
        name, kind = f"{owner}/{asked['name']}", asked.get("type", "model") + "s"
        if owner != USER:
            raise Refused(403, message=f"You don't have the rights to create a {kind[:-1]} under the namespace {owner}")
        answer = {"url": f"{self.server.url}/{name}", "name": name, "id": name}
        if f"{kind}/{name}" in self.server.repositories:
            self.reply(409, {**answer, "error": "You already created this repo"})
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repository = self.server.repositories[f"{kind}/{name}"] = Repository(private)
        repository.commit({".gitattributes": b""})
        self.reply(200, answer)

    def validate_yaml(self, body: bytes) -> None:
        head = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)
        errors = [] if head else [{"message": "no YAML at the start"}]
        self.reply(400 if errors else 200, {"errors": errors, "warnings": []})

    def preupload(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        self.require_user()
        self.repository(kind, repo)
        asked = json.loads(body)["files"]
        large = (".safetensors", ".onnx", ".npz", ".parquet", ".png", ".bin")
        modes = ["lfs" if file["size"] > 10_000_000 or file["path"].endswith(large) else "regular" for file in asked]
        current = self.server.files(f"{kind}/{repo}")
        files = [
            {"path": f["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid_of(mode, current.get(f["path"]))}
            for f, mode in zip(asked, modes, strict=True)
        ]
        self.reply(200, {"files": files})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        self.require_user()
        answers = []
        for asked in json.loads(body)["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.objects:
                place = f"{self.server.url}/lfs/{asked['oid']}"
                answer["actions"] = {"upload": {"href": place, "header": {}}, "verify": {"href": place + "/verify"}}
            answers.append(answer)
        self.reply(200, {"transfer": "basic", "objects": answers})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, message="the bytes are not those that were announced")
        self.server.objects[oid] = body
        self.reply(200, {})

    def lfs_verify(self, body: bytes, oid: str) -> None:
        stored = self.server.objects.get(oid)
        if stored is None or len(stored) != json.loads(body)["size"]:
            raise Refused(404, message="not stored")
        self.reply(200, {})

    def commit(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        self.require_user()
        repository = self.repository(kind, repo)
        files = dict(self.server.files(f"{kind}/{repo}"))
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
                case "deletedFile":
                    files.pop(value["path"])
                case "deletedFolder":
                    files = {path: data for path, data in files.items() if not path.startswith(value["path"])}
        oid = repository.commit(files)
        self.reply(200, {"commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}", "success": True})

    def info(self, _: bytes, kind: str, repo: str, revision: str | None = None) -> None:
        oid, files = self.commit_at(kind, repo, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(files)]
        private = self.repository(kind, repo).private
        base = {"_id": "0" * 24, "id": repo, "sha": oid, "private": private, "gated": False, "disabled": False}
        self.reply(200, {**base, "lastModified": DATE, "createdAt": DATE, "tags": [], "siblings": siblings})

    def tree(self, _: bytes, kind: str, repo: str, revision: str, path: str | None = None) -> None:
        _oid, files = self.commit_at(kind, repo, revision)
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{path}/" if path else ""
        inside = {name: data for name, data in files.items() if name.startswith(prefix)}
        if prefix and not inside:
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        self.reply(200, entries(inside, prefix, recursive))

    def paths_info(self, body: bytes, kind: str, repo: str, revision: str) -> None:
        _oid, files = self.commit_at(kind, repo, revision)
        asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
        found = []
        for path in asked:
            if path in files:
                found.append(file_entry(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                found.append(folder_entry(path))
        self.reply(200, found)

    def resolve(self, _: bytes, kind: str | None, repo: str, revision: str, path: str) -> None:
        oid, files = self.commit_at(kind or "models", repo, revision)
        if path not in files:
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        data = files[path]
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self.reply(206, data[first : last + 1], headers)
        else:
            self.reply(200, data, headers)


def oid_of(mode: str, data: bytes | None) -> str | None:
    """A stored file's id as preupload gives it: SHA-256 of what is large, git's blob id of what is not."""
    if data is None:
        return None
    return hashlib.sha256(data).hexdigest() if mode == "lfs" else git_oid(data)


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def file_entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "oid": git_oid(data), "size": len(data), "path": path}


def folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "oid": "0" * 40, "size": 0, "path": path}


def entries(files: dict[str, bytes], prefix: str, recursive: bool) -> list[dict[str, Any]]:
    """A folder's listing: its files and folders, or everything below it."""
    listed = {}
    for path, data in sorted(files.items()):
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = prefix + "/".join(parts[:depth])
            listed[folder] = folder_entry(folder)
        if recursive or len(parts) == 1:
            listed[path] = file_entry(path, data)
    return list(listed.values())


_REPO = r"(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate_yaml),
    (rf"POST /api/{_REPO}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    (rf"POST /api/{_REPO}/commit/(?P<revision>[^/]+)", Handler.commit),
    (rf"POST /api/{_REPO}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    (rf"GET /api/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", Handler.tree),
    (rf"GET /api/{_REPO}(?:/revision/(?P<revision>[^/]+))?", Handler.info),
    (r"POST /(?:datasets/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    (r"POST /lfs/(?P<oid>[0-9a-f]{64})/verify", Handler.lfs_verify),
    (
        r"(?:HEAD|GET) /(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        Handler.resolve,
    ),
]


def point_at(server: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process and its children take the server for the Hub, with this folder as cache."""
    close_session()
    values = {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": home,
        "HF_HUB_CACHE": home / "hub",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", server.url)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

"""A model hub on 127.0.0.1, as much of one as huggingface_hub asks for.

Point the client at it with ``HF_ENDPOINT`` (or ``endpoint=``) and serve models that
the test made, or break the transfer on purpose.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

LARGE = (".safetensors", ".bin", ".pt", ".pth", ".model", ".onnx")
"""Suffixes that the hub keeps in LFS: their entity tag is the sha256."""


class Request(NamedTuple):
    """What a client asked for."""

    method: str
    path: str
    range: str
    authorization: str


@dataclass
class _Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False


class HubServer:
    """Serves models over HTTP from memory; use as a context manager.

    Attributes:
        requests: Every request so far, in order.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._repositories: dict[str, _Repository] = {}
        self._cuts: dict[str, int] = {}
        self._corrupt: set[str] = set()
        self._connections: set[socket.socket] = set()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """What ``HF_ENDPOINT`` must be."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def publish(self, repo: str, folder: Path, branch: str = "main") -> str:
        """Add a folder's files as a commit and move the branch to it.

        Returns:
            The commit, 40 hexadecimal digits.
        """
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        known = self._repositories.setdefault(repo, _Repository())
        digest = hashlib.sha1(str(len(known.commits)).encode())
        for name, content in files.items():
            digest.update(name.encode() + hashlib.sha256(content).digest())
        commit = digest.hexdigest()
        known.commits[commit] = files
        known.refs[branch] = commit
        return commit

    def gate(self, repo: str) -> None:
        """Hand out this model's files to nobody from now on."""
        self._repositories[repo].gated = True

    def cut(self, name: str, after: int) -> None:
        """Close the connection once, after so many bytes of the file ``name``."""
        self._cuts[name] = after

    def corrupt(self, name: str, on: bool = True) -> None:
        """Serve the file ``name`` with its last byte changed, under its true hash."""
        (self._corrupt.add if on else self._corrupt.discard)(name)

    def close(self) -> None:
        """Stop listening and hang up; requests are refused from now on."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            # Clients keep connections open, which would go on being served.
            for connection in tuple(self._connections):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def downloads(self, name: str) -> list[Request]:
        """The GET requests for the content of one file."""
        return [
            r
            for r in self.requests
            if r.method == "GET" and "/resolve/" in r.path and r.path.endswith(name)
        ]


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server_hub._connections.add(self.connection)

    def finish(self) -> None:
        self.server_hub._connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on stderr."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server_hub
        path = unquote(urlsplit(self.path).path)
        get = self.headers.get
        hub.requests.append(
            Request(self.command, path, get("Range", ""), get("Authorization", ""))
        )
        steps = path.strip("/").split("/")
        api = steps[:2] == ["api", "models"]
        org_name = steps[2:4] if api else steps[:2]
        rest = steps[4:] if api else steps[2:]
        if len(org_name) < 2:
            self._send(200, b"a hub for tests", {})
            return
        repo = "/".join(org_name)
        known = hub._repositories.get(repo)
        if known is None:
            self._error(404 if api else 401, "RepoNotFound")
            return
        revision = rest[1] if len(rest) > 1 else "main"
        commit = known.refs.get(revision, revision)
        if commit not in known.commits:
            self._error(404, "RevisionNotFound")
            return
        files = known.commits[commit]
        if api and rest[:1] == ["tree"]:
            self._json([_entry(name, content) for name, content in files.items()])
        elif api:
            siblings = [{"rfilename": name} for name in files]
            self._json({"id": repo, "sha": commit, "siblings": siblings, "tags": []})
        elif known.gated:
            self._error(403, "GatedRepo")
        elif (name := "/".join(rest[2:])) in files:
            self._file(name, files[name], commit)
        else:
            self._error(404, "EntryNotFound", {"X-Repo-Commit": commit})

    def _file(self, name: str, content: bytes, commit: str) -> None:
        hub = self.server_hub
        size = len(content)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        headers["ETag"] = f'"{_git_oid(content)}"'
        if name.endswith(LARGE):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(size)
        if name in hub._corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        status = 200
        start = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        if start:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            content = content[int(start) :]
        cut = hub._cuts.pop(name, None) if self.command == "GET" else None
        self._send(status, content, headers, cut)

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "text/json"})

    def _error(
        self, status: int, code: str, headers: dict[str, str] | None = None
    ) -> None:
        told = {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})}
        self._send(status, json.dumps({"error": code}).encode(), told)

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str],
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": _git_oid(content),
    }
    if name.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

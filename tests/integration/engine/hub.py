"""A hub of models on this machine, which speaks what the hub's own client asks for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves the folders `owner/name` under `models`; `fetched` are the files that were asked for whole."""

    daemon_threads = True

    def __init__(self, models: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.fetched: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub(models: Path) -> Iterator[Hub]:
    """A hub that listens, and ends with the block."""
    server = Hub(models)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            model = "/".join(path.split("/")[2:4])
            files = self._files(model)
            listed = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                for name, file in files.items()
            ]
            siblings = [{"rfilename": name} for name in files]
            found = {"id": model, "modelId": model, "sha": COMMIT, "siblings": siblings, "tags": []}
            self._answer(200 if files else 404, json.dumps(listed if "/tree/" in path else found))
            return
        model, _, rest = path.partition("/resolve/")
        name = rest.partition("/")[2]
        file = self._files(model).get(name)
        if self.command == "GET" and file:
            self.server.fetched.append(f"{model}/{name}")
        self._answer(200 if file else 404, file.read_bytes() if file else b"")

    def _files(self, model: str) -> dict[str, Path]:
        folder = self.server.models / model
        return {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def _answer(self, status: int, content: bytes | str) -> None:
        body = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        if status == 404:
            self.send_header(
                "X-Error-Code", "RepoNotFound" if "/api/" in self.path else "EntryNotFound"
            )
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

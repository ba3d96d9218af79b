"""A bare git repository of one's own, written by dulwich, and Debian's git serving it over HTTP on loopback."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dulwich.objects import Blob, Commit, Tree
from dulwich.repo import Repo

BACKEND = Path("/usr/lib/git-core/git-http-backend")
FILE = 0o100644


class BareRepository:
    """Commits are made from a mapping of paths to contents; nothing is ever checked out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.repo = Repo.init_bare(str(path))
        self.repo.refs.set_symbolic_ref(b"HEAD", b"refs/heads/main")
        self.count = 0

    def commit(
        self,
        files: Mapping[str, bytes],
        branch: str = "main",
        parents: list[bytes] | None = None,
        odd: Mapping[str, tuple[int, bytes]] | None = None,
    ) -> str:
        """A commit of these files on the branch; ``odd`` names entries of other modes at the root."""
        ref = f"refs/heads/{branch}".encode()
        if parents is None:
            parents = [self.repo.refs[ref]] if ref in self.repo.refs else []
        commit = Commit()
        commit.tree = self._tree({tuple(path.split("/")): content for path, content in files.items()}, odd or {})
        commit.parents = parents
        self.count += 1
        commit.author = commit.committer = b"Policy Author <author@example.org>"
        commit.author_time = commit.commit_time = 1_700_000_000 + self.count
        commit.author_timezone = commit.commit_timezone = 0
        commit.message = f"change {self.count}".encode()
        self.repo.object_store.add_object(commit)
        self.repo.refs[ref] = commit.id
        return commit.id.decode()

    def _tree(self, files: Mapping[tuple[str, ...], bytes], odd: Mapping[str, tuple[int, bytes]]) -> bytes:
        tree, below = Tree(), {}
        for path, content in files.items():
            if len(path) == 1:
                blob = Blob.from_string(content)
                self.repo.object_store.add_object(blob)
                tree.add(path[0].encode(), FILE, blob.id)
            else:
                below.setdefault(path[0], {})[path[1:]] = content
        for name, inner in below.items():
            tree.add(name.encode(), 0o40000, self._tree(inner, {}))
        for name, (mode, sha) in odd.items():
            tree.add(name.encode(), mode, sha)
        self.repo.object_store.add_object(tree)
        return tree.id


@contextmanager
def served(root: Path) -> Generator[str, None, None]:
    """``git http-backend`` for the repositories below ``root``, until the block ends; the address of the folder."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            self.answer(b"")

        def do_POST(self) -> None:
            body = b""
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(body)

        def answer(self, body: bytes) -> None:
            path, _, query = self.path.partition("?")
            environment = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(root),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "CONTENT_LENGTH": str(len(body)),
                "REMOTE_ADDR": "127.0.0.1",
            }
            done = subprocess.run([BACKEND], input=body, env=environment, capture_output=True, timeout=30, check=False)
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            headers = [line.decode().split(": ", 1) for line in head.split(b"\r\n") if b": " in line]
            status = next((value for name, value in headers if name == "Status"), "200 OK")
            self.send_response(int(status.split()[0]))
            for name, value in headers:
                if name != "Status":
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)

"""A real server that follows a repository goes live with a push as soon as it is told of it, by a proved word alone."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from dulwich import porcelain

SECRET = b"a secret of sixteen bytes or more"
ROUTE = "/v1/revisions/webhook"


UNREADABLE: list[tuple[bytes, dict[str, str], int]] = [
    (b"[]", {}, 400),
    (b"{", {}, 400),
    (b'{"ref":1}', {}, 400),
    (b"payload=%7B%7D", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    (b" " * 2_097_153, {}, 413),
]
"""Words that are proved, and cannot be read."""


def repository_at(path: Path, policies: Path) -> Path:
    porcelain.init(str(path))
    for file in sorted(policies.rglob("*")):
        if file.is_file():
            copy = path / "policies" / file.relative_to(policies)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    committed(path)
    return path


def committed(path: Path) -> str:
    porcelain.add(str(path), [str(path / "policies")])
    return porcelain.commit(
        str(path), message=b"a change", author=b"Ana <ana@example.org>", committer=b"Ana <ana@example.org>"
    ).decode()


@pytest.fixture
def told(serving_with: Callable[..., Any], tmp_path: Path, repository: Path) -> Iterator[tuple[Any, Path]]:
    """A server that polls once a day, and its repository."""
    origin = repository_at(tmp_path / "origin", repository / "policies")
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    branch = porcelain.active_branch(str(origin)).decode()
    source = {"kind": "git", "location": str(origin), "branch": branch, "path": "policies"}
    sources = {
        "poll_ms": 86_400_000,
        "policies": source,
        "webhook": {"form": "github", "secret_file": str(secret)},
    }
    with serving_with(sources=sources, activation={"gates": []}) as server:
        yield server, origin


def delivered(server: Any, body: bytes, key: bytes = SECRET, **headers: str) -> httpx.Response:
    proof = "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
    sent = {"Content-Type": "application/json", "X-Hub-Signature-256": proof, "X-GitHub-Event": "push", **headers}
    answer: httpx.Response = server.client.post(ROUTE, content=body, headers=sent)
    return answer


def test_a_push_is_live_as_soon_as_it_is_told(told: tuple[Any, Path]) -> None:
    server, origin = told
    branch = porcelain.active_branch(str(origin)).decode()
    before = server.parts.snapshot.policies.commit
    with (origin / "policies" / "settings.yaml").open("a") as file:
        file.write("# another revision\n")
    commit = committed(origin)
    assert delivered(server, b'{"ref":"refs/heads/other"}').json() == {"looking": False}
    for body, key in ((b"{}", b"x" * 32), (b'{"ref":"refs/heads/other"}', SECRET)):
        assert delivered(server, body, key).status_code in (401, 409)
    time.sleep(0.5)
    assert server.parts.snapshot.policies.commit == before

    body = f'{{"ref":"refs/heads/{branch}","after":"ffff"}}'.encode()
    assert delivered(server, body).json() == {"looking": True}
    end = time.monotonic() + 30
    while server.parts.snapshot.policies.commit != commit:
        assert time.monotonic() < end, server.parts.reload.fault
        time.sleep(0.1)
    again = delivered(server, body)
    assert (again.status_code, again.json()["code"]) == (409, "revision.push_replayed")
    for written, headers, status in UNREADABLE:
        assert delivered(server, written, **headers).status_code == status, written[:20]


def test_who_expects_no_webhook_has_none(api: Any) -> None:
    assert api.client.post(ROUTE, json={}).status_code == 404

"""Compressed answers over a real socket: whoever asks gets the bytes that everybody else gets."""

from __future__ import annotations

import gzip
import subprocess
import zlib
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.programs import needs

PATH = "/v1/decisions"
HEADERS = {"Content-Type": "application/json"}


def raw(api: Any, path: str, content: bytes, **headers: str) -> tuple[httpx.Response, bytes]:
    """An answer, and its body as it came over the wire."""
    with api.client.stream("POST", path, content=content, headers={**HEADERS, **headers}) as answer:
        body = b"".join(answer.iter_raw())
    return answer, body


@pytest.fixture
def keyed(bank_chat: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
    """A request under a key: asked again, its answer is the same to the byte."""
    return orjson.dumps(bank_chat), {"Idempotency-Key": "gzip-1"}


def test_the_same_decision_with_and_without_compression(api: Any, keyed: tuple[bytes, dict[str, str]]) -> None:
    content, key = keyed
    answer, plain = raw(api, PATH, content, **key, **{"Accept-Encoding": "identity"})
    assert answer.status_code == 200
    assert "content-encoding" not in answer.headers
    for asked in ("gzip", "br;q=1.0, gzip;q=0.8", "*"):
        answer, body = raw(api, PATH, content, **key, **{"Accept-Encoding": asked})
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["content-length"] == str(len(body))
        assert answer.headers["vary"] == "Accept-Encoding"
        assert len(body) < len(plain) / 2
        assert gzip.decompress(body) == plain
        reader = zlib.decompressobj(wbits=31)
        assert b"".join(reader.decompress(body[at : at + 1_000]) for at in range(0, len(body), 1_000)) == plain
        assert reader.eof
        assert not reader.unused_data
    assert api.client.post(PATH, content=content, headers={**HEADERS, **key}).content == plain


@pytest.mark.parametrize("asked", ["identity", "gzip;q=0", "gzip;q=0.1, identity;q=0.5", "br"])
def test_who_does_not_ask_gets_it_plain(api: Any, bank_chat: dict[str, Any], asked: str) -> None:
    answer, body = raw(api, PATH, orjson.dumps(bank_chat), **{"Accept-Encoding": asked})
    assert "content-encoding" not in answer.headers
    assert answer.headers["vary"] == "Accept-Encoding"
    assert orjson.loads(body)["outcome"] == "allow"


@needs("curl")
def test_curl_reads_it(api: Any, keyed: tuple[bytes, dict[str, str]], tmp_path: Path) -> None:
    content, key = keyed
    _, plain = raw(api, PATH, content, **key, **{"Accept-Encoding": "identity"})
    (tmp_path / "body").write_bytes(content)
    command = ["curl", "--silent", "--fail", "--compressed", "--data-binary", f"@{tmp_path / 'body'}"]
    command += ["-H", "Content-Type: application/json", "-H", "Idempotency-Key: gzip-1", f"{api.address}{PATH}"]
    assert subprocess.run(command, capture_output=True, check=True, timeout=30).stdout == plain


def test_errors_and_other_routes_are_not_compressed(api: Any) -> None:
    for answer in (
        api.client.post(PATH, content=b"{}", headers=HEADERS),
        api.client.head("/v1/pools"),
        api.client.get("/v1/pools"),
        api.client.get("/livez"),
    ):
        assert "gzip" in answer.request.headers["accept-encoding"]
        assert "content-encoding" not in answer.headers


def test_a_batch_is_compressed_as_a_whole(api: Any, bank_chat: dict[str, Any]) -> None:
    content = orjson.dumps({"requests": [bank_chat, {"workload": {"model": "nothing"}}, bank_chat]})
    _, plain = raw(api, f"{PATH}/batch", content, **{"Accept-Encoding": "identity", "Idempotency-Key": "gzip-2"})
    answer, body = raw(api, f"{PATH}/batch", content, **{"Accept-Encoding": "gzip", "Idempotency-Key": "gzip-2"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-length"] == str(len(body))
    assert len(body) < len(plain) / 2
    left, right = orjson.loads(plain)["items"], orjson.loads(gzip.decompress(body))["items"]
    assert [item["status"] for item in left] == [200, 400, 200]
    assert [left[place] for place in (0, 2)] == [right[place] for place in (0, 2)]

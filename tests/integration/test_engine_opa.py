"""OPA as policyd runs it: who may reach it, what it may hold, and what happens when it is not what it was."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path, PurePosixPath

import aiohttp
import pytest

from policyd.core.verdict import Answer, Question
from policyd.engines.opa import OpaEngine
from policyd.engines.opa_client import Address
from policyd.errors import ConfigError, EngineError, EngineUnavailable, PolicyInvalid
from policyd.ports import PolicyTree

MODULE = """# METADATA
# title: sample
# custom: {enforcement: hard, owner: tests, remedy: none}
package placement.sample

import data.lib.sizes

deny contains {"rule": "a", "observed": NUMBER} if sizes.positive(input.pool.a)
"""
LIBRARY = "package lib.sizes\n\npositive(x) if x > 0\n"
ASKED = [Question("sample", b'{"pool":{"a":1}}')]


def tree(number: int, module: str = MODULE) -> PolicyTree:
    return PolicyTree(
        digest=f"sha256:{number}",
        commit=None,
        modules={
            PurePosixPath("sample/sample.rego"): module.replace("NUMBER", str(number)),
            PurePosixPath("zlib/sizes.rego"): LIBRARY,
        },
        tests={},
        data={PurePosixPath("settings.yaml"): "settings: {limit: 3}\n"},
        casbin_model="",
        casbin_rows="",
    )


def answer(number: int) -> list[Answer]:
    return [Answer(deny=({"rule": "a", "observed": number},))]


def run(engine: OpaEngine, body: Callable[[OpaEngine], Awaitable[None]]) -> None:
    async def whole() -> None:
        try:
            await body(engine)
        finally:
            await engine.close()

    asyncio.run(whole())


class Server:
    """A real OPA on a free port of the loopback, which can be started again."""

    def __init__(self, binary: Path) -> None:
        self.binary = binary
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(self.binary), "run", "--server", "--addr", f"127.0.0.1:{self.port}", "--disable-telemetry"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError("OPA did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    async def put(self, policy_id: str, text: str) -> None:
        url = f"{self.url}/v1/policies/{policy_id}"
        async with aiohttp.ClientSession() as session, session.put(url, data=text) as response:
            assert response.status == 200, await response.text()

    async def delete(self, policy_id: str) -> None:
        url = f"{self.url}/v1/policies/{policy_id}"
        async with aiohttp.ClientSession() as session, session.delete(url) as response:
            assert response.status == 200, await response.text()


@pytest.fixture
def server(opa_binary: Path) -> Iterator[Server]:
    found = Server(opa_binary)
    found.start()
    yield found
    found.stop()


def test_a_server_by_address_answers_after_its_policies_are_loaded(server: Server) -> None:
    async def body(engine: OpaEngine) -> None:
        await engine.health()
        loaded = await engine.load(tree(1))
        assert await engine.evaluate(loaded.digest, ASKED, 2000) == answer(1)
        await engine.health()

    run(OpaEngine.at_url(server.url), body)


def test_one_address_holds_one_policy_set_and_two_hold_two(server: Server, opa_binary: Path) -> None:
    async def one(engine: OpaEngine) -> None:
        await engine.load(tree(1))
        with pytest.raises(EngineUnavailable, match="holds a policy set already"):
            await engine.load(tree(2))
        assert await engine.evaluate("sha256:1", ASKED, 2000) == answer(1)
        await engine.unload("sha256:1")
        await engine.load(tree(2))
        assert await engine.evaluate("sha256:2", ASKED, 2000) == answer(2)

    run(OpaEngine.at_url(server.url), one)
    second = Server(opa_binary)
    second.start()

    async def two(engine: OpaEngine) -> None:
        await engine.load(tree(3))
        await engine.load(tree(4))
        assert await engine.evaluate("sha256:3", ASKED, 2000) == answer(3)
        assert await engine.evaluate("sha256:4", ASKED, 2000) == answer(4)

    try:
        run(OpaEngine.at_url(server.url, second.url), two)
    finally:
        second.stop()


def test_a_server_that_restarted_empty_gets_its_policies_again(server: Server) -> None:
    async def body(engine: OpaEngine) -> None:
        await engine.load(tree(1))
        server.stop()
        with pytest.raises(EngineUnavailable):
            await engine.evaluate("sha256:1", ASKED, 2000)
        with pytest.raises(EngineUnavailable):
            await engine.health()
        server.start()
        assert await engine.evaluate("sha256:1", ASKED, 2000) == answer(1)

    run(OpaEngine.at_url(server.url), body)


def test_a_server_with_another_revision_never_answers(server: Server) -> None:
    async def body(engine: OpaEngine) -> None:
        await engine.load(tree(1))
        other = OpaEngine.at_url(server.url)
        await other.load(tree(2))
        await other.close()
        with pytest.raises(EngineUnavailable, match="holds sha256:2 and not sha256:1"):
            await engine.evaluate("sha256:1", ASKED, 2000)
        await server.delete("policyd/driver")
        with pytest.raises(EngineUnavailable, match="holds no policies and not sha256:1"):
            await engine.evaluate("sha256:1", ASKED, 2000)

    run(OpaEngine.at_url(server.url), body)


def test_a_server_with_policies_of_others_is_not_used(server: Server) -> None:
    async def body(engine: OpaEngine) -> None:
        await server.put("theirs", "package theirs\n\nallow := true\n")
        with pytest.raises(EngineUnavailable, match="did not load: theirs"):
            await engine.load(tree(1))

    run(OpaEngine.at_url(server.url), body)


def test_nobody_at_the_address_is_an_error(opa_binary: Path) -> None:
    absent = Server(opa_binary)

    async def body(engine: OpaEngine) -> None:
        with pytest.raises(EngineUnavailable):
            await engine.health()
        with pytest.raises(EngineUnavailable):
            await engine.load(tree(1))
        with pytest.raises(EngineUnavailable):
            await engine.evaluate("sha256:1", ASKED, 2000)

    run(OpaEngine.at_url(absent.url), body)


def test_a_server_that_never_answers_is_an_error_in_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()

        async def body(engine: OpaEngine) -> None:
            engine._free[0]._client.timeout = 0.3
            started = time.monotonic()
            with pytest.raises(EngineUnavailable):
                await engine.load(tree(1))
            assert time.monotonic() - started < 3

        run(OpaEngine.at_url(f"http://127.0.0.1:{silent.getsockname()[1]}"), body)


@pytest.mark.parametrize("url", ["localhost:8181", "ftp://a", "http://", "http://a/v1", "http://me:secret@a"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Address.of_url(url)


def test_a_missing_binary_is_an_error_that_says_what_to_do() -> None:
    async def body(engine: OpaEngine) -> None:
        for asked in (engine.health(), engine.load(tree(1)), engine.test(tree(1))):
            with pytest.raises(EngineUnavailable, match="no OPA at") as missing:
                await asked
            assert "install" in missing.value.remedy_text

    run(OpaEngine.child("/nonexistent/opa"), body)


def socket_path(pid: int) -> Path:
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return Path(next(part.removeprefix("unix://") for part in arguments if part.startswith("unix://")))


def check_that_nobody_else_can_look_in(pid: int) -> None:
    place = socket_path(pid).parent
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert all("Bearer" not in file.read_text() for file in place.glob("*.rego"))
    table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    listening = {f"socket:[{line.split()[9]}]" for line in table if line.split()[3] == "0A"}
    assert not listening & {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    environment = Path(f"/proc/{pid}/environ").read_text()
    assert "PATH=" not in environment
    assert "POLICYD" not in environment


def test_a_child_is_reached_by_its_owner_with_its_token_only(opa_binary: Path) -> None:
    async def body(engine: OpaEngine) -> None:
        await engine.load(tree(1))
        (pid,) = engine.child_pids
        check_that_nobody_else_can_look_in(pid)
        path = str(socket_path(pid))
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=path), headers=headers) as session:
                for method, where in (
                    ("GET", "policies"),
                    ("PUT", "policies/x"),
                    ("POST", "data/policyd_driver/reply"),
                ):
                    async with session.request(method, f"http://opa/v1/{where}", data=b"{}") as response:
                        assert response.status in (401, 403)

    run(OpaEngine.child(str(opa_binary)), body)


def test_a_child_that_dies_is_started_again_with_its_policies(opa_binary: Path) -> None:
    async def body(engine: OpaEngine) -> None:
        await engine.load(tree(1))
        (first,) = engine.child_pids
        os.kill(first, signal.SIGKILL)
        await asyncio.sleep(0.3)
        assert await engine.evaluate("sha256:1", ASKED, 2000) == answer(1)
        (second,) = engine.child_pids
        assert second != first
        os.kill(second, signal.SIGKILL)
        await asyncio.sleep(0.05)
        outcomes = []
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                outcomes = await engine.evaluate("sha256:1", ASKED, 2000)
                break
            except EngineError:
                await asyncio.sleep(0.1)
        assert outcomes == answer(1)

    run(OpaEngine.child(str(opa_binary)), body)


def test_a_child_ends_when_its_digest_is_unloaded(opa_binary: Path) -> None:
    async def body(engine: OpaEngine) -> None:
        await engine.load(tree(1))
        await engine.load(tree(2))
        assert len(engine.child_pids) == 2
        await engine.unload("sha256:1")
        assert len(engine.child_pids) == 1
        assert await engine.evaluate("sha256:2", ASKED, 2000) == answer(2)

    run(OpaEngine.child(str(opa_binary)), body)


def test_what_opa_refuses_itself_is_a_finding_with_its_line(opa_binary: Path) -> None:
    """The embedded compiler does not mind an import that nothing uses; OPA's strict mode does."""
    module = MODULE.replace("import data.lib.sizes", "import data.lib.sizes\nimport data.lib.unused")

    async def body(engine: OpaEngine) -> None:
        with pytest.raises(PolicyInvalid) as refused:
            await engine.load(tree(1, module))
        assert [finding.where for finding in refused.value.findings] == ["sample/sample.rego:7"]
        assert "unused" in refused.value.findings[0].message
        assert engine.child_pids == ()

    run(OpaEngine.child(str(opa_binary)), body)

"""A real ``policyd serve --workers 2``: one server to whoever asks, scrapes, limits or reloads it."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.test_serve_kill import check_logged, children
from tests.integration.test_api_identity import Tls, bearer, granted, tokens_file
from tests.killed_server import WORKLOAD, served

WAIT_S = 60


def eventually(check: Callable[[], bool]) -> None:
    ends = time.monotonic() + WAIT_S
    while not check():
        assert time.monotonic() < ends, "it did not come"
        time.sleep(0.1)


def asker(verify: ssl.SSLContext | bool = False) -> httpx.Client:
    """Asks each time on a connection of its own, which either process may take."""
    return httpx.Client(verify=verify, timeout=30, headers={"Connection": "close"})


PLAIN = asker()


def decide(address: str, client: httpx.Client = PLAIN, **more: Any) -> httpx.Response:
    return client.post(f"{address}/v1/decisions", json=WORKLOAD, **more)


def scraped(address: str, name: str, **labels: str) -> float:
    text = PLAIN.get(f"{address}/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_metrics_are_those_of_all_processes_whichever_answers(tmp_path: Path, repository: Path) -> None:
    data = tmp_path / "data"
    with served(data, repository, "--workers", "2") as (process, address):
        with ThreadPoolExecutor(8) as callers:
            answered = [found.json() for found in callers.map(lambda _: decide(address), range(40))]
        assert {scraped(address, "policyd_decisions_total", outcome="allow") for _ in range(8)} == {40}
        assert scraped(address, "policyd_log_entries_total") == 42, (
            "each decision once, and an activation of each process"
        )
        assert scraped(address, "policyd_commit_batch_sum") == 42, "of the process that writes"
        assert scraped(address, "policyd_ready", part="workers") == 1
        counted = scraped(address, "process_cpu_seconds_total")
        os.kill(children(process)[0], signal.SIGKILL)
        eventually(lambda: len(children(process)) == 2 and ready(address))
        assert scraped(address, "policyd_decisions_total", outcome="allow") == 40, "what it counted is kept"
        assert scraped(address, "process_cpu_seconds_total") >= counted

    check_logged(data, [{"id": found["id"], **found["audit"]} for found in answered])


def ready(address: str) -> bool:
    try:
        return PLAIN.get(f"{address}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def test_tls_and_limits_with_several_processes(tmp_path: Path, repository: Path) -> None:
    tls = Tls(tmp_path)
    made = tokens_file(tmp_path / "tokens.yaml", {"name": "bank", "grants": [granted("developer", tenant="eu-bank")]})
    settings = {
        "workers": 2,
        "tls": {name: str(path) for name, path in tls.settings().items()},
        "auth": {"tokens_file": str(tmp_path / "tokens.yaml"), "refresh_ms": 100},
        "limits": {"requests_per_s": 2, "requests_burst": 20},
    }
    (tmp_path / "policyd.yaml").write_bytes(orjson.dumps(settings))
    context = ssl.create_default_context()
    tls.authority.configure_trust(context)
    with served(tmp_path / "data", repository) as (process, address):
        assert address.startswith("https://")

        def serials() -> set[str]:
            return {serial(address, context) for _ in range(12)}

        began = time.monotonic()
        with ThreadPoolExecutor(8) as callers, asker(context) as client:
            asked = list(callers.map(lambda _: decide(address, client, headers=bearer(made["bank"])), range(60)))
        took_s = time.monotonic() - began
        admitted = sum(found.status_code == 200 for found in asked)
        assert {found.status_code for found in asked} == {200, 429}
        assert admitted <= 20 + 2 * took_s + 2, "two processes are one server to a limit"

        (before,) = serials()
        tls.write(tls.authority.issue_cert("127.0.0.1", "localhost"))
        eventually(lambda: len(found := serials()) == 1 and found != {before})
        (after,) = serials()
        # A key that fits nothing changes nothing in any process, and one that is started now says why it cannot.
        tls.files["key"].write_text("no key at all")
        time.sleep(0.5)
        assert serials() == {after}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read().count("the new TLS files are not taken") == 2


def serial(address: str, context: ssl.SSLContext) -> str:
    import socket

    host, port = address.removeprefix("https://").split(":")
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        found = secure.getpeercert()
    assert found is not None
    return str(found["serialNumber"])


def test_processes_that_serve_different_revisions_are_not_ready_until_they_agree(
    tmp_path: Path, repository: Path
) -> None:
    """One process does not hear of a reload, because it is stopped: the server says so, and goes on."""
    fleet = tmp_path / "fleet"
    shutil.copytree(repository / "examples" / "fleet", fleet)
    with served(tmp_path / "data", repository, "--workers", "2", "--fleet", str(fleet)) as (process, address):
        before = fleet_now(address)
        stopped = children(process)[0]
        os.kill(stopped, signal.SIGSTOP)
        try:
            with (fleet / "tenants.yaml").open("a") as file:
                file.write("# changed\n")
            process.send_signal(signal.SIGHUP)
            eventually(lambda: "different revisions" in workers_reason(address))
            seen = {found for _ in range(8) if (found := fleet_or_none(address))}
            assert len(seen) == 1
            assert before not in seen
        finally:
            os.kill(stopped, signal.SIGCONT)
        eventually(lambda: ready(address))
        assert {fleet_now(address) for _ in range(12)} == seen
        assert children(process)[0] == stopped, "it was not replaced: it had only been slow"


def workers_reason(address: str) -> str:
    """What the process that answers says of the others; nothing when the stopped one got the connection."""
    try:
        checks = PLAIN.get(f"{address}/readyz", timeout=1).json()["checks"]
    except httpx.TransportError:
        return ""
    return next(check["reason"] or "" for check in checks if check["name"] == "workers")


def fleet_now(address: str) -> str:
    return str(PLAIN.get(f"{address}/v1/fleet").json()["digest"])


def fleet_or_none(address: str) -> str | None:
    try:
        return str(PLAIN.get(f"{address}/v1/fleet", timeout=1).json()["digest"])
    except httpx.TransportError:
        return None

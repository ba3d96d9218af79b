"""``/metrics`` of a real server says what is in the table, all of it and nothing else, and says what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from policyd.telemetry import METRICS, Metric

SAID = [metric for metric in METRICS if not metric.name.startswith("policyd.webhook.")]
"""What a server says that has no receivers of webhooks."""


def scraped(client: httpx.Client) -> dict[str, list[tuple[Mapping[str, str], float]]]:
    """Labels and value of every sample, by the name of the sample."""
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(samples: Mapping[str, list[tuple[Mapping[str, str], float]]], name: str, **labels: str) -> float:
    """The sum over the samples with these labels."""
    return sum(number for given, number in samples.get(name, []) if labels.items() <= dict(given).items())


def sample_names(metric: Metric) -> set[str]:
    if metric.kind == "histogram":
        return {f"{metric.prometheus}{suffix}" for suffix in ("_bucket", "_sum", "_count")}
    return {metric.prometheus}


@pytest.fixture
def busy(api: Any, bank_chat: dict[str, Any]) -> Any:
    """The shared server after an allow, a deny, an error and a request that cannot be read."""
    assert api.client.post("/v1/decisions", json=bank_chat).status_code == 200
    api.client.post("/v1/decisions", json={"workload": {"tenant": "nobody", "model": "x"}})
    api.client.post("/v1/decisions", content=b"{", headers={"Content-Type": "application/json"})
    return api


def test_everything_in_the_table_is_there_and_nothing_else(busy: Any) -> None:
    expected = {name: metric for metric in METRICS for name in sample_names(metric)}
    found = scraped(busy.client)
    # The example facts say when they were observed, so that even the metric of that is there.
    assert set(found) == {name for name, metric in expected.items() if metric in SAID}


def test_labels_are_those_of_the_table(busy: Any) -> None:
    by_sample = {name: metric for metric in METRICS for name in sample_names(metric)}
    for name, samples in scraped(busy.client).items():
        for labels, _ in samples:
            extra = {"le"} if name.endswith("_bucket") else set()
            assert set(labels) == set(by_sample[name].labels) | extra, name


def test_kinds_and_meanings_are_those_of_the_table(busy: Any) -> None:
    lines = busy.client.get("/metrics").text.splitlines()
    for metric in SAID:
        assert f"# TYPE {metric.prometheus} {metric.kind}" in lines
        assert any(line.startswith(f"# HELP {metric.prometheus} {metric.meaning[:20]}") for line in lines)


def test_decisions_and_problems_are_counted(api: Any, bank_chat: dict[str, Any]) -> None:
    before = scraped(api.client)
    assert api.client.post("/v1/decisions", json=bank_chat).json()["outcome"] == "allow"
    assert api.client.post("/v1/decisions", json={"workload": {"tenant": "nobody", "model": "x"}}).status_code == 422
    assert api.client.get("/nowhere").status_code == 404
    assert api.client.delete("/v1/decisions").status_code == 405
    after = scraped(api.client)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("policyd_decisions_total", outcome="allow", denied_by="", mode="enforce") == 1
    assert grown("policyd_decisions_total", outcome="error") == 1
    assert grown("policyd_decision_duration_seconds_count") == 2
    assert grown("policyd_decision_duration_seconds_bucket", le="+Inf", outcome="allow") == 1
    assert grown("policyd_decision_duration_seconds_sum") > 0
    assert grown("policyd_requests_total", status="200") == 2  # the decision, and the scrape before
    assert grown("policyd_problems_total", code="not_found") == 1
    assert grown("policyd_problems_total", code="request.method") == 1
    assert grown("policyd_problems_total") == 3
    assert grown("policyd_log_entries_total") == 2
    assert grown("policyd_commit_batch_sum") == 2
    assert value(after, "policyd_log_healthy") == 1
    assert {labels["part"]: number for labels, number in after["policyd_ready"]} == dict.fromkeys(
        ("server", "snapshot", "log", "facts", "revisions", "engine"), 1.0
    )
    [(revisions, one)] = after["policyd_snapshot_info"]
    assert (revisions["policy_digest"], one) == (api.parts.snapshot.policies.digest, 1)


def test_what_the_parser_of_http_refuses_is_counted(api: Any) -> None:
    before = value(scraped(api.client), "policyd_problems_total", code="request.invalid")
    assert b"400" in api.raw(b"nonsense\r\n\r\n")
    assert value(scraped(api.client), "policyd_problems_total", code="request.invalid") == before + 1


def test_requests_that_find_no_room_are_counted(serving_with: Callable[..., Any]) -> None:
    with serving_with(api={"in_flight_max": 1}) as server:
        host, port = server.address.removeprefix("http://").split(":")
        with httpx.Client(base_url=server.address) as client:
            # A request whose body never comes holds the only place.
            import socket

            with socket.create_connection((host, int(port))) as waiting:
                waiting.sendall(
                    b"POST /v1/decisions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 10\r\n\r\n{"
                )
                for _ in range(100):
                    if client.get("/v1/fleet").status_code == 503:
                        break
                found = scraped(client)  # answers although the server is full
        assert value(found, "policyd_requests_refused_total", code="overload") == 1
        assert value(found, "policyd_requests_in_flight") == 1
        assert value(found, "policyd_requests_total", status="503") == 1
        assert value(found, "policyd_problems_total", code="overload") == 1


def test_the_tenant_is_a_label_only_when_asked_for(
    api: Any, serving_with: Callable[..., Any], bank_chat: dict[str, Any]
) -> None:
    api.client.post("/v1/decisions", json=bank_chat)
    assert "eu-bank" not in api.client.get("/metrics").text
    with serving_with(telemetry={"tenant_label": True}) as server:
        server.client.post("/v1/decisions", json=bank_chat)
        found = scraped(server.client)
    assert value(found, "policyd_decisions_total", tenant="eu-bank", outcome="allow") == 1
    assert all(
        "tenant" not in labels for name in found for labels, _ in found[name] if name != "policyd_decisions_total"
    )


def test_metrics_can_be_switched_off(serving_with: Callable[..., Any], bank_chat: dict[str, Any]) -> None:
    with serving_with(telemetry={"metrics": False}) as server:
        server.client.post("/v1/decisions", json=bank_chat)
        answer = server.client.get("/metrics")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
        assert not server.parts.telemetry.decisions


def test_openmetrics_is_answered_when_asked_for(busy: Any) -> None:
    answer = busy.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    assert busy.client.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_a_secret_in_a_header_is_no_metric(api: Any, bank_chat: dict[str, Any]) -> None:
    api.client.post("/v1/decisions", json=bank_chat, headers={"Authorization": "Bearer tell-nobody"})
    assert "tell-nobody" not in api.client.get("/metrics").text


def test_who_is_refused_at_the_door_is_counted(api: Any) -> None:
    before = scraped(api.client)
    refused = api.client.get("/v1/fleet", headers={"Host": "elsewhere.example"})
    after = scraped(api.client)
    assert refused.status_code == 421
    for name in ("policyd_requests_refused_total", "policyd_problems_total"):
        assert value(after, name, code="identity.host") - value(before, name, code="identity.host") == 1


def test_the_variable_that_disables_the_sdk_switches_metrics_off(
    serving_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with serving_with() as server:
        assert server.client.get("/metrics").json()["code"] == "not_found"
        assert not server.parts.telemetry.metrics

"""Reports of a real log: over HTTP by who may read what, by the command line beside a server and without one."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from audit import report
from policyd.cli.main import run
from tests.integration.conftest import ApiServer, serving
from tests.integration.test_api_identity import bearer, granted, tokens_file

MODEL = "llama-3.1-70b-instruct"
REQUESTS: list[dict[str, Any]] = [
    {"tenant": "eu-bank", "project": "support-chat", "environment": "dev", "model": MODEL},
    {"tenant": "eu-bank", "project": "support-chat", "environment": "staging", "model": MODEL},
    {"tenant": "eu-bank", "project": "support-chat", "environment": "prod", "model": MODEL},
    {"tenant": "eu-bank", "project": "support-chat", "environment": "prod", "model": MODEL},
    {"tenant": "globex-saas", "model": MODEL},
    {"tenant": "globex-saas", "model": "no-such-model"},
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[ApiServer, dict[str, str], Path], None, None]:
    """A server with some decisions, its tokens, and its data directory."""
    folder = tmp_path_factory.mktemp("reports")
    tokens = tokens_file(
        folder / "tokens.yaml",
        {"name": "platform", "grants": [granted("developer"), granted("auditor")]},
        {"name": "bank-auditor", "grants": [granted("auditor", tenant="eu-bank")]},
        {"name": "nobody", "grants": []},
    )
    # One entry for all refusals of a principal, also when the tests take long: they count entries.
    limits = {"refusals_interval_ms": 3_600_000}
    auth = {"tokens_file": folder / "tokens.yaml"}
    with serving({"data_dir": folder / "data", "auth": auth, "limits": limits}) as server:
        for workload in REQUESTS:
            server.client.post("/v1/decisions", json={"workload": workload}, headers=bearer(tokens["platform"]))
        assert server.client.get("/v1/decisions", headers=bearer(tokens["nobody"])).status_code == 403
        yield server, tokens, folder / "data"


def rows(document: Any, *by: str) -> list[dict[str, Any]]:
    [table] = [table for table in document["tables"] if table["by"] == list(by)]
    return list(table["rows"])


def test_a_caller_counts_what_it_may_search(filled: tuple[ApiServer, dict[str, str], Path]) -> None:
    server, tokens, _ = filled

    def asked(name: str, **parameters: str) -> Any:
        return server.client.get("/v1/reports/decisions", params=parameters, headers=bearer(tokens[name]))

    every = asked("platform", by="tenant,outcome").json()
    assert {row["tenant"]: row["entries"] for row in rows(every, "tenant")} == {"eu-bank": 4, "globex-saas": 2, None: 1}
    assert {row["outcome"]: row["entries"] for row in rows(every, "outcome")} == {"allow": 5, "error": 2}
    assert (every["entries"], every["entries_total"], every["next"]) == (7, 7, None)
    bank = asked("bank-auditor", by="tenant/environment").json()
    assert {(row["tenant"], row["environment"]): row["entries"] for row in rows(bank, "tenant", "environment")} == {
        ("eu-bank", "dev"): 1, ("eu-bank", "staging"): 1, ("eu-bank", "prod"): 2,
    }  # fmt: skip
    assert asked("bank-auditor", by="outcome", tenant="globex-saas").json()["entries"] == 0
    answer = asked("nobody", by="outcome")
    assert (answer.status_code, answer.json()["code"]) == (403, "identity.forbidden")
    firsts = server.client.get("/v1/reports/first-uses", headers=bearer(tokens["bank-auditor"])).json()
    assert [(item["tenant"], item["environment"], item["entries"]) for item in firsts["items"]] == [
        ("eu-bank", "dev", 1), ("eu-bank", "staging", 1), ("eu-bank", "prod", 2),
    ]  # fmt: skip


def test_costs_are_those_of_the_recorded_first_choices(filled: tuple[ApiServer, dict[str, str], Path]) -> None:
    server, tokens, _ = filled
    headers = bearer(tokens["platform"])
    entries = server.client.get("/v1/decisions", params={"outcome": "allow"}, headers=headers).json()["items"]
    found = server.client.get("/v1/reports/decisions", params={"by": "pool"}, headers=headers).json()
    expected: dict[str, int] = {}
    for entry in entries:
        pool, _, cost = entry["ranked"][0]
        expected[pool] = expected.get(pool, 0) + cost
    assert {row["pool"]: row["cost_micro_usd"] for row in rows(found, "pool") if row["pool"]} == expected
    rules = server.client.get("/v1/reports/decisions", params={"by": "rule"}, headers=headers).json()
    for row in rows(rules, "rule"):
        if row["rule"] is not None:
            same = server.client.get("/v1/decisions", params={"rule": row["rule"]}, headers=headers).json()["items"]
            assert len(same) == row["entries"]


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("decisions", {}),
        ("decisions", {"by": "nothing"}),
        ("decisions", {"by": "stage_transition"}),
        ("decisions", {"by": "principal"}),
        ("decisions", {"by": "rule/data_source"}),
        ("decisions", {"by": ",".join(["day", "month", *report.WORD_DIMENSIONS, "day/outcome"])}),
        ("decisions", {"by": "outcome", "rejected_pool": "x"}),
        ("decisions", {"by": "outcome", "cursor": "WyJ4IiwxLDJd"}),
        ("decisions", {"by": "outcome", "cursor": "x"}),
        ("decisions", {"by": "outcome", "outcome": "maybe"}),
        ("first-uses", {"from": "2026-01-01"}),
        ("first-uses", {"cursor": "WyJ4IiwxXQ"}),
    ],
    ids=str,
)
def test_what_no_report_is(
    filled: tuple[ApiServer, dict[str, str], Path], path: str, parameters: dict[str, str]
) -> None:
    server, tokens, _ = filled
    answer = server.client.get(f"/v1/reports/{path}", params=parameters, headers=bearer(tokens["platform"]))
    assert (answer.status_code, answer.json()["code"]) == (400, "request.invalid")
    assert answer.json()["detail"]


def test_the_command_says_the_same_beside_a_server_and_without(
    filled: tuple[ApiServer, dict[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server, tokens, data = filled
    (tmp_path / "token").write_text(tokens["platform"])
    monkeypatch.setattr(report, "STEP_ENTRIES", 2)
    monkeypatch.setattr(report, "STEP_INDEXES", 3)  # in pages, as a long log comes
    remote = ["--server", server.address, "--token-file", str(tmp_path / "token")]
    documents = []
    for where in (["--data-dir", str(data)], remote):
        assert run(["audit", "report", *where, "--output", "json"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    local, asked = documents
    assert local.pop("log") is not None
    asked.pop("log")
    assert local == asked
    assert local["entries"] == 7
    bank, globex = local["stage_transitions"]
    assert (bank["tenant"], bank["from"], bank["to"], bank["entries"]) == ("eu-bank", "staging", "prod", 2)
    assert [stage["environment"] for stage in bank["before"]] == ["dev", "staging"]
    assert (globex["tenant"], globex["from"], globex["before"]) == ("globex-saas", None, [])
    for more, there in (([], 2), (["--to", bank["time"]], 0), (["--from", globex["time"], "--environment", "prod"], 1)):
        assert run(["audit", "report", *remote, "--by", "stage_transition", *more, "-o", "json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["stage_transitions"]) == there


def test_rows_for_a_spreadsheet_and_a_table_for_a_person(
    filled: tuple[ApiServer, dict[str, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data-dir", str(filled[2])]
    assert run(["audit", "report", *data, "--by", "outcome,provider/country", "-o", "csv"]) == 0
    found = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert sum(int(row["entries"]) for row in found if row["by"] == "outcome") == 7
    assert sum(int(row["entries"]) for row in found if row["by"] == "provider/country") == 7
    assert run(["audit", "report", *data, "--limit", "3"]) == 0
    drawn = capsys.readouterr()
    assert "7 entries, from the beginning to now" in drawn.out
    assert "straight into production" in drawn.out
    assert "more: --limit" in drawn.out
    assert drawn.err == ""
    assert run(["audit", "report", *data, "--by", "provder"]) == 2
    assert "did you mean `provider`" in capsys.readouterr().err


def test_what_is_settled_counts_as_settled_and_what_is_released_as_nothing(
    serving_with: Any, bank_chat: dict[str, Any]
) -> None:
    with serving_with() as server:

        def decided() -> tuple[str, int]:
            found = server.client.post("/v1/decisions", json=bank_chat).json()
            return found["id"], found["ranked"][0]["cost"]["micro_usd"]

        def counted() -> dict[str, int]:
            found = server.client.get("/v1/reports/decisions", params={"by": "outcome"}).json()
            [row] = rows(found, "outcome")
            assert row["cost_micro_usd"] == sum(
                row[f"{name}_micro_usd"] for name in ("settled", "presumed", "expected")
            )
            return {name: row[f"{name}_micro_usd"] for name in ("settled", "presumed", "expected")}

        (first, cost), (second, _), (third, _) = decided(), decided(), decided()
        assert counted() == {"settled": 0, "presumed": 0, "expected": 3 * cost}
        used = {"input_tokens": 10, "output_tokens": 5}
        after = server.client.post(f"/v1/decisions/{first}/settlement", json=used).json()
        assert 0 < after["actual"]["micro_usd"] < cost
        assert counted() == {"settled": after["actual"]["micro_usd"], "presumed": 0, "expected": 2 * cost}
        assert server.client.delete(f"/v1/decisions/{second}/reservation").status_code == 200
        assert counted() == {"settled": after["actual"]["micro_usd"], "presumed": 0, "expected": cost}
        exact = server.client.post(f"/v1/decisions/{third}/settlement", json={"micro_usd": 3})
        assert exact.json()["state"] == "settled"
        assert counted() == {"settled": after["actual"]["micro_usd"] + 3, "presumed": 0, "expected": 0}


def test_what_nobody_settled_counts_as_presumed(serving_with: Any, bank_chat: dict[str, Any]) -> None:
    with serving_with(budgets={"hold_ms": 1_000}) as server:
        held = server.client.post("/v1/decisions", json=bank_chat).json()["reservation"]["micro_usd"]
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            [row] = rows(server.client.get("/v1/reports/decisions", params={"by": "outcome"}).json(), "outcome")
            if row["presumed_micro_usd"]:
                break
            time.sleep(0.1)
        assert (row["presumed_micro_usd"], row["expected_micro_usd"], row["cost_micro_usd"]) == (held, 0, held)

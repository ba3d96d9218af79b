"""Checks, tests, simulations and the demo from the command line, on the shipped example and on broken copies of it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from policyd.cli.main import run

ROOT = Path(__file__).resolve().parent.parent.parent
WORKLOADS = ROOT / "examples" / "workloads"
DENIED = (
    "workload: {tenant: eu-bank, project: support-chat, environment: prod, model: llama-3.1-70b-instruct, "
    "resources: {gpu_memory_gib: 9000}}\n"
)

Told = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the surroundings; an OPA that the surroundings name stays known."""
    for name in list(os.environ):
        if name.startswith("POLICYD_") and name != "POLICYD_OPA_BINARY":
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


def copied(tmp_path: Path, name: str) -> Path:
    shutil.copytree(ROOT / name, tmp_path / Path(name).name)
    return tmp_path / Path(name).name


def test_the_shipped_policies_hold_together(capsys: Told) -> None:
    assert run(["policy", "check", "--output", "json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["findings"] == []
    packages = {package["package"]: package for package in checked["packages"]}
    assert packages["residency"]["enforcement"] == "hard"
    assert "pool.locations" in packages["residency"]["reads"]


def test_every_fault_of_policies_is_told_with_its_line(tmp_path: Path, capsys: Told) -> None:
    tree = copied(tmp_path, "policies")
    (tree / "casbin" / "rows.csv").write_text("p, market, *, own-eu, view, perhaps\n")
    broken = tree / "residency" / "residency.rego"
    broken.write_text(broken.read_text() + "\ndeny contains x if {\n")
    assert run(["policy", "check", str(tree)]) == 3
    told = capsys.readouterr().out
    assert "residency/residency.rego:" in told
    assert "casbin/rows.csv:1" in told


def test_a_path_that_no_input_has_is_found(tmp_path: Path, capsys: Told) -> None:
    tree = copied(tmp_path, "policies")
    path = tree / "residency" / "residency.rego"
    path.write_text(path.read_text().replace("input.pool.locations", "input.pool.locatoins"))
    assert run(["policy", "check", str(tree), "--output", "json"]) == 3
    messages = [finding["message"] for finding in json.loads(capsys.readouterr().out)["findings"]]
    assert any("input.pool.locatoins" in message for message in messages)


def test_a_failing_policy_test_is_a_finding(tmp_path: Path, capsys: Told) -> None:
    tree = copied(tmp_path, "policies")
    test = tree / "residency" / "residency_test.rego"
    test.write_text(test.read_text() + "\ntest_that_fails if {\n\t1 == 2\n}\n")
    shutil.rmtree(tree / "cases")
    (tree / "cases").mkdir()
    assert run(["policy", "test", str(tree), "--output", "json"]) == 3
    told = json.loads(capsys.readouterr().out)
    (failed,) = [result for result in told["results"] if not result["passed"]]
    assert "test_that_fails" in failed["name"]
    assert "residency_test.rego" in failed["location"]
    assert told["failed"] == 1
    assert told["passed"] > 50


def test_a_broken_fleet_is_told_with_every_line(tmp_path: Path, capsys: Told) -> None:
    fleet = copied(tmp_path, "examples/fleet")
    path = fleet / "sla.yaml"
    path.write_text(path.read_text() + "\nslaclasses: []\n")
    assert run(["fleet", "check", str(fleet)]) == 3
    told = capsys.readouterr().out
    line = path.read_text().splitlines().index("slaclasses: []") + 1
    assert f"{path}:{line}: unknown key `slaclasses`; did you mean `sla_classes`?" in told
    assert run(["decide", str(WORKLOADS / "eu-bank-chat.yaml"), "--fleet", str(fleet)]) == 1
    assert f"{path}:{line}: unknown key" in capsys.readouterr().err


def test_the_shipped_fleet_holds_together(capsys: Told) -> None:
    assert run(["fleet", "check", "--output", "json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert checked["errors"] == []
    assert checked["pools"] >= 60
    assert all(finding["where"] and finding["message"] for finding in checked["warnings"])


def test_prices_become_pools(tmp_path: Path, capsys: Told) -> None:
    rows = [
        "cloud,region,instance_type,capacity_type,usd_per_hour",
        "aws,eu-central-1,p5.48xlarge,on_demand,88.49",
        "aws,nowhere-1,p5.48xlarge,on_demand,free",
    ]
    (tmp_path / "prices.csv").write_text("\n".join(rows) + "\n")
    assert run(["fleet", "import", "prices", "prices.csv", "--checked", "2026-11-01"]) == 3
    told = capsys.readouterr()
    assert "88.49" in told.out
    assert "prices.csv:3: " in told.err
    assert "1 pool, 1 unusable row" in told.err
    assert run(["fleet", "import", "prices", "absent.csv"]) == 2
    assert run(["fleet", "import", "prices", "prices.csv", "--checked", "soon"]) == 2


def test_pools_are_listed_and_shown(capsys: Told) -> None:
    assert run(["pool", "list", "--kind", "spot", "--output", "json"]) == 0
    pools = json.loads(capsys.readouterr().out)
    assert {pool["kind"] for pool in pools} == {"spot"}
    assert run(["pool", "list", "--kind", "spot"]) == 0
    table = capsys.readouterr().out
    assert all(pool["id"] in table for pool in pools)
    assert run(["pool", "show", pools[0]["id"]]) == 0
    assert pools[0]["evidence"]["source"].split()[0] in capsys.readouterr().out
    for flag, near in (("--kind", "spot"), ("--provider", pools[0]["provider"]), ("--country", "DE")):
        assert run(["pool", "list", flag, near + "x"]) == 2
        assert f"did you mean '{near}'?" in capsys.readouterr().err


def test_a_simulation_stands_beside_today_and_writes_nothing(tmp_path: Path, capsys: Told) -> None:
    bank = str(WORKLOADS / "eu-bank-chat.yaml")
    assert run(["simulate", bank, "--output", "json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    first = entry["today"]["ranked"][0]["pool"]
    assert entry["simulated"]["ranked"] == entry["today"]["ranked"]
    assert entry["today"]["mode"] == "simulation"
    assert entry["today"]["audit"] is None
    assert run(["simulate", bank, "--without-pool", first, "--output", "json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["today"]["ranked"][0]["pool"] == first
    assert first not in [ranked["pool"] for ranked in entry["simulated"]["ranked"]]
    assert first not in [rejected["pool"] for rejected in entry["simulated"]["rejected"]]
    assert list(tmp_path.iterdir()) == []


def test_a_simulation_names_who_has_no_pool_left(tmp_path: Path, capsys: Told) -> None:
    fleet = copied(tmp_path, "examples/fleet")
    for path in fleet.glob("pools-*.yaml"):
        if path.name != "pools-spot.yaml":
            path.unlink()
    bank = str(WORKLOADS / "eu-bank-chat.yaml")
    (tmp_path / "deny.yaml").write_text(DENIED)
    assert run(["simulate", bank, "deny.yaml", "--fleet", str(fleet)]) == 3
    told = capsys.readouterr().out
    assert "No pool left for 1 workload: eu-bank-chat" in told
    assert "Nothing was logged or reserved." in told


def test_the_time_of_a_simulation_counts(capsys: Told) -> None:
    bank = str(WORKLOADS / "eu-bank-chat.yaml")
    assert run(["simulate", bank, "--at", "2040-01-01T00:00:00Z", "--output", "json"]) == 3
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["simulated"]["time"].startswith("2040-01-01")
    assert entry["simulated"]["outcome"] == "deny"
    rules = {violation["rule"] for pool in entry["simulated"]["rejected"] for violation in pool["violations"]}
    assert any("expired" in rule or "overdue" in rule for rule in rules)


@pytest.mark.parametrize(
    "wrong", [["--price", "onprem-fra-h100"], ["--weight", "price"], ["--at", "tomorrow"], ["--weight", "prise=100"]]
)
def test_a_wrong_override_is_a_usage_error(wrong: list[str], capsys: Told) -> None:
    assert run(["simulate", str(WORKLOADS / "eu-bank-chat.yaml"), *wrong]) == 2
    assert wrong[1].partition("=")[0] in capsys.readouterr().err


def test_the_doctor_finds_what_is_broken(tmp_path: Path, capsys: Told) -> None:
    assert run(["doctor", "--output", "json"]) == 0
    parts = {check["part"]: check for check in json.loads(capsys.readouterr().out)}
    of_server = {"identity", "tls", "secrets", "telemetry", "workers", "ntp", "signers"}
    of_log = {"data", "ledger"}
    assert set(parts) == {"python", "fleet", "clock", "engine", "policies", "opa", "facts"} | of_log | of_server
    assert parts["engine"]["health"] == "ok"
    tree = copied(tmp_path, "policies")
    (tree / "casbin" / "rows.csv").unlink()
    (tmp_path / "facts.yaml").write_text("pools: 1\n")
    assert run(["doctor", "--policies", str(tree), "--facts", "facts.yaml", "--output", "json"]) == 3
    parts = {check["part"]: check for check in json.loads(capsys.readouterr().out)}
    assert {part for part, check in parts.items() if check["health"] == "fail"} == {"policies", "facts"}
    assert parts["policies"]["remedy"]
    (tmp_path / "tokens.yaml").write_text("tokens: none\n")
    (tmp_path / "doctored.yaml").write_text(f"auth: {{tokens_file: {tmp_path / 'tokens.yaml'}}}\n")
    assert run(["doctor", "--config", str(tmp_path / "doctored.yaml"), "--output", "json"]) == 3
    parts = {check["part"]: check for check in json.loads(capsys.readouterr().out)}
    assert {part for part, check in parts.items() if check["health"] == "fail"} == {"identity"}


def test_the_demo_needs_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Told
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "policyd.yaml").write_text("port: not-a-port\n")
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert run(["demo"]) == 0
    told = capsys.readouterr().out
    for file in WORKLOADS.glob("*.yaml"):
        assert f"$ policyd decide examples/workloads/{file.name}" in told
    assert "A policyd at http://127.0.0.1:" in told
    assert " are assumed" in told
    assert "component" in told
    assert "Try next:" in told
    assert list(scratch.iterdir()) == []

"""Facts from real files: read once, read again when they change, refused whole when one thing is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from connectors import static
from connectors.static import DeclaredFacts, StaticFacts
from policyd.core.facts import facts_from_json
from policyd.errors import ConfigError
from policyd.revisions.fleet_files import load_fleet

ROOT = Path(__file__).resolve().parent.parent.parent
GOOD = "observed_at: 2026-11-16T10:00:00+01:00\npools:\n  a: {available_gpus: 8, queue_ms: 0, healthy: true}\n"
GOOD_JSON = (
    '{"observed_at": null,\n "pools": {"a": {"available_gpus": 8}},\n "accounts": {"t/p": {"spent_micro_usd": 5}}}'
)


def refused(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        StaticFacts(path).read()
    return [str(finding).replace(f"{path}", path.name) for finding in caught.value.findings]


def test_yaml_and_json_are_plain_values_in_utc(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text(GOOD)
    assert StaticFacts(tmp_path / "f.yaml").read() == {
        "observed_at": "2026-11-16T09:00:00Z",
        "pools": {"a": {"available_gpus": 8, "queue_ms": 0, "healthy": True}},
        "accounts": {},
    }
    (tmp_path / "f.json").write_text(GOOD_JSON)
    facts = facts_from_json(StaticFacts(tmp_path / "f.json").read(), "sha256:x")
    assert facts.pools["a"].available_gpus == 8
    assert facts.pools["a"].healthy is None, "what the file does not say stays unknown"
    assert facts.spent_micro_usd == {"t/p": 5}


def test_read_again_only_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(GOOD)
    source = StaticFacts(path)
    first = source.read()
    assert source.read() is first
    beside = tmp_path / "new"
    beside.write_text(GOOD.replace("8", "7"))
    os.replace(beside, path)
    assert source.read()["pools"]["a"]["available_gpus"] == 7
    path.write_text("broken: [")
    with pytest.raises(ConfigError):
        source.read()
    path.unlink()
    with pytest.raises(ConfigError):
        source.read()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("8", "-8"), "f.yaml:3: `pools.a.available_gpus`"),
        (GOOD.replace("8", "8.5"), "f.yaml:3: 8.5 is not exact"),
        (GOOD.replace("healthy: true", "healthy: yes"), "f.yaml:3: `pools.a.healthy`"),
        (GOOD.replace("healthy", "helthy"), "f.yaml:3: unknown key `pools.a.helthy`; did you mean `healthy`?"),
        (GOOD.replace("+01:00", ""), "f.yaml:1: `observed_at`"),
        (GOOD.replace("pools", "pool"), "f.yaml:2: unknown key `pool`; did you mean `pools`?"),
        (GOOD + "  a: {}\n", "f.yaml:4: key 'a' stands twice"),
        ("", "f.yaml:1: "),
        ("- 1", "f.yaml:1: "),
    ],
)
def test_a_wrong_yaml_file_gives_nothing(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    assert any(line.startswith(message) for line in refused(tmp_path / "f.yaml")), refused(tmp_path / "f.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD_JSON.replace("8", "8.0"), "f.json:1: 8.0 is not a whole number"),
        (GOOD_JSON.replace("8", "NaN"), "f.json:1: NaN is not a whole number"),
        (
            GOOD_JSON.replace('"available_gpus": 8', '"healthy": true, "healthy": false'),
            "f.json:1: key 'healthy' stands",
        ),
        (GOOD_JSON.replace('"a": {', '"a": ['), "f.json:2: not JSON"),
        (GOOD_JSON.replace("8", '"8"'), "f.json:2: `pools.a.available_gpus`"),
        (GOOD_JSON.replace("5", "9007199254740992"), "f.json:3: `accounts.t/p.spent_micro_usd`"),
        ("[" * 100_000, "f.json:1: "),
    ],
)
def test_a_wrong_json_file_gives_nothing(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f.json").write_text(text)
    assert any(line.startswith(message) for line in refused(tmp_path / "f.json")), refused(tmp_path / "f.json")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f.yaml").write_text(GOOD)
    monkeypatch.setattr(static, "MAX_FACTS_BYTES", 10)
    assert refused(tmp_path / "f.yaml") == ["f.yaml: larger than 10 bytes"]


def test_declared_facts_give_declared_capacity_and_know_no_spending() -> None:
    fleet = load_fleet(ROOT / "examples" / "fleet")
    facts = DeclaredFacts(fleet).read()
    assert facts["observed_at"] is None
    assert facts["basis"] == "declared capacity"
    assert facts["accounts"] == {}
    assert facts["pools"]["onprem-fra-h100"] == {"available_gpus": 100, "queue_ms": 0, "healthy": True}
    assert facts["pools"]["coreweave-us-east-h100"]["available_gpus"] == 40, "the unused part of the commitment"
    assert facts_from_json(facts, "sha256:x").observed_at is None

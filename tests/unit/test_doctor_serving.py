"""What a server needs: each check well, and not well, on real files, sockets and certificates."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme

from audit.note import Note, Signature, parse_note
from connectors.otel_signals import endpoints
from policyd.api.tls import TlsFiles
from policyd.errors import ConfigError
from policyd.identity.tokens import TokenFile, new_token
from policyd.services import doctor_serving
from policyd.services.checkpoints import LogFiles
from policyd.services.clock import now_us
from policyd.services.doctor import Check, Health
from policyd.services.witnessing import word_of
from policyd.settings import Settings, load_settings
from tests.integration.test_audit_witness import KEY, LOG, PRIVATE
from tests.integration.test_audit_witness import checkpoint as signed

NOW_S = 1_790_000_000


def settings_with(**flags: Any) -> Settings:
    return load_settings(environment={}, flags=flags)


def worst(checks: Sequence[Check]) -> Health:
    found = {check.health for check in checks}
    assert all(check.remedy for check in checks if check.health is not Health.OK), "each finding has a remedy"
    return next(health for health in (Health.FAIL, Health.WARN, Health.OK) if health in found)


def tokens(path: Path, expires_at: datetime | None = None) -> Path:
    entry: dict[str, Any] = {"name": "ci", "sha256": new_token()[1], "grants": [{"role": "developer"}]}
    if expires_at is not None:
        entry["expires_at"] = expires_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    path.write_bytes(orjson.dumps({"tokens": [entry]}))
    path.chmod(0o600)
    return path


def identity(settings: Settings, keys: int | None = 1) -> list[Check]:
    def expiries() -> list[tuple[str, int | None]]:
        assert settings.auth.tokens_file is not None
        file = TokenFile(settings.auth.tokens_file, now_us)
        file.refresh()
        return file.expiries()

    async def fetch() -> int:
        if keys is None:
            raise ConfigError("the keys cannot be fetched")
        return keys

    return asyncio.run(doctor_serving.check_identity(settings, expiries, fetch))


def test_tokens(tmp_path: Path) -> None:
    assert worst(identity(settings_with())) is Health.OK
    path = tokens(tmp_path / "tokens.yaml")
    settings = settings_with(auth={"tokens_file": path})
    assert worst(identity(settings)) is Health.OK
    path.chmod(0o664)
    assert worst(identity(settings)) is Health.FAIL
    for ends, health in ((-1, Health.WARN), (3, Health.WARN), (300, Health.OK)):
        tokens(path, datetime.now(UTC) + timedelta(days=ends))
        assert worst(identity(settings)) is health
    path.write_text("tokens: 7")
    assert worst(identity(settings)) is Health.FAIL
    path.unlink()
    assert worst(identity(settings)) is Health.FAIL


def test_an_issuer_and_certificates() -> None:
    oidc = {"issuer": "https://issuer.example", "audience": "policyd", "jwks_url": "https://issuer.example/keys"}
    settings = settings_with(auth={"oidc": oidc})
    assert worst(identity(settings)) is Health.OK
    assert worst(identity(settings, None)) is Health.FAIL


def certificate(folder: Path, ends: datetime, begins: datetime | None = None) -> Settings:
    made = trustme.CA().issue_cert("localhost", not_after=ends, not_before=begins)
    made.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "key.pem").chmod(0o600)
    return settings_with(tls={"certificate_file": folder / "certificate.pem", "key_file": folder / "key.pem"})


def tls(settings: Settings) -> list[Check]:
    return doctor_serving.check_tls(settings, lambda: TlsFiles(settings.tls))


def test_tls_files(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    assert worst(tls(settings_with())) is Health.OK
    for days, health in ((300, Health.OK), (3, Health.WARN), (-3, Health.FAIL)):
        assert worst(tls(certificate(tmp_path, now + timedelta(days=days), now - timedelta(days=9)))) is health
    late = certificate(tmp_path, now + timedelta(days=300), now + timedelta(days=1))
    assert worst(tls(late)) is Health.FAIL
    good = certificate(tmp_path, now + timedelta(days=300), now - timedelta(days=9))
    (tmp_path / "key.pem").chmod(0o644)
    assert worst(tls(good)) is Health.WARN
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "key.pem")
    (other,) = tls(good)
    assert (other.health, "do not hold together" in other.detail) == (Health.FAIL, True)


def test_files_with_secrets(tmp_path: Path) -> None:
    closed, opened = tmp_path / "log.key", tmp_path / "token"
    for path, mode in ((closed, 0o600), (opened, 0o644)):
        path.write_text("secret")
        path.chmod(mode)
    assert worst(doctor_serving.check_secrets([])) is Health.OK
    assert worst(doctor_serving.check_secrets([closed])) is Health.OK
    (found,) = doctor_serving.check_secrets([closed, opened])
    assert (found.health, found.remedy) == (Health.WARN, f"chmod go-r {opened}")
    opened.chmod(0o662)
    assert worst(doctor_serving.check_secrets([closed, opened])) is Health.FAIL
    assert worst(doctor_serving.check_secrets([tmp_path / "none"])) is Health.FAIL


def telemetry(environment: dict[str, str]) -> list[Check]:
    return asyncio.run(doctor_serving.check_telemetry(lambda: endpoints(environment)))


def test_the_collector() -> None:
    assert worst(telemetry({})) is Health.OK
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert worst(telemetry({"OTEL_EXPORTER_OTLP_ENDPOINT": address})) is Health.OK
    (gone,) = telemetry({"OTEL_EXPORTER_OTLP_ENDPOINT": address})
    assert (gone.health, "is not reached" in gone.detail) == (Health.WARN, True)
    assert worst(telemetry({"OTEL_TRACES_EXPORTER": "jaeger"})) is Health.FAIL
    assert worst(telemetry({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:port"})) is Health.WARN


@pytest.mark.parametrize(
    ("workers", "processors", "descriptors", "health"),
    [(1, 2, 20_000, Health.OK), (3, 2, 20_000, Health.WARN), (1, 2, 1_024, Health.WARN), (2, 2, 1_024, Health.OK)],
)
def test_processes_and_descriptors(workers: int, processors: int, descriptors: int, health: Health) -> None:
    found = doctor_serving.check_workers(settings_with(workers=workers), processors, descriptors)
    assert worst([found]) is health


def test_who_keeps_the_clock() -> None:
    assert doctor_serving.check_ntp(lambda: 0).health is Health.OK
    for state in (5, None):
        assert worst([doctor_serving.check_ntp(lambda state=state: state)]) is Health.WARN  # type: ignore[misc]
    assert doctor_serving.check_ntp().part == "ntp"


def word(checkpoint: bytes, time_s: int) -> bytes:
    """The checkpoint as the witness of the tests cosigns it."""
    note = parse_note(checkpoint)
    blob = time_s.to_bytes(8, "big") + PRIVATE.sign(b"cosignature/v1\ntime %d\n%b" % (time_s, note.text.encode()))
    return Note(note.text, (*note.signatures, Signature(KEY.name, KEY.id, blob))).encode()


def test_witnesses(tmp_path: Path) -> None:
    def checked(key: str = KEY.text) -> list[Check]:
        audit = {"witnesses": [{"url": "https://witness.example/w", "key": key}]}
        return doctor_serving.check_witnesses(settings_with(data_dir=tmp_path, audit=audit), lambda: NOW_S * 1_000_000)

    assert doctor_serving.check_witnesses(settings_with(data_dir=tmp_path)) == []
    assert worst(checked()) is Health.WARN, "it has not cosigned anything"
    assert worst(checked(LOG.key.text)) is Health.FAIL
    kept = word_of(tmp_path, KEY)
    kept.parent.mkdir()
    LogFiles.within(tmp_path).checkpoint.write_bytes(signed(20))
    for size, age_s, health in ((20, 10_000, Health.OK), (10, 60, Health.OK), (10, 10_000, Health.WARN)):
        kept.write_bytes(word(signed(size), NOW_S - age_s))
        [found] = checked()
        assert found.health is health, found
        assert f"vouches for {size} of 20 entries, {age_s} s ago" in found.detail
    kept.write_bytes(word(signed(10), NOW_S)[:-20] + b"AAAAAAAAAAAAAAAAAA=\n")
    assert worst(checked()) is Health.WARN

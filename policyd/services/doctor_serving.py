"""Is this installation fit to serve others? Checks beside ``policyd.services.doctor``, of what a server needs besides.

| check     | fails when                                               | warns when                               |
|-----------|----------------------------------------------------------|------------------------------------------|
| identity  | tokens or keys of the issuer cannot be read; others may  | a token has expired or soon will         |
|           | write a file that gives rights                           |                                          |
| tls       | the files do not hold together, or a certificate is not  | a certificate ends soon; others may read |
|           | in force                                                 | the key                                  |
| secrets   | a secret's file is not there, or others may write it     | others may read it                       |
| webhooks  | where the receivers are cannot be read                   | a receiver is failing, or was not told   |
| telemetry | the ``OTEL_*`` variables ask for what is not supported   | the collector does not answer            |
| workers   |                                                          | more processes than processors, too few  |
|           |                                                          | file descriptors for what may come       |
| witnesses | a key in the settings is none                            | one has not cosigned for an hour what is |
|           |                                                          | newer, or never                          |
| ntp       |                                                          | nothing keeps the clock right            |

Rules: as there: a check never raises and changes nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import stat
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509

from audit.checkpoint import Checkpoint
from audit.errors import AuditFailure
from audit.note import NOTE_MAX_BYTES, VerifierKey, parse_note, verify_note
from policyd.errors import PolicydError
from policyd.services.checkpoints import LogFiles
from policyd.services.clock import Now, now_us
from policyd.services.doctor import Check, Health, failed
from policyd.services.witnessing import witnesses_of, word_of
from policyd.settings import Settings, is_loopback

SOON: Final = timedelta(days=14)
CONNECT_TIMEOUT_S: Final = 2.0
LATE_S: Final = 3_600
"""A witness that has not cosigned for so long, although there was something to cosign, is worth a look."""
DESCRIPTORS_BESIDE: Final = 256
"""What a process opens beside its connections: the log, its readers, workers, files of the packages."""
_CLOCK_ERROR: Final = 5
"""What ``adjtimex`` returns while nothing disciplines the clock (TIME_ERROR)."""
_TIMEX_BYTES: Final = 1_024


def check_mode(part: str, path: Path, *, secret: bool) -> Check | None:
    """Who else may write a file that gives rights, or read one that is secret; None when nobody may."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return Check(part, Health.FAIL, f"{path} cannot be read: {error.strerror}", "name a file that this user reads")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return Check(part, Health.FAIL, f"{path} can be written by others", f"chmod go-w {path}")
    if secret and mode & (stat.S_IRGRP | stat.S_IROTH):
        return Check(part, Health.WARN, f"{path} can be read by others", f"chmod go-r {path}")
    return None


async def check_identity(
    settings: Settings,
    expiries: Callable[[], Sequence[tuple[str, int | None]]],
    fetch_keys: Callable[[], Awaitable[int]],
    now: Now = now_us,
) -> list[Check]:
    """How callers prove who they are. ``expiries`` reads the tokens' names and ends, ``fetch_keys`` counts the keys."""
    auth = settings.auth
    if not auth.configured:
        detail = "not set up: whoever reaches the loopback address is `local`"
        return [Check("identity", Health.OK, detail)]
    found = []
    if auth.tokens_file is not None:
        found.append(_tokens(auth.tokens_file, expiries, now))
    if auth.oidc is not None:
        try:
            count = await fetch_keys()
            found.append(Check("identity", Health.OK, f"{count} keys of {auth.oidc.issuer}"))
        except PolicydError as error:
            found.append(failed("identity", error))
    if auth.certificates:
        ready = settings.tls.client_ca_file is not None
        remedy = "" if ready else "name tls.client_ca_file"
        detail = f"{len(auth.certificates)} names of client certificates"
        found.append(Check("identity", Health.OK if ready else Health.FAIL, detail, remedy))
    return found


def _tokens(path: Path, expiries: Callable[[], Sequence[tuple[str, int | None]]], now: Now) -> Check:
    try:
        tokens = expiries()
    except PolicydError as error:
        return failed("identity", error)
    opened = check_mode("identity", path, secret=False)
    if opened is not None:
        return opened
    soon_us = now() + int(SOON.total_seconds()) * 1_000_000
    ending = [name for name, ends_us in tokens if ends_us is not None and ends_us < soon_us]
    if ending:
        shown = ", ".join(ending[:3]) + (" …" if len(ending) > 3 else "")
        detail = f"{len(ending)} of {len(tokens)} tokens have expired or will within {SOON.days} days: {shown}"
        return Check("identity", Health.WARN, detail, "make new ones (`policyd token new`), take the old ones out")
    return Check("identity", Health.OK, f"{len(tokens)} tokens in {path}")


def check_tls(settings: Settings, build: Callable[[], object], now: Now = now_us) -> list[Check]:
    """The TLS files; ``build`` makes of them what serves, and raises when they do not hold together."""
    tls = settings.tls
    if tls.certificate_file is None:
        if is_loopback(settings.host):
            return [Check("tls", Health.OK, "not set up, and not needed on loopback")]
        remedy = "set tls.certificate_file and tls.key_file, or let a proxy add it"
        return [Check("tls", Health.WARN, f"not set up, and {settings.host} is not loopback", remedy)]
    try:
        build()
    except PolicydError as error:
        return [failed("tls", error)]
    found = [_certificates(path, now) for path in (tls.certificate_file, tls.client_ca_file) if path is not None]
    opened = check_mode("tls", tls.key_file or tls.certificate_file, secret=True)
    return [*found, *([opened] if opened is not None else [])]


def _certificates(path: Path, now: Now) -> Check:
    """Whether all certificates of a file are in force now, and for a while."""
    try:
        read = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        return Check("tls", Health.FAIL, f"{path} cannot be read: {error}", "name a file of certificates in PEM")
    moment = datetime.fromtimestamp(now() / 1_000_000, UTC)
    begins = max(certificate.not_valid_before_utc for certificate in read)
    ends = min(certificate.not_valid_after_utc for certificate in read)
    remedy = f"put a new certificate into {path}; it is taken without a restart"
    if begins > moment:
        return Check("tls", Health.FAIL, f"{path} is in force from {begins:%Y-%m-%d %H:%M} UTC", remedy)
    if ends <= moment:
        return Check("tls", Health.FAIL, f"{path} ended at {ends:%Y-%m-%d %H:%M} UTC", remedy)
    health = Health.WARN if ends <= moment + SOON else Health.OK
    return Check("tls", health, f"{path} ends at {ends:%Y-%m-%d %H:%M} UTC", remedy if health is Health.WARN else "")


def check_secrets(files: Iterable[Path]) -> list[Check]:
    """The files with secrets, besides those of TLS: the key of the log, tokens and addresses with a password."""
    named = list(files)
    found = [opened for path in named if (opened := check_mode("secrets", path, secret=True)) is not None]
    return found or [Check("secrets", Health.OK, f"{len(named)} files, open to nobody else")]


def check_webhooks(names: Sequence[str], read: Callable[[], Mapping[str, Any]]) -> list[Check]:
    """Whether the receivers of webhooks take what they are told, as the server that tells them has kept it."""
    if not names:
        return []
    try:
        kept = read().get("receivers", {})
    except PolicydError as error:
        return [failed("webhooks", error)]
    found = []
    for name in names:
        state = kept.get(name, {})
        if state.get("failing_since") is not None:
            detail = f"{name} has not taken what waits for it since {state['failing_since']}: {state.get('error')}"
            found.append(Check("webhooks", Health.WARN, detail, "mend the receiver; what waits is told again"))
        elif state.get("given_up"):
            detail = f"{name} was not told of {state['given_up']} events, which were given up"
            found.append(Check("webhooks", Health.WARN, detail, "look at the log of the server for their ids"))
    return found or [Check("webhooks", Health.OK, f"{len(names)} receivers, none is failing")]


async def check_telemetry(endpoints: Callable[[], Iterable[str]]) -> list[Check]:
    """Whether the collectors that the ``OTEL_*`` variables name answer; ``endpoints`` reads the variables."""
    try:
        addresses = sorted(set(endpoints()))
    except PolicydError as error:
        return [failed("telemetry", error)]
    if not addresses:
        return [Check("telemetry", Health.OK, "nothing is exported; /metrics answers scrapes")]
    return [await _collector(address) for address in addresses]


async def _collector(address: str) -> Check:
    parts = urlsplit(address)
    try:
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(parts.hostname, port)
        writer.close()
    except (OSError, ValueError) as error:
        why = str(error) or f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
        remedy = "start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT; decisions go on without it"
        return Check("telemetry", Health.WARN, f"{parts.netloc.rpartition('@')[2]} is not reached: {why}", remedy)
    return Check("telemetry", Health.OK, f"{parts.hostname}:{port} takes connections")


def check_workers(settings: Settings, processors: int | None = None, descriptors: int | None = None) -> Check:
    """Processes against processors, and what may be in progress against the file descriptors of one process."""
    there = processors or len(os.sched_getaffinity(0))
    allowed = descriptors if descriptors is not None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = settings.part_of(settings.api.in_flight_max) + DESCRIPTORS_BESIDE
    detail = f"{settings.workers} API processes, {there} processors, {allowed} file descriptors"
    if allowed < needed:
        remedy = f"raise the limit (LimitNOFILE, ulimit -n) to {needed}, or lower api.in_flight_max"
        return Check("workers", Health.WARN, detail, remedy)
    if settings.workers > there:
        return Check("workers", Health.WARN, detail, f"workers: {there} or less, else they wait for each other")
    return Check("workers", Health.OK, detail)


def check_witnesses(settings: Settings, now: Now = now_us) -> list[Check]:
    """The word of each witness that a server asks, beside the newest checkpoint."""
    try:
        asked = witnesses_of(settings.audit)
        kept = LogFiles.within(settings.data_dir).kept() if asked else None
        newest = 0 if kept is None else Checkpoint.parse(parse_note(kept).text).size
    except PolicydError as error:
        return [failed("witnesses", error)]
    except AuditFailure as error:
        return [Check("witnesses", Health.FAIL, str(error), "run `policyd audit verify`")]
    return [_witness(settings.data_dir, witness.key, newest, now() // 1_000_000) for witness in asked]


def _witness(folder: Path, key: VerifierKey, newest: int, now_s: int) -> Check:
    remedy = "look for it in the server's log; decisions do not wait for it"
    try:
        note = parse_note(word_of(folder, key).read_bytes()[: NOTE_MAX_BYTES + 1])
        [signed] = verify_note(note, [key])
        size = Checkpoint.parse(note.text).size
    except FileNotFoundError:
        return Check("witnesses", Health.WARN, f"{key.name} has not cosigned this log yet", remedy)
    except (OSError, AuditFailure) as error:
        return Check("witnesses", Health.WARN, f"the word of {key.name} cannot be read: {error}", remedy)
    late = size < newest and now_s - signed.time_s > LATE_S
    seen = f"{key.name} vouches for {size} of {newest} entries, {max(0, now_s - signed.time_s)} s ago"
    return Check("witnesses", Health.WARN, seen, remedy) if late else Check("witnesses", Health.OK, seen)


def check_ntp(state: Callable[[], int | None] | None = None) -> Check:
    """Whether something keeps the clock right, by the kernel's word."""
    found = (state or _kernel_state)()
    if found is None:
        return Check("ntp", Health.WARN, "this system does not say", "see that the clock is kept by NTP or PTP")
    if found == _CLOCK_ERROR:
        remedy = "run chronyd or systemd-timesyncd: expiry of tokens, waivers and answers depends on the clock"
        return Check("ntp", Health.WARN, "nothing keeps the clock of this machine right", remedy)
    return Check("ntp", Health.OK, "the clock is synchronised")


def _kernel_state() -> int | None:
    """What ``adjtimex`` returns when nothing is changed; None where there is none."""
    if sys.platform != "linux":
        return None
    try:
        state = int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    except (AttributeError, OSError):
        return None
    return state if state >= 0 else None

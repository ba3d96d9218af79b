"""Who may sign: the allowed-signers file of OpenSSH, read strictly.

    ana@example.org namespaces="git,policyd-approval@v1",valid-before="20270101Z" ssh-ed25519 AAAAC3Nz… ana's laptop

Rules: the file is the operator's and is read again whenever something is judged, so a signer who is taken out counts no
more from then on; a principal names one person, and lines that share a principal are the same person; a key stands on
one line only, so that taking this line out takes the key out; times are UTC, and what counts is the time at which a
signature is judged, for the date that somebody wrote into a commit proves nothing. Both bounds belong to the time.

Refused, with the line at fault, and then the whole file: certificate authorities, patterns in the place of a person,
times without ``Z``, unknown options, a key twice, and every key that ``policyd.revisions.sshsig`` refuses.
"""

from __future__ import annotations

import base64
import binascii
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Final

from policyd.errors import ConfigError, Finding, SignatureRefused
from policyd.revisions.sshsig import Signature, SshKey, check, key_of

FILE_MAX_BYTES: Final = 1_048_576
SIGNERS_MAX: Final = 1_000
LINE_MAX_CHARS: Final = 16_384
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIME: Final = re.compile(r"(\d{8})(?:(\d{4})(\d{2})?)?Z")
_OPTION: Final = re.compile(r'([A-Za-z-]+)(?:=(?:"([^"]*)"|([^",\s]*)))?(?=[,\s]|$)')
_PRINCIPAL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+@/:=-]{0,255}")


@dataclass(frozen=True, slots=True)
class Signer:
    """One line: whose key it is, for what and when."""

    principals: tuple[str, ...]
    key: SshKey
    line: int
    namespaces: tuple[str, ...] | None = None
    valid_after_us: int | None = None
    valid_before_us: int | None = None


@dataclass(frozen=True)
class AllowedSigners:
    """A whole file. ``digest`` is over its bytes, for the record of what was judged by it."""

    signers: tuple[Signer, ...]
    digest: str

    def signed_by(self, signature: Signature, message: bytes, namespace: str, now_us: int) -> str:
        """The person who has signed this message. Raises ``SignatureRefused`` when nobody who counts has."""
        check(signature, message, namespace)
        signer = self._by_key.get(signature.key.blob)
        if signer is None:
            raise SignatureRefused(f"the key {signature.key.fingerprint} is none of an allowed signer")
        person = self.persons[signer.principals[0].casefold()]
        if signer.namespaces is not None and not _matches(namespace, signer.namespaces):
            raise SignatureRefused(f"the key of {person} is not allowed to sign for {namespace!r}")
        if signer.valid_after_us is not None and now_us < signer.valid_after_us:
            raise SignatureRefused(f"the key of {person} is not valid before {_shown(signer.valid_after_us)}")
        if signer.valid_before_us is not None and now_us > signer.valid_before_us:
            raise SignatureRefused(f"the key of {person} has expired at {_shown(signer.valid_before_us)}")
        return person

    @cached_property
    def _by_key(self) -> Mapping[bytes, Signer]:
        return {signer.key.blob: signer for signer in self.signers}

    @cached_property
    def persons(self) -> Mapping[str, str]:
        """The one name of the person that a principal is, by the principal in small letters."""
        found: dict[str, str] = {}
        for signer in self.signers:
            names = [name.casefold() for name in signer.principals]
            known = {found[name] for name in names if name in found}
            person = next((other for other in found.values() if other in known), signer.principals[0])
            found.update(dict.fromkeys(names, person))
            # A line with the names of two persons says that they are one.
            found.update({name: person for name, other in found.items() if other in known})
        return found

    def person(self, principal: str) -> str | None:
        """The person that a principal is; None for a stranger."""
        return self.persons.get(principal.casefold())


def read_allowed_signers(path: Path) -> AllowedSigners:
    """The file as it is now. Raises ``ConfigError``, with a finding for each line at fault."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(path.stat().st_mode) & stat.S_IWOTH:
                raise ConfigError(f"everybody may write {path}, and so name themselves", remedy=f"chmod o-w {path}")
            content = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"the allowed signers {path} cannot be read: {error.strerror}", remedy=_REMEDY) from None
    return parse_allowed_signers(content, str(path))


def parse_allowed_signers(content: bytes, place: str) -> AllowedSigners:
    """What the file says. Raises ``ConfigError``, with a finding for each line at fault."""
    if len(content) > FILE_MAX_BYTES:
        raise ConfigError(f"the allowed signers {place} are more than {FILE_MAX_BYTES} bytes", remedy=_REMEDY)
    findings: list[Finding] = []
    signers: list[Signer] = []
    lines: dict[bytes, int] = {}
    for number, raw in enumerate(content.replace(b"\r\n", b"\n").split(b"\n"), 1):
        if not raw.strip() or raw.startswith(b"#"):
            continue
        try:
            signer = _signer(raw, number)
            first = lines.setdefault(signer.key.blob, number)
            if first != number:
                raise SignatureRefused(f"is the key of line {first} again; write it once, with all its principals")
            signers.append(signer)
        except SignatureRefused as error:
            findings.append(Finding(f"{place}:{number}", error.detail))
    if not signers and not findings:
        findings.append(Finding(f"{place}:1", "names nobody"))
    if len(signers) > SIGNERS_MAX:
        findings.append(Finding(f"{place}:{SIGNERS_MAX}", f"more than {SIGNERS_MAX} signers"))
    if findings:
        detail = f"the allowed signers cannot be used: {findings[0]}"
        raise ConfigError(detail, findings=findings, remedy=_REMEDY)
    return AllowedSigners(tuple(signers), f"sha256:{sha256(content).hexdigest()}")


_REMEDY: Final = "correct the file that revisions.allowed_signers_file names; until then nobody's signature counts"


def _signer(raw: bytes, number: int) -> Signer:
    """One line. Raises ``SignatureRefused`` saying what is wrong with it."""
    if len(raw) > LINE_MAX_CHARS:
        raise SignatureRefused(f"is longer than {LINE_MAX_CHARS} characters")
    try:
        line = raw.decode("ascii")
    except UnicodeDecodeError:
        raise SignatureRefused("is no ASCII") from None
    if not line.replace("\t", " ").isprintable():
        raise SignatureRefused("holds a control character")
    written, rest = _principals(line.lstrip(" \t"))
    rest = rest.lstrip(" \t")
    options: dict[str, str] = {}
    first = rest.split(None, 1)[0] if rest else ""
    if "=" in first or "," in first or first.lower() == "cert-authority":
        options, rest = _options(rest)
    fields = rest.split()
    if len(fields) < 2:
        raise SignatureRefused("has no key; a line is `principals options kind key`")
    return Signer(
        _names(written),
        _key(fields[0], fields[1]),
        number,
        tuple(options["namespaces"].split(",")) if "namespaces" in options else None,
        _time_us(options["valid-after"]) if "valid-after" in options else None,
        _time_us(options["valid-before"]) if "valid-before" in options else None,
    )


def _principals(line: str) -> tuple[str, str]:
    if line.startswith('"'):
        written, quote, rest = line[1:].partition('"')
        if not quote or rest[:1] not in (" ", "\t"):
            raise SignatureRefused("has a quote that does not end, or no key")
        return written, rest
    written, _, rest = line.replace("\t", " ").partition(" ")
    return written, rest


def _names(written: str) -> tuple[str, ...]:
    names = tuple(written.split(","))
    for name in names:
        if any(character in name for character in "*?!"):
            raise SignatureRefused(f"{name!r} is a pattern, and an approval needs a person; name each one on a line")
        if not _PRINCIPAL.fullmatch(name):
            raise SignatureRefused(f"{name!r} is no principal, such as ana@example.org")
    return names


def _options(rest: str) -> tuple[dict[str, str], str]:
    found: dict[str, str] = {}
    at = 0
    while True:
        match = _OPTION.match(rest, at)
        if match is None:
            raise SignatureRefused(f"has options that cannot be read: {rest[at : at + 40]!r}")
        name, quoted, plain = match[1].lower(), match[2], match[3]
        if name == "cert-authority":
            raise SignatureRefused("is a certificate authority, which is not taken; list each person's own key")
        if name not in ("namespaces", "valid-after", "valid-before"):
            raise SignatureRefused(f"has an unknown option {match[1]!r}")
        value = quoted if quoted is not None else plain
        if name in found or not value:
            raise SignatureRefused(f"has the option {name!r} twice or without a value")
        found[name] = value
        at = match.end()
        if rest[at : at + 1] != ",":
            return found, rest[at:]
        at += 1


def _key(kind: str, written: str) -> SshKey:
    try:
        blob = base64.b64decode(written, validate=True)
    except (binascii.Error, ValueError):
        raise SignatureRefused("the key is no base64") from None
    key = key_of(blob)
    if key.kind != kind:
        raise SignatureRefused(f"calls a key {kind!r} that is {key.kind!r}")
    return key


def _time_us(text: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise SignatureRefused(f"{text!r} is no UTC time such as 20270131Z or 202701311200Z; the Z is needed")
    day, minute, second = match.groups()
    try:
        moment = datetime.strptime(f"{day}{minute or '0000'}{second or '00'}", "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise SignatureRefused(f"{text!r} is a time that there is not") from None
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _shown(time_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _matches(namespace: str, patterns: Sequence[str]) -> bool:
    """As OpenSSH matches a list of patterns: one that is negated and matches outweighs all others."""
    matched = False
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        expression = "".join(
            ".*" if letter == "*" else "." if letter == "?" else re.escape(letter) for letter in wanted
        )
        if re.fullmatch(expression, namespace):
            if wanted != pattern:
                return False
            matched = True
    return matched

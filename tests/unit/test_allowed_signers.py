"""The allowed-signers file: whose signature counts, for what and when; what is not exactly right is refused whole."""

from __future__ import annotations

import base64
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from policyd.errors import ConfigError, SignatureRefused
from policyd.revisions import sshsig
from policyd.revisions.allowed_signers import AllowedSigners, parse_allowed_signers, read_allowed_signers
from policyd.revisions.sshsig import parse, sign
from tests.programs import needs

# The same ones in every process: names of tests are made of them.
ANA, BEN, CLEO = (ed25519.Ed25519PrivateKey.from_private_bytes(bytes([nth] * 32)) for nth in range(3))
MESSAGE = b"a message"


def _public(key: ed25519.Ed25519PrivateKey) -> str:
    return f"ssh-ed25519 {base64.b64encode(sshsig._written(key)).decode()}"


def _us(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp()) * 1_000_000  # type: ignore[misc]  # a date in parts


NOW_US = _us(2026, 11, 24, 12)


def _signers(*lines: str) -> AllowedSigners:
    return parse_allowed_signers("".join(f"{line}\n" for line in lines).encode(), "signers")


def _by(signers: AllowedSigners, key: ed25519.Ed25519PrivateKey, namespace: str = "git", now_us: int = NOW_US) -> str:
    return signers.signed_by(parse(sign(key, MESSAGE, namespace).encode()), MESSAGE, namespace, now_us)


def test_a_signature_is_by_the_person_of_the_key() -> None:
    signers = _signers(
        "# who may sign",
        "",
        f"ana@example.org,a.sand@example.org {_public(ANA)} ana's laptop",
        f'\t"ben@example.org" NAMESPACES="git" {_public(BEN)}\r',
    )
    assert _by(signers, ANA) == "ana@example.org"
    assert _by(signers, BEN) == "ben@example.org"
    with pytest.raises(SignatureRefused, match=r"the key SHA256:.* is none of an allowed signer"):
        _by(signers, CLEO)
    with pytest.raises(SignatureRefused, match=r"ben@example\.org is not allowed to sign for 'policyd-approval@v1'"):
        _by(signers, BEN, "policyd-approval@v1")


def test_lines_that_share_a_principal_are_one_person() -> None:
    signers = _signers(
        f"ana@example.org {_public(ANA)}",
        f"sand@example.net {_public(BEN)}",
        f"SAND@example.net,Ana@example.org {_public(CLEO)}",
    )
    assert {_by(signers, key) for key in (ANA, BEN, CLEO)} == {"ana@example.org"}
    assert signers.person("SAND@EXAMPLE.NET") == "ana@example.org"
    assert signers.person("nobody@example.org") is None


def test_validity_is_that_of_the_moment_and_both_ends_belong_to_it() -> None:
    signers = _signers(f'ana@example.org valid-after="20260101Z",valid-before=202612312359Z {_public(ANA)}')
    assert _by(signers, ANA, now_us=_us(2026, 1, 1)) == "ana@example.org"
    assert _by(signers, ANA, now_us=_us(2026, 12, 31, 23, 59)) == "ana@example.org"
    with pytest.raises(SignatureRefused, match="not valid before 2026-01-01T00:00:00Z"):
        _by(signers, ANA, now_us=_us(2026, 1, 1) - 1)
    with pytest.raises(SignatureRefused, match="has expired at 2026-12-31T23:59:00Z"):
        _by(signers, ANA, now_us=_us(2026, 12, 31, 23, 59) + 1)


@pytest.mark.parametrize(
    ("namespaces", "taken"),
    [("git", True), ("file,git", True), ("*", True), ("g?t", True), ("!git,*", False), ("gi", False), ("g.t", False)],
)
def test_namespaces_are_patterns_as_openssh_has_them(namespaces: str, taken: bool) -> None:
    signers = _signers(f'ana@example.org namespaces="{namespaces}" {_public(ANA)}')
    if taken:
        assert _by(signers, ANA) == "ana@example.org"
    else:
        with pytest.raises(SignatureRefused, match="not allowed to sign"):
            _by(signers, ANA)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"*@example.org {_public(ANA)}", "is a pattern, and an approval needs a person"),
        (f"!ana@example.org {_public(ANA)}", "is a pattern"),
        (f"ana@example.org cert-authority {_public(ANA)}", "certificate authority"),
        (f"ana@example.org Cert-Authority,namespaces=git {_public(ANA)}", "certificate authority"),
        (f'ana@example.org no-touch="x" {_public(ANA)}', "unknown option 'no-touch'"),
        (f'ana@example.org namespaces="git",namespaces="file" {_public(ANA)}', "twice or without a value"),
        (f'ana@example.org namespaces="" {_public(ANA)}', "twice or without a value"),
        (f'ana@example.org namespaces="git {_public(ANA)}', "options that cannot be read"),
        (f"ana@example.org valid-before=20270101 {_public(ANA)}", "no UTC time such as 20270131Z"),
        (f"ana@example.org valid-before=20271301Z {_public(ANA)}", "a time that there is not"),
        (f"ana@example.org valid-before=2027Z {_public(ANA)}", "no UTC time"),
        ("ana@example.org", "has no key"),
        ("ana@example.org ssh-ed25519", "has no key"),
        ("ana@example.org ssh-ed25519 AAA", "no base64"),
        ("ana@example.org ssh-ed25519 AAAA", "the key is cut off"),
        (f"ana@example.org ssh-rsa {_public(ANA).split()[1]}", "calls a key 'ssh-rsa' that is 'ssh-ed25519'"),
        (f'"ana@example.org {_public(ANA)}', "a quote that does not end"),
        (f"ana@example.org,,ben@example.org {_public(ANA)}", "'' is no principal"),
        (f"änn@example.org {_public(ANA)}", "is no ASCII"),
        (f"ana@example.org\x0b {_public(ANA)}", "control character"),
        (f"ana@example.org {_public(ANA)}\rben@example.org", "control character"),
        (f"ana@example.org {_public(ANA)} {'x' * 20_000}", "longer than 16384 characters"),
        ("# nobody", "names nobody"),
    ],
)
def test_a_line_at_fault_is_named_and_refuses_the_file(line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_allowed_signers(f"{line}\n".encode(), "signers")
    assert str(caught.value.findings[0]).startswith("signers:1: ")


def test_a_key_stands_once() -> None:
    with pytest.raises(ConfigError, match="signers:2: is the key of line 1 again"):
        _signers(f"ana@example.org {_public(ANA)}", f"ben@example.org {_public(ANA)}")


def test_a_file_is_bounded_readable_and_not_for_everybody_to_write(tmp_path: Path) -> None:
    path = tmp_path / "signers"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_allowed_signers(path)
    path.write_text(f"ana@example.org {_public(ANA)}\n")
    assert read_allowed_signers(path).person("ana@example.org") == "ana@example.org"
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="everybody may write"):
        read_allowed_signers(path)
    path.chmod(0o644)
    path.write_bytes(b"#" * 1_048_577)
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        read_allowed_signers(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_allowed_signers(tmp_path)
    too_many = "".join(f"p{n}@example.org {_public(ed25519.Ed25519PrivateKey.generate())}\n" for n in range(1_001))
    with pytest.raises(ConfigError, match="more than 1000 signers"):
        parse_allowed_signers(too_many.encode(), "signers")


@needs("ssh-keygen")
def test_openssh_says_the_same_of_each_line(tmp_path: Path) -> None:
    signature, signers = tmp_path / "sig", tmp_path / "signers"
    signature.write_text(sign(ANA, MESSAGE, "git"))
    for options, taken in (
        ("", True),
        ('namespaces="git"', True),
        ('namespaces="!git,*"', False),
        ('namespaces="f*,gi?"', True),
        ('valid-after="20200101Z",valid-before="20990101Z"', True),
        ("valid-after=20980101Z", False),
        ("valid-before=20200101Z", False),
    ):
        line = f"ana@example.org {options} {_public(ANA)}".replace("  ", " ")
        signers.write_text(line)
        command = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", "ana@example.org", "-n", "git"]
        theirs = subprocess.run([*command, "-s", str(signature)], input=MESSAGE, capture_output=True, check=False)
        assert (theirs.returncode == 0) is taken, (options, theirs.stderr)
        now_us = int(datetime.now(UTC).timestamp() * 1_000_000)
        try:
            ours = _by(_signers(line), ANA, now_us=now_us) == "ana@example.org"
        except SignatureRefused:
            ours = False
        assert ours is taken, options

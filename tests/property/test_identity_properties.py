"""Proofs of identity: whatever is shown makes a known principal or ``Unauthenticated``; limits hold at each step."""

from __future__ import annotations

import asyncio
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.core.principal import Grant, Principal
from policyd.errors import ConfigError, LimitReached, Overloaded, Unauthenticated
from policyd.identity import limits
from policyd.identity.claims import ClaimRules, IssuerClaims
from policyd.identity.credentials import Authenticator, Certificates, Shown
from policyd.identity.keys import IssuerKeys, parse_keys
from policyd.identity.limits import Limiter
from policyd.identity.tokens import new_token, parse_tokens

KNOWN = Principal("token:known", (Grant("developer", "bank"),))
TOKEN, DIGEST = new_token()


class OneToken:
    def principal(self, digest: bytes) -> Principal | None:
        return KNOWN if digest.hex() == DIGEST else None


AUTHENTICATOR = Authenticator(
    OneToken(),
    IssuerClaims(ClaimRules("issuer", "policyd", {}), IssuerKeys("http://127.0.0.1:1/none")),
    Certificates({"sidecar.bank": (Grant("developer", "bank"),)}),
)
HEADERS = st.lists(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=100).map(lambda rest: b"Bearer " + rest),
        st.tuples(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40)).map(
            lambda parts: b"Bearer " + b".".join(parts)
        ),
        st.sampled_from([TOKEN, TOKEN[:-1], TOKEN + "a", TOKEN.upper()]).map(lambda token: b"Bearer " + token.encode()),
    ),
    max_size=3,
)
NAMES = st.none() | st.lists(st.sampled_from(["sidecar.bank", "sidecar.lab", "*", ""]), max_size=3)


@given(HEADERS, NAMES)
def test_whatever_is_shown(headers: list[bytes], names: list[str] | None) -> None:
    try:
        found = asyncio.run(AUTHENTICATOR.principal(Shown(headers, names)))
    except Unauthenticated:
        return
    if headers:
        assert found == KNOWN
        assert len(headers) == 1
        assert headers[0].split()[1].decode() == TOKEN
    else:
        assert found.name == "cert:sidecar.bank"
        assert names is not None
        assert "sidecar.bank" in names


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "leave"]), st.sampled_from("abc"), st.integers(0, 3_000)), max_size=60
)


@given(STEPS, st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_no_principal_exceeds_its_limits(
    steps: list[tuple[str, str, int]], in_flight_max: int, per_s: int, burst: int
) -> None:
    now_ms = 0
    limiter = Limiter(in_flight_max, per_s, burst, now_s=lambda: now_ms / 1_000)
    in_flight = dict.fromkeys("abc", 0)
    entered: dict[str, list[int]] = {name: [] for name in "abc"}
    for what, name, pause_ms in steps:
        now_ms += pause_ms
        if what == "leave":
            if in_flight[name]:
                limiter.leave(name)
                in_flight[name] -= 1
            continue
        try:
            limiter.enter(name)
        except LimitReached:
            full = in_flight[name] == in_flight_max
            recent = [at for at in entered[name] if now_ms - at < burst * 1_000 // per_s + 1_000]
            assert full or len(recent) >= burst, "refused without a reason"
            continue
        in_flight[name] += 1
        entered[name].append(now_ms)
        assert in_flight[name] <= in_flight_max
        for first, at in enumerate(entered[name]):
            during = len(entered[name]) - first
            assert during <= burst + (now_ms - at) * per_s / 1_000 + 1e-6


def test_the_books_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PRINCIPALS_MAX", 3)
    now = 0.0
    limiter = Limiter(1, 1, 2, now_s=lambda: now)
    for name in "abc":
        limiter.enter(name)
    with pytest.raises(Overloaded):
        limiter.enter("d")
    limiter.leave("a")
    with pytest.raises(Overloaded):
        limiter.enter("d")
    now = 10.0
    limiter.enter("d")
    with pytest.raises(LimitReached):
        limiter.enter("d")


@given(st.binary(max_size=300))
def test_a_file_of_tokens_never_breaks_the_reader(content: bytes) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_tokens(content, "tokens.yaml")
    assert raised.value.findings


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "tokens"),
        ("tokens: {}", "tokens"),
        ("tokens: [{name: a, sha256: short, grants: []}]", "sha256"),
        (f"tokens: [{{name: a, sha256: '{'0' * 64}', grants: [{{rol: x}}]}}]", "rol"),
        (f"tokens: [{{name: a, sha256: '{'0' * 64}', grants: [{{role: x, projects: []}}]}}]", "projects"),
        (f"tokens: [{{name: a, sha256: '{'0' * 64}', expires_at: 2027-01-01, grants: []}}]", "expires_at"),
        (f"tokens: [{{name: a b, sha256: '{'0' * 64}', grants: []}}]", "name"),
        (
            f"tokens: [{{name: a, sha256: '{'0' * 64}', grants: []}}, {{name: b, sha256: '{'0' * 64}', grants: []}}]",
            "stands twice",
        ),
    ],
)
def test_a_faulty_file_of_tokens_names_the_fault(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_tokens(text.encode(), "tokens.yaml")
    assert told in str(raised.value.findings[0])


def test_a_new_token_is_long_and_its_hash_is_of_it() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    for token, digest in tokens:
        assert len(token) >= 43
        assert sha256(token.encode()).hexdigest() == digest


@given(st.recursive(st.none() | st.booleans() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)))
def test_a_document_of_keys_never_breaks_the_reader(value: object) -> None:
    import json

    for document in (value, {"keys": value}, {"keys": [{"kid": "a", "kty": value}, value]}):
        with pytest.raises(ValueError, match=r"."):
            parse_keys(json.dumps(document).encode())

"""Deliveries of git servers: each form is taken once, and nothing is taken that is forged, old or replayed."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policyd.errors import PolicydError, PushReplayed, RequestError, Unauthenticated
from policyd.revisions.pushes import REMEMBERED_MAX, Pushes, PushForm

KEY = b"a secret of sixteen bytes or more"
NOW_S = 1_790_000_000
BODY = b'{"ref":"refs/heads/main"}'
Headers = dict[str, list[str]]


def pushes(form: PushForm) -> Pushes:
    return Pushes(form, KEY, frozenset({"refs/heads/main"}))


def github(body: bytes, key: bytes = KEY) -> Headers:
    return {"x-hub-signature-256": ["sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()]}


def gitlab(body: bytes, key: bytes = KEY, sent: str = "one", at: str = str(NOW_S)) -> Headers:
    signed = b64encode(hmac.digest(key, f"{sent}.{at}.".encode() + body, hashlib.sha256)).decode()
    return {"webhook-id": [sent], "webhook-timestamp": [at], "webhook-signature": [f"v1,{signed}"]}


def gitlab_token(token: bytes = KEY, sent: str = "one") -> Headers:
    return {"x-gitlab-token": [token.decode()], "x-gitlab-event-uuid": [sent]}


GOOD: list[tuple[PushForm, Headers]] = [
    ("github", github(BODY)),
    ("gitlab", gitlab(BODY)),
    ("gitlab", {**gitlab(BODY), "webhook-signature": ["v1,b2xk " + gitlab(BODY)["webhook-signature"][0]]}),
    ("gitlab_token", gitlab_token()),
]


@pytest.mark.parametrize(("form", "headers"), GOOD)
def test_a_delivery_is_taken_once(form: PushForm, headers: Headers) -> None:
    judge = pushes(form)
    judge.prove(headers, BODY, NOW_S)
    with pytest.raises(PushReplayed):
        judge.prove(headers, BODY, NOW_S + 1)


FORGED: list[tuple[PushForm, Headers]] = [
    ("github", {}),
    ("github", github(BODY + b" ")),
    ("github", github(BODY, b"another secret, of some length")),
    ("github", {"x-hub-signature-256": [github(BODY)["x-hub-signature-256"][0].removeprefix("sha256=")]}),
    ("github", {"x-hub-signature-256": github(BODY)["x-hub-signature-256"] * 2}),
    ("github", {"x-hub-signature-256": ["sha256=é"]}),
    ("github", gitlab_token()),
    ("gitlab", gitlab(BODY + b" ")),
    ("gitlab", gitlab(BODY, at=str(NOW_S - 301))),
    ("gitlab", gitlab(BODY, at=str(NOW_S + 301))),
    ("gitlab", gitlab(BODY, at="now")),
    ("gitlab", gitlab(BODY, at="٣")),
    ("gitlab", gitlab(BODY, at="-1")),
    ("gitlab", {**gitlab(BODY), "webhook-id": ["two"]}),
    ("gitlab", {**gitlab(BODY), "webhook-timestamp": [str(NOW_S + 1)]}),
    ("gitlab", gitlab_token()),
    ("gitlab_token", gitlab_token(b"another secret")),
    ("gitlab_token", gitlab_token(b"")),
    ("gitlab_token", {"x-gitlab-token": [KEY.decode()]}),
]


@pytest.mark.parametrize(("form", "headers"), FORGED)
def test_a_forged_or_old_delivery_is_refused_and_not_remembered(form: PushForm, headers: Headers) -> None:
    judge = pushes(form)
    for _ in range(2):
        with pytest.raises(Unauthenticated):
            judge.prove(headers, BODY, NOW_S)


def test_memory_is_bounded_and_the_newest_stay() -> None:
    judge = pushes("gitlab_token")
    for number in range(REMEMBERED_MAX + 100):
        judge.prove(gitlab_token(sent=str(number)), BODY, NOW_S)
    assert len(judge._taken) == REMEMBERED_MAX
    with pytest.raises(PushReplayed):
        judge.prove(gitlab_token(sent=str(REMEMBERED_MAX + 99)), BODY, NOW_S)


@pytest.mark.parametrize(
    ("document", "concerns"),
    [({}, True), ({"ref": "refs/heads/main"}, True), ({"ref": "refs/heads/mainx"}, False), ({"ref": "main"}, False)],
)
def test_only_what_is_followed_concerns(document: dict[str, str], concerns: bool) -> None:
    assert pushes("github").concerns(document) is concerns


def test_a_ref_is_a_text() -> None:
    with pytest.raises(RequestError):
        pushes("github").concerns({"ref": ["refs/heads/main"]})


NAMES = ["x-hub-signature-256", "webhook-id", "webhook-timestamp", "webhook-signature", "x-gitlab-token"]


@given(
    st.sampled_from(["github", "gitlab", "gitlab_token"]),
    st.dictionaries(st.sampled_from(NAMES), st.lists(st.text(st.characters(max_codepoint=255)), max_size=2)),
    st.binary(),
)
def test_no_guess_is_taken(form: PushForm, headers: Headers, body: bytes) -> None:
    with pytest.raises(PolicydError):
        pushes(form).prove(headers, body, NOW_S)

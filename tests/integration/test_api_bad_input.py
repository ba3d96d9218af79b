"""Bad input over HTTP: a problem document or a clean end of the connection; never a fault, an allow or a hang."""

from __future__ import annotations

import json
import socket
import threading
import time
from copy import deepcopy
from typing import Any

import httpx
import pytest

from policyd.core.workload import DecisionRequest
from policyd.errors import RequestError
from policyd.services.decisions import recordable
from tests.integration.conftest import read_all

HEAD = b"POST /v1/decisions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
MINIMAL = b'{"workload":{"tenant":"eu-bank","project":"support-chat","model":"llama-3.1-70b-instruct"%s}%s}'


def check_problem(api: Any, found: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Hold an answer against the contract of problem documents."""
    assert found.status_code == status, found.text[:500]
    assert found.headers["content-type"] == "application/problem+json"
    assert found.headers["cache-control"] == "no-store"
    document: dict[str, Any] = found.json()
    assert document["status"] == status
    assert document["code"] == code
    assert document["source"] == "policyd"
    assert document["request_id"] == found.headers["x-request-id"]
    assert document["detail"]
    assert document["remedy"]
    assert document["type"] == f"/docs/errors/{code}"
    assert api.client.get(document["type"]).status_code == 200
    assert "Traceback" not in found.text
    assert 'File "' not in found.text
    return document


def check_raw_problem(answer: bytes, status: int, code: str) -> None:
    """The same for an answer that was read from the socket."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert b"application/problem+json" in head.lower()
    assert json.loads(body)["code"] == code


def post(api: Any, content: bytes, **headers: str) -> httpx.Response:
    found: httpx.Response = api.client.post(
        "/v1/decisions", content=content, headers={"Content-Type": "application/json", **headers}
    )
    return found


def test_the_bodies_below_are_fine_but_for_their_fault(api: Any) -> None:
    assert post(api, MINIMAL % (b"", b"")).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 20_000,
        MINIMAL % (b"", b"") + b"x",
        MINIMAL % (b"", b"") * 2,
        MINIMAL % (b',"demand":{"input_tokens":NaN}', b""),
        MINIMAL % (b',"demand":{"input_tokens":Infinity}', b""),
        MINIMAL % (b',"demand":{"input_tokens":-Infinity}', b""),
        MINIMAL % (b',"demand":{"input_tokens":1e400}', b""),
        MINIMAL % (b',"demand":{"input_tokens":1.0}', b""),
        MINIMAL % (b',"demand":{"input_tokens":-1}', b""),
        MINIMAL % (b',"demand":{"input_tokens":9007199254740993}', b""),
        MINIMAL % (b',"demand":{"input_tokens":' + b"9" * 4_000 + b"}", b""),
        MINIMAL % (b',"demand":{"input_tokens":' + b"9" * 9_000 + b"}", b""),
        MINIMAL % (b',"demand":{"input_tokens":' + b"9" * 5_000 + b',"input_tokens":5}', b""),
        MINIMAL % (b',"demand":{"input_tokens":"1"}', b""),
        MINIMAL % (b',"demand":{"input_tokens":true}', b""),
        MINIMAL % (b',"demand":{"hourly":[1,2]}', b""),
        MINIMAL % (b',"resources":{"gpu_count":0}', b""),
        MINIMAL % (b',"labels":{"a":"\xff\xfe"}', b""),
        MINIMAL % (b',"labels":{"a":"\\ud800"}', b""),
        MINIMAL % (b',"labels":{"\xc3\xa9":"b"}', b""),
        MINIMAL % (b',"labels":{"a":"' + b"x" * 300 + b'"}', b""),
        MINIMAL % (b"", b',"options":{"limit":0}'),
        MINIMAL % (b"", b',"options":{"limit":1001}'),
        MINIMAL % (b"", b',"options":{"reserve":1}'),
        b"\xef\xbb\xbf" + MINIMAL % (b"", b""),
        (MINIMAL % (b"", b"")).decode().encode("utf-16"),
        b'{"workload":{"model":"%s"}}' % (b"m" * 129),
        b'{"workload":{"model":"a b"}}',
        b'{"workload":{"model":"\\u0000"}}',
        b'{"workload":{"model":"../../etc/passwd\\n"}}',
    ],
    ids=lambda content: repr(content[-50:]),
)
def test_a_body_that_cannot_be_read(api: Any, content: bytes) -> None:
    check_problem(api, post(api, content), 400, "request.invalid")


@pytest.mark.parametrize(
    ("inside", "beside", "where"),
    [
        (b',"tenant":"eu-hospital"', b"", "workload.tenant"),
        (b"", b',"workload":{"model":"x"}', "workload"),
        (b',"data":{"classification":"restricted","classification":"public"}', b"", "workload.data.classification"),
        (b',"labels":{"a":"1","a":"1"}', b"", "workload.labels.a"),
        (b',"labels":{"a":"1","\\u0061":"1"}', b"", "workload.labels.a"),
    ],
)
def test_a_key_that_stands_twice(api: Any, inside: bytes, beside: bytes, where: str) -> None:
    document = check_problem(api, post(api, MINIMAL % (inside, beside)), 400, "request.invalid")
    assert {"where": where, "message": f"`{where}` stands twice"} in document["findings"]


def _fields(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, child in value.items():
            found += _fields(child, (*path, key))
    return found


def test_null_is_refused_for_every_field(api: Any, bank_chat: dict[str, Any]) -> None:
    for path in _fields(bank_chat):
        asked = deepcopy(bank_chat)
        around = asked
        for key in path[:-1]:
            around = around[key]
        around[path[-1]] = None
        document = check_problem(api, api.client.post("/v1/decisions", json=asked), 400, "request.invalid")
        assert ".".join(path) in [finding["where"] for finding in document["findings"]]


@pytest.mark.parametrize(
    ("path", "written", "meant"),
    [
        ((), "workloads", "workload"),
        (("workload",), "tenat", "tenant"),
        (("workload", "data"), "clasification", "classification"),
        (("workload", "demand"), "max_tokens", "max_output_tokens"),
        (("options",), "limits", "limit"),
    ],
)
def test_an_unknown_field_is_refused_naming_the_nearest(
    api: Any, bank_chat: dict[str, Any], path: tuple[str, ...], written: str, meant: str
) -> None:
    around: Any = bank_chat
    for key in path:
        around = around[key]
    around[written] = "x"
    document = check_problem(api, api.client.post("/v1/decisions", json=bank_chat), 400, "request.invalid")
    finding = next(found for found in document["findings"] if found["where"] == ".".join((*path, written)))
    assert f"did you mean `{meant}`?" in finding["message"]


def test_many_faults_are_told_shortly_and_soon(api: Any) -> None:
    fields = ",".join(f'"{"f" * 20}{number}":{number}' for number in range(7_000))
    started = time.monotonic()
    found = post(api, f'{{"workload":{{"model":"x",{fields}}}}}'.encode())
    document = check_problem(api, found, 400, "request.invalid")
    assert len(document["findings"]) == 50
    assert len(found.content) < 100_000
    assert time.monotonic() - started < 5
    found = post(api, b'{"%s":1}' % (b"k" * 200_000))
    check_problem(api, found, 400, "request.invalid")
    assert len(found.content) < 10_000


@pytest.mark.parametrize(
    ("field", "value", "status", "code"),
    [
        ("tenant", "eu-banc", 422, "request.unknown_name"),
        ("project", "nothing", 422, "request.unknown_name"),
        ("model", "llama-3.1-71b-instruct", 422, "request.unknown_name"),
        ("model_version", "1999-01", 422, "request.unknown_name"),
        ("sla_class", "realtimer", 422, "request.unknown_name"),
        ("environment", "production", 400, "request.invalid"),
        ("environment", "experiment", 403, "identity.forbidden"),
        ("tenant", "eu-bаnk", 400, "request.invalid"),  # noqa: RUF001 - the letter in the middle is Cyrillic
        ("tenant", "еu-bank", 400, "request.invalid"),  # noqa: RUF001
        ("tenant", "eu-bank\u200b", 400, "request.invalid"),
        ("tenant", "EU-BANK", 422, "request.unknown_name"),
        ("tenant", "eu-bank' OR '1'='1", 400, "request.invalid"),
        ("tenant", "../eu-hospital", 400, "request.invalid"),
        ("model", 'x"]} allow := true', 400, "request.invalid"),
        ("data", {"residency": ["UK"]}, 422, "request.unknown_name"),
        ("data", {"residency": []}, 400, "request.invalid"),
        ("data", {"residency": ["EU"] * 257}, 400, "request.invalid"),
        ("data", {"residency": ["US"]}, 403, "workload.loosens"),
        ("data", {"classification": "public"}, 403, "workload.loosens"),
        ("data", {"classification": "secret"}, 422, "request.unknown_name"),
        ("data", {"sources": ["no-such-source"]}, 422, "request.unknown_name"),
    ],
)
def test_names_and_values_that_do_not_fit(
    api: Any, bank_chat: dict[str, Any], field: str, value: Any, status: int, code: str
) -> None:
    bank_chat["workload"][field] = value
    check_problem(api, api.client.post("/v1/decisions", json=bank_chat), status, code)


def test_a_long_refused_request_is_recorded_by_its_digest(api: Any, bank_chat: dict[str, Any]) -> None:
    bank_chat["workload"]["data"]["residency"] = [f"{'x' * 125}{number}" for number in range(256)]
    found = api.client.post("/v1/decisions", json=bank_chat)
    document = check_problem(api, found, 422, "request.unknown_name")
    listed = api.client.get("/v1/decisions", params={"request_id": document["request_id"]}).json()["items"]
    assert [item["kind"] for item in listed] == ["refusal"]
    assert listed[0]["asked"]["bytes"] > 32_768


def test_a_decision_too_long_for_the_log_is_refused(api: Any, bank_chat: dict[str, Any]) -> None:
    request = DecisionRequest.model_validate_json(json.dumps(bank_chat))
    made = api.run(api.parts.decisions.decide(request, api.parts.principal, "long")).made
    labels = tuple((f"label-{number}", "\x00" * 256) for number in range(64))
    with pytest.raises(RequestError, match="cannot be recorded"):
        recordable(made._replace(workload=made.workload._replace(labels=labels)), None)


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp",
     "application/json; charset=utf-16", "application/json; charset=latin-1", "text/json", "*/*"],
)  # fmt: skip
def test_what_is_not_called_json(api: Any, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    found = api.client.post("/v1/decisions", content=MINIMAL % (b"", b""), headers=headers)
    check_problem(api, found, 415, "request.media_type")


def test_json_may_say_that_it_is_utf_8(api: Any) -> None:
    for content_type in ("application/json; charset=utf-8", "Application/JSON;charset=UTF-8"):
        assert post(api, MINIMAL % (b"", b""), **{"Content-Type": content_type}).status_code == 200
    check_problem(api, post(api, MINIMAL % (b"", b""), **{"Content-Encoding": "gzip"}), 415, "request.media_type")


def test_a_body_over_the_limit(api: Any) -> None:
    check_problem(api, post(api, b" " * 10_000_000), 413, "request.too_large")

    def chunks() -> Any:
        for _ in range(40):
            yield b" " * 65_536

    found = api.client.post("/v1/decisions", content=chunks(), headers={"Content-Type": "application/json"})
    check_problem(api, found, 413, "request.too_large")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/v1/decisions", "GET, POST"),
        ("DELETE", "/v1/decisions/x", "GET"),
        ("POST", "/v1/pools", "GET"),
        ("PATCH", "/livez", "GET"),
        ("PUT", "/v1/decisions/batch", "POST"),  # not GET, though /v1/decisions/{id} has the same form
    ],
)
def test_a_method_that_is_not_answered(api: Any, method: str, path: str, allow: str) -> None:
    found = api.client.request(method, path)
    check_problem(api, found, 405, "request.method")
    assert found.headers["allow"] == allow


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1", "/v1/decisions/", "/v2/decisions", "/docs", "/v1/decisions/batch", "/v1/simulation",
        "/v1/decisions/1", "/v1/decisions/01990000-0000-7000-8000-000000000000",
        "/v1/decisions/01990000-0000-7000-8000-000000000000/explanation",
        "/v1/decisions/'%3B%20DROP%20TABLE%20entry%3B--", "/v1/decisions/%00", "/v1/decisions/%ff%fe",
        "/v1/pools/nowhere", "/v1/pools/..%2f..%2fetc%2fpasswd", "/v1/pools/%00", "/v1/pools/" + "x" * 5_000,
        "/docs/errors/none",
    ],
)  # fmt: skip
def test_a_path_that_leads_nowhere(api: Any, path: str) -> None:
    check_problem(api, api.client.get(path), 404, "not_found")


@pytest.mark.parametrize(
    "query",
    [
        "tenat=eu-bank", "tenant=", "tenant=a&tenant=b", "limit=0", "limit=-1", "limit=1001", "limit=1e2",
        "limit=%D9%A1", "limit=99999999999999999999", "cursor=x", "cursor=%00", "cursor=" + "A" * 5_000, "cursor=W10",
        "from=yesterday",
        "from=2026-01-01T00:00:00", "from=2026-01-01T00:00:00%2B02:00", "tenant=%ff", "from=99999-01-01",
        "&".join(f"tenant{number}=x" for number in range(100)),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_understood(api: Any, query: str) -> None:
    check_problem(api, api.client.get(f"/v1/decisions?{query}"), 400, "request.invalid")


def test_a_misspelt_filter_names_the_nearest(api: Any) -> None:
    document = check_problem(api, api.client.get("/v1/decisions?tenat=x"), 400, "request.invalid")
    assert "did you mean `tenant`?" in document["detail"]


@pytest.mark.parametrize("value", ["'; DROP TABLE entry;--", "eu-bank' OR '1'='1", "%", "eu-bаnk", "x" * 5_000])  # noqa: RUF001
def test_a_search_takes_values_as_they_are(api: Any, value: str) -> None:
    assert api.client.get("/v1/decisions", params={"tenant": value}).json() == {"items": [], "next": None}
    assert api.client.get("/v1/decisions", params={"tenant": "eu-bank", "limit": 1}).json()["items"] != []


def test_a_cursor_continues_only_its_own_list(api: Any, bank_chat: dict[str, Any]) -> None:
    for _ in range(2):
        api.client.post("/v1/decisions", json=bank_chat)
    search = api.client.get("/v1/decisions", params={"tenant": "eu-bank", "limit": 1}).json()["next"]
    pools = api.client.get("/v1/pools", params={"limit": 1}).json()["next"]
    for path, cursor in [
        ("/v1/decisions?outcome=allow", search),
        ("/v1/decisions?tenant=eu-bank", pools),
        ("/v1/models?limit=1", pools),
        ("/v1/pools?limit=1", search),
    ]:
        check_problem(api, api.client.get(f"{path}&cursor={cursor}"), 400, "request.invalid")


@pytest.mark.parametrize("path", ["/v1/pools?kind=spot", "/v1/fleet?x=1", "/v1/pools/onprem-fra-h100?x=1"])
def test_a_parameter_that_nobody_reads(api: Any, path: str) -> None:
    check_problem(api, api.client.get(path), 400, "request.invalid")


def test_an_explanation_of_an_unknown_form(api: Any) -> None:
    found = api.client.get("/v1/decisions/01990000-0000-7000-8000-000000000000/explanation?format=pdf")
    check_problem(api, found, 400, "request.invalid")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS greeting
        b"hello\r\n\r\n",
        b"GET /livez HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nBad Header: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    ],
)
def test_what_is_not_http(api: Any, data: bytes) -> None:
    check_raw_problem(api.raw(data), 400, "request.invalid")


def test_a_broken_chunk_ends_the_connection(api: Any) -> None:
    answer = api.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n")
    assert b"200" not in answer.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "data",
    [
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(10_000)) + b"\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Endless: " + b"a" * 300_000,
    ],
    ids=["header", "path", "many", "endless"],
)
def test_a_head_over_the_limit(api: Any, data: bytes) -> None:
    check_raw_problem(api.raw(data, finish=False), 431, "request.headers_too_large")


def test_a_head_below_the_limit_with_a_long_body_is_taken(api: Any) -> None:
    labels = json.dumps({f"l{number}": "x" * 250 for number in range(32)}).encode()
    content = MINIMAL % (b',"labels":' + labels, b"") + b" " * 200_000
    assert post(api, content, **{"X-Padding": "p" * 60_000}).status_code == 200


@pytest.mark.parametrize("sent", [0, 1, 30])
def test_a_body_that_breaks_off(api: Any, sent: int) -> None:
    content = MINIMAL % (b"", b"")
    before = api.client.get("/v1/decisions", params={"limit": 1}).json()["items"]
    assert api.raw(HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content[:sent]) == b""
    assert api.client.get("/v1/decisions", params={"limit": 1}).json()["items"] == before


def test_a_caller_that_hangs_up_leaves_the_server_well(api: Any, bank_chat: dict[str, Any]) -> None:
    content = json.dumps(bank_chat).encode()
    host, port = api.address.removeprefix("http://").split(":")
    for read in (0, 100):
        for _ in range(10):
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(content) + content)
                if read:
                    assert len(connection.recv(read)) > 0
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    assert api.client.get("/readyz").status_code == 200
    assert api.client.post("/v1/decisions", json=bank_chat).status_code == 200


def test_the_rest_of_a_refused_body_is_no_head(api: Any) -> None:
    """What is refused early leaves body on its way: that is thrown away, and the next request is answered."""

    async def stall() -> None:
        time.sleep(0.3)  # noqa: ASYNC251  # the server's loop is held, so that the next bytes reach it in one read

    host, port = api.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=15) as connection:
        early = b" " * 300_000
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(early), early))
        heard = b""
        while not heard.endswith(b"}"):
            heard += connection.recv(65_536)
        assert heard.startswith(b"HTTP/1.1 413")
        stalled = threading.Thread(target=api.run, args=[stall()])
        stalled.start()
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (100_000, b" " * 100_000))
        stalled.join()
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_trailers_without_an_end(api: Any) -> None:
    data = HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"X-Endless: " + b"a" * 2_000_000
    answer = api.raw(data, finish=False, timeout_s=5)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_two_requests_at_once_on_one_connection_are_answered_in_order(api: Any) -> None:
    answer = api.raw(
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: one\r\n\r\n"
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: two\r\nConnection: close\r\n\r\n",
        finish=False,
    )
    assert answer.index(b"x-request-id: one") < answer.index(b"x-request-id: two")

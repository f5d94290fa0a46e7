"""Bad requests at the public door: one OpenAI error object each, with the right status and a stable code (C-4, R-003-9)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.door import Connection, Door, chat, head
from tests.gateway import MODEL, PAIR, Gateway
from tests.upstream.process import Upstream

HELLO = [{"role": "user", "content": "Salve!"}]


def body(**changes: Any) -> bytes:
    """A good request with changes; a change to `...` takes the parameter out."""
    document = {"model": MODEL, "messages": HELLO, **changes}
    return json.dumps({name: value for name, value in document.items() if value is not ...}).encode()


def nested(levels: int) -> bytes:
    """A request with a value this deep in an unknown parameter."""
    return body(x_deep=0).replace(b'"x_deep": 0', b'"x_deep": ' + b"[" * levels + b"]" * levels)


BAD_BODIES: list[tuple[str, bytes, int, str, str | None]] = [
    ("empty", b"", 400, "invalid_json", None),
    ("not json", b"{model: gpt}", 400, "invalid_json", None),
    ("cut", b'{"model": "one/scripted", "messages": [', 400, "invalid_json", None),
    ("two documents", body() + body(), 400, "invalid_json", None),
    ("a lone quote", b'"', 400, "invalid_json", None),
    ("NaN", body(temperature=float("nan")), 400, "invalid_json", None),
    ("Infinity", body(temperature=float("inf")), 400, "invalid_json", None),
    ("NaN in an unknown parameter", body(x_unknown=float("nan")), 400, "invalid_json", None),
    ("a control character in a string", b'{"model": "a\x01b"}', 400, "invalid_json", None),
    ("a byte order mark", b"\xef\xbb\xbf" + body(), 400, "invalid_json", None),
    ("UTF-16", body().decode().encode("utf-16"), 400, "invalid_utf8", None),
    ("invalid UTF-8 in the text", body().replace(b"Salve", b"Sal\xff\xfe"), 400, "invalid_utf8", None),
    ("a cut UTF-8 character", body().replace(b"Salve", b"Sal\xf0\x9f"), 400, "invalid_utf8", None),
    (
        "invalid UTF-8 in an unknown parameter",
        body(x_unknown="@").replace(b"@", b"\xc0\xaf"),
        400,
        "invalid_utf8",
        None,
    ),
    ("an array", b"[]", 400, "invalid_type", None),
    ("a string", b'"hello"', 400, "invalid_type", None),
    ("null", b"null", 400, "invalid_type", None),
    ("a number", b"17", 400, "invalid_type", None),
    ("an empty object", b"{}", 400, "missing_required_parameter", "model"),
    ("no model", body(model=...), 400, "missing_required_parameter", "model"),
    ("a null model", body(model=None), 400, "invalid_type", "model"),
    ("a number as model", body(model=4), 400, "invalid_type", "model"),
    ("an empty model", body(model=""), 400, "invalid_value", "model"),
    ("a huge model", body(model="m" * 100_000), 400, "invalid_value", "model"),
    ("no messages", body(messages=...), 400, "missing_required_parameter", "messages"),
    ("empty messages", body(messages=[]), 400, "empty_array", "messages"),
    ("null messages", body(messages=None), 400, "invalid_type", "messages"),
    ("messages as text", body(messages="hi"), 400, "invalid_type", "messages"),
    ("messages as object", body(messages={"role": "user"}), 400, "invalid_type", "messages"),
    ("a message as text", body(messages=["hi"]), 400, "invalid_type", "messages[0]"),
    (
        "a message without role",
        body(messages=[{"content": "a"}]),
        400,
        "missing_required_parameter",
        "messages[0].role",
    ),
    ("a role as number", body(messages=[{"role": 1, "content": "a"}]), 400, "invalid_type", "messages[0].role"),
    (
        "content as number",
        body(messages=[*HELLO, {"role": "user", "content": 3}]),
        400,
        "invalid_type",
        "messages[1].content",
    ),
    ("temperature as text", body(temperature="hot"), 400, "invalid_type", "temperature"),
    ("stream as text", body(stream="yes"), 400, "invalid_type", "stream"),
    ("stream as number", body(stream=1), 400, "invalid_type", "stream"),
    ("stream_options as text", body(stream=True, stream_options="usage"), 400, "invalid_type", "stream_options"),
    ("max_tokens as fraction", body(max_tokens=1.5), 400, "invalid_type", "max_tokens"),
    ("tools as object", body(tools={}), 400, "invalid_type", "tools"),
    ("a tool without type", body(tools=[{"function": {}}]), 400, "missing_required_parameter", "tools[0].type"),
    ("stop as number", body(stop=3), 400, "invalid_type", "stop"),
    ("nested 1,000 deep", nested(1_000), 400, "too_deep", None),
    ("nested 100,000 deep", nested(100_000), 400, "too_deep", None),
    ("nested and never closed", b"[" * 500_000, 400, "invalid_type", None),
    ("nested and never closed in a parameter", b'{"x":' + b"[" * 500_000, 400, "too_deep", None),
    ("an unknown model", body(model="one/unheard-of"), 404, "model_not_found", "model"),
    ("an unknown provider", body(model="nobody/scripted"), 404, "model_not_found", "model"),
    ("a model without provider", body(model="scripted"), 404, "model_not_found", "model"),
    ("a model with odd characters", body(model='one/\u0000\n"<script>'), 404, "model_not_found", "model"),
]


@pytest.mark.parametrize(
    ("document", "status", "code", "param"), [case[1:] for case in BAD_BODIES], ids=[c[0] for c in BAD_BODIES]
)
def test_a_bad_body_gets_one_error_object_and_the_connection_stays_sane(
    door: Door, document: bytes, status: int, code: str, param: str | None
) -> None:
    reply = door.post(document)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (status, code, param), reply
    assert reply.error["type"] == "invalid_request_error"
    assert reply.header("x-request-id")
    assert len(reply.body) < 4_000, "an error must not throw the whole request back"


def test_a_bad_request_never_reaches_an_upstream(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    assert door.chat(MODEL, mark, temperature="hot").status == 400
    assert door.chat(MODEL, mark).status == 200
    assert len(upstream.seen(mark)) == 1


@pytest.mark.parametrize(
    "credential",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "hrt_sk_without_a_scheme",
        "Basic dXNlcjpwYXNz",
        "Bearer hrt_sk_nobody_knows_this_one",
        "Bearer sk-proj-of-another-house",
        "Bearer " + "x" * 20_000,
        "Bearer \u00e9\u00e9\u00e9",
        "Bearer ' or 1=1 --",
        "Bearer a b c",
    ],
)
def test_a_missing_or_unknown_key_gets_401(door: Door, credential: str | None) -> None:
    """R-000-63, R-003-10."""
    reply = door.post({"model": MODEL, "messages": HELLO}, authorization=credential)
    assert reply.status == 401
    assert reply.error["code"] in ("invalid_api_key", "missing_api_key")
    assert reply.error["type"] == "authentication_error"
    if credential:
        assert credential.removeprefix("Bearer ").strip()[:200] not in reply.body.decode() or len(credential) < 8


def test_the_scheme_of_a_key_is_not_case_sensitive(door: Door, upstream: Upstream) -> None:
    """RFC 9110, 11.1."""
    reply = door.post(chat(MODEL, upstream.plan("ok")), authorization=f"bearer {door.key}")
    assert reply.status == 200


def test_a_key_may_only_use_its_models(gateway: Gateway, upstream: Upstream) -> None:
    narrow = Door(gateway.port, gateway.new_key("narrow", "--models", "two/*"))
    mark = upstream.plan("ok")
    refused = narrow.chat(MODEL, mark)
    assert (refused.status, refused.error["code"], refused.error["type"]) == (
        403,
        "model_not_allowed",
        "permission_error",
    )
    assert narrow.chat(PAIR, mark).status == 403
    assert narrow.chat("two/scripted", mark).status == 200
    assert [one.provider for one in upstream.seen(mark)] == ["two"]
    listed = narrow.call("GET", "/v1/models").json["data"]
    assert listed
    assert all(model["id"].startswith("two/") for model in listed)
    assert narrow.call("GET", "/v1/models/one/scripted").status in (403, 404)


@pytest.mark.parametrize(
    "path", ["/v1", "/v1/", "/v1/chat", "/v1/completionz", "/v1/chat/completions/", "/nowhere", "/v1/nothing/speech"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_address_gets_404(door: Door, method: str, path: str) -> None:
    reply = door.call(method, path, b"{}" if method == "POST" else None)
    assert (reply.status, reply.error["code"]) == (404, "unknown_url")
    assert reply.header("x-request-id")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", {"POST"}),
        ("PUT", "/v1/chat/completions", {"POST"}),
        ("DELETE", "/v1/chat/completions", {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("DELETE", "/v1/models/one/scripted", {"GET", "HEAD"}),
        ("POST", "/health", {"GET"}),
    ],
)
def test_a_wrong_method_gets_405_and_is_told_the_right_ones(
    door: Door, method: str, path: str, allowed: set[str]
) -> None:
    reply = door.call(method, path, b"{}" if method in ("POST", "PUT") else None)
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert allowed <= {one.strip() for one in (reply.header("allow") or "").split(",")}


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/one/scripted", "/health"])
def test_head_is_answered_like_get_without_a_body(door: Door, path: str) -> None:
    reply = door.call("HEAD", path)
    assert (reply.status, reply.body) == (200, b"")


def test_options_is_answered_once_and_is_no_server_error(door: Door) -> None:
    assert door.call("OPTIONS", "/v1/chat/completions").status in (200, 204, 405)


@pytest.mark.parametrize(
    "changes",
    [
        {"content_type": "text/plain"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": "multipart/form-data; boundary=x"},
        {"content_type": None},
        {"content_type": "application/jsonp"},
        {"content_encoding": "gzip"},
    ],
)
def test_a_body_that_is_not_announced_as_plain_json_gets_415(door: Door, changes: dict[str, str | None]) -> None:
    reply = door.post({"model": MODEL, "messages": HELLO}, **changes)
    assert reply.status == 415
    assert reply.error["code"].startswith("unsupported_")


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", "Application/JSON", "application/json;charset=UTF-8"]
)
def test_json_may_be_announced_in_any_spelling(door: Door, upstream: Upstream, kind: str) -> None:
    assert door.post(chat(MODEL, upstream.plan("ok")), content_type=kind).status == 200


def test_a_body_over_the_limit_gets_413_before_it_is_sent(door: Door) -> None:
    """The gateway of these tests takes 1,000,000 bytes."""
    announced = head("POST", "/v1/chat/completions", door.headers(b"", {"content-length": "1000001"}))
    with Connection(door.port) as connection:
        connection.send(announced)
        reply = connection.read()
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert door.call("GET", "/v1/models").status == 200


def test_a_body_over_the_limit_gets_413_also_when_the_client_sends_it_first(door: Door) -> None:
    reply = door.post(body(x_fill="x" * 3_000_000))
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")


def test_a_chunked_body_over_the_limit_gets_413(door: Door) -> None:
    opening = head(
        "POST", "/v1/chat/completions", door.headers(b"", {"content-length": None, "transfer-encoding": "chunked"})
    )
    with Connection(door.port) as connection:
        connection.send(opening)
        for _ in range(20):
            connection.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        reply = connection.read()
        assert (reply.status, reply.error["code"]) == (413, "request_too_large")
        connection.send(b"0\r\n\r\n")
    assert door.call("GET", "/v1/models").status == 200


def test_a_body_just_under_the_limit_is_carried_whole(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    filler = "ü" * 400_000
    document = json.dumps(chat(MODEL, mark, x_fill=filler), ensure_ascii=False).encode()
    assert 800_000 < len(document) <= 1_000_000
    assert door.post(document).status == 200
    assert upstream.wait(mark)[0].json["x_fill"] == filler


def test_a_chunked_request_is_carried(door: Door, upstream: Upstream) -> None:
    mark = upstream.plan("ok")
    document = json.dumps(chat(MODEL, mark)).encode()
    headers = door.headers(b"", {"content-length": None, "transfer-encoding": "chunked"})
    pieces = b"".join(b"%x\r\n%b\r\n" % (1, document[place : place + 1]) for place in range(len(document)))
    assert door.exchange(head("POST", "/v1/chat/completions", headers) + pieces + b"0\r\n\r\n").status == 200


def test_an_expectation_of_100_continue_is_met(door: Door, upstream: Upstream) -> None:
    document = json.dumps(chat(MODEL, upstream.plan("ok"))).encode()
    with Connection(door.port) as connection:
        connection.send(head("POST", "/v1/chat/completions", door.headers(document, {"expect": "100-continue"})))
        assert connection.file.readline().startswith(b"HTTP/1.1 100")
        assert connection.file.readline() == b"\r\n"
        connection.send(document)
        assert connection.read().status == 200


def test_an_unknown_verbosity_gets_400(door: Door, upstream: Upstream) -> None:
    """R-000-26."""
    mark = upstream.plan("ok")
    reply = door.post(chat(MODEL, mark), x_hortator_verbosity="loud")
    assert (reply.status, reply.error["code"]) == (400, "invalid_value")
    for word in ("default", "verbose", "full"):
        assert door.post(chat(MODEL, mark), x_hortator_verbosity=word).status == 200

"""The SDK's way to the server: addresses, keys, kept connections, what is tried again and what never is."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hortator.client import (
    AuthenticationError,
    ConflictError,
    HortatorClient,
    HortatorConnectionError,
    HortatorError,
    HortatorTimeout,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    TaskError,
)
from hortator.client.exchange import USER_AGENT
from tests.client.conftest import KEY
from tests.client.fake import CLOSE, HANG_UP, Asked, Fake, refused, reply, running_fake, stream

MODELS = reply({"object": "list", "data": [{"id": "hortator/default", "object": "model", "created": 1}]})
HELLO = [{"role": "user", "content": "Salve!"}]
ANSWER = {"id": "c1", "model": "m", "choices": [{"index": 0, "message": {"role": "assistant", "content": "Ave!"}}]}
TASK = {"id": "t1", "root_id": "t1", "status": "Pending"}


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/legal/hortator", "/legal/hortator/v1"])
def test_a_base_url_may_have_a_path_and_v1(fake: Fake, make: Callable[..., Any], suffix: str) -> None:
    """R-000-13, R-000-53."""
    prefix = "/legal/hortator" if "legal" in suffix else ""
    fake.on(f"{prefix}/v1/models", MODELS)
    assert [model.id for model in make(KEY, fake.url + suffix).list_models()] == ["hortator/default"]


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x", "http://", "http://u:p@x", "http://x?a=b", "http://x:0x1"]
)
def test_what_is_no_base_url_is_refused_at_once(make: Callable[..., Any], url: str) -> None:
    with pytest.raises(ValueError):
        make(KEY, url)


def test_key_and_address_come_from_the_environment(
    fake: Fake, make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.on("/v1/models", MODELS)
    monkeypatch.setenv("HORTATOR_API_KEY", "hrt_from_the_environment")
    monkeypatch.setenv("HORTATOR_BASE_URL", fake.url)
    client = make()
    assert client.base_url == fake.url
    client.list_models()
    assert fake.asked[0].headers["authorization"] == "Bearer hrt_from_the_environment"
    assert fake.asked[0].headers["user-agent"] == USER_AGENT


def test_no_key_is_an_error_before_any_request(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HORTATOR_API_KEY", raising=False)
    with pytest.raises(AuthenticationError) as raised:
        make(base_url="http://127.0.0.1:1")
    assert raised.value.code == "missing_api_key"


def test_a_key_cannot_smuggle_headers(fake: Fake, make: Callable[..., Any]) -> None:
    with pytest.raises(ValueError):
        make("hrt\r\nx-evil: 1", fake.url).list_models()
    assert fake.asked == []


def test_a_connection_is_kept(fake: Fake, client: Any) -> None:
    fake.on("/v1/models", MODELS)
    for _ in range(5):
        client.list_models()
    assert fake.connections == 1


def test_a_kept_connection_that_died_is_not_used(fake: Fake, client: Any) -> None:
    fake.on("/v1/chat/completions", lambda _: [*reply(ANSWER), CLOSE])
    for _ in range(3):
        assert client.chat.completions.create(model="m", messages=HELLO).choices[0].message.content == "Ave!"
        assert fake.closed.acquire(timeout=20)
    assert fake.connections == len(fake.asked) == 3


def test_several_threads_share_a_client(fake: Fake) -> None:
    meeting = threading.Barrier(4, timeout=20)

    def together(_: Asked) -> list[bytes]:
        meeting.wait()
        return MODELS

    fake.on("/v1/models", together)
    with HortatorClient(KEY, fake.url) as client:
        threads = [threading.Thread(target=client.list_models) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(fake.asked) == fake.connections == 4


def test_a_closed_client_says_so(fake: Fake, client: Any) -> None:
    client.close()
    with pytest.raises(HortatorError) as raised:
        client.list_models()
    assert raised.value.code == "client_closed"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (409, ConflictError),
        (410, ConflictError),
        (413, InvalidRequestError),
        (429, RateLimitError),
        (500, ServerError),
        (502, ServerError),
        (503, ServerError),
    ],
)
def test_an_error_has_a_kind_and_all_that_the_server_said(
    fake: Fake, make: Callable[..., Any], status: int, kind: type[HortatorError]
) -> None:
    fake.on("/v1/models", refused(status, "some_code", "Not today.", x_request_id="req-1", retry_after="7"))
    with pytest.raises(kind) as raised:
        make(KEY, fake.url, max_retries=0).list_models()
    error = raised.value
    assert (error.status, error.code, error.message) == (status, "some_code", "Not today.")
    assert (error.request_id, error.retry_after) == ("req-1", 7.0)


def test_a_team_that_ended_without_an_answer_is_a_task_error(fake: Fake, client: Any) -> None:
    fake.on("/v1/chat/completions", refused(504, "task_timed_out", "Too late.", x_hortator_task_id="t9"))
    with pytest.raises(TaskError) as raised:
        client.run("Take your time.")
    assert (raised.value.phase, raised.value.task_id, raised.value.status) == ("TimedOut", "t9", 504)


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"", b'{"error": "plain"}', b"[1]", b"\xff\xfe"])
def test_an_error_of_something_else_is_told_too(fake: Fake, make: Callable[..., Any], body: bytes) -> None:
    fake.on("/v1/models", reply(body, 502))
    with pytest.raises(ServerError) as raised:
        make(KEY, fake.url, max_retries=0).list_models()
    assert raised.value.message


@pytest.mark.parametrize("body", [b"not json", b"[1, 2]", b"null"])
def test_a_reply_that_is_no_object_is_an_error(fake: Fake, client: Any, body: bytes) -> None:
    fake.on("/v1/models", reply(body))
    with pytest.raises(ServerError):
        client.list_models()


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_tried_again_after_what_the_server_says(fake: Fake, client: Any, status: int) -> None:
    fake.on("/v1/chat/completions", refused(status, "overloaded", retry_after="0"), reply(ANSWER))
    client.chat.completions.create(model="m", messages=HELLO)
    assert len(fake.asked) == 2


def test_a_refusal_that_would_last_is_told_at_once(fake: Fake, client: Any) -> None:
    fake.on("/v1/models", refused(429, "budget_exceeded", retry_after="3600"))
    with pytest.raises(RateLimitError):
        client.list_models()
    assert len(fake.asked) == 1


def test_a_server_may_say_that_another_try_is_in_vain(fake: Fake, client: Any) -> None:
    fake.on("/v1/models", refused(429, "budget_exceeded", x_should_retry="false"))
    with pytest.raises(RateLimitError):
        client.list_models()
    assert len(fake.asked) == 1


@pytest.mark.parametrize("way", [HANG_UP, CLOSE])
def test_an_order_whose_answer_was_lost_is_sent_again_under_the_same_key(fake: Fake, client: Any, way: bytes) -> None:
    fake.on("/api/v1/tasks", [way], reply(TASK, 202))
    assert client.tasks.create(query="Find papers.").id == "t1"
    first, second = fake.asked
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body


def test_a_chat_whose_answer_was_lost_is_not_sent_again(fake: Fake, client: Any) -> None:
    """The call may have been made, and paid."""
    fake.on("/v1/chat/completions", [HANG_UP])
    with pytest.raises(HortatorConnectionError):
        client.chat.completions.create(model="m", messages=HELLO)
    assert len(fake.asked) == 1


def test_a_reply_that_breaks_off_is_asked_for_again(fake: Fake, client: Any) -> None:
    [whole] = MODELS
    fake.on("/v1/models", [whole[:-9], CLOSE], MODELS)
    assert len(client.list_models()) == 1


def test_nobody_there_is_an_error_that_names_the_address(make: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(HortatorConnectionError, match=f"127.0.0.1:{port}"):
        make(KEY, f"http://127.0.0.1:{port}", max_retries=1).run("Anybody?")


def test_a_server_that_says_nothing_runs_into_the_timeout(fake: Fake, make: Callable[..., Any]) -> None:
    done = threading.Event()

    def silent(_: Asked) -> Iterator[bytes]:
        done.wait(20)
        yield CLOSE

    fake.on("/v1/models", silent)
    try:
        with pytest.raises(HortatorTimeout):
            make(KEY, fake.url, timeout=0.05, max_retries=0).list_models()
    finally:
        done.set()


def test_what_does_not_speak_http_is_an_error(fake: Fake, make: Callable[..., Any]) -> None:
    fake.on("/v1/models", [b"SSH-2.0-OpenSSH_9.2\r\n", CLOSE])
    with pytest.raises(HortatorConnectionError):
        make(KEY, fake.url, max_retries=0).list_models()


def test_a_body_that_the_server_does_not_want_gets_its_refusal(fake: Fake, client: Any) -> None:
    fake.on("/v1/chat/completions", refused(413, "request_too_large"))
    with pytest.raises(InvalidRequestError) as raised:
        client.run("x" * 3_000_000)
    assert raised.value.code == "request_too_large"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=hortator"]
    where = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *where], check=True, capture_output=True, timeout=30)
    return key, certificate


def test_a_certificate_is_verified(make: Callable[..., Any], certificate: tuple[Path, Path]) -> None:
    key, public = certificate
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(public, key)
    trusting = ssl.create_default_context(cafile=str(public))
    with running_fake(server) as fake:
        fake.on("/v1/models", MODELS)
        fake.on("/v1/chat/completions", lambda _: stream(b'data: {"choices": []}\n\n', b"data: [DONE]\n\n"))
        with pytest.raises(HortatorConnectionError, match="certificate"):
            make(KEY, fake.url, max_retries=0).list_models()
        assert fake.asked == []
        good = make(KEY, fake.url, ssl_context=trusting)
        assert good.list_models()
        assert len(list(good.chat.completions.create(model="m", messages=HELLO, stream=True))) == 1
        good.close()

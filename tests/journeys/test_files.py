"""`/v1/files` as openai-python uses it, and as a client that breaks the rules does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.door import Connection, Door, head
from tests.gateway import Gateway, eventually, openai_client, running_gateway
from tests.upstream.process import Upstream

MEGABYTE = 1024 * 1024


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai_client(gateway) as opened:
        yield opened


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Gateway]:
    """A gateway that takes little."""
    files = {"max_bytes": MEGABYTE, "tenant_bytes": 3 * MEGABYTE}
    with running_gateway(tmp_path_factory.mktemp("small"), upstream, files=files) as running:
        yield running


def folder(gateway: Gateway) -> Path:
    return gateway.home / "data" / "files"


def contents(gateway: Gateway) -> set[str]:
    return {path.name for path in folder(gateway).glob("*")}


def form(*parts: tuple[str, str | None, bytes], boundary: str = "b0undary", end: bool = True) -> bytes:
    """A form's body: name, file name and content of each part."""
    body = b""
    for name, filename, content in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename is not None else "")
        body += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return body + (f"--{boundary}--\r\n".encode() if end else b"")


FORM = {"content_type": "multipart/form-data; boundary=b0undary"}


def test_a_file_comes_back_as_it_was_sent(client: openai.OpenAI) -> None:
    content = bytes(range(256)) * 20_000 + b"\r\n--b0undary\r\n"
    made = client.files.create(file=("täglich.bin", content), purpose="user_data")
    assert (made.object, made.bytes, made.filename) == ("file", len(content), "täglich.bin")
    assert (made.purpose, made.status, made.expires_at) == ("user_data", "processed", None)
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == content


def test_an_empty_file_is_a_file(client: openai.OpenAI) -> None:
    made = client.files.create(file=("empty", b""), purpose="user_data")
    assert made.bytes == 0
    assert client.files.content(made.id).read() == b""


def test_files_of_batches_expire_after_30_days_and_others_when_asked(client: openai.OpenAI) -> None:
    batch = client.files.create(file=("a.jsonl", b"{}"), purpose="batch")
    assert batch.expires_at == batch.created_at + 30 * 86_400
    asked = client.files.create(
        file=("a", b"a"), purpose="vision", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert asked.expires_at == asked.created_at + 3600


@pytest.mark.parametrize("purpose", ["assistants", "batch", "evals", "fine-tune", "user_data", "vision"])
def test_every_documented_purpose_is_accepted(client: openai.OpenAI, purpose: Any) -> None:
    assert client.files.create(file=("a", b"a"), purpose=purpose).purpose == purpose


def test_a_deleted_file_is_gone_with_its_content(gateway: Gateway, client: openai.OpenAI) -> None:
    made = client.files.create(file=("a", b"a" * 1000), purpose="user_data")
    assert made.id in contents(gateway)
    assert client.files.delete(made.id).deleted
    assert made.id not in contents(gateway)
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(made.id)
        assert caught.value.code == "file_not_found"


def test_lists_are_paged_in_both_orders(client: openai.OpenAI) -> None:
    made = [client.files.create(file=(f"{n}", b"a"), purpose="evals").id for n in range(5)]
    newest = [file.id for file in client.files.list(purpose="evals", limit=2)]
    assert [id for id in newest if id in made] == made[::-1]
    oldest = [file.id for file in client.files.list(purpose="evals", order="asc", limit=3)]
    assert [id for id in oldest if id in made] == made
    page = client.files.list(purpose="evals", limit=2)
    assert (len(page.data), page.has_more) == (2, True)
    assert {file.purpose for file in client.files.list(purpose="evals")} == {"evals"}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=10001", "limit=a", "limit=-1", "order=up", "after=%00", "purpose=fun"]
)
def test_a_list_asked_for_wrongly_is_refused(door: Door, query: str) -> None:
    answer = door.call("GET", f"/v1/files?{query}")
    assert (answer.status, answer.error["code"]) == (400, "invalid_value")


def test_another_tenants_file_does_not_exist(client: openai.OpenAI, gateway: Gateway, stranger: str) -> None:
    made = client.files.create(file=("a", b"secret"), purpose="user_data")
    with openai_client(gateway, stranger) as other:
        for ask in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                ask(made.id)
        assert made.id not in [file.id for file in other.files.list()]
    assert client.files.content(made.id).read() == b"secret"


def test_fields_may_follow_the_file(door: Door) -> None:
    body = form(("file", "a.txt", b"hello"), ("purpose", None, b"user_data"))
    answer = door.call("POST", "/v1/files", body, **FORM)
    assert (answer.status, answer.json["bytes"], answer.json["filename"]) == (200, 5, "a.txt")


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (form(("purpose", None, b"batch")), "missing_required_parameter", "file"),
        (form(("file", "a", b"a")), "missing_required_parameter", "purpose"),
        (form(("purpose", None, b"fun"), ("file", "a", b"a")), "invalid_value", "purpose"),
        (form(("file", "a", b"a"), ("purpose", None, b"fun")), "invalid_value", "purpose"),
        (form(("purpose", None, b"x" * 5000), ("file", "a", b"a")), "invalid_value", "purpose"),
        (form(("file", "a", b"a"), ("file", "b", b"b"), ("purpose", None, b"batch")), "invalid_form", "file"),
        (form(("purpose", None, b"batch"), ("file", "a", b"a"), end=False), "invalid_form", None),
        (b"nothing of the kind", "invalid_form", None),
        (b"", "invalid_form", None),
        (form(*[("x", None, b"")] * 40), "invalid_form", None),
        (b"--b0undary\r\n" + b"x: y\r\n" * 5000, "invalid_form", None),
        (
            form(
                ("purpose", None, b"batch"),
                ("expires_after[anchor]", None, b"created_at"),
                ("expires_after[seconds]", None, b"60"),
                ("file", "a", b"a"),
            ),
            "invalid_value",
            "expires_after",
        ),
    ],
)
def test_a_bad_form_is_refused_and_leaves_nothing(
    gateway: Gateway, door: Door, body: bytes, code: str, param: str | None
) -> None:
    before = contents(gateway)
    answer = door.call("POST", "/v1/files", body, **FORM)
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)
    assert contents(gateway) == before


def test_what_is_no_form_is_refused(door: Door) -> None:
    assert door.call("POST", "/v1/files", b"{}").status == 415


def test_a_client_that_hangs_up_leaves_nothing(gateway: Gateway, door: Door) -> None:
    before = contents(gateway)
    body = form(("purpose", None, b"batch"), ("file", "a", b"a" * MEGABYTE), end=False)
    headers = door.headers(body, {"content-type": FORM["content_type"], "content-length": str(len(body) + 10)})
    with Connection(gateway.port) as connection:
        connection.send(head("POST", "/v1/files", headers) + body)
        eventually(lambda: contents(gateway) - before, "the file to begin")
    eventually(lambda: contents(gateway) == before, "the file to go")


def test_a_file_over_the_limit_is_refused_before_it_is_read_or_while_it_is(small: Gateway) -> None:
    for size in (2 * MEGABYTE, MEGABYTE + 1):
        body = form(("purpose", None, b"batch"), ("file", "a", b"a" * size))
        answer = small.door.call("POST", "/v1/files", body, **FORM)
        assert (answer.status, answer.error["code"]) == (413, "file_too_large")
    assert contents(small) == set()


def test_a_tenants_files_together_have_a_limit(small: Gateway) -> None:
    with openai_client(small) as client:
        made = [client.files.create(file=("a", b"a" * MEGABYTE), purpose="user_data") for _ in range(3)]
        with pytest.raises(openai.APIStatusError) as caught:
            client.files.create(file=("a", b"a"), purpose="user_data")
        assert (caught.value.status_code, caught.value.code) == (413, "file_quota_exceeded")
        assert len(contents(small)) == 3
        client.files.delete(made[0].id)
        client.files.create(file=("a", b"a"), purpose="user_data")


def test_a_large_file_is_never_whole_in_memory(gateway: Gateway, client: openai.OpenAI, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        for _ in range(100):
            file.write(b"x" * MEGABYTE)
    before = gateway.memory()
    made = client.files.create(file=large, purpose="user_data")
    assert made.bytes == 100 * MEGABYTE
    assert sum(len(piece) for piece in client.files.content(made.id).iter_bytes(MEGABYTE)) == made.bytes
    assert gateway.memory() - before < 40 * MEGABYTE
    client.files.delete(made.id)


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/v1/files"), ("POST", "/v1/files/file-1"), ("DELETE", "/v1/files")]
)
def test_a_method_that_means_nothing_is_refused(door: Door, method: str, path: str) -> None:
    assert door.call(method, path, b"").status == 405


@pytest.mark.parametrize("path", ["/v1/files/%00", "/v1/batches/%00", "/v1/files/%f0%9f%8e%89/content"])
def test_an_id_that_cannot_be_one_is_not_found(door: Door, path: str) -> None:
    assert door.call("GET", path).status == 404


@pytest.mark.parametrize("path", ["/v1/files/", "/v1/files/a/b", "/v1/filesystem", "/v1/batches/a/b/c"])
def test_an_unknown_address_below_files_is_not_found(door: Door, path: str) -> None:
    answer = door.call("GET", path)
    assert (answer.status, answer.error["code"]) == (404, "unknown_url")


def test_files_need_a_key(door: Door) -> None:
    assert door.call("GET", "/v1/files", authorization=None).status == 401

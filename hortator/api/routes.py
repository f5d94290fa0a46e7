"""What the shell's JSON routes share: a body read within its limit and checked against a struct, answers, errors, descriptions.

`administration.py` is made of these. A route's errors become HTTP here; nothing that goes wrong in a handler reaches the
framework, which would print it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from hortator.api import problem
from hortator.api.listener import DIRECT
from hortator.api.reading import REQUEST_ID, Line, expect_json, read_body, request_id, where
from hortator.call import RequestId
from hortator.errors import ClientGone, HortatorError
from hortator.wire.body import parse_as

log = logging.getLogger("hortator.api")

T = TypeVar("T")

_JSON = msgspec.json.Encoder(decimal_format="number")
_NO_STORE = {"cache-control": "no-store"}
_HANG_UP_STATUS = 499


class JsonRoute(APIRoute):
    """A route whose errors are OpenAI objects (C-4)."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler: the outermost edge of its requests."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except HortatorError as error:
                return refusal(request, error)
            except Exception as error:  # noqa: BLE001 - the outermost edge of a request: the client gets no word of what it was
                id = id_of(request)
                log.error("internal error: request=%s %s", id, where(error), extra={"request_id": id})
                return refusal(request, HortatorError("The gateway failed to handle this request."))

        return guarded


def id_of(request: Request) -> RequestId:
    """Return the request's id, which its reply carries as `x-request-id`."""
    known: RequestId | None = request.scope.get(REQUEST_ID)
    return known or request_id(raw_headers(request))


def raw_headers(request: Request) -> dict[bytes, bytes]:
    """Return the request's headers as `reading.py` takes them."""
    return dict(request.scope["headers"])


def line_of(request: Request) -> Line | None:
    """Return the listener's shorter way to the client, where it offers one."""
    line: Line | None = request.scope.get("extensions", {}).get(DIRECT)
    return line


async def read_json(request: Request, kind: type[T], limit: int) -> T:
    """Return the body as a struct. Raises InvalidRequest, TooLarge, UnsupportedMediaType, RequestTimeout, ClientGone."""
    headers = raw_headers(request)
    expect_json(headers)
    body = await read_body(headers, line_of(request), request.receive, limit)
    _, document = parse_as(body, msgspec.json.Decoder(kind))
    return document


def answer(document: Any, status: int = 200) -> Response:
    """Return a document as a reply."""
    return Response(_JSON.encode(document), status, _NO_STORE, "application/json")


def refusal(request: Request, error: HortatorError) -> Response:
    """Return an error as a reply. Nobody reads that of a client that has gone."""
    if isinstance(error, ClientGone):
        return Response(status_code=_HANG_UP_STATUS)
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in problem.headers(error)}
    return Response(problem.body(error), error.status, {**_NO_STORE, **headers}, "application/json")


def described(
    answer: str | None,
    *,
    body: str | None = None,
    query: Mapping[str, str] | None = None,
    path: Iterable[str] = (),
    errors: Iterable[int] = (),
    status: int = 200,
    key: bool = True,
) -> dict[str, Any]:
    """Return the `openapi_extra` of a route. `answer` and `body` name schemas; `query` gives each parameter's meaning."""
    schema: dict[str, Any] = {"type": "object"} if answer is None else {"$ref": f"#/components/schemas/{answer}"}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {
        str(status): {"description": "Done", "content": {"application/json": {"schema": schema}}}
    }
    responses |= {str(code): {"description": _MEANINGS[code], "content": error} for code in errors}
    text = {"type": "string"}
    parameters = [{"name": name, "in": "path", "required": True, "schema": text} for name in path]
    parameters += [
        {"name": name, "in": "query", "required": False, "schema": text, "description": meaning}
        for name, meaning in (query or {}).items()
    ]
    found: dict[str, Any] = {"responses": responses}
    if parameters:
        found["parameters"] = parameters
    if key:
        found["security"] = [{"key": []}]
    if body is not None:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body}"}}}
        found["requestBody"] = {"required": True, "content": content}
    return found


_MEANINGS = {
    400: "The request is malformed",
    401: "No key, or one that is not known",
    403: "The key may not do this",
    404: "No such thing",
    408: "The body did not arrive in time",
    409: "It does not fit the state of what it is asked of",
    410: "It is not kept any more",
    413: "The body is over the limit",
    415: "The body is not JSON",
    429: "A limit was reached, here or at the provider; see Retry-After",
    500: "The gateway failed",
    502: "The provider failed and no other deployment answered",
    503: "The gateway or the provider cannot serve now; see Retry-After",
    504: "The provider did not answer in time",
}

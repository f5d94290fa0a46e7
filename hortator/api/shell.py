"""Everything that is not hot: the FastAPI app behind the raw doors, and the OpenAPI document of the whole listener.

`app.py` sends here what no raw door takes. The raw doors' routes are described from the same structs that validate them, so
that the document cannot drift from the code; `make check` compares it with `docs/openapi.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from hortator import __version__
from hortator.api import administration, health, task_paths
from hortator.api.routes import described, refusal
from hortator.errors import HortatorError, InvalidRequest, MethodNotAllowed, NotFound
from hortator.tenancy.administration import Administration
from hortator.wire import batches, harpoon, patterns
from hortator.wire.chat import ChatRequest
from hortator.wire.completions import CompletionRequest
from hortator.wire.embeddings import EmbeddingsRequest
from hortator.wire.messages import CountRequest, MessagesRequest
from hortator.wire.moderations import ModerationRequest
from hortator.wire.responses import InputTokensRequest, ResponsesRequest

_ERRORS = {
    "400": "The request is malformed, or the provider found it so",
    "401": "No key, or one that is not known",
    "403": "The key may not use this model",
    "404": "No such model",
    "408": "The body did not arrive in time",
    "413": "The body is over the limit",
    "415": "The body is not JSON",
    "429": "A limit was reached, here or at the provider; see Retry-After",
    "502": "The provider failed and no other deployment answered",
    "503": "The gateway or the provider cannot serve now; see Retry-After",
    "504": "The provider did not answer in time",
}


def build(readiness: health.Readiness, administered: Callable[[], Administration]) -> FastAPI:
    """Return the app behind the raw doors. What the routes need is asked for at each request."""
    app = FastAPI(title="Hortator", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(health.router(readiness))
    app.include_router(administration.AdministrationDoor(administered).router())
    app.add_exception_handler(HTTPException, _http_problem)

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_raw_doors(FastAPI.openapi(app))
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
    return app


def document() -> dict[str, Any]:
    """Return the OpenAPI document without starting anything."""

    async def nothing() -> dict[str, Any]:
        return {"ready": False}

    def never() -> Any:
        raise NotImplementedError

    return build(nothing, never).openapi()


async def _http_problem(request: Request, error: Exception) -> Response:
    """Give the framework's own refusals (unknown address, wrong method) the error object of all others."""
    assert isinstance(error, HTTPException)
    ours: HortatorError
    if error.status_code == 404:
        ours = NotFound(f"Unknown request URL: {request.method} {request.url.path[:200]}.")
    elif error.status_code == 405:
        allowed = tuple(method.strip() for method in (error.headers or {}).get("Allow", "GET").split(","))
        ours = MethodNotAllowed(f"{request.method} is not allowed here; use {' or '.join(allowed)}.", allowed=allowed)
    else:
        ours = InvalidRequest("The request cannot be handled.")
    return refusal(request, ours)


class _Call(NamedTuple):
    """A model call as the description shows it."""

    path: str
    name: str
    summary: str
    request: type[msgspec.Struct]
    answer: str
    streams: bool
    error: str = "Error"


_CALLS = (
    _Call(
        "/v1/chat/completions",
        "createChatCompletion",
        "Answer a conversation.",
        ChatRequest,
        "A chat completion, or its chunks as server-sent events when `stream` is true",
        True,
    ),
    _Call(
        "/v1/responses",
        "createResponse",
        "Answer in the responses dialect.",
        ResponsesRequest,
        "A response, or its events as server-sent events when `stream` is true",
        True,
    ),
    _Call(
        "/v1/responses/input_tokens",
        "countInputTokens",
        "Estimate the tokens of a request.",
        InputTokensRequest,
        "About how many",
        False,
    ),
    _Call(
        "/v1/completions",
        "createCompletion",
        "Go on with a text.",
        CompletionRequest,
        "A text completion, or its chunks as server-sent events when `stream` is true",
        True,
    ),
    _Call(
        "/v1/messages",
        "createMessage",
        "Answer a conversation, in Anthropic's dialect.",
        MessagesRequest,
        "A message, or its events as server-sent events when `stream` is true",
        True,
        "MessageError",
    ),
    _Call(
        "/v1/messages/count_tokens",
        "countMessageTokens",
        "Count the tokens of a request.",
        CountRequest,
        "`input_tokens`",
        False,
        "MessageError",
    ),
    _Call("/v1/embeddings", "createEmbedding", "Make vectors of texts.", EmbeddingsRequest, "A list of vectors", False),
    _Call("/v1/moderations", "createModeration", "Judge a text.", ModerationRequest, "The results", False),
)


_FLAT_ERROR = {
    "type": "object",
    "required": ["success", "error", "code", "request_id"],
    "properties": {
        "success": {"const": False},
        "error": {"type": "string"},
        "code": {"type": "string"},
        "request_id": {"type": "string"},
    },
}
"""What `/api` says of an error, for Harpoon's clients (C-4)."""


_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
"""What `/v1` says of an error."""
_MESSAGE_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message", "code"],
            "properties": {name: {"type": "string"} for name in ("type", "message", "code", "param")},
        },
        "request_id": {"type": "string"},
    },
}
"""The same in the messages dialect."""


def _with_raw_doors(document: dict[str, Any]) -> dict[str, Any]:
    """Add the routes that the raw doors serve."""
    kinds = [
        *(each.request for each in _CALLS),
        *administration.SCHEMAS,
        *harpoon.SCHEMAS,
        *patterns.SCHEMAS,
        *batches.SCHEMAS,
    ]
    kinds += task_paths.SCHEMAS
    shapes, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components)
    schemas |= {"Error": _ERROR, "MessageError": _MESSAGE_ERROR, "FlatError": _FLAT_ERROR}
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    listing = {
        "description": "Models this key may use",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
    for call, shape in zip(_CALLS, shapes, strict=False):
        content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
        if call.streams:
            content["text/event-stream"] = {"schema": {"type": "string"}}
        answer = {"description": call.answer, "content": content}
        operation = _operation(call.name, call.summary, answer, tuple(_ERRORS), call.error)
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": shape}}}
        document["paths"][call.path] = {"post": operation}
    one = _operation("retrieveModel", "Describe one model; ids contain slashes.", listing, ("401", "404"))
    one["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    preview = _operation(
        "previewRoute",
        "Tell how a chat completion would be routed, without calling anything.",
        {"description": "The decision", "content": listing["content"]},
        ("400", "401", "403", "404", "408", "413", "415", "503"),
    )
    preview["requestBody"] = {"required": True, "content": {"application/json": {"schema": shapes[0]}}}
    document["paths"] |= _harpoon() | _kept_responses() | _stored() | task_paths.paths()
    document["paths"] |= {
        "/api/v1/route": {"post": preview},
        "/v1/models": {"get": _operation("listModels", "List the models this key may use.", listing, ("401", "503"))},
        "/v1/models/{id}": {"get": one},
    }
    return document


def _stored() -> dict[str, Any]:
    """The addresses of files and batches."""
    page = {"after": "The id of the last object of the page before", "limit": "Objects in a page"}
    order = {"order": "asc or desc, by the time they were made; desc", "purpose": "Only files of this purpose"}
    one, errors = ("id",), (401, 404, 503)
    found = {
        ("/v1/files", "post", "createFile"): described("FileObject", errors=(400, 401, 408, 413, 415, 503)),
        ("/v1/files", "get", "listFiles"): described(None, query=page | order, errors=(400, 401, 503)),
        ("/v1/files/{id}", "get", "retrieveFile"): described("FileObject", path=one, errors=errors),
        ("/v1/files/{id}", "delete", "deleteFile"): described("DeletedFile", path=one, errors=(400, *errors)),
        ("/v1/files/{id}/content", "get", "downloadFile"): described(None, path=one, errors=errors),
        ("/v1/batches", "post", "createBatch"): described(
            "BatchObject", body="BatchRequest", errors=(400, 401, 404, 408, 413, 415, 429, 503)
        ),
        ("/v1/batches", "get", "listBatches"): described(None, query=page, errors=(400, 401, 503)),
        ("/v1/batches/{id}", "get", "retrieveBatch"): described("BatchObject", path=one, errors=errors),
        ("/v1/batches/{id}/cancel", "post", "cancelBatch"): described("BatchObject", path=one, errors=(400, *errors)),
    }
    fields: dict[str, Any] = {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": list(batches.PURPOSES)},
    }
    fields |= {f"expires_after[{name}]": {"type": "string"} for name in ("anchor", "seconds")}
    form = {"type": "object", "required": ["file", "purpose"], "properties": fields}
    upload, download = found["/v1/files", "post", "createFile"], found["/v1/files/{id}/content", "get", "downloadFile"]
    upload["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": form}}}
    download["responses"]["200"]["content"] = {"application/octet-stream": {"schema": {"type": "string"}}}
    paths: dict[str, Any] = {}
    for (path, method, name), extra in found.items():
        paths.setdefault(path, {})[method] = {"operationId": name, "tags": ["openai"], **extra}
    return paths


def _harpoon() -> dict[str, Any]:
    """The addresses of Harpoon's clients."""
    taken, carried = (400, 401, 408, 413, 415), (403, 404, 429, 502, 503, 504)
    tier = {"tier": "primary, edge, flagship or local", "provider": "A provider's id"}
    found = {
        ("/api/health", "get", "harpoonHealth"): described(None, key=False),
        ("/api/models", "get", "harpoonModels"): described("ModelList", query=tier, errors=(400, 401, 503)),
        ("/api/models/{id}", "get", "harpoonModel"): described("Model", path=("id",), errors=(401, 404, 503)),
        ("/api/chat", "post", "harpoonChat"): described("ChatReply", body="ChatOrder", errors=(*taken, *carried)),
        ("/api/route", "post", "harpoonRoute"): described(
            "RouteReply", body="ChatOrder", errors=(*taken, 403, 404, 503)
        ),
        ("/api/batch", "post", "harpoonBatch"): described(None, body="BatchOrder", errors=(*taken, 503)),
        ("/api/agents/status", "get", "harpoonAgents"): described("AgentsStatus", errors=(401, 503)),
    }
    found |= {
        (f"/api/orchestrate/{pattern}", "post", f"harpoon{pattern.capitalize()}"): described(
            "OrchestrationReply", body=f"{pattern.capitalize()}Order", errors=(*taken, *carried)
        )
        for pattern in patterns.NAMES
    }
    paths: dict[str, Any] = {}
    for (path, method, name), operation in found.items():
        for status, response in operation["responses"].items():
            if status != "200":
                response["content"]["application/json"]["schema"] = {"$ref": "#/components/schemas/FlatError"}
        paths[path] = {method: {"operationId": name, "tags": ["harpoon"], **operation}}
    return paths


def _kept_responses() -> dict[str, Any]:
    """Describe what hangs below `/v1/responses/{id}`."""
    id = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    answer = {"description": "The response", "content": {"application/json": {"schema": {"type": "object"}}}}
    gone, items = answer | {"description": "Deleted"}, answer | {"description": "A page of items"}
    errors = ("401", "404", "503")
    page = [
        {"name": name, "in": "query", "schema": schema}
        for name, schema in (
            ("limit", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}),
            ("order", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}),
            ("after", {"type": "string"}),
        )
    ]
    one = {
        "get": _operation("retrieveResponse", "Give a kept response again.", answer, errors),
        "delete": _operation("deleteResponse", "Delete a kept response.", gone, errors),
    }
    listing = _operation("listInputItems", "List what was asked.", items, ("400", *errors))
    cancel = _operation("cancelResponse", "Stop a response in the background.", answer, ("400", *errors))
    return {
        "/v1/responses/{id}": {"parameters": [id], **one},
        "/v1/responses/{id}/input_items": {"parameters": [id, *page], "get": listing},
        "/v1/responses/{id}/cancel": {"parameters": [id], "post": cancel},
    }


def _operation(
    name: str, summary: str, answer: dict[str, Any], errors: tuple[str, ...], shape: str = "Error"
) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}
    return {
        "operationId": name,
        "summary": summary,
        "tags": ["openai"],
        "security": [{"key": []}],
        "responses": {"200": answer}
        | {status: {"description": _ERRORS[status], "content": error} for status in errors},
    }

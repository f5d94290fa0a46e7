"""The addresses of tasks and orchestrations as the OpenAPI document has them. The shell puts them into it, `task_door.py` serves them.

Schemas are those of the structs that validate and write the bodies, by name; nothing here is asked for a request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

from msgspec import Struct

from hortator.api import orchestrations, tasks
from hortator.api.routes import described
from hortator.wire import orders, task_view, webhooks
from hortator.wire.events import Event, Level
from hortator.wire.tasks import Pattern, Phase

SCHEMAS: tuple[type[Struct], ...] = (*orders.SCHEMAS, *task_view.SCHEMAS, *webhooks.SCHEMAS, Event)

_ONE = ("id",)
_READ, _TAKEN = (401, 404, 503), (400, 401, 403, 404, 408, 413, 415, 429, 503)
_WAIT = {"wait": "Seconds to wait for the end, up to 60"}
_LIST = {
    "limit": "Tasks in a page, 1 to 100; 20",
    "after": "The id of the last task of the page before",
    "status": ", ".join(get_args(Phase)),
    "type": "A type of task",
    "model": "As it was asked for",
    "source": "The door: chat, responses, messages, tasks, orchestrations, harpoon, socket",
    "pattern": ", ".join(get_args(Pattern)),
}
_EVENTS = {
    "after": "The number of the last event that is known; the header Last-Event-ID wins",
    "level": f"{', '.join(get_args(Level))}; full",
    "stream": "false = a list instead of a stream",
    "limit": "Events of a list, 1 to 1000; 100",
}


class _Kind(NamedTuple):
    """One of the two doors."""

    path: str
    name: str
    """What its operations are called after."""
    order: str
    one: str
    node: str
    list: str
    also: dict[str, str]


_KINDS = (
    _Kind(
        tasks.PATH, "Task", "TaskOrder", "TaskView", "TaskNode", "TaskList", {"all": "true = also tasks below roots"}
    ),
    _Kind(
        orchestrations.PATH,
        "Orchestration",
        "OrchestrationOrder",
        "OrchestrationView",
        "OrchestrationNode",
        "OrchestrationList",
        {},
    ),
)


def paths() -> dict[str, Any]:
    """Return the paths of both doors."""
    found: dict[str, Any] = {}
    for kind in _KINDS:
        for path, method, name, extra in (*_whole(kind), *_below(kind)):
            found.setdefault(kind.path + path, {})[method] = {"operationId": name, "tags": ["tasks"], **extra}
    secret, path = described("SecretObject", errors=(401, 503)), "/api/v1/webhooks/secret"
    rotated = described("SecretObject", errors=(401, 409, 503))
    found[path] = {"get": {"operationId": "retrieveWebhookSecret", "tags": ["tasks"], **secret}}
    found[f"{path}/rotate"] = {"post": {"operationId": "rotateWebhookSecret", "tags": ["tasks"], **rotated}}
    return found


def _whole(kind: _Kind) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """What makes, lists and shows them."""
    create = described(kind.one, body=kind.order, errors=(*_TAKEN, 409), status=202)
    create["responses"]["200"] = {**create["responses"]["202"], "description": "The Idempotency-Key was known"}
    create["parameters"] = [{"name": "Idempotency-Key", "in": "header", "schema": {"type": "string", "maxLength": 255}}]
    part = {"$ref": f"#/components/schemas/{kind.order}"}
    form = {
        "type": "object",
        "required": ["task"],
        "properties": {"task": part},
        "additionalProperties": {"type": "string", "format": "binary"},
    }
    create["requestBody"]["content"]["multipart/form-data"] = {"schema": form}
    yield "", "post", f"create{kind.name}", create
    yield "", "get", f"list{kind.name}s", described(kind.list, query=_LIST | kind.also, errors=(400, 401, 503))
    one = described(kind.one, path=_ONE, query=_WAIT, errors=(400, *_READ))
    yield "/{id}", "get", f"retrieve{kind.name}", one
    yield "/{id}/cancel", "post", f"cancel{kind.name}", described(kind.one, path=_ONE, errors=_READ)


def _below(kind: _Kind) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """What hangs below one of them."""
    name = kind.name
    children = described("TaskList", path=_ONE, errors=_READ)
    yield "/{id}/children", "get", f"list{name}Children", children
    yield "/{id}/tree", "get", f"retrieve{name}Tree", described(kind.node, path=_ONE, errors=_READ)
    result = described("TaskResult", path=_ONE, query=_WAIT, errors=(400, *_READ, 409))
    yield "/{id}/result", "get", f"retrieve{name}Result", result
    download = {"download": "tar = all of them as an archive"}
    files = described("Artifacts", path=_ONE, query=download, errors=(400, *_READ))
    files["responses"]["200"]["content"]["application/x-tar"] = _BINARY
    yield "/{id}/artifacts", "get", f"list{name}Artifacts", files
    file = described(None, path=("id", "path"), errors=_READ)
    file["responses"]["200"]["content"] = {"application/octet-stream": _BINARY}
    yield "/{id}/artifacts/{path}", "get", f"download{name}Artifact", file
    events = described(None, path=_ONE, query=_EVENTS, errors=(400, *_READ, 410))
    events["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    events["responses"]["204"] = {"description": "The tree has ended and nothing follows"}
    yield "/{id}/events", "get", f"list{name}Events", events
    errors = (*_TAKEN[:2], 404, 408, 409, 413, 415, 503)
    message = described("Event", body="NewMessage", path=_ONE, errors=errors, status=202)
    yield "/{id}/messages", "post", f"send{name}Message", message
    yield "/{id}/ledger", "get", f"retrieve{name}Ledger", described("TaskLedger", path=_ONE, errors=_READ)
    yield "/{id}/deliveries", "get", f"list{name}Deliveries", described(None, path=_ONE, errors=_READ)
    again = described("DeliveryObject", path=("id", "delivery"), errors=_READ)
    yield "/{id}/deliveries/{delivery}/redeliver", "post", f"redeliver{name}", again


_BINARY = {"schema": {"type": "string", "format": "binary"}}

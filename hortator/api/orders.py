"""From an order as a client wrote it to one as the room of teams takes it. The doors of tasks and orchestrations and the socket come here."""

from __future__ import annotations

from msgspec.structs import replace

from hortator.orchestration.teams import Order
from hortator.store.tasks import NewFile
from hortator.wire.orders import Asked


def taken(asked: Asked, source: str, idempotency_key: str | None = None) -> Order:
    """Return the order. `source`: the door it came through."""
    order = Order(
        messages=asked.messages,
        source=source,
        pattern=asked.pattern,
        arguments=asked.arguments,
        config=asked.config,
        files=[NewFile(file.path, file.content, file.media_type) for file in asked.files],
        callback_url=asked.callback_url,
        callback_events=asked.callback_events,
        idempotency_key=idempotency_key,
    )
    if asked.model is not None:
        order = replace(order, model=asked.model)
    return order if asked.task_type is None else replace(order, task_type=asked.task_type)

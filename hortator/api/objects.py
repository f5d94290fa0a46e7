"""What doors of stored objects do alike: write one, write a page of a list.

The doors of files and batches use it. The shape of lists is OpenAI's: `object`, `data`, `first_id`, `last_id`, `has_more`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from hortator.api import problem
from hortator.api.inference import Exchange, respond
from hortator.call import Caller

Admit = Callable[[bytes], Awaitable[Caller]]
"""Says who calls, from a key. Raises Unauthenticated, Unavailable."""


async def reply(exchange: Exchange, document: Any) -> None:
    """Write an object."""
    headers = [problem.JSON, (b"x-request-id", exchange.id.encode())]
    await respond(exchange, 200, headers, msgspec.json.encode(document))


def page(data: Sequence[Any], more: bool) -> dict[str, Any]:
    """Return one page of a list of objects that have an `id`."""
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}


def seconds(moment: datetime | None) -> int | None:
    """Return a moment as whole Unix seconds."""
    return None if moment is None else int(moment.timestamp())

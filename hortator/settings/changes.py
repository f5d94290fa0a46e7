"""What of a new configuration can take effect while the server runs, and what waits for a restart.

`app.py` asks at every reload. Here is the one list of settings that may change; everything else stays as it was at the start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct
from msgspec.structs import fields, replace

from hortator.settings.document import Document, Settings

CHANGEABLE = frozenset(
    {
        "breaker",
        "detect_providers",
        "ledger.price_overrides",
        "limits",
        "local_services",
        "logging.level",
        "models",
        "providers",
        "reload",
        "retry",
        "routing",
        "server.max_body_bytes",
        "stream",
        "timeouts",
    }
)
"""Sections, and single settings of sections that else cannot change."""


def applicable(running: Settings, wanted: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return `wanted` as far as it can take effect now, and the names of the changed settings that cannot (`server.port`)."""
    kept: dict[str, Any] = {"home": running.home}
    waiting = ["home"] if wanted.home != running.home else []
    for field in fields(Document):
        name = field.name
        if name in CHANGEABLE:
            continue
        old, new = getattr(running, name), getattr(wanted, name)
        if not isinstance(new, Struct):
            kept[name] = old
            waiting += [name] if old != new else []
            continue
        fixed = dict(_fixed(name, old, new))
        waiting += [f"{name}.{each}" for each, value in fixed.items() if value != getattr(new, each)]
        kept[name] = replace(new, **fixed)
    return replace(wanted, **kept), tuple(waiting)


def _fixed(section: str, old: Struct, new: Struct) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a section that cannot change, with the values they have."""
    for field in fields(new):
        if f"{section}.{field.name}" not in CHANGEABLE:
            yield field.name, getattr(old, field.name)

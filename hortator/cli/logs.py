"""How log records become lines on standard error: one line a record, as text or as JSON, without stack traces and keys.

`hortator serve` installs it. There is no line per request: `/metrics/requests` on the admin listener has those.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

from hortator.api.reading import where
from hortator.settings import Settings

_KEY = re.compile(r"hrt_sk_[A-Za-z0-9_-]{4,}|(?i:bearer)\s+\S+")


class Line(logging.Formatter):
    """One line a record. An exception is named with its place; its text and its stack stay out."""

    def __init__(self, secrets: frozenset[str], *, as_json: bool) -> None:
        super().__init__()
        self._secrets = secrets
        self._before: frozenset[str] = frozenset()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            message = f"{message.partition(chr(10))[0]} ({where(record.exc_info[1])})"
        message = self._clean(message)
        if not self._as_json:
            return f"{record.levelname} {record.name}: {' '.join(message.splitlines())}"
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        request = getattr(record, "request_id", None)
        if isinstance(request, str):
            line["request_id"] = request
        return json.dumps(line, ensure_ascii=True)

    def hide(self, secrets: frozenset[str]) -> None:
        """Keep these out too; of those before, the last set stays."""
        self._secrets, self._before = secrets, self._secrets

    def _clean(self, message: str) -> str:
        for secret in self._secrets | self._before:
            message = message.replace(secret, "[redacted]")
        return _KEY.sub("[redacted]", message)


def set_up(settings: Settings) -> None:
    """Send every log to standard error in the configured form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Line(_secrets(settings), as_json=settings.logging.format == "json"))
    logging.basicConfig(level=settings.logging.level.upper(), handlers=[handler])
    for talkative in ("uvicorn.error", "alembic"):
        logging.getLogger(talkative).setLevel(logging.WARNING)


def change(settings: Settings) -> None:
    """Go on with another level, and keep new secrets out as well; the old ones may still be in use."""
    root = logging.getLogger()
    root.setLevel(settings.logging.level.upper())
    for handler in root.handlers:
        if isinstance(handler.formatter, Line):
            handler.formatter.hide(_secrets(settings))


def _secrets(settings: Settings) -> frozenset[str]:
    """Return what must not be in any line."""
    secrets = {value.reveal() for each in settings.providers for value in each.headers.values()}
    secrets |= {each.api_key.reveal() for each in settings.providers if each.api_key is not None}
    secrets |= {value.reveal() for value in settings.tracing.headers.values()}
    for value in (settings.store.url, settings.upstream.proxy_url):
        secrets |= {value.reveal()} if value is not None else set()
    return frozenset(each for each in secrets if len(each) > 5)

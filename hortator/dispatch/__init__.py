"""Dispatch carries one model call through failures: it tries candidates, relays the answer, and notes what happened.

The gateway calls it with a `Decision`; it calls providers. It never decides, limits, prices or records.
"""

from __future__ import annotations

from hortator.dispatch.attempts import Dispatch
from hortator.dispatch.count import count_tokens
from hortator.dispatch.refusal import RATE_PREFIXES
from hortator.dispatch.stream import Stream
from hortator.dispatch.trace import Trace, draining
from hortator.dispatch.whole import carry_whole

__all__ = ["RATE_PREFIXES", "Dispatch", "Stream", "Trace", "carry_whole", "count_tokens", "draining"]

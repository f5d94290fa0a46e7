"""The archive keeps what `/v1/responses` must remember: finished responses, and those that are worked on in the background.

The responses door calls it; it calls the store, and for background work the corridor, which it gets as an argument. It knows no
other room and nothing of HTTP.
"""

from __future__ import annotations

from hortator.archive.background import Background
from hortator.archive.responses import Archive

__all__ = ["Archive", "Background"]

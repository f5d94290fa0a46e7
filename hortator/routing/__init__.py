"""Routing decides, without I/O, which deployments may answer a call. The gateway calls `decide` with the `Catalogue` of the moment."""

from __future__ import annotations

from hortator.routing.auto import Rules
from hortator.routing.cards import Card, Cards, Facts
from hortator.routing.catalogue import Catalogue
from hortator.routing.policy import decide, told
from hortator.routing.preview import Preview, preview

__all__ = ["Card", "Cards", "Catalogue", "Facts", "Preview", "Rules", "decide", "preview", "told"]

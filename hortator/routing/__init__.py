"""Routing decides, without I/O, which deployments may answer a call. The gateway calls `decide` with the `Catalogue` of the moment."""

from __future__ import annotations

from hortator.routing.cards import Card, Cards, Facts
from hortator.routing.catalogue import Catalogue
from hortator.routing.policy import decide

__all__ = ["Card", "Cards", "Catalogue", "Facts", "decide"]

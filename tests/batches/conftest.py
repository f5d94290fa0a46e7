"""These tests need a store."""

from __future__ import annotations

from tests.databases import database, database_url

__all__ = ["database", "database_url"]

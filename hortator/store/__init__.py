"""The store: SQLite or Postgres behind one `Database`. The only package that knows SQL; every other room gets values.

`database.py` connects, `schema.py` migrates, `tables.py` describes; the other files hold the statements, one subject each.
"""

from hortator.store.database import Database, configured, sqlite_url
from hortator.store.schema import is_current, migrate

__all__ = ["Database", "configured", "is_current", "migrate", "sqlite_url"]

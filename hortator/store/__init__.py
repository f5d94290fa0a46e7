"""The store: SQLite or Postgres behind one `Database`. The only package that knows SQL; every other room gets values.

`database.py` connects, `schema.py` migrates, `tables.py` describes, `queries.py` and `usage.py` hold every statement.
"""

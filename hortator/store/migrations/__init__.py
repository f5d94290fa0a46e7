"""Forward-only Alembic migrations. `schema.migrate` runs them; `versions/NNNN_title.py` holds one revision each."""

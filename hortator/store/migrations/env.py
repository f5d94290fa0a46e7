"""Alembic's entry: migrate on the connection that `upgrade` gave, inside its transaction."""

from __future__ import annotations

from alembic import context

from hortator.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()

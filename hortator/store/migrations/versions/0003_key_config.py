"""api_keys.config: a key's own limits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; keys that exist have no limits of their own."""
    json = sa.JSON().with_variant(JSONB(), "postgresql")
    op.add_column("api_keys", sa.Column("config", json, nullable=False, server_default="{}"))

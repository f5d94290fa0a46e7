"""routing_outcomes: what `hortator router train` learns from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0009"
down_revision = "0008"

INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the table."""
    # SQLite's NUMERIC is a binary float: amounts are integers there (`Money` in tables.py).
    sqlite = op.get_bind().dialect.name == "sqlite"
    op.create_table(
        "routing_outcomes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("request_id", sa.String(255), nullable=False),
        sa.Column("tenant_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.Column("path", sa.String(10), nullable=False),
        sa.Column("score", sa.Float, nullable=False),
        sa.Column("confidence", sa.Float, nullable=False),
        sa.Column("features", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("model", sa.String(255)),
        sa.Column("cost", sa.BigInteger() if sqlite else sa.Numeric(20, 10)),
        sa.Column("retried", sa.Boolean, nullable=False),
        sa.Column("escalated", sa.Boolean, nullable=False),
        sa.Column("error_code", sa.String(100)),
        sa.PrimaryKeyConstraint("id", name="pk_routing_outcomes"),
    )
    op.create_index("ix_routing_outcomes_tenant_id_request_id", "routing_outcomes", ["tenant_id", "request_id"])
    op.create_index("ix_routing_outcomes_at", "routing_outcomes", ["at"])

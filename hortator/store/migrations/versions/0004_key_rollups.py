"""key_rollups: what each key has used by the hour; filled from what is there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create and fill the table."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    op.create_table(
        "key_rollups",
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tenant_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.BigInteger() if sqlite else sa.Numeric(20, 10), nullable=False),
        sa.PrimaryKeyConstraint("hour", "tenant_id", "key_hash", name="pk_key_rollups"),
    )
    op.get_bind().exec_driver_sql(_FILL_SQLITE if sqlite else _FILL_POSTGRES)


_FILL = """
INSERT INTO key_rollups (hour, tenant_id, key_hash, requests, tokens, cost)
SELECT {hour}, tenant_id, key_hash, sum(CASE WHEN attempts > 0 THEN 1 ELSE 0 END),
  sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)), coalesce(sum(cost), 0)
FROM usage_events GROUP BY 1, 2, 3
"""  # a migration never changes, so it repeats what the code says today
_FILL_SQLITE = _FILL.format(hour="substr(timestamp, 1, 13) || ':00:00.000000'")
_FILL_POSTGRES = _FILL.format(hour="date_trunc('hour', timestamp, 'UTC')")

"""usage_rollups: the sums of usage_events by hour, tenant, provider, model and class of status; filled from what is there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

UUID = sa.Uuid(as_uuid=False)


def upgrade() -> None:
    """Create and fill the table; index usage_events by time alone, for reports over all tenants."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    if not sqlite:
        op.drop_index("ix_usage_events_timestamp_brin", "usage_events")
    op.create_index("ix_usage_events_timestamp", "usage_events", ["timestamp"])
    counts = ("requests", "unpriced", "local_fallbacks")
    tokens = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cache_write_tokens")
    op.create_table(
        "usage_rollups",
        sa.Column("tenant_id", UUID, nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("provider", sa.String(100), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("status_class", sa.Integer(), nullable=False, autoincrement=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in (*counts, *tokens)),
        sa.Column("cost", sa.BigInteger() if sqlite else sa.Numeric(20, 10), nullable=False),
        sa.Column("latency_us", sa.BigInteger(), nullable=False),
        sa.Column("overhead_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "hour", "provider", "model", "status_class", name="pk_usage_rollups"),
    )
    op.create_index("ix_usage_rollups_hour", "usage_rollups", ["hour"])
    op.get_bind().exec_driver_sql(_FILL_SQLITE if sqlite else _FILL_POSTGRES)


_FILL = """
INSERT INTO usage_rollups (tenant_id, hour, provider, model, status_class, requests, unpriced, local_fallbacks, input_tokens,
  output_tokens, cached_tokens, reasoning_tokens, cache_write_tokens, cost, latency_us, overhead_us)
SELECT tenant_id, {hour}, coalesce(provider, ''), coalesce(deployment, ''), status / 100, count(*),
  sum(CASE WHEN cost IS NULL THEN 1 ELSE 0 END),
  sum(CASE WHEN provider = 'local' AND attempts > 1 AND model_asked NOT LIKE 'local/%' THEN 1 ELSE 0 END),
  coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), coalesce(sum(cached_tokens), 0),
  coalesce(sum(reasoning_tokens), 0), coalesce(sum(cache_write_tokens), 0), coalesce(sum(cost), 0),
  sum({latency}), sum({overhead})
FROM usage_events GROUP BY 1, 2, 3, 4, 5
"""  # a migration never changes, so it repeats what the code says today
_FILL_SQLITE = _FILL.format(
    hour="substr(timestamp, 1, 13) || ':00:00.000000'",
    latency="CAST(round(latency_ms * 1000) AS INTEGER)",
    overhead="CAST(round(overhead_ms * 1000) AS INTEGER)",
)
_FILL_POSTGRES = _FILL.format(
    hour="date_trunc('hour', timestamp, 'UTC')",
    latency="CAST(round(latency_ms * 1000) AS bigint)",
    overhead="CAST(round(overhead_ms * 1000) AS bigint)",
)

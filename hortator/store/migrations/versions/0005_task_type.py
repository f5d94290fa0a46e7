"""task_type and local_fallback: what a request was for, and whether the embedded model stood in for another one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

UUID = sa.Uuid(as_uuid=False)
KEY = ("tenant_id", "hour", "provider", "model", "status_class", "task_type")


def upgrade() -> None:
    """Add the columns to the records, and the task type to the key of their sums. What is there has none."""
    op.add_column("usage_events", sa.Column("task_type", sa.String(100)))
    fallback: sa.Column[bool] = sa.Column("local_fallback", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("usage_events", fallback)
    if op.get_bind().dialect.name != "sqlite":
        op.add_column("usage_rollups", sa.Column("task_type", sa.String(100), nullable=False, server_default=""))
        op.drop_constraint("pk_usage_rollups", "usage_rollups")
        op.create_primary_key("pk_usage_rollups", "usage_rollups", list(KEY))
        return
    # SQLite cannot change a key: the sums move into another table.
    op.drop_index("ix_usage_rollups_hour", "usage_rollups")
    op.rename_table("usage_rollups", "usage_rollups_before")
    _create_on_sqlite()
    names = ", ".join((*KEY[:-1], *COUNTS, "cost", "latency_us", "overhead_us"))
    statement = f"INSERT INTO usage_rollups ({names}, task_type) SELECT {names}, '' FROM usage_rollups_before"  # noqa: S608 - constants
    op.get_bind().exec_driver_sql(statement)
    op.drop_table("usage_rollups_before")
    op.create_index("ix_usage_rollups_hour", "usage_rollups", ["hour"])


COUNTS = (
    "requests",
    "unpriced",
    "local_fallbacks",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "reasoning_tokens",
    "cache_write_tokens",
)


def _create_on_sqlite() -> None:
    op.create_table(
        "usage_rollups",
        sa.Column("tenant_id", UUID, nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("provider", sa.String(100), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("status_class", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("task_type", sa.String(100), nullable=False, server_default=""),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        sa.Column("cost", sa.BigInteger(), nullable=False),
        sa.Column("latency_us", sa.BigInteger(), nullable=False),
        sa.Column("overhead_us", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(*KEY, name="pk_usage_rollups"),
    )

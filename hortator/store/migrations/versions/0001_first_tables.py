"""tenants, api_keys, tasks, usage_events (R-000-76 to R-000-79)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
INSTANT = sa.DateTime(timezone=True)
UUID = sa.Uuid(as_uuid=False)


def upgrade() -> None:
    """Create the first four tables and their indexes."""
    _create_tenants()
    _create_tasks()
    _create_usage_events()


def _created_at() -> sa.Column[object]:
    return sa.Column("created_at", INSTANT, nullable=False, server_default=sa.func.now())


def _create_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", UUID, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("namespace", sa.String(63), nullable=False),
        _created_at(),
        sa.Column("config", JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenants"),
        sa.UniqueConstraint("namespace", name="uq_tenants_namespace"),
    )
    op.create_table(
        "api_keys",
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("tenant_id", UUID, nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("permissions", JSON, nullable=False),
        sa.Column("allowed_models", JSON, nullable=False),
        _created_at(),
        sa.Column("last_used_at", INSTANT),
        sa.Column("expires_at", INSTANT),
        sa.Column("revoked_at", INSTANT),
        sa.Column("replaced_by", sa.String(64)),
        sa.PrimaryKeyConstraint("key_hash", name="pk_api_keys"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_api_keys_tenant_id"),
        sa.ForeignKeyConstraint(["replaced_by"], ["api_keys.key_hash"], name="fk_api_keys_replaced_by"),
    )
    op.create_index("ix_api_keys_tenant_id_name", "api_keys", ["tenant_id", "name"])


def _create_tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("id", UUID, nullable=False),
        sa.Column("tenant_id", UUID, nullable=False),
        sa.Column("parent_task_id", UUID),
        sa.Column("status", sa.String(50), nullable=False),
        sa.Column("task_type", sa.String(100), nullable=False),
        sa.Column("model", sa.String(100)),
        _created_at(),
        sa.Column("completed_at", INSTANT),
        sa.Column("config", JSON),
        sa.Column("results", JSON),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_tasks_tenant_id"),
        sa.ForeignKeyConstraint(["parent_task_id"], ["tasks.id"], name="fk_tasks_parent_task_id"),
    )
    op.create_index("ix_tasks_tenant_id_created_at", "tasks", ["tenant_id", "created_at"])
    op.create_index("ix_tasks_parent_task_id", "tasks", ["parent_task_id"])


def _create_usage_events() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    milliseconds = sa.Numeric(14, 3)
    op.create_table(
        "usage_events",
        sa.Column("id", sa.Integer() if sqlite else sa.BigInteger(), autoincrement=True, nullable=False),
        sa.Column("event_id", UUID, nullable=False),
        sa.Column("tenant_id", UUID, nullable=False),
        sa.Column("task_id", UUID),
        sa.Column("event_type", sa.String(50), nullable=False),
        sa.Column("token_count", sa.BigInteger()),
        sa.Column("compute_seconds", sa.Numeric(14, 6)),
        sa.Column("timestamp", INSTANT, nullable=False, server_default=sa.func.now()),
        sa.Column("metadata", JSON),
        sa.Column("request_id", sa.String(255), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("operation", sa.String(50), nullable=False),
        sa.Column("model_asked", sa.String(255), nullable=False),
        sa.Column("model_served", sa.String(255)),
        sa.Column("provider", sa.String(100)),
        sa.Column("deployment", sa.String(255)),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("cached_tokens", sa.BigInteger()),
        sa.Column("reasoning_tokens", sa.BigInteger()),
        sa.Column("cache_write_tokens", sa.BigInteger()),
        sa.Column("usage_source", sa.String(20), nullable=False),
        sa.Column("price", JSON),
        sa.Column("cost", sa.BigInteger() if sqlite else sa.Numeric(20, 10)),
        sa.Column("price_state", sa.String(20), nullable=False),
        sa.Column("latency_ms", milliseconds, nullable=False),
        sa.Column("first_byte_ms", milliseconds),
        sa.Column("overhead_ms", milliseconds, nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("error_code", sa.String(100)),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("complete", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_usage_events"),
        sa.UniqueConstraint("event_id", name="uq_usage_events_event_id"),
    )
    op.create_index("ix_usage_events_tenant_id_timestamp", "usage_events", ["tenant_id", "timestamp"])
    if not sqlite:
        op.create_index("ix_usage_events_timestamp_brin", "usage_events", ["timestamp"], postgresql_using="brin")

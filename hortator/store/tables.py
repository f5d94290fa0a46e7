"""The tables, as SQLAlchemy Core describes them (R-000-76 to R-000-79). `docs/data-schema.md` explains every column.

Used by `queries.py` and `usage.py`, which hold every statement, and by the migrations' test; nobody else may select from
these tables. The types here hide what SQLite lacks: time zones, exact decimals, UUID and JSONB columns.
Nothing here opens a connection.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    false,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import JSON, TypeEngine

MONEY_SCALE = 10
"""Digits after the point of a stored amount; amounts are US dollars."""

Json = JSON().with_variant(JSONB(), "postgresql")
BigId = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite gives out row numbers only for INTEGER."""


class Instant(TypeDecorator[datetime]):
    """A moment, always aware and in UTC. TIMESTAMPTZ on Postgres, ISO text in UTC on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a moment without zone: it would be read in another one."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment needs a time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the zone back."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Money(TypeDecorator[Decimal]):
    """US dollars, exact. NUMERIC(20,10) on Postgres; on SQLite an INTEGER of 1e-10 dollars, so that SUM is exact there too."""

    impl = Numeric(20, MONEY_SCALE)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """SQLite's NUMERIC is a binary float."""
        return dialect.type_descriptor(BigInteger() if dialect.name == "sqlite" else Numeric(20, MONEY_SCALE))

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Decimal | int | None:
        """Dollars to what the column holds."""
        if value is None or dialect.name != "sqlite":
            return value
        return int(value.scaleb(MONEY_SCALE).to_integral_value())

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """What the column holds to dollars."""
        if value is None:
            return None
        return Decimal(value).scaleb(-MONEY_SCALE) if dialect.name == "sqlite" else Decimal(value)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
    }
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("namespace", String(63), nullable=False),
    Column("created_at", Instant, nullable=False, server_default=func.now()),
    Column("config", Json, nullable=False),
    Column("disabled_at", Instant),
    UniqueConstraint("namespace"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_hash", String(64), primary_key=True),
    Column("tenant_id", Uuid(as_uuid=False), ForeignKey("tenants.id"), nullable=False),
    Column("name", String(255), nullable=False),
    Column("prefix", String(16), nullable=False),
    Column("permissions", Json, nullable=False),
    Column("allowed_models", Json, nullable=False),
    Column("created_at", Instant, nullable=False, server_default=func.now()),
    Column("last_used_at", Instant),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    Column("replaced_by", String(64), ForeignKey("api_keys.key_hash")),
    Column("config", Json, nullable=False, server_default="{}"),
    Index(None, "tenant_id", "name"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    Column("tenant_id", Uuid(as_uuid=False), ForeignKey("tenants.id"), nullable=False),
    Column("root_id", Uuid(as_uuid=False), nullable=False),
    Column("parent_task_id", Uuid(as_uuid=False), ForeignKey("tasks.id")),
    Column("key_hash", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    Column("status", String(50), nullable=False),
    Column("task_type", String(100), nullable=False),
    Column("model", String(100)),
    Column("role", String(100), nullable=False),
    Column("tier", String(20), nullable=False),
    Column("pattern", String(20), nullable=False),
    Column("source", String(20), nullable=False),
    Column("priority", String(10), nullable=False),
    Column("depth", Integer, nullable=False),
    Column("position", Integer, nullable=False),
    Column("created_at", Instant, nullable=False, server_default=func.now()),
    Column("started_at", Instant),
    Column("completed_at", Instant),
    Column("deadline_at", Instant),
    Column("request", Json, nullable=False),
    Column("config", Json),
    Column("results", Json),
    Column("error", Json),
    Column("message", String(500), nullable=False),
    Column("progress", Integer, nullable=False),
    Column("max_tokens", BigInteger),
    Column("max_cost", Money),
    Column("held_tokens", BigInteger, nullable=False),
    Column("held_cost", Money, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost", Money, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("idempotency_key", String(255)),
    Column("fingerprint", String(64)),
    UniqueConstraint("tenant_id", "idempotency_key"),
    Index(None, "tenant_id", "created_at"),
    Index(None, "parent_task_id"),
    Index(None, "root_id"),
    Index(None, "status"),
)
"""One row a task; a tree is all rows of one `root_id`. Tokens and cost of a row are its own and those of all tasks below it."""

task_steps = Table(
    "task_steps",
    metadata,
    Column("task_id", Uuid(as_uuid=False), primary_key=True),
    Column("key", String(100), primary_key=True),
    Column("tenant_id", Uuid(as_uuid=False), nullable=False),
    Column("root_id", Uuid(as_uuid=False), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("name", String(200), nullable=False),
    Column("status", String(20), nullable=False),
    Column("runs", Integer, nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Column("request_id", String(255)),
    Column("deployment", String(255)),
    Column("held_tokens", BigInteger, nullable=False),
    Column("held_cost", Money, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost", Money),
    Column("result", Json),
    Column("error", Json),
    Index(None, "root_id"),
)
"""One model call or tool call. A finished one is never made again: its result is here."""

task_events = Table(
    "task_events",
    metadata,
    Column("root_id", Uuid(as_uuid=False), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", Uuid(as_uuid=False), nullable=False),
    Column("task_id", Uuid(as_uuid=False), nullable=False),
    Column("type", String(50), nullable=False),
    Column("payload", Json, nullable=False),
    Column("at", Instant, nullable=False),
)
"""The log of a tree: every view of it shows this, in order."""

task_files = Table(
    "task_files",
    metadata,
    Column("task_id", Uuid(as_uuid=False), primary_key=True),
    Column("path", String(500), primary_key=True),
    Column("root_id", Uuid(as_uuid=False), nullable=False),
    Column("tenant_id", Uuid(as_uuid=False), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("media_type", String(200), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Index(None, "root_id"),
)
"""The workspace of a task: `inbox/...` was given to it, `outbox/...` is what it gives, everything else is its own."""

usage_events = Table(
    "usage_events",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("event_id", Uuid(as_uuid=False), nullable=False),
    Column("tenant_id", Uuid(as_uuid=False), nullable=False),
    Column("task_id", Uuid(as_uuid=False)),
    Column("event_type", String(50), nullable=False),
    Column("token_count", BigInteger),
    Column("compute_seconds", Numeric(14, 6, asdecimal=False)),
    Column("timestamp", Instant, nullable=False, server_default=func.now()),
    Column("metadata", Json),
    Column("request_id", String(255), nullable=False),
    Column("key_hash", String(64), nullable=False),
    Column("operation", String(50), nullable=False),
    Column("model_asked", String(255), nullable=False),
    Column("model_served", String(255)),
    Column("provider", String(100)),
    Column("deployment", String(255)),
    Column("attempts", Integer, nullable=False),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("cached_tokens", BigInteger),
    Column("reasoning_tokens", BigInteger),
    Column("cache_write_tokens", BigInteger),
    Column("usage_source", String(20), nullable=False),
    Column("price", Json),
    Column("cost", Money),
    Column("price_state", String(20), nullable=False),
    Column("latency_ms", Numeric(14, 3, asdecimal=False), nullable=False),
    Column("first_byte_ms", Numeric(14, 3, asdecimal=False)),
    Column("overhead_ms", Numeric(14, 3, asdecimal=False), nullable=False),
    Column("status", Integer, nullable=False),
    Column("error_code", String(100)),
    Column("stream", Boolean, nullable=False),
    Column("complete", Boolean, nullable=False),
    Column("task_type", String(100)),
    Column("local_fallback", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("event_id"),
    Index(None, "tenant_id", "timestamp"),
    Index(None, "timestamp"),
)
"""No foreign keys: what happened is recorded even when its tenant is gone."""

usage_rollups = Table(
    "usage_rollups",
    metadata,
    Column("tenant_id", Uuid(as_uuid=False), primary_key=True),
    Column("hour", Instant, primary_key=True),
    Column("provider", String(100), primary_key=True),
    Column("model", String(255), primary_key=True),
    Column("status_class", Integer, primary_key=True, autoincrement=False),
    Column("task_type", String(100), primary_key=True, server_default=""),
    Column("requests", BigInteger, nullable=False),
    Column("unpriced", BigInteger, nullable=False),
    Column("local_fallbacks", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("cost", Money, nullable=False),
    Column("latency_us", BigInteger, nullable=False),
    Column("overhead_us", BigInteger, nullable=False),
    Index(None, "hour"),
)
"""Sums of `usage_events`, kept by `usage.py` in the transaction that inserts. Reports read these and never a day of records."""

key_rollups = Table(
    "key_rollups",
    metadata,
    Column("hour", Instant, primary_key=True),
    Column("tenant_id", Uuid(as_uuid=False), primary_key=True),
    Column("key_hash", String(64), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("cost", Money, nullable=False),
)
"""What each key has used, kept in the same transaction: counters of limits that are lost are made anew from these."""

routing_outcomes = Table(
    "routing_outcomes",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("request_id", String(255), nullable=False),
    Column("tenant_id", Uuid(as_uuid=False), nullable=False),
    Column("key_hash", String(64), nullable=False),
    Column("at", Instant, nullable=False),
    Column("path", String(10), nullable=False),
    Column("score", Float, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("features", Json, nullable=False),
    Column("model", String(255)),
    Column("cost", Money),
    Column("retried", Boolean, nullable=False),
    Column("escalated", Boolean, nullable=False),
    Column("error_code", String(100)),
    Index(None, "tenant_id", "request_id"),
    Index(None, "at"),
)
"""What became of requests routed by their complexity: numbers, never their text. No foreign keys, as in `usage_events`."""

audit = Table(
    "audit",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("at", Instant, nullable=False),
    Column("actor_name", String(255), nullable=False),
    Column("actor_key_hash", String(64)),
    Column("actor_tenant_id", Uuid(as_uuid=False)),
    Column("action", String(50), nullable=False),
    Column("target", String(255), nullable=False),
    Column("tenant_id", Uuid(as_uuid=False)),
    Column("request_id", String(255)),
    Column("detail", Json, nullable=False),
    Index(None, "tenant_id", "id"),
    Index(None, "at"),
)
"""No foreign keys, and nothing is ever changed in it."""

responses = Table(
    "responses",
    metadata,
    Column("tenant_id", Uuid(as_uuid=False), ForeignKey("tenants.id"), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("created_at", Instant, nullable=False),
    Column("status", String(20), nullable=False),
    Column("previous_id", String(255)),
    Column("input", LargeBinary, nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("background", Boolean, nullable=False),
    Column("key_hash", String(64), nullable=False),
    Column("request", LargeBinary),
    Column("attempts", Integer, nullable=False),
    Column("held_until", Instant),
    Index(None, "created_at"),
    Index(None, "status"),
)
"""JSON is kept as bytes: what a client gets again is what it got, and JSONB takes neither every number nor every character."""

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", Uuid(as_uuid=False), nullable=False),
    Column("state", String(20), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(50), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Index(None, "tenant_id", "id"),
    Index(None, "expires_at"),
)
"""No foreign keys: a content whose tenant is gone must still be found to be deleted."""

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", Uuid(as_uuid=False), nullable=False),
    Column("key_hash", String(64), nullable=False),
    Column("endpoint", String(100), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("status", String(20), nullable=False),
    Column("metadata", Json),
    Column("model", String(512)),
    Column("errors", Json),
    Column("total", Integer, nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("output_seconds", Integer),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("in_progress_at", Instant),
    Column("finalizing_at", Instant),
    Column("completed_at", Instant),
    Column("failed_at", Instant),
    Column("expired_at", Instant),
    Column("cancelling_at", Instant),
    Column("cancelled_at", Instant),
    Column("lease_owner", String(64)),
    Column("lease_until", Instant),
    Index(None, "tenant_id", "id"),
    Index(None, "status"),
)

batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", String(64), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("tenant_id", Uuid(as_uuid=False), nullable=False),
    Column("succeeded", Boolean, nullable=False),
    Column("result", LargeBinary, nullable=False),
)
"""What became of the lines of batches that are not finished; then it moves to their files."""

engine_workers = Table(
    "engine_workers",
    metadata,
    Column("id", String(255), primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("version", String(100), nullable=False),
    Column("started_at", Instant, nullable=False),
    Column("beat_at", Instant, nullable=False),
)
"""Processes that run durable handlers on Postgres; of no tenant."""
webhooks = Table(
    "webhooks",
    metadata,
    Column("root_id", Uuid(as_uuid=False), ForeignKey("tasks.id", ondelete="CASCADE"), primary_key=True),
    Column("tenant_id", Uuid(as_uuid=False), nullable=False),
    Column("url", String(2048), nullable=False),
    Column("events", Json),
    Column("next_seq", BigInteger, nullable=False),
    Column("progress", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("finished_at", Instant),
    Index(None, "tenant_id", "finished_at"),
)
"""Goes with its tree, as do its deliveries."""

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", Uuid(as_uuid=False), nullable=False),
    Column("root_id", Uuid(as_uuid=False), ForeignKey("webhooks.root_id", ondelete="CASCADE"), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("event_type", String(50), nullable=False),
    Column("url", String(2048), nullable=False),
    Column("status", String(20), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_status", Integer),
    Column("last_error", String(100)),
    Column("next_at", Instant),
    Column("created_at", Instant, nullable=False),
    Column("delivered_at", Instant),
    Column("body", LargeBinary, nullable=False),
    UniqueConstraint("root_id", "seq"),
)
"""The body is kept as bytes: every try sends the same ones, which are signed."""

webhook_secrets = Table(
    "webhook_secrets",
    metadata,
    Column("tenant_id", Uuid(as_uuid=False), ForeignKey("tenants.id"), primary_key=True),
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("secret", String(100), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
)
"""What signs is kept as it is: a hash cannot sign."""

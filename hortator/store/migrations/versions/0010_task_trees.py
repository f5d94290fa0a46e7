"""tasks as trees, with their steps, events and files. Nothing wrote to `tasks` before: it is made anew."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"

INSTANT = sa.DateTime(timezone=True)
UUID = sa.Uuid(as_uuid=False)


def _json() -> sa.JSON:
    return sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    # SQLite's NUMERIC is a binary float: amounts are integers there (`Money` in tables.py).
    money = sa.BigInteger() if op.get_bind().dialect.name == "sqlite" else sa.Numeric(20, 10)
    op.drop_table("tasks")
    op.create_table(
        "tasks",
        sa.Column("id", UUID, nullable=False),
        sa.Column("tenant_id", UUID, nullable=False),
        sa.Column("root_id", UUID, nullable=False),
        sa.Column("parent_task_id", UUID),
        sa.Column("key_hash", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("status", sa.String(50), nullable=False),
        sa.Column("task_type", sa.String(100), nullable=False),
        sa.Column("model", sa.String(100)),
        sa.Column("role", sa.String(100), nullable=False),
        sa.Column("tier", sa.String(20), nullable=False),
        sa.Column("pattern", sa.String(20), nullable=False),
        sa.Column("source", sa.String(20), nullable=False),
        sa.Column("priority", sa.String(10), nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("created_at", INSTANT, server_default=sa.func.now(), nullable=False),
        sa.Column("started_at", INSTANT),
        sa.Column("completed_at", INSTANT),
        sa.Column("deadline_at", INSTANT),
        sa.Column("request", _json(), nullable=False),
        sa.Column("config", _json()),
        sa.Column("results", _json()),
        sa.Column("error", _json()),
        sa.Column("message", sa.String(500), nullable=False),
        sa.Column("progress", sa.Integer, nullable=False),
        sa.Column("max_tokens", sa.BigInteger),
        sa.Column("max_cost", money),
        sa.Column("held_tokens", sa.BigInteger, nullable=False),
        sa.Column("held_cost", money, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost", money, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("fingerprint", sa.String(64)),
        sa.PrimaryKeyConstraint("id", name="pk_tasks"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="fk_tasks_tenant_id"),
        sa.ForeignKeyConstraint(["parent_task_id"], ["tasks.id"], name="fk_tasks_parent_task_id"),
        sa.UniqueConstraint("tenant_id", "idempotency_key", name="uq_tasks_tenant_id"),
    )
    for columns in (["tenant_id", "created_at"], ["parent_task_id"], ["root_id"], ["status"]):
        op.create_index(f"ix_tasks_{'_'.join(columns)}", "tasks", columns)
    _steps(money)
    _logs()


def _steps(money: sa.types.TypeEngine[Any]) -> None:
    op.create_table(
        "task_steps",
        sa.Column("task_id", UUID, nullable=False),
        sa.Column("key", sa.String(100), nullable=False),
        sa.Column("tenant_id", UUID, nullable=False),
        sa.Column("root_id", UUID, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("runs", sa.Integer, nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("finished_at", INSTANT),
        sa.Column("request_id", sa.String(255)),
        sa.Column("deployment", sa.String(255)),
        sa.Column("held_tokens", sa.BigInteger, nullable=False),
        sa.Column("held_cost", money, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost", money),
        sa.Column("result", _json()),
        sa.Column("error", _json()),
        sa.PrimaryKeyConstraint("task_id", "key", name="pk_task_steps"),
    )
    op.create_index("ix_task_steps_root_id", "task_steps", ["root_id"])


def _logs() -> None:
    op.create_table(
        "task_events",
        sa.Column("root_id", UUID, nullable=False),
        sa.Column("seq", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("tenant_id", UUID, nullable=False),
        sa.Column("task_id", UUID, nullable=False),
        sa.Column("type", sa.String(50), nullable=False),
        sa.Column("payload", _json(), nullable=False),
        sa.Column("at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("root_id", "seq", name="pk_task_events"),
    )
    op.create_table(
        "task_files",
        sa.Column("task_id", UUID, nullable=False),
        sa.Column("path", sa.String(500), nullable=False),
        sa.Column("root_id", UUID, nullable=False),
        sa.Column("tenant_id", UUID, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("media_type", sa.String(200), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("task_id", "path", name="pk_task_files"),
    )
    op.create_index("ix_task_files_root_id", "task_files", ["root_id"])

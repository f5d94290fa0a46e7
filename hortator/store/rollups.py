"""The sums that stand beside the usage records: one row an hour, tenant, provider, model, class of status and task type; one an hour and key.

`usage.py` runs `SQLITE` and `SQLITE_KEYS` and puts `POSTGRES` and `POSTGRES_KEYS` into its own statement, in the transaction that inserts the records. The database
itself adds up the rows that were really new, so a replayed batch counts nothing twice and a refused row nothing at all.
Nothing is read out of here: `reports.py` reads the sums, through a scope.
"""

from __future__ import annotations

_COLUMNS = (
    "tenant_id, hour, provider, model, status_class, task_type, requests, unpriced, local_fallbacks, input_tokens, output_tokens, "
    "cached_tokens, reasoning_tokens, cache_write_tokens, cost, latency_us, overhead_us"
)
_KEY = "tenant_id, hour, provider, model, status_class, task_type"
_SUMS = _COLUMNS.split(", ")[6:]


def _statement(source: str, hour: str, micros: str, group: str) -> str:
    """One statement that adds the rows of `source`, grouped by `group`, to the sums."""
    values = (
        f"tenant_id, {hour}, coalesce(provider, ''), coalesce(deployment, ''), status / 100, coalesce(task_type, ''), count(*), "
        f"sum(CASE WHEN cost IS NULL THEN 1 ELSE 0 END), sum(CASE WHEN local_fallback THEN 1 ELSE 0 END), "
        "coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), coalesce(sum(cached_tokens), 0), "
        "coalesce(sum(reasoning_tokens), 0), coalesce(sum(cache_write_tokens), 0), coalesce(sum(cost), 0), "
        f"sum({micros.format('latency_ms')}), sum({micros.format('overhead_ms')})"
    )
    added = ", ".join(f"{name} = usage_rollups.{name} + excluded.{name}" for name in _SUMS)
    return (
        f"INSERT INTO usage_rollups ({_COLUMNS}) SELECT {values} FROM {source} GROUP BY {group} "  # noqa: S608 - constants
        f"ON CONFLICT ({_KEY}) DO UPDATE SET {added}"
    )


def _keys(source: str, hour: str, group: str) -> str:
    """One statement that adds the rows of `source` to the sums by key. Calls that were not let through have no attempt."""
    values = (
        f"{hour}, tenant_id, key_hash, sum(CASE WHEN attempts > 0 THEN 1 ELSE 0 END), "
        "sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)), coalesce(sum(cost), 0)"
    )
    added = ", ".join(f"{name} = key_rollups.{name} + excluded.{name}" for name in ("requests", "tokens", "cost"))
    return (
        f"INSERT INTO key_rollups (hour, tenant_id, key_hash, requests, tokens, cost) SELECT {values} FROM {source} "  # noqa: S608 - constants
        f"GROUP BY {group} ON CONFLICT (hour, tenant_id, key_hash) DO UPDATE SET {added}"
    )


_SQLITE_MICROS = "CAST(round({} * 1000) AS INTEGER)"
_SQLITE_HOUR = "substr(timestamp, 1, 13) || ':00:00.000000'"
LAST = "SELECT coalesce(max(id), 0) FROM usage_events"
"""SQLite: the newest record. What is inserted after it in the same transaction is new."""
SQLITE = _statement(
    "usage_events WHERE id > ?",
    _SQLITE_HOUR,
    _SQLITE_MICROS,
    "tenant_id, substr(timestamp, 1, 13), provider, deployment, status / 100, task_type",
)
"""SQLite: add the records after the one given. Grouping by plain columns saves half a microsecond a record."""

SQLITE_KEYS = _keys("usage_events WHERE id > ?", _SQLITE_HOUR, "tenant_id, key_hash, substr(timestamp, 1, 13)")

_POSTGRES_MICROS = "round({} * 1000)::bigint"
_POSTGRES_HOUR = "date_trunc('hour', timestamp, 'UTC')"
POSTGRES_COLUMNS = (
    "tenant_id, key_hash, timestamp, provider, deployment, status, cost, attempts, model_asked, input_tokens, output_tokens, "
    "cached_tokens, reasoning_tokens, cache_write_tokens, latency_ms, overhead_ms, task_type, local_fallback"
)
"""Postgres: what the inserting statement must return."""
POSTGRES = _statement("new", _POSTGRES_HOUR, _POSTGRES_MICROS, "1, 2, 3, 4, 5, 6 ORDER BY 1, 2, 3, 4, 5, 6")
"""Postgres: add the rows of `new`, which the inserting statement returned; in one order, so that replicas never deadlock."""
POSTGRES_KEYS = _keys("new", _POSTGRES_HOUR, "1, 2, 3 ORDER BY 1, 2, 3")

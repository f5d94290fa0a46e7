"""A gateway whose teams are switched off: their addresses are unknown like any other."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import Client


@pytest.fixture
def changes() -> dict[str, Any]:
    return {"orchestration": {"enabled": False}}


async def test_addresses_of_tasks_are_unknown_where_teams_are_off(operator: Client) -> None:
    for path in ("/api/v1/tasks", "/api/v1/tasks/x/events", "/api/v1/orchestrations"):
        assert await operator.refused("GET", path) == (404, "unknown_url")
    assert await operator.refused("POST", "/api/v1/tasks", {"prompt": "x"}) == (404, "unknown_url")

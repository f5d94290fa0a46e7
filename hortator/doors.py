"""The doors for clients over one generation of rooms, and which of them a path belongs to.

`app.py` makes one for each configuration that takes effect and asks `at` for every request; what no door here takes goes to the shell
(`api/shell.py`). This is the only list of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from hortator.api import route, webhooks
from hortator.api.harpoon import HarpoonDoor, Sources
from hortator.api.messages import VERSION, MessagesDoor
from hortator.api.openai import OpenAIDoor
from hortator.api.orchestrate import ORCHESTRATE, STATUS, OrchestrateDoor
from hortator.api.orchestrations import OrchestrationsDoor
from hortator.api.reading import Receive, Scope, Send
from hortator.api.responses import ResponsesDoor
from hortator.api.socket import SocketDoor, nowhere
from hortator.api.task_events import Views
from hortator.api.tasks import TasksDoor
from hortator.api.team_chat import TeamChat
from hortator.archive import Archive, Background
from hortator.batching import PATHS as STORED
from hortator.gateway import Gateway
from hortator.orchestration.roles import Roles
from hortator.orchestration.teams import Teams
from hortator.orchestration.webhooks import Webhooks

Door = Callable[[Scope, Receive, Send, str], Awaitable[None]]


class Doors:
    """Raw ASGI doors; each is called with the path below the root path."""

    def __init__(
        self,
        gateway: Gateway,
        max_body_bytes: int,
        sources: Sources,
        archive: Archive | None,
        background: Background | None,
        stored: Door,
        teams: Teams | None = None,
        roles: Roles | None = None,
        *,
        root_path: str = "",
        called: Webhooks | None = None,
        sockets: SocketDoor | None = None,
        views: Views | None = None,
    ) -> None:
        """`stored` is the door of files and batches, which all generations share. `teams`, `roles`: None = orchestration is off.

        `root_path` stands before addresses that clients are told; `called`: what is sent to the `callback_url` of tasks;
        `sockets`: the door of WebSockets, which all generations share; `views`: where requests that wait for tasks are counted.
        """
        self._stored = stored
        team = None if teams is None or roles is None else TeamChat(gateway, teams, roles, root_path)
        self._openai = OpenAIDoor(gateway, max_body_bytes, team)
        self._messages = MessagesDoor(gateway, max_body_bytes, team)
        self._responses = ResponsesDoor(gateway, archive, background, max_body_bytes, team)
        self._previews = route.RouteDoor(gateway, max_body_bytes)
        self._harpoon = HarpoonDoor(gateway, sources, max_body_bytes)
        self._orchestrate = OrchestrateDoor(gateway, teams, max_body_bytes)
        self._working: dict[str, Door] = {}
        """Doors of what teams of agents work on, by path."""
        if teams is not None:
            self._working = {
                kind.path: kind(
                    gateway.admit, teams, max_body_bytes, root_path=root_path, deliveries=called, views=views
                )
                for kind in (TasksDoor, OrchestrationsDoor)
            }
        if called is not None:
            self._working[webhooks.PATH] = webhooks.WebhooksDoor(gateway.admit, called)
        self.socket: Door = nowhere if sockets is None else sockets
        """Takes what asked for a WebSocket."""

    def at(self, path: str, scope: Scope) -> Door | None:
        """Return the door of a path, None for the shell's."""
        if path.startswith("/v1/"):
            if path.startswith("/v1/responses") and path[13:14] in ("", "/"):
                return self._responses
            if path.startswith(STORED):
                return self._stored
            return self._messages if path.startswith("/v1/m") and _is_messages(path, scope) else self._openai
        if path == route.PATH:
            return self._previews
        if path.startswith("/api/") and not path.startswith("/api/v1/"):
            return self._orchestrate if path.startswith(ORCHESTRATE) or path == STATUS else self._harpoon
        for known, door in self._working.items():
            if path.startswith(known) and path[len(known) : len(known) + 1] in ("", "/"):
                return door
        return None


def _is_messages(path: str, scope: Scope) -> bool:
    """Whether a request is for the messages door: its own addresses, and models when the client speaks its dialect."""
    if path.startswith("/v1/messages"):
        return path == "/v1/messages" or path.startswith("/v1/messages/")
    return path.startswith("/v1/models") and any(name == VERSION for name, _ in scope["headers"])

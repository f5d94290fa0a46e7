"""What the room is given: the corridor for its model calls, and the engine that runs its work again after a crash.

`teams.py` (the composition) makes the corridor's side, `engine.py` the durable one; tests have their own of each. Values here walk
between an agent and the corridor. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from hortator.call import Caller, Preferences, Usage

T = TypeVar("T")
Handler = Callable[[str], Awaitable[None]]
"""Works on what an id names until it is finished. Run again from the start after a crash; never raises but for cancellation."""


class Ask(Struct, frozen=True, kw_only=True):
    """One model call of an agent."""

    task_id: str
    root_id: str
    messages: Sequence[Mapping[str, Any]]
    """In the chat dialect."""
    tier: str
    """Of the agent: which model is good enough where none is named."""
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    response_format: Mapping[str, Any] | None = None
    task_type: str | None = None
    preferences: Preferences | None = None
    request_id: str | None = None
    """Stable over runs of the same step; None = a new one."""
    on_text: Callable[[str], None] | None = None
    """Given: the answer is streamed, and each piece of its text told as it comes."""
    deadline: float | None = None
    """`time.monotonic()`, seconds."""


class ToolCall(Struct, frozen=True, kw_only=True):
    """A tool that a model wants called. `arguments` is the model's own text, which may not be JSON."""

    id: str
    name: str
    arguments: str


class Answer(Struct, frozen=True, kw_only=True):
    """What a model answered."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    usage: Usage
    cost: Decimal | None
    """US dollars of all attempts, as the ledger records it; None = no price is known."""
    deployment: str
    request_id: str
    latency_ms: float
    attempts: int
    chosen: str = ""
    """The model that was named or that routing chose first."""
    reasoning: str = ""
    """Why routing chose it; empty where it was named."""
    fell_back: bool = False
    """A model that stood by answered in its place."""


class Estimate(Struct, frozen=True, kw_only=True):
    """What a call may take at most: tokens of its request, and the dearest prices among where it may go, US dollars a token."""

    input_tokens: int
    input_price: Decimal | None
    output_price: Decimal | None


class Spent(Exception):
    """A model call failed, and something of it was charged. The HortatorError is its cause."""

    def __init__(self, usage: Usage, cost: Decimal | None) -> None:
        super().__init__("a model call failed after it had begun")
        self.usage = usage
        self.cost = cost


class Corridor(Protocol):
    """The gateway as an agent sees it: every call is admitted, limited, priced and recorded like a client's."""

    async def caller(self, key_hash: str, priority: str) -> Caller:
        """Who an agent works for. Raises Unauthenticated when the key is good no more, Unavailable."""

    def estimate(self, caller: Caller, ask: Ask) -> Estimate:
        """What a call may take. Raises what routing raises."""

    async def ask(self, caller: Caller, ask: Ask) -> Answer:
        """Make a call. Raises HortatorError (`retryable` says whether the same may work later), Spent around one."""


class Engine(Protocol):
    """Runs handlers durably: what was begun is finished, by this process or another, whatever dies in between."""

    async def start(self, handlers: Mapping[str, Handler]) -> None:
        """Begin to run what is there: handlers by kind.

        `<kind>.dead` is run once with the id of a handler that was given up: it raised, or its process died with it again and again.
        """

    async def stop(self) -> None:
        """Stop; what is not finished is free for others at once."""

    async def begin(
        self, kind: str, id: str, *, tenant_id: str, priority: str = "standard", here: bool = False
    ) -> None:
        """Have `handlers[kind](id)` run. Durable when it returns; a second time does nothing. Raises Unavailable.

        `here`: in this process, now; else wherever there is room. Bounded work: who begins roots is limited by `Teams`.
        """

    async def step(self, key: str, act: Callable[[], Awaitable[T]]) -> T:
        """Inside a handler: run `act`, whose result is JSON; a finished step's result is returned without running it.

        The keys of a handler come in the same order every time it runs.
        """

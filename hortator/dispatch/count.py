"""Asks a provider how many tokens a request has, before anybody sends it.

The gateway calls it for the messages door. One question to the model's first deployment: it costs nothing and is not tried again.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol, runtime_checkable

from hortator.call import Call, Decision, Deployment
from hortator.dispatch.attempts import Dispatch
from hortator.dispatch.refusal import refused
from hortator.errors import InvalidReply
from hortator.providers.base import Reply
from hortator.wire import messages, refusal


@runtime_checkable
class TokenCounter(Protocol):
    """A provider that counts tokens."""

    def count_tokens(self, call: Call, deployment: Deployment, deadline: float) -> Awaitable[Reply]:
        """Ask how many tokens a request has. Raises UpstreamError."""
        ...


async def count_tokens(dispatch: Dispatch, call: Call, decision: Decision, deadline: float) -> int | None:
    """Return the tokens of a request in the messages dialect; None when its provider does not count. Raises UpstreamError."""
    deployment = decision.candidates[0]
    provider = dispatch.providers[deployment.provider]
    if not isinstance(provider, TokenCounter):
        return None
    reply = await provider.count_tokens(call, deployment, deadline)
    try:
        body = await reply.read()
    finally:
        reply.close()
    if not 200 <= reply.status < 300:
        raise refused(provider, reply.status, reply.headers, refusal.read(body))
    count = messages.read_count(body)
    if count is None:
        raise InvalidReply("The provider's reply is not a count of tokens.")
    return count

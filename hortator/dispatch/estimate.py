"""Token counts for calls whose upstream never reported any: broken streams, hang-ups, providers that keep silent.

Four characters a token is within about ten percent for English and code. Such usage is always marked `estimated`.
"""

from __future__ import annotations

from hortator.call import UNKNOWN_USAGE, Call, Usage
from hortator.wire.chat import WireUsage

CHARACTERS_A_TOKEN = 4
_PROMPT = ("messages", "input", "prompt", "system", "instructions")
"""Where the dialects keep what the model reads."""


def reported(wire: WireUsage) -> Usage:
    """Return the usage that an upstream reported; what it left out stays None."""
    prompt = wire.prompt_tokens_details
    completion = wire.completion_tokens_details
    if wire.prompt_tokens is None and wire.completion_tokens is None:
        return UNKNOWN_USAGE
    return Usage(
        input=wire.prompt_tokens,
        output=wire.completion_tokens,
        cached=prompt.cached_tokens if prompt and prompt.cached_tokens is not None else wire.prompt_cache_hit_tokens,
        cache_write=prompt.cache_write_tokens if prompt else None,
        reasoning=completion.reasoning_tokens if completion else None,
        source="reported",
    )


def estimated(call: Call, characters: int | None) -> Usage:
    """Estimate from the request's prompt and the `characters` of the answer that came; None = no answer was seen."""
    prompt = sum(len(bytes(call.body[key])) for key in _PROMPT if key in call.body)
    return Usage(
        input=max(1, prompt // CHARACTERS_A_TOKEN),
        output=None if characters is None else -(-characters // CHARACTERS_A_TOKEN),
        source="estimated",
    )

"""Messages for tests: made by hand, and drawn by hypothesis in the form that translations give."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Document = dict[str, Any]

USAGE = {
    "input_tokens": 20,
    "output_tokens": 40,
    "cache_read_input_tokens": 64,
    "cache_creation_input_tokens": 16,
    "output_tokens_details": {"thinking_tokens": 30},
}
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    ["🎉", "é", "👩‍👩‍👧", "\u2028", "\n\n", "data: "]
)
INPUTS = st.dictionaries(TEXT, st.integers() | TEXT | st.lists(st.booleans(), max_size=2), max_size=3)


def message(
    content: list[Document], stop_reason: str = "end_turn", usage: Document | None = None, **changes: Any
) -> Document:
    """A whole message."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "stop_details": None,
        "usage": usage or {"input_tokens": 5, "output_tokens": 2},
        **changes,
    }


@st.composite
def contents(draw: st.DrawFn) -> list[Document]:
    """Signed thinking, then text, then any number of parallel calls."""
    thoughts = st.builds(lambda t, s: {"type": "thinking", "thinking": t, "signature": s}, TEXT, TEXT)
    redacted = st.builds(lambda d: {"type": "redacted_thinking", "data": d}, TEXT)
    texts = st.builds(lambda t: {"type": "text", "text": t}, TEXT)
    calls = [
        {"type": "tool_use", "id": f"toolu_{at}", "name": draw(st.sampled_from(["f", "g"])), "input": draw(INPUTS)}
        for at in range(draw(st.integers(0, 3)))
    ]
    return draw(st.lists(thoughts | redacted, max_size=3)) + draw(st.lists(texts, max_size=1)) + calls


@st.composite
def endings(draw: st.DrawFn) -> Document:
    """Why it stopped. `end_turn` with calls does not occur: such a message ends with `tool_use`."""
    reason = draw(
        st.sampled_from(
            ["tool_use", "max_tokens", "stop_sequence", "pause_turn", "refusal", "model_context_window_exceeded"]
        )
    )
    details = {"type": "refusal", "category": None, "explanation": None} if reason == "refusal" else None
    sequence = draw(TEXT) if reason == "stop_sequence" else None
    return {"stop_reason": reason, "stop_sequence": sequence, "stop_details": details}


@st.composite
def usages(draw: st.DrawFn) -> Document:
    """Tokens, with and without the cache and thinking."""
    count = st.integers(0, 10**9)
    usage: Document = {"input_tokens": draw(count), "output_tokens": draw(count)}
    for name in ("cache_read_input_tokens", "cache_creation_input_tokens"):
        if draw(st.booleans()):
            usage[name] = draw(count)
    if draw(st.booleans()):
        usage["output_tokens_details"] = {"thinking_tokens": draw(count)}
    return usage

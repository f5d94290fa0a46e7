"""A model that a team of agents can work with: it plans, does parts, judges and writes, by what the request's text tells it.

Scenario `team` of the scripted upstream. What a test wants is written into the order, in brackets, and so reaches every agent's prompt:

    [mark:<name>]   requests with this text belong to the mark `<name>`, as if `user` said so: for gates and for counting
    [parts:5]       plans have so many parts (3)
    [chain]         each part depends on the one before
    [prose]         plans are not JSON
    [hold]          parts wait at the gate `work` of their mark; [hold:synthesis] and [hold:plan] likewise
    [wait:part-2]   that part waits at the gate `part-2` of its mark
    [fail:part-2]   that part is refused with 400, [flaky:part-2] with 503
    [score:6,8,9]   what a judge says, one after the other (by the number in `iteration N` or of judgements so far)

Every answer took 100 tokens of input and 20 of output.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tests.upstream.script import Script, chunk, completion, dump, error_body, reply, sse, stream_head, usage_chunk

if TYPE_CHECKING:
    from tests.upstream.scenarios import Request

USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
_MARK = re.compile(r"\[mark:([A-Za-z0-9_-]+)\]")


def mark_of(body: str) -> str:
    """The mark that a request's text names, empty where it names none."""
    found = _MARK.search(body)
    return found.group(1) if found else ""


def told(text: str, name: str, default: str = "") -> str:
    """What the order says of `name`."""
    found = re.search(rf"\[{name}:([^\]]*)\]", text)
    return found.group(1) if found else default


def team(request: Request) -> Script:
    """Play the part that the request is for."""
    messages = request.body.get("messages", [])
    text = "\n".join(_text(message.get("content")) for message in messages)
    kind = _kind(messages, text)
    steps: Script = []
    if f"[hold:{kind}]" in text or (kind == "work" and "[hold]" in text):
        steps.append(["gate", kind])
    part = _part(text) if kind == "work" else ""
    if part and part in told(text, "wait").split(","):
        steps.append(["gate", part])
    if part and part in told(text, "fail").split(","):
        return [*steps, *reply(400, error_body(f"{part} is refused", "bad_part", "invalid_request_error"))]
    if part and part in told(text, "flaky").split(","):
        return [*steps, *reply(503, error_body(f"{part} is busy", "busy"))]
    answer = {"plan": _plan, "judge": _judge, "work": _work, "synthesis": _synthesis}[kind](text)
    if not request.stream:
        return [*steps, *reply(200, dump(completion({"role": "assistant", "content": answer}, usage=USAGE)))]
    words = re.findall(r"\S+\s*", answer)
    chunks = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": word}) for word in words)]
    ends = [chunk({}, "stop"), *([usage_chunk(USAGE)] if request.wants_usage else []), "[DONE]"]
    return [*steps, stream_head(), *sse(*chunks, *ends), ["end"]]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _kind(messages: list[dict[str, Any]], text: str) -> str:
    """Which of its parts an agent wants: the words that the room's prompts have."""
    last = _text(messages[-1].get("content")) if messages else ""
    if '{"tasks"' in last or "corrected JSON" in last or "task plan" in last:
        return "plan"
    if '"score"' in text:
        return "judge"
    return "work" if "# Your part" in text or "Do only your part" in text else "synthesis"


def _part(text: str) -> str:
    after = text.rpartition("# Your part")[2]
    found = re.search(r"part-\d+", after)
    return found.group(0) if found else ""


def _plan(text: str) -> str:
    if "[prose]" in text:
        return "First I would look around, and then we shall see."
    count = int(told(text, "parts", "3"))
    names = [f"part-{number}" for number in range(1, count + 1)]
    tasks = [
        {
            "id": name,
            "description": f"Do {name} of the work.",
            "dependencies": [names[place - 1]] if place and "[chain]" in text else [],
        }
        for place, name in enumerate(names)
    ]
    return json.dumps({"tasks": tasks})


def _judge(text: str) -> str:
    scores = told(text, "score", "9").split(",")
    found = re.findall(r"version (\d+)", text)
    place = min(int(found[-1]) if found else 1, len(scores)) - 1
    return json.dumps({"score": float(scores[place]), "feedback": "Say more.", "strengths": [], "weaknesses": []})


def _work(text: str) -> str:
    return f"What {_part(text) or 'the part'} found: everything that was asked for."


def _synthesis(text: str) -> str:
    found = sorted(set(re.findall(r"What (part-\d+) found", text)), key=lambda name: int(name.partition("-")[2]))
    return f"The answer of the team, from {', '.join(found) or 'nobody else'}."

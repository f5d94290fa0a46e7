"""Harpoon's four patterns as trees: parallel, workers, optimize, smart (R-002-4 to R-002-7).

`tree.py` runs `PATTERNS[name]` for every task of a pattern, the root and the agents it sends alike. Model calls are steps of a desk, agents are
tasks, so a pattern is durable, limited by its budget, seen live and cancelled like a team. What it came to is in `Outcome.data`, in Harpoon's
fields. Nothing here ends a task; Stopped, OverBudget and HortatorError are raised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from hortator.call import Preferences
from hortator.errors import HortatorError, TaskEnded
from hortator.orchestration import family, legion, plans, prompts, results
from hortator.orchestration.desk import Desk, Prompt, Said
from hortator.orchestration.family import Child
from hortator.orchestration.lead import Outcome, duration
from hortator.orchestration.plans import BadPlan, Part
from hortator.orchestration.prompts import Message, Room
from hortator.orchestration.tree import Pattern, Work
from hortator.store.tasks import Task
from hortator.wire.tasks import MAX_AGENTS

ORCHESTRATOR: Final = "openai/gpt-4o-mini"
WORKER: Final = "groq/llama-3.1-8b-instant"
"""The models that are asked where an order names none (R-002-11); where one is not served, routing chooses by the agent's tier."""
THRESHOLD: Final = 8.0
ITERATIONS: Final = 3
MAX_ITERATIONS: Final = 10
UNREADABLE_SCORE: Final = 5.0
TEMPERATURE: Final = 0.7
MAX_TOKENS: Final = 1024
CIRCLE: Final = "Circular dependency detected in task plan"
_JUDGE_TEMPERATURE, _JUDGE_TOKENS = 0.3, 500
_MOST_TOKENS = 1_000_000
_MAX_FOUND = 50
"""Objects looked at in a judge's answer."""
_NOT_SERVED = frozenset(("model_not_found", "unsupported_by_model", "context_length_exceeded"))


class _Sampling(NamedTuple):
    """How a model is asked."""

    temperature: float
    max_tokens: int


_PLANNER, _WORKER, _WRITER = _Sampling(0.3, 1000), _Sampling(0.7, 500), _Sampling(0.5, 1000)


# ---- what all have in common


def prompt_of(task: Task) -> tuple[str, str]:
    """Return what an order asks for, its user's last message, and what was said before."""
    messages: Sequence[Mapping[str, Any]] = task.request.get("messages", ())
    for at in range(len(messages) - 1, -1, -1):
        text = prompts.conversation([messages[at]]) if messages[at].get("role") == "user" else ""
        if text.strip():
            return text, prompts.conversation(messages[:at])
    return prompts.conversation(messages), ""


def _told(system: str, sections: Sequence[tuple[str, str]], last: str) -> Prompt:
    """Return what makes a call's messages: sections that share the room, and what the user has said since."""

    def prompt(room: Room, user: tuple[str, ...]) -> Sequence[Message]:
        said = ("Messages of the user since", "\n".join(f"- {text}" for text in user))
        rest = room.input - prompts.tokens(system) - prompts.tokens(last)
        text = prompts.fitted([*sections, said], rest)
        return [{"role": "system", "content": system}, {"role": "user", "content": f"{text}\n\n{last}".strip()}]

    return prompt


def _as_asked(messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Return what makes a call's messages where a client wrote them itself."""

    def prompt(room: Room, user: tuple[str, ...]) -> Sequence[Message]:
        own: list[Message] = [dict(message) for message in messages]
        own += [{"role": "user", "content": text} for text in user]
        size = sum(prompts.tokens(str(message.get("content"))) for message in own)
        if size <= room.input:
            return own
        return [{"role": "user", "content": prompts.cut(prompts.conversation(own), room.input)}]

    return prompt


async def _ask(
    desk: Desk, key: str, prompt: Prompt, how: _Sampling, *, tier: str, named: str | None, default: str, kind: str = "text",
    stream: bool = False,
) -> Said:  # fmt: skip
    """Ask the model that is named; else the configured one, else `default`, else whom routing chooses for the tier."""
    configured = desk.config.model or {str(name): model for name, model in (desk.config.models or {}).items()}.get(tier)
    model = named or configured or default
    try:
        return await desk.ask(
            key, prompt, kind=kind, tier=tier, model=model, temperature=how.temperature, max_tokens=how.max_tokens, stream=stream
        )  # fmt: skip
    except HortatorError as error:
        if named is not None or configured is not None or error.code not in _NOT_SERVED:
            raise
    return await desk.ask(
        f"{key}.routed", prompt, kind=kind, tier=tier, temperature=how.temperature, max_tokens=how.max_tokens, stream=stream
    )  # fmt: skip


async def _answered(desk: Desk, prompt: Prompt, how: _Sampling) -> Outcome:
    """What an agent does: it asks once."""
    said = await _ask(
        desk, "answer", prompt, how, tier="legionary", named=desk.config.model, default=WORKER, kind="part"
    )
    return Outcome(content=said.text, data={"model": said.deployment})


def _model_of(task: Task) -> str:
    return str(((task.results or {}).get("data") or {}).get("model") or "")


# ---- parallel


async def parallel(work: Work) -> Outcome:
    """Ask all requests at once, an agent each. Data: `{total, successful, failed, results}`."""
    desk, request = work.desk, work.request
    if not desk.root:
        return await _answered(
            desk, _as_asked(request["asked"]), _Sampling(request["temperature"], request["max_tokens"])
        )
    wanted = request.get("requests") or [{"messages": request.get("messages", ())}]
    children = [_request(number, one) for number, one in enumerate(wanted)]
    await desk.emit(
        "plan",
        desk.event(
            "task_decomposed",
            f"{len(children)} requests at once",
            details={
                "subtasks": [child.prompt[:500] for child in children],
                "strategy": "parallel",
                "source": "planned",
            },
        ),
    )
    ended = await work.run(children)
    answers = [_settled(number, task) for number, task in enumerate(ended)]
    successful = sum(answer["status"] == "fulfilled" for answer in answers)
    data = {"total": len(answers), "successful": successful, "failed": len(answers) - successful, "results": answers}
    content = results.joined([family.done(task) for task in ended])
    if not successful:
        work.keep(Outcome(content="", parts=tuple(ended), data=data))
        raise TaskEnded(f"None of {len(answers)} requests was answered: {family.why(ended[0])}", code="task_failed")
    message = "" if successful == len(answers) else f"{len(answers) - successful} of {len(answers)} requests failed."
    return Outcome(content=content, parts=tuple(ended), data=data, message=message)


def _request(number: int, one: Mapping[str, Any]) -> Child:
    """Return one request of `parallel` as a child."""
    messages = one.get("messages") or [{"role": "user", "content": str(one.get("prompt") or "")}]
    temperature, most = one.get("temperature"), one.get("max_tokens")
    kept = {
        "asked": [dict(message) for message in messages],
        "temperature": min(max(float(temperature), 0.0), 2.0) if isinstance(temperature, int | float) else TEMPERATURE,
        "max_tokens": min(most, _MOST_TOKENS) if isinstance(most, int) and most > 0 else MAX_TOKENS,
    }
    return Child(name=f"request-{number}", prompt=prompts.conversation(messages), model=one.get("model"), request=kept)


def _settled(index: int, task: Task) -> dict[str, Any]:
    """Return what became of a request."""
    if task.status != "Completed":
        return {"index": index, "status": "rejected", "data": None, "error": family.why(task)}
    model = _model_of(task)
    data = {
        "content": str((task.results or {}).get("content") or ""),
        "model": model,
        "provider": model.partition("/")[0],
        "usage": {
            "prompt_tokens": task.input_tokens,
            "completion_tokens": task.output_tokens,
            "total_tokens": task.input_tokens + task.output_tokens,
        },
        "cost": {"amount": float(task.cost), "currency": "USD"},
    }
    return {"index": index, "status": "fulfilled", "data": data, "error": None}


# ---- orchestrator and workers


async def workers(work: Work) -> Outcome:
    """Plan, have workers do the tasks, write the answer. Data: `{plan, task_results, final_answer}`."""
    desk, request = work.desk, work.request
    if not desk.root:
        return await _answered(desk, _worker(work), _WORKER)
    asked, before = prompt_of(desk.task)
    context = str(request.get("context") or before)
    parts, source, ms = await _plan(desk, asked, context)
    plan = [{"id": part.id, "description": part.description, "dependencies": list(part.dependencies)} for part in parts]
    estimate = max(ms, 1_000.0) * (len(plans.waves(parts)) + 1)
    details = {
        "subtasks": [part.description for part in parts],
        "plan": plan,
        "strategy": "workers",
        "source": source,
        "estimated_time": duration(estimate),
        "estimated_time_ms": round(estimate),
    }
    await desk.emit("plan", desk.event("task_decomposed", f"Split into {len(parts)} tasks", details=details))
    given = {"whole": asked, "context": context}
    children = [
        Child(name=part.id, prompt=part.description, model=request.get("worker_model"), dependencies=part.dependencies, request=given)
        for part in parts
    ]  # fmt: skip
    ended = await work.run(children)
    found = {task.name: family.done(task).text for task in ended}
    if not any(found.values()):
        raise TaskEnded(f"None of {len(ended)} tasks was done: {family.why(ended[0])}", code="task_failed")
    await desk.emit("synthesis", desk.event("synthesis_started", f"Writing the answer from {len(ended)} results"))
    sections = [("Request", asked), ("Context", context)]
    sections += [(f"Result of {part.id}: {part.description[:200]}", found[part.id] or "(no result)") for part in parts]
    work.keep(_worked(ended, plan, found, results.joined([family.done(task) for task in ended])))
    said = await _ask(
        desk,
        "synthesis",
        _told("You combine the results of several workers.", sections, "Write the final answer to the request."),
        _WRITER,
        tier="tribune",
        named=request.get("orchestrator_model"),
        default=ORCHESTRATOR,
        stream=True,
    )
    return _worked(ended, plan, found, said.text)


def _worker(work: Work) -> Prompt:
    """Return what a worker is told."""
    sections = [
        ("The whole request, for context", str(work.request["whole"])),
        ("Context", str(work.request["context"])),
        *((f"Result of {name}", text or "(no result)") for name, _, text in work.done),
        ("Your part", str(work.request["prompt"])),
    ]
    last = "Do only your part; others do the rest. Answer with the result itself."
    return _told("You are a worker. You do one part of a larger request.", sections, last)


def _worked(ended: Sequence[Task], plan: Sequence[Any], found: Mapping[str, str], answer: str) -> Outcome:
    data = {"plan": list(plan), "task_results": dict(found), "final_answer": answer}
    return Outcome(content=answer, parts=tuple(ended), data=data)


async def _plan(desk: Desk, asked: str, context: str) -> tuple[list[Part], str, float]:
    """Ask for a plan; returns it with its source and how long it took. Raises TaskEnded where its dependencies go in a circle."""
    most = min(MAX_AGENTS, legion.bounds(desk.config).tasks - 1)
    last = (
        f"Break the request into 1 to {most} tasks for workers who do not see each other's work but for what a task depends on. "
        "Each description must say all that its worker needs. Do not add a task that only combines the results. "
        'Answer with JSON only: {"tasks": [{"id": "short-name", "description": "...", "dependencies": []}]}'
    )
    prompt = _told(
        "You are an orchestrator. You plan, and answer in JSON.", [("Request", asked), ("Context", context)], last
    )
    named = desk.task.request.get("orchestrator_model")
    said = await _ask(desk, "plan", prompt, _PLANNER, tier="tribune", named=named, default=ORCHESTRATOR, kind="plan")
    try:
        parts = plans.read(said.text)
    except BadPlan:
        return [Part(id="fallback", description=asked[: plans.MAX_DESCRIPTION])], "fallback", said.ms
    known = {part.id for part in parts}
    meant = [
        Part(id=part.id, description="-", dependencies=tuple(need for need in part.dependencies if need in known))
        for part in parts
    ]
    try:
        order = [id for wave in plans.waves(meant) for id in wave]
    except BadPlan:
        raise TaskEnded(CIRCLE, code="task_failed") from None
    # In an order where each only needs what is before it, mending leaves out no dependency that can be kept.
    first = sorted(parts, key=lambda part: order.index(part.id))
    return plans.mended(first, most), "planned", said.ms


# ---- evaluator and optimizer


class Judgement(NamedTuple):
    """What a judge said of an answer."""

    score: float
    """0 to 10."""
    feedback: str


def judgement(text: str) -> Judgement:
    """Return what a judge's answer says; one that cannot be read counts as 5."""
    decoder, at = json.JSONDecoder(), -1
    for _ in range(_MAX_FOUND):
        at = text.find("{", at + 1)
        if at < 0:
            break
        try:
            value, _ = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        score = _number(value.get("score"))
        if score is None:
            continue
        said = [str(value.get("feedback") or "").strip()]
        for name in ("strengths", "weaknesses"):
            listed = value.get(name)
            if isinstance(listed, list) and listed:
                said.append(f"{name.capitalize()}: {'; '.join(str(one) for one in listed[:20])}")
        return Judgement(score, "\n".join(line for line in said if line)[:4_000])
    return Judgement(UNREADABLE_SCORE, text.strip()[:4_000])


def _number(value: Any) -> float | None:
    """Return a score from 0 to 10, also from `"8/10"`; None where it is none."""
    if isinstance(value, str):
        value = value.partition("/")[0].strip()
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        score = float(value)
    except (ValueError, OverflowError):
        return None
    return min(max(score, 0.0), 10.0) if math.isfinite(score) else None


class _Tried(NamedTuple):
    """One round."""

    output: str
    judged: Judgement


async def optimize(work: Work) -> Outcome:
    """Write, have it judged, write again, until it is good enough. Data: Harpoon's, with the best output as the final one."""
    desk, request = work.desk, work.request
    task, before = prompt_of(desk.task)
    given = request.get("quality_threshold")
    threshold = THRESHOLD if given is None else float(given)
    rounds = min(int(request.get("max_iterations") or desk.config.max_iterations or ITERATIONS), MAX_ITERATIONS)
    tried: list[_Tried] = []
    for number in range(1, rounds + 1):
        tried.append(await _round(desk, number, task, before, tried))
        work.keep(_optimized(tried, threshold))
        if tried[-1].judged.score >= threshold:
            break
    return _optimized(tried, threshold)


async def _round(desk: Desk, number: int, task: str, before: str, tried: Sequence[_Tried]) -> _Tried:
    """Write once and have it judged."""
    request = desk.task.request
    sections = [("Said before", before), ("Task", task)]
    last = "Do the task as well as you can. Answer with the result itself."
    if tried:
        best = max(tried, key=lambda one: one.judged.score)
        sections += [("Your best result so far", best.output), ("What a judge said of it", best.judged.feedback)]
        last = (
            "Write the result anew, better: do what the judge misses, keep what is good. Answer with the result itself."
        )
    written = await _ask(
        desk,
        f"generate.{number}",
        _told("You write the best result you can.", sections, last),
        _Sampling(TEMPERATURE, MAX_TOKENS),
        tier="legionary",
        named=request.get("generator_model"),
        default=WORKER,
    )
    last = (
        "Judge how well the result does the task: accuracy, completeness, coherence, relevance. "
        'Answer with JSON only: {"score": 1 to 10, "feedback": "...", "strengths": ["..."], "weaknesses": ["..."]}'
    )
    judged = await _ask(
        desk,
        f"evaluate.{number}",
        _told(
            "You are a strict judge. You answer in JSON.",
            [("Task", task), (f"Result, version {number}", written.text)],
            last,
        ),
        _Sampling(_JUDGE_TEMPERATURE, _JUDGE_TOKENS),
        tier="tribune",
        named=request.get("evaluator_model"),
        default=ORCHESTRATOR,
    )
    found = judgement(judged.text)
    event = desk.event(
        "iteration",
        f"Iteration {number}: {found.score:g} of 10",
        content=found.feedback,
        details={"iteration": number, "score": found.score},
    )
    await desk.emit(f"iteration.{number}", event)
    return _Tried(written.text, found)


def _optimized(tried: Sequence[_Tried], threshold: float) -> Outcome:
    best = max(tried, key=lambda one: one.judged.score)
    history = [
        {"iteration": number, "output": one.output, "score": one.judged.score, "feedback": one.judged.feedback}
        for number, one in enumerate(tried, 1)
    ]
    data = {
        "final_output": best.output,
        "final_score": best.judged.score,
        "iterations": len(tried),
        "history": history,
        "quality_threshold": threshold,
        "threshold_met": best.judged.score >= threshold,
    }
    return Outcome(content=best.output, data=data)


# ---- smart router


async def smart(work: Work) -> Outcome:
    """Ask the model that routing chooses for the request within the client's bounds. Data: Harpoon's."""
    desk, request = work.desk, work.request
    wanted: Mapping[str, Any] = request.get("preferences") or {}
    bounds = Preferences(
        max_cost=wanted.get("maxCost"), max_latency=wanted.get("maxLatency"), min_quality=wanted.get("minQuality")
    )
    said = await desk.ask(
        "answer",
        _as_asked(request.get("messages", ())),
        tier="auto",
        temperature=TEMPERATURE,
        max_tokens=MAX_TOKENS,
        preferences=bounds if wanted else None,
        stream=True,
    )
    data = {
        "answer": said.text,
        "routing_decision": {
            "selected_model": {"id": said.chosen or said.deployment},
            "fallback_models": [],
            "reasoning": said.reasoning,
            "estimated_cost": None,
            "estimated_latency": None,
        },
        "model_used": said.deployment,
        "attempts": said.attempts,
        "used_fallback": said.fell_back,
    }
    return Outcome(content=said.text, data=data)


PATTERNS: Final[Mapping[str, Pattern]] = {
    "parallel": parallel,
    "workers": workers,
    "optimize": optimize,
    "smart": smart,
}
"""For `Tree`."""

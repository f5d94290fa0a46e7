"""Who leads: a tribune plans and writes the answer, a centurion puts together what its group found.

`tree.py` runs it for tasks that are worked on by several. The plan is a step, its parts become children, what failed is planned once again,
and the results become one text. Where no team can be had, `NoTeam` says so, and one agent answers instead (R-000-88). It ends no task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, structs, to_builtins

from hortator.errors import HortatorError
from hortator.orchestration import family, frames, legion, plans, prompts, results
from hortator.orchestration.desk import Desk
from hortator.orchestration.family import Child
from hortator.orchestration.plans import BadPlan, Part, Unit
from hortator.orchestration.prompts import Brief, Done
from hortator.orchestration.roles import Role, Roles
from hortator.store.tasks import Task
from hortator.wire.tasks import Strategy, Tier

_LEAST_MS: Final = 1_000.0


class Outcome(Struct, frozen=True, kw_only=True):
    """What a task came to."""

    content: str
    parts: tuple[Task, ...] = ()
    """The tasks right below that took part."""
    data: Any = None
    """What its pattern adds to the result."""
    message: str = ""
    alone: bool = False
    """One agent did it: what it found was not told before."""


class NoTeam(Exception):
    """No team can be had: the plan has one part, nobody can plan, or every child failed."""


class Plan(Struct, frozen=True, kw_only=True):
    """A plan and where it comes from."""

    parts: tuple[Part, ...]
    source: str
    """`planned` by a model, or `fallback`."""
    ms: float = 0.0
    """How long the model took, milliseconds."""


class Lead:
    """One leader at its desk."""

    def __init__(self, desk: Desk, brief: Brief, roles: Roles) -> None:
        self._desk = desk
        self._brief = brief
        self._roles = roles
        self._bounds = legion.bounds(desk.config)
        self._strategy: Strategy = desk.config.decomposition_strategy or "balanced"

    async def run(self) -> Outcome:
        """Plan, have it done, write the answer. Raises NoTeam, Stopped, OverBudget, HortatorError."""
        desk = self._desk
        plan = await self._plan()
        units = self._units(plan.parts)
        if len(units) < 2 and not (units and units[0].group):
            raise NoTeam
        await self._tell(plan, units)
        children = await self._work(units, offset=0)
        if not any(family.done(child).text for child in children):
            raise NoTeam
        children += await self._again(children)
        await desk.phase("Running", ("Waiting",), message="Writing the answer")
        done = [family.done(child) for child in children if family.done(child).text or child.status != "Completed"]
        return await self._write(children, done)

    # The plan.

    async def _plan(self) -> Plan:
        desk = self._desk
        given = desk.task.request.get("parts")
        if given:
            return Plan(
                parts=tuple(Part(**{**part, "dependencies": tuple(part.get("dependencies", ()))}) for part in given),
                source="planned",
            )
        if self._strategy == "none" or desk.task.depth >= self._bounds.depth:
            raise NoTeam
        return await self._planned()

    async def _planned(self) -> Plan:
        """Ask for a plan; a model that can write one is told what is wrong with it, one that cannot is not asked again."""
        desk, most = self._desk, self._most()
        roles = self._offered()
        told: list[prompts.Message] | None = None
        parts: Sequence[Part] = ()
        ms = 0.0
        for number in range(1, min(legion.plannings(desk.task.tier, desk.config), 2) + 1):
            before = told

            def prompt(
                room: prompts.Room, user: tuple[str, ...], before: list[prompts.Message] | None = before
            ) -> Sequence[prompts.Message]:
                return before or prompts.planner(self._heard(user), roles, most, self._strategy, room)

            try:
                said = await desk.ask(
                    "plan" if number == 1 else f"plan.{number}",
                    prompt,
                    kind="plan",
                    response_format=plans.FORMAT,
                    temperature=0.0,
                )
            except HortatorError as error:
                raise NoTeam from error
            ms = ms or said.ms
            try:
                parts = plans.useful(plans.read(said.text), self._brief.request)
                return Plan(parts=tuple(plans.checked(parts, most)), source="planned", ms=ms)
            except BadPlan as bad:
                if bad.unreadable:
                    break
                base = prompts.planner(self._brief, roles, most, self._strategy, prompts.TIGHT)
                told = prompts.mend(base, said.text, bad.reason, prompts.TIGHT)
        try:
            mended = plans.mended(parts, most)
        except BadPlan:
            mended = []
        if len(mended) > 1:  # one part is all that is left of what the model could not write
            return Plan(parts=tuple(mended), source="planned", ms=ms)
        return Plan(parts=tuple(self._fallback(most)), source="fallback", ms=ms)

    def _most(self) -> int:
        """Return how many parts a plan may have: about as many as agents may work at once, and no more than the tree has room for."""
        return max(1, min(self._bounds.agents, self._bounds.tasks - 1))

    def _fallback(self, most: int) -> list[Part]:
        role = self._role(self._desk.task.role)
        return frames.fallback(self._brief.request, role.domain if role else "", self._strategy, most)

    def _offered(self) -> list[tuple[str, str]]:
        """Return the roles that parts may be given to: those of the own role's domain."""
        own = self._role(self._desk.task.role)
        if own is None:
            return []
        return [
            (role.name, role.description) for role in self._roles.for_tier("legionary") if role.domain == own.domain
        ][:8]

    def _role(self, name: str | None) -> Role | None:
        return self._roles.find(name) if name else None

    def _heard(self, user: Sequence[str]) -> Brief:
        return structs.replace(self._brief, said=tuple(user))

    def _units(self, parts: Sequence[Part]) -> list[Unit]:
        """Return what becomes children; groups only where the tree may be so deep and so large."""
        desk = self._desk
        deep = desk.task.depth + 2 <= self._bounds.depth and desk.task.tier == "tribune"
        units = plans.units(parts, grouped=deep)
        if sum(1 + len(unit.parts) if unit.group else 1 for unit in units) >= self._bounds.tasks:
            units = plans.units(parts, grouped=False)
        return units

    async def _tell(self, plan: Plan, units: Sequence[Unit]) -> None:
        """Tell the plan (R-000-28), with how long it may take: as long as the model took to plan, for each round of parts and the answer."""
        rounds = len(
            plans.waves([Part(id=unit.name, description="-", dependencies=unit.dependencies) for unit in units])
        )
        rounds += max((len(plans.waves(unit.parts)) for unit in units if unit.group), default=0)
        estimate = max(plan.ms, _LEAST_MS) * (rounds + 1)
        details: dict[str, Any] = {
            "subtasks": [part.description for part in plan.parts],
            "plan": [to_builtins(part) for part in plan.parts],
            "strategy": self._strategy,
            "source": plan.source,
        }
        if plan.ms:
            details |= {"estimated_time": duration(estimate), "estimated_time_ms": round(estimate)}
        text = f"Split into {len(plan.parts)} parts"
        await self._desk.emit("plan", self._desk.event("task_decomposed", text, details=details))

    # The children.

    async def _work(self, units: Sequence[Unit], *, offset: int) -> list[Task]:
        """Have units worked on and wait for them all."""
        desk = self._desk
        ids = await family.spawn(desk, [self._child(unit) for unit in units], offset=offset)
        if ids is None:
            raise NoTeam
        await desk.phase("Waiting", ("Running",), message=f"{len(ids)} agents are at work")
        return await family.all_finished(desk, ids)

    def _child(self, unit: Unit) -> Child:
        first = unit.parts[0]
        if unit.group:
            text = "\n".join(f"- {part.description}" for part in unit.parts)
            return Child(
                name=unit.name,
                prompt=f"Get these parts done and put their results together:\n{text}",
                tier="centurion",
                dependencies=unit.dependencies,
                parts=tuple(to_builtins(part) for part in unit.parts),
                weight=len(unit.parts) + 1,
            )
        role = self._role(first.role)
        tier: Tier = "legionary"
        if first.tier == "centurion" and legion.may_delegate(self._desk.task.tier, "centurion"):
            tier = "centurion" if self._desk.task.depth + 2 <= self._bounds.depth else tier
        return Child(
            name=unit.name,
            prompt=first.description,
            tier=tier,
            role=role.name if role and (not role.tiers or tier in role.tiers) else None,
            dependencies=unit.dependencies,
        )

    async def _again(self, children: Sequence[Task]) -> list[Task]:
        """Plan once again for what failed, where something did and something did not; returns the further children."""
        desk = self._desk
        lost = [child for child in children if child.status == "Failed"]
        if not lost:
            return []
        done = [family.done(child) for child in children if child.status == "Completed"]
        failed = [Done(child.name, child.status, _asked(child)) for child in lost]
        most = max(1, min(len(lost), self._most()))
        try:
            said = await desk.ask(
                "replan",
                lambda room, user: prompts.replanner(self._heard(user), done, failed, most, room),
                kind="plan",
                response_format=plans.FORMAT,
                temperature=0.0,
            )
            parts = plans.mended(plans.read(said.text), most)
        except (HortatorError, BadPlan):
            return []
        parts = [
            structs.replace(
                part, id=f"again-{part.id}", dependencies=tuple(f"again-{need}" for need in part.dependencies)
            )
            for part in parts
        ]
        details = {"subtasks": [part.description for part in parts], "failed": [child.name for child in lost]}
        await desk.emit(
            "replan",
            desk.event("replanned", f"{len(lost)} parts failed; {len(parts)} others are tried", details=details),
        )
        ids = await family.spawn(
            desk, [self._child(unit) for unit in plans.units(parts, grouped=False)], offset=len(children)
        )
        return [] if ids is None else await family.all_finished(desk, ids)

    # The answer.

    async def _write(self, children: Sequence[Task], done: Sequence[Done]) -> Outcome:
        """Write the answer from the parts. Where no model can, the parts are the answer."""
        desk = self._desk
        await desk.emit("synthesis", desk.event("synthesis_started", f"Writing the answer from {len(done)} parts"))
        group = None if desk.root else str(desk.task.request.get("prompt", ""))
        try:
            said = await desk.ask(
                "synthesis",
                lambda room, user: prompts.synthesiser(self._heard(user), done, room, group=group),
                stream=desk.root,
            )
        except HortatorError:
            said = None
        if said is not None and said.text.strip():
            return Outcome(content=said.text, parts=tuple(children))
        return Outcome(
            content=results.joined([family.done(child) for child in children]),
            parts=tuple(children),
            message="The answer could not be written from the parts; these are the parts.",
        )


def duration(ms: float) -> str:
    """Return milliseconds as `45s` or `2m10s`, at least one second (C-25)."""
    seconds = max(1, round(ms / 1000))
    return f"{seconds}s" if seconds < 120 else re.sub(r"m0s$", "m", f"{seconds // 60}m{seconds % 60}s")


def _asked(child: Task) -> str:
    request: Mapping[str, Any] = child.request
    return f"{request.get('prompt', '')} ({family.why(child)})"

"""Which deployment is asked next: the state of each deployment, and the strategies that order candidates by it.

`attempts.py` asks before every attempt and says how it ended. Choosing is deterministic given this state: time, randomness
and prices come from outside. It does no I/O and knows nothing of errors but what `breaker.judge` says of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from math import exp, inf, log
from random import Random

import msgspec

from hortator.call import Call, Decision, Deployment, ProviderId, Route
from hortator.dispatch.breaker import Breaker, Limits, State, judge
from hortator.errors import HortatorError

MAX_PLACES = 10_000
"""Deployments remembered: clients may name any model of an open provider, so idle ones are forgotten beyond it."""
DECAY_SECONDS = 10.0
"""Time constant of the latency average: a slow moment weighs a third of it after ten seconds, and less and less."""

_STICKY = frozenset({"least-in-flight", "weighted", "lowest-latency"})
"""Strategies that a session overrides. In the other two the operator has said which deployment comes first, or why."""


Suspect = Callable[[ProviderId], None]


class Gauge(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment at one moment."""

    state: State
    """Of its breaker."""
    in_flight: int
    failures: int
    """Consecutive ones."""
    retry_in: float
    """Seconds until it is asked again, 0 when it is asked now."""
    latency_ms: float | None
    """Moving average to the first content; None before the first answer."""


class Place:
    """What is known about one deployment."""

    __slots__ = ("answered_at", "breaker", "credit", "deployment", "down", "in_flight", "latency", "picked", "suspect")

    def __init__(
        self, deployment: Deployment, limits: Limits, suspect: Suspect | None = None, down: bool = False
    ) -> None:
        self.deployment = deployment
        self.down = down
        """Its provider did not answer when it was looked at last, and it has not answered since."""
        self.suspect = suspect
        self.breaker = Breaker(limits)
        self.in_flight = 0
        self.picked = 0
        """Number of the last request it was asked for; smaller = longer ago."""
        self.credit: dict[str, float] = {}
        """What `weighted` owes it, by model."""
        self.latency = 0.0
        """Seconds to the first content, moving average; jumps up at once (peak EWMA). 0 = unknown."""
        self.answered_at = 0.0

    def sample(self, seconds: float, now: float) -> None:
        """Take a latency into the average."""
        if seconds >= self.latency:
            self.latency = seconds
        else:
            self.latency = seconds + (self.latency - seconds) * exp((self.answered_at - now) / DECAY_SECONDS)
        self.answered_at = now

    def cost(self, now: float) -> float:
        """Return what `lowest-latency` compares: the average times the requests it has.

        While nobody asks it the average fades, so that it gets another chance: one request, until that is answered.
        """
        if self.in_flight:
            return (self.latency or inf) * (self.in_flight + 1)
        return self.latency * exp(min(0.0, self.answered_at - now) / DECAY_SECONDS)


class Turn(msgspec.Struct, gc=False):
    """One attempt at a place. `leave` ends it, always, once; `done` is `answered` and `leave` at the same moment."""

    place: Place
    begun: float
    probe: bool
    route: int = 0
    """Where the call's first attempt began: 0 = the model asked for, then its fallbacks."""

    def answered(self, now: float) -> None:
        """Its first content is there. The deployment is at work again, though the answer may still break."""
        place = self.place
        place.sample(now - self.begun, now)
        place.down = False
        if place.breaker.open_until:
            place.breaker.answered()
            self.probe = False

    def leave(self, error: BaseException | None, now: float) -> None:
        """It has ended; `error` is None when all went well."""
        place = self.place
        place.in_flight -= 1
        breaker = place.breaker
        if error is None:
            if breaker.failures or breaker.open_until or self.probe:
                breaker.end("alive", now, probe=self.probe)
            return
        pause = error.retry_after or 0.0 if isinstance(error, HortatorError) else 0.0
        verdict = judge(error)
        breaker.end(verdict, now, probe=self.probe, pause=pause)
        if verdict == "failed" and place.suspect is not None:
            place.suspect(place.deployment.provider)

    def done(self, now: float) -> None:
        """It has answered, and all of the answer is there."""
        place = self.place
        breaker = place.breaker
        if breaker.failures or breaker.open_until or place.down:
            self.answered(now)
            self.leave(None, now)
            return
        place.in_flight -= 1
        seconds = now - self.begun
        if seconds < place.latency:
            seconds += (place.latency - seconds) * exp((place.answered_at - now) / DECAY_SECONDS)
        place.latency = seconds
        place.answered_at = now


class Balance:
    """The places of all deployments, and the choice among them."""

    def __init__(
        self,
        limits: Limits | None = None,
        random: Random | None = None,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        """`prices` says what a deployment costs, by its id and in any unit; one that is not in it counts as dearest."""
        self._limits = limits or Limits()
        self._random = random or Random()
        self._prices = prices or {}
        self._places: dict[str, Place] = {}
        self._turns = 0
        self._down: set[ProviderId] = set()
        self.suspect: Suspect | None = None
        """Told of every provider that failed an attempt. Set before the first request, by whoever looks at providers."""

    def configure(
        self, limits: Limits, prices: Mapping[str, float], changed: Collection[ProviderId], suspect: Suspect | None
    ) -> None:
        """Go on with other limits and prices. What is known of the deployments of `changed` providers is forgotten.

        `suspect` is told of every provider that failed an attempt; None = nobody looks at providers that are down.
        """
        self._limits, self._prices, self.suspect = limits, prices, suspect
        self._down = set() if suspect is None else self._down.difference(changed)
        for id in [id for id, place in self._places.items() if place.deployment.provider in changed]:
            del self._places[id]
        for place in self._places.values():
            place.breaker.limits = limits
            place.suspect = suspect
            place.down = place.down and suspect is not None

    def enter(self, deployment: Deployment, now: float) -> Turn:
        """Start an attempt."""
        place = self._places.get(deployment.id) or self._place(deployment)
        self._turns = place.picked = self._turns + 1
        place.in_flight += 1
        return Turn(place, now, place.breaker.begin(now))

    def begin(self, decision: Decision, call: Call, now: float) -> Turn:
        """Start a call's first attempt, where `first` says."""
        candidates = decision.candidates
        index = 0
        if len(candidates) == 1 and not decision.fallbacks:
            deployment = candidates[0]
        else:
            index, deployment = self.first(decision, call, now)
        try:
            place = self._places[deployment.id]
        except KeyError:
            place = self._place(deployment)
        self._turns = place.picked = self._turns + 1
        place.in_flight += 1
        return Turn(place, now, place.breaker.begin(now) if place.breaker.open_until else False, index)

    def first(self, decision: Decision, call: Call, now: float) -> tuple[int, Deployment]:
        """Return where a call begins: the index of its route (0 = the model asked for, then `fallbacks`) and the deployment.

        Places whose breaker does not let it are left out. Where that leaves none at all, the one of the model asked for
        that opens soonest is asked all the same: the client then sees what the provider really says.
        """
        chosen = self.choose(decision, call, now)
        if chosen is not None:
            return 0, chosen
        for index, route in enumerate(decision.fallbacks if call.fallback else (), 1):
            chosen = self.choose(route, call, now)
            if chosen is not None:
                return index, chosen
        return 0, self.soonest(decision)

    def choose(self, route: Route | Decision, call: Call, now: float, tried: Collection[str] = ()) -> Deployment | None:
        """Return the best deployment of `route` that is not `tried` and whose breaker lets it; None = there is none."""
        if route.strategy == "least-in-flight" and call.session is None and "prompt_cache_key" not in call.body:
            return self._idlest(route.candidates, now, tried)
        open_to = self.open_to(route, now, tried)
        if len(open_to) <= 1:
            return open_to[0] if open_to else None
        places = [self._place(deployment) for deployment in open_to]
        weights = _weights(route, open_to)
        if route.strategy in _STICKY:
            session = call.session or call.body.get("prompt_cache_key")
            if session is not None and bytes(session) != b"null":
                return _of_session(bytes(session), open_to, weights)
        if route.strategy == "ordered":
            return open_to[0]
        if route.strategy == "weighted":
            return _in_turn(route.model, places, weights).deployment
        if route.strategy == "lowest-latency":
            two = places if len(places) == 2 else self._random.sample(places, 2)
            return min(two, key=lambda place: (place.cost(now), place.in_flight, place.picked)).deployment
        if route.strategy == "cheapest":
            return min(
                places, key=lambda place: (self._prices.get(place.deployment.id, inf), place.in_flight)
            ).deployment
        return min(places, key=lambda place: (place.in_flight, place.picked)).deployment

    def _idlest(self, candidates: Sequence[Deployment], now: float, tried: Collection[str]) -> Deployment | None:
        """Return the candidate with the fewest requests; among equals the one asked longest ago.

        The default strategy, so it makes no lists: a candidate costs a look-up and a few comparisons.
        """
        places = self._places
        best: Place | None = None
        for deployment in candidates:
            if tried and deployment.id in tried:
                continue
            place = places.get(deployment.id) or self._place(deployment)
            breaker = place.breaker
            if (breaker.open_until or breaker.paused_until) and not breaker.lets(now):
                continue
            if best is None or place.down is not best.down:
                if best is None or best.down:
                    best = place
            elif place.in_flight < best.in_flight or (place.in_flight == best.in_flight and place.picked < best.picked):
                best = place
        return None if best is None else best.deployment

    def open_to(self, route: Route | Decision, now: float, tried: Collection[str] = ()) -> list[Deployment]:
        """Return the deployments of `route` that are not `tried` and whose breaker lets a request through.

        Those whose provider is down are left out as long as there is another.
        """
        found = [place for place in self._left(route, tried) if place.breaker.lets(now)]
        if self._down:
            found = [place for place in found if not place.down] or found
        return [place.deployment for place in found]

    def _left(self, route: Route | Decision, tried: Collection[str]) -> list[Place]:
        return [self._place(deployment) for deployment in route.candidates if deployment.id not in tried]

    def soonest(self, route: Route | Decision, tried: Collection[str] = ()) -> Deployment:
        """Return the deployment of `route` that will be let through first."""
        left = [deployment for deployment in route.candidates if deployment.id not in tried]
        return min(left or route.candidates, key=lambda deployment: self._place(deployment).breaker.ready_at)

    def tell(self, provider: ProviderId, up: bool, now: float) -> None:
        """Take note of what a look at a provider found. While it is down its deployments are asked after all others.

        Once it is up again they are asked again: a breaker that is open lets its probe through at once.
        """
        if up is (provider not in self._down):
            return
        if up:
            self._down.discard(provider)
        else:
            self._down.add(provider)
        for place in self._places.values():
            if place.deployment.provider == provider:
                place.down = not up
                if up and place.breaker.open_until:
                    place.breaker.open_until = min(place.breaker.open_until, now)

    def working(self, deployment: Deployment) -> bool:
        """Whether a deployment's breaker is closed, pauses aside."""
        return not self._place(deployment).breaker.open_until

    def gauges(self, now: float, ids: Iterable[str] | None = None) -> dict[str, Gauge]:
        """Return the state of the deployments that were ever asked or chosen among, by id: all, or those of `ids`."""
        chosen = self._places if ids is None else [id for id in ids if id in self._places]
        return {
            id: Gauge(
                state=(place := self._places[id]).breaker.state(now),
                in_flight=place.in_flight,
                failures=place.breaker.failures,
                retry_in=max(0.0, round(place.breaker.ready_at - now, 3)),
                latency_ms=round(place.latency * 1000, 3) if place.latency else None,
            )
            for id in chosen
        }

    def _place(self, deployment: Deployment) -> Place:
        place = self._places.get(deployment.id)
        if place is None:
            if len(self._places) >= MAX_PLACES:
                self._forget()
            down = deployment.provider in self._down
            place = self._places[deployment.id] = Place(deployment, self._limits, self.suspect, down)
        return place

    def _forget(self) -> None:
        """Forget half of the places, oldest first; those in trouble only after all others, those in use never."""
        idle = [id for id, place in self._places.items() if not place.in_flight]
        idle.sort(key=lambda id: self._places[id].breaker.open_until > 0)
        for id in idle[: MAX_PLACES // 2]:
            del self._places[id]


def _weights(route: Route | Decision, chosen: Sequence[Deployment]) -> list[int]:
    """Return the weight of each chosen candidate; 1 where the route has none."""
    if not route.weights:
        return [1] * len(chosen)
    known = {deployment.id: weight for deployment, weight in zip(route.candidates, route.weights, strict=True)}
    return [known[deployment.id] for deployment in chosen]


def _in_turn(model: str, places: Sequence[Place], weights: Sequence[int]) -> Place:
    """Smooth weighted round robin: in any row of requests each place gets its share, evenly spread. Weight 0 comes last."""
    best = places[0]
    for place, weight in zip(places, weights, strict=True):
        place.credit[model] = place.credit.get(model, 0.0) + weight
        if place.credit[model] > best.credit[model]:
            best = place
    best.credit[model] -= sum(weights)
    return best


def _of_session(session: bytes, chosen: Sequence[Deployment], weights: Sequence[int]) -> Deployment:
    """Rendezvous hashing: a session keeps its deployment, and moves only while that one is out."""

    def score(deployment: Deployment, weight: int) -> float:
        digest = blake2b(session + b"\0" + deployment.id.encode("utf-8", "replace"), digest_size=8).digest()
        return -weight / log((int.from_bytes(digest) + 1) / (2**64 + 2))

    scored = [score(deployment, weight) for deployment, weight in zip(chosen, weights, strict=True)]
    return chosen[scored.index(max(scored))]

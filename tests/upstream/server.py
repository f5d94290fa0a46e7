"""The scripted upstream's server: raw asyncio, so that it can break every rule of HTTP.

Every request is recorded before its script is played; a watcher notices when the client hangs up meanwhile. Tests plan,
wait and release through `POST /_control/...` (see `Control`), so no test ever sleeps. A request is known by its *mark*: the
`user` field of its body, or `metadata.user_id` in Anthropic's dialect. The first segment of its path is the *provider* that it was sent to, so one process plays any
number of providers.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.upstream.messages import COUNT, MESSAGE_MODELS, MESSAGES
from tests.upstream.scenarios import MODEL_LIST, SCENARIOS, Request
from tests.upstream.script import Script, dump, error_body, reply
from tests.upstream.team import mark_of

HEAD_LIMIT = 1024 * 1024
RECORDS_KEPT = 20_000
SPLIT_PAUSE = 0.0005
"""Seconds between the packets of a split; without it the kernel glues them together again."""


@dataclass
class Exchange:
    """One request and what became of it.

    `state`: open, finished (its script was played to the end) or aborted (the client left).
    """

    number: int
    mark: str
    provider: str
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: str
    connection: int
    scenario: str = ""
    state: str = "open"
    sent: int = 0
    """Bytes handed to the kernel."""


@dataclass
class Plans:
    """What tests have asked for, and what has been seen."""

    default: str = ""
    """The scenario of requests for which nothing was planned, in place of the one that their model names."""
    scripts: dict[tuple[str, str], Script | str] = field(default_factory=dict)
    gates: dict[tuple[str, str], asyncio.Event] = field(default_factory=dict)
    seen: deque[Exchange] = field(default_factory=lambda: deque(maxlen=RECORDS_KEPT))
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    total: int = 0
    finished: int = 0

    def gate(self, mark: str, name: str) -> asyncio.Event:
        return self.gates.setdefault((mark, name), asyncio.Event())

    def script(self, exchange: Exchange, request: Request) -> Script:
        """The script for this request: planned for its mark and provider, for its mark, or named by its model."""
        model = str(request.body.get("model", ""))
        planned = self.scripts.get((exchange.mark, exchange.provider)) or self.scripts.get((exchange.mark, ""))
        planned = planned or self.default or model
        if not isinstance(planned, str):
            exchange.scenario = "steps"
            return planned
        if " " in planned:  # one scenario for each request of this mark to this provider; the last one goes on
            names = planned.split()
            count = sum(one.mark == exchange.mark and one.provider == exchange.provider for one in self.seen)
            planned = names[min(count, len(names)) - 1]
        exchange.scenario = planned
        if exchange.target.partition("?")[0].endswith("/messages") and planned in MESSAGES:
            return MESSAGES[planned](request.stream)
        scenario = SCENARIOS.get(planned)
        if scenario is None:
            return reply(404, error_body(f"no scenario {planned!r}", "model_not_found", "invalid_request_error"))
        return _own_id(scenario(request), exchange.number)

    async def note(self) -> None:
        """Wake everybody who waits for a change."""
        async with self.changed:
            self.changed.notify_all()

    def matching(self, mark: str, state: str) -> list[dict[str, Any]]:
        return [asdict(one) for one in self.seen if mark in ("", one.mark) and state in ("", one.state)]


def _own_id(script: Script, number: int) -> Script:
    """Give each response an id of its own, as long as the one that was written: providers never give one twice."""
    mine = f"resp_{number:08d}"
    return [
        [part.replace("resp_upstream", mine) if isinstance(part, str) else part for part in step] for step in script
    ]


class Player:
    """Plays one script to one connection."""

    def __init__(self, plans: Plans, exchange: Exchange, writer: asyncio.StreamWriter) -> None:
        self.plans = plans
        self.exchange = exchange
        self.writer = writer

    async def play(self, script: Script) -> bool:
        """Play every step. Returns whether the connection may carry another request."""
        for name, *arguments in script:
            if name in ("close", "reset"):
                await self.writer.drain()
                leave(self.writer, broken=name == "reset")
                return False
            await getattr(self, name)(*arguments)
        return True

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        transport: asyncio.WriteTransport = self.writer.transport
        self.exchange.sent += len(data)
        if transport.get_write_buffer_size() > HEAD_LIMIT:
            raise AssertionError("the upstream buffers what its client does not read")

    async def send(self, text: str) -> None:
        await self.write(text.encode())

    async def bytes(self, encoded: str) -> None:
        await self.write(base64.b64decode(encoded))

    async def chunk(self, text: str) -> None:
        data = text.encode()
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def split(self, text: str) -> None:
        for byte in text.encode():
            for piece in (b"1\r", b"\n", bytes([byte]), b"\r\n"):
                await self.write(piece)
            await asyncio.sleep(SPLIT_PAUSE)

    async def end(self) -> None:
        await self.write(b"0\r\n\r\n")

    async def gate(self, name: str) -> None:
        await self.plans.gate(self.exchange.mark, name).wait()

    async def hang(self) -> None:
        await asyncio.Event().wait()

    async def flood(self, text: str, times: int) -> None:
        for _ in range(times):
            await self.chunk(text)


def leave(writer: asyncio.StreamWriter, broken: bool) -> None:
    """Close the connection: with FIN, or with RST when `broken`."""
    if broken:
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()


@dataclass(frozen=True)
class Message:
    """One HTTP request as it came."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """Read one request; None when the client closed instead."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _version = first.split(" ")
    headers = [(name.strip().lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    fields = dict(headers)
    try:
        if fields.get("transfer-encoding") == "chunked":
            body = await read_chunks(reader)
        else:
            body = await reader.readexactly(int(fields.get("content-length", "0")))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Message(method, target, headers, body)


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """Read a chunked body."""
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)


class Control:
    """The tests' own door. Every call is a POST with a JSON object; the answer is JSON."""

    def __init__(self, plans: Plans) -> None:
        self.plans = plans

    async def plan(
        self, mark: str, provider: str = "", scenario: str = "", steps: Script | None = None
    ) -> dict[str, Any]:
        """Answer requests of this mark (to this provider) with a named scenario or with these steps."""
        self.plans.scripts[(mark, provider)] = steps if steps is not None else scenario
        return {}

    async def release(self, mark: str, gate: str = "go") -> dict[str, Any]:
        """Let the script of this mark pass a gate."""
        self.plans.gate(mark, gate).set()
        return {}

    async def wait(self, mark: str = "", state: str = "", count: int = 1, timeout: float = 20) -> dict[str, Any]:
        """Wait until `count` requests of this mark are in this state; answer with those there are in the end."""
        try:
            async with asyncio.timeout(timeout), self.plans.changed:
                await self.plans.changed.wait_for(lambda: len(self.plans.matching(mark, state)) >= count)
        except TimeoutError:
            pass
        return {"exchanges": self.plans.matching(mark, state)}

    async def counts(self) -> dict[str, Any]:
        """How many requests came, and how many replies were played to their end."""
        return {"requests": self.plans.total, "finished": self.plans.finished}


class Upstream:
    """The server: one task per connection, one request at a time on each."""

    def __init__(self, default: str = "") -> None:
        self.plans = Plans(default)
        self.control = Control(self.plans)
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side closes it."""
        self.connections += 1
        number = self.connections
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while message := await read_message(reader):
                if message.target.startswith("/_control/"):
                    await self.answer_control(message, writer)
                elif not await self.answer(message, reader, writer, number):
                    return
        finally:
            writer.close()

    async def answer_control(self, message: Message, writer: asyncio.StreamWriter) -> None:
        verb = message.target.removeprefix("/_control/")
        answer = await getattr(self.control, verb)(**json.loads(message.body or b"{}"))
        [[_, text]] = reply(200, dump(answer))
        writer.write(text.encode())
        await writer.drain()

    async def answer(
        self, message: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> bool:
        """Record the request, play its script, and watch whether the client stays. Returns whether to go on."""
        exchange, script = self.record(message, connection)
        await self.plans.note()
        playing = asyncio.create_task(Player(self.plans, exchange, writer).play(script))
        watching = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({playing, watching}, return_when=asyncio.FIRST_COMPLETED)
            keep = False
            if playing.done() and playing.exception() is None:
                exchange.state = "finished"
                self.plans.finished += 1
                keep = playing.result()
            else:
                exchange.state = "aborted"
            await self.plans.note()
            return keep
        finally:
            for task in (playing, watching):
                task.cancel()
            await asyncio.gather(playing, watching, return_exceptions=True)

    def record(self, message: Message, connection: int) -> tuple[Exchange, Script]:
        """Write the request down and find its script."""
        self.plans.total += 1
        provider = message.target.split("/")[1]
        try:
            body = json.loads(message.body or b"{}")
        except ValueError:
            body = {}
        text = message.body.decode("utf-8", "replace")
        exchange = Exchange(
            number=self.plans.total,
            mark=str(body.get("user") or (body.get("metadata") or {}).get("user_id") or mark_of(text)),
            provider=provider,
            method=message.method,
            target=message.target,
            headers=message.headers,
            body=text,
            connection=connection,
        )
        self.plans.seen.append(exchange)
        if message.target.endswith("/models"):
            return exchange, reply(200, MODEL_LIST)
        if message.target.endswith("/models?limit=1000"):
            return exchange, reply(200, MESSAGE_MODELS)
        if message.target.endswith("/messages/count_tokens") and not exchange.mark:
            return exchange, reply(200, dump(COUNT))
        return exchange, self.plans.script(exchange, Request(body, dict(message.headers)))

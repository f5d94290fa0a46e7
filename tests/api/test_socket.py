"""`/ws`: the listener's own WebSockets with a room of teams in memory behind them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from hortator.api.listener import Server, limited
from hortator.api.reading import Receive, Scope, Send
from hortator.api.socket import MAX_OF_KEY, MAX_SUBSCRIPTIONS, SocketDoor
from hortator.api.websocket import MAX_MESSAGE_BYTES
from hortator.call import Caller, KeyHash, TenantId
from hortator.errors import Unauthenticated, Unavailable
from hortator.wire.events import Delta, encode
from tests.api.fake_teams import FakeTeams
from tests.eventually import eventually

OURS = Caller(tenant_id=TenantId(str(uuid.uuid4())), key_hash=KeyHash("1" * 64), key_name="ours")
THEIRS = Caller(tenant_id=TenantId(str(uuid.uuid4())), key_hash=KeyHash("2" * 64), key_name="theirs")
KEY, OTHER = "hrt_sk_ours", "hrt_sk_theirs"


class Place:
    """A listener on loopback."""

    def __init__(self) -> None:
        self.keys: dict[bytes, Caller] = {KEY.encode(): OURS, OTHER.encode(): THEIRS}
        self.down = False
        self.teams = FakeTeams()
        self.port = 0
        self.http: list[str] = []
        """Paths of plain requests."""
        self.raws: list[Raw] = []
        self.server: Server
        self.running: asyncio.Task[None]

    async def admit(self, token: bytes) -> Caller:
        """The corridor's."""
        if self.down:
            raise Unavailable("no", code="store_unavailable")
        if token not in self.keys:
            raise Unauthenticated("no", code="revoked_api_key" if token == KEY.encode() else None)
        return self.keys[token]

    async def start(self, *, ping: float = 20.0, recheck: float = 20.0, stall: float = 20.0, most: int = 1000) -> None:
        """Listen."""
        door = SocketDoor(self.admit, self.teams, recheck_seconds=recheck, stall_seconds=stall)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                await door(scope, receive, send, scope["path"])
                return
            self.http.append(scope["path"])
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app,
            http=limited(max_head_bytes=65_536, max_headers=200, max_connections=most, sockets="/ws"),
            ws="none",
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,
            ws_ping_interval=ping,
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=10,
        )
        up = asyncio.Event()

        def started(_: str, port: int) -> None:
            self.port = port
            up.set()

        self.server = Server(config, started, handle_signals=False)
        self.running = asyncio.create_task(self.server.serve(sockets=[listening]))
        await up.wait()

    async def stop(self) -> None:
        """Stop as the gateway does."""
        self.server.should_exit = True
        await self.running

    def connect(self, path: str = "/ws", key: str | None = KEY, **options: Any) -> connect:
        """The library's client."""
        if key is not None:
            options["additional_headers"] = {"Authorization": f"Bearer {key}"}
        return connect(f"ws://127.0.0.1:{self.port}{path}", proxy=None, **options)

    async def raw(self, path: str = "/ws", buffer: int | None = None) -> Raw:
        """A client that does as the test says."""
        plain = socket.socket()
        if buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=plain, limit=1 << 16)
        self.raws.append(Raw(reader, writer, path))
        return self.raws[-1]


class Raw:
    """A client that sends what it is told and reads when it is told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        self.reader = reader
        self.writer = writer
        self._path = path

    def ask(self, also: bytes = b"", **headers: str) -> None:
        """Send a head that asks for a WebSocket."""
        lines = {
            "Host": "x",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version": "13",
            "Authorization": f"Bearer {KEY}",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.writer.write(f"GET {self._path} HTTP/1.1\r\n{head}\r\n".encode() + also)

    async def opened(self) -> Raw:
        """Ask and be let in."""
        self.ask()
        head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        return self

    def frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True) -> None:
        """Send a frame, masked with zeros."""
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack("!H", size)
        self.writer.write(bytes([opcode | (0x80 if fin else 0)]) + length + b"\0\0\0\0" + payload)

    async def read_frame(self) -> tuple[int, bytes]:
        """Read a frame of the server."""
        first, size = await self.reader.readexactly(2)
        if size == 126:
            [size] = struct.unpack("!H", await self.reader.readexactly(2))
        elif size == 127:
            [size] = struct.unpack("!Q", await self.reader.readexactly(8))
        return first & 15, await self.reader.readexactly(size)

    async def closed(self) -> int:
        """Read up to the close frame; return its code."""
        while True:
            opcode, payload = await self.read_frame()
            if opcode == 8:
                return int.from_bytes(payload[:2], "big")

    def close(self) -> None:
        self.writer.transport.abort()


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = Place()
    yield made
    for raw in made.raws:
        raw.close()
    async with asyncio.timeout(20):
        await made.stop()


def task(place: Place) -> str:
    """A new tree of ours."""
    return place.teams.root(OURS, str(uuid.uuid4())).id


async def ask(client: ClientConnection, action: str, **fields: Any) -> Any:
    """Send a frame and return its answer; events in between are passed over."""
    ref = uuid.uuid4().hex
    await client.send(json.dumps({"action": action, "ref": ref, **fields}))
    while True:
        answer = json.loads(await client.recv())
        if answer.get("ref") == ref:
            return answer


async def closing(client: ClientConnection) -> tuple[int, str]:
    """Read to the end; return why it ended."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            await client.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


async def test_a_client_orders_watches_talks_and_cancels_over_one_connection(place: Place) -> None:
    """R-000-6: streaming, and in both directions."""
    await place.start()
    async with place.connect() as client:
        done = await ask(client, "submit", order={"prompt": "Say hello.", "type": "chat"})
        assert (done["type"], done["action"], done["task"]["status"]) == ("ack", "submit", "Running")
        id = done["task_id"]
        [order] = place.teams.orders
        assert (order.source, order.messages[0]["content"]) == ("socket", "Say hello.")
        await place.teams.tell(id, "task_created")
        assert (await ask(client, "subscribe", task_id=id))["root_id"] == id
        assert json.loads(await client.recv())["event"]["type"] == "task_created"
        assert (await ask(client, "message", task_id=id, content="Louder!"))["seq"] == 2
        assert (await ask(client, "cancel", task_id=id))["task"]["status"] == "Cancelled"
        assert (await ask(client, "ping"))["type"] == "pong"


async def test_events_are_the_same_bytes_as_in_every_view(place: Place) -> None:
    await place.start()
    id = task(place)
    await place.teams.tell(id, "task_created", "model_call", details={"deployment": "one/m"}, content="é")
    async with place.connect(f"/ws/tasks/{id}") as client:
        for event in place.teams.logs[id]:
            assert await client.recv(decode=False) == b'{"type":"event","event":%b}' % encode(event)


async def test_an_address_is_subscribed_from_where_it_says_and_ends_with_the_tree(place: Place) -> None:
    await place.start()
    id = task(place)
    await place.teams.tell(id, "task_created", "model_call", "progress", "tool_call")
    async with place.connect(f"/ws/tasks/{id}?after=1&level=verbose") as client:
        assert json.loads(await client.recv())["event"]["seq"] == 3
        await place.teams.tell(id, "completed")
        assert json.loads(await client.recv())["event"]["seq"] == 5
        assert await closing(client) == (1000, "the task has ended")
    async with place.connect(f"/ws/tasks/{id}?after=5") as client:
        assert await closing(client) == (1000, "the task has ended")


async def test_a_client_that_comes_back_misses_nothing(place: Place) -> None:
    await place.start()
    id = task(place)
    await place.teams.tell(id, "task_created", "progress")
    seen = []
    async with place.connect(f"/ws/tasks/{id}") as client:
        seen.append(json.loads(await client.recv())["event"]["seq"])
    await place.teams.tell(id, "progress", "completed")
    async with place.connect(f"/ws/tasks/{id}?after={seen[-1]}") as client:
        with contextlib.suppress(ConnectionClosed):
            while True:
                seen.append(json.loads(await client.recv())["event"]["seq"])
    assert seen == [1, 2, 3, 4]
    await eventually(lambda: place.teams.views == 0)


async def test_several_trees_are_watched_and_left_alone_again(place: Place) -> None:
    await place.start()
    first, second = task(place), task(place)
    async with place.connect() as client:
        for id in (first, second):
            await ask(client, "subscribe", task_id=id, level="default")
        await place.teams.tell(first, "model_call")
        await place.teams.tell(second, "completed")
        assert json.loads(await client.recv())["event"]["task_id"] == second
        assert (await ask(client, "unsubscribe", task_id=first))["type"] == "ack"
        await eventually(lambda: place.teams.views == 0)
        await place.teams.tell(first, "completed")
        assert (await ask(client, "ping"))["type"] == "pong"


async def test_text_is_shown_while_it_is_written_to_who_asks(place: Place) -> None:
    await place.start()
    id = task(place)
    place.teams.deltas[id] = [
        Delta(task_id=id, run=1, offset=0, text="Hel"),
        Delta(task_id=id, run=1, offset=3, text="lo"),
    ]
    await place.teams.tell(id, "completed")
    async with place.connect(f"/ws/tasks/{id}?deltas=true") as client:
        told = [json.loads(await client.recv()) for _ in range(3)]
    assert told[0] == {"type": "delta", "task_id": id, "run": 1, "offset": 0, "text": "Hel"}
    assert [each["type"] for each in told] == ["delta", "delta", "event"]
    async with place.connect(f"/ws/tasks/{id}") as client:
        assert json.loads(await client.recv())["type"] == "event"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("{", "invalid_json"),
        ("[]", "invalid_type"),
        ('{"ref": 7}', "missing_required_parameter"),
        ('{"ref": 7, "action": "dance"}', "invalid_type"),
        ('{"ref": 7, "action": "ping", "hard": true}', "unknown_parameter"),
        ('{"ref": 7, "action": "subscribe"}', "missing_required_parameter"),
        ('{"ref": 7, "action": "subscribe", "task_id": "x", "after": -1}', "invalid_value"),
        ('{"ref": 7, "action": "subscribe", "task_id": "x"}', "task_not_found"),
        ('{"ref": 7, "action": "cancel", "task_id": "x\\u0000"}', "task_not_found"),
        ('{"ref": 7, "action": "message", "task_id": "x", "content": ""}', "invalid_value"),
        ('{"ref": 7, "action": "submit", "order": {}}', "missing_required_parameter"),
        ('{"ref": 7, "action": "submit", "order": []}', "invalid_type"),
        (b"{}", "invalid_type"),
        ('{"ref": 7, "action": "message", "task_id": "x", "content": "\\u0000"}', "invalid_value"),
        ('{"action": "submit", "order": ' + "[" * 100_000 + "]" * 100_000 + "}", "too_deep"),
    ],
)
async def test_a_bad_frame_is_answered_and_ends_nothing(place: Place, frame: str | bytes, code: str) -> None:
    await place.start()
    async with place.connect() as client:
        await client.send(frame)
        answer = json.loads(await client.recv())
        assert (answer["type"], answer["error"]["code"]) == ("error", code)
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert answer["ref"] == (7 if "ref" in str(frame) else None)
        assert (await ask(client, "ping"))["type"] == "pong"


async def test_a_browser_gives_its_key_as_a_subprotocol_which_is_not_repeated(place: Place) -> None:
    await place.start()
    names = [Subprotocol(f"hortator.key.{KEY}"), Subprotocol("hortator.v1")]
    async with place.connect(key=None, subprotocols=names, origin="https://anywhere.example") as client:
        assert client.subprotocol == "hortator.v1"
        assert KEY not in str(client.response)
        assert (await ask(client, "ping"))["type"] == "pong"


@pytest.mark.parametrize(
    ("key", "path", "code", "reason"),
    [
        (None, "/ws", 4401, "missing_api_key"),
        ("hrt_sk_nobody", "/ws", 4401, "invalid_api_key"),
        (KEY, "/ws/tasks/nothing", 4404, "task_not_found"),
        (KEY, "/ws/tasks/x?after=-1", 1008, "invalid_value"),
        (KEY, "/ws/tasks/x?level=some", 1008, "invalid_value"),
        (KEY, "/ws?key=x", 1008, "unknown_parameter"),
    ],
)
async def test_who_may_not_come_in_is_told_why(
    place: Place, key: str | None, path: str, code: int, reason: str
) -> None:
    await place.start()
    async with place.connect(path, key) as client:
        assert await closing(client) == (code, reason)


async def test_another_tenants_task_is_not_there(place: Place) -> None:
    await place.start()
    id = task(place)
    async with place.connect(f"/ws/tasks/{id}", OTHER) as client:
        assert await closing(client) == (4404, "task_not_found")
    async with place.connect(key=OTHER) as client:
        for action in ("subscribe", "cancel", "message"):
            fields = {"content": "x"} if action == "message" else {}
            assert (await ask(client, action, task_id=id, **fields))["error"]["code"] == "task_not_found"


async def test_a_store_that_is_down_says_come_later(place: Place) -> None:
    await place.start(recheck=0.01)
    async with place.connect() as inside:
        place.down = True
        async with place.connect() as client:
            assert await closing(client) == (1013, "store_unavailable")
        assert (await ask(inside, "ping"))["type"] == "pong"


async def test_a_key_that_is_revoked_ends_its_connections(place: Place) -> None:
    await place.start(recheck=0.01)
    async with place.connect() as client:
        del place.keys[KEY.encode()]
        assert await closing(client) == (4401, "revoked_api_key")


async def test_a_key_has_so_many_connections(place: Place) -> None:
    await place.start()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MAX_OF_KEY):
            raw = await (await place.raw()).opened()
            stack.callback(raw.close)
        async with place.connect() as client:
            assert await closing(client) == (4429, "too_many_connections")
        async with place.connect(key=OTHER) as client:
            assert (await ask(client, "ping"))["type"] == "pong"
    await eventually(lambda: not place.server.server_state.tasks)
    async with place.connect() as client:
        assert (await ask(client, "ping"))["type"] == "pong"


async def test_a_connection_has_so_many_subscriptions(place: Place) -> None:
    await place.start()
    async with place.connect() as client:
        for _ in range(MAX_SUBSCRIPTIONS):
            assert (await ask(client, "subscribe", task_id=task(place)))["type"] == "ack"
        refused = await ask(client, "subscribe", task_id=task(place))
        assert refused["error"]["code"] == "too_many_subscriptions"
    await eventually(lambda: place.teams.views == 0)


async def test_a_client_that_does_not_read_has_to_go(place: Place) -> None:
    await place.start(stall=0.2)
    id = task(place)
    raw = await (await place.raw(f"/ws/tasks/{id}", buffer=4096)).opened()
    for _ in range(40):
        await place.teams.tell(id, "agent_message", content="x" * 100_000)
    await eventually(lambda: place.teams.views == 0)
    assert await raw.closed() == 4408
    raw.close()
    await eventually(lambda: not place.server.server_state.connections)


async def test_a_client_that_answers_no_pings_has_to_go(place: Place) -> None:
    await place.start(ping=0.1)
    raw = await (await place.raw()).opened()
    got = []
    while (frame := await raw.read_frame())[0] != 8:
        got.append(frame[0])
    assert got == [9, 9]
    assert int.from_bytes(frame[1][:2], "big") == 4408
    raw.close()


async def test_a_client_that_answers_pings_stays(place: Place) -> None:
    await place.start(ping=0.2)
    raw = await (await place.raw()).opened()
    for _ in range(4):
        opcode, payload = await raw.read_frame()
        assert opcode == 9
        raw.frame(10, payload)
    raw.close()


async def test_pings_are_not_answered_into_memory(place: Place) -> None:
    """A client that sends pings and reads no pongs is not read either."""
    await place.start()
    raw = await (await place.raw(buffer=4096)).opened()
    payload = b"x" * 125
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 100 << 20:
            for _ in range(100):
                raw.frame(9, payload)
                sent += len(payload)
            async with asyncio.timeout(1):
                await raw.writer.drain()
    [connection] = place.server.server_state.connections
    assert connection.transport.get_write_buffer_size() < 1 << 20
    assert sent < 100 << 20
    raw.close()


async def test_messages_and_fragments_are_bounded(place: Place) -> None:
    await place.start()
    async with place.connect() as client:
        await client.send(json.dumps({"action": "ping", "ref": "x" * MAX_MESSAGE_BYTES}))
        assert (await closing(client))[0] == 1009
    raw = await (await place.raw()).opened()
    raw.frame(1, b"{", fin=False)
    for _ in range(2000):
        raw.frame(0, b"", fin=False)
    assert await raw.closed() == 1009
    raw.close()
    raw = await (await place.raw()).opened()
    raw.writer.write(b"".join(b"\x81\x82\0\0\0\0{}" for _ in range(8000)))
    assert await raw.closed() == 1008
    raw.close()


async def test_other_paths_answer_as_if_no_upgrade_was_offered(place: Place) -> None:
    """RFC 9110, 7.8. `/wsx` is not below `/ws`."""
    await place.start()
    for path in ("/v1/chat/completions", "/wsx"):
        raw = await place.raw(path)
        raw.ask()
        assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        raw.close()
    assert place.http == ["/v1/chat/completions", "/wsx"]


async def test_a_plain_request_to_the_path_is_http(place: Place) -> None:
    await place.start()
    raw = await place.raw()
    raw.writer.write(b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    raw.writer.write(
        b"POST /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\n{}"
    )
    await raw.reader.readexactly(2)
    assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    raw.close()


async def test_a_path_below_that_is_not_there_is_an_error_object(place: Place) -> None:
    await place.start()
    with pytest.raises(InvalidStatus) as caught:
        async with place.connect("/ws/elsewhere"):
            pass
    assert caught.value.response.status_code == 404
    assert json.loads(caught.value.response.body)["error"]["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec_WebSocket_Version": "8"}, b"HTTP/1.1 400"),
        ({"Sec_WebSocket_Key": "short"}, b"HTTP/1.1 400"),
        ({f"X_{number}": "x" for number in range(150)}, b"HTTP/1.1 400"),
        ({"X_Long": "x" * 20_000}, b"HTTP/1.1 400"),
    ],
)
async def test_a_handshake_that_is_wrong_is_refused_once(place: Place, headers: dict[str, str], status: bytes) -> None:
    await place.start()
    raw = await place.raw()
    raw.ask(b"", **headers)
    answer = await raw.reader.read()
    assert answer.startswith(status)
    assert answer.count(b"HTTP/1.1") == 1
    assert KEY.encode() not in answer
    await eventually(lambda: not place.server.server_state.connections)
    raw.close()


async def test_who_speaks_before_it_is_let_in_is_refused(place: Place) -> None:
    await place.start()
    raw = await place.raw()
    raw.ask(also=b"\x81\x82\0\0\0\0{}")
    assert (await raw.reader.read()).startswith(b"HTTP/1.1 400")
    await eventually(lambda: not place.server.server_state.connections)
    raw.close()


async def test_sockets_count_among_the_connections(place: Place) -> None:
    await place.start(most=2)
    async with place.connect(), place.connect():
        with pytest.raises(InvalidHandshake):
            async with place.connect():
                pass
    async with place.connect() as client:
        assert (await ask(client, "ping"))["type"] == "pong"


async def test_when_the_server_stops_clients_are_told_to_come_back(place: Place) -> None:
    await place.start()
    id = task(place)
    async with place.connect(f"/ws/tasks/{id}") as client:
        await eventually(lambda: place.teams.views == 1)
        stopping = asyncio.create_task(place.stop())
        assert await closing(client) == (1001, "the server stops")
        await stopping
    assert place.teams.views == 0


async def test_nothing_is_written_to_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Heads hold keys, and frames hold prompts."""
    caplog.set_level("DEBUG")
    for talker in ("websockets", "uvicorn", "hortator"):
        caplog.set_level("DEBUG", talker)
    await place.start()
    raw = await (await place.raw("/ws?x=y")).opened()
    raw.frame(1, b'{"action": "submit", "order": {"prompt": "a secret"}}')
    await raw.closed()
    raw.close()
    raw = await (await place.raw()).opened()
    raw.frame(1, b"\xff\xfe")
    assert await raw.closed() == 1007
    raw.close()
    assert KEY not in caplog.text
    assert "secret" not in caplog.text
    assert "Traceback" not in caplog.text

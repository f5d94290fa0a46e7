"""The WebSocket protocol of the public listener: uvicorn's, hardened where a hostile, broken or sleeping client would cost memory.

`listener.py` hands a connection over once its head has asked for it; from then on this is the connection, and ASGI's `websocket` scope
what the app sees (`socket.py` is its door). Frames are read and written by the library `websockets`. It logs nothing: heads hold keys.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame

DROP = "hortator.drop"
"""Name of the ASGI extension that holds `drop`."""
MAX_MESSAGE_BYTES = 1 << 20
MAX_WAITING = 256
"""Messages that have come and not been taken; a client that sends more at once has to go."""
MAX_FRAGMENTS = 1024
"""Frames of one message."""
PING_SECONDS = 20.0
MAX_MISSED = 2
"""Pings in a row without an answer."""
LINGER_SECONDS = 5.0
"""A connection that is to end is cut after so long: a client that does not read would keep it for ever."""
UNREAD, GOING_AWAY, FLOOD, TOO_BIG = 4408, 1001, 1008, 1009

_SILENT = logging.getLogger("hortator.websocket")
_SILENT.setLevel(logging.CRITICAL + 1)

Drop = Callable[[int, str], None]


class WebSocket(WebSocketsSansIOProtocol):
    """One connection."""

    def __init__(self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self.logger = self.conn.logger = _SILENT
        self.conn.debug = False
        self.ping_timeout = self.ping_interval
        self._missed = 0
        self._end: asyncio.TimerHandle | None = None

    # What the transport tells.

    def data_received(self, data: bytes) -> None:
        """Take bytes. A client that speaks before it has been let in does not speak the protocol."""
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.abort()
        else:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget everything."""
        super().connection_lost(exc)
        if self._end is not None:
            self._end.cancel()

    def pause_writing(self) -> None:
        """The client does not read: neither is it read, or its pings would be answered into memory."""
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    # What the client sends.

    def handle_connect(self, event: Any) -> None:
        """Ask the app whether the client may come in."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            scope: Any = self.scope
            scope["extensions"][DROP] = self.drop
        else:
            self._end_soon()

    def handle_cont(self, event: Frame) -> None:
        """Take a part of a message; empty ones cost no bytes of the message's bound."""
        if len(self.frames) >= MAX_FRAGMENTS:
            self.drop(TOO_BIG, "too many fragments")
        else:
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Hand a message over, unless too many wait."""
        if self.queue.qsize() >= MAX_WAITING and not self.close_sent:
            self.frames = []
            self.drop(FLOOD, "too many messages at once")
        else:
            super().send_receive_event_to_app()

    def handle_pong(self, event: Frame) -> None:
        """The client lives."""
        super().handle_pong(event)
        if self.pending_ping_payload is None:
            self._missed = 0

    def keepalive_timeout(self) -> None:
        """A ping was not answered."""
        self.pong_timer = None
        self._missed += 1
        if self._missed < MAX_MISSED:
            self.send_keepalive_ping()
        else:
            self.drop(UNREAD, "no answer to pings")

    def handle_close(self, event: Frame) -> None:
        """The client ends it, or agrees to the end."""
        super().handle_close(event)
        self._end_soon()

    def handle_parser_exception(self) -> None:
        """What came is not the protocol."""
        super().handle_parser_exception()
        self._end_soon()

    # What ends it.

    def shutdown(self) -> None:
        """The server stops."""
        if self.handshake_complete:
            self.drop(GOING_AWAY, "the server stops")
        else:
            super().shutdown()
            self._end_soon()

    def drop(self, code: int, reason: str) -> None:
        """Close now, whatever still waits to be written; cut the connection if the client does not agree soon."""
        self.stop_keepalive()
        if self.handshake_complete and not self.close_sent and not self.disconnected:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
            self.conn.send_close(code, reason)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = True
            self.close_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)
            self.transport.resume_reading()
        self._end_soon()

    def _end_soon(self) -> None:
        if self._end is None and not self.disconnected:
            self._end = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    # What the app says.

    async def run_asgi(self) -> None:
        """Run the app; when it is done, so is the connection."""
        await super().run_asgi()
        self._end_soon()

    async def send(self, message: Any) -> None:
        """Write. Raises ClientDisconnected once the connection ends."""
        await self.writable.wait()
        if self.close_sent:
            raise ClientDisconnected
        await super().send(message)

    async def receive(self) -> Any:
        """Return the next message; the client is read on once all have been taken, if it reads itself."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            if self.writable.is_set() and not self.transport.is_closing():
                self.transport.resume_reading()
        return message

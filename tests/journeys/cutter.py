"""A network that breaks: a forwarder in front of a gateway that cuts connections after so many bytes of what the gateway sends.

Clients that promise to go on after a broken connection are sent through it. Cuts come in the order they were given, one a connection;
after the last one nothing is cut any more.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress


class Cutter:
    """One forwarder on loopback."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._cuts: list[int] = []
        self.port: int = self._listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.cut = 0
        """How many connections were cut."""
        self._spawn(self._accept)

    def plan(self, cuts: Sequence[int]) -> None:
        """Cut coming connections after so many bytes each, by a reset."""
        self._cuts = list(cuts)

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._spawn(self._forward, client, self._cuts.pop(0) if self._cuts else None)

    def _forward(self, client: socket.socket, left: int | None) -> None:
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._behind)) as server:
            while True:
                ready, _, _ = select.select([client, server], [], [])
                for source, target in ((client, server), (server, client)):
                    if source not in ready:
                        continue
                    data = source.recv(4096)
                    if not data:
                        return
                    if left is not None and source is server:
                        if len(data) >= left:
                            self.cut += 1
                            with suppress(OSError):
                                client.sendall(data[:left])
                            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                            return
                        left -= len(data)
                    target.sendall(data)

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@contextmanager
def cutting(port: int) -> Iterator[Cutter]:
    """Run a forwarder in front of a port for a while."""
    cutter = Cutter(port)
    try:
        yield cutter
    finally:
        cutter.close()

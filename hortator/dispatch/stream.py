"""Carries a call whose answer is streamed.

The gateway opens a `Stream`, the door pulls its bytes. Until the first content arrives (the commit point) candidates may be
tried one after the other and nothing has been said to the client but comments; after it a failure is raised and becomes an
honest error event. The stream never reads ahead: a client that does not read stops its upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from hortator.call import Call, Decision, Deployment
from hortator.dispatch.attempts import Dispatch, carry
from hortator.dispatch.balance import Turn
from hortator.dispatch.estimate import estimated, reported
from hortator.dispatch.hedge import Rival
from hortator.dispatch.refusal import passed_headers, refused
from hortator.dispatch.trace import Trace
from hortator.dispatch.translation import reader, said
from hortator.errors import HortatorError, InvalidReply, TruncatedStream, UpstreamRefused
from hortator.providers.base import Reply
from hortator.wire import refusal
from hortator.wire.chat_stream import KEEP_ALIVE, ErrorEvent
from hortator.wire.dialects import Reader
from hortator.wire.sse import EventSplitter

MAX_HELD_BYTES = 1024 * 1024
"""What an upstream may send before its first content; it is held back until then."""

DRAIN_SECONDS = 0.2
"""After `[DONE]` the upstream has this long to end its reply, so that its connection can be used again."""


class Stream:
    """One streamed answer. `open` once, `next` until None, `close` always."""

    __slots__ = (
        "_call",
        "_commit",
        "_deadline",
        "_decision",
        "_dispatch",
        "_heartbeat",
        "_keep_alive",
        "_last",
        "_loop",
        "_quiet",
        "_reader",
        "_reply",
        "_splitter",
        "_trace",
        "_turn",
        "_write",
        "ended",
    )

    def __init__(
        self,
        dispatch: Dispatch,
        call: Call,
        decision: Decision,
        trace: Trace,
        deadline: float,
        keep_alive: float,
    ) -> None:
        self._dispatch = dispatch
        self._call = call
        self._decision = decision
        self._trace = trace
        self._deadline = deadline
        self._keep_alive = keep_alive
        self._loop = asyncio.get_running_loop()
        self._commit: asyncio.Task[bytes] | None = None
        self._turn: Turn | None = None
        """The attempt that answers; None before the commit point."""
        self._heartbeat: asyncio.TimerHandle | None = None
        self._quiet = False
        self._reply: Reply | None = None
        self._splitter = EventSplitter()
        self._reader: Reader = reader(call, call)
        self._write: Callable[[bytes], bool] | None = None
        self._last = b""
        """The answer's end, when it came while the answer flowed; `next` returns it."""
        self.ended = False
        """What `next` returned last was the end of the answer, `[DONE]` included."""

    async def open(self) -> None:
        """Wait for the upstream's verdict, `decision.status_wait_ms` at most. Raises when every candidate failed by then."""
        self._commit = self._loop.create_task(self._until_commit())
        await asyncio.wait((self._commit,), timeout=self._decision.status_wait_ms / 1000)
        if self._commit.done() and (error := self._commit.exception()) is not None:
            raise error

    async def next(self) -> bytes | None:
        """Return the next bytes for the client, a comment while the upstream is silent, None after the end.

        Raises the HortatorError that ended the answer.
        """
        if self._commit is not None:
            return await self._first(self._commit)
        if self._last:
            last, self._last = self._last, b""
            return last
        while not self.ended:
            assert self._reply is not None
            if self._reader.failure is not None:
                raise self._failure()
            data = await self._reply.next()
            if data == b"":
                return KEEP_ALIVE
            self._quiet = False
            out = self._take(data)
            if out:
                return out
        return None

    async def flow(self, write: Callable[[bytes], bool]) -> None:
        """After the commit point: give the client's bytes straight to `write` for as long as it returns True.

        Returns when `next` must be asked: it has the end, a failure or a comment, or waits for a client that is slow.
        """
        if self._commit is None and self._reply is not None and not self.ended and self._reader.failure is None:
            self._write = write
            await self._reply.flow(self._relay)

    def failed(self, error: HortatorError) -> bytes:
        """Return the events that tell the client of a failure, if its dialect has its own."""
        return self._reader.failed(error)

    def _relay(self, data: bytes) -> bool:
        """Take one piece while the answer flows; False when `next` has to go on."""
        self._quiet = False
        try:
            out = self._take(data)
        except HortatorError:
            return False  # `next` raises it: the failure is noted in the reader's state
        if self.ended:
            self._last = out
            return False
        assert self._write is not None
        return not out or self._write(out)

    async def close(self, error: BaseException | None) -> None:
        """Give everything back and settle the trace. `error` is what ended the answer early, None when it went well.

        An unfinished upstream call is cancelled. After a good end the upstream gets a moment to finish its reply.
        """
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if self._commit is not None and not self._commit.done():
            self._commit.cancel()
            await asyncio.wait((self._commit,))
        if self._turn is not None:
            self._settle(self._turn, error)
        if self._reply is None:
            return
        try:
            if self.ended and error is None:
                await self._drain(self._reply)
        finally:
            self._reply.close()

    def _settle(self, turn: Turn, error: BaseException | None) -> None:
        """Note the end of the answering attempt and its usage."""
        trace, answer = self._trace, self._reader
        now = monotonic()
        trace.response_model = answer.model
        trace.usage = reported(answer.usage) if answer.usage else estimated(self._call, answer.text_length)
        trace.end(error, now)
        turn.leave(error, now)
        trace.complete = self.ended and error is None

    async def _drain(self, reply: Reply) -> None:
        """Let the upstream end its reply, briefly: what follows `[DONE]` is only the end of the HTTP body."""
        handle = self._loop.call_later(DRAIN_SECONDS, reply.poke)
        try:
            await reply.next()
        except HortatorError:
            pass  # the answer is complete; the connection is not worth keeping, and `close` drops it
        finally:
            handle.cancel()

    async def _first(self, commit: asyncio.Task[bytes]) -> bytes:
        """Wait for the commit point, with comments meanwhile."""
        if not commit.done():
            await asyncio.wait((commit,), timeout=self._keep_alive)
            if not commit.done():
                return KEEP_ALIVE
        self._commit = None
        first = commit.result()
        self._heartbeat = self._loop.call_later(self._keep_alive, self._beat)
        return first

    def _beat(self) -> None:
        """Run every `keep_alive` seconds: wake `next` for a comment if nothing came since the last time."""
        if self._quiet and self._reply is not None:
            self._reply.poke()
        self._quiet = True
        self._heartbeat = self._loop.call_later(self._keep_alive, self._beat)

    def _take(self, data: bytes | None) -> bytes:
        """Return what the client gets of one piece of the upstream's stream (None = its end). Raises what is wrong with it."""
        answer = self._reader
        if data is None:
            rest = self._splitter.end()
            out = b"" if rest is None else answer.feed([rest])
        else:
            out = answer.feed(self._splitter.feed(data))
        over = data is None or answer.done
        if over and answer.failure is None and not answer.finished:
            answer.failure = TruncatedStream("The provider's stream ended before its answer was complete.")
        if answer.failure is not None:
            if out:
                return out
            raise self._failure()
        if over:
            out += answer.end()
            self.ended = True
        return out

    def _failure(self) -> HortatorError:
        """Return the error for what the upstream did wrong in its stream."""
        failure = self._reader.failure
        assert failure is not None
        if isinstance(failure, HortatorError):
            return failure
        assert isinstance(failure, ErrorEvent)
        assert self._reply is not None
        assert self._trace.deployment is not None
        provider = self._dispatch.providers[self._trace.deployment.provider]
        error = refusal.read_object(failure.error)
        return refused(provider, error.status or 502, self._reply.headers, error)

    async def _until_commit(self) -> bytes:
        """Try candidates until one sends content; return everything it sent so far, ready for the client."""
        first, self._turn = await carry(
            self._dispatch, self._call, self._decision, self._trace, self._deadline, self._attempt, self._rival
        )
        return first

    def _rival(self) -> Rival:
        """Return another way to get the first content, for a hedge."""
        other = Stream(self._dispatch, self._call, self._decision, Trace(), self._deadline, self._keep_alive)

        def adopt() -> None:
            self._drop()
            self._reply, self._reader, self._splitter = other._reply, other._reader, other._splitter
            self.ended = other.ended

        return Rival(other._trace, other._attempt, adopt, other._drop)

    async def _attempt(self, deployment: Deployment) -> bytes:
        """Ask one deployment once; return its bytes up to and with the first content."""
        provider = self._dispatch.providers[deployment.provider]
        trace = self._trace
        sent = said(self._call, provider, deployment)
        self._reader = reader(self._call, sent)
        begun = monotonic()
        try:
            self._reply = reply = await provider.send(sent, deployment, self._deadline)
            trace.status = reply.status
            if not 200 <= reply.status < 300:
                raise refused(provider, reply.status, reply.headers, refusal.read(await reply.read()))
            held = b""
            while not (self._reader.committed or self.ended):
                if len(held) > MAX_HELD_BYTES:
                    raise InvalidReply("The provider's stream holds no content.")
                held += self._take(await reply.next())
                if self._reader.failure is not None and not self._reader.committed:
                    raise self._failure()
        except BaseException as error:
            self._note_usage(error)
            self._drop()
            raise
        finally:
            now = monotonic()
            trace.waited += now - begun
        trace.first_byte_at = now
        trace.headers = passed_headers(reply.headers)
        return held

    def _note_usage(self, error: BaseException) -> None:
        """Note what an attempt took that failed before its content: what it reported, or an estimate where an answer broke off."""
        trace, answer = self._trace, self._reader
        if self._reply is not None and 200 <= self._reply.status < 300:
            trace.response_model = answer.model
            if answer.usage:
                trace.usage = reported(answer.usage)
            elif not isinstance(error, UpstreamRefused):
                trace.usage = estimated(self._call, answer.text_length)
        if trace.usage.source == "unknown" and isinstance(error, asyncio.CancelledError):
            trace.usage = estimated(self._call, None)

    def _drop(self) -> None:
        """Forget a failed candidate's reply."""
        if self._reply is not None:
            self._reply.close()
            self._reply = None
        self._splitter = EventSplitter()

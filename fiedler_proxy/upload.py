"""A request body that is still coming: from the caller to the upstream, as it arrives.

Owns the pace of an upload. It runs beside the response, so that an early answer is relayed while the body still
flows; it holds no more than aiohttp's read buffer and the connection's write buffer.
"""

import asyncio
from typing import Protocol

from aiohttp import web

from fiedler_proxy.errors import ExchangeError, body_too_large, malformed_body
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.framing import LAST_CHUNK, chunk
from fiedler_proxy.heads import RequestHead
from fiedler_proxy.server import CONTINUE, caller_connection
from fiedler_proxy.sockets import caller_has_left
from fiedler_proxy.wire import State, UpstreamConnection

CONTINUE_AFTER = 1.0
"""Seconds after which a caller that expects 100-continue gets it from us (RFC 9110 section 10.1.1: a proxy may), for
upstreams that ignore the expectation and wait for the body."""

LEFT_CHECK = 0.5
"""Seconds between looks at whether the caller of a stalled upload is still there: while its connection is not read,
the loop would not hear of its end."""


READ_TURNS = 2
"""Turns of the loop within which it reads what has arrived: one polls, the next one reads."""


class Failing(Protocol):
    """Who hears that an upload failed."""

    def fail(self, error: Exception) -> None:
        """The exchange cannot go on."""


class Upload:
    """The upload of one exchange.

    ``waits_for_caller``: the next byte is the caller's to send; ``last_byte``: loop time of the last one;
    ``unasked``: the caller still waits to be told to send its body.
    """

    __slots__ = ("_connection", "_continue", "_exchange", "_flow", "_head", "_left_timer", "_limit", "_loop",
                 "_request", "_room", "_task", "last_byte", "unasked", "waits_for_caller")  # fmt: skip

    def __init__(
        self,
        flow: Failing,
        request: web.Request,
        exchange: Exchange,
        connection: UpstreamConnection,
        head: RequestHead,
        limit: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._flow = flow
        self._request = request
        self._exchange = exchange
        self._connection = connection
        self._head = head
        self._limit = limit
        self._room: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._continue: asyncio.TimerHandle | None = None
        self._left_timer: asyncio.TimerHandle | None = None
        self.last_byte = self._loop.time()
        self.unasked = head.expect
        self.waits_for_caller = False

    def start(self) -> None:
        """Begin in a task of its own; from now on ``stop`` must be called."""
        if self.unasked:
            self._continue = self._loop.call_later(CONTINUE_AFTER, self._continue_ourselves)
        self._task = self._loop.create_task(self._run())

    def stop(self) -> None:
        """No byte moves after this."""
        for timer in (self._continue, self._left_timer):
            if timer is not None:
                timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def may_continue(self) -> bool:
        """The upstream said 100: whether the caller still waits to hear it."""
        waited, self.unasked = self.unasked, False
        return waited

    def writable(self) -> None:
        """The upstream takes bytes again."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _continue_ourselves(self) -> None:
        transport = caller_connection(self._request).transport
        if self.may_continue() and transport is not None and not self._exchange.head_sent:
            transport.write(CONTINUE)

    async def _run(self) -> None:
        try:
            await self._copy()
        except ExchangeError as error:
            self._connection.abort()
            self._flow.fail(error)
        except web.RequestPayloadError:
            self._connection.abort()
            self._flow.fail(malformed_body())
        except ConnectionError as error:
            # The caller went away; the request's own task is being cancelled, or ends here.
            self._connection.abort()
            self._flow.fail(error)

    async def _copy(self) -> None:
        content, connection, exchange = self._request.content, self._connection, self._exchange
        kept, sent = exchange.kept, 0
        if kept is not None and kept.size:
            sent = kept.size
            for piece in kept.pieces:
                connection.write(chunk(piece) if self._head.chunked else piece)
            kept.spent()
            if connection.writing_paused:
                await self._wait_for_room()
        while True:
            self.waits_for_caller = True
            data = await content.readany()
            self.waits_for_caller = False
            if connection.state is State.CLOSED:
                return
            if not data:
                break
            self.unasked = False
            self.last_byte = self._loop.time()
            sent += len(data)
            if self._limit and sent > self._limit:
                raise body_too_large(self._limit)
            exchange.tell_request_bytes(data)
            if kept is not None:
                kept.put(data)
            await self._let_answer_in()
            connection.write(chunk(data) if self._head.chunked else data)
            if kept is not None:
                kept.spent()
            if connection.writing_paused:
                await self._wait_for_room()
        if kept is not None:
            kept.whole = not kept.lost
        if self._head.chunked:
            connection.write(LAST_CHUNK)
        connection.finish_request()

    async def _let_answer_in(self) -> None:
        """An upstream may answer early and close: a write that fails then would take the unread answer with it."""
        for _ in range(READ_TURNS):
            if not self._connection.has_news():
                return
            await asyncio.sleep(0)

    async def _wait_for_room(self) -> None:
        self._room = self._loop.create_future()
        self._left_timer = self._loop.call_later(LEFT_CHECK, self._look_after_caller)
        try:
            await self._room
        finally:
            self._left_timer.cancel()
            self._room = None
        self.last_byte = self._loop.time()

    def _look_after_caller(self) -> None:
        if caller_has_left(self._request):
            self._connection.abort()
            self._flow.fail(ConnectionResetError("the caller left"))
            return
        self._left_timer = self._loop.call_later(LEFT_CHECK, self._look_after_caller)

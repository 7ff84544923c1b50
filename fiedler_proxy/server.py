"""The one door to aiohttp's server: everything here that aiohttp keeps private is used here and nowhere else.

Owns how callers are accepted: the connection (which tells the relay when the caller reads again and when its upload
turns out malformed), the application (one entrance for every method and target, no router, no invented headers) and
the response that the relay writes itself. It decides nothing about an exchange. ``tests/test_server.py`` names every
private attribute used here, so that an aiohttp which changes one fails there.
"""

import asyncio
import contextvars
import logging
import sys
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http_exceptions import HttpProcessingError, InvalidURLError, LineTooLong
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.http_writer import HttpVersion11, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import _PAYLOAD_ACCESS_ERROR, ERROR, RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_urldispatcher import UrlMappingMatchInfo
from multidict import CIMultiDict

from fiedler_proxy.errors import Dialect, ExchangeError, body_too_large, render
from fiedler_proxy.headers import RawHeaders
from fiedler_proxy.turn import Turn

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

Begin = Callable[[web.Request], Awaitable[web.StreamResponse] | None]
"""Begins to serve a request. None where it is being served without a task: ``CallerConnection.finish`` or ``go_on`` follows.
Else what a task is to await."""

READ_BUFFER = 64 * 1024
"""Bytes of a caller's upload in our memory before its connection is paused (aiohttp holds up to twice that)."""

HEADERS_CAP = 512
"""Most headers a request may have."""

LINGER = 5.0
"""Seconds in which the rest of an upload that was answered early is read and dropped."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_log = logging.getLogger("kgb.http")


class ConnectionCut(Exception):
    """The response cannot be completed and its head has left: the connection must end visibly broken."""


def c_parser_in_use() -> bool:
    """Whether aiohttp parses requests in C; the pure Python parser is neither as strict nor as fast."""
    return HttpRequestParser.__module__ == "aiohttp._http_parser"


class CallerConnection(RequestHandler):
    """A caller's connection. ``resumed`` is called when the caller reads again; ``left_by`` is how it was lost.

    aiohttp keeps a task for each connection and makes one more for each request; here there is one for each request at most,
    made when its head has arrived, and none in between.
    """

    __slots__ = ("_context", "_serving", "left_by", "resumed")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.resumed: Callable[[], None] | None = None
        self.left_by: BaseException | None = None
        self._serving = False

    async def start(self) -> None:
        """aiohttp's loop over the requests of a connection: nothing is left of it but its name."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._context = contextvars.copy_context()
        self._task_handler = None

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.resumed is not None:
            self.resumed()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp asks at the end of every body, paused or not; that is a call into the transport each time.
        if self._reading_paused or self._buffer_paused:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.left_by = exc
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            if isinstance(self._messages[-1][0], _ErrInfo):
                self._poison_uploads()
            if not self._serving:
                self._serving = True
                self.arrived()

    def arrived(self) -> None:
        """A request is here, and none is being served."""
        self._serve_next()

    def _serve_next(self) -> None:
        """Serve the first message that waits, in a context of its own: what a link sets in it ends with the request."""
        if self._manager is None or self._force_close:
            return
        self._serving = self._request_in_progress = True
        message, payload = self._messages.popleft()
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        self._manager.requests_count += 1
        handler: Any = self._request_handler
        if isinstance(message, _ErrInfo):
            handler, message = self._make_error_handler(message), ERROR
        assert self._request_factory is not None
        request = self._request_factory(message, payload, self, StreamWriter(self, self._loop), None)  # type: ignore[arg-type]
        self._current_request = request
        self.entered(request, handler)

    def entered(self, request: web.BaseRequest, handler: Handler) -> None:
        """Serve ``request`` in a task."""
        _begin(self._serve(request, handler(request)), self._loop, self._context.copy())  # type: ignore[arg-type]

    async def _serve(self, request: web.BaseRequest, answer: Awaitable[web.StreamResponse]) -> None:
        self._task_handler = request._task = asyncio.current_task(self._loop)  # type: ignore[assignment]
        self._keepalive = left = False
        payload = request._payload
        try:
            try:
                response = await answer
            except Exception as error:
                response = self.handle_error(request, 500, error)
            finally:
                self._current_request = None
            if response._eof_sent and not self._upgraded:
                request._finish()
            else:
                response, left = await self.finish_response(request, response, None)
            if payload is not EMPTY_PAYLOAD:
                if not payload.is_eof():
                    await self._linger(payload)
                payload.set_exception(_PAYLOAD_ACCESS_ERROR)
            self._keepalive = not left and bool(response._keep_alive)
        except ConnectionError:
            pass  # the caller left, or its connection is cut
        except Exception as error:
            _log.error("a request ended in %s after its answer", type(error).__name__)
            self.force_close()
        except BaseException:
            self.force_close()
            raise
        finally:
            request._task = None  # type: ignore[assignment]  # else the two would keep each other alive
            self._task_handler = None
            self.let_stop()
        self._served()

    def let_stop(self) -> None:
        """A shutdown that waits for the request waits no longer."""
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)

    def _served(self) -> None:
        if not self._keepalive or self._close or self._force_close:
            if self.transport is not None:
                self.transport.close()
            return
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        if self._messages:
            # Not at once: a thousand pipelined requests would be as many frames.
            self._loop.call_soon(self._serve_next, context=self._context)
        else:
            self._serving = False

    async def _linger(self, payload: StreamReader) -> None:
        """Read and drop the rest of an upload that was answered early; the connection ends where there is too much."""
        if not self._force_close and self._lingering_time:
            await asyncio.sleep(0)  # whoever read it until now was cancelled in this turn
            try:
                async with asyncio.timeout(self._lingering_time):
                    while not payload.is_eof():
                        await payload.readany()
            except TimeoutError:
                pass
        if not payload.is_eof():
            self.close()

    def _process_keepalive(self) -> None:
        # aiohttp's own asks its waiting task whether the connection is idle.
        self._keepalive_handle = None
        if self._force_close or not self._keepalive:
            return
        if self._loop.time() < self._next_keepalive_close_time:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        elif not self._serving:
            self.force_close()

    def _poison_uploads(self) -> None:
        """What broke may be the body of the request being served: its reader must not wait for ever."""
        payloads = [payload for _, payload in list(self._messages)[:-1]]
        if self._current_request is not None:
            payloads.append(self._current_request.content)
        for payload in payloads:
            if not payload.is_eof() and payload.exception() is None:
                payload.set_exception(RequestPayloadError("malformed body"))
                payload.feed_eof()  # nobody shall wait for the rest of it either

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never became a request, in a shape of our own and without an echo of its bytes."""
        if not isinstance(exc, HttpProcessingError):
            if not isinstance(exc, (ConnectionCut, ConnectionError)):
                _log.error("a request ended in %s outside the chain", type(exc).__name__)
            raise ConnectionResetError("cut")
        why = _why_malformed(exc)
        _log.info("malformed request from %s refused: %s", request.remote, why)
        error = ExchangeError("malformed_request", f"The request is malformed: {why}.", status=400, retry=False)
        answer = render(error, Dialect.PROBLEM, "")
        answer_in_our_version(request)
        response = OwnResponse(status=answer.status, headers=answer.headers, body=answer.body)
        response.force_close()
        return response


class DirectConnection(CallerConnection):
    """A caller's connection whose entrance can serve a request without a task: what its upstream's bytes call is all there is.

    ``lost`` is called when the caller has left while no task serves it.
    """

    __slots__ = ("begin", "lost", "turn", "within")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lost: Callable[[], None] | None = None
        self.begin: Begin | None = getattr(self._request_handler, "begin", None)
        self.turn: Turn = self._manager.turn  # type: ignore[union-attr]

    def arrived(self) -> None:
        """A request is here: it is served at the end of the turn, with all that came in it."""
        self.turn.begin(self._serve_next)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        lost, self.lost = self.lost, None
        if lost is not None:
            lost()

    def entered(self, request: web.BaseRequest, handler: Handler) -> None:
        """Serve ``request`` without a task, where the entrance can; in a context of its own: what a link sets there ends with it."""
        self.within = self._context.copy()
        begin: Any = handler if self.begin is None or handler is not self._request_handler else self.begin
        answer = self.within.run(begin, request)
        if answer is not None:
            _begin(self._serve(request, answer), self._loop, self.within)

    def go_on(self, request: web.BaseRequest, answer: Awaitable[web.StreamResponse]) -> None:
        """From now on a task serves ``request``, and awaits ``answer``. It begins in the next turn of the loop, where nobody is in the
        midst of something."""
        self.lost = None
        self._loop.create_task(self._serve(request, answer), context=self.within)

    def finish(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """``request`` was served without a task: ``response`` is written."""
        self._current_request = None
        payload = request._payload
        if payload is not EMPTY_PAYLOAD:
            if not payload.is_eof():
                self.go_on(request, _already(response))  # to wait for the rest of its body
                return
            payload.set_exception(_PAYLOAD_ACCESS_ERROR)
        request._finish()
        self._keepalive = bool(response._keep_alive)
        self.let_stop()
        self._served()


def _begin(serving: Coroutine[None, None, None], loop: asyncio.AbstractEventLoop, context: contextvars.Context) -> None:
    """Make it a task, begun in this turn of the loop where Python can; the connection keeps hold of it."""
    if sys.version_info >= (3, 12):
        asyncio.Task(serving, loop=loop, context=context, eager_start=True)
    else:
        loop.create_task(serving, context=context)


async def _already(response: web.StreamResponse) -> web.StreamResponse:
    return response


def _why_malformed(exc: HttpProcessingError) -> str:
    if isinstance(exc, LineTooLong):
        return "the request line or a header is too long"
    if isinstance(exc, InvalidURLError):
        return "the request target is invalid"
    first = (exc.message or type(exc).__name__).splitlines()[0].rstrip(":")
    # llhttp's reasons are fixed sentences; aiohttp's own may quote what the caller sent.
    return first if first.replace(" ", "").isalpha() or "'" not in first else type(exc).__name__


class CallerRequest(web.Request):
    """A request whose body a link may read whole, even where the caller waits to be asked for it."""

    async def read(self) -> bytes:
        """The body. Says 100 (RFC 9110 section 10.1.1) to a caller that expects it and has sent nothing yet: the
        upstream cannot, since the request does not go there before its body is here."""
        waiting = self._read_bytes is None and not self._payload.total_bytes and not self._payload.is_eof()
        expects = waiting and self.version >= (1, 1) and self.headers.get("Expect", "").lower() == "100-continue"
        if expects and self.transport is not None:
            self.transport.write(CONTINUE)
        try:
            return await super().read()
        except web.HTTPRequestEntityTooLarge:
            raise body_too_large(self.client_max_size) from None


class OwnResponse(web.Response):
    """An answer of the gateway itself: without the Server header that aiohttp invents."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self._headers.popall("Server", None)


class RelayResponse(web.StreamResponse):
    """The response that the relay writes as raw bytes; for links it is the StreamResponse that passes through.

    ``headers`` is for reading: the head has left. They are made when somebody asks.
    """

    _eof_sent = True  # to aiohttp it is written: whatever is missing, the relay writes

    def __init__(self, status: int, reason: str, raw: RawHeaders, keep_alive: bool) -> None:
        # Not the constructor of aiohttp: it would make, for every answer, headers that hardly ever are looked at.
        self._state = {}
        self._status = status
        self._reason = reason
        self._raw = raw
        self._read: CIMultiDict[str] | None = None
        self._keep_alive = keep_alive

    @property
    def _headers(self) -> "CIMultiDict[str]":  # type: ignore[override]
        if self._read is None:
            pairs = ((name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in self._raw)
            self._read = CIMultiDict(pairs)
        return self._read

    def finished(self, size: int) -> None:
        """The body is on the wire: ``size`` bytes with the head."""
        self._body_length = size


class _Server(web.Server):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.turn = Turn(self._loop)

    def __call__(self) -> RequestHandler:
        return DirectConnection(self, loop=self._loop, **self._kwargs)


with warnings.catch_warnings():
    # aiohttp discourages subclasses because of their attributes; this one exists for its entrance.
    warnings.simplefilter("ignore", DeprecationWarning)

    class Application(web.Application):
        """An aiohttp application with one entrance: every method and target goes to ``entrance``.

        It behaves the same under AppRunner, ``web.run_app`` and aiohttp's test server: what the gateway needs of the
        server (cancellation, no decompression, limits, timeouts) is set here and not by who runs it.
        """

        ATTRS = web.Application.ATTRS | frozenset(("_entrance", "_match", "_route", "_server_options"))

        def __init__(self, entrance: Handler, *, server_options: dict[str, Any] | None = None, max_read: int) -> None:
            super().__init__(client_max_size=max_read)
            self._entrance = entrance
            self._server_options = server_options or {}
            self._match: UrlMappingMatchInfo | None = None
            self._route = self.router.add_route("*", "/{target:.*}", self._handle)

        def _make_handler(
            self,
            *,
            loop: asyncio.AbstractEventLoop | None = None,
            access_log_class: type[AbstractAccessLogger] | None = None,
            **kwargs: Any,
        ) -> web.Server:
            self._set_loop(loop)
            self.freeze()
            self._match = UrlMappingMatchInfo({}, self._route)
            self._match.add_app(self)
            self._match.freeze()
            self._match.current_app = self
            options = {**kwargs, **self._server_options, "access_log": None, "handler_cancellation": True,
                       "auto_decompress": False, "debug": False, "logger": _log, "read_bufsize": READ_BUFFER,
                       "max_headers": HEADERS_CAP, "lingering_time": LINGER}  # fmt: skip
            return _Server(self._entrance, request_factory=self._make_request, loop=self._loop, **options)

        def _make_request(
            self,
            message: Any,
            payload: Any,
            protocol: Any,
            writer: Any,
            task: Any,
            _cls: type[web.Request] = CallerRequest,
        ) -> web.Request:
            assert self._loop is not None
            request = _cls(message, payload, protocol, writer, task, self._loop, client_max_size=self._client_max_size)
            if message is not ERROR:
                request._match_info = self._match
            return request


def answer_in_our_version(request: web.BaseRequest) -> None:
    """Answer a request of a version that is not spoken here in HTTP/1.1 (RFC 9112 section 2.3)."""
    request._version = HttpVersion11


def next_request_is_lost(request: web.Request) -> bool:
    """Whether aiohttp dropped what came in the same read behind this request: it does so behind an upgrade to a
    protocol that it does not know, and the connection must not be read any further.
    """
    return request._message.upgrade and not request.protocol._upgraded


def raw_message(request: web.Request) -> RawRequestMessage:
    """The request's head as received: ``method``, ``path`` (the target; bytes >= 0x80 appear as non-ASCII characters),
    ``version`` (aiohttp's own property would remember it for the answer) and ``raw_headers``."""
    return request._message


def read_body(request: web.Request) -> bytes | None:
    """The body, when a link has read it whole (``await request.read()``); else None."""
    return request._read_bytes


def take_buffered(content: StreamReader) -> bytes | None:
    """The whole body when it has arrived already; else None. Wakes and waits for nothing."""
    if content.is_eof() and content.exception() is None:
        return content.read_nowait()
    return None


def observe_writes(request: web.Request, told: Callable[[bytes], Awaitable[None]]) -> None:
    """Call ``told`` with every body chunk that a response other than the relay's own is about to write."""
    request._payload_writer._on_chunk_sent = told  # type: ignore[attr-defined]


def caller_connection(request: web.Request) -> DirectConnection:
    """The connection that ``request`` came over."""
    return request._protocol  # type: ignore[return-value]


async def drain(connection: CallerConnection) -> None:
    """Wait until the caller has taken what was written (down to the transport's low-water mark)."""
    await connection._drain_helper()


class UpgradedReader:
    """What aiohttp feeds a caller's bytes to after an upgrade: they go to ``sink``, raw."""

    __slots__ = ("_eof", "_sink")

    def __init__(self, sink: Callable[[bytes], None], eof: Callable[[], None]) -> None:
        self._sink = sink
        self._eof = eof

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Aiohttp's parser protocol: (end of stream, bytes left over)."""
        self._sink(data)
        return False, b""

    def feed_eof(self) -> None:
        """The caller's connection is gone."""
        self._eof()


def tunnel_caller(request: web.Request, reader: UpgradedReader) -> None:
    """From now on the caller's bytes are no HTTP; what already arrived is handed on at once."""
    request.protocol.set_parser(reader)  # type: ignore[arg-type]

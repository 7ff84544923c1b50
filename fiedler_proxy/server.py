"""The one door to aiohttp's server: everything here that aiohttp keeps private is used here and nowhere else.

Owns how callers are accepted: the connection (which tells the relay when the caller reads again and when its upload
turns out malformed), the application (one entrance for every method and target, no router, no invented headers) and
the response that the relay writes itself. It decides nothing about an exchange. ``tests/test_server.py`` names every
private attribute used here, so that an aiohttp which changes one fails there.
"""

import asyncio
import contextlib
import fcntl
import logging
import select
import socket
import struct
import termios
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.http_exceptions import HttpProcessingError, InvalidURLError, LineTooLong
from aiohttp.http_parser import HttpRequestParser
from aiohttp.http_writer import HttpVersion11
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo
from aiohttp.web_urldispatcher import UrlMappingMatchInfo
from multidict import CIMultiDict

from fiedler_proxy.errors import Dialect, ExchangeError, body_too_large, render
from fiedler_proxy.exchange import RawHeaders

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

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
    """A caller's connection. ``resumed`` is called when the caller reads again; ``left_by`` is how it was lost."""

    __slots__ = ("left_by", "resumed")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.resumed: Callable[[], None] | None = None
        self.left_by: BaseException | None = None

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
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._poison_uploads()

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

    ``headers`` is for reading: the head has left.
    """

    def __init__(self, request: web.Request, status: int, reason: str, raw: RawHeaders, keep_alive: bool) -> None:
        super().__init__(status=status, reason=reason)
        self._raw = raw
        self._filled = False
        self._req = request
        self._payload_writer = request._payload_writer
        self._keep_alive = keep_alive

    @property
    def headers(self) -> "CIMultiDict[str]":
        if not self._filled:
            self._filled = True
            for name, value in self._raw:
                self._headers.add(name.decode("latin-1"), value.decode("utf-8", "surrogateescape"))
        return self._headers

    def wrote(self, size: int) -> None:
        """Count bytes on the wire, so that aiohttp knows that an answer has begun."""
        if self._payload_writer is not None:
            self._payload_writer.output_size += size

    def finished(self) -> None:
        """The body is on the wire: aiohttp must not end it once more."""
        self._eof_sent = True
        if self._payload_writer is not None:
            self._body_length = self._payload_writer.output_size
        self._payload_writer = None
        self._req = None


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return CallerConnection(self, loop=self._loop, **self._kwargs)


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
            return _Server(self._handle, request_factory=self._make_request, loop=self._loop, **options)  # type: ignore[arg-type]

        def _make_request(
            self,
            message: Any,
            payload: Any,
            protocol: Any,
            writer: Any,
            task: Any,
            _cls: type[web.Request] = CallerRequest,
        ) -> web.Request:
            return super()._make_request(message, payload, protocol, writer, task, _cls)

        async def _handle(self, request: web.Request) -> web.StreamResponse:
            request._match_info = self._match
            return await self._entrance(request)


def answer_in_our_version(request: web.BaseRequest) -> None:
    """Answer a request of a version that is not spoken here in HTTP/1.1 (RFC 9112 section 2.3)."""
    request._version = HttpVersion11


def next_request_is_lost(request: web.Request) -> bool:
    """Whether aiohttp dropped what came in the same read behind this request: it does so behind an upgrade to a
    protocol that it does not know, and the connection must not be read any further.
    """
    return bool(request._message.upgrade) and not request.protocol._upgraded


def raw_version(request: web.Request) -> tuple[int, int]:
    """The HTTP version of the request line; aiohttp's own property would remember it for the answer."""
    major, minor = request._message.version
    return major, minor


def raw_headers(request: web.Request) -> RawHeaders:
    """The request's headers as received."""
    return request._message.raw_headers


def raw_target(request: web.Request) -> str:
    """The request target as received; bytes >= 0x80 appear as non-ASCII characters."""
    return request._message.path


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


def caller_connection(request: web.Request) -> CallerConnection:
    """The connection that ``request`` came over."""
    protocol = request.protocol
    assert isinstance(protocol, CallerConnection)
    return protocol


def caller_has_left(request: web.Request) -> bool:
    """Whether the kernel knows that the caller closed its side, although its connection is not being read."""
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.fileno() < 0:
        return True
    if not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


async def drain(request: web.Request) -> None:
    """Wait until the caller has taken what was written (down to the transport's low-water mark)."""
    protocol = request.protocol
    if protocol.writing_paused:
        await protocol._drain_helper()


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


RESET_WAIT = 2.0
"""Seconds that bytes already written may take to reach a caller before its connection is reset."""


async def reset_after_delivery(transport: asyncio.Transport) -> None:
    """Deliver what was written, then reset the connection (RST).

    For a body that only the end of the connection ends (HTTP/1.0): an orderly close would look like its end.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + RESET_WAIT
    sock = transport.get_extra_info("socket")
    while not transport.is_closing() and _undelivered(transport, sock) and loop.time() < deadline:
        await asyncio.sleep(0.005)
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _undelivered(transport: asyncio.Transport, sock: Any) -> bool:
    if transport.get_write_buffer_size():
        return True
    try:
        queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, AttributeError):
        return False
    return bool(struct.unpack("i", queued)[0])

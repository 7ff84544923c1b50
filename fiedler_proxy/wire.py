"""One upstream connection: an asyncio protocol around aiohttp's C response parser.

Owns the state of a connection and the framing of what comes back; it pushes what it parses to a Sink in the same loop
turn, wakes no task and creates no timer. The law: one exchange on one connection at a time, a response is over
only when its framing says so, and a connection that heard one byte nobody asked for is never used again.

aiohttp's parser reads heads only. The framing of bodies is ``framing.py``: it loses no byte that arrived before a
fault, and cannot take a reset for an end.
"""

import asyncio
import select
import socket
import ssl
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import attrs
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import HttpResponseParser

from fiedler_proxy.framing import (
    ChunkedDecoder,
    Decoder,
    FramingError,
    LengthDecoder,
    NoBody,
    UntilClose,
)
from fiedler_proxy.headers import CODING, LENGTH, RawHeaders, Shape, connection_options, shape_of

HEAD_CAP = 256 * 1024
"""Longest response head, in bytes."""

FIELD_CAP = 128 * 1024
"""Longest single response header, in bytes."""

HEADERS_CAP = 1024
"""Most headers a response may have."""

WRITE_BUFFER = 256 * 1024
"""Bytes of a request waiting in our memory for a slow upstream before the caller's upload is paused."""

LEAVE_WAIT = 5.0
"""Seconds in which an upstream may take what the caller of a tunnel sent last."""


class WireError(Exception):
    """The connection or what came over it broke. ``code`` as in the caller's error; ``head`` whether one had come."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@attrs.define
class ResponseHead:
    """A response head as received: ``headers`` are raw, ``reason`` is with surrogate escapes; ``decoder`` knows where
    the body ends."""

    version: tuple[int, int]
    status: int
    reason: str
    headers: RawHeaders
    shape: Shape
    decoder: Decoder
    reusable: bool

    @property
    def interim(self) -> bool:
        """1xx other than 101 (RFC 9110 section 15.2)."""
        return self.status < 200 and self.status != 101


class Sink(Protocol):
    """Who hears of an exchange on a connection; every call comes from within the loop turn of the bytes."""

    def on_interim(self, head: ResponseHead) -> None:
        """A 1xx answer; the final one is still to come."""

    def on_head(self, head: ResponseHead) -> None:
        """The final head, or a 101."""

    def on_body(self, data: bytes) -> None:
        """Body bytes without transfer framing, never empty; after a 101 raw bytes."""

    def on_end(self) -> None:
        """The body is whole. The connection is free, or closed when it cannot be reused."""

    def on_broken(self, error: WireError) -> None:
        """The exchange cannot be completed; everything that arrived was delivered before."""

    def on_turn(self) -> None:
        """All events of this loop turn were told: the time to write them on together."""

    def on_writable(self) -> None:
        """The connection takes request bytes again."""


class Owner(Protocol):
    """Who lends connections out: the pool."""

    def freed(self, connection: "UpstreamConnection") -> None:
        """The connection is idle and may be lent again."""

    def gone(self, connection: "UpstreamConnection") -> None:
        """The connection no longer exists."""


class State(Enum):
    """What a connection is doing."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"
    TUNNEL = "tunnel"
    CLOSED = "closed"


class UpstreamConnection(asyncio.Protocol):
    """One connection to an upstream; made by the pool, lent to one exchange at a time."""

    __slots__ = ("_buffer", "_decoder", "_head", "_heard", "_method", "_owner", "_parser", "_paused_reading", "_sink",
                 "_upgrade", "eof", "exchanges", "idle_since", "last_byte", "local", "loop", "lost", "remote",
                 "request_done", "state", "transport", "writing_paused")  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner) -> None:
        self.loop = loop
        self._owner = owner
        self._parser: HttpResponseParser | None = None
        self._sink: Sink | None = None
        self._decoder: Decoder | None = None
        self._head: ResponseHead | None = None
        self._buffer = b""
        self._method = ""
        self._upgrade = False
        self._paused_reading = False
        self._heard: Callable[[], bool] | None = None
        self.transport: asyncio.Transport | None = None
        self.state = State.IDLE
        self.exchanges = 0
        self.idle_since = 0.0
        self.last_byte = 0.0
        self.request_done = True
        self.writing_paused = False
        self.eof = False
        self.lost: Exception | None = None
        self.local: object = None
        self.remote: object = None

    # The exchange's side.

    def begin(self, sink: Sink, method: str, upgrade: bool) -> None:
        """Lend the connection to one exchange; ``method`` decides whether the answer has a body."""
        self._sink = sink
        self._method = method
        self._upgrade = upgrade
        self.exchanges += 1
        self.state = State.HEAD
        self.request_done = False
        self.last_byte = self.loop.time()

    def write(self, data: bytes) -> None:
        """Send bytes as they are. Nothing happens once the connection is closed: the sink has heard of it."""
        if self.transport is not None and self.state is not State.CLOSED:
            self.transport.write(data)

    def finish_request(self) -> None:
        """The request was sent whole; only now may the connection be reused."""
        self.request_done = True
        self.last_byte = self.loop.time()

    def pause(self) -> None:
        """Stop reading: the caller is slower than the upstream."""
        if not self._paused_reading and self.transport is not None and self.state is not State.CLOSED:
            self._paused_reading = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read again; the idle clock begins anew."""
        self.last_byte = self.loop.time()
        if self._paused_reading and self.transport is not None and self.state is not State.CLOSED:
            self._paused_reading = False
            self.transport.resume_reading()

    def hand_over(self, sink: Sink) -> None:
        """From now on ``sink`` hears of the exchange; the one before it still hears the end of this turn."""
        self._sink = sink

    @property
    def reading_paused(self) -> bool:
        """Whether the caller holds the upstream back."""
        return self._paused_reading

    def abort(self) -> None:
        """Close at once and tell the sink nothing more: the exchange is over for other reasons."""
        self._sink = None
        self._close()

    def close(self) -> None:
        """Close after what was written has left (the orderly end of an idle connection)."""
        self._sink = None
        self.state = State.CLOSED
        if self.transport is not None:
            self.transport.close()

    def leave(self) -> None:
        """The orderly end of a tunnel: what was written leaves first, if the upstream takes it in time."""
        self.close()
        if self.transport is not None:
            self.loop.call_later(LEAVE_WAIT, self.transport.abort)

    def is_clean(self) -> bool:
        """Whether an idle connection can carry another exchange.

        Asks the kernel too: a close or stray bytes that the loop has not seen yet make it unusable.
        """
        if self.state is not State.IDLE or self.transport is None or self.transport.is_closing():
            return False
        return self._heard is not None and not self._heard()

    def has_news(self) -> bool:
        """Whether something arrived that the loop has not read yet: an early answer, perhaps with a reset behind it."""
        return self.state is not State.CLOSED and self._heard is not None and self._heard()

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self.local = transport.get_extra_info("sockname")
            self.remote = transport.get_extra_info("peername")
        self._heard = _readable(sock) if sock is not None else None
        transport.set_write_buffer_limits(high=WRITE_BUFFER)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            # Bytes nobody asked for: whose they are can never be known again.
            self._close()
            return
        self.last_byte = self.loop.time()
        try:
            if self.state is State.BODY:
                self._body(sink, data)
            elif self.state is State.TUNNEL:
                sink.on_body(data)
            else:
                self._heads(sink, data)
        except (FramingError, WireError, HttpProcessingError) as error:
            self._fail(error)
        sink.on_turn()

    def eof_received(self) -> bool | None:
        tls = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        self.eof = tls is None or _said_goodbye(tls)
        return None

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        if self._sink is not None:
            self._sink.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc
        self._owner.gone(self)
        sink, decoder = self._sink, self._decoder
        was, self.state = self.state, State.CLOSED
        if sink is None:
            return
        ended = was is State.BODY and decoder is not None and self.eof and decoder.eof()
        if exc is None and (ended or was is State.TUNNEL):
            self._sink = None
            sink.on_end()
        else:
            self._fail(WireError(*_how_lost(was, exc)))
        sink.on_turn()

    # Parsing.

    def _heads(self, sink: Sink, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        self._buffer = b""
        while data:
            end = _head_end(data)
            if end < 0:
                if len(data) > HEAD_CAP:
                    raise WireError("upstream_garbage", f"the response head is longer than {HEAD_CAP} bytes")
                if not b"HTTP/".startswith(data[:5]):
                    raise WireError("upstream_garbage", "the answer is not HTTP/1.1")
                self._buffer = data
                return
            head, data = self._parse_head(data[:end]), data[end:]
            if head.status < 200 and head.interim:
                sink.on_interim(head)
                continue
            self._head, self._decoder = head, head.decoder
            self.state = State.TUNNEL if head.status == 101 else State.BODY
            sink.on_head(head)
            if self._sink is None:
                return  # the sink gave the exchange up
            sink = self._sink
            if self.state is State.BODY:
                self._body(sink, data)
            elif self.state is State.TUNNEL and data:
                sink.on_body(data)
            return

    def _body(self, sink: Sink, data: bytes) -> None:
        decoder = self._decoder
        assert decoder is not None
        try:
            payload = decoder.feed(data) if data else b""
        except FramingError as error:
            if error.payload:
                sink.on_body(error.payload)
            raise WireError("upstream_broke", str(error)) from None
        if payload:
            sink.on_body(payload)
        if decoder.done and self._sink is not None:
            self._end(self._sink, decoder)

    def _end(self, sink: Sink, decoder: Decoder) -> None:
        self._sink = None
        self._decoder = None
        head, self._head = self._head, None
        assert head is not None
        if decoder.rest or not head.reusable or not self.request_done or self._unsent():
            self._close()
        else:
            self.state = State.IDLE
            self.idle_since = self.loop.time()
            if self._paused_reading:
                self.resume()
            self._owner.freed(self)
        sink.on_end()

    def _unsent(self) -> bool:
        """An answer came before its request was out: whether the upstream reads on is unknown."""
        return self.transport is not None and self.transport.get_write_buffer_size() > 0

    def _fail(self, error: Exception) -> None:
        sink, self._sink = self._sink, None
        self._close()
        if sink is not None:
            code = "upstream_garbage" if isinstance(error, HttpProcessingError) else "upstream_broke"
            failure = error if isinstance(error, WireError) else WireError(code, _short(error))
            sink.on_broken(failure)

    def _close(self) -> None:
        self.state = State.CLOSED
        if self.transport is not None:
            self.transport.abort()

    def _parse_head(self, raw: bytes) -> ResponseHead:
        parser = self._parser
        if parser is None:
            parser = HttpResponseParser(
                self,  # type: ignore[arg-type]
                self.loop,
                2**16,
                max_line_size=FIELD_CAP,
                max_field_size=FIELD_CAP,
                max_headers=HEADERS_CAP,
                response_with_body=False,
                auto_decompress=False,
            )
        messages, _upgraded, _tail = parser.feed_data(raw)
        if len(messages) != 1:
            raise WireError("upstream_garbage", "the answer is not HTTP/1.1")
        message = messages[0][0]
        # A parser that saw the last message of its connection, or an upgrade, takes no other.
        self._parser = None if message.should_close or message.upgrade else parser
        headers: RawHeaders = message.raw_headers
        if b" :" in raw and any(name.endswith(b" ") for name, _ in headers):
            # llhttp lets this pass for the framing headers alone; the next reader would see another header (RFC 9112 5.1).
            raise WireError("upstream_garbage", "a header name of the answer ends in a space")
        status, version = message.code, message.version
        if version != (1, 1) or status < 200:
            self._check(status, version)
        shape = shape_of(headers)
        decoder, certain = self._framing(version, status, headers, shape)
        reusable = certain and (not message.should_close or self._keeps_alive(version, headers))
        return ResponseHead(version, status, message.reason, headers, shape, decoder, reusable)

    def _keeps_alive(self, version: tuple[int, int], headers: RawHeaders) -> bool:
        """The parser does not know of HEAD: it takes an answer without length for one that ends with the connection."""
        return self._method == "HEAD" and version >= (1, 1) and b"close" not in connection_options(headers)

    def _check(self, status: int, version: tuple[int, int]) -> None:
        if tuple(version) not in ((1, 0), (1, 1)):
            raise WireError("upstream_garbage", "the answer is not HTTP/1.0 or HTTP/1.1")
        if status == 101 and not self._upgrade:
            raise WireError("upstream_unasked_upgrade", "the upstream switched protocols although nobody asked")
        if status < 100:
            raise WireError("upstream_garbage", f"{status} is no HTTP status")

    def _framing(
        self, version: tuple[int, int], status: int, headers: RawHeaders, shape: Shape
    ) -> tuple[Decoder, bool]:
        """Where the body ends (RFC 9112 section 6.3), and whether the upstream can be trusted to see it alike."""
        if status < 200:
            return NoBody(), True
        length, coding = _announced(headers, shape)
        if coding is None and length > 0 and status != 204 and status != 304 and self._method != "HEAD":
            return LengthDecoder(length), True
        if status == 204:
            return NoBody(), length <= 0 and coding is None
        if self._method == "HEAD" or status == 304:
            return NoBody(), True
        if coding is not None:
            if length >= 0 or coding not in (b"chunked", b"identity"):
                raise WireError("upstream_garbage", "the answer's framing is contradictory or of an unknown coding")
            return ChunkedDecoder() if coding == b"chunked" else UntilClose(), version >= (1, 1)
        return UntilClose() if length < 0 else LengthDecoder(length) if length else NoBody(), True


def _announced(headers: RawHeaders, shape: Shape) -> tuple[int, bytes | None]:
    """The Content-Length (-1: none) and the Transfer-Encoding of ``headers``, lower case."""
    length, coding = -1, None
    for place, kind in reversed(shape.special):
        if kind == LENGTH:
            length = _length(headers[place][1], length)
        elif kind == CODING:
            value = headers[place][1].strip(b" \t").lower()
            coding = value if coding is None else coding + b"," + value
    return length, coding


def _length(value: bytes, before: int) -> int:
    if not value.isdigit() or len(value) > 18 or before not in (-1, int(value)):
        raise WireError("upstream_garbage", "the answer's Content-Length is malformed or contradictory")
    return int(value)


def _head_end(data: bytes) -> int:
    """Behind the first empty line; RFC 9112 section 2.2 allows a line to end in LF alone."""
    end = data.find(b"\n\r\n")
    bare = data.find(b"\n\n", 0, end + 2 if end >= 0 else len(data))
    return bare + 2 if bare >= 0 else end + 3 if end >= 0 else -1


def _said_goodbye(tls: ssl.SSLObject) -> bool:
    """Whether the upstream ended its stream with close_notify: without it the end may be an attacker's (RFC 9112 9.8)."""
    try:
        return not tls.read(1)
    except ssl.SSLZeroReturnError:
        return True
    except ssl.SSLError:
        return False


def _readable(sock: socket.socket) -> Callable[[], bool]:
    """A function that asks the kernel, without waiting, whether bytes or the end have arrived on ``sock``."""
    if not hasattr(select, "poll"):
        return lambda: sock.fileno() < 0 or bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN | getattr(select, "POLLRDHUP", 0))
    ask = poll.poll
    return lambda: bool(ask(0))


def _short(error: Exception) -> str:
    """What a parser objects to, without the upstream's bytes: it quotes them, or puts them on further lines."""
    if isinstance(error, LineTooLong):
        return "a line of the answer's head is too long"
    text = error.message if isinstance(error, HttpProcessingError) else str(error)
    first = text.partition("\n")[0].rstrip(": ")
    return first if first and "'" not in first else type(error).__name__


def _how_lost(was: State, exc: Exception | None) -> tuple[str, str]:
    how = "reset the connection" if exc is not None else "closed the connection"
    if was is State.HEAD:
        return "upstream_closed" if exc is None else "upstream_reset", f"the upstream {how} before answering"
    return "upstream_broke", f"the upstream {how} in the middle of its answer"

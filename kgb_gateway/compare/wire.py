"""A raw HTTP/1.1 client: one request on one fresh connection, with the time at which every byte arrived.

Owns sockets and the clock. It reuses nothing, retries nothing, follows nothing, decodes nothing and invents nothing
but Host and Content-Length.
"""

import asyncio
import ssl
from collections.abc import Callable

import attrs

from fiedler_proxy.upstream import Upstream
from kgb_gateway.compare.parse import COMPLETE, Arrival, RawHeaders, ResponseParser
from kgb_gateway.compare.requests import Request


class WireError(Exception):
    """The server could not be reached, or gave no answer; the message says which and why."""


@attrs.frozen
class Answer:
    """One response as it arrived. Times are seconds: ``connected`` for the connection alone, the others since the
    request was sent. ``end`` is ``complete`` or says how the response broke off.
    """

    status: int
    reason: str
    version: str
    headers: RawHeaders
    body: bytes
    arrivals: tuple[Arrival, ...]
    connected: float
    first_byte: float
    ended: float
    framing: str
    chunks: int
    end: str

    @property
    def complete(self) -> bool:
        """Whether the response ended as its framing says."""
        return self.end == COMPLETE

    def header(self, name: bytes) -> bytes | None:
        """The first value of the header ``name`` (lower case)."""
        return next((value for key, value in self.headers if key.lower() == name), None)


class _Connection(asyncio.Protocol):
    """Hands arriving bytes to the parser, each with its time."""

    def __init__(self, parser: ResponseParser) -> None:
        self.parser = parser
        self.clock = asyncio.get_running_loop().time
        self.sent_at = self.clock()
        self.done = asyncio.Event()
        self.lost = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.parser.feed(data, self.clock() - self.sent_at)
        if self.parser.end:
            self.done.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.parser.closed(type(exc).__name__ if exc else "")
        self.done.set()
        self.lost.set()


async def ask(
    upstream: Upstream,
    request: Request,
    *,
    timeout: float = 120.0,
    tls: ssl.SSLContext | None = None,
    on_arrival: Callable[[Arrival], None] | None = None,
) -> Answer:
    """Send ``request`` to ``upstream`` and return the answer, complete or not.

    ``timeout``: seconds for connecting, and again for the whole answer. ``on_arrival`` hears of body bytes at once.
    WireError when no connection comes about.
    """
    clock = asyncio.get_running_loop().time
    begun = clock()
    parser = ResponseParser(request.method, on_arrival)
    connection, transport = await _connect(upstream, parser, timeout, tls)
    connected = clock() - begun
    try:
        connection.sent_at = clock()
        transport.write(encode(upstream, request))
        async with asyncio.timeout(timeout):
            await connection.done.wait()
    except TimeoutError:
        parser.closed(f"nothing complete within {timeout:g} s")
    finally:
        transport.abort()
        await connection.lost.wait()
    return Answer(
        status=parser.status,
        reason=parser.reason,
        version=parser.version,
        headers=parser.headers,
        body=b"".join(arrival.data for arrival in parser.arrivals),
        arrivals=tuple(parser.arrivals),
        connected=connected,
        first_byte=parser.first_byte or 0.0,
        ended=clock() - connection.sent_at,
        framing=parser.framing,
        chunks=parser.chunks,
        end=f"{parser.surplus} bytes after the end" if parser.surplus else parser.end,
    )


async def _connect(
    upstream: Upstream, parser: ResponseParser, timeout: float, tls: ssl.SSLContext | None
) -> tuple[_Connection, asyncio.Transport]:
    loop = asyncio.get_running_loop()
    context = (tls or ssl.create_default_context()) if upstream.tls else None
    try:
        async with asyncio.timeout(timeout):
            if upstream.unix:
                made = await loop.create_unix_connection(lambda: _Connection(parser), upstream.unix)
            else:
                made = await loop.create_connection(
                    lambda: _Connection(parser), upstream.host, upstream.port, ssl=context, happy_eyeballs_delay=0.25
                )
    except TimeoutError:
        raise WireError(f"cannot connect to {upstream.where}: no connection within {timeout:g} s") from None
    except OSError as error:
        raise WireError(f"cannot connect to {upstream.where}: {error}") from None
    transport, connection = made
    return connection, transport


def encode(upstream: Upstream, request: Request) -> bytes:
    """The request on the wire."""
    lines = [f"{request.method} {upstream.target(request.target)} HTTP/1.1", f"Host: {upstream.authority}"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        lines.append(f"Content-Length: {len(request.body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + request.body

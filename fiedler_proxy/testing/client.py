"""A caller on a raw socket, for tests: writes exactly what it is told and hides nothing of what comes back."""

import asyncio
import socket
import ssl as tls
import struct
from collections import deque
from types import TracebackType
from typing import Self

import attrs

from fiedler_proxy.testing.messages import (
    BodyReader,
    BrokenResponse,
    Headers,
    HeaderText,
    Message,
    as_bytes,
    head_bytes,
    names_of,
    parse_status_line,
    read_raw_head,
    response_framing,
    split_head,
)
from fiedler_proxy.testing.peer import Peer
from fiedler_proxy.testing.rendezvous import GUARD

IP_LOCAL_PORT_RANGE = 51
"""Linux's socket option (ip(7)); Python does not name it."""


@attrs.define(eq=False)
class ReceivedResponse(Message):
    """A response as it stood on the wire; ``arrived`` holds the payload read so far."""

    status: int = 0
    reason: bytes = b""

    @property
    def body(self) -> bytes:
        """The payload that was read."""
        return bytes(self.arrived)


class RawClient:
    """A caller on one raw connection; an async context manager that closes it at the end.

    ``host`` and ``port``, or ``unix`` with the path of a socket. ``ssl``: speak TLS, to ``server_name``.
    ``receive_buffer``: SO_RCVBUF in bytes, small to feel backpressure soon. ``source_port``:
    leave from this port, although another connection to elsewhere may hold it (Linux 6.3; OSError where the system
    cannot). ``guard``: seconds without any byte after
    which a read is given up with TimeoutError; it keeps tests from hanging and measures nothing.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        unix: str | None = None,
        ssl: tls.SSLContext | None = None,
        server_name: str | None = None,
        receive_buffer: int | None = None,
        source_port: int | None = None,
        guard: float | None = GUARD,
    ) -> None:
        self.host = host
        self.port = port
        self._unix = unix
        self._ssl = ssl
        self._server_name = server_name or (host if ssl else None)
        self._receive_buffer = receive_buffer
        self._source_port = source_port
        self._methods: deque[str] = deque()
        self._body: BodyReader | None = None
        self.peer = Peer(guard)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        family = socket.AF_UNIX if self._unix else socket.AF_INET6 if ":" in self.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            if self._receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
            if self._source_port is not None:
                only = self._source_port << 16 | self._source_port
                sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("I", only))
            await loop.sock_connect(sock, self._unix or (self.host, self.port))
            connect = loop.create_unix_connection if self._unix else loop.create_connection
            await connect(lambda: self.peer, sock=sock, ssl=self._ssl, server_hostname=self._server_name)
        except BaseException:
            sock.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.peer.dispose()

    @property
    def unread(self) -> bytes:
        """Bytes that arrived and were not read yet: empty where a test wants to see that nothing follows."""
        return bytes(self.peer.unread)

    @property
    def local_port(self) -> int:
        """The port this client speaks from."""
        return int(self.peer.transport.get_extra_info("sockname")[1])

    # Writing.

    async def send(self, data: bytes) -> None:
        """Write raw bytes; PeerLeft where the other side has gone."""
        await self.peer.send(data)

    async def request(
        self, method: str, target: HeaderText, headers: Headers = (), body: bytes = b"", *, exact: bool = False
    ) -> None:
        """Write one request. Host comes first, and Content-Length last where there is a body, unless ``headers`` hold
        their own or ``exact`` forbids it; everything else stands as given.
        """
        given = list(headers)
        names = names_of(given)
        if not exact and b"host" not in names:
            given.insert(0, (b"Host", f"{self.host}:{self.port}".encode() if not self._unix else b"localhost"))
        if not exact and body and names.isdisjoint((b"content-length", b"transfer-encoding")):
            given.append((b"Content-Length", b"%d" % len(body)))
        self._methods.append(method)
        line = b"%s %s HTTP/1.1" % (method.encode(), as_bytes(target))
        await self.peer.send(head_bytes(line, given) + body)

    async def get(self, target: HeaderText, headers: Headers = (), *, exact: bool = False) -> None:
        """Write a GET; see ``request``."""
        await self.request("GET", target, headers, exact=exact)

    async def post(self, target: HeaderText, headers: Headers = (), body: bytes = b"", *, exact: bool = False) -> None:
        """Write a POST; see ``request``. An empty body is announced by Content-Length: 0."""
        given = list(headers)
        if not exact and not body and names_of(given).isdisjoint((b"content-length", b"transfer-encoding")):
            given.append((b"Content-Length", b"0"))
        await self.request("POST", target, given, body, exact=exact)

    # Reading.

    async def read_head(self, method: str | None = None) -> ReceivedResponse:
        """The next response head, interim ones (1xx) too; ``method`` where the request was sent raw and was no GET.

        BrokenResponse where the connection ended first (``received`` holds what came), MalformedMessage for garbage.
        """
        raw = await read_raw_head(self.peer, BrokenResponse)
        if not raw:
            raise BrokenResponse("response", b"", self.peer.reset)
        line, headers = split_head(raw)
        status, reason, version = parse_status_line(raw, line)
        asked = method or (self._methods[0] if self._methods else "GET")
        if self._methods and not 100 <= status < 200:
            self._methods.popleft()
        response = ReceivedResponse(raw, version, headers, status=status, reason=reason)
        self._body = BodyReader(self.peer, response_framing(response, status, asked), response, BrokenResponse)
        return response

    async def read_some(self, *, keep: bool = True) -> bytes:
        """The payload bytes that are there, at least one; empty at the end of the body. In a tunnel: raw bytes.

        ``keep`` False leaves them out of the response's ``arrived``, for bodies too large to hold.
        """
        return await self._reader.some(keep)

    async def read_chunk(self) -> bytes:
        """One chunk of a chunked body as the server framed it; empty for the last. MalformedMessage if not chunked."""
        return await self._reader.chunk()

    async def read_until(self, marker: bytes) -> bytes:
        """Payload up to and including ``marker``, and whatever came in the same read; BrokenResponse without it."""
        data = b""
        while marker not in data:
            piece = await self.read_some()
            if not piece:
                raise BrokenResponse(f"{marker!r} never came", data, self.peer.reset)
            data += piece
        return data

    async def read_body(self) -> bytes:
        """The rest of the body (all of it, if nothing was read before), by its framing.

        BrokenResponse where the connection ends before the framing says so, and for a reset in a body that ends with
        the connection; ``received`` then holds the whole payload so far and ``reset`` tells RST from FIN.
        """
        pieces = []
        while piece := await self.read_some():
            pieces.append(piece)
        return b"".join(pieces)

    async def read_response(self, method: str | None = None) -> ReceivedResponse:
        """The next final response with its whole body; interim responses before it are read and dropped."""
        response = await self.read_head(method)
        while 100 <= response.status < 200 and response.status != 101:
            response = await self.read_head(method)
        await self.read_body()
        return response

    async def read_until_close(self) -> tuple[bytes, bool]:
        """Every raw byte until the other side is gone, framing included; and whether it was a reset."""
        reset = await self.peer.gone()
        return self.peer.take(), reset

    # Leaving and lingering.

    def stop_reading(self) -> None:
        """Stop reading the socket, so that backpressure is real: the kernel's buffers fill, then the sender's."""
        self.peer.stop_reading()

    def resume_reading(self) -> None:
        """Take ``stop_reading`` back."""
        self.peer.resume_reading()

    def close(self) -> None:
        """FIN, as a program that closes its socket: what comes afterwards is answered with RST by the kernel."""
        self.peer.close()

    def half_close(self) -> None:
        """FIN for this direction only; reading goes on."""
        self.peer.half_close()

    def abort(self) -> None:
        """RST."""
        self.peer.abort()

    async def closed(self) -> bool:
        """Wait until the server is gone: True for RST, False for FIN. What it sent stays readable."""
        return await self.peer.gone()

    @property
    def _reader(self) -> BodyReader:
        if self._body is None:
            raise RuntimeError("read_head() comes before reading a body")
        return self._body

"""One connection that a scripted upstream accepted, and the requests that came over it.

Owns what a script may do to the gateway. It does nothing by itself: no answer, no close, no repair, until the script
says so.
"""

from collections.abc import Callable
from typing import Self

import attrs

from fiedler_proxy.testing.messages import (
    REASONS,
    BodyReader,
    BrokenRequest,
    Headers,
    Message,
    as_bytes,
    chunk_bytes,
    head_bytes,
    names_of,
    parse_request_line,
    read_raw_head,
    request_framing,
    split_head,
)
from fiedler_proxy.testing.peer import Peer, PeerLeft

FOR_EVER = 0.0


@attrs.define(eq=False)
class ReceivedRequest(Message):
    """A request as it stood on the wire. The head is there at once, the body when it is asked for.

    ``arrived`` holds the payload bytes read so far; ``complete`` tells whether the whole body was read.
    """

    method: str = ""
    target: bytes = b""
    _reader: BodyReader | None = attrs.field(default=None, repr=False)

    async def read_some(self, *, keep: bool = True) -> bytes:
        """The payload bytes that are there, at least one; empty at the end of the body.

        BrokenRequest where the connection ends before the framing says so. ``keep`` False leaves the bytes out of
        ``arrived``, for bodies too large to hold.
        """
        return await self._body.some(keep)

    async def read_chunk(self) -> bytes:
        """One chunk of a chunked body as the gateway framed it; empty for the last."""
        return await self._body.chunk()

    async def body(self) -> bytes:
        """The whole payload, without transfer framing, with what was read (and kept) before."""
        while await self.read_some():
            pass
        return bytes(self.arrived)

    @property
    def complete(self) -> bool:
        """Whether the whole request has been read."""
        return self._body.done

    @property
    def _body(self) -> BodyReader:
        if self._reader is None:
            raise RuntimeError("this request came over no connection")
        return self._reader

    @classmethod
    def from_head(cls, raw: bytes, peer: Peer) -> Self:
        """The request whose head is ``raw`` and whose body is still to be read from ``peer``."""
        line, headers = split_head(raw)
        method, target, version = parse_request_line(raw, line)
        request = cls(raw, version, headers, method=method, target=target)
        request._reader = BodyReader(peer, request_framing(request), request, BrokenRequest)
        return request


class UpstreamConnection:
    """What a script holds: one accepted connection.

    ``number`` counts the connections of the server from 0; ``requests`` are those whose heads were read.
    """

    def __init__(self, peer: Peer, number: int, record: Callable[[ReceivedRequest], None]) -> None:
        self.peer = peer
        self.number = number
        self.requests: list[ReceivedRequest] = []
        self._record = record

    @property
    def gone(self) -> bool:
        """Whether the gateway has left this connection (only what the loop has noticed: see ``closed``)."""
        return self.peer.ended and not self.peer.closed_here

    @property
    def unread(self) -> bytes:
        """Bytes that arrived and that no request has claimed yet."""
        return bytes(self.peer.unread)

    @property
    def received_size(self) -> int:
        """Bytes received on this connection, heads and framing included."""
        return self.peer.received_size

    # Reading.

    async def request(self) -> ReceivedRequest:
        """Read the next request's head; the rest of the body before it, if any is left, is read and dropped.

        Waits as long as it takes. PeerLeft where the gateway closed the idle connection, BrokenRequest where it left
        within a head or body, MalformedMessage for what is no HTTP/1.1.
        """
        while self.requests and await self.requests[-1].read_some(keep=False):
            pass
        raw = await read_raw_head(self.peer, BrokenRequest, FOR_EVER)
        if not raw:
            raise PeerLeft(self.peer.reset)
        request = ReceivedRequest.from_head(raw, self.peer)
        self.requests.append(request)
        self._record(request)
        return request

    async def read_raw(self) -> bytes:
        """Raw bytes that are there, at least one, whatever they mean (tunnels); empty once the gateway has left."""
        if not self.peer.unread:
            await self.peer.fill()
        return self.peer.take()

    async def pause_reading(self) -> None:
        """Read no more, so that backpressure reaches the gateway. Hides its leaving too, until reading resumes."""
        self.peer.stop_reading()

    async def resume_reading(self) -> None:
        """Take ``pause_reading`` back."""
        self.peer.resume_reading()

    # Writing.

    async def send(self, data: bytes) -> None:
        """Write raw bytes and wait until the kernel has taken them; PeerLeft where the gateway has gone."""
        await self.peer.send(data)

    async def send_head(self, status: int, headers: Headers = (), *, reason: str | None = None) -> None:
        """Write a status line and ``headers`` exactly as given."""
        text = REASONS.get(status, b"Scripted") if reason is None else as_bytes(reason)
        await self.send(head_bytes(b"HTTP/1.1 %d %s" % (status, text), headers))

    async def send_response(
        self, status: int = 200, headers: Headers = (), body: bytes = b"", *, chunked: bool = False
    ) -> None:
        """Write a whole response in one piece: ``chunked`` as one chunk, else with Content-Length where ``headers``
        announce no framing. The answer to HEAD, 1xx, 204 and 304 go without body, and the last three without length.
        """
        given = list(headers)
        bodiless = status < 200 or status in (204, 304)
        if chunked:
            given.append((b"Transfer-Encoding", b"chunked"))
        elif not bodiless and names_of(given).isdisjoint((b"content-length", b"transfer-encoding")):
            given.append((b"Content-Length", b"%d" % len(body)))
        if bodiless or (self.requests and self.requests[-1].method == "HEAD"):
            payload = b""
        elif chunked:
            payload = (chunk_bytes(body) if body else b"") + b"0\r\n\r\n"
        else:
            payload = body
        await self.send(head_bytes(b"HTTP/1.1 %d %s" % (status, REASONS.get(status, b"Scripted")), given) + payload)

    async def chunk(self, data: bytes) -> None:
        """Write one chunk of a chunked body."""
        await self.send(chunk_bytes(data))

    async def end_chunks(self, trailers: Headers = ()) -> None:
        """End a chunked body."""
        await self.send(b"0\r\n" + head_bytes(b"", trailers)[2:])

    # Ending.

    async def stall(self) -> None:
        """Do nothing until the gateway leaves or the server stops."""
        await self.peer.gone(FOR_EVER)

    async def closed(self, guard: float | None = None) -> bool:
        """Wait until the gateway has left this connection: True for RST, False for FIN. Shows cancellation.

        TimeoutError after ``guard`` seconds. Bytes that still arrive stay in ``unread``.
        """
        return await self.peer.gone(guard)

    def close(self) -> None:
        """FIN after what was written has left, as a server that closes its socket."""
        self.peer.close()

    def half_close(self) -> None:
        """FIN for this direction only; the gateway's bytes are still read."""
        self.peer.half_close()

    def abort(self) -> None:
        """RST at once: what was written and has not left is lost."""
        self.peer.abort()

"""HTTP/1.1 messages as they stood on the wire, for tests.

Owns a parser of its own, on purpose not the gateway's: it keeps every byte, and it is strict, so that a test fails
where the gateway writes what RFC 9112 forbids. It must not repair anything.
"""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import TypeVar

import attrs

from fiedler_proxy.testing.peer import Peer

HEAD_CAP = 4 * 1024 * 1024
"""Longest head or chunk-size line a test may receive, in bytes."""

HeaderText = bytes | str
Headers = Iterable[tuple[HeaderText, HeaderText]]

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^ ]+) HTTP/(\d)\.(\d)")
_STATUS_LINE = re.compile(rb"HTTP/(\d)\.(\d) (\d{3})(?: ([^\r\n]*))?")
_FIELD_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*", re.DOTALL)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)[ \t]*(?:;.*)?", re.DOTALL)

REASONS: Mapping[int, bytes] = {status.value: status.phrase.encode() for status in HTTPStatus}


class MalformedMessage(AssertionError):
    """The other side wrote what HTTP/1.1 does not allow."""


class BrokenMessage(Exception):
    """The connection ended before the framing said so.

    ``received``: the payload bytes that arrived; ``reset``: True for RST, False for FIN.
    """

    def __init__(self, what: str, received: bytes, reset: bool) -> None:
        self.received = received
        self.reset = reset
        how = "reset" if reset else "closed"
        super().__init__(f"{what}: connection {how} after {len(received)} bytes: ...{received[-80:]!r}")


class BrokenRequest(BrokenMessage):
    """A request that ended before its framing said so."""


class BrokenResponse(BrokenMessage):
    """A response that ended before its framing said so."""


def as_bytes(text: HeaderText) -> bytes:
    """``text`` as it goes on the wire: str is latin-1."""
    return text if isinstance(text, bytes) else text.encode("latin-1")


def head_bytes(first_line: bytes, headers: Headers) -> bytes:
    """A head exactly as asked: nothing added, nothing checked."""
    lines = [first_line, *(as_bytes(name) + b": " + as_bytes(value) for name, value in headers)]
    return b"\r\n".join([*lines, b"", b""])


def chunk_bytes(data: bytes, extension: bytes = b"") -> bytes:
    """``data`` as one chunk; empty data would be the last chunk and is refused."""
    if not data:
        raise ValueError("an empty chunk ends the body: use the call that ends it")
    return b"%x%s\r\n%s\r\n" % (len(data), extension, data)


def names_of(headers: Headers) -> set[bytes]:
    """The names in ``headers``, in lower case."""
    return {as_bytes(name).lower() for name, _ in headers}


def split_head(raw: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The first line and the header fields of ``raw`` (it ends in an empty line); MalformedMessage where it is bad."""
    first, *lines = raw[:-4].split(b"\r\n")
    headers = []
    for line in lines:
        match = _FIELD_LINE.fullmatch(line)
        if match is None or any(bad in line for bad in (b"\r", b"\n", b"\0")):
            raise MalformedMessage(f"not a header line: {line!r} in {raw!r}")
        headers.append((match[1], match[2]))
    return first, headers


@attrs.define(eq=False)
class Message:
    """What requests and responses share.

    ``raw_head``: the exact bytes up to and including the empty line. ``headers``: names and values as written, in
    order, duplicates kept. ``arrived``: payload bytes of the body read so far. ``trailers``: after a chunked body.
    """

    raw_head: bytes
    version: tuple[int, int]
    headers: list[tuple[bytes, bytes]]
    arrived: bytearray = attrs.field(factory=bytearray, init=False, repr=lambda body: f"<{len(body)} bytes>")
    trailers: list[tuple[bytes, bytes]] = attrs.field(factory=list, init=False)

    def header(self, name: HeaderText) -> bytes | None:
        """The only value of header ``name``, None where it is missing; AssertionError where it came twice."""
        values = self.all(name)
        assert len(values) < 2, f"header {name!r} came {len(values)} times: {values!r}"
        return values[0] if values else None

    def all(self, name: HeaderText) -> list[bytes]:
        """Every value of header ``name``, in order; case does not matter."""
        wanted = as_bytes(name).lower()
        return [value for key, value in self.headers if key.lower() == wanted]

    def without(self, *names: HeaderText) -> list[tuple[bytes, bytes]]:
        """The headers without those called ``names``: what a test wants to see relayed."""
        unwanted = {as_bytes(name).lower() for name in names}
        return [pair for pair in self.headers if pair[0].lower() not in unwanted]


@attrs.frozen
class Framing:
    """How a body ends: ``chunked``, after ``length`` bytes, or (None) with the connection."""

    chunked: bool = False
    length: int | None = None


def request_framing(message: Message) -> Framing:
    """RFC 9112 section 6.3 for requests: neither length nor chunked means no body."""
    framing = _announced(message)
    return framing or Framing(length=0)


def response_framing(message: Message, status: int, method: str) -> Framing:
    """RFC 9112 section 6.3 for the response to ``method``; a tunnel (101, CONNECT) reads until the end."""
    framing = _announced(message)
    if status == 101 or (method == "CONNECT" and 200 <= status < 300):
        return Framing()
    if method == "HEAD" or status < 200 or status in (204, 304):
        return Framing(length=0)
    return framing or Framing()


def _announced(message: Message) -> Framing | None:
    codings = message.all(b"transfer-encoding")
    lengths = message.all(b"content-length")
    if (codings and lengths) or len(codings) > 1 or len(lengths) > 1:
        raise MalformedMessage(f"ambiguous framing: {message.raw_head!r}")
    if codings:
        if codings[0].lower() != b"chunked":
            raise MalformedMessage(f"unknown transfer coding: {message.raw_head!r}")
        return Framing(chunked=True)
    if lengths:
        if not re.fullmatch(rb"\d+", lengths[0]):
            raise MalformedMessage(f"bad content-length: {message.raw_head!r}")
        return Framing(length=int(lengths[0]))
    return None


_Broken = TypeVar("_Broken", bound=BrokenMessage)


class BodyReader:
    """Reads one body off a peer by its framing. ``done``: the end was read."""

    def __init__(self, peer: Peer, framing: Framing, message: Message, broken: type[_Broken]) -> None:
        self._peer = peer
        self._broken = broken
        self._message = message
        self._chunked = framing.chunked
        self._left = framing.length
        self._in_chunk = 0
        self._owes_crlf = False
        self.done = framing.length == 0

    async def some(self, keep: bool = True) -> bytes:
        """The payload bytes that are there, at least one; empty when the body is over.

        ``keep`` False leaves them out of the message's ``arrived``, for bodies too large to hold.
        """
        data = await self._some()
        if keep:
            self._message.arrived += data
        return data

    async def _some(self) -> bytes:
        if self.done:
            return b""
        if self._chunked:
            return await self._some_chunked()
        if not self._peer.unread and not await self._peer.fill():
            if self._left is not None or self._peer.reset:
                raise self._break()
            self.done = True
            return b""
        data = self._peer.take(self._left)
        if self._left is not None:
            self._left -= len(data)
            self.done = self._left == 0
        return data

    async def chunk(self) -> bytes:
        """One whole chunk of a chunked body as the other side framed it; empty after the last."""
        if not self._chunked:
            raise MalformedMessage(f"the body is not chunked: {self._message.raw_head!r}")
        pieces = [await self.some()]
        while self._in_chunk:
            pieces.append(await self.some())
        return b"".join(pieces)

    async def _some_chunked(self) -> bytes:
        if self._owes_crlf:
            await self._end_chunk()
        if not self._in_chunk:
            line = await self._line()
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise MalformedMessage(f"not a chunk-size line: {line!r}")
            self._in_chunk = int(match[1], 16)
            if not self._in_chunk:
                await self._read_trailers()
                return b""
        if not self._peer.unread:
            await self._need_more()
        data = self._peer.take(self._in_chunk)
        self._in_chunk -= len(data)
        # Its CRLF is read with the next chunk: payload that is here is given out at once.
        self._owes_crlf = not self._in_chunk
        return data

    async def _end_chunk(self) -> None:
        if line := await self._line():
            raise MalformedMessage(f"a chunk goes on after its size: {line[:200]!r}")
        self._owes_crlf = False

    async def _read_trailers(self) -> None:
        raw = b""
        while line := await self._line():
            raw += b"\r\n" + line
        _, self._message.trailers = split_head(raw + b"\r\n\r\n")
        self.done = True

    async def _line(self) -> bytes:
        unread = self._peer.unread
        while (end := unread.find(b"\r\n")) < 0:
            if len(unread) > HEAD_CAP:
                raise MalformedMessage(f"an endless line: {bytes(unread[:200])!r}")
            await self._need_more()
        return self._peer.take(end + 2)[:-2]

    async def _need_more(self) -> None:
        if not await self._peer.fill():
            raise self._break()

    def _break(self) -> BrokenMessage:
        return self._broken("body", bytes(self._message.arrived), self._peer.reset)


async def read_raw_head(peer: Peer, broken: type[BrokenMessage], guard: float | None = None) -> bytes:
    """The bytes of one head with its empty line; empty where the connection ended before it began.

    ``guard``: seconds to wait for each read, 0 for ever, None for the peer's own.
    """
    searched = 0
    while (end := peer.unread.find(b"\r\n\r\n", max(0, searched - 3))) < 0:
        searched = len(peer.unread)
        if searched > HEAD_CAP:
            raise MalformedMessage(f"an endless head: {bytes(peer.unread[:200])!r}")
        if not await peer.fill(guard):
            if not peer.unread:
                return b""
            raise broken("head", bytes(peer.unread), peer.reset)
    return peer.take(end + 4)


def parse_request_line(raw: bytes, line: bytes) -> tuple[str, bytes, tuple[int, int]]:
    """Method, target and version of a request line; MalformedMessage where it is none."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise MalformedMessage(f"not a request line: {line!r} in {raw!r}")
    return match[1].decode(), match[2], (int(match[3]), int(match[4]))


def parse_status_line(raw: bytes, line: bytes) -> tuple[int, bytes, tuple[int, int]]:
    """Status, reason and version of a status line; MalformedMessage where it is none."""
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise MalformedMessage(f"not a status line: {line!r} in {raw!r}")
    return int(match[3]), match[4] or b"", (int(match[1]), int(match[2]))

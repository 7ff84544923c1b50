"""Reads one HTTP/1.1 response out of the bytes as they arrive, and keeps what other clients throw away.

Pure (no sockets, no clock). Strict where leniency would hide a fault; RFC 9112 sections 4 to 7.
"""

import re
from collections.abc import Callable

import attrs

RawHeaders = tuple[tuple[bytes, bytes], ...]

MAX_HEAD = 1024 * 1024
"""Bytes of a response head."""

COMPLETE = "complete"

_STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) (\d{3})(?: (.*))?")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;.*)?")


@attrs.frozen
class Arrival:
    """Body bytes that arrived together. ``at``: seconds since the request was sent."""

    at: float
    data: bytes


@attrs.define
class ResponseParser:
    """Feed it what arrives; it says when the response is over.

    ``end`` is "" while bytes are missing, ``complete`` after the last, else a sentence that says what went wrong.
    ``framing``: none, length, chunked, close or upgrade. ``chunks`` counts chunks, ``surplus`` the bytes after the end.
    """

    method: str
    on_arrival: Callable[[Arrival], None] | None = None
    version: str = ""
    status: int = 0
    reason: str = ""
    headers: RawHeaders = ()
    framing: str = ""
    chunks: int = 0
    surplus: int = 0
    first_byte: float | None = None
    arrivals: list[Arrival] = attrs.field(factory=list)
    end: str = ""
    _buffer: bytearray = attrs.field(factory=bytearray)
    _left: int = 0
    _step: Callable[[list[bytes]], bool] | None = None

    def feed(self, data: bytes, at: float) -> None:
        """Take ``data``, which arrived ``at`` seconds after the request was sent."""
        if self.first_byte is None:
            self.first_byte = at
        self._buffer += data
        body: list[bytes] = []
        while not self.end and self._advance(body):
            pass
        if self.end:
            self.surplus += len(self._buffer)
            self._buffer.clear()
        if body:
            arrival = Arrival(at, b"".join(body))
            self.arrivals.append(arrival)
            if self.on_arrival is not None:
                self.on_arrival(arrival)

    def closed(self, why: str = "") -> None:
        """The connection has ended: ``why`` says how when it was not a clean end."""
        if self.end:
            return
        if self.framing == "close" and not why:
            self.end = COMPLETE
        else:
            where = "in the body" if self.status else "before the response head was complete"
            self.end = f"cut {where}: {why or 'connection closed'}"

    def _advance(self, body: list[bytes]) -> bool:
        """One step; False when more bytes are needed."""
        return (self._step or self._head)(body)

    def _head(self, body: list[bytes]) -> bool:
        stop = self._buffer.find(b"\r\n\r\n")
        if stop < 0:
            if len(self._buffer) > MAX_HEAD:
                self.end = f"the response head exceeds {MAX_HEAD} bytes"
            return False
        lines = bytes(self._buffer[:stop]).split(b"\r\n")
        del self._buffer[: stop + 4]
        match = _STATUS_LINE.fullmatch(lines[0])
        pairs = [line.partition(b":") for line in lines[1:]]
        if match is None or any(not colon or not name or name != name.strip() for name, colon, _ in pairs):
            self.end = "malformed response head"
            return False
        if match[2][:1] == b"1" and match[2] != b"101":
            return True  # An interim response; the real one follows.
        self.version, self.status = match[1].decode(), int(match[2])
        self.reason = (match[3] or b"").decode("latin-1")
        self.headers = tuple((name, value.strip(b" \t")) for name, _, value in pairs)
        self._frame()
        return not self.end

    def _frame(self) -> None:
        codings = b",".join(value.lower() for name, value in self.headers if name.lower() == b"transfer-encoding")
        lengths = {value for name, value in self.headers if name.lower() == b"content-length"}
        if self.status == 101:
            self.framing, self.end = "upgrade", COMPLETE
        elif self.method == "HEAD" or self.status in (204, 304):
            self.framing, self.end = "none", COMPLETE
        elif codings.endswith(b"chunked"):
            self.framing, self._step = "chunked", self._chunk_size
        elif lengths:
            self.framing, self._step = "length", self._counted
            text = lengths.pop()
            if lengths or not text.isdigit():
                self.end = "malformed Content-Length"
            else:
                self._left = int(text)
                self.end = COMPLETE if self._left == 0 else ""
        else:
            self.framing, self._step = "close", self._rest

    def _take(self, count: int, body: list[bytes]) -> None:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        if taken:
            body.append(taken)

    def _rest(self, body: list[bytes]) -> bool:
        self._take(len(self._buffer), body)
        return False

    def _counted(self, body: list[bytes]) -> bool:
        size = min(self._left, len(self._buffer))
        self._left -= size
        self._take(size, body)
        if self._left == 0:
            self.end = COMPLETE
        return False

    def _line(self) -> bytes | None:
        stop = self._buffer.find(b"\r\n")
        if stop < 0:
            return None
        line = bytes(self._buffer[:stop])
        del self._buffer[: stop + 2]
        return line

    def _chunk_size(self, body: list[bytes]) -> bool:
        line = self._line()
        if line is None:
            return False
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            self.end = "malformed chunk size"
            return False
        self._left = int(match[1], 16)
        self.chunks += self._left > 0
        self._step = self._chunk_data if self._left else self._trailer
        return True

    def _chunk_data(self, body: list[bytes]) -> bool:
        size = min(self._left, len(self._buffer))
        self._left -= size
        self._take(size, body)
        if self._left or len(self._buffer) < 2:
            return False
        if self._line() != b"":
            self.end = "malformed chunk end"
        self._step = self._chunk_size
        return True

    def _trailer(self, body: list[bytes]) -> bool:
        line = self._line()
        if line == b"":
            self.end = COMPLETE
        return line is not None

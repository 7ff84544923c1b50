"""Message framing of HTTP/1.1 bodies (RFC 9112 sections 6 and 7): bytes in, payload out.

Pure. A decoder knows when its body is over and what bytes came behind it; it never guesses: what does not parse is a
FramingError, and a body that ended early is visible as ``done`` being False.
"""

import re

CHUNK_LINE_CAP = 4096
"""Longest chunk-size line with its extensions, in bytes; also of all trailer lines together, times 16."""

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_SIZE_START = re.compile(rb"[0-9A-Fa-f]{1,15}[ \t]*(?:;[^\r\n]*)?\r?")
_BARE = re.compile(rb"\n|\0|\r(?=[^\n])")

LAST_CHUNK = b"0\r\n\r\n"


class FramingError(ValueError):
    """The bytes break the framing that the message head announced. ``payload`` arrived with them, before the fault."""

    def __init__(self, message: str, payload: bytes = b"") -> None:
        super().__init__(message)
        self.payload = payload


def chunk(data: bytes) -> bytes:
    """``data`` (not empty) as one chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Decoder:
    """How a body ends. ``done``: it has ended; ``rest``: bytes that came behind the end."""

    __slots__ = ("done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Payload bytes of ``data``, in order. FramingError where the framing is broken."""
        raise NotImplementedError

    def eof(self) -> bool:
        """The connection ended (cleanly): whether the body is whole."""
        return self.done


class NoBody(Decoder):
    """A message without body: HEAD, 204, 304, Content-Length 0."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        self.done = True

    def feed(self, data: bytes) -> bytes:
        self.rest += data
        return b""


class LengthDecoder(Decoder):
    """A body of a declared length (RFC 9112 section 6.2)."""

    __slots__ = ("left",)

    def __init__(self, length: int) -> None:
        self.rest = b""
        self.left = length
        self.done = length == 0

    def feed(self, data: bytes) -> bytes:
        size = len(data)
        if size < self.left:
            self.left -= size
            return data
        self.done = True
        if size == self.left:
            self.left = 0
            return data
        payload = data[: self.left]
        self.rest += data[self.left :]
        self.left = 0
        return payload


class UntilClose(Decoder):
    """A body that ends with its connection (RFC 9112 section 6.3, item 8)."""

    __slots__ = ()

    def feed(self, data: bytes) -> bytes:
        return data

    def eof(self) -> bool:
        self.done = True
        return True


class ChunkedDecoder(Decoder):
    """The chunked coding (RFC 9112 section 7.1). Extensions and trailers are read and dropped."""

    __slots__ = ("_left", "_tail", "_trailers")

    def __init__(self) -> None:
        self.done = False
        self.rest = b""
        self._left = 0  # payload bytes, plus 2 for their CRLF, that the current chunk still owes
        self._tail = b""
        self._trailers = -1  # bytes of trailer lines read; -1 before the last chunk

    def feed(self, data: bytes) -> bytes:
        if self._tail:
            data, self._tail = self._tail + data, b""
        elif not self._left and self._trailers < 0:
            match = _SIZE_LINE.match(data)
            if match is not None and data[-2:] == b"\r\n":
                start, size = match.end(), int(match.group(1), 16)
                if size and start + size + 2 == len(data):
                    return data[start:-2]  # an event of a stream: one whole chunk in one read
        pieces: list[bytes] = []
        pos, end = 0, len(data)
        try:
            while pos < end and not self.done:
                if self._left:
                    pos = self._payload(data, pos, end, pieces)
                elif self._trailers < 0:
                    pos = self._size(data, pos, end)
                else:
                    pos = self._trailer(data, pos, end)
        except FramingError as error:
            error.payload = b"".join(pieces)
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _payload(self, data: bytes, pos: int, end: int, pieces: list[bytes]) -> int:
        left = self._left
        if left > 2:
            take = min(left - 2, end - pos)
            pieces.append(data[pos : pos + take])
            self._left = left = left - take
            pos += take
        while left <= 2 and left and pos < end:
            if data[pos] != (13 if left == 2 else 10):
                raise FramingError("a chunk does not end in CRLF where its size says it ends")
            left -= 1
            pos += 1
            self._left = left
        return pos

    def _size(self, data: bytes, pos: int, end: int) -> int:
        match = _SIZE_LINE.match(data, pos)
        if match is None:
            start = _SIZE_START.match(data, pos)
            if start is None or start.end() != end or end - pos > CHUNK_LINE_CAP:
                raise FramingError("a chunk-size line is malformed")
            self._tail = data[pos:]
            return end
        size = int(match.group(1), 16)
        if size:
            self._left = size + 2
        else:
            self._trailers = 0
        return match.end()

    def _trailer(self, data: bytes, pos: int, end: int) -> int:
        eol = data.find(b"\r\n", pos)
        if eol < 0:
            if b"\n" in data[pos:] or end - pos + self._trailers > 16 * CHUNK_LINE_CAP:
                raise FramingError("the trailer section is malformed or too long")
            self._tail = data[pos:]
            return end
        if eol == pos:
            self.done = True
            self.rest = data[eol + 2 :]
            return end
        self._trailers += eol + 2 - pos
        if _BARE.search(data, pos, eol + 1):
            raise FramingError("the trailer section is malformed")
        if self._trailers > 16 * CHUNK_LINE_CAP:
            raise FramingError("the trailer section is too long")
        return eol + 2

"""WebSockets (RFC 6455): the text messages in the raw bytes of both directions, permessage-deflate (RFC 7692) undone.

Pure. Reads what others have agreed on and said; sends nothing and enforces little. Behind damage nothing can be found again:
``fault`` says what is wrong, and what came before stands. Owns no dialect.
"""

import struct
import zlib
from collections.abc import Iterable

import attrs

from .coding import MOST
from .detect import Headers, header

_TEXT, _BINARY, _CLOSE = 1, 2, 8
_CONTROL = 8
"""Operations from this number on are control frames: they stand between the fragments of a message."""

_TAIL = b"\x00\x00\xff\xff"
"""What a sender takes off a compressed message (RFC 7692, 7.2.1)."""


@attrs.frozen
class Deflate:
    """What the two sides have agreed on: whether a side starts each message with an empty window."""

    server_no_context: bool = False
    client_no_context: bool = False


def negotiated(response_headers: Headers) -> Deflate | None:
    """permessage-deflate as the response to the upgrade grants it; None for no compression."""
    for extension in header(response_headers, "sec-websocket-extensions").split(","):
        name, *parameters = (part.strip().lower() for part in extension.split(";"))
        if name == "permessage-deflate":
            return Deflate("server_no_context_takeover" in parameters, "client_no_context_takeover" in parameters)
    return None


class MessageDecoder:
    """One direction. ``server``: whether these are the server's bytes; ``deflate``: what ``negotiated`` said."""

    def __init__(self, deflate: Deflate | None = None, *, server: bool) -> None:
        self._compressed = deflate is not None
        self._fresh = deflate is not None and (deflate.server_no_context if server else deflate.client_no_context)
        self._inflater = zlib.decompressobj(-15)
        self._buffer = bytearray()
        self._parts: list[bytes] = []
        self._operation = 0
        self._inflate = False
        self.closed = False
        self.fault = ""

    def feed(self, data: bytes) -> list[str]:
        """The text messages that end in ``data``. Bytes that are no UTF-8 become U+FFFD; binary messages are left out."""
        if self.fault or self.closed:
            return []
        self._buffer += data
        found: list[str] = []
        at = 0
        while not self.fault and not self.closed and (frame := self._frame(at)) is not None:
            start, size, mask = frame
            if len(self._buffer) - start < size:
                break
            payload = bytes(self._buffer[start : start + size])
            self._take(self._buffer[at], _unmasked(payload, mask), found)
            at = start + size
        del self._buffer[:at]
        return found

    def _frame(self, at: int) -> tuple[int, int, bytes] | None:
        """Where the payload of the frame at ``at`` starts, its size, its mask; None while the header is not whole."""
        have = len(self._buffer) - at
        if have < 2:
            return None
        size, masked = self._buffer[at + 1] & 0x7F, self._buffer[at + 1] & 0x80
        long = {126: 2, 127: 8}.get(size, 0)
        start = at + 2 + long + (4 if masked else 0)
        if len(self._buffer) < start:
            return None
        if long:
            size = struct.unpack_from("!H" if long == 2 else "!Q", self._buffer, at + 2)[0]
        if size > MOST:
            self.fault = "a WebSocket frame of an impossible size"
            return None
        return start, size, bytes(self._buffer[start - 4 : start]) if masked else b""

    def _take(self, first: int, payload: bytes, found: list[str]) -> None:
        final, bits, operation = first & 0x80, first & 0x70, first & 0x0F
        if bits & 0x30 or (bits & 0x40 and (not self._compressed or operation in (0, *range(_CONTROL, 16)))):
            self.fault = "a WebSocket frame with bits that nobody has agreed on"
        elif operation >= _CONTROL:
            self.closed = operation == _CLOSE
        elif operation > _BINARY or (operation == 0) != (self._operation != 0):
            self.fault = "WebSocket frames in an impossible order"
        else:
            if operation:
                self._operation, self._inflate = operation, bool(bits & 0x40)
            self._parts.append(payload)
            if final:
                self._message(found)

    def _message(self, found: list[str]) -> None:
        data, self._parts = b"".join(self._parts), []
        operation, self._operation = self._operation, 0
        if self._inflate:
            data = self._inflated(data)
        if operation == _TEXT and not self.fault:
            found.append(data.decode("utf-8", "replace"))

    def _inflated(self, data: bytes) -> bytes:
        if self._fresh or self._inflater.eof:
            self._inflater = zlib.decompressobj(-15)
        try:
            inflated = self._inflater.decompress(data + _TAIL, MOST)
        except zlib.error as error:
            self.fault = f"a damaged WebSocket message: {error}"
            return b""
        if self._inflater.unconsumed_tail:
            self.fault = f"a WebSocket message of more than {MOST} bytes"
        return inflated


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    if not mask or not payload:
        return payload
    keys = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")).to_bytes(len(payload), "big")


def texts(data: Iterable[bytes], deflate: Deflate | None = None, *, server: bool) -> list[str]:
    """All text messages of one direction."""
    decoder = MessageDecoder(deflate, server=server)
    return [text for piece in data for text in decoder.feed(piece)]

"""Amazon's event stream encoding (``application/vnd.amazon.eventstream``), as Bedrock answers with it.

Pure. Owns the binary framing; both checksums are checked. A message is a prelude (length of all, length of the headers, CRC-32 of
these), headers, payload, and a CRC-32 over everything before. Owns no dialect.
"""

import struct
import zlib

import attrs

from .model import NotReadable

PRELUDE = 12
"""Bytes: two lengths and their checksum."""

_LONGEST = 1 << 30
"""A message that claims more bytes than this is damage that its checksum has not shown."""

_FIXED = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Sizes in bytes of header values, by type; 6 and 7 (bytes, text) tell their own."""


@attrs.frozen
class StreamMessage:
    """One message. ``headers``: those whose value is a text, by name (``:event-type``)."""

    headers: dict[str, str]
    payload: bytes


class EventStreamDecoder:
    """Takes bytes, gives messages. Behind damage nothing can be found again: ``fault`` says what is wrong."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = PRELUDE
        self.fault = ""

    @property
    def whole(self) -> bool:
        """Whether the bytes so far end where a message ends."""
        return not self.fault and not self._have

    def feed(self, data: bytes) -> list[StreamMessage]:
        """The messages that end in ``data``."""
        if self.fault or not data:
            return []
        self._pieces.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        buffer = b"".join(self._pieces)
        found, at = [], 0
        try:
            while len(buffer) - at >= PRELUDE:
                size = message_size(buffer, at)
                if len(buffer) - at < size:
                    self._need = size
                    break
                found.append(_message(buffer[at : at + size]))
                at += size
                self._need = PRELUDE
        except NotReadable as error:
            self.fault = str(error)
        rest = buffer[at:]
        self._pieces, self._have = [rest], len(rest)
        return found


def message_size(buffer: bytes, at: int = 0) -> int:
    """The length in bytes that a prelude tells. NotReadable: it is no prelude."""
    total, headers, check = struct.unpack_from("!III", buffer, at)
    if zlib.crc32(buffer[at : at + 8]) != check:
        raise NotReadable("an event stream message with a wrong checksum in its prelude")
    if not PRELUDE + 4 + headers <= total <= _LONGEST:
        raise NotReadable("an event stream message of an impossible length")
    return int(total)


def _message(data: bytes) -> StreamMessage:
    headers = struct.unpack_from("!I", data, 4)[0]
    if zlib.crc32(data[:-4]) != struct.unpack("!I", data[-4:])[0]:
        raise NotReadable("an event stream message with a wrong checksum")
    try:
        return StreamMessage(_headers(data[PRELUDE : PRELUDE + headers]), data[PRELUDE + headers : -4])
    except (struct.error, IndexError) as error:
        raise NotReadable(f"an event stream message with wrong headers: {error}") from None


def _headers(data: bytes) -> dict[str, str]:
    found, at = {}, 0
    while at < len(data):
        end = at + 1 + data[at]
        name, kind, at = data[at + 1 : end].decode("utf-8", "replace"), data[end], end + 1
        if kind in (6, 7):
            size = struct.unpack_from("!H", data, at)[0]
            if kind == 7:
                found[name] = data[at + 2 : at + 2 + size].decode("utf-8", "replace")
            at += 2 + size
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise NotReadable(f"an event stream header of the unknown type {kind}")
    return found

"""Frames: what the journal is made of, as bytes and back.

Pure. A frame says one thing about one exchange, carries its own length, number and checksum, and is never changed once it is
written. Owns the format and nothing else: where frames are kept is the journal's and the segments' matter.

A frame is a header of ``HEADER.size`` bytes and a payload. All numbers are little-endian::

    magic       4   b"KGB1"
    length      4   bytes of the payload
    sequence    8   one more than the frame before it, for each instance
    kind        1   ``Kind``
    flags       1   0; a reader skips no frame for a flag that it does not know
    (unused)    2
    exchange   16   the UUID of the exchange, zeros where a frame belongs to none
    wall        8   nanoseconds since the epoch
    monotonic   8   nanoseconds of the instance's monotonic clock
    checksum    4   CRC-32 of all the above and the payload, begun with a salt

The salt is a random number of the tail and of its segments. A body may hold anything, frames of another journal too; since nobody
who sends one knows the salt, what looks like a frame behind damage is one.
"""

import enum
import struct
from collections.abc import Iterator

import attrs

try:  # of the extra "speed": the same sum in a twelfth of the time
    from isal.isal_zlib import crc32 as crc32  # noqa: PLC0414
except ImportError:
    from zlib import crc32 as crc32  # noqa: PLC0414

MAGIC = b"KGB1"

HEADER = struct.Struct("<4sIQBBH16sQQI")
_BODY = struct.Struct("<4sIQBBH16sQQ")
_CRC = struct.Struct("<I")

pack_header = _BODY.pack
"""The header of a frame, but for its checksum: the fields in the order above."""

PAYLOAD_CAP = 256 * 1024
"""Most payload bytes of one frame: longer data is cut into several. A longer length is damage."""

NO_EXCHANGE = bytes(16)

STARTED = b'{"event":"started"}'
"""Payload of the NOTE with which a gateway begins: whatever of its instance was open then has no end."""


class Kind(enum.IntEnum):
    """What a frame says."""

    REQUEST_HEAD = 1
    REQUEST_BYTES = 2
    RESPONSE_HEAD = 3
    RESPONSE_BYTES = 4
    TO_UPSTREAM = 5
    """Bytes of a tunnel on their way to the upstream."""
    TO_CALLER = 6
    """Bytes of a tunnel on their way to the caller."""
    END = 7
    GAP = 8
    NOTE = 9


@attrs.frozen
class Frame:
    """One frame. ``exchange``: 16 bytes; ``wall`` and ``monotonic``: nanoseconds."""

    sequence: int
    kind: int
    exchange: bytes
    wall: int
    monotonic: int
    payload: bytes

    @property
    def size(self) -> int:
        """Bytes of the frame, header included."""
        return HEADER.size + len(self.payload)


def header_of(
    sequence: int, kind: int, exchange: bytes, wall: int, monotonic: int, payload: bytes | memoryview, salt: int = 0
) -> bytes:
    """The header of a frame with ``payload``. ValueError when that is longer than PAYLOAD_CAP."""
    if len(payload) > PAYLOAD_CAP:
        raise ValueError(f"a payload of {len(payload)} bytes is longer than {PAYLOAD_CAP}")
    body = pack_header(MAGIC, len(payload), sequence, kind, 0, 0, exchange, wall, monotonic)
    return body + _CRC.pack(crc32(payload, crc32(body, salt)))


def encode(frame: Frame, salt: int = 0) -> bytes:
    """``frame`` as bytes."""
    head = header_of(frame.sequence, frame.kind, frame.exchange, frame.wall, frame.monotonic, frame.payload, salt)
    return head + frame.payload


class Damage(ValueError):
    """Bytes that are no frame, although there are enough of them. ``at`` is where they begin."""

    def __init__(self, at: int, why: str) -> None:
        super().__init__(f"no frame at {at}: {why}")
        self.at = at


def decode(data: bytes | memoryview, at: int = 0, salt: int = 0) -> tuple[Frame, int] | None:
    """The frame that begins at ``at``, and where it ends. None when ``data`` ends before it does; Damage otherwise."""
    left = len(data) - at
    if left < HEADER.size:
        if bytes(data[at : at + len(MAGIC)]) != MAGIC[:left]:
            raise Damage(at, "another magic")
        return None
    magic, length, sequence, kind, _, _, exchange, wall, monotonic, checksum = HEADER.unpack_from(data, at)
    if magic != MAGIC:
        raise Damage(at, "another magic")
    if length > PAYLOAD_CAP:
        raise Damage(at, "a payload longer than any")
    if left < HEADER.size + length:
        return None
    start = at + HEADER.size
    payload = bytes(data[start : start + length])
    if crc32(payload, crc32(data[at : at + _BODY.size], salt)) != checksum:
        raise Damage(at, "another checksum")
    return Frame(sequence, kind, exchange, wall, monotonic, payload), start + length


def find(data: bytes, at: int, salt: int = 0) -> int:
    """Where the next whole frame begins behind damage at ``at``, or -1. A magic alone is no proof: bodies hold anything."""
    while (at := data.find(MAGIC, at + 1)) >= 0:
        try:
            if decode(data, at, salt) is not None:
                return at
        except Damage:
            continue
    return -1


def scan(data: bytes, at: int = 0) -> Iterator[tuple[Frame, int]]:
    """Every frame from ``at`` on with where it ends, up to the first that is not whole. Damage is raised where it stands."""
    while (found := decode(data, at)) is not None:
        frame, at = found
        yield frame, at


def pieces(data: bytes) -> Iterator[bytes | memoryview]:
    """``data`` in pieces that each fit into a frame; at least one."""
    if len(data) <= PAYLOAD_CAP:
        yield data
        return
    view = memoryview(data)
    for start in range(0, len(data), PAYLOAD_CAP):
        yield view[start : start + PAYLOAD_CAP]

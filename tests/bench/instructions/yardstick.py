"""The yardstick: a small proxy of asyncio protocols in plain Python. Frozen: a change here voids every ratio that is on file.

It does what any recording proxy does for a request, an event and a body (heads read and made again, headers in a dictionary, frames
packed, check-summed and copied, a line of JSON), and nothing that depends on how a gateway is built. It must not import the packages
that are measured against it, nor any of theirs.
"""

import asyncio
import functools
import json
import re
import struct
import zlib
from typing import cast

HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"))
RING = 1 << 22
CHECKED = 64
_REQUEST_LINE = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.([01])$")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) (\d\d\d) (.*)$")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
_FRAME = struct.Struct("<4sIQB16sQQI")


class Ring:
    """Frames, one after the other, in memory of a fixed size."""

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(RING))
        self.at = 0
        self.sequence = 0

    def append(self, kind: int, key: bytes, data: bytes) -> None:
        self.sequence += 1
        size = _FRAME.size + len(data)
        if self.at + size > RING:
            self.at = 0
        # Not over all of it: what a check-sum costs a byte is the library's matter, and would drown the rest of a body.
        check = zlib.crc32(data[:CHECKED], zlib.crc32(key))
        head = _FRAME.pack(b"FRAM", len(data), self.sequence, kind, key, self.at, size, check)
        self.memory[self.at : self.at + size] = head + data
        self.at += size


class Message:
    """A head: its first line, its headers, and how its body ends."""

    def __init__(self, data: bytes, line: re.Pattern[bytes]) -> None:
        first, *lines = data.split(b"\r\n")
        found = line.match(first)
        if found is None:
            raise ValueError(first)
        self.first = found.groups()
        self.names: dict[bytes, bytes] = {}
        self.pairs: list[tuple[bytes, bytes]] = []
        for each in lines:
            name, _, value = each.partition(b":")
            if _NAME.match(name) is None:
                raise ValueError(name)
            value = value.strip()
            self.pairs.append((name, value))
            self.names[name.lower()] = value
        self.chunked = self.names.get(b"transfer-encoding", b"") == b"chunked"
        self.length = int(self.names.get(b"content-length", b"0"))

    def end_to_end(self) -> list[tuple[bytes, bytes]]:
        return [pair for pair in self.pairs if pair[0].lower() not in HOP_BY_HOP]

    def told(self) -> bytes:
        shown = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.pairs}
        return json.dumps({"first": [each.decode("latin-1") for each in self.first], "headers": shown}).encode()


def head_of(first: bytes, pairs: list[tuple[bytes, bytes]]) -> bytes:
    lines = [first]
    for name, value in pairs:
        lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"", b""])


class Listener:
    """What is told of an exchange; it puts it on record."""

    def __init__(self, ring: Ring, key: bytes) -> None:
        self.ring = ring
        self.key = key
        self.up = 0
        self.down = 0

    def head(self, kind: int, message: Message) -> None:
        self.ring.append(kind, self.key, message.told())

    def asked(self, data: bytes) -> None:
        self.ring.append(2, self.key, data)
        self.up += len(data)

    def answered(self, data: bytes) -> None:
        self.ring.append(4, self.key, data)
        self.down += len(data)

    def ended(self) -> None:
        self.ring.append(5, self.key, json.dumps({"outcome": "completed", "up": self.up, "down": self.down}).encode())


class Far(asyncio.Protocol):
    """The connection to the upstream of one caller's connection."""

    def __init__(self, near: "Near") -> None:
        self.near = near
        self.transport: asyncio.Transport | None = None
        self.answer: Message | None = None
        self.left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self.transport = cast(asyncio.Transport, transport)  # uvloop says of its own that they are none
        self.near.connected()

    def data_received(self, data: bytes) -> None:
        near = self.near
        head = b""
        if self.answer is None:
            text, _, data = data.partition(b"\r\n\r\n")
            self.answer = answer = Message(text, _STATUS_LINE)
            self.left = answer.length
            near.tell(3, answer)
            head = head_of(b"HTTP/1.1 200 OK", answer.end_to_end())
            if answer.chunked:
                head = head[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
        if self.answer.chunked:
            self.chunks(head, data)
        else:
            self.left -= len(data)
            near.body(head, data, data)
            if self.left <= 0:
                self.done()

    def chunks(self, head: bytes, data: bytes) -> None:
        """Whole chunks: the far end writes each at once."""
        at, bodies, last = 0, [], False
        while at < len(data):
            end = data.index(b"\r\n", at)
            size = int(data[at:end], 16)
            bodies.append(data[end + 2 : end + 2 + size])
            last = not size
            at = end + 4 + size
        body = b"".join(bodies)
        if body:
            self.near.body(head, body, b"%x\r\n%b\r\n" % (len(body), body))
        if last:
            self.near.body(b"", b"", b"0\r\n\r\n")
            self.done()

    def done(self) -> None:
        self.answer = None
        self.near.done()


class Near(asyncio.Protocol):
    """A caller's connection."""

    def __init__(self, upstream: int, ring: Ring) -> None:
        self.upstream = upstream
        self.ring = ring
        self.far = Far(self)
        self.waiting: list[bytes] = []
        self.opening: asyncio.Task[object] | None = None
        self.transport: asyncio.Transport | None = None
        self.listeners: list[Listener] = []
        self.asked = False
        self.left = 0
        self.number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self.transport = cast(asyncio.Transport, transport)  # uvloop says of its own that they are none

    def connection_lost(self, _error: Exception | None) -> None:
        if self.far.transport is not None:
            self.far.transport.close()

    def connected(self) -> None:
        for data in self.waiting:
            self.send(data)

    def send(self, data: bytes) -> None:
        if self.far.transport is not None:
            self.far.transport.write(data)
            return
        self.waiting.append(data)
        if self.opening is None:
            loop = asyncio.get_running_loop()
            self.opening = loop.create_task(loop.create_connection(lambda: self.far, "127.0.0.1", self.upstream))

    def data_received(self, data: bytes) -> None:
        if self.asked:
            self.piece(data, data)
            return
        text, _, rest = data.partition(b"\r\n\r\n")
        message = Message(text, _REQUEST_LINE)
        self.number += 1
        self.listeners = [Listener(self.ring, self.number.to_bytes(16, "big"))]
        self.asked = True
        self.left = message.length
        self.tell(1, message)
        method, target, _version = message.first
        pairs = [(b"Host", b"127.0.0.1"), *(p for p in message.end_to_end() if p[0].lower() != b"host")]
        self.piece(head_of(b"%b %b HTTP/1.1" % (method, target), pairs) + rest, rest)

    def piece(self, wire: bytes, body: bytes) -> None:
        if body:
            for each in self.listeners:
                each.asked(body)
        self.left -= len(body)
        self.send(wire)

    def tell(self, kind: int, message: Message) -> None:
        for each in self.listeners:
            each.head(kind, message)

    def body(self, head: bytes, body: bytes, wire: bytes) -> None:
        assert self.transport is not None
        if body:
            for each in self.listeners:
                each.answered(body)
        self.transport.write(head + wire if head else wire)

    def done(self) -> None:
        for each in self.listeners:
            each.ended()
        self.asked = False


async def serve(port: int, upstream: int) -> asyncio.Server:
    """The yardstick, listening."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(functools.partial(Near, upstream, Ring()), "127.0.0.1", port)

"""What passes while it is counted: bytes of our own, frozen like the yardstick, and the two ends that pass them.

Caller and upstream are one thread of this process: what is next is sent when what was sent last has arrived, so that a proxy always
finds exactly one thing to do. Nothing here depends on time.
"""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator, Mapping

from tests.bench.load import LoadError
from tests.bench.upstream import SEND_BUFFER

PATIENCE = 60.0
"""Seconds until what was sent must have arrived: under the counter everything takes fifty times as long."""

PIECE = 32 * 1024
"""Bytes of a body that are sent at once, and arrive at once."""
MEGABYTE = 1024 * 1024
_BODY = b'{"model": "bench", "max_tokens": 1024, "messages": [{"role": "user", "content": "%b"}]}' % (b"x" * 200)
_END = b"\r\n\r\n"

EVENT = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"text":"%b"}}\n\n' % (
    b"x" * 24
)
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
LAST_CHUNK = b"0\r\n\r\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    b"request-id: req_011CSHoEeqs5C35K2UUqR7Fy\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_ANSWERED = json.dumps(
    {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "bench",
        "content": [{"type": "text", "text": "Hello! How can I help you today?"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 12, "output_tokens": 9},
    }
).encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nrequest-id: req_011CSHoEeqs5C35K2UUqR7Fy\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_ANSWERED), _ANSWERED)
)


def _ready(sock: socket.socket) -> socket.socket:
    sock.settimeout(PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return sock


def _read(sock: socket.socket, done: Callable[[bytes], bool]) -> None:
    """Read until ``done`` is true of all that came."""
    data = b""
    while not done(data):
        piece = sock.recv(1 << 18)
        if not piece:
            raise LoadError(f"the connection was closed behind {data[-200:]!r}")
        data += piece


class Ends:
    """The two ends of a proxy that listens on ``port``: a caller's connection, and the one that the proxy makes upstream."""

    def __init__(self, port: int, listener: socket.socket, headers: Mapping[str, str]) -> None:
        self._listener = listener
        self._caller = _ready(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
        self._upstream: socket.socket | None = None
        lines = ["POST /v1/messages HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += ["Accept: application/json", "anthropic-version: 2023-06-01", "User-Agent: bench"]
        self._head = "\r\n".join([*lines, "Content-Type: application/json", "Content-Length: "]).encode()

    def close(self) -> None:
        self._caller.close()
        if self._upstream is not None:
            self._upstream.close()

    def ask(self, body: bytes, size: int = 0) -> None:
        """A request, with ``body`` or the announcement of ``size`` bytes; it has arrived when this returns."""
        self._caller.sendall(self._head + b"%d\r\n\r\n" % (size or len(body)) + body)
        if self._upstream is None:
            self._upstream = _ready(self._listener.accept()[0])
        _read(self._upstream, lambda data: data.endswith(body) if body else data.endswith(_END))

    def give(self, data: bytes, end: bytes) -> None:
        """Bytes of an answer; they have arrived as soon as the caller has read ``end`` behind all others."""
        assert self._upstream is not None
        self._upstream.sendall(data)
        _read(self._caller, lambda got: got.endswith(end))

    def request(self, count: int) -> None:
        for _ in range(count):
            self.ask(_BODY)
            self.give(ANSWER, _ANSWERED)

    def event(self, count: int) -> None:
        for _ in range(count):
            self.give(CHUNK, CHUNK)

    def megabyte(self, count: int) -> None:
        assert self._upstream is not None
        data = b"x" * PIECE
        for _ in range(count * MEGABYTE // PIECE):
            self._caller.sendall(data)
            left = PIECE
            while left:
                got = len(self._upstream.recv(left))
                if not got:
                    raise LoadError("the connection was closed within a body")
                left -= got

    @contextlib.contextmanager
    def stream(self, _count: int) -> Iterator[None]:
        """An answer in which there may be events."""
        self.ask(_BODY)
        self.give(STREAM_HEAD + CHUNK, CHUNK)
        yield
        self.give(LAST_CHUNK, LAST_CHUNK)

    @contextlib.contextmanager
    def upload(self, count: int) -> Iterator[None]:
        """A request whose body is ``count`` megabytes."""
        self.ask(b"", count * MEGABYTE)
        yield
        self.give(ANSWER, _ANSWERED)

    @contextlib.contextmanager
    def nothing(self, _count: int) -> Iterator[None]:
        yield

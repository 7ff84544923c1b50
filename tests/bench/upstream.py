"""The fake upstream: one process, one epoll loop, so lean that it is never what is measured.

It owns what the far end of every bench request does, told by the path (query values are decimal):

- ``/json``                                a small JSON answer;
- ``/bytes?size=N``                        N bytes with a content length;
- ``/stream?count=N&gap=MS&stamp=1``       N events of 120 bytes, chunked, one each MS (0: until the caller leaves); with ``stamp``
                                           each says when it was sent: nanoseconds of the monotonic clock behind the mark;
- ``/stats``                               JSON: open streams, events sent, events skipped, requests.

The same may be asked for in the shape of the Messages API (``/v1/messages``, see shapes.py), and is answered in it.

Request bodies are read to their end and dropped before the answer starts. It must not be used as an HTTP server for
anything else: it understands the requests of this bench and nothing more.
"""

import json
import re
import select
import signal
import socket
import sys
import time

from tests.bench.shapes import JSON_ANSWER, LAST_CHUNK, MESSAGES, RAW, SPOKEN, asked, fixed

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_SPOKEN = MESSAGES.encode()
_QUERY = re.compile(rb"(\w+)=(\d+)")
_WHEEL = 4096
_PENDING_CAP = 256 * 1024
SEND_BUFFER = 256 * 1024
"""Of the kernel, at both ends of the bench: a larger one leaves the processor's cache and makes the sender three times slower."""
_DISCARD = bytearray(1 << 20)


class Connection:
    """One accepted connection: where its current request stands."""

    __slots__ = (
        "buffer", "count", "fd", "gap", "kept", "left", "pending", "shape", "sock", "stamped", "streaming", "tail", "target",
    )  # fmt: skip

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.buffer = b""  # bytes before a complete request head
        self.target = b""
        self.shape = RAW
        self.kept: bytearray | None = None  # of a body that says what is wanted: what has come of it
        self.left = 0  # body bytes still to come; -1: chunked, until the last chunk
        self.tail = b""
        self.pending = memoryview(b"")  # bytes that did not fit into the socket
        self.streaming = False
        self.stamped = False
        self.count = 0  # events still to send; -1: endless
        self.gap = 0


class Upstream:
    """The loop. ``run`` returns when ``stop`` was called or when standard input (held by the parent) has ended."""

    def __init__(self, sock: socket.socket) -> None:
        self.listener = sock
        sock.setblocking(False)
        self.poll = select.epoll()
        self.poll.register(sock, select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.wheel: list[list[Connection]] = [[] for _ in range(_WHEEL)]
        self.at = self.now()
        self.streams = self.events = self.skipped = self.requests = 0
        self.running = True

    @staticmethod
    def now() -> int:
        return time.monotonic_ns() // 1_000_000

    def stop(self) -> None:
        self.running = False

    def run(self) -> None:
        """Serve until stopped, then close everything. Ticks of one millisecond only while streams are open."""
        while self.running:
            for fd, mask in self.poll.poll(0.001 if self.streams else 0.5):
                connection = self.connections.get(fd)
                if connection is None:
                    self.accept(fd)
                elif mask & select.EPOLLOUT:
                    self.flush(connection)
                else:
                    self.readable(connection)
            self.tick()
        for connection in list(self.connections.values()):
            self.close(connection)
        self.listener.close()
        self.poll.close()

    def accept(self, fd: int) -> None:
        if fd != self.listener.fileno():  # the parent's end of standard input
            self.stop()
            return
        for _ in range(64):
            try:
                sock, _address = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            self.connections[sock.fileno()] = Connection(sock)
            self.poll.register(sock, select.EPOLLIN)

    def close(self, connection: Connection) -> None:
        if self.connections.pop(connection.fd, None) is None:
            return
        if connection.streaming:
            connection.streaming = False
            self.streams -= 1
        self.poll.unregister(connection.fd)
        connection.sock.close()

    def readable(self, connection: Connection) -> None:
        try:
            if connection.left > 0 and connection.kept is None:  # known length: let the kernel drop it without a copy
                size = connection.sock.recv_into(_DISCARD, min(connection.left, len(_DISCARD)), socket.MSG_TRUNC)
                connection.left -= size
                if size and not connection.left:
                    self.answer(connection)
                data = b"x" * bool(size)
            else:
                data = connection.sock.recv(1 << 18)
                if data and connection.left < 0:
                    self.chunked(connection, data)
                elif data and connection.left:
                    self.told(connection, data)
                elif data:
                    self.request(connection, connection.buffer + data if connection.buffer else data)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(connection)

    def request(self, connection: Connection, data: bytes) -> None:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            connection.buffer = data
            return
        connection.buffer = b""
        start = data.find(b" ") + 1
        connection.target = data[start : data.find(b" ", start)]
        body = len(data) - end - 4
        spoken = connection.target.startswith(_SPOKEN)
        connection.shape, connection.kept = (SPOKEN, bytearray(data[end + 4 :])) if spoken else (RAW, None)
        length = _CONTENT_LENGTH.search(data, 0, end)
        if length is not None:
            connection.left = int(length[1]) - body
        elif _CHUNKED.search(data, 0, end):
            connection.left, connection.tail, connection.kept = -1, b"", bytearray() if spoken else None
            if body:
                self.chunked(connection, data[end + 4 :])
            return
        if connection.left <= 0:
            connection.left = 0
            self.answer(connection)

    def told(self, connection: Connection, data: bytes) -> None:
        """More of a body of known length that says what is wanted."""
        assert connection.kept is not None
        connection.kept += data
        connection.left -= len(data)
        if not connection.left:
            self.answer(connection)

    def chunked(self, connection: Connection, data: bytes) -> None:
        """The bodies of this bench never hold the bytes of a last chunk, so the end is told by the last five."""
        if connection.kept is not None:
            connection.kept += data
        connection.tail = (connection.tail + data[-5:])[-5:]
        if connection.tail == LAST_CHUNK:
            connection.left = 0
            self.answer(connection)

    def answer(self, connection: Connection) -> None:
        self.requests += 1
        target, shape = connection.target, connection.shape
        if connection.kept is not None:
            target, connection.kept = asked(connection.kept), None
        if target.startswith(b"/json"):
            self.send(connection, JSON_ANSWER)
            return
        numbers = {name: int(value) for name, value in _QUERY.findall(target)}
        if target.startswith(b"/stream"):
            connection.stamped = bool(numbers.get(b"stamp", 0))
            self.stream(connection, numbers.get(b"count", 0), numbers.get(b"gap", 20))
        elif target.startswith(b"/bytes"):
            self.send(connection, shape.big(numbers.get(b"size", 0)))
        else:
            names = ("streams", "events", "skipped", "requests")
            self.send(connection, fixed(json.dumps({name: getattr(self, name) for name in names}).encode()))

    def stream(self, connection: Connection, count: int, gap: int) -> None:
        """Head and first event leave in one write; the rest is spread evenly over the gap, whoever came together."""
        connection.streaming = True
        connection.gap = max(1, min(gap, _WHEEL - 1))
        connection.count = count - 1 if count else -1
        self.streams += 1
        self.events += 1
        self.send(connection, connection.shape.begin + self.chunk(connection))
        phase = self.requests * 7 % connection.gap + 1 if count == 0 else connection.gap
        self.wheel[(self.now() + phase) % _WHEEL].append(connection)

    @staticmethod
    def chunk(connection: Connection) -> bytes:
        shape = connection.shape
        return shape.stamped % time.monotonic_ns() if connection.stamped else shape.event

    def tick(self) -> None:
        """Send what is due. Late ticks are made up for, so that the offered rate holds on average."""
        now = self.now()
        for at in range(max(self.at, now - _WHEEL + 1), now):
            due, self.wheel[at % _WHEEL] = self.wheel[at % _WHEEL], []
            for connection in due:
                if not connection.streaming:
                    continue
                if connection.count == 0:
                    connection.streaming = False
                    self.streams -= 1
                    self.send(connection, connection.shape.end)
                    continue
                if len(connection.pending) < _PENDING_CAP:
                    self.events += 1
                    self.send(connection, self.chunk(connection))
                else:
                    self.skipped += 1
                connection.count -= connection.count > 0
                self.wheel[(at + connection.gap) % _WHEEL].append(connection)
        self.at = now

    def send(self, connection: Connection, data: bytes) -> None:
        if connection.pending:
            connection.pending = memoryview(bytes(connection.pending) + data)
            return
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close(connection)
            return
        if sent < len(data):
            connection.pending = memoryview(data)[sent:]
            self.poll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)

    def flush(self, connection: Connection) -> None:
        try:
            connection.pending = connection.pending[connection.sock.send(connection.pending) :]
        except BlockingIOError:
            return
        except OSError:
            self.close(connection)
            return
        if not connection.pending:
            self.poll.modify(connection.fd, select.EPOLLIN)


def listen(port: int = 0) -> socket.socket:
    """A listening loopback socket."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(4096)
    return sock


def main() -> None:
    upstream = Upstream(listen())
    signal.signal(signal.SIGTERM, lambda *_: upstream.stop())
    upstream.poll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
    print(upstream.listener.getsockname()[1], flush=True)
    upstream.run()


if __name__ == "__main__":
    main()

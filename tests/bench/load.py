"""The load generator: one process, one thread, plain sockets; started anew for every measurement.

It owns the caller's side of every figure. ``python -m tests.bench.load '<spec as JSON>'`` prints one JSON object. It must stay
lean (no HTTP library, no event loop framework), and every loop in it is bounded in count and in time.
"""

import contextlib
import json
import re
import select
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.bench import proc
from tests.bench.shapes import EVENT_MARK, LAST_CHUNK, MESSAGES, asking
from tests.bench.upstream import SEND_BUFFER

Spec = dict[str, Any]
Result = dict[str, float]
TIMEOUT = 20
_DISCARD = bytearray(1 << 20)
_STATUS = re.compile(rb"HTTP/1\.[01] (\d\d\d)")
_STAMP = re.compile(rb"@(\d{20})")
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class LoadError(Exception):
    """What was answered is not what the bench asks for: the figure would be worthless."""


class Answer:
    """Finds the end of one response. ``feed`` takes bytes in order and says whether the response is complete."""

    __slots__ = ("body", "events", "head", "left", "tail")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.head = b""
        self.left: int | None = None  # -1: chunked
        self.tail = b""
        self.body = 0  # bytes after the head, chunk framing included
        self.events = 0

    def feed(self, data: bytes) -> bool:
        """Raises LoadError unless the status is 200 with a length or chunks."""
        if self.left is None:
            data = self.head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.head = data
                return False
            self._begin(data[: end + 2])
            data = data[end + 4 :]
        self.events += data.count(EVENT_MARK)
        return self.skip(len(data), data[-5:])

    def skip(self, size: int, tail: bytes) -> bool:
        """Count body bytes that nobody looked at but their last five; only after the head."""
        self.body += size
        if self.left == -1:
            self.tail = (self.tail + tail)[-5:]
            return self.tail == LAST_CHUNK
        return self.body >= (self.left or 0)

    def _begin(self, head: bytes) -> None:
        status = _STATUS.match(head)
        if status is None or status[1] != b"200":
            raise LoadError(f"not a 200: {head[:200]!r}")
        length = _CONTENT_LENGTH.search(head)
        if length is None and b"chunked" not in head.lower():
            raise LoadError(f"neither length nor chunks: {head[:200]!r}")
        self.left = int(length[1]) if length else -1


def request(spec: Spec) -> bytes:
    """The whole request of a spec: target, extra headers, a body of ``body`` bytes (POST) or none (GET). With ``spoken`` the same as
    a request of the Messages API, with a body that says what is wanted."""
    target, size = str(spec["target"]), int(spec.get("body", 0))
    body = asking(target, size) if spec.get("spoken") else b"x" * size
    lines = [
        f"{'POST' if body else 'GET'} {MESSAGES if spec.get('spoken') else target} HTTP/1.1",
        f"Host: 127.0.0.1:{spec['port']}",
    ]
    lines += [f"{name}: {value}" for name, value in dict(spec.get("headers", {})).items()]
    lines += ["Accept: application/json", "anthropic-version: 2023-06-01", "User-Agent: bench"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def connect(spec: Spec, blocking: bool = True) -> socket.socket:
    """A socket to the server under test; a blocking one times out in the kernel, which saves a call per read."""
    sock = socket.create_connection(("127.0.0.1", int(spec["port"])), timeout=TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    sock.setblocking(blocking)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", TIMEOUT, 0))
    return sock


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def until(seconds: float) -> Iterator[float]:
    """Times since the start, as often as one asks, for so many seconds."""
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        yield passed


def latency(spec: Spec) -> Result:
    """One connection, one request after the other: milliseconds to the first byte of the body (of the first event)."""
    wire, answer = request(spec), Answer()
    times: list[float] = []
    with connect(spec) as sock:
        for _ in until(float(spec["seconds"])):
            answer.reset()
            first = 0.0
            start = time.perf_counter()
            sock.sendall(wire)
            done = False
            while not done:
                data = sock.recv(65536)
                if not data:
                    raise LoadError("the server closed the connection")
                done = answer.feed(data)
                first = first or (time.perf_counter() if answer.body else 0.0)
            times.append((first - start) * 1000)
    times = times[min(20, len(times) // 5) :]
    return {"count": len(times), "p50": statistics.median(times), "p99": percentile(times, 0.99)}


def bulk(spec: Spec) -> Result:
    """One connection, big bodies one after the other: MB/s (10^6 bytes) of the larger direction."""
    wire = request(spec)
    rates: list[float] = []
    with connect(spec) as sock:
        for _ in until(float(spec["seconds"])):
            start = time.perf_counter()
            sock.sendall(wire)
            rates.append(max(len(wire), drain(sock)) / (time.perf_counter() - start) / 1e6)
    return {"count": len(rates), "rate": statistics.median(rates[min(2, len(rates) - 1) :])}


def drain(sock: socket.socket) -> int:
    """Read one response to its end and drop it; the size of its body."""
    answer, done = Answer(), False
    while not done:
        # of a known length the kernel drops what nobody will look at
        size = sock.recv_into(_DISCARD, 0, socket.MSG_TRUNC if (answer.left or 0) > 0 else 0)
        if not size:
            raise LoadError("the server closed the connection")
        if answer.left is None:
            done = answer.feed(bytes(_DISCARD[:size]))
        else:
            done = answer.skip(size, bytes(_DISCARD[max(0, size - 5) : size]))
    return answer.body


class Caller:
    """One connection of the ``closed`` and ``streams`` loads."""

    __slots__ = ("answer", "blocked", "pending", "sent", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.answer = Answer()
        self.pending = memoryview(b"")
        self.blocked = False
        self.sent = 0.0


class Crowd:
    """Many connections on one epoll."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.wire = memoryview(request(spec))
        self.poll = select.epoll()
        self.callers: dict[int, Caller] = {}

    def open(self) -> None:
        caller = Caller(connect(self.spec, blocking=False))
        self.callers[caller.sock.fileno()] = caller
        self.poll.register(caller.sock, select.EPOLLIN)
        self.ask(caller)

    def ask(self, caller: Caller) -> None:
        caller.answer.reset()
        caller.sent = time.perf_counter()
        caller.pending = self.wire
        self.push(caller)

    def push(self, caller: Caller) -> None:
        with contextlib.suppress(BlockingIOError):
            caller.pending = caller.pending[caller.sock.send(caller.pending) :]
        if bool(caller.pending) != caller.blocked:
            caller.blocked = not caller.blocked
            self.poll.modify(caller.sock, select.EPOLLIN | (select.EPOLLOUT if caller.blocked else 0))

    def ready(self, timeout: float) -> Iterator[tuple[Caller, int]]:
        for fd, mask in self.poll.poll(timeout):
            caller = self.callers[fd]
            if mask & select.EPOLLOUT:
                self.push(caller)
            if mask & ~select.EPOLLOUT:
                yield caller, fd

    def close(self) -> None:
        for caller in self.callers.values():
            caller.sock.close()
        self.poll.close()


def closed(spec: Spec) -> Result:
    """``connections`` kept alive, each asking again as soon as it is answered: requests/s after a warm-up."""
    warm, total = float(spec.get("warm", 0.3)), 0
    times: list[float] = []
    with contextlib.closing(Crowd(spec)) as crowd:
        for _ in range(int(spec["connections"])):
            crowd.open()
        for passed in until(float(spec["seconds"]) + warm):
            for caller, _fd in crowd.ready(0.1):
                data = caller.sock.recv(65536)
                if not data:
                    raise LoadError("the server closed a connection")
                if caller.answer.feed(data):
                    total += 1
                    if passed > warm:
                        times.append((time.perf_counter() - caller.sent) * 1000)
                    crowd.ask(caller)
    return {
        "count": len(times),
        "total": total,
        "rate": len(times) / float(spec["seconds"]),
        "p99": percentile(times, 0.99),
    }


class Streams:
    """``connections`` endless streams: opened with few at a time outstanding, then counted for ``seconds``."""

    OUTSTANDING = 32

    def __init__(self, spec: Spec) -> None:
        self.crowd = Crowd(spec)
        self.wanted = int(spec["connections"])
        self.events = self.broken = self.begun = 0
        self.first: list[float] = []
        self.buffer = bytearray(1 << 18)

    def turn(self, timeout: float) -> None:
        buffer = self.buffer
        for caller, fd in self.crowd.ready(timeout):
            if not caller.answer.events:
                self._begin(caller, fd)
                continue
            try:
                size = caller.sock.recv_into(buffer)
            except OSError:
                size = 0
            if size:
                self.events += buffer.count(EVENT_MARK, 0, size)
            else:
                self._lost(fd)

    def _lost(self, fd: int) -> None:
        self.broken += 1
        self.crowd.poll.unregister(fd)

    def _begin(self, caller: Caller, fd: int) -> None:
        data = caller.sock.recv(65536)
        if not data or caller.answer.feed(data):
            self._lost(fd)
        elif caller.answer.events:
            self.first.append((time.perf_counter() - caller.sent) * 1000)
            self.begun += 1

    def open(self) -> None:
        """All streams have sent their first event when this returns; LoadError when that takes too long."""
        for _ in until(3 * TIMEOUT):
            callers = len(self.crowd.callers)
            if self.begun + self.broken >= self.wanted:
                return
            if callers < self.wanted and callers - self.begun - self.broken < self.OUTSTANDING:
                self.crowd.open()
            self.turn(0.0 if callers < self.wanted else 0.05)
        raise LoadError(f"only {self.begun} of {self.wanted} streams began")

    def run(self, seconds: float) -> None:
        for _ in until(seconds):
            self.turn(0.05)


def _watched(spec: Spec) -> list[int]:
    return proc.serving(int(spec["proxy"])) if spec.get("proxy") else []


def streams(spec: Spec) -> Result:
    """Events/s, CPU of the watched processes per event and their memory before and after the streams were opened."""
    far = [int(spec["upstream"])]
    before = proc.memory(_watched(spec))
    crowd = Streams(spec)
    with contextlib.closing(crowd.crowd):
        crowd.open()
        crowd.run(float(spec.get("warm", 0.5)))
        crowd.events = 0
        proxy = _watched(spec)
        start, used, far_used, own = time.perf_counter(), proc.Usage.of(proxy), proc.Usage.of(far), time.process_time()
        crowd.run(float(spec["seconds"]))
        seconds, cpu = time.perf_counter() - start, proc.Usage.of(proxy).since(used)
        generator = proc.Usage.of(far).since(far_used) + time.process_time() - own
        after = proc.memory(proxy)
    if crowd.broken:
        raise LoadError(f"{crowd.broken} of {crowd.wanted} streams broke")
    return {
        "count": crowd.events,
        "rate": crowd.events / seconds,
        "cpu": cpu / max(1, crowd.events) * 1e6,
        "generator": generator / seconds,
        "memory": (after - before) / crowd.wanted * 1000 / 1e6,
        "p50": percentile(crowd.first, 0.5),
        "p99": percentile(crowd.first, 0.99),
    }


class Paced(Streams):
    """Streams whose events say when they were sent."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.delays: list[int] = []

    def turn(self, timeout: float) -> None:
        buffer = self.buffer
        for caller, fd in self.crowd.ready(timeout):
            if not caller.answer.events:
                self._begin(caller, fd)
                continue
            try:
                size = caller.sock.recv_into(buffer)
            except OSError:
                size = 0
            now = time.monotonic_ns()
            if not size:
                self._lost(fd)
                continue
            # An event that arrived in two pieces is not counted: there are few, and late ones are not rather cut than others.
            self.delays += [now - int(stamp) for stamp in _STAMP.findall(buffer, 0, size)]


def paced(spec: Spec) -> Result:
    """Milliseconds from when an event was sent until it was read, over all streams."""
    crowd = Paced(spec)
    with contextlib.closing(crowd.crowd):
        crowd.open()
        crowd.run(float(spec.get("warm", 1.0)))
        crowd.delays.clear()
        crowd.run(float(spec["seconds"]))
    if crowd.broken:
        raise LoadError(f"{crowd.broken} of {crowd.wanted} streams broke")
    times = [delay / 1e6 for delay in crowd.delays]
    return {"count": len(times), "p50": statistics.median(times), "p99": percentile(times, 0.99), "max": max(times)}


MODES: dict[str, Callable[[Spec], Result]] = {
    "latency": latency,
    "bulk": bulk,
    "closed": closed,
    "streams": streams,
    "paced": paced,
}


def main() -> int:
    """Exit status 1 and a line on standard error when the answers were not what was asked for."""
    spec: Spec = json.loads(sys.argv[1])
    try:
        print(json.dumps(MODES[spec["mode"]](spec)))
    except (LoadError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

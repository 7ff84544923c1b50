"""A log file, written by a thread of its own.

Owns the bounded queue between the event loop and a file or pipe, and the thread that writes. Its law: nothing here makes
the loop wait, and nothing it writes to can keep the process from ending. What does not fit is dropped and counted, and
the log says how much is missing.

The thread gets finished lines. It used to render them too, and cost more than the rendering: two threads that both want
the interpreter wake each other through the kernel, about once for every two lines.
"""

import collections
import contextlib
import logging
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence

LINGER = 0.05
"""Seconds that a first line waits for company, unless the queue is half full: one wake-up of the thread serves many
exchanges."""

SLICE = 256
"""Lines written at a stretch."""

STOP_SECONDS = 2.0
"""How long the end of the process waits for what is still pending."""

STANDARD_OUTPUT = "-"

_POLL_SECONDS = 0.05

_log = logging.getLogger("kgb.log")


class LogWriter:
    """Lines to ``path`` ("-" is standard output), at most ``max_pending`` waiting.

    ``note(n)`` gives the line that says ``n`` are missing. A file is created with mode 0600, appended to, and opened anew when it has been moved away (rotation).
    """

    def __init__(
        self,
        path: str,
        note: Callable[[int], str],
        max_pending: int = 10_000,
    ) -> None:
        self._note = note
        self._max_pending = max_pending
        self._pending: collections.deque[str] = collections.deque()
        self._overflowed = 0  # written by the loop alone
        self._unwritten = 0  # written by the thread alone
        self._noted = 0
        self._sleeping = False
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._thread: threading.Thread | None = None
        self._sink = _Sink(path)

    @property
    def dropped(self) -> int:
        """How many lines were lost so far."""
        return self._overflowed + self._unwritten

    def put(self, line: str) -> None:
        """Queue ``line`` (without its end); never waits, and drops it when ``max_pending`` are waiting already."""
        waiting = len(self._pending)
        if waiting >= self._max_pending:
            self._overflowed += 1
            return
        self._pending.append(line)
        if waiting == self._max_pending // 2:
            self._hurry.set()
        if self._sleeping:
            self._sleeping = False
            self._wake.set()

    def start(self) -> None:
        """Open the file and start the thread. OSError when the file cannot be opened."""
        self._sink.open()
        self._thread = threading.Thread(target=self._run, name="kgb-log", daemon=True)
        self._thread.start()

    def stop(self, seconds: float | None = None) -> None:
        """Write what is pending, for up to ``seconds`` (STOP_SECONDS), and end the thread; the caller waits meanwhile.

        A thread that hangs in the kernel is left behind: it is a daemon and holds nothing up.
        """
        seconds = STOP_SECONDS if seconds is None else seconds
        self._deadline = time.monotonic() + seconds
        self._stopping.set()
        self._hurry.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds + 4 * _POLL_SECONDS)
        lost = len(self._pending) + self.dropped - self._noted
        if lost:
            _log.error("%d lines of the log %s are lost", lost, self._sink.path)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._sleep()
                self._drain()
            self._drain()
        finally:
            self._sink.close()

    def _sleep(self) -> None:
        # In this order: a line that is put after the look at the queue finds the flag, and wakes the thread.
        self._sleeping = True
        if not self._pending:
            self._wake.wait()
        self._sleeping = False
        self._wake.clear()
        self._hurry.wait(LINGER)
        if not self._stopping.is_set():
            self._hurry.clear()

    def _drain(self) -> None:
        self._sink.follow()
        while self._pending and self._may_wait():
            self._write([self._pending.popleft() for _ in range(min(SLICE, len(self._pending)))])
        missing = self.dropped - self._noted
        if missing and self._sink.write([_end(self._note(missing))], self._may_wait):
            self._noted += missing

    def _write(self, lines: Sequence[str]) -> None:
        self._unwritten += len(lines) - self._sink.write([_end(line) for line in lines], self._may_wait)

    def _may_wait(self) -> bool:
        return time.monotonic() < self._deadline


def _end(line: str) -> bytes:
    return line.encode("utf-8", "backslashreplace") + b"\n"


def _packed(lines: Sequence[bytes]) -> Iterator[bytes]:
    """``lines`` in pieces of at most PIPE_BUF bytes, a longer line in a piece of its own."""
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece


class _Sink:
    """Where lines go. Not thread-safe: it is the writing thread's own."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        self._regular = False
        self._torn = False
        self._failing = False

    def open(self) -> None:
        if self.path == STANDARD_OUTPUT:
            fd = 1
        else:
            # Non-blocking matters to named pipes alone: without a reader, to open one would wait for ever.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(self.path, flags, 0o600)
        self.close()
        self._fd = fd
        with contextlib.suppress(OSError):
            self._regular = stat.S_ISREG(os.fstat(fd).st_mode)

    def close(self) -> None:
        if self._fd > 1:
            os.close(self._fd)
        self._fd = -1

    def follow(self) -> None:
        """Open the file anew when another one, or none, stands at its path."""
        if self.path == STANDARD_OUTPUT:
            return
        try:
            there: os.stat_result | None = os.stat(self.path)
        except OSError:
            there = None
        try:
            if there is None or not os.path.samestat(there, os.fstat(self._fd)):
                self.open()
                self._torn = False
        except OSError as error:
            self._report(error)

    def write(self, lines: Sequence[bytes], may_wait: Callable[[], bool]) -> int:
        """Write ``lines``, each ending in a newline; returns how many went out whole."""
        # To a pipe, piece by piece: no more than PIPE_BUF bytes are sure not to block, or to mix with another writer's.
        pieces = [b"".join(lines)] if self._regular else _packed(lines)
        whole = 0
        for piece in pieces:
            # A line that was cut by a full disk stays cut, but must not spoil the next one.
            data = b"\n" + piece if self._torn else piece
            lead = len(data) - len(piece)
            sent = self._send(data, may_wait)
            if sent:
                self._torn = data[sent - 1] != ord("\n")
            whole += data.count(b"\n", lead, max(sent, lead))
            if sent < len(data):
                break
        return whole

    def _send(self, data: bytes, may_wait: Callable[[], bool]) -> int:
        sent = 0
        try:
            while sent < len(data):
                if not self._regular and not self._writable(may_wait):
                    return sent
                end = len(data) if self._regular else sent + select.PIPE_BUF
                with contextlib.suppress(BlockingIOError):
                    sent += os.write(self._fd, data[sent:end])
            self._failing = False
        except OSError as error:
            self._report(error)
        return sent

    def _writable(self, may_wait: Callable[[], bool]) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        while not poll.poll(_POLL_SECONDS * 1000):
            if not may_wait():
                return False
        return True

    def _report(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            _log.error("the log %s cannot be written (%s); its lines are lost until it can", self.path, error.strerror)

"""The journal: every frame of one gateway, in kernel-owned memory at once and on disk soon.

Owns the numbers of frames, the thread that drains the tail into segments, what happens when the disk cannot follow, and what is
done at the start with what an earlier process left. Laws 2 and 3: to append costs a copy and never waits; a frame outlives the
process from then on, and a power cut once it is synced; what does not fit is an exact gap.
"""

import contextlib
import errno
import fcntl
import logging
import os
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns, time_ns

import attrs

from kgb_gateway.disk import Disk, Files, sync_directory
from kgb_gateway.record import PAYLOAD_CAP, Frame, Kind, encode, pieces
from kgb_gateway.segments import Name, SegmentReader, head_of, segments_in
from kgb_gateway.tail import RESERVE, Gap, Tail

SYNC_SECONDS = 0.05
"""Longest time between the append of a frame and the call that makes it outlive a power cut, on a disk that keeps up."""

RETRY_SECONDS = 1.0
"""How long the drain waits after the disk has refused it."""

STOP_SECONDS = 5.0
"""How long the end of the process waits for the disk. What is not on disk then is taken from the tail at the next start."""

SEGMENT_SIZE = 512 * 1024 * 1024
"""Bytes after which a new segment is begun."""

SEGMENT_SECONDS = 3600.0
"""Seconds after which a segment that holds anything is finished."""

BEGUN = ".begun"
"""What a file is called, behind its instance, until it is a segment."""

SMALL = 4096
"""Bytes of a body that are appended together with the head before them."""

_ASKING = (Kind.REQUEST_HEAD, Kind.REQUEST_BYTES)
_ANSWERING = (Kind.RESPONSE_HEAD, Kind.RESPONSE_BYTES)
_GAP = struct.Struct("<BQQ")

_log = logging.getLogger("kgb.journal")


@attrs.frozen
class JournalOptions:
    """``tail_size``: bytes of the ring. ``segment_size`` and ``segment_seconds``: when a segment is finished.
    ``sync_seconds``: see SYNC_SECONDS. ``watermark``: bytes that stay free on the disk. ``cap``: most bytes of all segments in
    the spool; 0 is no cap.
    """

    tail_size: int = 32 * 1024 * 1024
    segment_size: int = SEGMENT_SIZE
    segment_seconds: float = SEGMENT_SECONDS
    sync_seconds: float = SYNC_SECONDS
    watermark: int = 256 * 1024 * 1024
    cap: int = 20 * 1024**3


@attrs.define
class Counters:
    """What went wrong. ``gap_bytes`` of body are in ``gaps``; ``unsaid_bytes`` are missing without a gap that says which (no slot
    was free); ``failures`` of the disk; ``recovered`` frames of an earlier process."""

    gaps: int = 0
    gap_bytes: int = 0
    unsaid_bytes: int = 0
    failures: int = 0
    recovered: int = 0


class Journal:
    """The journal of one instance. ``append`` and ``body`` on the loop; one thread of its own drains."""

    def __init__(
        self, spool: Path, instance: str, tail: Tail, options: JournalOptions, version: str, files: Files | None = None
    ) -> None:
        self.spool = spool
        self.instance = instance
        self.counters = Counters()
        self.failing = ""
        self._tail = tail
        self._options = options
        self._version = version
        self._files: Files = files or Disk()
        self._fd = -1
        self._segment_size = 0
        self._segment_began = 0.0
        self._sequence_on_disk = 0
        self._wake = threading.Event()
        self._awake = self._wake.is_set
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._next_look = 0.0
        self._hurry = threading.Event()
        self._awaited: list[tuple[int, Callable[[str], None]]] = []
        self._awaited_lock = threading.Lock()

    # The loop's side.

    @property
    def spool_size(self) -> int:
        """Bytes on disk that nobody has packed yet, of all instances."""
        return _size_of(self.spool)

    def append(self, kind: Kind, exchange: bytes, payload: bytes) -> bool:
        """Append a frame that is no body: a head, an end, a note. False when even the reserve is full."""
        if not self._tail.append(kind, exchange, time_ns(), monotonic_ns(), payload, 0):
            return False
        if not self._awake():
            self._wake.set()
        return True

    def body(self, kind: Kind, exchange: bytes, offset: int, data: bytes) -> bool:
        """Append body bytes that stand at ``offset`` of their direction; False, and a gap, when there is no room."""
        tail = self._tail
        if tail.gaps and not self._may_go_on(exchange, kind):
            return self._miss(kind, exchange, offset, len(data))
        if len(data) > PAYLOAD_CAP:
            done = 0
            for piece in pieces(data):
                if not tail.append(kind, exchange, time_ns(), monotonic_ns(), piece, RESERVE):
                    return self._miss(kind, exchange, offset + done, len(data) - done)
                done += len(piece)
        elif not tail.append(kind, exchange, time_ns(), monotonic_ns(), data, RESERVE):
            return self._miss(kind, exchange, offset, len(data))
        if not self._awake():
            self._wake.set()
        return True

    def request(self, exchange: bytes, head: bytes, data: bytes) -> bool:
        """Append a request's head and its body; False when something of it has no room."""
        return self._start(_ASKING, exchange, head, data)

    def response(self, exchange: bytes, head: bytes, data: bytes) -> bool:
        """Append a response's head and the first bytes of its body; the same."""
        return self._start(_ANSWERING, exchange, head, data)

    def _start(self, kinds: tuple[Kind, Kind], exchange: bytes, head: bytes, data: bytes) -> bool:
        tail, now = self._tail, (time_ns(), monotonic_ns())
        if len(data) > SMALL or tail.gaps or not tail.append_two(kinds, exchange, *now, head, data, RESERVE):
            whole = self.append(kinds[0], exchange, head)
            return self.body(kinds[1], exchange, 0, data) and whole
        if not self._awake():
            self._wake.set()
        return True

    def _miss(self, kind: Kind, exchange: bytes, offset: int, length: int) -> bool:
        known = (exchange, kind) in self._tail.gaps
        if self._tail.gap(exchange, kind, offset, length):
            self.counters.gaps += not known
            self.counters.gap_bytes += length
        else:
            self.counters.unsaid_bytes += length
        return False

    def _may_go_on(self, exchange: bytes, kind: int) -> bool:
        """Whether this direction of the exchange has no gap, or one that a frame can tell of now."""
        found = self._tail.gaps.get((exchange, kind))
        if found is None:
            return True
        # While there is hardly room, a frame for this gap would only be followed by the next gap.
        return self.lag <= self._tail.size // 2 and self._tell(found[1])

    def _tell(self, gap: Gap) -> bool:
        if not self.append(Kind.GAP, gap.exchange, gap_payload(gap)):
            return False
        self._tail.gap_told(gap)
        return True

    def end(self, exchange: bytes, payload: bytes) -> bool:
        """The last frame of an exchange, behind the gaps that it has. False when even the reserve is full."""
        if self._tail.gaps:
            for _, gap in list(self._tail.gaps.values()):
                if gap.exchange == exchange:
                    self._tell(gap)
        return self.append(Kind.END, exchange, payload)

    def when_synced(self, told: Callable[[str], None]) -> None:
        """Call ``told`` once everything appended by now outlives a power cut, with ""; or with why it does not, as soon as the
        disk refuses. From the drain's thread, or at once. Whoever waits shares one sync with all others."""
        with self._awaited_lock:
            if self.sequence > self.synced:
                self._awaited.append((self.sequence, told))
                self._hurry.set()
                self._wake.set()
                return
        told("")

    def _tell_awaiting(self, why: str = "") -> None:
        with self._awaited_lock:
            done = [told for sequence, told in self._awaited if why or sequence <= self.synced]
            self._awaited = [each for each in self._awaited if not (why or each[0] <= self.synced)]
        for told in done:
            told(why)

    @property
    def lag(self) -> int:
        """Bytes that are in memory of the kernel and not yet synced to disk."""
        return self._tail.written - self._tail.drained

    @property
    def synced(self) -> int:
        """The number of the last frame that outlives a power cut."""
        return self._tail.on_disk

    @property
    def sequence(self) -> int:
        """The number of the last frame."""
        return self._tail.sequence

    # The thread's side.

    def start(self) -> None:
        """Take what an earlier process left, and begin to drain."""
        self._recover()
        self._thread = threading.Thread(target=self._run, name="kgb-journal", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Drain what is left, for up to ``seconds``; what stays in the tail is taken at the next start."""
        self._stopping.set()
        self._hurry.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                _log.error("the disk of %s hangs: %d bytes wait for the next start", self.spool, self.lag)
                return
        self._close_segment()
        self._tail.close(remove=self.lag == 0 and not self._tail.gaps)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._options.segment_seconds if self._fd < 0 else 60.0)
            self._wake.clear()
            if self._drain():
                self._tell_awaiting()
                self._hurry.wait(self._options.sync_seconds)
                self._hurry.clear()
            else:
                self._tell_awaiting(self.failing)
                self._stopping.wait(RETRY_SECONDS)
                self._wake.set()
        self._drain()
        self._tell_awaiting("the gateway stops")

    def _drain(self) -> bool:
        """Everything appended by now to disk, and synced. False when the disk refused."""
        tail = self._tail
        sequence, until = tail.mark
        if until == tail.drained:
            self._close_old()
            return True
        try:
            if self._full(until - tail.drained):
                return False
            fd = self._segment(tail.on_disk + 1)
            self._write(fd, tail.pending(until))
            self._files.sync(fd)
        except OSError as error:
            self._refused(error)
            return False
        self._segment_size += until - tail.drained
        tail.mark_drained(sequence, until)
        if self.failing:
            _log.warning("the journal writes to %s again; %d bytes are in gaps", self.spool, self.counters.gap_bytes)
            self.failing = ""
        if self._segment_size >= self._options.segment_size:
            self._close_segment()
        return True

    def _write(self, fd: int, buffers: list[memoryview]) -> None:
        while buffers:
            sent = self._files.writev(fd, buffers)
            if sent <= 0:
                raise OSError(errno.EIO, "nothing could be written")
            while buffers and sent >= len(buffers[0]):
                sent -= len(buffers.pop(0))
            if sent:
                buffers[0] = buffers[0][sent:]

    def _refused(self, error: OSError) -> None:
        """A write or a sync failed: what this segment holds of it is unknown, so it is begun again in another one."""
        self.counters.failures += 1
        if not self.failing:
            _log.error(
                "the journal cannot write to %s (%s); frames wait in memory, then are gaps", self.spool, error.strerror
            )
        self.failing = error.strerror or type(error).__name__
        self._close_segment()

    def _full(self, size: int) -> bool:
        """Whether the disk is too full, or the spool too large, for ``size`` more bytes."""
        why = ""
        if self._files.free(self.spool) - size < self._options.watermark:
            why = "the disk is nearly full"
        elif self._options.cap and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + RETRY_SECONDS
            if _size_of(self.spool) + size > self._options.cap:
                why = "the spool has reached its cap"
        if why and self.failing != why:
            _log.error("nothing more is recorded in %s: %s; what passes is counted as gaps", self.spool, why)
            self.failing = why
        return bool(why)

    def _segment(self, first: int) -> int:
        """The segment to write to, a new one beginning with frame ``first`` where there is none."""
        if self._fd >= 0:
            return self._fd
        begun = self.spool / f"{self.instance}{BEGUN}"
        fd = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._fd, self._segment_size, self._segment_began = fd, 0, time.monotonic()
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        name = self._unused(first)
        self._write(fd, [memoryview(head_of(name, self._version, time.time(), self._tail.salt))])
        # Only now, held and with its head, is it a segment: nobody can take it for one that was left.
        os.rename(begun, self.spool / str(name))
        sync_directory(self.spool)
        return fd

    def _unused(self, first: int) -> Name:
        """A name that no segment of an attempt that failed has."""
        for part in range(10_000):
            name = Name(self.instance, first, part)
            if not (self.spool / str(name)).exists():
                return name
        raise OSError(errno.EEXIST, "no name is left for a segment")

    def _close_segment(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def _close_old(self) -> None:
        if self._segment_size and time.monotonic() - self._segment_began >= self._options.segment_seconds:
            self._close_segment()
            self._segment_size = 0

    # The start.

    def _recover(self) -> None:
        """Take to disk what an earlier process of this instance left in the tail: each frame once, in order."""
        left, salt = self._tail.left(), self._tail.salt
        last = max(self._last_on_disk(), self._tail.on_disk)
        frames = [frame for frame in left.frames if frame.sequence > last]
        if frames or left.gaps:
            fd = self._segment(last + 1)
            data = b"".join(encode(frame, salt) for frame in frames)
            last = frames[-1].sequence if frames else last
            for number, gap in enumerate(left.gaps, 1):
                data += encode(Frame(last + number, Kind.GAP, gap.exchange, time_ns(), 0, gap_payload(gap)), salt)
            last += len(left.gaps)
            self._write(fd, [memoryview(data)])
            self._files.sync(fd)
            self._segment_size += len(data)
            self.counters.recovered = len(frames)
            _log.warning("%d frames and %d gaps of an earlier process are on disk now", len(frames), len(left.gaps))
        self._tail.clear(last)

    def _last_on_disk(self) -> int:
        """The number of the last whole frame in this instance's segments: they are read from the last one back."""
        for name in reversed(segments_in(self.spool, self.instance)):
            last = 0
            with SegmentReader(self.spool / str(name)) as reader:
                for frame in reader.frames(finished=True):
                    last = max(last, frame.sequence)
            if last:
                return last
        return 0


def gap_payload(gap: Gap) -> bytes:
    """What a frame says of ``gap``: the kind, where it begins, how long it is."""
    return _GAP.pack(gap.kind, gap.offset, gap.length)


def gap_of(frame: Frame) -> Gap:
    """The gap that a frame of kind GAP tells of."""
    return Gap(frame.exchange, *_GAP.unpack(frame.payload))


def _size_of(spool: Path) -> int:
    total = 0
    for name in segments_in(spool):
        with contextlib.suppress(OSError):
            total += (spool / str(name)).stat().st_size
    return total

"""The journal: every frame of one gateway, in kernel-owned memory at once and on disk soon.

Owns the numbers of frames, the thread that drains the tail into segments, what happens when the disk cannot follow, and what is
done at the start with what an earlier process left. Laws 2 and 3: to append costs a copy and never waits; a frame outlives the
process from then on, and a power cut once it is synced; what does not fit is an exact gap.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from time import monotonic_ns, time_ns

from kgb_gateway.disk import Files
from kgb_gateway.record import NO_EXCHANGE, PAYLOAD_CAP, Kind, pieces
from kgb_gateway.segments import segments_in
from kgb_gateway.spooling import JournalOptions as JournalOptions  # noqa: PLC0414 - from here everybody takes them
from kgb_gateway.spooling import Spooling, gap_payload, lost_payload
from kgb_gateway.spooling import gap_of as gap_of  # noqa: PLC0414
from kgb_gateway.tail import MISSING, RESERVE, Gap, Lost, Tail

RETRY_SECONDS = 1.0
"""How long the drain waits after the disk has refused it."""

STOP_SECONDS = 5.0
"""How long the end of the process waits for the disk. What is not on disk then is taken from the tail at the next start."""

SMALL = 4096
"""Bytes of a body that are appended together with the head before them."""

HURRY = 4 * 1024 * 1024
"""Bytes in memory from which on the drain does not wait for ``sync_seconds`` to pass: the ring would fill."""

OPEN_ROOM = 1024
"""Bytes of the ring that are kept free for each exchange that has begun: for its gaps and its end."""

_ASKING = (Kind.REQUEST_HEAD, Kind.REQUEST_BYTES)
_ANSWERING = (Kind.RESPONSE_HEAD, Kind.RESPONSE_BYTES)

_log = logging.getLogger("kgb.journal")


class Journal(Spooling):
    """The journal of one instance. ``append`` and ``body`` on the loop; one thread of its own drains."""

    def __init__(
        self, spool: Path, instance: str, tail: Tail, options: JournalOptions, version: str, files: Files | None = None
    ) -> None:
        super().__init__(spool, instance, tail, options, version, files)
        self.failing = ""
        self._open = 0
        self._keep = RESERVE
        self._slotless: dict[tuple[bytes, int], Gap] = {}
        self._wake = threading.Event()
        self._awake = self._wake.is_set
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._next_look = 0.0
        self._hurry = threading.Event()
        self._hurried = self._hurry.is_set
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

    def begin(self, exchange: bytes, head: bytes) -> bool:
        """Append the first frame of an exchange, which ``end`` will end. False where there is no room for the two and what may have to be told
        between them: then nothing of it is recorded, it counts as lost, and its bytes go to ``lose``."""
        tail = self._tail
        if (tail.lost is None or self.tell_lost()) and tail.append(
            Kind.REQUEST_HEAD, exchange, time_ns(), monotonic_ns(), head, self._keep + OPEN_ROOM
        ):
            self._begun()
            return True
        self.counters.lost += 1
        tail.lose((tail.lost or Lost()).more(1, 0, 0, time_ns()))
        return False

    def _begun(self) -> None:
        self._open += 1
        self._keep += OPEN_ROOM
        if not self._awake():
            self._wake.set()

    def lose(self, up: int, down: int) -> None:
        """Bytes of a lost exchange's bodies that have passed."""
        self.counters.lost_bytes += up + down
        self._tail.lose((self._tail.lost or Lost()).more(0, up, down, time_ns()))

    def tell_lost(self) -> bool:
        """On the loop, like every append: a frame tells of what was lost, when the ring has half emptied: before that, more would be lost at once."""
        lost = self._tail.lost
        if lost is None:
            return True
        if self.lag > self._tail.size // 2 or not self.append(Kind.NOTE, NO_EXCHANGE, lost_payload(lost)):
            return False
        self._tail.lose(None)
        return True

    def head(self, exchange: bytes, head: bytes) -> bool:
        """Append the head of a response; False, and a gap, when there is no room."""
        if not self._tail.append(Kind.RESPONSE_HEAD, exchange, time_ns(), monotonic_ns(), head, self._keep):
            return self._miss(Kind.RESPONSE_HEAD, exchange, 0, len(head))
        if not self._awake():
            self._wake.set()
        return True

    def body(self, kind: Kind, exchange: bytes, offset: int, data: bytes) -> bool:
        """Append body bytes that stand at ``offset`` of their direction; False, and a gap, when there is no room."""
        tail = self._tail
        if (tail.gaps or self._slotless) and not self._may_go_on(exchange, kind):
            return self._miss(kind, exchange, offset, len(data))
        if len(data) > PAYLOAD_CAP:
            done = 0
            for piece in pieces(data):
                if not tail.append(kind, exchange, time_ns(), monotonic_ns(), piece, self._keep):
                    return self._miss(kind, exchange, offset + done, len(data) - done)
                done += len(piece)
        elif not tail.append(kind, exchange, time_ns(), monotonic_ns(), data, self._keep):
            return self._miss(kind, exchange, offset, len(data))
        if not self._awake():
            self._wake.set()
        if len(data) > SMALL and tail.written - tail.drained > HURRY and not self._hurried():
            self._hurry.set()
        return True

    def request(self, exchange: bytes, head: bytes, data: bytes) -> bool | None:
        """``begin``, and the request's body. False when something of the body has no room, None when all of it is lost."""
        tail = self._tail
        if len(data) <= SMALL and not tail.gaps and tail.lost is None:
            keep = self._keep + OPEN_ROOM
            if tail.append_two(_ASKING, exchange, time_ns(), monotonic_ns(), head, data, keep):
                self._begun()
                return True
        if self.begin(exchange, head):
            return self.body(Kind.REQUEST_BYTES, exchange, 0, data)
        self.lose(len(data), 0)
        return None

    def response(self, exchange: bytes, head: bytes, data: bytes) -> bool:
        """Append a response's head and the first bytes of its body; False when something of them has no room."""
        tail = self._tail
        small = len(data) <= SMALL and not tail.gaps
        if small and tail.append_two(_ANSWERING, exchange, time_ns(), monotonic_ns(), head, data, self._keep):
            if not self._awake():
                self._wake.set()
            return True
        whole = self.head(exchange, head)
        return self.body(Kind.RESPONSE_BYTES, exchange, 0, data) and whole

    def _miss(self, kind: Kind, exchange: bytes, offset: int, length: int) -> bool:
        key = (exchange, kind)
        gap = self._slotless.get(key)
        if gap is not None:
            gap.length = offset + length - gap.offset
            self.counters.unsaid_bytes += length
            return False
        known = key in self._tail.gaps
        if self._tail.gap(exchange, kind, offset, length):
            self.counters.gaps += not known
            self.counters.gap_bytes += length
        else:
            self._slotless[key] = Gap(exchange, kind, offset, length)
            self.counters.unsaid_bytes += length
        return False

    def _may_go_on(self, exchange: bytes, kind: int) -> bool:
        """Whether this direction of the exchange has no gap, or one that a frame can tell of now."""
        if (exchange, kind) in self._slotless:
            return False  # no slot was free for its gap: it lasts until the end, which tells of it
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
        if self._open:
            self._open -= 1
            self._keep -= OPEN_ROOM
        tail = self._tail
        if tail.gaps or self._slotless:
            for kind in MISSING:
                if (found := tail.gaps.get((exchange, kind))) is not None:
                    self._tell(found[1])
                elif (gap := self._slotless.pop((exchange, kind), None)) is not None:
                    self._say(gap)
        ended = self.append(Kind.END, exchange, payload)
        if tail.lost is not None:
            self.tell_lost()
        return ended

    def _say(self, gap: Gap) -> None:
        if self.append(Kind.GAP, gap.exchange, gap_payload(gap)):
            self.counters.unsaid_bytes -= gap.length
            self.counters.gap_bytes += gap.length
            self.counters.gaps += 1

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
        """Drain what is left, for up to ``seconds``; what stays in the tail is taken at the next start. From any thread: it appends nothing."""
        self._stopping.set()
        self._hurry.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                _log.error("the disk of %s hangs: %d bytes wait for the next start", self.spool, self.lag)
                return
        self._close_segment()
        self._tail.close(remove=self.lag == 0 and not self._tail.gaps and self._tail.lost is None)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(self._options.segment_seconds if self._fd < 0 else 60.0)
            self._wake.clear()
            if self._drain():
                self._tell_awaiting()
                if self.lag < HURRY:
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

    def _close_old(self) -> None:
        if self._segment_size and time.monotonic() - self._segment_began >= self._options.segment_seconds:
            self._close_segment()
            self._segment_size = 0


def _size_of(spool: Path) -> int:
    total = 0
    for name in segments_in(spool):
        with contextlib.suppress(OSError):
            total += (spool / str(name)).stat().st_size
    return total

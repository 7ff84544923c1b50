"""The disk's side of the journal: frames come into segments, and what an earlier process left is taken over.

Owns the segment that is being written: how it is named, begun, held, written and ended. When to write, and what happens when the disk
refuses, is the journal's.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from time import time_ns

import attrs

from kgb_gateway.disk import BLOCK, DIRECT_LEAST, Disk, Files, sync_directory
from kgb_gateway.record import NO_EXCHANGE, Frame, Kind, encode
from kgb_gateway.segments import Name, SegmentReader, head_of, segments_in
from kgb_gateway.tail import Gap, Lost, Tail

SYNC_SECONDS = 0.05
"""Longest time between the append of a frame and the call that makes it outlive a power cut, on a disk that keeps up."""

SEGMENT_SIZE = 512 * 1024 * 1024
"""Bytes after which a new segment is begun."""

SEGMENT_SECONDS = 3600.0
"""Seconds after which a segment that holds anything is finished."""

BEGUN = ".begun"
"""What a file is called, behind its instance, until it is a segment."""

SLICE = 4 * 1024 * 1024
"""Most bytes that are written by one call. A thread has to ask for the interpreter after each."""

SCRAP = DIRECT_LEAST // 2

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
    """What went wrong. ``gap_bytes`` of body are in ``gaps``; ``unsaid_bytes`` are missing without a slot that says which (none was
    free): the end of their exchange tells of them, a killed process does not. ``lost`` exchanges, and ``lost_bytes`` of body, are not on record
    at all; ``failures`` of the disk; ``recovered`` frames of an earlier process."""

    gaps: int = 0
    gap_bytes: int = 0
    unsaid_bytes: int = 0
    lost: int = 0
    lost_bytes: int = 0
    failures: int = 0
    recovered: int = 0


class Spooling:
    """The segments of one instance, as they are written."""

    def __init__(
        self, spool: Path, instance: str, tail: Tail, options: JournalOptions, version: str, files: Files | None = None
    ) -> None:
        self.spool = spool
        self.instance = instance
        self.counters = Counters()
        self._tail = tail
        self._options = options
        self._version = version
        self._files: Files = files or Disk()
        self._fd = -1
        self._segment_size = 0
        self._segment_began = 0.0
        self._at = 0  # where in the file of the segment the next byte goes

    def _write(self, fd: int, buffers: list[memoryview]) -> None:
        """Write ``buffers``, the ring's or little, at the end of the segment."""
        for each in buffers:
            for piece in self._cut(each):
                left = piece
                while len(left):
                    sent = self._files.writev(fd, [left])
                    if sent <= 0:
                        raise OSError(errno.EIO, "nothing could be written")
                    self._at += sent
                    left = left[sent:]

    def _cut(self, buffer: memoryview) -> Iterator[memoryview]:
        """``buffer`` in slices; of much of it, what fills whole blocks of the file in slices of its own: a disk takes those from where
        they are (``Disk.writev``)."""
        start = 0
        if len(buffer) >= 2 * DIRECT_LEAST:
            start, end = -self._at % BLOCK, len(buffer)
            if start:
                yield buffer[:start]
            whole = start + (end - start) // BLOCK * BLOCK
            for at in range(start, whole, SLICE):
                yield buffer[at : min(at + SLICE, whole)]
            start = whole
        yield buffer[start:]

    def _segment(self, first: int) -> int:
        """The segment to write to, a new one beginning with frame ``first`` where there is none."""
        if self._fd >= 0:
            return self._fd
        begun = self.spool / f"{self.instance}{BEGUN}"
        fd = os.open(begun, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._fd, self._segment_size, self._segment_began, self._at = fd, 0, time.monotonic(), 0
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        name = self._unused(first)
        # As long as it takes for blocks of the ring to be blocks of the file.
        head = head_of(name, self._version, time.time(), self._tail.salt, self._tail.drained % BLOCK)
        self._write(fd, [memoryview(head)])
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

    # The start.

    def _recover(self) -> None:
        """Take to disk what an earlier process of this instance left in the tail: each frame once, in order."""
        left, salt = self._tail.left(), self._tail.salt
        last = max(self._last_on_disk(), self._tail.on_disk)
        frames = [frame for frame in left.frames if frame.sequence > last]
        lost = left.lost
        if lost and frames and frames[-1].payload == lost_payload(lost):
            lost = None  # told already, and killed before that could be noted
        if frames or left.gaps or lost:
            fd = self._segment(last + 1)
            data = b"".join(encode(frame, salt) for frame in frames)
            last = frames[-1].sequence if frames else last
            for number, gap in enumerate(left.gaps, 1):
                data += encode(Frame(last + number, Kind.GAP, gap.exchange, time_ns(), 0, gap_payload(gap)), salt)
            last += len(left.gaps)
            if lost:
                last += 1
                data += encode(Frame(last, Kind.NOTE, NO_EXCHANGE, time_ns(), 0, lost_payload(lost)), salt)
            # In pieces that go through the cache: these are no blocks of the ring.
            self._write(fd, [memoryview(data)[at : at + SCRAP] for at in range(0, len(data), SCRAP)])
            self._files.sync(fd)
            self._segment_size += len(data)
            self.counters.recovered = len(frames)
            _log.warning("%d frames and %d gaps of an earlier process are on disk now", len(frames), len(left.gaps))
            self._close_segment()  # the ring's blocks are not its blocks any more
        self._tail.clear(last)

    def _last_on_disk(self) -> int:
        """The number of the last whole frame in this instance's segments: they are read from the last one back, and each near its end."""
        for name in reversed(segments_in(self.spool, self.instance)):
            last = 0
            with SegmentReader(self.spool / str(name)) as reader:
                reader.seek_end()
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


_LOST = b'{"event":"lost"'


def lost_payload(lost: Lost) -> bytes:
    """What a note says of exchanges that are not on record: how many, bytes of their bodies, and when (seconds since the epoch)."""
    said = {
        "event": "lost",
        "exchanges": lost.exchanges,
        "request_bytes": lost.up,
        "response_bytes": lost.down,
        "first": lost.first / 1e9,
        "last": lost.last / 1e9,
    }
    return json.dumps(said, separators=(",", ":")).encode()


def lost_of(frame: Frame) -> Lost | None:
    """What a note says of exchanges that are not on record; None for any other frame."""
    if frame.kind != Kind.NOTE or frame.exchange != NO_EXCHANGE or not frame.payload.startswith(_LOST):
        return None
    said = json.loads(frame.payload)
    first, last = int(said["first"] * 1e9), int(said["last"] * 1e9)
    return Lost(said["exchanges"], said["request_bytes"], said["response_bytes"], first, last)

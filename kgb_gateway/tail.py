"""The live tail: frames in memory that the kernel owns, from the moment they are appended.

A ring in a file that is mapped into memory, on tmpfs where there is one. To append is to copy: no system call, no disk, and
what was copied outlives the process (kill -9), because the kernel owns the pages. A thread drains the ring to disk
(``journal.py``). Owns the layout of the file, its lock, and what can be read out of a tail whose process is gone.

The file is allocated in full when it is made: a hole in a mapped file would kill the process by a signal on a full disk.

Layout: one page of state, the slots of gaps, the ring. The state says up to which frame the ring is on disk. It stands there
twice, written in turn, each copy with a checksum: one of them is whole whenever the process dies.
"""

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from kgb_gateway.record import HEADER, NO_EXCHANGE, Damage, Frame, Kind, crc32, decode, pack_header
from kgb_gateway.record import MAGIC as FRAME

MAGIC = b"KGBTAIL1"
PAGE = 4096
SLOTS = 8192
"""Gaps that can be remembered at once, one for each direction of an exchange."""

RESERVE = 64 * 1024
"""Bytes of the ring that only heads, ends and gaps may take, so that what is missing can be said."""

LEAST = 1024 * 1024
"""Smallest ring, in bytes: one frame of the longest payload and the reserve have to fit."""

_FIXED = struct.Struct("<8sQII")  # magic, bytes of the ring, slots, salt of the checksums
_STATE = struct.Struct("<QQI")  # frames that are on disk, bytes that are; CRC-32
_STATES = (64, 128)
_LOST = struct.Struct("<QQQQQQI")  # how often this was written, exchanges, bytes up and down, first and last; CRC-32
_LOSTS = (256, 320)
_SLOT = struct.Struct("<16sB7xQQI4x")  # exchange, kind, offset, length; CRC-32
_HEADER = HEADER.size
_SMALL = 8192  # bytes that are quicker joined than copied twice
_POPULATE = mmap.MAP_POPULATE if sys.platform == "linux" else 0
MISSING = (Kind.RESPONSE_HEAD, Kind.REQUEST_BYTES, Kind.RESPONSE_BYTES, Kind.TO_UPSTREAM, Kind.TO_CALLER)
"""What of an exchange may be a gap."""


class TailError(Exception):
    """The tail cannot be used; the message says which file and why."""


@attrs.define
class Gap:
    """Body bytes that are not on record: ``length`` of them from ``offset`` on, of the direction that ``kind`` says."""

    exchange: bytes
    kind: int
    offset: int
    length: int


@attrs.frozen
class Lost:
    """Exchanges of which nothing is on record, not even that they were: how many began, bytes of body that went ``up`` and ``down``, and
    between which times (nanoseconds since the epoch)."""

    exchanges: int = 0
    up: int = 0
    down: int = 0
    first: int = 0
    last: int = 0

    def more(self, exchanges: int, up: int, down: int, now: int) -> "Lost":
        """With these."""
        return Lost(self.exchanges + exchanges, self.up + up, self.down + down, self.first or now, now)


SHARED_MEMORY = Path("/dev/shm")
"""Where tails are kept, since it is memory and outlives a process; without it they are in the data directory."""


@attrs.frozen
class Left:
    """What a tail holds that is not on disk: frames in order, and gaps and lost exchanges that no frame tells of yet."""

    frames: tuple[Frame, ...]
    gaps: tuple[Gap, ...]
    lost: Lost | None = None


class Tail:
    """One instance's tail. The loop appends, one thread drains; nobody else touches it.

    ``written`` and ``drained`` count bytes since the tail was made; ``sequence`` is the last frame's, ``on_disk`` the
    last one's that is drained; ``mark`` is ``sequence`` and ``written`` as of the same append.
    """

    def __init__(self, path: Path, fd: int, memory: mmap.mmap) -> None:
        self.path = path
        self._fd = fd
        self._memory = memory
        magic, size, slots, self.salt = _FIXED.unpack_from(memory, 0)
        start = PAGE + slots * _SLOT.size
        if magic != MAGIC or not 0 < slots <= SLOTS or len(memory) != start + size:
            raise TailError(f"{path} is no tail of this version")
        self._slots = slots
        self._free = list(range(slots))[::-1]
        self._start = start
        self.size = size
        self._turn = 0
        self.on_disk, self.drained = self._state()
        self.sequence, self.written = self.on_disk, self.drained
        self.mark = (self.sequence, self.written)
        self.gaps: dict[tuple[bytes, int], tuple[int, Gap]] = {}
        self.lost: Lost | None = None
        self._losts = 0

    @classmethod
    def open(cls, path: Path, size: int, wait: float = 0.0) -> "Tail":
        """The tail at ``path``, locked; made with a ring of ``size`` bytes where there is none. TailError when it is held by
        another process (for longer than ``wait`` seconds), belongs to somebody else, or there is no room for it."""
        if size < LEAST:
            raise TailError(f"a tail of {size} bytes is too small: {LEAST} at least")
        fd = _held(path, wait)
        try:
            _check_owner(fd, path)
            _allocate(fd, path, size)
            # Mapped in full at once: a page that is touched for the first time costs as much as several frames.
            return cls(path, fd, mmap.mmap(fd, 0, flags=mmap.MAP_SHARED | _POPULATE))
        except BaseException:
            os.close(fd)
            raise

    def append(  # HOT PATH: ``record.header_of`` in place
        self, kind: int, exchange: bytes, wall: int, monotonic: int, payload: bytes | memoryview, keep: int
    ) -> bool:
        """Append a frame unless that leaves fewer than ``keep`` bytes free; whether there was room. Loop only."""
        written, sequence, length = self.written, self.sequence + 1, len(payload)
        end = written + _HEADER + length
        if end + keep > self.drained + self.size:
            return False
        head = pack_header(FRAME, length, sequence, kind, 0, 0, exchange, wall, monotonic)
        head += crc32(payload, crc32(head, self.salt)).to_bytes(4, "little")
        at = written % self.size
        if length <= _SMALL and at + _HEADER + length <= self.size:
            at += self._start
            self._memory[at : at + _HEADER + length] = head + payload
        elif at + _HEADER + length <= self.size:
            at += self._start
            self._memory[at + _HEADER : at + _HEADER + length] = payload
            self._memory[at : at + _HEADER] = head
        else:
            self._copy(written + _HEADER, payload)
            self._copy(written, head)
        # Killed in the middle of that, a frame fails its checksum: it is none, and its bytes have not left.
        self.written, self.sequence = end, sequence
        self.mark = (sequence, end)  # in one step: the thread must never see one without the other
        return True

    def append_two(
        self, kinds: tuple[int, int], exchange: bytes, wall: int, monotonic: int, first: bytes, second: bytes, keep: int
    ) -> bool:
        """Append two frames of one moment, or neither: what is small is quicker copied together."""
        written, sequence, length, more = self.written, self.sequence, len(first), len(second)
        size = 2 * _HEADER + length + more
        if written + size + keep > self.drained + self.size:
            return False
        salt, (kind, other) = self.salt, kinds
        head = pack_header(FRAME, length, sequence + 1, kind, 0, 0, exchange, wall, monotonic)
        next_head = pack_header(FRAME, more, sequence + 2, other, 0, 0, exchange, wall, monotonic)
        check = crc32(first, crc32(head, salt)).to_bytes(4, "little")
        next_check = crc32(second, crc32(next_head, salt)).to_bytes(4, "little")
        data = b"".join((head, check, first, next_head, next_check, second))
        at = written % self.size
        if at + size <= self.size:
            at += self._start
            self._memory[at : at + size] = data
        else:
            self._copy(written, data)
        self.written, self.sequence = written, sequence = written + size, sequence + 2
        self.mark = (sequence, written)
        return True

    def _copy(self, position: int, data: bytes | memoryview) -> None:
        at = position % self.size
        end = at + len(data)
        start = self._start
        if end <= self.size:
            self._memory[start + at : start + end] = data
        else:
            room = self.size - at
            self._memory[start + at : start + self.size] = data[:room]
            self._memory[start : start + len(data) - room] = data[room:]

    def pending(self, until: int) -> list[memoryview]:
        """What is not drained, up to position ``until``: one piece, or two where the ring wraps."""
        view = memoryview(self._memory)
        at, end = self.drained % self.size, until - self.drained
        first = min(end, self.size - at)
        pieces = [view[self._start + at : self._start + at + first]]
        if end > first:
            pieces.append(view[self._start : self._start + end - first])
        return [piece for piece in pieces if len(piece)]

    def mark_drained(self, sequence: int, position: int) -> None:
        """Everything up to ``sequence``, which ends at ``position``, is on disk and synced."""
        body = struct.pack("<QQ", sequence, position)
        _STATE.pack_into(self._memory, _STATES[self._turn], sequence, position, crc32(body))
        self._turn ^= 1
        self.on_disk, self.drained = sequence, position

    def _state(self) -> tuple[int, int]:
        states = [(0, 0)]
        for at in _STATES:
            sequence, position, checksum = _STATE.unpack_from(self._memory, at)
            if crc32(struct.pack("<QQ", sequence, position)) == checksum:
                states.append((sequence, position))
        return max(states)

    # Gaps: in slots of their own, so that they are known after kill -9 too.

    def gap(self, exchange: bytes, kind: int, offset: int, length: int) -> bool:
        """Remember that ``length`` bytes from ``offset`` on are not on record. False when no slot is free."""
        found = self.gaps.get((exchange, kind))
        if found is None:
            if not self._free:
                return False
            found = self.gaps[exchange, kind] = (self._free.pop(), Gap(exchange, kind, offset, 0))
        slot, gap = found
        gap.length = offset + length - gap.offset
        self._write_slot(slot, gap)
        return True

    def gap_told(self, gap: Gap) -> None:
        """A frame tells of ``gap`` now."""
        slot, _ = self.gaps.pop((gap.exchange, gap.kind))
        self._memory[PAGE + slot * _SLOT.size : PAGE + (slot + 1) * _SLOT.size] = bytes(_SLOT.size)
        self._free.append(slot)

    # Lost exchanges: in the state.

    def lose(self, lost: Lost | None) -> None:
        """Remember ``lost``; None when a frame tells of it."""
        self.lost, said = lost, lost or Lost()
        self._losts += 1
        fields = (self._losts, said.exchanges, said.up, said.down, said.first, said.last)
        _LOST.pack_into(self._memory, _LOSTS[self._losts % 2], *fields, crc32(struct.pack("<6Q", *fields)))

    def _left_lost(self) -> Lost | None:
        found = [_LOST.unpack_from(self._memory, at) for at in _LOSTS]
        whole = [fields[:-1] for fields in found if crc32(struct.pack("<6Q", *fields[:-1])) == fields[-1]]
        said = Lost(*max(whole)[1:]) if whole else Lost()
        return None if said == Lost() else said

    def _write_slot(self, slot: int, gap: Gap) -> None:
        checksum = crc32(struct.pack("<16sBQQ", gap.exchange, gap.kind, gap.offset, gap.length))
        at = PAGE + slot * _SLOT.size
        _SLOT.pack_into(self._memory, at, gap.exchange, gap.kind, gap.offset, gap.length, checksum)

    # After its process has gone.

    def left(self) -> Left:
        """What an earlier process left behind that is not on disk. Called before anything is appended.

        The frames end where the next number does not stand: behind them are older ones, nothing, or one that was being
        written when the process died.
        """
        at = self.drained % self.size
        ring = self._memory[self._start : self._start + self.size]
        line, frames, position = ring[at:] + ring[:at], list[Frame](), 0
        with contextlib.suppress(Damage):
            while (found := decode(line, position, self.salt)) is not None:
                if found[0].sequence != self.on_disk + len(frames) + 1:
                    break
                frames.append(found[0])
                position = found[1]
        return Left(tuple(frames), tuple(self._left_gaps()), self._left_lost())

    def _left_gaps(self) -> Iterator[Gap]:
        if self._memory[PAGE : self._start] == bytes(self._start - PAGE):
            return
        for slot in range(self._slots):
            exchange, kind, offset, length, checksum = _SLOT.unpack_from(self._memory, PAGE + slot * _SLOT.size)
            whole = crc32(struct.pack("<16sBQQ", exchange, kind, offset, length)) == checksum
            if exchange != NO_EXCHANGE and kind in MISSING and whole:
                yield Gap(exchange, kind, offset, length)

    def clear(self, sequence: int) -> None:
        """Begin anew behind ``sequence``: what was left has been taken to disk."""
        self._memory[PAGE : self._start] = bytes(self._start - PAGE)
        self.gaps.clear()
        self._free = list(range(self._slots))[::-1]
        self.lost = None
        self._memory[_LOSTS[0] : _LOSTS[1] + _LOST.size] = bytes(_LOSTS[1] + _LOST.size - _LOSTS[0])
        self.mark_drained(sequence, self.written)
        self.mark_drained(sequence, self.written)
        self.sequence, self.mark = sequence, (sequence, self.written)
        # Nothing that stands in the ring may be taken for the frame that comes next.
        self._copy(self.written, bytes(HEADER.size))

    def close(self, *, remove: bool = False) -> None:
        """Let go of the file; ``remove`` where everything is on disk."""
        if remove:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        with contextlib.suppress(BufferError):
            self._memory.close()
        os.close(self._fd)


def _held(path: Path, wait: float) -> int:
    """The file at ``path``, made where there is none, and locked."""
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise TailError(f"{path} cannot be opened: {error.strerror}") from None
        try:
            _lock(fd, path, wait)
        except BaseException:
            os.close(fd)
            raise
        if _is_there(fd, path):
            return fd
        os.close(fd)  # whoever held it took it away in the end: there is a new one to be made


def _lock(fd: int, path: Path, wait: float) -> None:
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() < until:
                time.sleep(0.01)
                continue
            raise TailError(f"{path} is in use by another gateway: give each an instance name of its own") from None
        return


def _is_there(fd: int, path: Path) -> bool:
    """Whether the locked file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _check_owner(fd: int, path: Path) -> None:
    status = os.fstat(fd)
    if status.st_uid != os.geteuid():
        raise TailError(f"{path} belongs to another user")
    os.fchmod(fd, 0o600)


def _allocate(fd: int, path: Path, size: int) -> None:
    """Make the file, unless it is whole already."""
    if os.fstat(fd).st_size > PAGE + SLOTS * _SLOT.size:
        return
    total = PAGE + SLOTS * _SLOT.size + size
    try:
        if sys.platform == "darwin":  # which has no posix_fallocate
            os.pwrite(fd, bytes(total), 0)
        else:
            os.posix_fallocate(fd, 0, total)
    except OSError as error:
        os.ftruncate(fd, 0)
        why = "no room" if error.errno == errno.ENOSPC else error.strerror
        raise TailError(f"{path}: {why} for {total} bytes") from None
    os.pwrite(fd, _FIXED.pack(MAGIC, size, SLOTS, int.from_bytes(os.urandom(4))), 0)


def tail_path(home: Path, instance: str) -> Path:
    """Where the tail of ``instance`` on the data directory ``home`` is."""
    name = hashlib.blake2b(os.fsencode(home), digest_size=8).hexdigest()
    if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return SHARED_MEMORY / f"kgb-{os.geteuid()}-{name}-{instance}.tail"
    return home / f"{instance}.tail"


def tails_of(home: Path) -> dict[str, Path]:
    """The tails that instances on the data directory ``home`` have, or have left, by instance."""
    found = {}
    for directory, start in ((SHARED_MEMORY, tail_path(home, "").name.removesuffix(".tail")), (home, "")):
        if directory.is_dir():
            for path in directory.glob(f"{start}*.tail"):
                found[path.name.removeprefix(start).removesuffix(".tail")] = path
    return {name: path for name, path in found.items() if tail_path(home, name) == path}

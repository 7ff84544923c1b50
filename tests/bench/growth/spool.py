"""``kgb`` over a spool as large as asked: ``python -m tests.bench.growth.spool HOME COMMAND ...``.

The spool is real to whoever looks at it: segments of full size that end where they say, frames whose numbers and checksums are right,
and a store that has taken them in. Their payloads are zeros that no disk holds. One process (``main``) holds the oldest segment, so
that the librarian, who packs in order, packs none and the spool stays as large as it is.
"""

import fcntl
import os
import sys
import time
from pathlib import Path

from kgb_gateway.__main__ import main as kgb
from kgb_gateway.dewey.entry import Position
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.sqlite import SqliteWriter
from kgb_gateway.dewey.transcripts.view import view
from kgb_gateway.record import HEADER, NO_EXCHANGE, PAYLOAD_CAP, Kind, header_of
from kgb_gateway.secret import private_directory
from kgb_gateway.segments import READ_SIZE, Name, head_of, segments_in
from kgb_gateway.spooling import SEGMENT_SIZE

INSTANCE = "a"
"""The gateway's own name: what it left itself is what a start reads."""

SALT = 1


def fill(home: Path, size: int, segment_size: int = SEGMENT_SIZE) -> int:
    """A spool in ``home`` of ``size`` bytes at least, and a store that has taken it in; how many segments.

    The last one, which a start reads, is full of frames; of the others nobody reads more than the name, the size and the head."""
    layout = Layout(home)
    spool = private_directory(layout.spool)
    count = -(-size // segment_size)
    sequence = 0
    position = Position(INSTANCE)
    for number in range(count):
        name = Name(INSTANCE, sequence + 1)
        path = spool / str(name)
        frames = segment_size // (HEADER.size + PAYLOAD_CAP) if number == count - 1 else 1
        end = _segment(path, name, sequence, frames)
        sequence += frames
        os.truncate(path, end if number == count - 1 else segment_size)
        position = Position(INSTANCE, str(name), end, sequence)
    store = SqliteWriter(layout.store, view)
    if count:
        with store.transaction():
            store.set_position(position)
    store.close()
    return count


def _segment(path: Path, name: Name, sequence: int, frames: int) -> int:
    """Write the head and so many frames of zeros; where they end."""
    zeros = bytes(PAYLOAD_CAP)
    head = head_of(name, "bench", time.time(), SALT)
    with path.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        at = file.write(head)
        for number in range(1, frames + 1):
            file.seek(at)
            file.write(header_of(sequence + number, Kind.NOTE, NO_EXCHANGE, 0, 0, zeros, SALT))
            at += HEADER.size + PAYLOAD_CAP
        file.truncate(at)
    with path.open(
        "rb"
    ) as file:  # into the system's cache, where what a gateway has just written is when it starts again
        while file.read(READ_SIZE):
            pass
    return at


def hold(home: Path) -> int | None:
    """Hold the oldest segment as a writer does, for as long as this process lives; None where there is none."""
    names = segments_in(home / "spool", INSTANCE)
    if not names:
        return None
    fd = os.open(home / "spool" / str(names[0]), os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


if __name__ == "__main__":
    hold(Path(sys.argv[1]))
    sys.exit(kgb(sys.argv[2:]))

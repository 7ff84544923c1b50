"""What a gateway that has ended has on record: it counts, and judges nothing."""

import itertools
import json
import math
from pathlib import Path

import attrs

from kgb_gateway.dewey.entry import Position
from kgb_gateway.dewey.spool import InstanceReader, Layout
from kgb_gateway.journal import gap_of
from kgb_gateway.record import Kind
from kgb_gateway.spooling import lost_of


@attrs.frozen
class Recorded:
    """What a spool says: ``gap_bytes`` that are missing, body bytes ``journalled`` and, by the ends of exchanges and the notes of lost ones,
    ``relayed``."""

    gap_bytes: int = 0
    journalled: int = 0
    relayed: int = 0
    unended: int = 0
    faults: int = 0

    @classmethod
    def of(cls, home: Path) -> "Recorded":
        """Read from the segments in ``home``, packed or not, whose gateway has ended."""
        gap_bytes = journalled = relayed = 0
        running = set[bytes]()
        layout = Layout(home)
        readers = [InstanceReader(layout, Position(instance)) for instance in layout.instances()]
        for found in itertools.chain.from_iterable(reader.frames() for reader in readers):
            frame = found.frame
            if (lost := lost_of(frame)) is not None:
                gap_bytes, relayed = gap_bytes + lost.up + lost.down, relayed + lost.up + lost.down
            elif frame.kind in (Kind.REQUEST_BYTES, Kind.RESPONSE_BYTES):
                journalled += len(frame.payload)
            elif frame.kind == Kind.REQUEST_HEAD:
                running.add(frame.exchange)
            elif frame.kind == Kind.GAP:
                gap = gap_of(frame)
                gap_bytes += gap.length if gap.kind in (Kind.REQUEST_BYTES, Kind.RESPONSE_BYTES) else 0
            elif frame.kind == Kind.END:
                said = json.loads(frame.payload)
                relayed += said["request_size"] + said["response_size"]
                running.discard(frame.exchange)
        return cls(gap_bytes, journalled, relayed, len(running), sum(len(reader.faults) for reader in readers))

    @property
    def missing(self) -> float:
        """Bytes, and other things, of which there should be none; infinite when nothing is there at all."""
        if not self.relayed:
            return math.inf
        return abs(self.relayed - self.journalled) + self.gap_bytes + self.unended + self.faults

    @property
    def untold(self) -> int:
        """Bytes that are neither there nor in a gap, or are there twice."""
        return abs(self.relayed - self.journalled - self.gap_bytes)

    def __str__(self) -> str:
        if not self.missing:
            return "on record: all of it"
        odd = "".join(
            f", {count:,} {what}"
            for count, what in (
                (self.untold, "bytes not told"),
                (self.unended, "without an end"),
                (self.faults, "faults"),
            )
            if count
        )
        return f"in gaps: {self.gap_bytes / max(1, self.relayed):.1%} of {self.relayed:,} bytes{odd}"

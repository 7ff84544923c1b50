"""What a record says, held against what passed: exchange by exchange, in the spool and in the access log of a gateway that has ended.

It reads and judges; a record may lack what it says it lacks, and nothing else.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import attrs

from kgb_gateway.dewey.adoption import adopt
from kgb_gateway.dewey.entry import Position
from kgb_gateway.dewey.spool import InstanceReader, Layout
from kgb_gateway.journal import gap_of
from kgb_gateway.record import NO_EXCHANGE, Frame, Kind
from kgb_gateway.said import key_of
from kgb_gateway.spooling import lost_of

_LOGGED = ("bytes_in", "bytes_out")
_BODIES = {Kind.REQUEST_BYTES: "request_size", Kind.RESPONSE_BYTES: "response_size"}


@attrs.define
class _Told:
    """What is told of one exchange: its bytes and gaps by direction, and its sizes where it has an end."""

    known: dict[str, int] = attrs.Factory(lambda: dict.fromkeys(_BODIES.values(), 0))
    sizes: dict[str, int] | None = None

    def untold(self) -> int:
        """Bytes that are neither there nor in a gap, or are there too often; unknowable without an end."""
        return sum(abs(size - self.known[name]) for name, size in (self.sizes or {}).items())


@attrs.frozen
class Audit:
    """``journalled``: body bytes on record, ``gaps``: bytes it says are missing, ``untold``: missing without a word. ``unended``: exchanges
    that have no end there; ``unknown``: that have nothing at all, and of which no note tells either; ``faults``: of segments."""

    exchanges: int
    journalled: int
    gaps: int
    untold: int
    unended: int
    unknown: int
    faults: int

    @classmethod
    def of(cls, home: Path) -> "Audit":
        """Of the data directory ``home``, which holds its gateway's ``access.log``. What the gateway left in memory for its next start is
        taken to disk first, as that would."""
        layout = Layout(home)
        adopt(home, layout.spool, "bench")
        readers = [InstanceReader(layout, Position(instance)) for instance in layout.instances()]
        told: dict[bytes, _Told] = {}
        journalled = gaps = lost = lost_bytes = 0
        for found in itertools.chain.from_iterable(reader.frames() for reader in readers):
            frame = found.frame
            if frame.exchange == NO_EXCHANGE:
                if (said := lost_of(frame)) is not None:
                    lost, lost_bytes = lost + said.exchanges, lost_bytes + said.up + said.down
                continue
            one = told.setdefault(frame.exchange, _Told())
            journalled += enter(one, frame)
            gaps += gap_of(frame).length if frame.kind == Kind.GAP else 0
        logged = dict(_logged(home / "access.log"))
        unknown = [size for key, size in logged.items() if key not in told]
        return cls(
            exchanges=len(logged.keys() | told.keys()),
            journalled=journalled,
            gaps=gaps + lost_bytes,
            untold=sum(one.untold() for one in told.values()) + abs(sum(unknown) - lost_bytes),
            unended=sum(one.sizes is None for one in told.values()),
            unknown=abs(len(unknown) - lost),
            faults=sum(len(reader.faults) for reader in readers),
        )


def enter(one: _Told, frame: Frame) -> int:
    """Count a frame to its exchange; body bytes in it."""
    if frame.kind == Kind.GAP:
        gap = gap_of(frame)
        if gap.kind in _BODIES:
            one.known[_BODIES[Kind(gap.kind)]] += gap.length
    elif frame.kind == Kind.END:
        said = json.loads(frame.payload)
        one.sizes = {name: int(said[name]) for name in _BODIES.values()}
    elif frame.kind in _BODIES:
        one.known[_BODIES[Kind(frame.kind)]] += len(frame.payload)
        return len(frame.payload)
    return 0


def _logged(log: Path) -> Iterator[tuple[bytes, int]]:
    """Every exchange, and how many bytes of body it had."""
    with log.open(encoding="utf-8") as lines:
        for line in lines:
            said = json.loads(line)
            if "id" in said:  # else it says how many lines were dropped
                yield key_of(said["id"]), sum(said.get(name, 0) for name in _LOGGED)

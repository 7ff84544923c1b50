"""Exchanges out of frames: what belongs together is gathered until its end.

Owns which exchanges of an instance are open and where their bytes are. Bodies stay in the segments until an exchange has ended: a
thousand open streams cost a few numbers for each frame, whatever they carry.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping

import attrs

from kgb_gateway.dewey.entry import Header
from kgb_gateway.dewey.spool import Found, SegmentFile
from kgb_gateway.dewey.transcripts.model import Json
from kgb_gateway.journal import gap_of
from kgb_gateway.record import NO_EXCHANGE, STARTED, Kind
from kgb_gateway.tail import Gap

BODIES = (Kind.REQUEST_BYTES, Kind.RESPONSE_BYTES, Kind.TO_UPSTREAM, Kind.TO_CALLER)


class Pieces:
    """Where the bytes of one body are, in order."""

    __slots__ = ("_files", "_places", "size")

    def __init__(self) -> None:
        self.size = 0
        self._files: list[SegmentFile] = []
        self._places = array("Q")  # for each piece: index of its file, offset, length

    def add(self, found: Found) -> None:
        """One more piece."""
        file, offset, length = found.place
        if not self._files or self._files[-1] is not file:
            self._files.append(file)
        self._places.extend((len(self._files) - 1, offset, length))
        self.size += length

    def __iter__(self) -> Iterator[bytes]:
        places = self._places
        for index in range(0, len(places), 3):
            yield self._files[places[index]].read(places[index + 1], places[index + 2])

    def read(self) -> bytes:
        """All of it."""
        return b"".join(self)


@attrs.define
class Gathered:
    """One exchange as its frames tell it. ``end`` is None where no frame says how it ended: it was interrupted.

    ``segment`` and ``place``: where its first frame begins. ``began`` and ``last``: nanoseconds since the epoch of its first
    and last frame. ``asked`` and ``answered``: what the heads say, as JSON objects, with their headers.
    """

    key: bytes
    instance: str
    segment: str
    place: int
    sequence: int
    began: int
    last: int = 0
    asked: Mapping[str, Json] = attrs.field(factory=dict)
    request_headers: tuple[Header, ...] = ()
    answered: Mapping[str, Json] | None = None
    response_headers: tuple[Header, ...] = ()
    end: Mapping[str, Json] | None = None
    bodies: dict[int, Pieces] = attrs.field(factory=dict)
    gaps: list[Gap] = attrs.field(factory=list)
    damaged: bool = False

    def body(self, kind: Kind) -> Pieces:
        """The body of this kind; empty where there is none."""
        return self.bodies.get(kind) or Pieces()

    def has_gap(self, kind: Kind) -> bool:
        """Whether bytes of it are missing."""
        return self.damaged or any(gap.kind == kind for gap in self.gaps)


@attrs.define
class Collector:
    """Gathers the exchanges of one instance. ``skip``: those that need not be gathered again."""

    instance: str
    open: dict[bytes, Gathered] = attrs.field(factory=dict)
    skip: set[bytes] = attrs.field(factory=set)

    def feed(self, found: Found) -> Iterable[Gathered]:
        """Take a frame; the exchanges that have ended with it, most often none."""
        frame = found.frame
        if frame.kind == Kind.NOTE and frame.exchange == NO_EXCHANGE:
            return self.close_all() if frame.payload == STARTED else ()
        if frame.exchange in self.skip:
            if frame.kind == Kind.END:
                self.skip.discard(frame.exchange)
            return ()
        exchange = self.open.get(frame.exchange)
        if exchange is None:
            exchange = self.open[frame.exchange] = Gathered(
                frame.exchange, self.instance, str(found.file.name), found.begins, frame.sequence, frame.wall
            )
        exchange.last = frame.wall
        if frame.kind in BODIES:
            if frame.kind not in exchange.bodies:
                exchange.bodies[frame.kind] = Pieces()
            exchange.bodies[frame.kind].add(found)
        elif frame.kind == Kind.REQUEST_HEAD:
            exchange.asked, exchange.request_headers = head_of(frame.payload)
        elif frame.kind == Kind.RESPONSE_HEAD:
            exchange.answered, exchange.response_headers = head_of(frame.payload)
        elif frame.kind == Kind.GAP:
            exchange.gaps.append(gap_of(frame))
        elif frame.kind == Kind.END:
            exchange.end = object_of(frame.payload)
            return (self.open.pop(frame.exchange),)
        return ()

    def close_all(self) -> list[Gathered]:
        """Nothing more comes for what is open."""
        gone = list(self.open.values())
        self.open.clear()
        self.skip.clear()
        return gone

    def oldest(self) -> Gathered | None:
        """The open exchange that began first."""
        return min(self.open.values(), key=lambda exchange: exchange.sequence, default=None)

    def damaged(self) -> None:
        """Frames are missing: nobody can say of which exchange, so that all open ones may lack something."""
        for exchange in self.open.values():
            exchange.damaged = True


def head_of(payload: bytes) -> tuple[Mapping[str, Json], tuple[Header, ...]]:
    """What a head says: a line of JSON, then header lines like on the wire."""
    line, _, rest = payload.partition(b"\n")
    headers = []
    for each in rest.split(b"\r\n"):
        name, colon, value = each.partition(b":")
        if colon:
            headers.append((name.decode("latin-1"), value.strip(b" \t").decode("latin-1")))
    return object_of(line), tuple(headers)


def object_of(data: bytes) -> Mapping[str, Json]:
    """A JSON object; {} for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

"""The spool as the librarian sees it: the frames of an instance in order, each once, from live, finished and archived segments.

Owns the order of segments, what is finished, and what is twice or missing. It writes nothing.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from kgb_gateway.dewey.archive import Unpacked, archived_in, path_of
from kgb_gateway.dewey.entry import Position
from kgb_gateway.record import Frame
from kgb_gateway.segments import TORN, Name, SegmentReader, is_held, parse_name, segments_in
from kgb_gateway.tail import tail_path

SPOOL = "spool"
ARCHIVE = "archive"


@attrs.frozen
class Layout:
    """Where things are in a data directory."""

    home: Path
    unpacked: Unpacked = attrs.field(factory=Unpacked, eq=False, repr=False)

    @property
    def spool(self) -> Path:
        """Segments as gateways write them."""
        return self.home / SPOOL

    @property
    def archive(self) -> Path:
        """Sealed segments, packed."""
        return self.home / ARCHIVE

    @property
    def store(self) -> Path:
        """The store's database."""
        return self.home / "dewey.db"

    def segments(self, instance: str = "") -> list[Name]:
        """Every segment that there is, in order: in the spool, in the archive, or (sealed just now) in both."""
        return sorted({*segments_in(self.spool, instance), *archived_in(self.archive, instance)})

    def has(self, segment: str) -> bool:
        """Whether the segment of this name is kept, packed or not."""
        name = parse_name(segment)
        return name is not None and ((self.spool / segment).exists() or path_of(self.archive, name).exists())

    def instances(self) -> list[str]:
        """Those who have written anything."""
        return sorted({name.instance for name in self.segments()})


class SegmentFile:
    """An open segment, wherever it is kept; its bytes can be read again as long as somebody holds this."""

    def __init__(self, layout: Layout, name: Name, offset: int = 0) -> None:
        self.name = name
        self._path = layout.spool / str(name)
        try:
            self.reader = SegmentReader(self._path, offset)
            self.archived = False
        except FileNotFoundError:
            self.reader = SegmentReader(self._path, offset, fd=layout.unpacked.open(layout.archive, name))
            self.archived = True
        self.fd = self.reader.fd

    def is_finished(self, *, followed: bool) -> bool:
        """Whether nothing more will come: somebody may still hold one that others follow, and writes no more to it."""
        return self.archived or followed or not is_held(self._path)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of it."""
        return os.pread(self.fd, length, offset)

    def __del__(self) -> None:
        reader = self.__dict__.get("reader")
        if reader is not None:
            reader.close()


@attrs.frozen
class Found:
    """A frame, and where its payload is. ``begins``: where the frame begins."""

    frame: Frame
    file: SegmentFile
    begins: int

    @property
    def place(self) -> tuple[SegmentFile, int, int]:
        """File, offset and length of the payload."""
        return self.file, self.begins + self.frame.size - len(self.frame.payload), len(self.frame.payload)


@attrs.frozen
class Fault:
    """What is wrong in a segment: bytes that are no frame, or frames that are missing."""

    segment: Name
    place: int
    why: str


@attrs.define
class InstanceReader:
    """The frames of one instance, from ``position`` on. Call ``frames`` again when there may be more.

    ``faults`` collects what is wrong; whoever reads takes it away. ``sequence``: the number of the last frame that was given.
    """

    layout: Layout
    position: Position
    sequence: int = 0
    faults: list[Fault] = attrs.field(factory=list)
    _file: SegmentFile | None = None
    _done: Name | None = None
    _ended: int = 0
    _torn: Fault | None = None

    @property
    def instance(self) -> str:
        return self.position.instance

    @property
    def segment(self) -> Name | None:
        """The segment that is being read, or was read last."""
        return self._file.name if self._file is not None else self._done

    @property
    def offset(self) -> int:
        """How far in it."""
        return self._file.reader.offset if self._file is not None else self._ended

    def frames(self) -> Iterator[Found]:
        """Every whole frame that is there by now and was not given before."""
        while True:
            names = self.layout.segments(self.instance)
            file = self._file or self._open(names)
            if file is None:
                self._tell_torn()
                return
            self._file = file
            finished = file.is_finished(followed=bool(names) and names[-1] > file.name)
            for frame in file.reader.frames(finished=finished):
                if frame.sequence <= self.sequence:
                    continue  # after a failed sync it stands in two segments
                if self.sequence and frame.sequence > self.sequence + 1:
                    if self._torn is not None:
                        self.faults.append(self._torn)
                    missing = frame.sequence - self.sequence - 1
                    why = f"{missing} frames before this place are missing"
                    self.faults.append(Fault(file.name, file.reader.offset - frame.size, why))
                self._torn = None
                self.sequence = frame.sequence
                yield Found(frame, file, file.reader.offset - frame.size)
            for finding in file.reader.findings:
                fault = Fault(file.name, finding.offset, f"{finding.length} bytes are no frame: {finding.why}")
                if finding.why == TORN:
                    self._torn = fault
                else:
                    self.faults.append(fault)
            file.reader.findings.clear()
            if not finished:
                return
            self._done, self._ended, self._file = file.name, file.reader.offset, None

    def _tell_torn(self) -> None:
        """A writer that is killed tears the frame that it writes. The next segment begins with that frame, out of the tail, and nothing is
        missing; where there is no tail any more, there will be no such segment."""
        if self._torn is not None and not tail_path(self.layout.home.resolve(), self.instance).exists():
            self.faults.append(self._torn)
            self._torn = None

    def _open(self, names: list[Name]) -> SegmentFile | None:
        """The next segment, or the one of the position."""
        if self._done is None and self.position.segment:
            wanted = parse_name(self.position.segment)
            if wanted in names and wanted is not None:
                return SegmentFile(self.layout, wanted, self.position.place)
            self._done = wanted
        later = [name for name in names if self._done is None or name > self._done]
        return SegmentFile(self.layout, later[0]) if later else None

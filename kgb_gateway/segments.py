"""Segments: the files of the spool, and how they are read.

Owns names, headers, locks and the reading of segments, live or sealed, whole or damaged. A segment is written by one instance,
frame behind frame; its name says whose it is and which frame comes first, so that a directory listing is in order. Its writer
holds a lock on it: what nobody holds is finished, whatever its end looks like.

A segment begins with one line of JSON, for people and for versions to come; frames follow.
"""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import attrs

from kgb_gateway.disk import BLOCK
from kgb_gateway.record import Damage, Frame, decode, find

FORMAT = 1
"""Version of the format of segments. A reader refuses a newer one."""

READ_SIZE = 1024 * 1024
"""Bytes read at a stretch; a reader holds no more than that and one frame."""

_NAME = re.compile(r"(?P<instance>[A-Za-z0-9_.-]{1,64})-(?P<first>[0-9]{20})-(?P<part>[0-9]{4})\.seg")
_HEAD_CAP = 8192


@attrs.frozen(order=True)
class Name:
    """A segment's name: its instance, the number of its first frame, and which of several with that number it is."""

    instance: str
    first: int
    part: int = 0

    def __str__(self) -> str:
        return f"{self.instance}-{self.first:020}-{self.part:04}.seg"


def parse_name(text: str) -> Name | None:
    """The name in ``text``, or None when it is no segment's."""
    match = _NAME.fullmatch(text)
    return Name(match["instance"], int(match["first"]), int(match["part"])) if match else None


def segments_in(spool: Path, instance: str = "") -> list[Name]:
    """The segments in ``spool``, in order; of one instance where it is given. None where there is no such directory."""
    try:
        names = [name for entry in os.listdir(spool) if (name := parse_name(entry)) is not None]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if not instance or name.instance == instance)


def head_of(name: Name, gateway: str, at: float, salt: int = 0, length: int = -1) -> bytes:
    """The first line of a segment. ``gateway`` is its version, ``at`` seconds since the epoch, ``salt`` its checksums'. ``length``: it is as
    long as makes this the rest of a division by ``disk.BLOCK``."""
    head = {
        "format": FORMAT,
        "instance": name.instance,
        "first": name.first,
        "gateway": gateway,
        "at": at,
        "salt": salt,
    }
    line = b"KGB segment " + json.dumps(head).encode()
    return line + (b" " * ((length - len(line) - 1) % BLOCK) if length >= 0 else b"") + b"\n"


def is_held(path: Path) -> bool:
    """Whether a living process writes this segment."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(fd)


@attrs.frozen
class Finding:
    """Bytes of a segment that are no frame: ``length`` of them from ``offset`` on, and why."""

    offset: int
    length: int
    why: str


TORN = "a torn end"
"""Why the bytes of a frame that a writer was killed in are none."""


class SegmentReader:
    """Reads a segment from ``offset`` on (0: its beginning): frames, findings, and where to go on.

    ``offset`` moves behind each frame that ``frames`` has yielded: who keeps it can read on from there, in this process or
    another. A live segment simply ends; call ``frames`` again when it has grown. Memory is bounded by READ_SIZE and the
    longest frame.
    """

    def __init__(self, path: Path, offset: int = 0, *, fd: int | None = None) -> None:
        """``fd``: the open file, when it is not the one at ``path``; it is closed with the reader."""
        self.path = path
        self.offset = offset
        self.findings: list[Finding] = []
        self.salt = 0
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW) if fd is None else fd

    def __enter__(self) -> "SegmentReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(OSError):
            os.close(self.fd)

    def seek_end(self) -> None:
        """Go on near the end: at the first whole frame of the last ``READ_SIZE`` bytes, where there is one."""
        behind = self._head(finished=True)
        start = max(behind, os.fstat(self.fd).st_size - READ_SIZE)
        if behind and start > behind and (there := find(os.pread(self.fd, READ_SIZE, start), -1, self.salt)) >= 0:
            self.offset = start + there

    def frames(self, *, finished: bool = False) -> Iterator[Frame]:
        """Every whole frame from ``offset`` on. ``finished``: nobody writes any more, so that a torn end is a finding too."""
        behind = self._head(finished=finished)
        if not behind:
            return
        self.offset = max(self.offset, behind)
        data, at = b"", self.offset
        while chunk := os.pread(self.fd, READ_SIZE, at + len(data)):
            data += chunk
            position = 0
            while (found := self._next(data, position)) is not None:
                frame, position = found
                self.offset = at + position
                if frame is not None:
                    yield frame
            data, at = data[position:], at + position
            if len(chunk) < READ_SIZE and (there := find(data, 0, self.salt)) > 0:
                # A damaged length makes a frame look unfinished: a whole one behind it tells.
                self._find(at, there, "a frame of another length")
                data, at = b"", at + there
        if finished and data:
            self._find(at, len(data), TORN)

    def _next(self, data: bytes, position: int) -> tuple[Frame | None, int] | None:
        """A frame and where it ends; no frame and where to look on; or None where more has to be read."""
        try:
            return decode(data, position, self.salt)
        except Damage as error:
            there = find(data, position, self.salt)
            # Without a whole frame behind it: what is sure to be none is skipped, but for what may begin one.
            until = there if there >= 0 else len(data) - READ_SIZE
            if until <= position:
                return None
            self._find(self.offset, until - position, str(error))
            return None, until

    def _find(self, offset: int, length: int, why: str) -> None:
        last = self.findings[-1] if self.findings else None
        if last is not None and last.offset + last.length == offset:
            self.findings[-1] = Finding(last.offset, last.length + length, last.why)
        else:
            self.findings.append(Finding(offset, length, why))
        self.offset = offset + length

    def _head(self, *, finished: bool) -> int:
        """Read the first line; where frames begin, or 0 where it is not there."""
        head = os.pread(self.fd, _HEAD_CAP, 0)
        end = head.find(b"\n")
        if end < 0:
            if finished and head and not self.offset:
                self._find(0, len(head), "no head")
            return 0
        try:
            said = json.loads(head[len(b"KGB segment ") : end])
            version, self.salt = int(said["format"]), int(said["salt"])
        except (ValueError, KeyError, TypeError):
            version = 0
        if version > FORMAT:
            raise ValueError(f"{self.path} has format {version}; this version reads up to {FORMAT}")
        return end + 1

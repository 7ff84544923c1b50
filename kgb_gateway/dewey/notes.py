"""Notes: what people tell Dewey to do, kept in the spool like everything else, so that a rebuilt store does it again.

Owns the form of pins and erasures as frames, how a command writes them, and what an erasure means for segments.
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from kgb_gateway.dewey.archive import archived_in, scrub, scrub_archived
from kgb_gateway.dewey.exchanges import object_of
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.erase import Eraser
from kgb_gateway.dewey.transcripts.model import Json
from kgb_gateway.record import NO_EXCHANGE, Frame, Kind, encode, pieces
from kgb_gateway.segments import Name, head_of

PREFIX = "dewey."
"""How the instances begin under which commands write."""

UUIDS = 5000
"""Exchanges named in one note, so that it fits into a frame."""


class SpoolWriter:
    """Writes frames as an instance of its own into a spool: for commands, which have no gateway. A context manager: what was
    written counts only when it ends well."""

    def __init__(self, spool: Path, version: str) -> None:
        self.name = Name(f"{PREFIX}{time.time_ns():020}.{secrets.token_hex(4)}", 1)
        self._path = spool / str(self.name)
        self._sequence = 0
        self._salt = int.from_bytes(os.urandom(4))
        spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._temporary = self._path.with_suffix(".new")
        fd = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self._file = os.fdopen(fd, "wb")
        self._file.write(head_of(self.name, version, time.time(), self._salt))

    def __enter__(self) -> "SpoolWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._sequence:
            self._file.flush()
            os.fsync(self._file.fileno())
            os.rename(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)  # failed, or empty
        self._file.close()

    def write(self, kind: Kind, exchange: bytes, payload: bytes) -> None:
        """One frame, or several for a body that is longer than one may be."""
        for piece in pieces(payload):
            self._sequence += 1
            frame = Frame(self._sequence, kind, exchange, time.time_ns(), time.monotonic_ns(), bytes(piece))
            self._file.write(encode(frame, self._salt))


def write_pin(spool: Path, version: str, session: str, *, pinned: bool) -> Name:
    """Tell Dewey to keep a session from every prune, or no longer."""
    with SpoolWriter(spool, version) as writer:
        _note(writer, {"event": "pin", "session": session, "pinned": pinned})
    return writer.name


def write_forget(spool: Path, version: str, uuids: Iterable[bytes]) -> Name:
    """Tell Dewey to erase exchanges for good."""
    listed = [uuid.hex() for uuid in uuids]
    with SpoolWriter(spool, version) as writer:
        for start in range(0, len(listed), UUIDS):
            _note(writer, {"event": "forget", "at": time.time(), "exchanges": listed[start : start + UUIDS]})
    return writer.name


def _note(writer: SpoolWriter, said: Mapping[str, Json]) -> None:
    writer.write(Kind.NOTE, NO_EXCHANGE, json.dumps(said).encode())


def note_of(frame: Frame) -> Mapping[str, Json] | None:
    """What a note says to Dewey; None for any other frame."""
    if frame.kind != Kind.NOTE or frame.exchange != NO_EXCHANGE or not frame.payload.startswith(b'{"event"'):
        return None
    said = object_of(frame.payload)
    return said if said.get("event") in ("pin", "forget") else None


class Notes:
    """Does what notes say: to the store at once, to segments when nothing more is to be read."""

    def __init__(self, layout: Layout, eraser: Eraser) -> None:
        self._layout = layout
        self._eraser = eraser

    def apply(self, said: Mapping[str, Json]) -> None:
        """Inside the transaction of the frame that said it."""
        if said.get("event") == "pin":
            self._eraser.pin(str(said.get("session")), pinned=bool(said.get("pinned")))
            return
        listed = said.get("exchanges")
        at = said.get("at")
        uuids = [bytes.fromhex(str(each)) for each in listed] if isinstance(listed, list) else []
        self._eraser.forget(uuids, float(at) if isinstance(at, int | float) else 0.0)

    def carry_out(self) -> int:
        """Overwrite what was erased wherever it still is: segments, archive, free pages; frames that were overwritten."""
        left = self._eraser.unscrubbed()
        if not left:
            return 0
        done = 0
        keys = {key for key, _, _ in left}
        archived = set(archived_in(self._layout.archive))
        for name in self._layout.segments():
            if not any(instance == name.instance and str(name) >= segment for _, instance, segment in left):
                continue
            if name in archived:
                done += scrub_archived(self._layout.archive, name, keys)
                continue
            path = self._layout.spool / str(name)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                done += scrub(fd, keys, path)
            finally:
                os.close(fd)
        self._eraser.scrub()
        return done

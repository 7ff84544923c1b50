"""The librarian: the one who takes the spool into the store, seals what is finished, and lets go of what is too old.

Owns the lock by which there is one of them for a data directory, and what is done in which order. It has no event loop: ``step`` is
called again and again, by a process of its own (``kgb dewey serve``) or once by a command that finds nobody at work.
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from kgb_gateway.dewey.archive import archived_in, path_of, seal
from kgb_gateway.dewey.ingest import Ingest, Listener
from kgb_gateway.dewey.notes import Notes
from kgb_gateway.dewey.prices import Pricing
from kgb_gateway.dewey.reading import Reading
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.erase import Eraser
from kgb_gateway.dewey.store.sqlite import SqliteWriter
from kgb_gateway.dewey.transcripts.view import view
from kgb_gateway.segments import Name, is_held, segments_in

LOCK = "librarian.lock"

CHECKPOINT_SECONDS = 30.0
"""How long after the last change the write-ahead log is copied into the database."""

TIDY_SECONDS = 60.0
"""How often the archive is looked at for what may go."""

_log = logging.getLogger("kgb.dewey")


class Busy(Exception):
    """Another librarian is at work on this data directory."""


@attrs.frozen
class Retention:
    """What goes when. ``raw_days`` and ``raw_size``: age and bytes of packed segments above which the oldest go; 0 for no
    bound. What was read out of them stays in the store.
    """

    raw_days: float = 90.0
    raw_size: int = 20 * 1024**3


@contextlib.contextmanager
def lock(home: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the librarian's place. Busy when somebody else does, for longer than ``wait`` seconds."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(home / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + wait
        while not _locked(fd):
            if time.monotonic() >= until:
                raise Busy(f"another librarian is at work in {home}")
            time.sleep(0.01)
        yield
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


class Librarian:
    """At work in ``home``; whoever makes one holds the lock. StoreError when the store cannot be opened."""

    def __init__(
        self, home: Path, prices: Pricing, retention: Retention | None = None, listen: Listener | None = None
    ) -> None:
        self.layout = Layout(home)
        self.store = SqliteWriter(self.layout.store, view)
        self.eraser = Eraser(self.store)
        self._notes = Notes(self.layout, self.eraser)
        self.ingest = Ingest(self.layout, self.store, Reading(prices), self._notes.apply, listen)
        self._retention = retention or Retention()
        self._changed = 0.0
        self._tidied = 0.0

    def close(self) -> None:
        """Let go of the store."""
        self.store.close()

    def step(self) -> int:
        """Take in what there is, then seal and tidy; how many exchanges came. Errors of the disk and of locks are raised: the next
        call goes on where this one stood."""
        done = self.ingest.run()
        self._notes.carry_out()
        now = time.monotonic()
        if done:
            self._changed = now
            return done
        self._seal()
        if self._changed and now - self._changed >= CHECKPOINT_SECONDS:
            self.store.checkpoint(whole=True)
            self._changed = 0.0
        if now - self._tidied >= TIDY_SECONDS:
            self._tidied = now
            self.tidy()
        return done

    def finish(self) -> None:
        """Take in everything that is there, seal it, and put all into the main file."""
        while self.step():
            pass
        self.store.checkpoint(whole=True)

    def _seal(self) -> None:
        """Pack the segments that nobody writes any more and from which nothing is awaited."""
        for name in self.sealable():
            try:
                before = (self.layout.spool / str(name)).stat().st_size
                size = seal(self.layout.spool, self.layout.archive, name)
            except OSError as error:
                _log.error("segment %s cannot be packed: %s", name, error)
                return
            _log.info("segment %s is packed: %d bytes instead of %d", name, size, before)

    def sealable(self) -> list[Name]:
        """Segments in the spool that are finished, read to their end, and hold no frame of an open exchange."""
        found = []
        for instance, position in self.store.positions().items():
            names = segments_in(self.layout.spool, instance)
            for number, name in enumerate(names):
                behind = str(name) < position.segment
                read = str(name) == position.segment and position.place >= _size(self.layout.spool / str(name))
                last = number == len(names) - 1
                if not (behind or read) or is_held(self.layout.spool / str(name)):
                    break
                if last and not _is_quiet(self.layout.spool / str(name)):
                    break
                found.append(name)
        return found

    def tidy(self, retention: Retention | None = None, *, dry_run: bool = False) -> list[Name]:
        """Let the oldest packed segments go, as far as ``retention`` (default: the librarian's own) says; those that went. What holds something of a pinned session
        stays."""
        now, bounds = time.time(), retention or self._retention
        kept, gone = 0, list[Name]()
        pinned: set[str] | None = None
        names = archived_in(self.layout.archive)
        facts = []
        for name in names:
            status = path_of(self.layout.archive, name).stat()
            facts.append((status.st_mtime, status.st_size, name))
        for changed, size, name in sorted(facts, reverse=True):
            old = bounds.raw_days and now - changed > bounds.raw_days * 86400
            large = bounds.raw_size and kept + size > bounds.raw_size
            if old or large:
                pinned = self.eraser.pinned_segments() if pinned is None else pinned
            if (old or large) and str(name) not in (pinned or ()):
                if not dry_run:
                    path_of(self.layout.archive, name).unlink()
                gone.append(name)
            else:
                kept += size
        return gone


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _is_quiet(path: Path) -> bool:
    """Whether a segment that nobody holds has not been written for a while: its writer may be about to take it."""
    try:
        return time.time() - path.stat().st_mtime > 2.0
    except FileNotFoundError:
        return False

"""Ingest: from the spool into the store.

Owns the rhythm: what has ended by now is read, placed and written together with the position behind it, in one transaction, so that
a librarian that dies anywhere goes on where the store says, and nothing is there twice. A record that cannot be written is set
aside with its reason, and the rest goes on.
"""

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import attrs

from kgb_gateway.dewey.entry import Base, Entry, Placed, Position, Problem
from kgb_gateway.dewey.exchanges import Collector, Gathered
from kgb_gateway.dewey.notes import note_of
from kgb_gateway.dewey.placing import Placer
from kgb_gateway.dewey.reading import Reading
from kgb_gateway.dewey.spool import Found, InstanceReader, Layout
from kgb_gateway.dewey.store.interface import StoreWriter
from kgb_gateway.dewey.transcripts.model import Json
from kgb_gateway.spooling import lost_of
from kgb_gateway.tail import Lost

BATCH_EXCHANGES = 200
BATCH_SIZE = 16 * 1024 * 1024
"""Exchanges, and bytes of their bodies, that are written in one transaction."""

_log = logging.getLogger("kgb.dewey")


class Listener(Protocol):
    """Hears what is read, and what is stored, in order."""

    def heard(self, found: Found) -> None:
        """A frame, before its exchange is read."""

    def stored(self, facts: Mapping[str, Json]) -> None:
        """An exchange is in the store now: id, session, conversation, relation, model, tokens and cost."""


@attrs.define
class Totals:
    """What an ingest has done since it began. ``bytes``: of bodies."""

    exchanges: int = 0
    bytes: int = 0
    frames: int = 0
    problems: int = 0


class Ingest:
    """Takes in what a spool holds. ``notes`` does what people said, inside the transaction. ``listen`` hears of all of
    it."""

    def __init__(
        self,
        layout: Layout,
        store: StoreWriter,
        reading: Reading,
        notes: Callable[[Mapping[str, Json]], None],
        listen: Listener | None = None,
    ) -> None:
        self.layout = layout
        self._notes = notes
        self.totals = Totals()
        self._store = store
        self._reading = reading
        self._placer = Placer(store)
        self._listen = listen
        self._streams: dict[str, _Stream] = {}

    def run(self) -> int:
        """Take in all that has ended by now; how many exchanges. StoreError or sqlite3.OperationalError when the store cannot be
        written: call again later, nothing is lost."""
        done = 0
        positions = self._store.positions()
        for instance in self.layout.instances():
            stream = self._streams.get(instance)
            if stream is None:
                position = positions.get(instance) or Position(instance)
                stream = self._streams[instance] = _Stream(
                    InstanceReader(self.layout, position), Collector(instance), position.sequence
                )
            try:
                done += self._follow(stream)
            except BaseException:
                del self._streams[instance]  # begin again from what the store says
                raise
        return done

    @property
    def open(self) -> int:
        """Exchanges that have begun and not ended."""
        return sum(len(stream.collector.open) for stream in self._streams.values())

    def _follow(self, stream: "_Stream") -> int:
        done = 0
        for batch in self._batches(stream):
            self._write(stream, batch)
            done += len(batch.exchanges)
        return done

    def _batches(self, stream: "_Stream") -> Iterator["_Batch"]:
        batch = _Batch()
        for found in stream.reader.frames():
            batch.frames += 1
            if len(stream.reader.faults) > stream.told:
                stream.told = len(stream.reader.faults)
                stream.collector.damaged()
            if self._listen is not None:
                self._listen.heard(found)
            key = found.frame.exchange
            if found.frame.sequence <= stream.known and key not in stream.collector.open and self._is_old(stream, key):
                stream.collector.skip.add(key)
            lost = lost_of(found.frame)
            if lost is not None and found.frame.sequence > stream.known:
                batch.problems.append(_lost(stream.reader.instance, found, lost))
            said = note_of(found.frame)
            if said is not None and found.frame.sequence > stream.known:
                batch.notes.append(said)
            for gathered in stream.collector.feed(found):
                batch.exchanges.append(gathered)
                batch.bytes += sum(pieces.size for pieces in gathered.bodies.values())
            if len(batch.exchanges) >= BATCH_EXCHANGES or batch.bytes >= BATCH_SIZE:
                yield batch
                batch = _Batch()
        if batch.frames or stream.reader.faults:
            yield batch

    def _is_old(self, stream: "_Stream", key: bytes) -> bool:
        return key not in stream.collector.skip and any(key) and self._store.has(key)

    def _write(self, stream: "_Stream", batch: "_Batch") -> None:
        entries = [entry for gathered in batch.exchanges for entry in self._reading.entries(gathered)]
        with self._store.transaction():
            stored = [told for entry in entries if (told := self._add(entry)) is not None]
            for fault in stream.reader.faults:
                self._problem(Problem(time.time(), stream.reader.instance, str(fault.segment), fault.place, fault.why))
            for problem in batch.problems:
                self._problem(problem)
            for said in batch.notes:
                self._notes(said)
            self._store.set_position(stream.position())
        if self._listen is not None:
            for told in stored:
                self._listen.stored(told)
        stream.reader.faults.clear()
        stream.told = 0
        self.totals.exchanges += len(entries)
        self.totals.frames += batch.frames
        self.totals.bytes += batch.bytes

    def _add(self, entry: Entry) -> Mapping[str, Json] | None:
        """What is to tell of it. An entry that the store does not take is kept without its transcript, and a note says why."""
        try:
            with self._store.attempt():
                placed = self._placer.place(self._whole(entry))
                self._store.add(placed)
            if entry.unreadable:
                self._problem(_problem(entry, entry.unreadable))
            return _told(placed)
        except sqlite3.OperationalError:
            raise  # the disk, a lock: not this record's fault
        except Exception as error:
            _log.exception("exchange %s cannot be stored as read", entry.name)
            why = f"not stored as read: {type(error).__name__}: {error}"[:500]
        bare = attrs.evolve(entry, prompt=None, reply=None, usage=(), unreadable=why)
        self._problem(_problem(entry, why))
        try:
            with self._store.attempt():
                self._store.add(self._placer.place(bare))
        except sqlite3.OperationalError:
            raise
        except Exception:
            _log.exception("exchange %s is set aside", entry.name)
        return None

    def _whole(self, entry: Entry) -> Entry:
        """Some turns tell only what is new in them (imported ones, and those that name the reply that they go on from): the
        rest is in the store."""
        base = entry.base
        if entry.prompt is not None and entry.prompt.previous and base is None:
            earlier = self._store.replied(entry.prompt.previous, entry.caller)
            base = Base(earlier or b"", -1, replied=True)
        if base is None or entry.prompt is None:
            return entry
        before = self._store.said(base.uuid)
        if before is None:
            note = "what was said before is not on record"
            return attrs.evolve(entry, base=None, notes=(*entry.notes, note))
        messages, replies = before
        shared = len(messages) if base.shared < 0 else base.shared
        known = (*messages[:shared], *(replies if base.replied else ()))
        return attrs.evolve(
            entry, base=None, prompt=attrs.evolve(entry.prompt, messages=(*known, *entry.prompt.messages))
        )

    def _problem(self, problem: Problem) -> None:
        self.totals.problems += 1
        self._store.add_problem(problem)


@attrs.define
class _Batch:
    """What is written in one transaction."""

    exchanges: list[Gathered] = attrs.field(factory=list)
    notes: list[Mapping[str, Json]] = attrs.field(factory=list)
    problems: list[Problem] = attrs.field(factory=list)
    bytes: int = 0
    frames: int = 0


@attrs.define
class _Stream:
    """One instance's frames on their way. ``known``: the last frame that the store had when this began. ``told``: of how many
    faults the collector has heard."""

    reader: InstanceReader
    collector: Collector
    known: int
    told: int = 0

    def position(self) -> Position:
        """Where reading must go on to miss nothing: at the first frame of the oldest open exchange, or behind the last one."""
        oldest = self.collector.oldest()
        segment = self.reader.segment
        sequence = max(self.reader.sequence, self.known)
        if oldest is not None:
            return Position(self.reader.instance, oldest.segment, oldest.place, sequence)
        name = str(segment) if segment is not None else self.reader.position.segment
        return Position(self.reader.instance, name, self.reader.offset, sequence)


def _told(placed: Placed) -> Mapping[str, Json]:
    entry = placed.entry
    return {
        "id": entry.name,
        "session": placed.session,
        "conversation": placed.conversation,
        "relation": str(placed.link.relation),
        "caller": entry.caller,
        "model": entry.model,
        "outcome": entry.outcome,
        "input": sum(
            p.usage.uncached + p.usage.cache_read + p.usage.cache_write_5m + p.usage.cache_write_1h for p in entry.usage
        ),
        "output": sum(p.usage.output for p in entry.usage),
        "cost": entry.cost,
        "estimated": entry.estimated,
    }


def _lost(instance: str, found: Found, lost: Lost) -> Problem:
    """Exchanges that left nothing but their number."""
    why = (
        f"not on record, since the disk did not keep up: {lost.exchanges} exchanges, {lost.up} bytes that were sent and {lost.down} that "
        f"were answered, within {(lost.last - lost.first) / 1e9:.1f} s"
    )
    return Problem(lost.last / 1e9, instance, str(found.file.name), found.begins, why)


def _problem(entry: Entry, why: str) -> Problem:
    return Problem(entry.at, entry.instance, entry.segment, entry.place, why, entry.uuid)

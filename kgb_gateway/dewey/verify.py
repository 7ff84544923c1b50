"""Verification: every hash and every body derived again, and compared with what the store says.

Owns what is compared. It writes nothing: what is found is told, and ``rebuild`` is what mends a store.
"""

import sqlite3
from collections.abc import Callable, Iterator

import attrs

from kgb_gateway.dewey.canon import canonical, digest, link_hash
from kgb_gateway.dewey.entry import Entry, Position
from kgb_gateway.dewey.exchanges import Collector
from kgb_gateway.dewey.placing import Placer
from kgb_gateway.dewey.reading import Reading
from kgb_gateway.dewey.spool import InstanceReader, Layout
from kgb_gateway.dewey.store.reader import StoreReader

EVERY = 200
"""Steps after which progress is told."""


@attrs.define
class Report:
    """What was looked at, and what is wrong. ``transformed``: exchanges whose response a link changed on its way; for the others the
    hashes are of what the caller received."""

    exchanges: int = 0
    raw: int = 0
    messages: int = 0
    nodes: int = 0
    transformed: int = 0
    open: int = 0
    problems: int = 0
    faults: list[str] = attrs.field(factory=list)

    @property
    def sound(self) -> bool:
        return not self.faults


def verify(layout: Layout, store: StoreReader, reading: Reading, progress: Callable[[int], None]) -> Report:
    """Everything in the store and in the segments that are kept. ``progress`` is told how much has been looked at."""
    report = Report()
    db = store.connection
    report.exchanges = db.execute("SELECT count(*) FROM exchange").fetchone()[0]
    report.transformed = db.execute("SELECT count(*) FROM exchange WHERE transformed").fetchone()[0]
    report.problems = db.execute("SELECT count(*) FROM problem").fetchone()[0]
    done = 0
    for step in (_chains(store, report), _segments(layout, db, reading, report)):
        for _ in step:
            done += 1
            if done % EVERY == 0:
                progress(done)
    check = db.execute("PRAGMA quick_check(5)").fetchall()
    report.faults += [f"the database: {row[0]}" for row in check if row[0] != "ok"]
    return report


def _chains(store: StoreReader, report: Report) -> Iterator[None]:
    """Blocks, messages and chains hash to what they are found by."""
    db = store.connection
    for row in db.execute("SELECT id, hash FROM message"):
        report.messages += 1
        found = canonical(store.said.message(row["id"])).hash
        if row["hash"] not in (found, digest(b"unsearched", found)):
            report.faults.append(f"message {row['id']} is not what its hash says")
        yield
    rows = db.execute(
        "SELECT node.id, node.hash, parent.hash AS parent, message.hash AS message FROM node "
        "JOIN message ON message.id = node.message LEFT JOIN node AS parent ON parent.id = node.parent"
    )
    for row in rows:
        report.nodes += 1
        if link_hash(row["parent"] or b"", row["message"]) != row["hash"]:
            report.faults.append(f"chain {row['id']} is not what its hash says")
        yield


def _segments(layout: Layout, db: sqlite3.Connection, reading: Reading, report: Report) -> Iterator[None]:
    """Every exchange in the segments is in the store as it would be read now, its bodies with the hashes that stand there."""
    for instance in layout.instances():
        reader, collector = InstanceReader(layout, Position(instance)), Collector(instance)
        for found in reader.frames():
            for gathered in collector.feed(found):
                for entry in reading.entries(gathered):
                    report.raw += 1
                    why = _differs(db, entry)
                    if why:
                        report.faults.append(f"exchange {entry.name}: {why}")
                    yield
        report.faults += [f"{fault.segment} at {fault.place}: {fault.why}" for fault in reader.faults]
        report.open += len(collector.open)


def _differs(db: sqlite3.Connection, entry: Entry) -> str:
    row = db.execute(
        "SELECT exchange.request_sha256, exchange.response_sha256, exchange.request_size, exchange.response_size, "
        "node.hash AS node FROM exchange LEFT JOIN node ON node.id = exchange.node WHERE exchange.uuid = ?",
        (entry.uuid,),
    ).fetchone()
    if row is None:
        erased = db.execute("SELECT 1 FROM erasure WHERE uuid = ?", (entry.uuid,)).fetchone()
        return "it was erased, and its frames are still there" if erased else "it is in a segment and not in the store"
    for name, here in (("request", entry.request_sha256), ("response", entry.response_sha256)):
        if (row[f"{name}_sha256"] or b"") != here:
            return f"the bytes of its {name} are not those that the store has the hash of"
    if entry.prompt is not None and entry.prompt.messages and not entry.unreadable:
        chain = Placer.chain_of(entry.prompt)
        if row["node"] != chain[-1]:
            return "its messages are not those of the store"
    return ""

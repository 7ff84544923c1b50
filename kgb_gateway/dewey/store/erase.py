"""The store in SQLite: the side that forgets.

Owns what goes with an exchange: the chains, messages and blocks that nobody else uses, their words in the full-text index, and in the
end every trace in free pages and in the write-ahead log.
"""

from collections.abc import Iterable

from kgb_gateway.dewey.canon import from_json
from kgb_gateway.dewey.packing import unpack
from kgb_gateway.dewey.store.database import checkpoint
from kgb_gateway.dewey.store.rows import clean, text_of
from kgb_gateway.dewey.store.sqlite import SqliteWriter
from kgb_gateway.dewey.transcripts.model import Block, Dialect, Kind


class Eraser:
    """Takes things out of the store behind ``writer``."""

    def __init__(self, writer: SqliteWriter) -> None:
        self._writer = writer
        self._db = writer.connection

    def pin(self, session: str, *, pinned: bool) -> None:
        """Keep a session from every prune, or no longer."""
        self._db.execute("UPDATE session SET pinned = ? WHERE key = ?", (pinned, session))

    def pinned_segments(self) -> set[str]:
        """Segments that hold something of a pinned session."""
        rows = self._db.execute(
            "SELECT DISTINCT segment FROM exchange JOIN session ON session.id = exchange.session WHERE session.pinned"
        )
        return {row[0] for row in rows}

    def forget(self, uuids: Iterable[bytes], at: float) -> int:
        """Take exchanges out, with what no other one uses, and never take them in again; how many were there. Inside a
        transaction. ``scrub`` and the segments remain to be done: ``unscrubbed`` tells which."""
        self._writer.forget_memory()
        done = 0
        for uuid in uuids:
            row = self._db.execute(
                "SELECT id, node, reply, system, tools, params, session, conversation, dialect, segment, instance "
                "FROM exchange WHERE uuid = ?",
                (uuid,),
            ).fetchone()
            segment, instance = (row[9], row[10]) if row is not None else ("", "")
            self._db.execute(
                "INSERT INTO erasure (uuid, at, instance, segment) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (uuid, at, instance, segment),
            )
            if row is not None:
                self._forget(row)
                done += 1
        return done

    def drop(self, rows: Iterable[int]) -> int:
        """Take exchanges (by row) out without remembering that they were there; how many."""
        self._writer.forget_memory()
        done = 0
        for number in rows:
            row = self._db.execute(
                "SELECT id, node, reply, system, tools, params, session, conversation, dialect FROM exchange "
                "WHERE id = ?",
                (number,),
            ).fetchone()
            if row is not None:
                self._forget(row)
                done += 1
        return done

    def _forget(self, row: tuple[object, ...]) -> None:
        exchange, node, reply, system, tools, params, session, conversation, dialect = row[:9]
        self._db.execute("DELETE FROM usage WHERE exchange = ?", (exchange,))
        self._db.execute(
            "UPDATE problem SET exchange = NULL WHERE exchange = (SELECT uuid FROM exchange WHERE id = ?)", (exchange,)
        )
        self._db.execute("DELETE FROM exchange WHERE id = ?", (exchange,))
        for leaf in (reply, node):
            self._nodes(leaf, str(dialect))
        for message in (system, tools):
            self._message(message, "")
        self._block(params, "")
        for table, number in (("conversation", conversation), ("session", session)):
            if number is not None:
                self._db.execute(
                    f"DELETE FROM {table} WHERE id = :id AND NOT EXISTS (SELECT 1 FROM exchange WHERE {table} = :id)",
                    {"id": number},
                )

    def _nodes(self, leaf: object, dialect: str) -> None:
        """Take ``leaf`` and those above it away, up to the first that somebody needs."""
        node = leaf
        while node is not None:
            row = self._db.execute(
                "SELECT parent, message FROM node WHERE id = :id AND NOT EXISTS (SELECT 1 FROM node WHERE parent = :id) "
                "AND NOT EXISTS (SELECT 1 FROM exchange WHERE node = :id) "
                "AND NOT EXISTS (SELECT 1 FROM exchange WHERE reply = :id)",
                {"id": node},
            ).fetchone()
            if row is None:
                return
            self._db.execute("DELETE FROM node WHERE id = ?", (node,))
            node, message = row
            self._message(message, dialect)

    def _message(self, message: object, dialect: str) -> None:
        used = self._db.execute(
            "SELECT EXISTS (SELECT 1 FROM node WHERE message = :id) OR EXISTS (SELECT 1 FROM exchange WHERE system = :id) "
            "OR EXISTS (SELECT 1 FROM exchange WHERE tools = :id)",
            {"id": message},
        ).fetchone()[0]
        if message is None or used:
            return
        parts = self._db.execute("SELECT DISTINCT block FROM part WHERE message = ?", (message,)).fetchall()
        self._db.execute("DELETE FROM part WHERE message = ?", (message,))
        self._db.execute("DELETE FROM message WHERE id = ?", (message,))
        for part in parts:
            self._block(part[0], dialect)

    def _block(self, block: object, dialect: str) -> None:
        """Take a block away, with its words where it was in a message (``dialect``)."""
        row = self._db.execute(
            "SELECT kind, codec, data FROM block WHERE id = :id AND NOT EXISTS (SELECT 1 FROM part WHERE block = :id) "
            "AND NOT EXISTS (SELECT 1 FROM exchange WHERE params = :id)",
            {"id": block},
        ).fetchone()
        if row is None:
            return
        kind, codec, data = row
        if dialect:
            value = from_json(unpack(codec, data))
            seen = Block(Kind(kind), value if isinstance(value, dict) else {})
            text = text_of(self._writer.view(Dialect(dialect), seen))
            if text:
                self._db.execute("INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)", (block, clean(text)))
        self._db.execute("DELETE FROM block WHERE id = ?", (block,))

    def unscrubbed(self) -> list[tuple[bytes, str, str]]:
        """Exchanges that are out of the store and not yet out of the segments: key, instance, first segment."""
        rows = self._db.execute("SELECT uuid, instance, segment FROM erasure WHERE NOT scrubbed").fetchall()
        return [(row[0], row[1], row[2]) for row in rows]

    def scrub(self) -> None:
        """Leave nothing of what was taken out: the index is merged, the file is written anew, the log is emptied."""
        self._db.execute("INSERT INTO words (words) VALUES ('optimize')")
        self._db.execute("UPDATE erasure SET scrubbed = 1")
        self._db.execute("VACUUM")
        checkpoint(self._db, whole=True)

    def vacuum(self) -> None:
        """Give free pages back to the disk."""
        self._db.execute("VACUUM")
        checkpoint(self._db, whole=True)

"""The store in SQLite: the side that writes.

Owns how entries become rows. What was said is kept once: a block, a message and a chain of messages are found by their hashes, and
only what is new is written, packed and put into the full-text index.
"""

import json
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kgb_gateway.dewey.canon import CanonicalBlock, CanonicalMessage, digest, hash_of, to_json
from kgb_gateway.dewey.entry import Entry, Placed, Position, Problem
from kgb_gateway.dewey.linking import Known
from kgb_gateway.dewey.packing import pack
from kgb_gateway.dewey.store.database import CHECKPOINT_PAGES, checkpoint, open_writer
from kgb_gateway.dewey.store.known import known_of, like
from kgb_gateway.dewey.store.rows import LARGEST, Remembered, clean, facts_of, said_of, text_of
from kgb_gateway.dewey.store.said import Said
from kgb_gateway.dewey.transcripts.model import Block, Dialect, Kind, Message, View

SESSIONS = 64
"""Sessions whose turns are kept in memory for linking."""

TURNS = 200
"""Turns of a session that a new one may be linked to: the latest."""

Viewer = Callable[[Dialect, Block], View]


class SqliteWriter:
    """``interface.StoreWriter`` and the file behind it. ``view``: what of a block is put into the full-text index."""

    def __init__(self, path: Path, view: Viewer) -> None:
        self.path = path
        self._db = open_writer(path)
        self._file = path.stat()
        self.view = view
        self._nodes = Remembered()
        self._messages = Remembered()
        self._blocks = Remembered()
        self._turns: OrderedDict[str, list[Known]] = OrderedDict()
        self._written = 0

    @property
    def connection(self) -> sqlite3.Connection:
        """The one connection that writes, for the rest of the store."""
        return self._db

    @property
    def is_there(self) -> bool:
        """Whether the file that this writes to is still the one of its name: one that was deleted takes writes all the same."""
        try:
            return os.path.samestat(self._file, self.path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Everything into the main file, then let go of it."""
        try:
            checkpoint(self._db, whole=True)
        finally:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """``StoreWriter.transaction``: what failed leaves nothing, in memory neither."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self.forget_memory()
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._written += 1
        if self._written % 16 == 0:
            self.checkpoint()

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """``StoreWriter.attempt``."""
        self._db.execute("SAVEPOINT attempt")
        try:
            yield
        except BaseException:
            self.forget_memory()
            if self._db.in_transaction:
                self._db.execute("ROLLBACK TO attempt")
            raise
        finally:
            if self._db.in_transaction:
                self._db.execute("RELEASE attempt")

    def checkpoint(self, *, whole: bool = False) -> None:
        """Copy the write-ahead log into the database when it has grown, or ``whole``."""
        wal = self.path.with_name(self.path.name + "-wal")
        if whole or (wal.exists() and wal.stat().st_size > CHECKPOINT_PAGES * 4096):
            checkpoint(self._db, whole=whole)

    def forget_memory(self) -> None:
        """Rows may have gone: ask the database again."""
        for remembered in (self._nodes, self._messages, self._blocks):
            remembered.clear()
        self._turns.clear()

    # The journal's place.

    def positions(self) -> dict[str, Position]:
        rows = self._db.execute("SELECT instance, segment, place, sequence FROM position")
        return {row[0]: Position(*row) for row in rows}

    def set_position(self, position: Position) -> None:
        self._db.execute(
            "INSERT INTO position VALUES (?, ?, ?, ?) ON CONFLICT (instance) DO UPDATE SET "
            "segment = excluded.segment, place = excluded.place, sequence = excluded.sequence",
            (position.instance, position.segment, position.place, position.sequence),
        )

    def add_problem(self, problem: Problem) -> None:
        self._db.execute(
            "INSERT INTO problem (at, instance, segment, place, exchange, why) VALUES (?, ?, ?, ?, ?, ?)",
            (
                problem.at,
                problem.instance,
                problem.segment,
                problem.place,
                problem.exchange or None,
                clean(problem.why),
            ),
        )

    # Exchanges.

    def has(self, uuid: bytes) -> bool:
        return has(self._db, uuid)

    def known(self, session: str, chain: Sequence[bytes], caller: str) -> tuple[str, list[Known]]:
        if not session:
            session = like(self._db, chain, caller)
        if not session:
            return "", []
        turns = self._turns.pop(session, None)
        if turns is None:
            turns = known_of(self._db, session, TURNS)
        self._turns[session] = turns
        while len(self._turns) > SESSIONS:
            self._turns.popitem(last=False)
        return session, list(turns)

    def said(self, uuid: bytes) -> tuple[tuple[Message, ...], tuple[Message, ...]] | None:
        row = self._db.execute("SELECT node, reply FROM exchange WHERE uuid = ?", (uuid,)).fetchone()
        if row is None:
            return None
        said = Said(self._db)
        path = said.path(row[0])
        behind = said.path(row[1])[len(path) :] if row[1] is not None else []
        return (
            tuple(said.message(message) for _, message in path),
            tuple(said.message(message) for _, message in behind),
        )

    def replied(self, reply_id: str, caller: str) -> bytes | None:
        row = self._db.execute(
            "SELECT uuid FROM exchange WHERE reply_id = ? AND reply_id <> '' AND caller = ? ORDER BY at DESC LIMIT 1",
            (clean(reply_id), caller),
        ).fetchone()
        return row[0] if row is not None else None

    def add(self, placed: Placed) -> None:
        entry = placed.entry
        if self.has(entry.uuid):
            return
        dialect = entry.dialect
        node = self._chain(None, 0, placed.messages, placed.asked.chain, dialect)
        reply = self._chain(node, len(placed.messages), placed.replies, placed.reply_chain, dialect)
        session = self._session(placed) if placed.session else None
        conversation = self._conversation(placed, session) if placed.conversation and session is not None else None
        values = facts_of(entry) | {
            "session": session,
            "conversation": conversation,
            "relation": str(placed.link.relation),
            "after": bytes.fromhex(placed.link.after) or None,
            "shared": placed.link.shared,
            "node": node,
            "reply": reply if placed.replies else None,
            "replies": len(placed.replies),
            "system": self._message(placed.system, None) if placed.system is not None else None,
            "tools": self._message(placed.tools, None) if placed.tools is not None else None,
            "params": self._params(entry),
            "asked": placed.asked.same + placed.asked.instructions or None,
            "summary": placed.asked.summary,
            "said": said_of(placed),
        }
        names = ", ".join(values)
        marks = ", ".join("?" * len(values))
        cursor = self._db.execute(f"INSERT INTO exchange ({names}) VALUES ({marks})", tuple(values.values()))
        self._usage(cursor.lastrowid or 0, entry)
        self._remember(placed)

    def _remember(self, placed: Placed) -> None:
        turns = self._turns.get(placed.session)
        if turns is None or not placed.messages:
            return
        entry = placed.entry
        whole = not entry.partial and entry.status == 200
        reply = placed.reply_chain[0] if placed.reply_chain else b""
        turns.append(Known(entry.uuid.hex(), placed.conversation, placed.asked, reply, whole))
        del turns[:-TURNS]

    def _usage(self, exchange: int, entry: Entry) -> None:
        for number, priced in enumerate(entry.usage):
            u = priced.usage
            counts = (u.uncached, u.cache_read, u.cache_write_5m, u.cache_write_1h, u.output, u.thinking)
            self._db.execute(
                "INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    exchange,
                    number,
                    clean(u.model),
                    *(min(c, LARGEST) for c in counts),
                    clean(json.dumps(dict(u.server_tools))),
                    priced.cost,
                ),
            )

    # Who.

    def _session(self, placed: Placed) -> int:
        entry, key = placed.entry, clean(placed.session)
        row = self._db.execute(
            "INSERT INTO session (key, agent, caller, project, title, first_at, last_at) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (key) DO UPDATE SET last_at = max(last_at, excluded.last_at), "
            "first_at = min(first_at, excluded.first_at), "
            "agent = iif(agent = '', excluded.agent, agent), project = iif(project = '', excluded.project, project), "
            "title = iif(title = '', excluded.title, title) RETURNING id",
            (
                key,
                entry.identity.agent,
                entry.caller,
                clean(entry.project),
                self._title(placed),
                entry.at,
                entry.at,
            ),
        ).fetchone()
        return int(row[0])

    def _title(self, placed: Placed) -> str:
        """The first words that a person said."""
        if placed.kind != "main" or placed.entry.dialect is None:
            return ""
        for message in placed.messages:
            if message.role != "user":
                continue
            for block in message.blocks:
                text = self._text(placed.entry.dialect, block).strip() if block.kind == Kind.TEXT else ""
                if text and not text.startswith("<"):  # what agents put in front of it
                    return clean(" ".join(text[:400].split())[:120])
        return ""

    def _conversation(self, placed: Placed, session: int) -> int:
        entry = placed.entry
        row = self._db.execute(
            "INSERT INTO conversation (key, session, kind, agent_id, parent, first_at, last_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET last_at = max(last_at, excluded.last_at), "
            "first_at = min(first_at, excluded.first_at) RETURNING id",
            (
                placed.conversation,
                session,
                placed.kind,
                entry.identity.agent_id,
                bytes.fromhex(placed.link.after) or None,
                entry.at,
                entry.at,
            ),
        ).fetchone()
        return int(row[0])

    # What was said.

    def _chain(
        self,
        parent: int | None,
        depth: int,
        messages: Sequence[CanonicalMessage],
        hashes: Sequence[bytes],
        dialect: Dialect | None,
    ) -> int | None:
        """The node of the last of ``messages`` behind ``parent``. What is there already is found from the end."""
        start = 0
        for number in range(len(messages) - 1, -1, -1):
            found = self._find("node", self._nodes, hashes[number])
            if found is not None:
                parent, start = found, number + 1
                break
        for number in range(start, len(messages)):
            message = self._message(messages[number], dialect)
            cursor = self._db.execute(
                "INSERT INTO node (hash, parent, message, depth) VALUES (?, ?, ?, ?)",
                (hashes[number], parent, message, depth + number + 1),
            )
            parent = cursor.lastrowid
            self._nodes.add(hashes[number], parent or 0)
        return parent

    def _message(self, message: CanonicalMessage, dialect: Dialect | None) -> int:
        """The row of ``message``. ``dialect``: of what people may search for; None for system prompts and tools."""
        key = message.hash if dialect is not None else digest(b"unsearched", message.hash)
        found = self._find("message", self._messages, key)
        if found is not None:
            return found
        extra = to_json(dict(message.extra)) if message.extra else None
        cursor = self._db.execute(
            "INSERT INTO message (hash, role, extra) VALUES (?, ?, ?)", (key, clean(message.role), extra)
        )
        row = cursor.lastrowid or 0
        for place, block in enumerate(message.blocks):
            # What people do not search for has hashes of its own: a block is in the index, or it is not.
            part_key = block.hash if dialect is not None else digest(b"unsearched", block.hash)
            part = self._block(part_key, block.kind, block.value, dialect, block)
            self._db.execute("INSERT INTO part VALUES (?, ?, ?)", (row, place, part))
        self._messages.add(key, row)
        return row

    def _block(
        self, key: bytes, kind: str, value: object, dialect: Dialect | None, block: CanonicalBlock | None = None
    ) -> int:
        found = self._find("block", self._blocks, key)
        if found is not None:
            return found
        data = to_json(value)
        codec, packed = pack(data)
        cursor = self._db.execute(
            "INSERT INTO block (hash, kind, size, codec, data) VALUES (?, ?, ?, ?, ?)",
            (key, kind, len(data), codec, packed),
        )
        row = cursor.lastrowid or 0
        if dialect is not None and block is not None:
            text = self._text(dialect, block)
            if text:
                self._db.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (row, clean(text)))
        self._blocks.add(key, row)
        return row

    def _text(self, dialect: Dialect, block: CanonicalBlock) -> str:
        return text_of(self.view(dialect, Block(Kind(block.kind), block.value)))

    def _params(self, entry: Entry) -> int | None:
        if entry.prompt is None:
            return None
        params = dict(entry.prompt.params)
        return self._block(digest(b"unsearched", hash_of(params)), "params", params, None)

    def _find(self, table: str, remembered: Remembered, key: bytes) -> int | None:
        found = remembered.get(key)
        if found is not None:
            return found
        row = self._db.execute(f"SELECT id FROM {table} WHERE hash = ?", (key,)).fetchone()
        if row is None:
            return None
        remembered.add(key, row[0])
        return int(row[0])


def has(db: sqlite3.Connection, uuid: bytes) -> bool:
    """Whether this exchange is in the store, or was erased for good."""
    row = db.execute(
        "SELECT EXISTS (SELECT 1 FROM exchange WHERE uuid = :uuid) OR EXISTS (SELECT 1 FROM erasure WHERE uuid = :uuid)",
        {"uuid": uuid},
    ).fetchone()
    return bool(row[0])

"""What was said, out of the database again: blocks, messages and chains by their rows.

Owns how they are read, for whoever has a connection: the reader of the store, and the writer where it needs what it wrote.
"""

import sqlite3

from kgb_gateway.dewey.canon import from_json
from kgb_gateway.dewey.packing import unpack
from kgb_gateway.dewey.transcripts.model import Block, Kind, Message

BLOCKS = 4096
"""Blocks that stay unpacked in memory."""

NEAR = 64
"""Nodes that a chain may be longer than the one that was asked for last, and is still read from there."""


class Said:
    """Reads through ``db``."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._blocks: dict[int, Block] = {}
        self._path: list[tuple[int, int]] = []
        self._places: dict[int, int] = {}

    def path(self, node: int | None) -> list[tuple[int, int]]:
        """Nodes and messages of the chain that ends with ``node``, in order.

        The turns of a conversation are asked for one after the other, and each goes on where the last one ended.
        """
        if node is None:
            return []
        added: list[tuple[int, int]] = []
        at: int | None = node
        while at is not None and at not in self._places and len(added) < NEAR:
            parent, message = self._db.execute("SELECT parent, message FROM node WHERE id = ?", (at,)).fetchone()
            added.append((at, message))
            at = parent
        shared = self._places[at] + 1 if at is not None and at in self._places else 0
        if at is not None and not shared:
            self._path, self._places = self._whole_path(node), {}
        else:
            for gone, _ in self._path[shared:]:
                del self._places[gone]
            del self._path[shared:]
            self._path += reversed(added)
        for place in range(len(self._places), len(self._path)):
            self._places[self._path[place][0]] = place
        return list(self._path)

    def _whole_path(self, node: int) -> list[tuple[int, int]]:
        rows = self._db.execute(
            "WITH RECURSIVE up (id, parent, message, depth) AS (SELECT id, parent, message, depth FROM node WHERE id = ? "
            "UNION ALL SELECT node.id, node.parent, node.message, node.depth FROM node JOIN up ON node.id = up.parent) "
            "SELECT id, message FROM up ORDER BY depth",
            (node,),
        ).fetchall()
        return [(row[0], row[1]) for row in rows]

    def message(self, row: int) -> Message:
        """The message in row ``row``."""
        role, extra = self._db.execute("SELECT role, extra FROM message WHERE id = ?", (row,)).fetchone()
        parts = self._db.execute("SELECT block FROM part WHERE message = ? ORDER BY place", (row,)).fetchall()
        told = from_json(extra) if extra is not None else {}
        return Message(role, tuple(self.block(part[0]) for part in parts), told if isinstance(told, dict) else {})

    def block(self, row: int) -> Block:
        """The block in row ``row``."""
        found = self._blocks.get(row)
        if found is None:
            kind, codec, data = self._db.execute("SELECT kind, codec, data FROM block WHERE id = ?", (row,)).fetchone()
            value = from_json(unpack(codec, data))
            found = Block(Kind(kind) if kind != "params" else Kind.OTHER, value if isinstance(value, dict) else {})
            if len(self._blocks) >= BLOCKS:
                self._blocks.clear()
            self._blocks[row] = found
        return found

"""Earlier turns out of the database, in the form in which linking compares them.

Owns the two questions of linking: which session begins like this one, and what are the turns of a session.
"""

import sqlite3
from collections.abc import Sequence

from kgb_gateway.dewey.canon import HASH_SIZE
from kgb_gateway.dewey.linking import Asked, Known

_BRANCHES = 1000
"""Nodes behind a common beginning that are looked at for somebody's turn."""


def like(db: sqlite3.Connection, chain: Sequence[bytes], caller: str) -> str:
    """The key of the session of ``caller`` whose messages begin most like ``chain``; "" for none."""
    low, high = 0, len(chain)  # messages that are known: if one is, so are all before it
    node = None
    while low < high:
        middle = (low + high + 1) // 2
        row = db.execute("SELECT id FROM node WHERE hash = ?", (chain[middle - 1],)).fetchone()
        if row is None:
            high = middle - 1
        else:
            low, node = middle, row[0]
    if node is None:
        return ""
    row = db.execute(
        "WITH RECURSIVE down (id) AS (SELECT :node UNION SELECT node.id FROM node JOIN down ON node.parent = down.id "
        "LIMIT :branches) "
        "SELECT session.key FROM down JOIN exchange ON exchange.node = down.id OR exchange.reply = down.id "
        "JOIN session ON session.id = exchange.session WHERE exchange.caller = :caller ORDER BY exchange.at DESC LIMIT 1",
        {"node": node, "caller": caller, "branches": _BRANCHES},
    ).fetchone()
    return str(row[0]) if row is not None else ""


def known_of(db: sqlite3.Connection, session: str, most: int) -> list[Known]:
    """The latest ``most`` turns of ``session``, oldest first."""
    rows = db.execute(
        "SELECT exchange.uuid, conversation.key, exchange.node, exchange.asked, exchange.agent_id, exchange.stream, "
        "exchange.summary, exchange.relation, exchange.at, exchange.reply, exchange.replies, exchange.partial, "
        "exchange.status FROM exchange JOIN session ON session.id = exchange.session "
        "JOIN conversation ON conversation.id = exchange.conversation "
        "WHERE session.key = ? AND exchange.node IS NOT NULL ORDER BY exchange.at DESC, exchange.id DESC LIMIT ?",
        (session, most),
    ).fetchall()
    nodes = _ancestors(db, [row[2] for row in rows] + [row[9] for row in rows if row[9] is not None])
    chains: dict[int, tuple[bytes, ...]] = {}
    return [_known(row, nodes, chains) for row in reversed(rows)]


def _known(
    row: tuple[object, ...], nodes: dict[int, tuple[int | None, bytes]], chains: dict[int, tuple[bytes, ...]]
) -> Known:
    uuid, conversation, node, asked, agent_id, stream, summary, relation, at, reply, replies, partial, status = row
    hashes = asked if isinstance(asked, bytes) else b""
    first_reply = _up(nodes, reply, int(str(replies)) - 1)
    return Known(
        uuid.hex() if isinstance(uuid, bytes) else "",
        str(conversation),
        Asked(
            _chain(nodes, node, chains),
            hashes[:HASH_SIZE],
            hashes[HASH_SIZE:],
            str(agent_id),
            bool(stream),
            bool(summary),
            "utility" if relation == "utility" else "",
            float(str(at)),
        ),
        nodes[first_reply][1] if first_reply is not None else b"",
        not partial and status == 200,
    )


def _ancestors(db: sqlite3.Connection, leaves: list[int]) -> dict[int, tuple[int | None, bytes]]:
    """Parent and hash of every node above (and including) ``leaves``."""
    nodes: dict[int, tuple[int | None, bytes]] = {}
    for leaf in leaves:
        if leaf in nodes:
            continue
        rows = db.execute(
            "WITH RECURSIVE up (id, parent, hash) AS (SELECT id, parent, hash FROM node WHERE id = ? UNION ALL "
            "SELECT node.id, node.parent, node.hash FROM node JOIN up ON node.id = up.parent) SELECT * FROM up",
            (leaf,),
        )
        for node, parent, key in rows:
            if node in nodes:
                break
            nodes[node] = (parent, key)
    return nodes


def _chain(
    nodes: dict[int, tuple[int | None, bytes]], leaf: object, chains: dict[int, tuple[bytes, ...]]
) -> tuple[bytes, ...]:
    path: list[int] = []
    node = leaf if isinstance(leaf, int) else None
    while node is not None and node not in chains:
        path.append(node)
        node = nodes[node][0]
    chain = chains[node] if node is not None else ()
    found = chain + tuple(nodes[each][1] for each in reversed(path))
    if isinstance(leaf, int):
        chains[leaf] = found
    return found


def _up(nodes: dict[int, tuple[int | None, bytes]], node: object, steps: int) -> int | None:
    """The node ``steps`` above ``node``."""
    at = node if isinstance(node, int) else None
    for _ in range(steps):
        at = nodes[at][0] if at is not None else None
    return at

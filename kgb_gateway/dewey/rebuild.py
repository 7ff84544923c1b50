"""Rebuilding: the store made anew out of the segments, with what only the old one still knows.

Owns what is carried over: exchanges whose segments have expired, and pins. What was erased stays erased, since erasures are in the
spool like everything else, and those of expired segments are carried over too.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs

from kgb_gateway.dewey.canon import HASH_SIZE, Mark, canonical, chain_of
from kgb_gateway.dewey.document import Turn
from kgb_gateway.dewey.entry import Entry, Placed, Priced
from kgb_gateway.dewey.identity import Identity
from kgb_gateway.dewey.importing import reply_of
from kgb_gateway.dewey.ingest import Ingest
from kgb_gateway.dewey.linking import Asked, Link, Relation
from kgb_gateway.dewey.notes import Notes
from kgb_gateway.dewey.reading import Reading
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.database import StoreError
from kgb_gateway.dewey.store.erase import Eraser
from kgb_gateway.dewey.store.reader import StoreReader
from kgb_gateway.dewey.store.sqlite import SqliteWriter
from kgb_gateway.dewey.transcripts.model import Block, Json, Kind, Message, Prompt
from kgb_gateway.dewey.transcripts.view import view
from kgb_gateway.dewey.usage import Usage

BATCH = 100

_TEXTS = ("name", "surface", "unreadable", "error_code", "remote", "instance", "segment")
_SAME = (
    *("at", "duration", "first_byte", "method", "target", "caller", "route", "slot", "upstream", "status", "outcome"),
    *("transformed", "request_size", "response_size", "request_headers", "response_headers", "notes", "dialect"),
    *("partial", "project", "estimated"),
)


@attrs.frozen
class Rebuilt:
    """How many exchanges came from segments, and how many were carried over."""

    read: int
    carried: int


def rebuild(layout: Layout, reading: Reading, progress: Callable[[int], None]) -> Rebuilt:
    """Make the store anew and put it in the place of the old one, in one step. Whoever calls holds the librarian's lock. StoreError
    when the old one is of a newer version."""
    target = layout.store.with_suffix(".new")
    _remove(target)
    try:
        with ExitStack() as opened:
            old = _old(layout)
            if old is not None:
                opened.enter_context(old)
            writer = SqliteWriter(target, view)
            opened.callback(writer.close)
            eraser = Eraser(writer)
            carried = _carry(old, writer, eraser) if old is not None else 0
            ingest = Ingest(layout, writer, reading, Notes(layout, eraser).apply)
            while ingest.run():
                progress(ingest.totals.exchanges)
            if old is not None:
                with writer.transaction():
                    for row in old.connection.execute("SELECT key FROM session WHERE pinned"):
                        eraser.pin(row[0], pinned=True)
    except BaseException:
        _remove(target)
        raise
    for suffix in ("-wal", "-shm"):
        layout.store.with_name(layout.store.name + suffix).unlink(missing_ok=True)
    os.replace(target, layout.store)
    _remove(target)
    return Rebuilt(ingest.totals.exchanges, carried)


def _old(layout: Layout) -> StoreReader | None:
    """The store as it is; None where there is none, or it is too damaged to be opened."""
    try:
        return StoreReader(layout)
    except StoreError as error:
        if "newer" in str(error):
            raise
        return None


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _carry(old: StoreReader, writer: SqliteWriter, eraser: Eraser) -> int:
    """Take over what no segment tells any more; how many exchanges."""
    db = old.connection
    kept = {name for (name,) in db.execute("SELECT DISTINCT segment FROM exchange") if old.layout.has(name)}
    rows = [row[0] for row in db.execute("SELECT id, segment FROM exchange ORDER BY at, id") if row[1] not in kept]
    for start in range(0, len(rows), BATCH):
        with writer.transaction():
            for row in rows[start : start + BATCH]:
                writer.add(placed_of(old, row))
    erased = [row[0] for row in db.execute("SELECT uuid FROM erasure")]
    with writer.transaction():
        eraser.forget(erased, 0.0)
    return len(rows)


def placed_of(store: StoreReader, row: int) -> Placed:
    """The exchange in row ``row``, as it was when it was taken in."""
    turn = store.request(row)
    facts = dict(turn.facts)
    more = store.connection.execute(
        "SELECT exchange.*, session.key AS session_key, session.agent, conversation.key AS conversation_key, "
        "conversation.kind FROM exchange LEFT JOIN session ON session.id = exchange.session "
        "LEFT JOIN conversation ON conversation.id = exchange.conversation WHERE exchange.id = ?",
        (row,),
    ).fetchone()
    hashes = more["asked"] or b""
    messages = tuple(canonical(message) for message in turn.added)
    chain = chain_of([message.hash for message in messages])
    replies = tuple(canonical(message) for message in turn.replies)
    utility = more["relation"] == Relation.UTILITY
    asked = Asked(
        chain,
        hashes[:HASH_SIZE],
        hashes[HASH_SIZE:],
        turn.agent_id,
        bool(more["stream"]),
        bool(more["summary"]),
        "utility" if utility else "",
        turn.at,
    )
    return Placed(
        _entry(turn, facts, more["agent"] or ""),
        asked,
        Link(Relation(turn.relation), turn.conversation, turn.after.replace("-", ""), more["shared"]),
        turn.session,
        turn.conversation,
        more["kind"] or "main",
        canonical(Message("system", turn.system)) if turn.system else None,
        canonical(Message("tools", _blocks(turn.tools))) if turn.tools else None,
        messages,
        replies,
        chain_of([reply.hash for reply in replies], chain[-1] if chain else b""),
        tuple(_marks(facts)),
    )


def _entry(turn: Turn, facts: dict[str, Json], agent: str) -> Entry:
    texts: dict[str, Any] = {name: str(facts.pop(name, "")) for name in _TEXTS}
    place, attempts, stream = facts.pop("place", 0), facts.pop("attempts", 0), bool(facts.pop("stream", False))
    facts.pop("marks", None)
    reply = reply_of(turn, facts)
    prompt = None
    if turn.dialect is not None and (turn.added or turn.system or turn.params):
        prompt = Prompt(turn.dialect, turn.model, stream, turn.system, turn.tools, turn.added, "", turn.params)
    told = attrs.asdict(turn, recurse=False)
    return Entry(
        **{name: told[name] for name in _SAME},
        **texts,
        uuid=uuid.UUID(turn.exchange).bytes,
        place=place if isinstance(place, int) else 0,
        attempts=attempts if isinstance(attempts, int) else 0,
        request_sha256=bytes.fromhex(turn.request_sha256),
        response_sha256=bytes.fromhex(turn.response_sha256),
        facts=facts,
        prompt=prompt,
        reply=reply,
        identity=Identity(agent, "", turn.agent_id),
        usage=tuple(_usage(each) for each in turn.usage),
        cost=turn.cost_micro_usd,
        prices=turn.price_version,
    )


def _usage(told: Mapping[str, Json]) -> Priced:
    cost = told.get("cost")
    known = {field.name for field in attrs.fields(Usage)}
    counted: dict[str, Any] = {name: value for name, value in told.items() if name in known}
    return Priced(Usage(**counted), cost if isinstance(cost, int) else None)


def _blocks(values: tuple[Json, ...]) -> tuple[Block, ...]:
    return tuple(Block(Kind.OTHER, value if isinstance(value, dict) else {"tool": value}) for value in values)


def _marks(facts: Mapping[str, Json]) -> Iterator[Mark]:
    marks = facts.get("marks")
    for mark in marks if isinstance(marks, list) else []:
        message, block, inner, value = mark
        yield Mark(message, block, inner, value)

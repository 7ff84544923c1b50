"""The store in SQLite: the side that reads.

Owns how rows become what people ask for: sessions, conversations with their turns, one exchange. It opens the file read-only, so
that it works beside a librarian that writes, and beside none.
"""

import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import attrs

from kgb_gateway.dewey.canon import from_json
from kgb_gateway.dewey.document import Conversation, Turn
from kgb_gateway.dewey.packing import zstd
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.database import open_reader
from kgb_gateway.dewey.store.said import Said
from kgb_gateway.dewey.transcripts.model import Block, Dialect, Json

Row = Mapping[str, object]


@attrs.frozen
class Filter:
    """What ``list`` and ``stats`` look at; "" and None are no condition. Times are seconds since the epoch.

    ``caller``, ``agent``, ``model`` and ``project`` may hold ``*`` and ``?`` (GLOB). ``costs``: at least so many millionths of
    a dollar.
    """

    since: float | None = None
    until: float | None = None
    caller: str = ""
    agent: str = ""
    model: str = ""
    project: str = ""
    outcome: str = ""
    session: str = ""
    costs: int | None = None

    def where(self) -> tuple[str, list[object]]:
        """A condition over ``exchange`` joined with ``session``, and its parameters."""
        terms, values = ["1"], list[object]()
        for term, value in (
            ("exchange.at >= ?", self.since),
            ("exchange.at < ?", self.until),
            ("exchange.caller GLOB ?", self.caller or None),
            ("session.agent GLOB ?", self.agent or None),
            ("exchange.model GLOB ?", self.model or None),
            ("session.project GLOB ?", self.project or None),
            ("exchange.outcome = ?", self.outcome or None),
            ("session.key = ?", self.session or None),
        ):
            if value is not None:
                terms.append(term)
                values.append(value)
        return " AND ".join(terms), values


_SAME = (
    *("at", "duration", "first_byte", "caller", "route", "slot", "upstream", "method", "target", "model", "status"),
    *("outcome", "agent_id", "relation", "stop_reason", "reply_id", "request_size", "response_size"),
)
"""Columns that a turn has under the same name."""

_FACTS = ("name", "surface", "unreadable", "stream", "error_code", "attempts", "remote", "instance", "segment", "place")
"""Columns that go into its facts."""


class StoreReader:
    """Answers questions about what is in the store of ``layout``, and closes it at the end of a ``with``. StoreError when there is
    none."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._db = open_reader(layout.store)
        self._db.row_factory = sqlite3.Row
        self._said = Said(self._db)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @property
    def said(self) -> Said:
        """Messages and blocks by row."""
        return self._said

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection, for searches and statistics."""
        return self._db

    def sessions(self, wanted: Filter, limit: int) -> list[Row]:
        """Sessions with what they hold, newest first: key, agent, caller, project, title, first_at, last_at, pinned, turns,
        conversations, models, tokens_in, tokens_out, cost, estimated, outcomes."""
        where, values = wanted.where()
        having = " HAVING total(exchange.cost) >= ?" if wanted.costs is not None else ""
        if wanted.costs is not None:
            values.append(wanted.costs)
        narrow = "SELECT exchange.session FROM exchange JOIN session ON session.id = exchange.session WHERE " + where
        simple = wanted == Filter()
        inner = "SELECT id FROM session" if simple else narrow
        rows = self._db.execute(
            "SELECT session.key, session.agent, session.caller, session.project, session.title, session.first_at, "
            "session.last_at, session.pinned, sum(exchange.relation <> 'utility') AS turns, "
            "count(DISTINCT exchange.conversation) AS conversations, "
            "group_concat(DISTINCT nullif(exchange.model, '')) AS models, sum(exchange.tokens_in) AS tokens_in, "
            "sum(exchange.tokens_out) AS tokens_out, sum(exchange.cost) AS cost, max(exchange.estimated) AS estimated, "
            "max(exchange.partial) AS partial, group_concat(DISTINCT exchange.outcome) AS outcomes "
            f"FROM (SELECT id AS chosen FROM session WHERE id IN ({inner}) ORDER BY last_at DESC "
            f"LIMIT {-1 if having else int(limit)}) JOIN session ON session.id = chosen "
            f"JOIN exchange ON exchange.session = session.id GROUP BY session.id{having} "
            "ORDER BY session.last_at DESC LIMIT ?",
            [*([] if simple else values[: len(values) - bool(having)]), *(values[-1:] if having else []), limit],
        )
        return [dict(row) for row in rows]

    def exchanges(self, wanted: Filter, limit: int) -> list[Row]:
        """Exchanges of every kind, newest first."""
        where, values = wanted.where()
        rows = self._db.execute(
            "SELECT exchange.*, session.key AS session_key, session.agent, session.project FROM exchange "
            f"LEFT JOIN session ON session.id = exchange.session WHERE {where} ORDER BY exchange.at DESC LIMIT ?",
            [*values, limit],
        )
        return [dict(row) for row in rows]

    def conversations(self, session: int | None = None, wanted: Filter | None = None) -> Iterator[Conversation]:
        """Conversations, oldest first: of one session, or those with an exchange that is ``wanted``. Their turns are read
        when somebody asks for them."""
        where, values = "1", list[object]()
        if session is not None:
            where, values = "conversation.session = ?", [session]
        elif wanted is not None and wanted != Filter():
            inner, values = wanted.where()
            where = (
                "conversation.id IN (SELECT exchange.conversation FROM exchange "
                f"JOIN session ON session.id = exchange.session WHERE {inner})"
            )
        rows = self._db.execute(
            "SELECT conversation.*, session.key AS session_key, session.agent, session.title, session.project FROM conversation "
            f"JOIN session ON session.id = conversation.session WHERE {where} ORDER BY conversation.first_at",
            values,
        ).fetchall()
        for row in rows:
            yield self._conversation(row)

    def _conversation(self, row: sqlite3.Row) -> Conversation:
        return Conversation(
            id=row["key"],
            session=row["session_key"],
            agent=row["agent"],
            kind=row["kind"],
            title=row["title"],
            project=row["project"],
            turns=self._turns(row["id"]),
        )

    def _turns(self, conversation: int) -> Iterator[Turn]:
        rows = self._db.execute(
            "SELECT id FROM exchange WHERE conversation = ? ORDER BY at, id", (conversation,)
        ).fetchall()
        for row in rows:
            yield self.turn(row["id"])

    def loose(self, wanted: Filter | None = None) -> Iterator[Turn]:
        """Exchanges that are no turn of a conversation: utilities, other paths, what could not be read."""
        where, values = (wanted or Filter()).where()
        rows = self._db.execute(
            "SELECT exchange.id FROM exchange LEFT JOIN session ON session.id = exchange.session "
            f"WHERE exchange.conversation IS NULL AND {where} ORDER BY exchange.at, exchange.id",
            values,
        ).fetchall()
        for row in rows:
            yield self.turn(row["id"])

    def loose_of(self, session: int) -> Iterator[Turn]:
        """Those of one session."""
        rows = self._db.execute(
            "SELECT id FROM exchange WHERE conversation IS NULL AND session = ? ORDER BY at, id", (session,)
        ).fetchall()
        for row in rows:
            yield self.turn(row["id"])

    def find(self, text: str) -> tuple[str, int] | None:
        """What the id ``text`` (shortened, or "last") names: ("session" | "conversation" | "exchange", row). None for nothing;
        ValueError when it may be several."""
        if text == "last":
            row = self._db.execute(
                "SELECT conversation FROM exchange WHERE conversation IS NOT NULL AND relation <> 'utility' "
                "ORDER BY at DESC LIMIT 1"
            ).fetchone()
            if row is not None:
                return "conversation", row[0]
            row = self._db.execute("SELECT id FROM exchange ORDER BY at DESC LIMIT 1").fetchone()
            return ("exchange", row[0]) if row is not None else None
        for table, column in (("conversation", "key"), ("session", "key"), ("exchange", "name")):
            rows = self._db.execute(
                f"SELECT id, {column} FROM {table} WHERE {column} >= :text AND {column} < :text || char(1114111) LIMIT 20",
                {"text": text},
            ).fetchall()
            exact = [row for row in rows if row[1] == text]
            if len(exact) == 1 or len(rows) == 1:
                return table, (exact or rows)[0][0]
            if rows:
                some = ", ".join(str(row[1]) for row in rows[:5])
                raise ValueError(f"{text!r} may mean {some}: give more of it")
        digits = text.replace("-", "").lower()
        if 4 <= len(digits) <= 32 and all(digit in "0123456789abcdef" for digit in digits):
            low, high = digits.ljust(32, "0"), digits.ljust(32, "f")
            rows = self._db.execute(
                "SELECT id FROM exchange WHERE uuid BETWEEN ? AND ? LIMIT 2", (bytes.fromhex(low), bytes.fromhex(high))
            ).fetchall()
            if len(rows) == 1:
                return "exchange", rows[0][0]
        return None

    def conversation_of(self, row: int) -> Conversation | None:
        """The conversation in row ``row``."""
        found = self._db.execute(
            "SELECT conversation.*, session.key AS session_key, session.agent, session.title, session.project FROM conversation "
            "JOIN session ON session.id = conversation.session WHERE conversation.id = ?",
            (row,),
        ).fetchone()
        return self._conversation(found) if found is not None else None

    def session_key(self, kind: str, row: int) -> str | None:
        """The key of the session that a row found by ``find`` belongs to."""
        asked = {
            "session": "SELECT key FROM session WHERE id = ?",
            "conversation": "SELECT session.key FROM conversation JOIN session ON session.id = session WHERE conversation.id = ?",
            "exchange": "SELECT session.key FROM exchange JOIN session ON session.id = session WHERE exchange.id = ?",
        }
        found = self._db.execute(asked[kind], (row,)).fetchone()
        return str(found[0]) if found is not None else None

    def session_row(self, key: str) -> int | None:
        """The row of a session."""
        found = self._db.execute("SELECT id FROM session WHERE key = ?", (key,)).fetchone()
        return int(found[0]) if found is not None else None

    def uuids(self, *, session: str = "", caller: str = "") -> list[bytes]:
        """The exchanges of a session, or of a caller."""
        rows = self._db.execute(
            "SELECT uuid FROM exchange LEFT JOIN session ON session.id = exchange.session "
            "WHERE (:session <> '' AND session.key = :session) OR (:caller <> '' AND exchange.caller = :caller) ORDER BY exchange.at",
            {"session": session, "caller": caller},
        )
        return [row[0] for row in rows]

    def named(self, rows: Sequence[int]) -> dict[int, Row]:
        """What names the exchanges in ``rows``: uuid, at, model, session and conversation (keys)."""
        found = self._db.execute(
            "SELECT exchange.id, exchange.uuid, exchange.at, exchange.model, ifnull(session.key, '') AS session, "
            "ifnull(conversation.key, '') AS conversation FROM exchange "
            "LEFT JOIN session ON session.id = exchange.session "
            "LEFT JOIN conversation ON conversation.id = exchange.conversation "
            f"WHERE exchange.id IN ({', '.join('?' * len(rows))})",
            rows,
        )
        return {row["id"]: {**row, "uuid": str(uuid.UUID(bytes=row["uuid"]))} for row in found}

    # One exchange.

    def turn(self, row: int) -> Turn:
        """The exchange in row ``row``, with what was said in it."""
        found = self._db.execute(
            "SELECT exchange.*, session.key AS session_key, session.project, conversation.key AS conversation_key, "
            "earlier.reply AS earlier_reply FROM exchange "
            "LEFT JOIN session ON session.id = exchange.session "
            "LEFT JOIN conversation ON conversation.id = exchange.conversation "
            "LEFT JOIN exchange AS earlier ON earlier.uuid = exchange.after WHERE exchange.id = ?",
            (row,),
        ).fetchone()
        path = self._said.path(found["node"])
        told = len(path)  # messages up to and with the reply of the turn before
        while told and path[told - 1][0] != found["earlier_reply"]:
            told -= 1
        shared = found["shared"] if found["relation"] not in ("first", "sub_agent", "compaction") else 0
        behind = self._said.path(found["reply"])[len(path) :] if found["reply"] is not None else []
        heads = from_json(zstd.decompress(found["heads"]))
        said, facts = _object(found["said"], packed=True), _object(found["facts"])
        assert isinstance(heads, list)
        usage, notes = said.get("usage"), facts.pop("notes", ())
        facts |= {name: found[name] for name in _FACTS if found[name]}
        facts |= {name: said[name] for name in ("rest", "unknown", "marks") if name in said}
        return Turn(
            **{name: found[name] for name in _SAME},
            exchange=str(uuid.UUID(bytes=found["uuid"])),
            dialect=Dialect(found["dialect"]) if found["dialect"] else None,
            conversation=found["conversation_key"] or "",
            session=found["session_key"] or "",
            project=found["project"] or "",
            after=str(uuid.UUID(bytes=found["after"])) if found["after"] else "",
            shared=min(shared, len(path)),
            replied=told > shared,
            system=self._single(found["system"]),
            tools=tuple(block.value for block in self._single(found["tools"])),
            params=self._said.block(found["params"]).value if found["params"] is not None else {},
            added=tuple(self._said.message(message) for _, message in path[max(told, shared) :]),
            replies=tuple(self._said.message(message) for _, message in behind),
            partial=bool(found["partial"]),
            error=said.get("error"),
            reported=usage if isinstance(usage, dict) else None,
            usage=self._usage(row),
            cost_micro_usd=found["cost"],
            estimated=bool(found["estimated"]),
            price_version=found["prices"],
            request_sha256=(found["request_sha256"] or b"").hex(),
            response_sha256=(found["response_sha256"] or b"").hex(),
            raw_kept=self.layout.has(found["segment"]),
            transformed=bool(found["transformed"]),
            request_headers=tuple((str(name), str(value)) for name, value in heads[0]),
            response_headers=tuple((str(name), str(value)) for name, value in heads[1]),
            notes=tuple(map(str, notes)) if isinstance(notes, list) else (),
            facts=facts,
        )

    def request(self, row: int) -> Turn:
        """The same with the whole of what was asked in ``added``, as if nothing had been said before."""
        node = self._db.execute("SELECT node FROM exchange WHERE id = ?", (row,)).fetchone()[0]
        messages = tuple(self._said.message(message) for _, message in self._said.path(node))
        return attrs.evolve(self.turn(row), shared=0, replied=False, added=messages)

    def _single(self, row: int | None) -> tuple[Block, ...]:
        return self._said.message(row).blocks if row is not None else ()

    def _usage(self, row: int) -> tuple[Mapping[str, Json], ...]:
        rows = self._db.execute("SELECT * FROM usage WHERE exchange = ? ORDER BY iteration", (row,)).fetchall()
        told = []
        for each in rows:
            usage = dict(each)
            usage.pop("exchange")
            usage["server_tools"] = from_json(str(usage["server_tools"]).encode())
            told.append(usage)
        return tuple(told)


def _object(data: bytes | None, *, packed: bool = False) -> dict[str, Json]:
    if data is None:
        return {}
    value = from_json(zstd.decompress(data) if packed else data)
    return value if isinstance(value, dict) else {}

"""Sums over what is in the store: tokens, cost, latency, storage.

Owns what is counted, and by what. Utilities count like everything that was paid for.
"""

import sqlite3
from collections.abc import Mapping

import attrs

from kgb_gateway.dewey.archive import archived_in, path_of
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.reader import Filter
from kgb_gateway.segments import segments_in

MEASURES = ("day", "model", "caller", "session", "agent", "route", "slot", "outcome")

_NAMES = {
    "day": "date(exchange.at, 'unixepoch', 'localtime')",
    "model": "exchange.model",
    "caller": "exchange.caller",
    "session": "session.key",
    "agent": "session.agent",
    "route": "exchange.route",
    "slot": "exchange.slot",
    "outcome": "exchange.outcome",
}

LATENCIES = 100_000
"""Exchanges of one line whose latencies are looked at: the latest."""


@attrs.frozen
class Stats:
    """``rows``: name, exchanges, tokens_in, cached, tokens_out, cost, estimated, failed, first_byte (median) and p95 (seconds).
    ``storage``: bytes of bodies that passed, of blocks that are kept, ratio, and sizes on disk."""

    by: str
    rows: list[dict[str, object]]
    storage: Mapping[str, object]

    def as_json(self) -> Mapping[str, object]:
        """For ``--json``."""
        return {"by": self.by, "rows": self.rows, "storage": self.storage}


def stats(db: sqlite3.Connection, wanted: Filter, by: str, layout: Layout) -> Stats:
    """What ``wanted`` comes to, a line for each value of ``by``."""
    name = _NAMES[by]
    where, values = wanted.where()
    joined = f"FROM exchange LEFT JOIN session ON session.id = exchange.session WHERE {where}"
    cached = "SELECT exchange, sum(cache_read) AS cached FROM usage GROUP BY exchange"
    rows = db.execute(
        f"SELECT coalesce({name}, '') AS name, count(*) AS exchanges, sum(tokens_in) AS tokens_in, "
        "coalesce(sum(u.cached), 0) AS cached, sum(tokens_out) AS tokens_out, coalesce(sum(cost), 0) AS cost, "
        "max(estimated) AS estimated, sum(exchange.status >= 400 OR exchange.status = 0) AS failed "
        f"FROM exchange LEFT JOIN ({cached}) AS u ON u.exchange = exchange.id "
        f"LEFT JOIN session ON session.id = exchange.session WHERE {where} GROUP BY 1 ORDER BY 1",
        values,
    ).fetchall()
    found = []
    for row in rows:
        line = dict(row)
        line["estimated"] = bool(line["estimated"])
        line["first_byte"], line["p95"] = _latency(
            db, f"{joined} AND coalesce({name}, '') = ?", [*values, line["name"]]
        )
        found.append(line)
    return Stats(by, found, _storage(db, layout))


def _latency(db: sqlite3.Connection, joined: str, values: list[object]) -> tuple[float | None, float | None]:
    """Median and 95th percentile of the time to the first byte."""
    rows = db.execute(
        f"SELECT first_byte {joined} AND first_byte IS NOT NULL ORDER BY exchange.at DESC LIMIT {LATENCIES}", values
    ).fetchall()
    times = sorted(row[0] for row in rows)
    if not times:
        return None, None
    return times[len(times) // 2], times[min(len(times) - 1, int(len(times) * 0.95))]


def _storage(db: sqlite3.Connection, layout: Layout) -> Mapping[str, object]:
    bodies = db.execute("SELECT coalesce(sum(request_size + response_size), 0) FROM exchange").fetchone()[0]
    blocks = db.execute("SELECT coalesce(sum(size), 0) FROM block").fetchone()[0]
    return {
        "bodies": bodies,
        "blocks": blocks,
        "ratio": round(bodies / blocks, 1) if blocks else 1.0,
        **_sizes(db, layout),
        "lag": lag(layout, db),
        "problems": db.execute("SELECT count(*) FROM problem").fetchone()[0],
    }


def _sizes(db: sqlite3.Connection, layout: Layout) -> Mapping[str, int]:
    pages = db.execute("PRAGMA page_count").fetchone()[0] * db.execute("PRAGMA page_size").fetchone()[0]
    return {
        "store": pages,
        "archive": sum(path_of(layout.archive, name).stat().st_size for name in archived_in(layout.archive)),
        "spool": sum((layout.spool / str(name)).stat().st_size for name in segments_in(layout.spool)),
    }


def on_disk(db: sqlite3.Connection, layout: Layout) -> int:
    """Bytes of the store and of all segments."""
    return sum(_sizes(db, layout).values())


def lag(layout: Layout, db: sqlite3.Connection | None) -> int:
    """Bytes in the spool that are not in the store yet; those of open exchanges too."""
    rows = db.execute("SELECT instance, segment, place FROM position").fetchall() if db is not None else []
    positions = {row[0]: (row[1], row[2]) for row in rows}
    total = 0
    for name in segments_in(layout.spool):
        segment, place = positions.get(name.instance, ("", 0))
        if str(name) < segment:
            continue
        try:
            size = (layout.spool / str(name)).stat().st_size
        except FileNotFoundError:
            continue
        total += max(0, size - place) if str(name) == segment else size
    return total

"""How an entry becomes columns, and what is remembered of rows that were written.

Owns no connection: values go in and come out.
"""

from kgb_gateway.dewey.canon import to_json
from kgb_gateway.dewey.entry import Entry, Placed
from kgb_gateway.dewey.packing import zstd
from kgb_gateway.dewey.transcripts.model import View

REMEMBERED = 200_000
"""Hashes whose row ids are kept in memory (about 30 MB)."""

LARGEST = 2**63 - 1


def text_of(view: View) -> str:
    """What of a block is searched for: its text, and its name in front."""
    return f"{view.name}\n{view.text}" if view.name else view.text


def clean(text: str) -> str:
    """``text`` as SQLite can keep it: without lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


class Remembered:
    """Row ids by hash; when there are too many, the older half goes."""

    def __init__(self) -> None:
        self._new: dict[bytes, int] = {}
        self._old: dict[bytes, int] = {}

    def get(self, key: bytes) -> int | None:
        found = self._new.get(key)
        return self._old.get(key) if found is None else found

    def add(self, key: bytes, row: int) -> None:
        if len(self._new) >= REMEMBERED // 2:
            self._old, self._new = self._new, {}
        self._new[key] = row

    def clear(self) -> None:
        self._new.clear()
        self._old.clear()


def said_of(placed: Placed) -> bytes | None:
    """What else was said, verbatim: cache marks of the request; usage, error, other members and unknown events of the reply."""
    reply = placed.entry.reply
    said: dict[str, object] = {}
    if placed.marks:
        said["marks"] = [[mark.message, mark.block, mark.inner, mark.value] for mark in placed.marks]
    if reply is not None:
        told = {
            "usage": dict(reply.usage) if reply.usage is not None else None,
            "error": reply.error,
            "rest": dict(reply.rest),
            "unknown": list(reply.unknown),
        }
        said |= {name: value for name, value in told.items() if value}
    return zstd.compress(to_json(said)) if said else None


def facts_of(entry: Entry) -> dict[str, object]:
    """The columns that come from the entry alone."""
    texts = (
        *("name", "instance", "segment", "method", "target", "remote", "caller", "route", "slot"),
        *("upstream", "outcome", "error_code", "surface", "unreadable", "model", "prices"),
    )
    values: dict[str, object] = {name: clean(text) for name, text in zip(texts, _texts(entry), strict=True)}
    facts = dict(entry.facts) | ({"notes": list(entry.notes)} if entry.notes else {})
    usages = [priced.usage for priced in entry.usage]
    return values | {
        "uuid": entry.uuid,
        "place": entry.place,
        "at": entry.at,
        "duration": entry.duration,
        "first_byte": entry.first_byte,
        "status": entry.status,
        "attempts": entry.attempts,
        "transformed": entry.transformed,
        "request_size": entry.request_size,
        "response_size": entry.response_size,
        "request_sha256": entry.request_sha256 or None,
        "response_sha256": entry.response_sha256 or None,
        "heads": zstd.compress(to_json([entry.request_headers, entry.response_headers])),
        "facts": to_json(facts) if facts else None,
        "dialect": str(entry.dialect or ""),
        "stream": entry.prompt is not None and entry.prompt.stream,
        "stop_reason": clean(entry.reply.stop_reason) if entry.reply is not None else "",
        "reply_id": clean(entry.reply.id) if entry.reply is not None else "",
        "partial": entry.partial,
        "agent_id": entry.identity.agent_id,
        "tokens_in": min(LARGEST, sum(u.uncached + u.cache_read + u.cache_write_5m + u.cache_write_1h for u in usages)),
        "tokens_out": min(LARGEST, sum(u.output for u in usages)),
        "cost": entry.cost,
        "estimated": entry.estimated,
    }


def _texts(e: Entry) -> tuple[str, ...]:
    """In the order of ``_facts_of``."""
    return (
        *(e.name, e.instance, e.segment, e.method, e.target, e.remote, e.caller, e.route, e.slot),
        *(e.upstream, e.outcome, e.error_code, e.surface, e.unreadable, e.model, e.prices),
    )

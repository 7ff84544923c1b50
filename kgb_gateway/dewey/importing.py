"""Imports: conversations that others have kept, into the spool, where the librarian finds them like everything else.

Owns how an imported turn is written as frames and read back. One that brings its bodies is written as if it had passed the gateway;
one that does not is written as a document. Both are in the spool, so that a rebuilt store has them again.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from kgb_gateway.dewey.document import Headers, Turn
from kgb_gateway.dewey.entry import Base, Entry, Priced
from kgb_gateway.dewey.identity import Identity
from kgb_gateway.dewey.notes import SpoolWriter
from kgb_gateway.dewey.transcripts.model import Json, Prompt, Reply
from kgb_gateway.dewey.turn_json import dump, load
from kgb_gateway.dewey.usage import Usage
from kgb_gateway.record import Kind
from kgb_gateway.redact import Redactor

RECORD = "import"
"""What the head of an imported turn says in the place of how much is recorded."""

_SAME = (
    *("duration", "first_byte", "method", "target", "caller", "route", "slot", "upstream", "outcome", "dialect"),
    *("transformed", "request_headers", "response_headers", "notes", "partial", "project", "estimated"),
    *("request_size", "response_size"),
)
_COUNTS = ("uncached", "cache_read", "cache_write_5m", "cache_write_1h", "output", "thinking")


@attrs.define
class Imported:
    """How many turns were written, and how many the store has already."""

    written: int = 0
    known: int = 0


def write_turns(
    writer: SpoolWriter,
    turns: Iterable[Turn],
    redactor: Redactor,
    is_known: Callable[[bytes], bool],
    progress: Callable[[int], None],
) -> Imported:
    """Write ``turns`` into the spool, without their credentials; those that are known already are passed over."""
    done = Imported()
    for turn in turns:
        key = key_of(turn)
        if is_known(key):
            done.known += 1
            continue
        _write(writer, key, turn, redactor)
        done.written += 1
        progress(done.written)
    return done


def key_of(turn: Turn) -> bytes:
    """The 16 bytes under which ``turn`` is kept."""
    try:
        return uuid.UUID(turn.exchange).bytes
    except ValueError:
        return uuid.uuid5(uuid.NAMESPACE_URL, f"kgb:{turn.exchange}").bytes


def _write(writer: SpoolWriter, key: bytes, turn: Turn, redactor: Redactor) -> None:
    bodies = turn.request_body is not None and turn.method
    asked = {
        "id": turn.exchange,
        "at": turn.at,
        "record": "full" if bodies else RECORD,
        "method": turn.method,
        "target": redactor.target(turn.target),
        "caller": turn.caller,
        "upstream": turn.upstream,
    }
    decoded = turn.source == "har" and not turn.facts.get("encoded")  # browsers keep bodies decoded, and the header
    request = _lines(turn.request_headers, redactor, decoded=decoded)
    writer.write(Kind.REQUEST_HEAD, key, json.dumps(asked).encode() + b"\n" + request)
    if bodies:
        assert turn.request_body is not None
        writer.write(Kind.REQUEST_BYTES, key, turn.request_body)
        response = _lines(turn.response_headers, redactor, decoded=decoded)
        writer.write(Kind.RESPONSE_HEAD, key, json.dumps({"status": turn.status}).encode() + b"\n" + response)
        writer.write(Kind.RESPONSE_BYTES, key, turn.response_body or b"")
    else:
        writer.write(Kind.REQUEST_BYTES, key, json.dumps(dump(turn)).encode())
    end = {
        "outcome": turn.outcome or "completed",
        "status": turn.status,
        "duration": turn.duration,
        "first_byte": turn.first_byte,
        "request_size": len(turn.request_body or b"") or turn.request_size,
        "response_size": len(turn.response_body or b"") or turn.response_size,
        "transformed": turn.transformed,
        "facts": {"source": turn.source or "jsonl"},
    }
    writer.write(Kind.END, key, json.dumps(end).encode())


def _lines(headers: Headers, redactor: Redactor, *, decoded: bool) -> bytes:
    """Header lines without credentials; a coding that has been taken off the body is not named."""
    kept = [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in headers
        if not (decoded and name.lower() in ("content-encoding", "content-length", "transfer-encoding"))
    ]
    return redactor.head(tuple(kept))[0]


def entry_of(entry: Entry, body: bytes) -> Entry:
    """An imported turn as an entry. ValueError when ``body`` holds none."""
    turn = load(json.loads(body))
    facts = dict(turn.facts)
    stream, surface = facts.pop("stream", False), facts.pop("surface", "turn")
    for name in ("name", "instance", "segment", "place", "unreadable", "marks"):
        facts.pop(name, None)
    reply = reply_of(turn, facts)
    prompt = None
    if turn.dialect is not None:
        prompt = Prompt(turn.dialect, turn.model, stream is True, turn.system, turn.tools, turn.added, "", turn.params)
    told: dict[str, Any] = attrs.asdict(turn, recurse=False)
    base = None
    if turn.after:
        # Transcripts do not count: what was replied to was all there.
        shared = turn.shared if turn.shared or not turn.replied else -1
        base = Base(key_of(attrs.evolve(turn, exchange=turn.after)), shared, turn.replied)
    return attrs.evolve(
        entry,
        **{name: told[name] for name in _SAME},
        status=turn.status or 200,
        surface=str(surface),
        request_sha256=_hex(turn.request_sha256),
        response_sha256=_hex(turn.response_sha256),
        facts=facts | {"source": turn.source or "jsonl"},
        prompt=prompt,
        reply=reply,
        base=base,
        identity=Identity(_agent(turn), turn.session, turn.agent_id, turn.parent_agent_id),
        usage=tuple(_priced(each) for each in turn.usage),
        cost=turn.cost_micro_usd,
        prices=turn.price_version,
    )


def reply_of(turn: Turn, facts: dict[str, Json]) -> Reply | None:
    """What was answered in ``turn``; ``facts`` lose what belongs to it."""
    rest, unknown = facts.pop("rest", {}), facts.pop("unknown", ())
    if turn.dialect is None or not (turn.replies or turn.reported or turn.error):
        return None
    return Reply(
        turn.dialect,
        turn.reply_id,
        turn.model,
        turn.replies,
        turn.stop_reason,
        turn.reported,
        not turn.partial,
        turn.error,
        rest if isinstance(rest, dict) else {},
        tuple(unknown) if isinstance(unknown, list) else (),
    )


def _agent(turn: Turn) -> str:
    return (
        turn.source if turn.source in ("claude-code", "codex") else ("claude-code" if "claude" in turn.source else "")
    )


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""


def _priced(told: Mapping[str, Json]) -> Priced:
    tools = told.get("server_tools")
    counts: dict[str, Any] = {name: value for name in _COUNTS if isinstance(value := told.get(name), int)}
    server = {str(k): v for k, v in tools.items() if isinstance(v, int)} if isinstance(tools, dict) else {}
    cost = told.get("cost")
    return Priced(
        Usage(str(told.get("model", "")), server_tools=server, **counts), cost if isinstance(cost, int) else None
    )

"""Agent sessions as they pass a gateway, and the spool that a gateway's journal makes of them."""

import contextlib
import json
import random
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from kgb_gateway.dewey.spool import SPOOL
from kgb_gateway.journal import Journal, JournalOptions
from kgb_gateway.record import Kind
from kgb_gateway.secret import private_directory
from kgb_gateway.tail import Tail, tail_path
from tests.bench.dewey.texts import Prose
from tests.spools import Exchange

SYSTEM = 20_000
TOOLS, TOOL = 16, 5_500
"""Characters of the system prompt; tools, and characters of each: about 110 KB together."""

TURNS, SIZE = 200, 1_000_000
"""After so many turns a body has so many bytes."""

MODEL = "claude-sonnet-4-5-20250929"
READ = 65_536
"""Bytes of a body that arrive at once."""

ROOM = 8 * 1024 * 1024
"""Bytes that may wait for the disk before the next exchange."""


class Session:
    """One agent at work: its exchanges one after the other, each body the last one with a turn behind it."""

    def __init__(self, number: int, prose: Prose) -> None:
        self._chance = random.Random(number)
        self._prose = prose
        self._number = number
        self.id = str(uuid.UUID(int=self._chance.getrandbits(128), version=4))
        self._system = [
            {"type": "text", "text": f"You are an agent.\nWorking directory: /home/u/p{number}\n{prose.take(SYSTEM)}"}
        ]
        schema = {"type": "object", "properties": {"command": {"type": "string"}}}
        self._tools = [
            {"name": f"tool{at}", "description": prose.take(TOOL), "input_schema": schema} for at in range(TOOLS)
        ]
        self._messages: list[dict[str, Any]] = []
        self._turn = 0
        self._body = self._encode([])
        self._least = len(self._body)

    def exchanges(self, turns: int) -> Iterator[Exchange]:
        """The next ``turns`` of them."""
        for _ in range(turns):
            yield self.exchange()

    def exchange(self) -> Exchange:
        """The next one."""
        self._messages.append(self._asked())
        self._body = self._encode(self._messages)
        said, call = self._prose.take(400), {"command": self._prose.take(150)}
        name = self._name("toolu_")
        blocks = [{"type": "text", "text": said}, {"type": "tool_use", "id": name, "name": "tool1", "input": call}]
        self._messages.append({"role": "assistant", "content": blocks})
        self._turn += 1
        return Exchange(
            self._number * 100_000 + self._turn,
            self._body,
            self._reply(said, name, call),
            self.id,
            at=1_760_000_000.0 + self._turn * 20,
            target="/v1/messages?beta=true",
            headers=(("host", "api.anthropic.com"), ("user-agent", "claude-cli/2.0.1 (external, cli)")),
            answers=(("content-type", "text/event-stream"), ("request-id", self._name("req_"))),
        )

    def later(self, turns: int) -> Exchange:
        """The exchange ``turns`` later, the first of the session that anybody sees."""
        *_, last = self.exchanges(turns)
        return last

    def _name(self, prefix: str) -> str:
        return f"{prefix}{self._chance.getrandbits(120):030x}"

    def _asked(self) -> dict[str, Any]:
        if not self._messages:
            return {
                "role": "user",
                "content": [{"type": "text", "text": f"Please find the fault. {self._prose.take(300)}"}],
            }
        wanted = self._least + (SIZE - self._least) * (self._turn + 1) // TURNS
        text = self._prose.take(max(100, wanted - len(self._body) - 1000))
        called = self._messages[-1]["content"][-1]["id"]
        return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": called, "content": text}]}

    def _encode(self, messages: list[dict[str, Any]]) -> bytes:
        """The body; the last message holds the cache mark, which moves on with every turn."""
        sent = list(messages)
        if sent:
            content = [*sent[-1]["content"]]
            content[-1] = {**content[-1], "cache_control": {"type": "ephemeral"}}
            sent[-1] = {**sent[-1], "content": content}
        body = {
            "model": MODEL,
            "messages": sent,
            "system": self._system,
            "tools": self._tools,
            "metadata": {"user_id": f"user_0_account__session_{self.id}"},
            "max_tokens": 32_000,
            "stream": True,
        }
        return json.dumps(body, ensure_ascii=False).encode()

    def _reply(self, text: str, name: str, call: dict[str, Any]) -> list[bytes]:
        usage = {"input_tokens": 12, "cache_read_input_tokens": len(self._body) // 4, "output_tokens": 1}
        message = {"id": self._name("msg_"), "type": "message", "role": "assistant", "model": MODEL, "content": []}
        told: list[dict[str, Any]] = [
            {"type": "message_start", "message": {**message, "stop_reason": None, "usage": usage}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        ]
        for at in range(0, len(text), 12):
            delta = {"type": "text_delta", "text": text[at : at + 12]}
            told.append({"type": "content_block_delta", "index": 0, "delta": delta})
        block = {"type": "tool_use", "id": name, "name": "tool1", "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(call)}
        told += [
            {"type": "content_block_stop", "index": 0},
            {"type": "content_block_start", "index": 1, "content_block": block},
            {"type": "content_block_delta", "index": 1, "delta": delta},
            {"type": "content_block_stop", "index": 1},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 120}},
            {"type": "message_stop"},
        ]
        return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in told]


def interleaved(sessions: int, turns: int) -> Iterator[Exchange]:
    """Exchanges of several sessions, one of each in turn."""
    prose = Prose()
    working = [Session(number, prose) for number in range(1, sessions + 1)]
    for _ in range(turns):
        for session in working:
            yield session.exchange()


def unseen(count: int, turns: int = TURNS // 2) -> Iterator[Exchange]:
    """Exchanges of as many sessions, each half as long as it will get, nothing of which was seen before."""
    prose = Prose()
    for number in range(1, count + 1):
        yield Session(number, prose).later(turns)


@contextlib.contextmanager
def _journal(home: Path, instance: str, options: JournalOptions) -> Iterator[Journal]:
    spool = private_directory(home / SPOOL)
    journal = Journal(spool, instance, Tail.open(tail_path(home, instance), options.tail_size), options, "bench")
    journal.start()
    try:
        yield journal
    finally:
        journal.stop()


def record(
    home: Path, exchanges: Iterable[Exchange], instance: str = "bench", options: JournalOptions | None = None
) -> int:
    """Have a gateway's journal write ``exchanges`` to the spool of ``home``; bytes of their bodies. RuntimeError when it left
    anything out."""
    total = 0
    with _journal(home, instance, options or JournalOptions()) as journal:
        for exchange in exchanges:
            while journal.lag > ROOM:
                time.sleep(0.005)  # this comes faster than from any provider: the disk is let catch up
            total += _write(journal, exchange)
        if journal.counters.gaps or journal.counters.unsaid_bytes or journal.failing:
            raise RuntimeError(f"the journal could not follow: {journal.failing} {journal.counters}")
    return total


def _write(journal: Journal, exchange: Exchange) -> int:
    """One exchange as the tap writes it; bytes of its bodies."""
    places = {Kind.REQUEST_BYTES: 0, Kind.RESPONSE_BYTES: 0}
    for kind, payload in exchange.frames():
        if kind in places:
            for at in range(0, len(payload), READ):
                journal.body(kind, exchange.key, places[kind] + at, payload[at : at + READ])
            places[kind] += len(payload)
        elif kind == Kind.END:
            journal.end(exchange.key, payload)
        else:
            journal.append(kind, exchange.key, payload)
    return sum(places.values())

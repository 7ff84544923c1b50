"""Spools as gateways write them, for tests of what reads them."""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import attrs

from kgb_gateway.dewey.notes import SpoolWriter
from kgb_gateway.dewey.prices import Prices
from kgb_gateway.dewey.reading import Reading
from kgb_gateway.record import Kind

SESSION = "5f1c2e4a-8f6b-4d5e-9a7c-0123456789ab"


def prices() -> Prices:
    """The shipped ones."""
    return Prices.parse((resources.files("kgb_gateway.dewey") / "prices.json").read_text(encoding="utf-8"))


def reading() -> Reading:
    return Reading(prices())


def key(number: int) -> bytes:
    """The key of exchange ``number``."""
    return uuid.UUID(int=0x0195_0000_0000_7000_8000_0000_0000_0000 + number).bytes


def user(*texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def assistant(*texts: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text} for text in texts]}


def request(messages: Sequence[Mapping[str, Any]], **more: Any) -> bytes:
    """The body of an Anthropic Messages request."""
    body = {"model": "claude-sonnet-4-5", "max_tokens": 1000, "messages": list(messages), "stream": True, **more}
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


def events(text: str, *, stop: str = "end_turn", cut: bool = False, **usage: int) -> list[bytes]:
    """The reply as a stream, an event each; ``cut``: without its end."""
    used = {"input_tokens": 10, "output_tokens": 1, **usage}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5", "content": []}
    told: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, "stop_reason": None, "usage": used}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    ]
    for start in range(0, len(text), 8):
        delta = {"type": "text_delta", "text": text[start : start + 8]}
        told.append({"type": "content_block_delta", "index": 0, "delta": delta})
    if not cut:
        told += [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 20}},
            {"type": "message_stop"},
        ]
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in told]


@attrs.define
class Exchange:
    """One exchange, as frames."""

    number: int
    body: bytes = b""
    reply: Sequence[bytes] = ()
    session: str = SESSION
    caller: str = "alice"
    at: float = 1_760_000_000.0
    status: int = 200
    outcome: str = "completed"
    target: str = "/v1/messages"
    method: str = "POST"
    headers: Sequence[tuple[str, str]] = (("user-agent", "claude-cli/2.0"),)
    answers: Sequence[tuple[str, str]] = (("content-type", "text/event-stream"),)
    record: str = "full"

    @property
    def key(self) -> bytes:
        return key(self.number)

    def frames(self) -> Iterable[tuple[Kind, bytes]]:
        """Kinds and payloads, in order."""
        asked = {
            "id": str(uuid.UUID(bytes=self.key)),
            "at": self.at + self.number,
            "record": self.record,
            "method": self.method,
            "target": self.target,
            "remote": "127.0.0.1",
            "caller": self.caller,
            "upstream": "anthropic",
        }
        headers = [*self.headers, *([("x-claude-code-session-id", self.session)] if self.session else [])]
        yield Kind.REQUEST_HEAD, _head(asked, headers)
        if self.body:
            yield Kind.REQUEST_BYTES, self.body
        if self.status:
            yield Kind.RESPONSE_HEAD, _head({"status": self.status, "reason": "OK"}, self.answers)
        for piece in self.reply:
            yield Kind.RESPONSE_BYTES, piece
        if self.outcome:
            yield Kind.END, json.dumps(self.end()).encode()

    def end(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "error": "",
            "status": self.status,
            "request_size": len(self.body),
            "response_size": sum(map(len, self.reply)),
            "first_byte": 0.25,
            "duration": 1.5,
            "caller": self.caller,
            "upstream": "anthropic",
            "attempts": 1,
            "transformed": False,
            "facts": {},
        }


def _head(said: Mapping[str, Any], headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"{name}: {value}".encode("latin-1") for name, value in headers]
    return json.dumps(said).encode() + b"\n" + b"\r\n".join(lines)


def turns(texts: Sequence[str], *, first: int = 1, **more: Any) -> list[Exchange]:
    """A conversation: each of ``texts`` asked, and answered with ``re: TEXT``."""
    said: list[dict[str, Any]] = []
    found = []
    for number, text in enumerate(texts, first):
        said = [*said, user(text)]
        found.append(Exchange(number, request(said), events(f"re: {text}"), **more))
        said.append(assistant(f"re: {text}"))
    return found


def write(home: Path, exchanges: Iterable[Exchange]) -> None:
    """A finished segment that holds ``exchanges``, one behind the other."""
    with SpoolWriter(home / "spool", "test") as writer:
        for exchange in exchanges:
            for kind, payload in exchange.frames():
                writer.write(kind, exchange.key, payload)


def interleaved(home: Path, exchanges: Sequence[Exchange]) -> None:
    """The same, a frame of each in turn."""
    with SpoolWriter(home / "spool", "test") as writer:
        waiting = [(exchange.key, iter(list(exchange.frames()))) for exchange in exchanges]
        while waiting:
            for one in list(waiting):
                frame = next(one[1], None)
                if frame is None:
                    waiting.remove(one)
                else:
                    writer.write(frame[0], one[0], frame[1])

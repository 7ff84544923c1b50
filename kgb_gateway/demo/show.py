"""Shows a stream of events as it arrives: one line an event, with its time.

Owns the splitting of a stream into events for display and the wording of the lines. It opens nothing and prints
nothing; whoever prints asks ``paint`` for colour.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import attrs

from kgb_gateway.compare.parse import Arrival

CONTENT_WIDTH = 60
"""Characters of an event's content on its line."""

HEADING = f"{'ms':>8} {'+ms':>8}  {'event':<20} content"

# The end of an event, whichever line ends the server uses.
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")

_LINE_END = re.compile(r"\r\n|\n|\r")

_COLOURS: Mapping[str, str] = {
    "message_start": "36", "message_delta": "36", "message_stop": "36", "error": "31", "ping": "2",
    "content_block_start": "2", "content_block_stop": "2", "content_block_delta": "0",
}  # fmt: skip


@attrs.frozen
class ShownEvent:
    """One event: ``at`` seconds after the request, ``after`` seconds after the event before it, its name and data."""

    at: float
    after: float
    name: str
    data: Any

    @property
    def content(self) -> str:
        """The little that people want to see of it."""
        return _content(self.data) if isinstance(self.data, Mapping) else str(self.data)

    def line(self, *, colour: bool = False) -> str:
        """The event as a line under HEADING."""
        content = self.content
        if len(content) > CONTENT_WIDTH:
            content = content[: CONTENT_WIDTH - 3] + "..."
        times = f"{self.at * 1000:8.1f} {self.after * 1000:8.1f}"
        name = f"{self.name:<20}"
        return f"{times}  {paint(name, _COLOURS.get(self.name, '0'), colour)} {content}".rstrip()

    def document(self) -> dict[str, Any]:
        """The event for machines; times in milliseconds."""
        times = {"ms": round(self.at * 1000, 3), "delta_ms": round(self.after * 1000, 3)}
        return {**times, "event": self.name, "data": self.data}


def paint(text: str, code: str, colour: bool) -> str:
    """``text`` in an ANSI colour, or as it is."""
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code != "0" else text


@attrs.define
class EventReader:
    """Puts arriving bytes together into events; an event may be cut anywhere."""

    events: list[ShownEvent] = attrs.field(factory=list)
    _rest: bytes = b""

    def feed(self, arrival: Arrival) -> list[ShownEvent]:
        """The events that are complete with ``arrival``."""
        *whole, self._rest = _BLANK_LINE.split(self._rest + arrival.data)
        new = []
        for raw in whole:
            before = self.events[-1].at if self.events else 0.0
            event = _event(raw, arrival.at, arrival.at - before)
            if event is not None:
                self.events.append(event)
                new.append(event)
        return new


def _event(raw: bytes, at: float, after: float) -> ShownEvent | None:
    """One event; None for a comment. WHATWG HTML, section 9.2.6, without ids and retries."""
    name, data = "", []
    for line in _LINE_END.split(raw.decode("utf-8", "replace")):
        field, _, value = line.partition(":")
        if field == "event":
            name = value.removeprefix(" ")
        elif field == "data":
            data.append(value.removeprefix(" "))
    if not data and not name:
        return None
    text = "\n".join(data)
    try:
        document = json.loads(text)
    except ValueError:
        document = text
    kind = document.get("type") if isinstance(document, Mapping) else None
    return ShownEvent(at, after, name or str(kind or "message"), document)


def _content(data: Mapping[str, Any]) -> str:
    """What an Anthropic event is about."""
    match data:
        case {"message": {"model": model, "id": identity}}:
            return f"{model} {identity}"
        case {"content_block": {"type": "tool_use", "name": name}}:
            return f"tool_use {name}"
        case {"content_block": {"type": kind}}:
            return str(kind)
        case {"delta": {"text": str(text)}}:
            return f"{'text':<10} {_quoted(text)}"
        case {"delta": {"thinking": str(text)}}:
            return f"{'thinking':<10} {_quoted(text)}"
        case {"delta": {"partial_json": str(text)}}:
            return f"{'input_json':<10} {_quoted(text)}"
        case {"delta": {"signature": str(text)}}:
            return f"{'signature':<10} {text}"
        case {"delta": {"stop_reason": reason}, "usage": {"output_tokens": tokens}}:
            return f"{reason}, {tokens} output tokens"
        case {"error": {"message": message}}:
            return str(message)
        case {"index": int(index)}:
            return f"block {index}"
    return ""


def _quoted(text: str) -> str:
    """``text`` in one line, blanks at its ends visible."""
    return json.dumps(text, ensure_ascii=False)

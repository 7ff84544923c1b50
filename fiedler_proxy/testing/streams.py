"""Server-sent events for tests: written by hand or taken from recorded provider replies.

Owns the making of SSE bytes. It parses nothing that a gateway sends.
"""

import enum
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

Payload = str | Mapping[str, object]
Event = Payload | tuple[str, Payload]


class StreamStyle(enum.StrEnum):
    """How a provider dresses its payloads."""

    ANTHROPIC = "anthropic"  # every event carries a name, equal to the payload's "type"
    OPENAI = "openai"  # bare data lines, [DONE] at the end
    RESPONSES = "responses"  # named like Anthropic's; OpenAI Responses
    BARE = "bare"  # bare data lines and nothing at the end; Gemini


def sse_event(event: Event) -> bytes:
    """One event: ``data`` alone, or ``(name, data)``; a mapping becomes compact JSON, a text stands as it is."""
    name, payload = event if isinstance(event, tuple) else ("", event)
    text = payload if isinstance(payload, str) else json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
    lines = [f"event: {name}\n"] if name else []
    lines += [f"data: {line}\n" for line in text.split("\n")]
    return ("".join(lines) + "\n").encode()


def sse(*events: Event) -> bytes:
    """Several events, as they follow each other on the wire."""
    return b"".join(map(sse_event, events))


def dress(payloads: Iterable[str], style: StreamStyle) -> list[bytes]:
    """JSON ``payloads`` as the events of a whole stream in ``style``, one item an event."""
    named = style in (StreamStyle.ANTHROPIC, StreamStyle.RESPONSES)
    events = [sse_event((kind_of(text), text) if named else text) for text in payloads]
    if style is StreamStyle.OPENAI:
        events.append(sse_event("[DONE]"))
    return events


def load_stream(path: Path | str, style: StreamStyle | None = None) -> list[bytes]:
    """The events of a recorded reply, one item an event; joined they are the body of the response.

    ``path`` is a ``.chunks.txt`` file (one JSON payload a line) or a text that is SSE already, which is split behind
    its empty lines and otherwise kept. ``style`` is told by the first payload where it is not given.
    FileNotFoundError where the file is missing: whether to skip is the test's to say.
    """
    text = Path(path).read_bytes().decode()
    if text.startswith(("event:", "data:", ":")):
        return [piece.encode() for piece in re.findall(r"(?s).+?(?:\r?\n\r?\n|\Z)", text)]
    payloads = [line for line in text.split("\n") if line]
    return dress(payloads, style or style_of(payloads[0]))


def style_of(payload: str) -> StreamStyle:
    """The style of a stream, told by its first payload."""
    kind = kind_of(payload)
    if kind:
        return StreamStyle.RESPONSES if kind.startswith("response.") else StreamStyle.ANTHROPIC
    return StreamStyle.OPENAI if '"object":' in payload else StreamStyle.BARE


def kind_of(payload: str) -> str:
    """The ``type`` of a payload, "" where it has none. Recorded payloads are not always JSON: then the first one."""
    try:
        return str(json.loads(payload).get("type", ""))
    except json.JSONDecodeError:
        match = re.search(r'"type":\s*"([^"]*)"', payload)
        return match[1] if match else ""

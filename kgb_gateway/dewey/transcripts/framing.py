"""How the events of a body are told apart: server-sent events, Amazon's event stream, or one JSON text.

Pure. The content type is believed unless the first bytes say otherwise. Owns no dialect.
"""

import base64
import binascii
from collections.abc import Iterator

import attrs

from .eventstream import PRELUDE, EventStreamDecoder, StreamMessage, message_size
from .gather import table, text
from .lax_json import close, loads
from .model import Json, NotReadable
from .sse import Event, SseDecoder

DONE = "[DONE]"

_FIELDS = (b"data:", b"event:", b":", b"id:", b"retry:")
_BOM = b"\xef\xbb\xbf"


@attrs.frozen
class Told:
    """One event. ``value``: its JSON. ``broken``: where it was no JSON as it stood, itself, verbatim; ``readable``: ``value``
    is what could be made of it all the same. ``error``: the framing itself says that this is an error.
    """

    value: Json = None
    name: str = ""
    broken: Json = None
    readable: bool = True
    error: bool = False


class SseFraming:
    """Events of JSON texts."""

    def __init__(self) -> None:
        self._decoder = SseDecoder()
        self.fault = ""

    def feed(self, data: bytes) -> Iterator[Told]:
        for event in self._decoder.feed(data):
            yield _told(event, whole=True)

    def finish(self, whole: bool) -> Iterator[Told]:
        """The event that was left open. ``whole``: no bytes are missing behind it."""
        for event in self._decoder.finish():
            yield _told(event, whole)


def _told(event: Event, whole: bool) -> Told:
    if event.data.strip() == DONE:
        return Told(DONE)
    try:
        return Told(loads(event.data), event.name)
    except NotReadable:
        verbatim: dict[str, Json] = {"event": event.name, "data": event.data} if event.name else {"data": event.data}
    cut = event.data.strip()
    ended = close(cut) if whole else ""
    if ended and ended.startswith(cut) and not ended[len(cut) :].strip("}]"):
        return Told(loads(ended), event.name, verbatim)  # only brackets are missing: what is meant is clear
    return Told(None, event.name, verbatim, readable=False, error=event.name == "error")


class AmazonFraming:
    """Bedrock: each message holds one event, in Base64 in a JSON object."""

    def __init__(self) -> None:
        self._decoder = EventStreamDecoder()

    @property
    def fault(self) -> str:
        return self._decoder.fault

    def feed(self, data: bytes) -> Iterator[Told]:
        for message in self._decoder.feed(data):
            yield _unpacked(message)

    def finish(self, whole: bool) -> Iterator[Told]:
        return iter(())


def _unpacked(message: StreamMessage) -> Told:
    verbatim: Json = {"headers": dict(message.headers), "payload": message.payload.decode("utf-8", "replace")}
    try:
        value = table(loads(message.payload))
        kind = message.headers.get(":message-type", "event")
        if kind != "event":
            name = message.headers.get(":exception-type") or message.headers.get(":error-code") or kind
            said = text(value.get("message")) or message.headers.get(":error-message", "")
            return Told({"type": name, "message": said, **value}, "error", error=True)
        packed = text(value.get("bytes"))
        if not packed:
            return Told(None, "", verbatim, readable=False)
        return Told(loads(base64.b64decode(packed, validate=True)))
    except (NotReadable, binascii.Error):
        return Told(None, "", verbatim, readable=False)


Framing = SseFraming | AmazonFraming


def framing_of(content_type: str, begin: bytes) -> Framing | None:
    """The framing of a body that begins with ``begin``; None for one JSON text."""
    kind = content_type.partition(";")[0].strip().lower()
    start = begin.removeprefix(_BOM).lstrip(b" \t\r\n")
    if kind == "application/vnd.amazon.eventstream" or _is_amazon(begin):
        return AmazonFraming() if not start.startswith((b"{", b"[", *_FIELDS[:2])) else framing_of("", begin)
    if start.startswith((b"{", b"[")):
        return None
    if kind == "text/event-stream" or start.startswith(_FIELDS):
        return SseFraming()
    return None


def _is_amazon(begin: bytes) -> bool:
    try:
        return len(begin) >= PRELUDE and begin[0] == 0 and message_size(begin) > 0
    except NotReadable:
        return False

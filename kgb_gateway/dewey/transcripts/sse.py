"""Server-sent events out of bytes, however they were cut (WHATWG HTML, "Server-sent events", 9.2.6).

Pure. Owns lines and fields; what is in ``data`` is a dialect's matter. Lines and events have no longest size: each byte is looked
at once, and joined once.
"""

import attrs

_BOM = b"\xef\xbb\xbf"


@attrs.frozen
class Event:
    """One event. ``data``: its data lines, joined by LF. ``name``: its ``event`` field, "" for none."""

    data: str
    name: str = ""
    id: str = ""


class SseDecoder:
    """Takes bytes, gives events. Bytes that are no UTF-8 become U+FFFD; comments and unknown fields are left out."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._after_cr = False
        self._begun = False
        self._data: list[bytes] = []
        self._name = b""
        self._id = b""

    def feed(self, data: bytes) -> list[Event]:
        """The events that end in ``data``."""
        if self._after_cr and data:
            self._after_cr = False
            if data.startswith(b"\n"):
                data = data[1:]
        if not data:
            return []
        lines = data.splitlines()
        ended = data.endswith((b"\n", b"\r"))
        self._after_cr = data.endswith(b"\r")
        events: list[Event] = []
        last = len(lines) - 1
        for number, line in enumerate(lines):
            if number == last and not ended:
                self._line.append(line)
            elif self._line:
                self._line.append(line)
                whole, self._line = b"".join(self._line), []
                self._take(whole, events)
            else:
                self._take(line, events)
        return events

    def finish(self) -> list[Event]:
        """The event that no empty line has ended, if there is one: many senders leave the last one open."""
        events: list[Event] = []
        if self._line:
            whole, self._line = b"".join(self._line), []
            self._take(whole, events)
        self._dispatch(events)
        return events

    def _take(self, line: bytes, events: list[Event]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BOM)
        if not line:
            self._dispatch(events)
            return
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value
        elif field == b"id":
            self._id = value

    def _dispatch(self, events: list[Event]) -> None:
        if self._data:
            data = b"\n".join(self._data).decode("utf-8", "replace")
            events.append(Event(data, self._name.decode("utf-8", "replace"), self._id.decode("utf-8", "replace")))
        self._data, self._name = [], b""

"""Live: what passes right now, as events for those who watch.

Owns the words of the feed: ``began``, ``answered``, ``text``, ``ended``, ``stored``. While nobody watches it costs one comparison a
frame. It runs where the librarian reads, and hands finished events on.
"""

import json
from collections.abc import Callable, Mapping

import attrs

from kgb_gateway.dewey.entry import Header
from kgb_gateway.dewey.exchanges import head_of, object_of
from kgb_gateway.dewey.spool import Found
from kgb_gateway.dewey.transcripts.detect import Surface, detect
from kgb_gateway.dewey.transcripts.model import Json, NotReadable
from kgb_gateway.dewey.transcripts.reader import ReplyReader
from kgb_gateway.record import Frame, Kind

Publish = Callable[[str, str], None]
"""Takes an event's name and its JSON."""


@attrs.define
class _Watched:
    name: str
    method: str
    target: str
    headers: tuple[Header, ...]
    reader: ReplyReader | None = None


class Live:
    """Turns frames into events. ``watched``: whether anybody listens; set from outside."""

    def __init__(self, publish: Publish) -> None:
        self.watched = False
        self._publish = publish
        self._open: dict[bytes, _Watched] = {}

    def heard(self, found: Found) -> None:
        """A frame, in order."""
        if not self.watched:
            if self._open:
                self._open.clear()
            return
        frame = found.frame
        if frame.kind == Kind.REQUEST_HEAD:
            self._began(frame, found)
            return
        watched = self._open.get(frame.exchange)
        if watched is None:
            return
        if frame.kind == Kind.RESPONSE_HEAD:
            said, headers = head_of(frame.payload)
            self._tell("answered", watched, {"status": said.get("status"), "at": frame.wall / 1e9})
            surface = self._surface(watched, headers)
            watched.reader = ReplyReader(surface, headers) if surface is not None else None
        elif frame.kind == Kind.RESPONSE_BYTES and watched.reader is not None:
            self._text(watched, watched.reader, frame.payload)
        elif frame.kind == Kind.END:
            del self._open[frame.exchange]
            said = object_of(frame.payload)
            told = ("outcome", "error", "status", "duration", "first_byte", "request_size", "response_size")
            self._tell("ended", watched, {name: said.get(name) for name in told})

    def stored(self, facts: Mapping[str, Json]) -> None:
        """An exchange is in the store now."""
        if self.watched:
            self._publish("stored", json.dumps(facts))

    def _began(self, frame: Frame, found: Found) -> None:
        said, headers = head_of(frame.payload)
        watched = _Watched(str(said.get("id")), str(said.get("method")), str(said.get("target")), headers)
        self._open[frame.exchange] = watched
        told = ("at", "method", "target", "caller", "route", "slot", "upstream")
        facts = {name: said.get(name) for name in told}
        self._tell("began", watched, {**facts, "instance": found.file.name.instance})

    def _surface(self, watched: _Watched, headers: tuple[Header, ...]) -> Surface | None:
        return detect(watched.method, watched.target, watched.headers, headers)

    def _text(self, watched: _Watched, reader: ReplyReader, data: bytes) -> None:
        try:
            reader.feed(data)
            seen = reader.live()
        except NotReadable:
            watched.reader = None
            return
        for view in seen:
            self._tell("text", watched, {"kind": str(view.kind), "name": view.name, "text": view.text})

    def _tell(self, event: str, watched: _Watched, said: Mapping[str, Json]) -> None:
        self._publish(event, json.dumps({"id": watched.name, **said}))

"""Images, sounds and files inside blocks: what kind they are, how large, and where they are if not here.

Pure. Every dialect writes them its own way, but all write base64 beside a media type, a ``data:`` URL, or a reference. That much is
owned here, for display; what a block means is said by ``transcripts``.
"""

import re
from collections.abc import Iterator, Mapping

import attrs

from .texts import one_line, size
from .transcripts.model import Json

_DATA_URL = re.compile(r"data:([\w.+/-]{0,100})(?:;[^,;]{0,100}){0,5}?(;base64)?,", re.IGNORECASE)
_TYPES = ("media_type", "mime_type", "mimeType", "format")
_PLACES = ("url", "image_url", "file_url", "fileUri", "file_uri", "uri", "file_id", "filename")
_DEPTH = 8


@attrs.frozen
class Media:
    """``type``: media type, or what the dialect says instead (``wav``), "" if nothing. ``base64``: the content, "" if it is not here.
    ``place``: a URL or an id of a file."""

    type: str
    base64: str = attrs.field(default="", repr=False)
    place: str = ""

    @property
    def size(self) -> int:
        """In bytes; 0 if it is not here."""
        padding = self.base64[-2:].count("=")
        return max(len(self.base64) * 3 // 4 - padding, 0)

    def __str__(self) -> str:
        parts = [one_line(self.type, 60) or "media", size(self.size) if self.base64 else one_line(self.place, 120)]
        return ", ".join(part for part in parts if part)


def media(value: Json, depth: int = _DEPTH) -> Iterator[Media]:
    """All media in a block's JSON, in order, those inside tool results too."""
    if not depth:
        return
    if isinstance(value, list | tuple):
        for member in value:
            if isinstance(member, Mapping | list | tuple):
                yield from media(member, depth - 1)
    elif isinstance(value, Mapping):
        found = _here(value)
        if found is not None:
            yield found
            return
        for member in value.values():
            if isinstance(member, Mapping | list | tuple):
                yield from media(member, depth - 1)


def _here(value: Mapping[str, Json]) -> Media | None:
    """The medium that this very object is."""
    kind = next((found for name in _TYPES if isinstance(found := value.get(name), str)), "")
    data = value.get("data", value.get("file_data"))
    if isinstance(data, str) and kind and value.get("type") != "text":
        return _from_url(data) or Media(kind, data)
    for name in _PLACES:
        place = value.get(name)
        if isinstance(place, str) and (found := _from_url(place)):
            return found
    if isinstance(data, str) and (found := _from_url(data)):
        return found
    if kind or str(value.get("type", "")) in ("url", "image_url", "input_image", "file", "input_file"):
        place = next((found for name in _PLACES if isinstance(found := value.get(name), str)), "")
        return Media(kind, "", place) if place else None
    if str(value.get("type", "")) == "image" and isinstance(value.get("url"), str):
        return Media("", "", str(value["url"]))
    return None


def _from_url(url: str) -> Media | None:
    match = _DATA_URL.match(url)
    if match is None:
        return None
    return Media(match[1], url[match.end() :] if match[2] else "", "" if match[2] else "data:")

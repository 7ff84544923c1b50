"""The entries of a HAR archive, one after the other, out of pieces of its text: an archive may be larger than memory.

Pure. Owns the little of JSON's grammar that it takes to tell where an entry begins and ends; what is in between is parsed by others, so
that an entry that cannot be read costs only itself, and one that was cut off not those before it.
"""

import codecs
import re
from collections.abc import Iterable, Iterator

import attrs

PATH = ("log", "entries")
"""The members in whose list the entries are."""

_SIGN = re.compile(r'["{}\[\],:]')
_STRING = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
_KEY_CAP = 100


class EndsEarly(ValueError):
    """The text is over before the list is. The message is for people."""


@attrs.define
class Entries:
    """Feed it pieces; it gives back the texts of the entries that they complete."""

    found: bool = False
    """The list has begun."""
    done: bool = False
    """The list has ended."""
    _keys: list[str] = attrs.field(factory=list)
    """For each container that is open: of an object the last string in it, of a list nothing."""
    _parts: list[str] = attrs.field(factory=list)
    _in_string: bool = False
    _escaped: bool = False

    def feed(self, text: str) -> Iterator[str]:
        """Texts of whole entries. Anything between two commas is one."""
        place = begin = 0
        while place < len(text) and not self.done:
            if self._in_string:
                place = self._string(text, place)
                continue
            match = _SIGN.search(text, place)
            if match is None:
                break
            sign, place = match[0], match.end()
            inside = self._inside()
            if inside and sign in ",]":
                self._parts.append(text[begin : place - 1])
                yield from self._entry()
                begin = place
                self.done = sign == "]"
            elif self._take(sign):
                begin = place
        if self.found and not self.done:
            self._parts.append(text[begin:])

    def _entry(self) -> Iterator[str]:
        entry = "".join(self._parts).strip()
        self._parts.clear()
        if entry:
            yield entry

    def _inside(self) -> bool:
        """In the list itself, in none of its entries."""
        return self.found and len(self._keys) == len(PATH) + 1

    def _take(self, sign: str) -> bool:
        """One sign outside strings; whether the list of entries begins behind it."""
        if sign == '"':
            self._in_string = True
            if self._keys and len(self._keys) <= len(PATH):
                self._keys[-1] = ""
        elif sign in "{[":
            begins = sign == "[" and tuple(self._keys) == PATH and not self.found
            self.found = self.found or begins
            self._keys.append("")
            return begins
        elif sign in "}]" and self._keys:
            self._keys.pop()
        return False

    def _string(self, text: str, place: int) -> int:
        """Go on in a string: where it, or the text, ends."""
        if self._escaped:
            self._escaped = False
            return place + 1
        match = _STRING.match(text, place)
        end = match.end() if match is not None else place
        if self._keys and len(self._keys) <= len(PATH):
            self._keys[-1] = (self._keys[-1] + text[place:end])[:_KEY_CAP]
        if end < len(text):
            self._in_string = text[end] != '"'
            self._escaped = self._in_string
        return end + 1


def entries(pieces: Iterable[str | bytes]) -> Iterator[str]:
    """The text of each entry. Raises EndsEarly, UnicodeDecodeError: behind those that could be had."""
    reader = Entries()
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    for piece in pieces:
        yield from reader.feed(piece if isinstance(piece, str) else decode(piece))
        if reader.done:
            return
    decode(b"", final=True)
    raise EndsEarly("the archive ends early" if reader.found else "no log.entries: not a HAR file")

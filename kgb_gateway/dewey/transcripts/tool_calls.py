"""The tool calls of a streamed chat message, put together from fragments.

Pure. Owns one question: which call does a fragment belong to? By the reference the index tells, and the id stands on the first
fragment only; servers in the field leave the index out, use one index for several calls, or repeat id and name on every fragment.
"""

from collections.abc import Mapping

from .gather import Growing, table, text, without
from .lax_json import loads
from .model import Json, NotReadable

_NAMED = ("function", "custom")
"""Members of a call that hold its name and its text."""


class _Call:
    def __init__(self) -> None:
        self.top = Growing({})
        self.inner: dict[str, Growing] = {}

    def member(self, name: str) -> str:
        """A text of the call's function, or of its custom tool."""
        return next((found for each in self.inner.values() if (found := text(each.get(name)))), "")

    def add(self, fragment: Mapping[str, Json]) -> None:
        for name, value in without(fragment, ("index",)).items():
            if name in _NAMED and isinstance(value, dict):
                self._grow(self.inner.setdefault(name, Growing({})), value)
            elif name in ("id", "type"):
                if not self.top.get(name):
                    self.top.put(name, value)
            else:
                self.top.merge(name, value)

    def _grow(self, inner: Growing, value: Mapping[str, Json]) -> None:
        for name, member in value.items():
            if name == "name" and isinstance(member, str):
                known = text(inner.get("name"))
                if member != known:  # some repeat it on every fragment
                    inner.add("name", member)
            else:
                inner.merge(name, member)

    def plain(self) -> dict[str, Json]:
        return {**self.top.plain(), **{name: inner.plain() for name, inner in self.inner.items()}}


class ToolCalls:
    """The calls of one message, in the order in which they began."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}

    def add(self, fragment: Mapping[str, Json]) -> bool:
        """One fragment; True where it begins a call."""
        index = fragment.get("index")
        name = next((found for each in _NAMED if (found := text(table(fragment.get(each)).get("name")))), "")
        identity = text(fragment.get("id"))
        call = self._meant(index, identity, name)
        begins = call is None
        if call is None:
            call = _Call()
            self._calls.append(call)
        if type(index) is int:
            self._by_index[index] = call
        if identity:
            self._by_id.setdefault(identity, call)
        call.add(fragment)
        return begins

    def plain(self) -> list[Json]:
        return [call.plain() for call in self._calls]

    def _meant(self, index: Json, identity: str, name: str) -> _Call | None:
        """The call that a fragment goes on with; None for a new one."""
        if identity and identity in self._by_id:
            return self._by_id[identity]
        call = self._calls[-1] if self._calls else None
        if type(index) is int:
            call = self._by_index.get(index)
        if call is None or not name:
            return call
        if identity and call.top.get("id"):
            return None  # another id and a name: the index is used again
        return None if _ended(call, name) else call


def _ended(call: _Call, name: str) -> bool:
    """Whether a fragment without a known id that says ``name`` begins another call than ``call``."""
    words = call.member("arguments") or call.member("input")
    if not words:
        return False
    if name != call.member("name"):
        return True
    if not words.rstrip().endswith("}"):
        return False
    try:
        loads(words)
    except NotReadable:
        return False
    return True

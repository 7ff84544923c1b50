"""The arguments of a Gemini function call that are streamed value by value, each under its JSON path.

Pure. ``{"jsonPath": "$.recipe.steps[0].text", "stringValue": "Mix", "willContinue": true}`` sets a value or goes on with it. A
path that cannot be followed changes nothing: what came stays in ``partialArgs``, verbatim.
"""

import re
from collections.abc import Mapping

from .gather import table, tables, text, without
from .model import Json

_STEP = re.compile(r"""\.([^.\[\]'"]+)|\[(\d{1,6})\]|\[(?:'([^']*)'|"([^"]*)")\]""")
_VALUES = ("stringValue", "numberValue", "boolValue", "nullValue", "structValue", "listValue")
_DEEPEST = 100


class _Text:
    """A string that grows, in the place where its value will be."""

    def __init__(self) -> None:
        self.pieces: list[str] = []


class PartialArgs:
    """A call whose arguments come in pieces; ``call`` is its first ``functionCall``."""

    def __init__(self, call: Mapping[str, Json]) -> None:
        self._call = without(call, ("partialArgs", "willContinue", "args"))
        self._root: dict[str, object] = dict(table(call.get("args")))
        self._texts: dict[str, _Text] = {}
        self._left: list[Json] = []
        self._take(call)

    def more(self, call: Mapping[str, Json]) -> None:
        """A later ``functionCall`` of the same call."""
        self._call.update(without(call, ("partialArgs", "willContinue", "args", "name")))
        self._root.update(table(call.get("args")))
        self._take(call)

    def _take(self, call: Mapping[str, Json]) -> None:
        for piece in tables(call.get("partialArgs")):
            path = text(piece.get("jsonPath"))
            name = next((name for name in _VALUES if name in piece), "")
            known = self._texts.get(path)
            if known is not None and (not name or name == "stringValue"):
                known.pieces.append(text(piece.get("stringValue")))
            elif name and not self._set(path, name, piece):
                self._left.append(piece)
            if piece.get("willContinue") is not True:
                self._texts.pop(path, None)

    def _set(self, path: str, name: str, piece: Mapping[str, Json]) -> bool:
        value: object = None if name == "nullValue" else piece[name]
        if name == "stringValue":
            growing = _Text()
            growing.pieces.append(text(value))
            self._texts[path] = growing
            value = growing
        steps = _steps(path)
        return bool(steps) and _put(self._root, steps, value)

    def plain(self) -> dict[str, Json]:
        """The call as it would have been sent at once."""
        call = dict(self._call)
        if self._root:
            call["args"] = _settled(self._root)
        if self._left:
            call["partialArgs"] = list(self._left)
        return call


def _steps(path: str) -> list[str | int]:
    """A path's names and places; [] for one that is not understood."""
    if not path.startswith("$"):
        return []
    steps: list[str | int] = []
    at = 1
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None or len(steps) >= _DEEPEST:
            return []
        name, place, single, double = match.groups()
        steps.append(int(place) if place is not None else next(n for n in (name, single, double) if n is not None))
        at = match.end()
    return steps


def _put(root: dict[str, object], steps: list[str | int], value: object) -> bool:
    """Set ``value``, making what is missing on the way. Lists grow at their end only; False where a step leads nowhere."""
    here: object = root
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        new: object = value if last else [] if isinstance(steps[number + 1], int) else {}
        if isinstance(step, int) and isinstance(here, list) and step <= len(here):
            if step == len(here):
                here.append(new)
            elif last:
                here[step] = value
            here = here[step]
        elif isinstance(step, str) and isinstance(here, dict):
            if last:
                here[step] = value
            here = here.setdefault(step, new)
        else:
            return False
    return True


def _settled(value: object) -> Json:
    if isinstance(value, _Text):
        return "".join(value.pieces)
    if isinstance(value, dict):
        return {name: _settled(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_settled(member) for member in value]
    return value

"""Objects of a stream that grow delta by delta, and small helpers to read what strangers sent.

Pure. Texts are gathered as pieces and joined when somebody looks, so that a long reply costs what it is long. Owns no dialect.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from .model import Block, Json, Kind


def text(value: Json) -> str:
    """``value`` if it is a text, else ""."""
    return value if isinstance(value, str) else ""


def table(value: Json) -> Mapping[str, Json]:
    """``value`` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Json) -> Sequence[Json]:
    """``value`` if it is a list, else an empty one."""
    return value if isinstance(value, list) else ()


def tables(value: Json) -> list[Mapping[str, Json]]:
    """The objects in ``value``, if it is a list."""
    return [each for each in items(value) if isinstance(each, dict)]


def without(value: Mapping[str, Json], names: Iterable[str]) -> dict[str, Json]:
    """The members of ``value`` but for ``names``."""
    left = set(names)
    return {name: member for name, member in value.items() if name not in left}


def number(value: Json, other: int) -> int:
    """``value`` if it can be the place of something in a stream, else ``other``."""
    return value if type(value) is int and 0 <= value < 2**31 else other


class Growing:
    """A JSON object whose members are added to."""

    def __init__(self, start: Mapping[str, Json]) -> None:
        self._value: dict[str, Json] = dict(start)
        self._pieces: dict[str, list[str]] = {}
        self._lists: dict[str, list[Json]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def get(self, name: str) -> Json:
        """A member as it is now; None where there is none."""
        if name in self._pieces:
            self._join(name)
        return self._value.get(name)

    def put(self, name: str, value: Json) -> None:
        """Replace a member."""
        self._pieces.pop(name, None)
        self._lists.pop(name, None)
        self._value[name] = value

    def add(self, name: str, more: str) -> None:
        """Text behind the text that is there; in the place of anything else."""
        pieces = self._pieces.get(name)
        if pieces is None:
            pieces = self._pieces[name] = [text(self._value.get(name))]
            self._value.setdefault(name, "")
        pieces.append(more)

    def extend(self, name: str, more: Iterable[Json]) -> None:
        """Elements behind the list that is there; in the place of anything else."""
        known = self._lists.get(name)
        if known is None:
            known = self._lists[name] = self._value[name] = list(items(self._value.get(name)))
        known.extend(more)

    def merge(self, name: str, value: Json) -> None:
        """A member that nobody has heard of, grown as its kind suggests: texts and lists go on, the rest is replaced.

        null takes nothing away.
        """
        if isinstance(value, str) and isinstance(self._value.get(name), str | None):
            self.add(name, value)
        elif isinstance(value, list) and isinstance(self._value.get(name), list | None):
            self.extend(name, value)
        elif isinstance(value, dict):
            self.put(name, {**table(self._value.get(name)), **value})
        elif value is not None or name not in self._value:
            self.put(name, value)

    def plain(self) -> dict[str, Json]:
        """The object as it is now."""
        for name in self._pieces:
            self._join(name)
        return {**self._value, **{name: list(value) for name, value in self._lists.items()}}

    def _join(self, name: str) -> None:
        joined = "".join(self._pieces[name])
        self._pieces[name] = [joined]
        self._value[name] = joined


def blocks(
    content: Json, kind: Callable[[Mapping[str, Json]], Kind], bare: Callable[[str], Mapping[str, Json]]
) -> tuple[Block, ...]:
    """``content``, a text or a list of blocks, as blocks; what is neither becomes an unknown block."""
    if content is None:
        return ()
    if not isinstance(content, list):
        content = [content]
    found = []
    for each in content:
        if isinstance(each, str):
            found.append(Block(Kind.TEXT, bare(each)))
        elif isinstance(each, dict):
            found.append(Block(kind(each), each))
        else:
            found.append(Block(Kind.OTHER, {"value": each}))
    return tuple(found)

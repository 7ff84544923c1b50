"""A turn as one JSON object, and back: the format ``kgb-dewey-1``, complete enough to be imported again.

Pure. Owns the names and shapes of that format: those of ``document.Turn``. Members that hold nothing are left out; members nobody
knows are passed over, so that a later version may add some.
"""

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping

import attrs

from .document import Conversation, Turn
from .transcripts.model import Block, Dialect, Json, Kind, Message

FORMAT = "kgb-dewey-1"


class NotATurn(ValueError):
    """An object that is no turn of this format; the message says which member is wrong."""


def dump(turn: Turn, of: Conversation | None = None) -> dict[str, Json]:
    """``turn`` as JSON; ``of``: the conversation that it stands in, whose own facts go with every turn."""
    facts: dict[str, Json] = {"format": FORMAT}
    for name, value in attrs.asdict(turn, recurse=False).items():
        if value != _DEFAULTS[name]:
            facts[name] = _WRITERS[name](value) if name in _WRITERS else value
    if of is not None:
        head = attrs.asdict(of, recurse=False, filter=lambda field, value: field.name != "turns" and bool(value))
        facts["of"] = head
    return facts


def load(value: Json) -> Turn:
    """The turn that ``dump`` wrote. Raises NotATurn."""
    if not isinstance(value, Mapping):
        raise NotATurn("not a JSON object")
    if value.get("format") != FORMAT:
        raise NotATurn(f"format is not {FORMAT!r}")
    if not isinstance(value.get("exchange"), str) or not value["exchange"]:
        raise NotATurn("exchange (its id) is missing")
    found: dict[str, object] = {}
    for name, read in _READERS.items():
        if name in value:
            try:
                found[name] = read(value[name])
            except _Wrong as wrong:
                raise NotATurn(f"{name}: {wrong}") from None
    return Turn(**found)  # type: ignore[arg-type]  # each reader gives what its field wants


def load_head(value: Json) -> Conversation | None:
    """The conversation that a line's turn stood in, without its turns; None if the line does not say."""
    head = value.get("of") if isinstance(value, Mapping) else None
    if not isinstance(head, Mapping) or not isinstance(head.get("id"), str):
        return None
    told = {name: text for name, text in head.items() if isinstance(text, str)}
    return Conversation(
        told["id"],
        told.get("session", ""),
        told.get("agent", ""),
        told.get("kind", "main"),
        told.get("title", ""),
        told.get("project", ""),
    )


_LARGEST = 1e300
"""Any time or duration is below it, and an infinite one is not; every integer below it has a float."""


class _Wrong(ValueError):
    """What a member is not."""


# Writing.


def _blocks(blocks: Iterable[Block]) -> list[Json]:
    return [{"kind": str(block.kind), "value": block.value} for block in blocks]


def _messages(messages: Iterable[Message]) -> list[Json]:
    return [
        {"role": message.role, "blocks": _blocks(message.blocks), **({"extra": message.extra} if message.extra else {})}
        for message in messages
    ]


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


_DEFAULTS = attrs.asdict(Turn(""), recurse=False)
_WRITERS: Mapping[str, Callable[..., Json]] = {
    "dialect": str,
    "system": _blocks,
    "tools": list,
    "added": _messages,
    "replies": _messages,
    "usage": list,
    "notes": list,
    "request_headers": lambda headers: [list(pair) for pair in headers],
    "response_headers": lambda headers: [list(pair) for pair in headers],
    "request_body": _base64,
    "response_body": _base64,
}


# Reading.


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise _Wrong("not a text")
    return value


def _flag(value: Json) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("not true or false")
    return value


def _whole(value: Json) -> int:
    if type(value) is not int or abs(value) > 2**62:
        raise _Wrong("not a whole number of reasonable size")
    return value


def _number(value: Json) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST:
        return float(value)
    raise _Wrong("not a number")


def _object(value: Json) -> Mapping[str, Json]:
    if not isinstance(value, dict):
        raise _Wrong("not an object")
    return value


def _list(value: Json) -> list[Json]:
    if not isinstance(value, list):
        raise _Wrong("not a list")
    return value


def _read_blocks(value: Json) -> tuple[Block, ...]:
    blocks = []
    for member in map(_object, _list(value)):
        kind = _text(member.get("kind"))
        known = Kind(kind) if kind in Kind.__members__.values() else Kind.OTHER
        blocks.append(Block(known, _object(member.get("value"))))
    return tuple(blocks)


def _read_messages(value: Json) -> tuple[Message, ...]:
    return tuple(
        Message(_text(member.get("role")), _read_blocks(member.get("blocks")), _object(member.get("extra", {})))
        for member in map(_object, _list(value))
    )


def _read_dialect(value: Json) -> Dialect:
    try:
        return Dialect(_text(value))
    except ValueError:
        raise _Wrong(f"{value!r} is no dialect that this version knows") from None


def _read_headers(value: Json) -> tuple[tuple[str, str], ...]:
    pairs = []
    for pair in map(_list, _list(value)):
        if len(pair) != 2:
            raise _Wrong("not pairs of name and value")
        pairs.append((_text(pair[0]), _text(pair[1])))
    return tuple(pairs)


def _read_bytes(value: Json) -> bytes:
    try:
        return base64.b64decode(_text(value), validate=True)
    except (binascii.Error, ValueError):
        raise _Wrong("not base64") from None


def _reader(name: str) -> Callable[[Json], object]:
    """By what the default of a member is."""
    default = _DEFAULTS[name]
    if isinstance(default, bool):
        return _flag
    if isinstance(default, int):
        return _whole
    if isinstance(default, float):
        return _number
    return _object if isinstance(default, dict) else _text


_READERS: Mapping[str, Callable[[Json], object]] = {name: _reader(name) for name in _DEFAULTS} | {
    "duration": _number,
    "first_byte": _number,
    "dialect": _read_dialect,
    "system": _read_blocks,
    "tools": lambda value: tuple(_list(value)),
    "added": _read_messages,
    "replies": _read_messages,
    "error": lambda value: value,
    "reported": _object,
    "usage": lambda value: tuple(map(_object, _list(value))),
    "cost_micro_usd": _whole,
    "notes": lambda value: tuple(map(_text, _list(value))),
    "request_headers": _read_headers,
    "response_headers": _read_headers,
    "request_body": _read_bytes,
    "response_body": _read_bytes,
}

"""Compares bodies of which two direct answers may already differ: what is stable between those must be stable here.

Pure. A body is cut into values (strings, numbers, literals) and everything between them, so that an id that changes
with every answer does not hide a blank that a proxy took away.
"""

import re
import zlib
from collections.abc import Sequence

import attrs

SNIPPET = 24
"""Bytes shown on each side of a difference."""

MAX_KEYS = 8
"""Names listed in a note."""

_VALUE = re.compile(rb'("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|\b(?:true|false|null)\b)', re.DOTALL)
_MASKED = re.compile(rb'("(?:[^"\\]|\\.)*")(\s*:)?|-?\d[\d.eE+-]*|\b(?:true|false|null)\b', re.DOTALL)
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


@attrs.frozen
class Finding:
    """``agrees`` None: the direct answers differ too much among themselves to say."""

    agrees: bool | None
    note: str


def compare_bodies(directs: Sequence[bytes], vias: Sequence[bytes], *, events: bool) -> Finding:
    """Whether ``vias`` are what the same server sent as ``directs`` (at least one of each).

    ``events``: the bodies are server-sent events, of which runs of equal shape may differ in length.
    """
    first = directs[0]
    if all(body == first for body in directs):
        for body in vias:
            if body != first:
                return Finding(False, _difference(first, body))
        return Finding(True, f"{len(first)} bytes, identical")
    tokens = [_VALUE.split(body) for body in directs]
    if len({len(one) for one in tokens}) == 1:
        return _by_value(tokens, [_VALUE.split(body) for body in vias])
    return _by_shape([_shapes(body, events) for body in directs], [_shapes(body, events) for body in vias])


def decoded(body: bytes, coding: bytes) -> bytes:
    """``body`` without gzip or deflate, so that its values can be told apart; as it is where that fails."""
    if coding.strip().lower() not in (b"gzip", b"x-gzip", b"deflate"):
        return body
    try:
        return zlib.decompressobj(wbits=47).decompress(body)
    except zlib.error:
        return body


def _difference(direct: bytes, via: bytes) -> str:
    pairs = zip(direct, via, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(direct), len(via)))
    window = slice(max(0, at - SNIPPET), at + SNIPPET)
    return f"{len(direct)} bytes direct, {len(via)} via; from byte {at}: {direct[window]!r} became {via[window]!r}"


def _by_value(directs: list[list[bytes]], vias: list[list[bytes]]) -> Finding:
    """Position by position: a token that all direct answers share must be in the others too."""
    count = len(directs[0])
    for tokens in vias:
        if len(tokens) != count:
            return Finding(
                False, f"{count // 2} values direct, {len(tokens) // 2} via{_first_change(directs[0], tokens)}"
            )
    varying: dict[str, None] = {}
    for key, column in zip(_keys(directs[0]), zip(*directs, *vias, strict=True), strict=True):
        shared, others = column[: len(directs)], column[len(directs) :]
        if len(set(shared)) > 1:
            varying[key] = None
        elif set(others) != {shared[0]}:
            changed = next(token for token in others if token != shared[0])
            return Finding(False, f"after {key or 'the start'}: {_cut(shared[0])} became {_cut(changed)}")
    names = ", ".join(list(varying)[:MAX_KEYS]) + (", ..." if len(varying) > MAX_KEYS else "")
    return Finding(True, f"the same but for what varies between direct answers too: {names}")


def _keys(tokens: list[bytes]) -> list[str]:
    """For every token the JSON key it stands under, or the last one before it."""
    key, keys = "", []
    for at, token in enumerate(tokens):
        keys.append(key)
        if at + 1 < len(tokens) and token.startswith(b'"') and tokens[at + 1].lstrip().startswith(b":"):
            key = token.strip(b'"').decode("latin-1")
    return keys


def _first_change(direct: list[bytes], via: list[bytes]) -> str:
    """Where the text between the values first differs, which is where something was added or taken away."""
    keys = _keys(direct)
    for at in range(0, min(len(direct), len(via)), 2):
        if direct[at] != via[at]:
            return f", first after {keys[at] or 'the start'}: {_cut(direct[at])} became {_cut(via[at])}"
    return ", the end differs"


def _cut(token: bytes) -> str:
    return repr(token if len(token) <= 2 * SNIPPET else token[: 2 * SNIPPET] + b"...")


def _shapes(body: bytes, events: bool) -> list[bytes]:
    """The body's events (or the whole of it) with every value masked, pings left out, repetitions taken together."""
    parts = _EVENT_END.split(body) if events else [body]
    shapes: list[bytes] = []
    for part in parts:
        shape = _MASKED.sub(lambda match: match[0] if match[2] else b"~", part)
        if shape and not shape.startswith(b"event: ping") and (not shapes or shapes[-1] != shape):
            shapes.append(shape)
    return shapes


def _by_shape(directs: list[list[bytes]], vias: list[list[bytes]]) -> Finding:
    """For answers that differ even in length, as a model's do: the same kinds of events in the same order."""
    if all(shapes == directs[0] for shapes in directs):
        for shapes in vias:
            if shapes != directs[0]:
                changed = next((b for b in shapes if b not in directs[0]), b"")
                return Finding(False, f"the sequence of events differs{': ' + _cut(changed) if changed else ''}")
        return Finding(
            True, f"length varies between direct answers too; the same {len(directs[0])} kinds of parts in order"
        )
    common = set.intersection(*map(set, directs))
    for shapes in vias:
        missing = common - set(shapes)
        if missing:
            return Finding(False, f"every direct answer has a part that is missing via: {_cut(min(missing))}")
    return Finding(None, "direct answers differ too much among themselves; nothing they share is missing via")

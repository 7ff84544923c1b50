"""Canonical forms: the hash of a block, of a message, and of a chain of messages.

Pure. What was said twice has one hash, whoever said it and in whatever order the members of its JSON stood; a mark for the
provider's cache (``cache_control``) is no part of what was said and is kept beside it. Chains are hashed parent first, so that a
session of N turns costs O(N): the hash of message i covers all before it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import attrs

from kgb_gateway.dewey.transcripts.model import Block, Json, Message

HASH_SIZE = 20
"""Bytes of a hash (BLAKE2b, RFC 7693): twice what a store of 10^12 blocks needs to meet no collision."""

NO_HASH = b""

_plain = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_sorted = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)
_quote = json.encoder.encode_basestring

_MARK = "cache_control"


@attrs.frozen
class Mark:
    """A ``cache_control`` that was taken out: of block ``block`` of message ``message``, or of a block nested in that one
    (``inner``, else -1). ``message``: -1 system, -2 tools.
    """

    message: int
    block: int
    inner: int
    value: Json


def digest(*parts: bytes) -> bytes:
    """A hash over ``parts`` and their lengths, so that no two lists of parts have the same one."""
    state = hashlib.blake2b(digest_size=HASH_SIZE)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.digest()


def to_json(value: Json) -> bytes:
    """``value`` as JSON in UTF-8, its members as they stood. Lone surrogates survive (``surrogatepass``)."""
    text = _flat(value, value) if type(value) is dict else ""
    return (text or _plain.encode(value)).encode("utf-8", "surrogatepass")


def from_json(data: bytes) -> Json:
    """The opposite of ``to_json``."""
    value: Json = json.loads(data.decode("utf-8", "surrogatepass"))
    return value


def hash_of(value: Json) -> bytes:
    """The hash of a JSON value: equal for equal values, in whatever order their members stand."""
    text = _flat(value, sorted(value)) if type(value) is dict else ""
    return digest((text or _sorted.encode(value)).encode("utf-8", "surrogatepass"))


def _flat(value: Mapping[str, Json], names: Iterable[str]) -> str:
    """An object of texts alone, as most blocks are, as JSON; "" for another. The same text as the encoder's, which is made anew for
    each value."""
    for member in value.values():
        if type(member) is not str:
            return ""
    return "{" + ",".join([f"{_quote(name)}:{_quote(str(value[name]))}" for name in names]) + "}"


def without_marks(value: Mapping[str, Json]) -> Mapping[str, Json]:
    """``value`` without its cache marks, and without those of the blocks right inside it (a tool result's content)."""
    if _MARK in value:
        value = {name: member for name, member in value.items() if name != _MARK}
    content = value.get("content")
    if isinstance(content, list) and any(isinstance(part, dict) and _MARK in part for part in content):
        inner = [
            {name: member for name, member in part.items() if name != _MARK} if isinstance(part, dict) else part
            for part in content
        ]
        value = {**value, "content": inner}
    return value


def marks_of(blocks: Iterable[Mapping[str, Json]], message: int) -> list[Mark]:
    """The cache marks of ``blocks``, the parts of message number ``message``."""
    marks = []
    for number, value in enumerate(blocks):
        if _MARK in value:
            marks.append(Mark(message, number, -1, value[_MARK]))
        content = value.get("content")
        if isinstance(content, list):
            for inner, part in enumerate(content):
                if isinstance(part, dict) and _MARK in part:
                    marks.append(Mark(message, number, inner, part[_MARK]))
    return marks


@attrs.frozen
class CanonicalBlock:
    """A block with its hash. ``value`` is without cache marks."""

    hash: bytes
    kind: str
    value: Mapping[str, Json]


@attrs.frozen
class CanonicalMessage:
    """A message with its hash and those of its blocks."""

    hash: bytes
    role: str
    extra: Mapping[str, Json]
    blocks: tuple[CanonicalBlock, ...]


def canonical_block(block: Block) -> CanonicalBlock:
    """``block`` with its hash."""
    value = without_marks(block.value)
    return CanonicalBlock(hash_of(value), str(block.kind), value)


def canonical(message: Message) -> CanonicalMessage:
    """``message`` with its hashes."""
    blocks = tuple(map(canonical_block, message.blocks))
    extra = hash_of(dict(message.extra)) if message.extra else NO_HASH
    role = message.role.encode("utf-8", "surrogatepass")
    return CanonicalMessage(digest(role, extra, *(block.hash for block in blocks)), message.role, message.extra, blocks)


def link_hash(parent: bytes, message: bytes) -> bytes:
    """The hash of a chain that ends with ``message`` (its hash) behind ``parent`` (a chain's hash, b"" for none)."""
    return digest(parent, message)


def chain_of(messages: Sequence[bytes], parent: bytes = NO_HASH) -> tuple[bytes, ...]:
    """One hash for each of ``messages`` (their hashes): each over all up to it."""
    chain = []
    for message in messages:
        parent = link_hash(parent, message)
        chain.append(parent)
    return tuple(chain)

"""Prompts that were read a moment ago: an agent's next request begins with nearly all of the one before.

Pure. What is the same is compared as JSON, which costs a tenth of reading it into messages again, and the messages of the earlier
prompt are given once more: the same objects, so that whoever compares prompts sees at once how far they agree. Owns what it means that
two JSON values are the same, and no dialect.
"""

from collections import deque
from collections.abc import Callable, Mapping

import attrs

from .model import Dialect, Json, Message, Prompt

KEPT = 32
"""Prompts that are kept, the latest of as many conversations."""

LARGEST = 4 * 1024 * 1024
"""Bytes of a body above which it is not kept."""

_ONE_EACH = frozenset((Dialect.ANTHROPIC_MESSAGES, Dialect.OPENAI_CHAT))
"""Dialects in which each member of ``messages`` is a message, whatever stands beside it."""


@attrs.frozen
class _Kept:
    dialect: Dialect
    values: list[Json]
    messages: tuple[Message, ...]
    plain: list[bool]


class Earlier:
    """What was read last. For one reader, in one thread."""

    def __init__(self) -> None:
        self._kept: deque[_Kept] = deque(maxlen=KEPT)

    def prompt(self, dialect: Dialect, read: Callable[[Json], Prompt], body: Mapping[str, Json], size: int) -> Prompt:
        """``read(body)``. ``size``: bytes of the body."""
        values = body.get("messages")
        if dialect not in _ONE_EACH or not isinstance(values, list) or len(values) < 2 or size > LARGEST:
            return read(body)
        kept, shared = self._closest(dialect, values)
        if kept is None:
            prompt = read(body)
        else:
            prompt = read({**body, "messages": values[shared:]})
            prompt = attrs.evolve(prompt, messages=kept.messages[:shared] + prompt.messages)
        if len(prompt.messages) == len(values):
            if kept is not None and shared * 2 > len(kept.values):
                self._kept.remove(kept)  # the same conversation, further on
            plain = kept.plain[:shared] if kept is not None else []
            plain += map(is_plain, values[shared:])
            self._kept.append(_Kept(dialect, values, prompt.messages, plain))
        return prompt

    def _closest(self, dialect: Dialect, values: list[Json]) -> tuple[_Kept | None, int]:
        """The prompt that agrees longest, and in how many messages."""
        best, longest = None, 0
        for kept in reversed(self._kept):
            if kept.dialect is dialect:
                shared = _shared(kept, values)
                if shared > longest:
                    best, longest = kept, shared
                if longest * 2 > len(values):
                    break
        return best, longest


def _shared(kept: _Kept, values: list[Json]) -> int:
    count = 0
    for ours, theirs, plain in zip(kept.values, values, kept.plain, strict=False):
        if ours != theirs or not (plain or alike(ours, theirs)):
            break
        count += 1
    return count


def same(one: Json, other: Json) -> bool:
    """Whether two JSON values are the same. Python's own comparison takes 1, 1.0 and true for one."""
    return one == other and alike(one, other)


def alike(one: Json, other: Json) -> bool:
    """Whether two values that are equal to Python are so in JSON too."""
    stack = [(one, other)]
    while stack:
        ours, theirs = stack.pop()
        if type(ours) is not type(theirs):
            return False
        if isinstance(ours, dict) and isinstance(theirs, dict):
            stack += [(value, theirs[name]) for name, value in ours.items() if type(value) is not str]
        elif isinstance(ours, list) and isinstance(theirs, list):
            stack += zip(ours, theirs, strict=True)
    return True


def is_plain(value: Json) -> bool:
    """Whether there is no number and no truth value in ``value``."""
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, dict):
            stack += [inner for inner in each.values() if type(inner) is not str]
        elif isinstance(each, list):
            stack += each
        elif each is not None and not isinstance(each, str):
            return False
    return True

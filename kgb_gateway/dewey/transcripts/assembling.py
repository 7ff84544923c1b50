"""From the events of a stream to a reply: what every dialect's assembler offers, and the one way from it to a ``Reply``.

Pure. A stream becomes the body that would have been sent without streaming, and that is read like any other: so the streamed and
the unstreamed twin agree by construction.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs

from .model import Json, Reply, View

Body = dict[str, Json]


class Assembler(Protocol):
    """Takes a stream's events. What it gives may be asked for at any time."""

    error: Json
    """The provider's error object, None for none."""
    unknown: list[Json]
    """Events that this version could not place, verbatim, in order."""

    @property
    def complete(self) -> bool:
        """Whether the stream has come to the end that its dialect defines, without an error."""

    def bodies(self) -> Sequence[Body]:
        """The native bodies, without streaming; most streams hold one."""

    def feed(self, event: Json, name: str = "") -> None:
        """One event's JSON; ``name``: the event's name, for senders that leave it out of the JSON."""

    def end(self) -> None:
        """The transport says that the stream is whole: for dialects whose own end is not always sent."""

    def fresh(self, event: Json) -> list[View]:
        """What an event tells a person who watches; [] for nothing."""


def assembled(assembler: Assembler, read: Callable[[Json], Reply]) -> Reply:
    """The reply, read by the dialect's own reader.

    Where a stream holds several replies (recordings do), their messages follow each other, the last one's facts count, and
    those of the earlier ones stand in ``rest["earlier"]``.
    """
    replies = [read(body) for body in assembler.bodies()] or [read({})]
    last = replies[-1]
    rest: Mapping[str, Json] = last.rest
    if len(replies) > 1:
        rest = {**rest, "earlier": [_facts(reply) for reply in replies[:-1]]}
    error = assembler.error if assembler.error is not None else last.error
    return attrs.evolve(
        last,
        messages=tuple(message for reply in replies for message in reply.messages),
        complete=assembler.complete and error is None,
        error=error,
        rest=rest,
        unknown=tuple(assembler.unknown),
    )


def _facts(reply: Reply) -> Body:
    usage = dict(reply.usage) if reply.usage is not None else None
    return {"id": reply.id, "model": reply.model, "stop_reason": reply.stop_reason, "usage": usage, **reply.rest}

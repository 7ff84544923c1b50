"""A recorded conversation as it is shown, exported and imported: turns, whatever store they come from.

Pure. Owns the words between the store and everything that prints or writes conversations. A turn says what is *new* in it: the
history stands in the turns before, so that a conversation can be written while it is read, one turn in memory at a time.
"""

from collections.abc import Callable, Iterable, Mapping

import attrs

from .texts import json_text
from .transcripts.model import Block, Dialect, Json, Message, View

Viewer = Callable[[Dialect, Block], View]
"""What a block of a dialect is to a reader: ``transcripts.view.view``."""

Headers = tuple[tuple[str, str], ...]
"""Names and values in order, credentials replaced already (``kgb_gateway.redact``)."""

Instructions = tuple[tuple[Block, ...], tuple[Json, ...]]


@attrs.frozen
class Turn:
    """One exchange as a part of a conversation. "" and None say that something is not known, or does not apply.

    **Where and when.** ``exchange``: its id, a UUID. ``at``: when the request began, in seconds since the epoch;
    ``first_byte`` and ``duration``: seconds from there to the first and the last byte of the response. ``upstream``: its base URL
    or its name. ``target``: the request target, without credentials. ``status``: 0 where there was no response. ``outcome``: a
    word of ``fiedler_proxy.exchange.Outcome``, or ``interrupted``.

    **How it belongs.** ``relation``: a word of ``linking.Relation``; ``after``: the exchange that it is linked to. The messages of its
    request are the first ``shared`` of that exchange's request, then its replies if ``replied``, then ``added``. ``source``: "" for
    what the gateway recorded, else where it was imported from.

    **What was said.** ``params``: members of the request's body besides model, system, tools and messages. ``partial``: the reply
    did not come to its end. ``reported``: the provider's own usage object. ``usage``: what follows from it, an object for each
    iteration: uncached, cache_read, cache_write_5m, cache_write_1h, output, thinking (all in tokens), server_tools, model.
    ``cost_micro_usd``: in millionths of a dollar, by the prices of ``price_version``; ``estimated`` where usage is no final word.

    **The evidence.** Sizes in bytes and SHA-256 (hexadecimal) of the bodies as they passed. ``raw_kept``: those bytes are kept, and
    may be in ``request_body`` and ``response_body`` if they were asked for. ``transformed``: a link changed the response on its way.
    ``notes``: what a reader must know besides, gaps above all. ``facts``: what else is known, by name.
    """

    exchange: str
    at: float = 0.0
    duration: float | None = None
    first_byte: float | None = None
    caller: str = ""
    route: str = ""
    slot: str = ""
    upstream: str = ""
    method: str = ""
    target: str = ""
    dialect: Dialect | None = None
    model: str = ""
    status: int = 0
    outcome: str = ""
    source: str = ""
    # How it belongs.
    conversation: str = ""
    session: str = ""
    agent_id: str = ""
    parent_agent_id: str = ""
    project: str = ""
    relation: str = ""
    after: str = ""
    shared: int = 0
    replied: bool = False
    # What was said.
    system: tuple[Block, ...] = ()
    tools: tuple[Json, ...] = ()
    params: Mapping[str, Json] = attrs.field(factory=dict)
    added: tuple[Message, ...] = ()
    replies: tuple[Message, ...] = ()
    reply_id: str = ""
    stop_reason: str = ""
    partial: bool = False
    error: Json = None
    reported: Mapping[str, Json] | None = None
    usage: tuple[Mapping[str, Json], ...] = ()
    cost_micro_usd: int | None = None
    estimated: bool = False
    price_version: str = ""
    # The evidence.
    request_size: int = 0
    response_size: int = 0
    request_sha256: str = ""
    response_sha256: str = ""
    raw_kept: bool = False
    transformed: bool = False
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Json] = attrs.field(factory=dict)
    request_headers: Headers = ()
    response_headers: Headers = ()
    request_body: bytes | None = attrs.field(default=None, repr=False)
    response_body: bytes | None = attrs.field(default=None, repr=False)

    @property
    def instructions(self) -> "Instructions":
        """System prompt and tools: most turns have those of the turn before."""
        return self.system, self.tools


@attrs.frozen
class Conversation:
    """A chain of turns. ``kind``: ``main``, ``sub_agent``, ``utility`` and what the librarian may call it besides.

    ``turns`` may be a generator that reads from a store: it is gone through once, and no turn is held longer than needed.
    """

    id: str
    session: str = ""
    agent: str = ""
    kind: str = "main"
    title: str = ""
    project: str = ""
    turns: Iterable[Turn] = attrs.field(default=(), eq=False, repr=False)


def look(view: Viewer, dialect: Dialect | None, block: Block) -> View:
    """What ``block`` is to a reader; its JSON where nobody knows the dialect."""
    return view(dialect, block) if dialect is not None else View(block.kind, json_text(block.value))


@attrs.frozen
class Sums:
    """A turn's usage in tokens, all iterations together; ``input`` holds everything read, ``cached`` what came from a cache."""

    input: int = 0
    cached: int = 0
    written: int = 0
    output: int = 0
    thinking: int = 0


def sums(turn: Turn) -> Sums | None:
    """The sums over ``turn.usage``, None where nothing is known. What is no whole number counts as 0."""
    if not turn.usage:
        return None

    def total(name: str) -> int:
        found = (usage.get(name) for usage in turn.usage)
        return sum(value for value in found if type(value) is int)

    cached, written = total("cache_read"), total("cache_write_5m") + total("cache_write_1h")
    return Sums(total("uncached") + cached + written, cached, written, total("output"), total("thinking"))

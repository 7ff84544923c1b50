"""How a turn belongs to what is known already: appended, retried, forked, edited, compacted, a sub-agent's, a utility's.

Pure decisions over hashes. A conversation is a chain of messages: ``chain[i]`` is a hash over message i and all before it, so two
requests that begin alike have chains that begin alike, and one comparison tells how far. Owns no store and reads no body: the
librarian hands in what it found, and the few earlier turns of the same session that may be meant.
"""

import enum
from collections.abc import Iterable, Sequence

import attrs

TWIN_SECONDS = 900.0
"""Longest time after a stream broke in which the same request without streaming is its twin: agents wait out retries."""


class Relation(enum.StrEnum):
    """What a turn is to the earlier turn it is linked to."""

    FIRST = "first"
    """Nothing known begins like it: a conversation of its own."""
    APPENDED = "appended"
    """The earlier request and more: its reply, most of the time."""
    RETRY = "retry"
    """The same request once more, because the earlier one failed or broke."""
    TWIN = "twin"
    """The same request without streaming, after its stream broke (Claude Code does that)."""
    REPEATED = "repeated"
    """The same request once more although the earlier one was answered."""
    EDITED = "edited"
    """The earlier request with its last message changed."""
    FORK = "fork"
    """The beginning of the earlier request, going on otherwise."""
    COMPACTION = "compaction"
    """The conversation goes on from a summary of itself."""
    SUB_AGENT = "sub_agent"
    """Another agent of the same session, with messages of its own."""
    UTILITY = "utility"
    """Not a turn of the conversation: a title, a token count, a quota check."""


@attrs.frozen
class Asked:
    """A turn as it came in.

    ``chain``: one hash for each message of the request, each over all messages up to it. ``same``: a hash of all that was
    asked (model, system, tools, messages, parameters) but for whether the answer is to be streamed. ``instructions``: a
    hash of system and tools. ``summary``: the first message says that it is a summary of an earlier conversation.
    ``utility``: what kind of small request it is, "" for a turn. ``at``: seconds since the epoch.
    """

    chain: tuple[bytes, ...]
    same: bytes
    instructions: bytes = b""
    agent_id: str = ""
    stream: bool = False
    summary: bool = False
    utility: str = ""
    at: float = 0.0


@attrs.frozen
class Known:
    """An earlier turn: what was asked, what became of it, and where it is.

    ``reply``: the hash of the chain with the reply behind it, b"" where there was none. ``whole``: the reply came to its
    end.
    """

    exchange: str
    conversation: str
    asked: Asked
    reply: bytes = b""
    whole: bool = False


@attrs.frozen
class Link:
    """The verdict. ``conversation`` is "" where a new one begins; ``after`` the exchange it follows or belongs to, or ""."""

    relation: Relation
    conversation: str = ""
    after: str = ""
    shared: int = 0
    """Messages that the two have in common from the start."""
    replied: bool = False
    """Whether the earlier reply stands behind them as it came. Agents may leave thinking out, or trim text."""


def link(asked: Asked, known: Sequence[Known]) -> Link:
    """How ``asked`` belongs to ``known``: earlier turns that may be meant, of one session or with a chain alike, oldest
    first.
    """
    turns = [turn for turn in known if not turn.asked.utility]
    if asked.utility:
        return Link(Relation.UTILITY, after=turns[-1].exchange if turns else "")
    own = [turn for turn in turns if turn.asked.agent_id == asked.agent_id]
    again = _again(asked, own)
    if again is not None:
        return again
    best = _closest(asked, own)
    if best is not None:
        return _relate(asked, *best)
    if not turns:
        return Link(Relation.FIRST)
    return _apart(asked, own, turns)


def _again(asked: Asked, known: Sequence[Known]) -> Link | None:
    """The same request once more, told by what became of the earlier one."""
    for turn in reversed(known):
        if turn.asked.same != asked.same:
            continue
        relation = Relation.REPEATED if turn.whole else Relation.RETRY
        if not turn.whole and turn.asked.stream and not asked.stream and asked.at - turn.asked.at <= TWIN_SECONDS:
            relation = Relation.TWIN
        return Link(relation, turn.conversation, turn.exchange, len(asked.chain))
    return None


def shared(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """How many messages two chains have in common: since each hash covers all before it, one search by halves tells."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


def _closest(asked: Asked, known: Iterable[Known]) -> tuple[Known, int] | None:
    """The turn with most messages in common; of equals the one whose reply is meant, then the latest."""
    best: tuple[tuple[int, bool, int], Known, int] | None = None
    for age, turn in enumerate(known):
        common = shared(asked.chain, turn.asked.chain)
        if not common:
            continue
        goes_on = bool(turn.reply) and common < len(asked.chain) and asked.chain[common] == turn.reply
        rank = (common, goes_on, age)
        if best is None or rank >= best[0]:
            best = (rank, turn, common)
    return (best[1], best[2]) if best is not None else None


def _relate(asked: Asked, turn: Known, common: int) -> Link:
    theirs, ours = len(turn.asked.chain), len(asked.chain)
    replied = bool(turn.reply) and common < ours and asked.chain[common] == turn.reply
    relation = Relation.FORK
    if common == theirs:
        # As long: the same messages, asked otherwise (another model, other parameters).
        relation = Relation.APPENDED if ours > theirs else Relation.REPEATED
    elif common == theirs - 1 and ours >= theirs:
        relation = Relation.EDITED
    return Link(relation, turn.conversation, turn.exchange, common, replied)


def _apart(asked: Asked, own: Sequence[Known], turns: Sequence[Known]) -> Link:
    """Nothing of the same agent begins alike."""
    if asked.summary:
        before = own or turns
        return Link(Relation.COMPACTION, before[-1].conversation, before[-1].exchange)
    if asked.agent_id or (not own and turns):
        return Link(Relation.SUB_AGENT, after=turns[-1].exchange)
    if all(turn.asked.instructions != asked.instructions for turn in own):
        return Link(Relation.SUB_AGENT, after=turns[-1].exchange)
    return Link(Relation.FIRST)

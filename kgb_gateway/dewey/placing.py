"""Placing: which session, conversation and turn an entry is, with the hashes of all that was said in it.

Owns the memory that makes a growing conversation cheap: what a turn has in common with the one before it is compared, not hashed
again. Decides with ``linking`` and writes nothing.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain

import attrs

from kgb_gateway.dewey.canon import (
    NO_HASH,
    CanonicalMessage,
    Mark,
    canonical,
    chain_of,
    digest,
    hash_of,
    link_hash,
    marks_of,
)
from kgb_gateway.dewey.entry import Entry, Placed
from kgb_gateway.dewey.linking import Asked, Link, Relation, link
from kgb_gateway.dewey.store.interface import StoreWriter
from kgb_gateway.dewey.transcripts.earlier import alike, same
from kgb_gateway.dewey.transcripts.model import Block, Json, Kind, Message, Prompt

MEMORIES = 64
"""Conversations whose last prompt is kept in memory."""

MEMORY_SIZE = 4 * 1024 * 1024
"""Bytes of a request above which its prompt is not kept in memory: 64 of them are the bound."""

_SUMMARY = re.compile(
    r"This session is being continued from a previous conversation|"
    r"Another language model started to solve this problem and produced a summary|"
    r"The conversation so far has been summari[sz]ed",
)
_TITLE = re.compile(
    r"\b(generate|write|come up with|summari[sz]e|extract)\b[^.\n]{0,80}\b(title|topic|branch name)\b|title generator",
    re.IGNORECASE,
)
_LOOK = 4000
"""Characters at the beginning of a text in which its purpose shows."""

COUNTING = ("count_tokens", "models", "batch")


@attrs.define
class _Memory:
    """The last prompt of one agent in one session, with its hashes."""

    messages: tuple[Message, ...] = ()
    canonical: tuple[CanonicalMessage, ...] = ()
    chain: tuple[bytes, ...] = ()
    marks: tuple[tuple[Mark, ...], ...] = ()
    system: tuple[Block, ...] = ()
    system_canonical: CanonicalMessage | None = None
    tools: tuple[Json, ...] = ()
    tools_canonical: CanonicalMessage | None = None


class Placer:
    """Finds the place of entries, in the order in which they came."""

    def __init__(self, store: StoreWriter) -> None:
        self._store = store
        self._memories: OrderedDict[tuple[str, str, str], _Memory] = OrderedDict()

    def place(self, entry: Entry) -> Placed:
        """Where ``entry`` belongs."""
        session = session_key(entry)
        if entry.prompt is None:
            relation = Relation.UTILITY if entry.dialect is not None else Relation.FIRST
            return Placed(entry, Asked((), NO_HASH), Link(relation), session)
        memory = self._memory(entry, session)
        asked = _asked(entry, entry.prompt, memory)
        session, known = self._store.known(session, asked.chain, entry.caller)
        found = link(asked, known)
        session = session or entry.uuid.hex()
        conversation, kind = found.conversation, "main"
        if found.relation is Relation.SUB_AGENT:
            kind = "sub_agent"
        if not conversation and found.relation is not Relation.UTILITY:
            conversation = "c" + digest(entry.uuid).hex()[:15]
        replies = () if entry.reply is None else tuple(map(canonical, entry.reply.messages))
        return Placed(
            entry,
            asked,
            found,
            session,
            conversation,
            kind,
            memory.system_canonical,
            memory.tools_canonical,
            memory.canonical,
            replies,
            chain_of([reply.hash for reply in replies], asked.chain[-1] if asked.chain else NO_HASH),
            _marks(entry.prompt, memory),
        )

    @staticmethod
    def chain_of(prompt: Prompt) -> tuple[bytes, ...]:
        """The hashes of a prompt's messages, worked out from nothing."""
        return _messages(prompt.messages, _Memory())[1]

    def _memory(self, entry: Entry, session: str) -> _Memory:
        """The hashes of the prompt: those of what the last one of this agent had too are taken over."""
        prompt = entry.prompt
        assert prompt is not None
        key = (session, entry.identity.agent_id, "" if session else entry.caller)
        last = self._memories.pop(key, None) or _Memory()
        memory = _Memory(
            prompt.messages,
            *_messages(prompt.messages, last),
            prompt.system,
            last.system_canonical if _same_blocks(prompt.system, last.system) else _joined("system", prompt.system),
            prompt.tools,
            last.tools_canonical if same(list(prompt.tools), list(last.tools)) else _joined("tools", _tools(prompt)),
        )
        if entry.request_size <= MEMORY_SIZE and (len(prompt.messages) > 1 or not last.messages):
            self._memories[key] = memory
        elif last.messages:
            self._memories[key] = last  # a title or a count in between
        while len(self._memories) > MEMORIES:
            self._memories.popitem(last=False)
        return memory


def session_key(entry: Entry) -> str:
    """The key of the session that an entry names, "" for none. A session is one caller's: ids are their word alone."""
    session = entry.identity.session.encode("utf-8", "replace").decode("utf-8")
    return f"{session}@{entry.caller}" if session and entry.caller else session


def _messages(
    messages: Sequence[Message], last: _Memory
) -> tuple[tuple[CanonicalMessage, ...], tuple[bytes, ...], tuple[tuple[Mark, ...], ...]]:
    """Hashes, chain and cache marks of ``messages``; what ``last`` begins with alike is taken over."""
    same = 0
    for ours, theirs in zip(messages, last.messages, strict=False):
        if ours is not theirs and not _same_message(ours, theirs):
            break
        same += 1
    hashed, chain, marks = list(last.canonical[:same]), list(last.chain[:same]), list(last.marks[:same])
    parent = chain[-1] if chain else NO_HASH
    for number, message in enumerate(messages[same:], same):
        marks.append(tuple(marks_of([block.value for block in message.blocks], number)))
        hashed.append(canonical(message))
        parent = link_hash(parent, hashed[-1].hash)
        chain.append(parent)
    return tuple(hashed), tuple(chain), tuple(marks)


def _same_message(one: Message, other: Message) -> bool:
    return one == other and _same_blocks(one.blocks, other.blocks) and alike(dict(one.extra), dict(other.extra))


def _same_blocks(ours: Sequence[Block], theirs: Sequence[Block]) -> bool:
    return ours == theirs and all(
        one is other or alike(dict(one.value), dict(other.value)) for one, other in zip(ours, theirs, strict=True)
    )


def _joined(role: str, blocks: Sequence[Block]) -> CanonicalMessage | None:
    return canonical(Message(role, tuple(blocks))) if blocks else None


def _tools(prompt: Prompt) -> list[Block]:
    return [Block(Kind.OTHER, tool if isinstance(tool, dict) else {"tool": tool}) for tool in prompt.tools]


def _asked(entry: Entry, prompt: Prompt, memory: _Memory) -> Asked:
    system = memory.system_canonical.hash if memory.system_canonical is not None else NO_HASH
    tools = memory.tools_canonical.hash if memory.tools_canonical is not None else NO_HASH
    params = hash_of({name: value for name, value in prompt.params.items() if name not in ("stream", "stream_options")})
    model = prompt.model.encode("utf-8", "surrogatepass")
    last = memory.chain[-1] if memory.chain else NO_HASH
    return Asked(
        memory.chain,
        digest(model, system, tools, last, params, prompt.previous.encode("utf-8", "surrogatepass")),
        digest(system, tools),
        entry.identity.agent_id,
        prompt.stream,
        _is_summary(prompt),
        utility_of(entry, prompt),
        entry.at,
    )


def _is_summary(prompt: Prompt) -> bool:
    """The first message says that it tells an earlier conversation again."""
    for message in prompt.messages[:2]:
        for block in message.blocks:
            text = block.value.get("text")
            if isinstance(text, str) and _SUMMARY.search(text[:_LOOK]):
                return True
    return False


def utility_of(entry: Entry, prompt: Prompt) -> str:
    """What small service a request asks for besides the conversation; "" for a turn of it."""
    if entry.surface in COUNTING:
        return entry.surface
    if prompt.params.get("max_tokens") == 1:
        return "quota"
    if not prompt.tools and len(prompt.messages) <= 3:
        for block in prompt.system:
            text = block.value.get("text")
            if isinstance(text, str) and _TITLE.search(text[:_LOOK]):
                return "title"
    return ""


def _marks(prompt: Prompt, memory: _Memory) -> tuple[Mark, ...]:
    marks = marks_of([block.value for block in prompt.system], -1)
    marks += marks_of([tool for tool in prompt.tools if isinstance(tool, dict)], -2)
    return (*marks, *chain.from_iterable(memory.marks))

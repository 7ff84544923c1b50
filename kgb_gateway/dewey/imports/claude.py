"""Claude Code's own transcripts: ``~/.claude/projects/<project>/<session>.jsonl``, and those of sub-agents beside them.

Pure. Owns what is known of that format, which Claude Code documents nowhere and changes often: a line is an object with a ``type``; lines of
type ``user`` and ``assistant`` hold a ``message``, and form a tree by ``uuid`` and ``parentUuid``. One reply of the API is written as several
lines, one a block, all with the same ``message.id`` and with usage that repeats, of which the last is meant. Results of tools that ran
side by side hang on the lines of their calls, so that the way up from the next reply misses some of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

import attrs

from kgb_gateway.dewey.document import Turn
from kgb_gateway.dewey.linking import Relation
from kgb_gateway.dewey.transcripts.model import Block, Dialect, Json, Kind, Message

from .lines import Fault, OnFault, objects, stable_id

SOURCE = "claude-code"
SYNTHETIC = "<synthetic>"
"""The model of lines that Claude Code wrote itself, about an error most of the time."""

_FACTS = {"gitBranch": "git_branch", "version": "version", "slug": "slug"}
_TITLES = {"summary": "summary", "ai-title": "aiTitle", "custom-title": "customTitle"}
_KINDS = {
    "text": Kind.TEXT,
    "thinking": Kind.THINKING,
    "redacted_thinking": Kind.THINKING,
    "tool_use": Kind.TOOL_CALL,
    "server_tool_use": Kind.TOOL_CALL,
    "mcp_tool_use": Kind.TOOL_CALL,
    "image": Kind.IMAGE,
    "document": Kind.DOCUMENT,
}


@attrs.frozen
class _Node:
    """A line in the tree. ``exchange``: the reply it belongs to, "" for none. ``root``: where its branch begins."""

    parent: str
    exchange: str
    root: str


@attrs.define
class _Said:
    """A user's line that no reply has taken up yet."""

    line: int
    uuid: str
    at: float
    message: Message
    summary: bool


@attrs.define
class _Reply:
    """A reply whose lines are still coming."""

    exchange: str
    key: str
    first: Mapping[str, Json]
    last: Mapping[str, Json]
    added: list[_Said]
    after: str
    relation: str
    shared: int
    blocks: list[Block] = attrs.field(factory=list)
    at: float = 0.0
    ended: float = 0.0


@attrs.define
class _Thread:
    """One agent's part of the file, in the order of its lines."""

    said: list[_Said] = attrs.field(factory=list)
    reply: _Reply | None = None
    last: str = ""


@attrs.define
class ClaudeReader:
    """Reads one file. ``session`` (the file's name without ``.jsonl``) stands in where lines do not name theirs.

    ``title``: what the session was called last, known when all is read. What is not taken up is told to ``on_fault``: lines that cannot be read,
    and prompts without an answer. Memory: the ids of all lines, the content of a turn.
    """

    on_fault: OnFault
    session: str = ""
    title: str = attrs.field(default="", init=False)
    _nodes: dict[str, _Node] = attrs.field(factory=dict, init=False)
    _lengths: dict[str, int] = attrs.field(factory=dict, init=False)
    _threads: dict[str, _Thread] = attrs.field(factory=dict, init=False)

    def read(self, lines: Iterable[str | bytes]) -> Iterator[Turn]:
        """The turns in the order in which they ended. The last of an agent is ``partial`` if its end is not in the file: once more of it
        is, the same exchange id comes with the rest."""
        for number, line in objects(lines, self.on_fault):
            try:
                done = self._line(number, line)
            except ValueError as fault:
                self.on_fault(Fault(number, str(fault)))
                continue
            if done is not None:
                yield done
        for thread in self._threads.values():
            for said in thread.said:
                self.on_fault(Fault(said.line, "a prompt without an answer"))
            if thread.reply is not None:
                yield self._turn(thread.reply, open_end=not thread.said)

    def _line(self, number: int, line: Mapping[str, Json]) -> Turn | None:
        kind, uuid = line.get("type"), _text(line.get("uuid"))
        if not isinstance(kind, str):
            raise ValueError("a line without a type")
        if kind in _TITLES:
            self.title = _text(line.get(_TITLES[kind])) or self.title
        if not uuid or uuid in self._nodes:
            if kind in ("user", "assistant") and not uuid:
                raise ValueError("a message without a uuid")
            return None
        parent = _text(line.get("parentUuid")) or _text(line.get("logicalParentUuid"))
        above = self._nodes.get(parent)
        node = _Node(parent, "", above.root if above is not None and line.get("parentUuid") else uuid)
        self._nodes[uuid] = node
        agent = _text(line.get("agentId"))
        sidechain = node.root if line.get("isSidechain") is True else ""
        if kind == "user":
            thread = self._threads.setdefault(agent or sidechain, _Thread())
            thread.said.append(self._said(number, uuid, line))
        elif kind == "assistant":
            return self._assistant(self._threads.setdefault(agent or sidechain, _Thread()), uuid, node, line)
        return None

    def _said(self, number: int, uuid: str, line: Mapping[str, Json]) -> _Said:
        message = line.get("message")
        if not isinstance(message, Mapping):
            raise ValueError("a user's line without a message")
        said = Message(_text(message.get("role")) or "user", _blocks(message.get("content")))
        return _Said(number, uuid, _seconds(line.get("timestamp")), said, line.get("isCompactSummary") is True)

    def _assistant(self, thread: _Thread, uuid: str, node: _Node, line: Mapping[str, Json]) -> Turn | None:
        message = line.get("message")
        if not isinstance(message, Mapping):
            raise ValueError("an assistant's line without a message")
        blocks = _blocks(message.get("content"))
        key = _key(message, line)
        done: Turn | None = None
        reply = thread.reply
        if reply is None or reply.key != (key or uuid):
            if reply is not None:
                thread.last = reply.exchange
                done = self._turn(reply, open_end=False)
            session = _text(line.get("sessionId")) or self.session
            exchange = stable_id(SOURCE, key) if key else stable_id(SOURCE, session, uuid)
            reply = thread.reply = self._begin(thread, exchange, key or uuid, node, line)
        reply.blocks.extend(blocks)
        reply.last = line
        reply.ended = _seconds(line.get("timestamp")) or reply.ended
        self._nodes[uuid] = attrs.evolve(node, exchange=reply.exchange)
        return done

    def _begin(self, thread: _Thread, exchange: str, key: str, node: _Node, line: Mapping[str, Json]) -> _Reply:
        """A new reply, with what was said since the one before that leads to it."""
        way, after = self._way_up(node.parent)
        asked = {
            block.value.get("id")
            for block in (thread.reply.blocks if thread.reply is not None else ())
            if block.kind is Kind.TOOL_CALL
        }
        added = [said for said in thread.said if said.uuid in way or _answers(said.message, asked)]
        taken = {said.uuid for said in added}
        for said in thread.said:
            if said.uuid not in taken:
                self.on_fault(Fault(said.line, "a prompt without an answer"))
        thread.said = []
        relation = _relation(added, after, thread.last, sidechain=line.get("isSidechain") is True)
        shared = 0 if relation == Relation.COMPACTION else self._lengths.get(after, 0)
        reply = _Reply(exchange, key, line, line, added, after, relation, shared)
        self._lengths[exchange] = shared + bool(shared) + len(added)
        reply.at = added[-1].at if added else _seconds(line.get("timestamp"))
        return reply

    def _way_up(self, uuid: str) -> tuple[set[str], str]:
        """The lines from ``uuid`` up to the next reply, and that reply's exchange."""
        way: set[str] = set()
        while uuid and uuid not in way:
            node = self._nodes.get(uuid)
            if node is None or node.exchange:
                return way, node.exchange if node is not None else ""
            way.add(uuid)
            uuid = node.parent
        return way, ""

    def _turn(self, reply: _Reply, open_end: bool) -> Turn:
        first, last = reply.first, reply.last
        message = last.get("message")
        assert isinstance(message, Mapping)  # seen when the line came
        model = _text(message.get("model"))
        synthetic = model == SYNTHETIC
        failed = synthetic or last.get("isApiErrorMessage") is True
        usage = message.get("usage")
        stop = _text(message.get("stop_reason"))
        agent = _text(first.get("agentId"))
        facts = {name: first[key] for key, name in _FACTS.items() if isinstance(first.get(key), str)}
        texts = [str(block.value.get("text", "")) for block in reply.blocks if block.kind is Kind.TEXT]
        return Turn(
            reply.exchange,
            at=reply.at,
            duration=max(reply.ended - reply.at, 0.0) if reply.ended and reply.at else None,
            method="POST",
            target="/v1/messages",
            dialect=Dialect.ANTHROPIC_MESSAGES,
            model="" if synthetic else model,
            status=0 if failed else 200,
            outcome="upstream_broke" if failed else "completed",
            source=SOURCE,
            session=_text(first.get("sessionId")) or self.session,
            agent_id=agent or (self._nodes[_text(first.get("uuid"))].root if first.get("isSidechain") is True else ""),
            project=_text(first.get("cwd")),
            relation=reply.relation,
            after=reply.after,
            shared=reply.shared,
            replied=bool(reply.after) and reply.relation != Relation.COMPACTION,
            added=tuple(said.message for said in reply.added),
            replies=() if failed else (Message("assistant", tuple(reply.blocks)),),
            reply_id=_text(message.get("id")),
            stop_reason=stop,
            partial=failed or (open_end and not stop),
            error="\n".join(texts) if failed else None,
            reported=usage if isinstance(usage, Mapping) and not synthetic else None,
            notes=(
                "imported from a transcript: times are those of its lines, and the system prompt and tools are not in it",
            ),
            facts=facts | ({"request_id": request} if (request := _text(first.get("requestId"))) else {}),
        )


def _relation(added: Iterable[_Said], after: str, last: str, sidechain: bool) -> str:
    if any(said.summary for said in added):
        return Relation.COMPACTION
    if not after:
        return Relation.SUB_AGENT if sidechain else Relation.FIRST
    return Relation.APPENDED if after == last or not last else Relation.FORK


def _key(message: Mapping[str, Json], line: Mapping[str, Json]) -> str:
    """What names a reply wherever it is written: a session that was resumed or forked repeats the lines of the one before."""
    names = _text(message.get("id")), _text(line.get("requestId"))
    return ":".join(names) if any(names) and message.get("model") != SYNTHETIC else ""


def _answers(message: Message, calls: set[Json]) -> bool:
    return any(
        block.kind is Kind.TOOL_RESULT and isinstance(call := block.value.get("tool_use_id"), str) and call in calls
        for block in message.blocks
    )


def _blocks(content: Json) -> tuple[Block, ...]:
    if isinstance(content, str):
        return (Block(Kind.TEXT, {"type": "text", "text": content}),)
    if not isinstance(content, list):
        raise ValueError("a message without content")
    return tuple(Block(_kind(value), value) for value in content if isinstance(value, Mapping))


def _kind(value: Mapping[str, Json]) -> Kind:
    kind = _text(value.get("type"))
    return _KINDS.get(kind, Kind.TOOL_RESULT if kind.endswith("tool_result") else Kind.OTHER)


def _seconds(value: Json) -> float:
    try:
        found = datetime.fromisoformat(_text(value))
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def _text(value: Json) -> str:
    return value if isinstance(value, str) else ""

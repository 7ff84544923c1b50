"""Transcripts like those Claude Code keeps itself: for tools that read these, whatever dialect was spoken.

Owns how turns become lines of a tree. What Claude Code would not know (cost, outcome, hashes) is not in it: use ``jsonl`` for that.
"""

import json
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import BinaryIO

import attrs

from kgb_gateway.dewey.document import Conversation, Turn, Viewer, sums
from kgb_gateway.dewey.linking import Relation
from kgb_gateway.dewey.texts import json_text, timestamp
from kgb_gateway.dewey.transcripts.model import Block, Dialect, Json, Kind, Message, View

NAMESPACE = uuid.UUID("a4b7d9c2-3e0f-5b61-8c7a-2f9d1e6b5a30")
"""Ids of lines are version 5 UUIDs in here, so that two exports of the same turn agree."""

REMEMBERED = 1000
"""How many of the last turns a fork may begin at and still find its parent; one from further back hangs on the last turn."""

_AGAIN = (Relation.RETRY, Relation.REPEATED, Relation.TWIN)
_ANOTHER = (Relation.EDITED, Relation.FORK)
_APART = (Relation.FIRST, Relation.SUB_AGENT, Relation.UTILITY, Relation.COMPACTION)
_REPLIED = ("assistant", "model")


@attrs.frozen
class _Place:
    """Where a turn stands in the tree: the line before it, the last of what it asked, the last of all."""

    before: str | None
    asked: str | None
    last: str | None


@attrs.define
class _Tree:
    """The lines of one conversation so far."""

    of: Conversation
    places: OrderedDict[str, _Place] = attrs.field(factory=OrderedDict)
    last: str | None = None

    def parent(self, turn: Turn) -> str | None:
        """The line that the first line of ``turn`` follows."""
        place = self.places.get(turn.after)
        if turn.relation in _APART or place is None:
            return None if turn.relation in _APART else self.last
        if turn.relation in _AGAIN:
            return place.asked
        return place.before if turn.relation in _ANOTHER else place.last

    def put(self, turn: Turn, place: _Place) -> None:
        self.places[turn.exchange] = place
        self.last = place.last
        if len(self.places) > REMEMBERED:
            self.places.popitem(last=False)


def write(
    view: Viewer,
    conversations: Iterable[Conversation],
    out: BinaryIO,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write all turns to ``out``, those of other agents of a session as side chains."""
    written = 0
    for conversation in conversations:
        tree = _Tree(conversation)
        for turn in conversation.turns:
            out.writelines(json_text(line).encode("utf-8") + b"\n" for line in _lines(view, tree, turn))
            written += 1
            if progress is not None:
                progress(written)


def _lines(view: Viewer, tree: _Tree, turn: Turn) -> Iterator[dict[str, Json]]:
    """The lines of one turn, and its place noted."""
    before = parent = tree.parent(turn)
    for number, message in enumerate(turn.added):
        line = _line(tree.of, turn, parent, str(number), turn.at)
        if not number and turn.relation == Relation.COMPACTION:
            line |= {"logicalParentUuid": tree.last, "isCompactSummary": True}
        content = _content(view, turn.dialect, message)
        if message.role in _REPLIED:
            said: dict[str, Json] = {"type": "message", "role": "assistant", "content": content}
            line |= {"type": "assistant", "message": said}
        else:
            line |= {"type": "user", "message": {"role": "user", "content": content}}
        yield line
        parent = str(line["uuid"])
    asked = parent
    if turn.replies or turn.error is not None:
        line = _line(tree.of, turn, parent, "reply", turn.at + (turn.duration or 0.0))
        request = turn.facts.get("request_id")
        line |= {"type": "assistant", "requestId": request if isinstance(request, str) else turn.exchange}
        line |= _replied(view, turn) if turn.replies else _failed(turn)
        yield line
        parent = str(line["uuid"])
    tree.put(turn, _Place(before, asked, parent))


def _line(of: Conversation, turn: Turn, parent: str | None, name: str, at: float) -> dict[str, Json]:
    agent = turn.agent_id
    return {
        "parentUuid": parent,
        "isSidechain": bool(agent) or of.kind == "sub_agent",
        **({"agentId": agent} if agent else {}),
        "userType": "external",
        "cwd": turn.project or of.project,
        "sessionId": turn.session or of.session or of.id,
        "version": turn.facts.get("version", ""),
        "gitBranch": turn.facts.get("git_branch", ""),
        "uuid": str(uuid.uuid5(NAMESPACE, f"{turn.exchange}/{name}".encode("utf-8", "surrogatepass").hex())),
        "timestamp": timestamp(at),
    }


def _replied(view: Viewer, turn: Turn) -> dict[str, Json]:
    content = [block for message in turn.replies for block in _content(view, turn.dialect, message)]
    message: dict[str, Json] = {
        "id": turn.reply_id or f"msg_{turn.exchange}",
        "type": "message",
        "role": "assistant",
        "model": turn.model,
        "content": content,
        "stop_reason": turn.stop_reason or None,
        "stop_sequence": None,
        "usage": _usage(turn),
    }
    return {"message": message}


def _failed(turn: Turn) -> dict[str, Json]:
    text = turn.error if isinstance(turn.error, str) else json_text(turn.error)
    message = {
        "id": f"msg_{turn.exchange}",
        "type": "message",
        "role": "assistant",
        "model": "<synthetic>",
        "content": [{"type": "text", "text": f"API Error: {turn.status or turn.outcome} {text}"}],
        "stop_reason": None,
    }
    return {"isApiErrorMessage": True, "message": message}


def _usage(turn: Turn) -> Mapping[str, Json]:
    if turn.dialect is Dialect.ANTHROPIC_MESSAGES and turn.reported is not None:
        return turn.reported
    used = sums(turn)
    if used is None:
        return {}
    return {
        "input_tokens": used.input - used.cached - used.written,
        "cache_read_input_tokens": used.cached,
        "cache_creation_input_tokens": used.written,
        "output_tokens": used.output,
    }


def _content(view: Viewer, dialect: Dialect | None, message: Message) -> list[Json]:
    if dialect is None or dialect is Dialect.ANTHROPIC_MESSAGES:
        return [block.value for block in message.blocks]
    call = message.extra.get("tool_call_id")
    if isinstance(call, str):  # OpenAI's role "tool": the message is the result
        text = "\n".join(view(dialect, block).text for block in message.blocks)
        return [{"type": "tool_result", "tool_use_id": call, "content": text}]
    return [_block(view(dialect, block), block) for block in message.blocks]


def _block(seen: View, block: Block) -> Json:
    """The nearest that Anthropic's dialect has."""
    if seen.kind is Kind.THINKING:
        return {"type": "thinking", "thinking": seen.text, "signature": ""}
    if seen.kind is Kind.TOOL_CALL:
        return {"type": "tool_use", "id": seen.id, "name": seen.name, "input": _input(seen.text)}
    if seen.kind is Kind.TOOL_RESULT:
        return {"type": "tool_result", "tool_use_id": seen.id, "content": seen.text}
    if seen.kind in (Kind.TEXT, Kind.REFUSAL):
        return {"type": "text", "text": seen.text}
    return {"type": "text", "text": json_text(block.value)}


def _input(text: str) -> Json:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"input": text}

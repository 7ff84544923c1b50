"""Anthropic Messages: requests, replies, and the stream that becomes the message it would have been without streaming.

Pure. The rules are those of the public reference and of recorded streams: usage of a ``message_delta`` is cumulative and replaces
value by value, there may be several; tool input arrives as pieces of JSON that may not be valid in the end. Serves Bedrock and
Vertex too, whose payloads are the same. Owns no framing.
"""

from collections.abc import Mapping

from .gather import Growing, blocks, items, number, table, tables, text, without
from .lax_json import loads
from .model import Block, Dialect, Json, Kind, Message, NotReadable, Prompt, Reply, View

DIALECT = Dialect.ANTHROPIC_MESSAGES

_KINDS = {
    "text": Kind.TEXT,
    "thinking": Kind.THINKING,
    "redacted_thinking": Kind.THINKING,
    "tool_use": Kind.TOOL_CALL,
    "server_tool_use": Kind.TOOL_CALL,
    "mcp_tool_use": Kind.TOOL_CALL,
    "tool_result": Kind.TOOL_RESULT,
    "image": Kind.IMAGE,
    "document": Kind.DOCUMENT,
    "search_result": Kind.DOCUMENT,
    "container_upload": Kind.DOCUMENT,
}

_TOLD_BY_PROMPT = ("model", "stream", "system", "tools", "messages")
_TOLD_BY_REPLY = ("id", "model", "role", "content", "stop_reason", "usage", "error")

_PARTIAL = "\0partial_json"
"""Where the pieces of a tool's input are gathered; no member of a real block is called so."""

_GROWS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
_SEEN = {"text_delta": Kind.TEXT, "thinking_delta": Kind.THINKING, "input_json_delta": Kind.TOOL_CALL}
_EMPTY: dict[str, dict[str, Json]] = {
    "text_delta": {"type": "text", "text": ""},
    "thinking_delta": {"type": "thinking", "thinking": ""},
    "signature_delta": {"type": "thinking", "thinking": ""},
    "input_json_delta": {"type": "tool_use", "input": {}},
    "citations_delta": {"type": "text", "text": ""},
    "compaction_delta": {"type": "compaction", "content": None},
}
"""The block a delta belongs to, where its start is missing."""


def kind_of(block: Mapping[str, Json]) -> Kind:
    """What a content block is."""
    name = text(block.get("type"))
    if name not in _KINDS and name.endswith("_tool_result"):
        return Kind.TOOL_RESULT
    return _KINDS.get(name, Kind.OTHER)


def _bare(words: str) -> Mapping[str, Json]:
    return {"type": "text", "text": words}


def content_blocks(content: Json) -> tuple[Block, ...]:
    """A message's or the system prompt's content, a text or blocks."""
    return blocks(content, kind_of, _bare)


def read_prompt(body: Json) -> Prompt:
    """A request. NotReadable: it is no object, or has no list of messages."""
    if not isinstance(body, dict):
        raise NotReadable("the request is no JSON object")
    if not isinstance(body.get("messages"), list):
        raise NotReadable("the request has no list of messages")
    return Prompt(
        DIALECT,
        text(body.get("model")),
        body.get("stream") is True,
        content_blocks(body.get("system")),
        tuple(items(body.get("tools"))),
        tuple(_message(each) for each in tables(body.get("messages"))),
        "",
        without(body, _TOLD_BY_PROMPT),
    )


def _message(value: Mapping[str, Json]) -> Message:
    return Message(text(value.get("role")), content_blocks(value.get("content")), without(value, ("role", "content")))


def read_reply(body: Json) -> Reply:
    """A message, or an error body. NotReadable: it is no object."""
    if not isinstance(body, dict):
        raise NotReadable("the reply is no JSON object")
    if body.get("error") is not None or body.get("type") == "error":
        return Reply(DIALECT, error=body.get("error", dict(body)), rest=without(body, ("error",)))
    if "content" not in body:
        return Reply(DIALECT, text(body.get("id")), text(body.get("model")), rest=without(body, ("id", "model")))
    usage = body.get("usage")
    return Reply(
        DIALECT,
        text(body.get("id")),
        text(body.get("model")),
        (Message(text(body.get("role")) or "assistant", content_blocks(body.get("content"))),),
        text(body.get("stop_reason")),
        usage if isinstance(usage, dict) else None,
        bool(body.get("stop_reason")),
        rest=without(body, _TOLD_BY_REPLY),
    )


class _Message:
    """The message that a ``message_start`` began."""

    def __init__(self, start: Mapping[str, Json]) -> None:
        self.top = Growing(without(start, ("content", "usage")))
        self.usage = dict(table(start.get("usage")))
        self.has_usage = isinstance(start.get("usage"), dict)
        self.blocks: dict[int, Growing] = {at: Growing(each) for at, each in enumerate(tables(start.get("content")))}
        self.stopped = False

    def body(self) -> dict[str, Json]:
        body = self.top.plain()
        content = [_finished(self.blocks[at]) for at in sorted(self.blocks)]
        body["content"] = content
        for block in content:  # behind a fallback another model writes than the one that began; unstreamed it is named
            if block.get("type") == "fallback" and (model := table(block.get("to")).get("model")):
                body["model"] = model
        if self.has_usage:
            body["usage"] = dict(self.usage)
        return body

    def revise(self, usage: Mapping[str, Json]) -> None:
        """Cumulative: each value replaces the earlier one; null takes nothing away."""
        for name, value in usage.items():
            if value is not None or name not in self.usage:
                self.usage[name] = value
        self.has_usage = True


def _finished(growing: Growing) -> dict[str, Json]:
    block = growing.plain()
    partial = text(block.pop(_PARTIAL, ""))
    if partial:
        try:
            block["input"] = loads(partial)
        except NotReadable:
            block["input"] = partial  # fine-grained streaming may end in the middle, or in no JSON at all: as it came
    return block


class Assembler:
    """Takes the events of a stream. ``error``: the provider's error object. ``unknown``: events with no place, verbatim.

    A second ``message_start`` with the same id changes nothing; with another id it begins another message.
    """

    def __init__(self) -> None:
        self._messages: list[_Message] = []
        self.error: Json = None
        self.unknown: list[Json] = []

    @property
    def complete(self) -> bool:
        return bool(self._messages) and self.error is None and all(each.stopped for each in self._messages)

    def bodies(self) -> list[dict[str, Json]]:
        """The messages as they would have been sent without streaming; one, but for streams that hold several."""
        return [each.body() for each in self._messages]

    def feed(self, event: Json, name: str = "") -> None:
        """One event's JSON; ``name``: the event's name, for senders that leave out ``type``."""
        if not isinstance(event, dict):
            self.unknown.append(event)
            return
        kind = text(event.get("type")) or name
        if kind == "message_start":
            self._start(event)
        elif kind == "error":
            self.error = event.get("error", event)
        elif kind == "ping":
            pass
        elif not kind.startswith(("content_block_", "message_")) or not self._placed(kind, event):
            self.unknown.append(event)

    def _start(self, event: Mapping[str, Json]) -> None:
        start = table(event.get("message"))
        if self._messages and self._messages[-1].top.get("id") == start.get("id"):
            self._messages[-1].revise(table(start.get("usage")) if not self._messages[-1].blocks else {})
            return
        self._messages.append(_Message(start))

    def _placed(self, kind: str, event: Mapping[str, Json]) -> bool:
        if not self._messages:
            self._messages.append(_Message({"type": "message", "role": "assistant"}))
        message = self._messages[-1]
        if kind == "content_block_start":
            block = event.get("content_block")
            if isinstance(block, dict):
                message.blocks[number(event.get("index"), len(message.blocks))] = Growing(block)
            return isinstance(block, dict)
        if kind == "content_block_delta":
            return self._delta(message, event)
        if kind == "content_block_stop":
            return not without(event, ("type", "index"))
        if kind == "message_delta":
            self._message_delta(message, event)
            return True
        if kind == "message_stop":
            message.stopped = True
            for name, value in without(event, ("type",)).items():
                message.top.put(name, value)
            return True
        return False

    def _message_delta(self, message: _Message, event: Mapping[str, Json]) -> None:
        message.revise(table(event.get("usage")))
        for name, value in table(event.get("delta")).items():
            if value is not None or name not in message.top:
                message.top.put(name, value)
        for name, value in without(event, ("type", "delta", "usage")).items():
            message.top.put(name, value)

    def _delta(self, message: _Message, event: Mapping[str, Json]) -> bool:
        delta = table(event.get("delta"))
        kind = text(delta.get("type"))
        if kind not in _EMPTY:
            return False
        at = number(event.get("index"), max(message.blocks, default=0))
        if at not in message.blocks:
            message.blocks[at] = Growing(_EMPTY[kind])
        block = message.blocks[at]
        known = _GROWS.get(kind, "")
        if known:
            block.add(_PARTIAL if kind == "input_json_delta" else known, text(delta.get(known)))
        elif kind == "signature_delta":
            known = "signature"
            block.put(known, delta.get(known))
        elif kind == "citations_delta":
            known = "citation"
            block.extend("citations", [delta.get(known)])
        for name, value in without(delta, ("type", known)).items():
            block.merge(name, value)
        return True

    def end(self) -> None:
        """The dialect has an end of its own, which counts."""

    def fresh(self, event: Json) -> list[View]:
        """The text of a delta, and the beginning of a tool call."""
        event = table(event)
        if event.get("type") == "content_block_start":
            block = table(event.get("content_block"))
            kind = kind_of(block)
            if kind is Kind.TOOL_CALL:
                return [View(kind, "", text(block.get("name")), text(block.get("id")))]
            return [View(kind, words)] if (words := text(block.get("text"))) else []
        if event.get("type") != "content_block_delta":
            return []
        delta = table(event.get("delta"))
        name = text(delta.get("type"))
        words = text(delta.get(_GROWS.get(name, "")))
        return [View(_SEEN[name], words)] if words else []

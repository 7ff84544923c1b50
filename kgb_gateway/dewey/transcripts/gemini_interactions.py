"""Gemini's Interactions API: requests, replies made of steps, and their stream.

Pure. A step is one message: what the model says, thinks, calls, or got back. The first version of the API listed ``outputs``
(contents) where the later one lists ``steps``; both are read. Owns no framing.
"""

from collections.abc import Mapping

from .gather import Growing, items, number, table, tables, text, without
from .lax_json import loads
from .model import Block, Dialect, Json, Kind, Message, NotReadable, Prompt, Reply, View

DIALECT = Dialect.GEMINI_INTERACTIONS

_KINDS = {
    "text": Kind.TEXT,
    "thought": Kind.THINKING,
    "image": Kind.IMAGE,
    "audio": Kind.AUDIO,
    "video": Kind.DOCUMENT,
    "document": Kind.DOCUMENT,
}
_SAID = ("model_output", "user_input")
"""Steps that are messages with contents; every other step is one block."""

_TOLD_BY_PROMPT = ("model", "stream", "system_instruction", "tools", "input", "previous_interaction_id")
_TOLD_BY_REPLY = ("id", "model", "steps", "outputs", "usage", "error")
_ENDED = ("completed", "requires_action", "incomplete", "budget_exceeded")
_STARTS = ("interaction.created", "interaction.start", "interaction.in_progress")
_ENDS = ("interaction.completed", "interaction.complete", "interaction.requires_action", "interaction.incomplete")
_FAILS = ("interaction.failed", "interaction.cancelled")
_ARGUMENTS = "\0arguments"


def kind_of(value: Mapping[str, Json]) -> Kind:
    """What a content or a step is."""
    name = text(value.get("type"))
    if name in _KINDS:
        return _KINDS[name]
    if name.endswith("_call"):
        return Kind.TOOL_CALL
    return Kind.TOOL_RESULT if name.endswith("_result") else Kind.OTHER


def _blocks(content: Json) -> tuple[Block, ...]:
    if isinstance(content, str):
        return (Block(Kind.TEXT, {"type": "text", "text": content}),)
    if isinstance(content, dict):
        content = [content]
    return tuple(Block(kind_of(each), each) for each in tables(content))


def _message(step: Mapping[str, Json], role: str) -> Message:
    """A step, or a turn (``role`` and ``content``), as a message."""
    kind = text(step.get("type"))
    if kind in _SAID or (not kind and "content" in step):
        by = text(step.get("role")) or ("user" if kind == "user_input" else "model" if kind else role)
        return Message(by, _blocks(step.get("content")), without(step, ("role", "content", "type")))
    found = kind_of(step)
    if found in (Kind.TOOL_CALL, Kind.THINKING):
        role = "model"
    return Message("tool" if found is Kind.TOOL_RESULT else role, (Block(found, step),))


def _messages(value: Json, role: str) -> tuple[Message, ...]:
    """The steps, turns or contents of an input or an output. Contents that follow each other are one message."""
    if isinstance(value, str | dict):
        value = [{"type": "text", "text": value} if isinstance(value, str) else value]
    found: list[Message] = []
    joins = False
    for each in tables(value):
        message = _message(each, role)
        content = text(each.get("type")) in _KINDS and each.get("type") != "thought"
        if joins and content:
            found[-1] = Message(role, (*found[-1].blocks, *message.blocks))
        else:
            found.append(message)
        joins = content
    return tuple(found)


def read_prompt(body: Json) -> Prompt:
    """A request. NotReadable: it is no object."""
    if not isinstance(body, dict):
        raise NotReadable("the request is no JSON object")
    return Prompt(
        DIALECT,
        text(body.get("model")).removeprefix("models/") or text(body.get("agent")),
        body.get("stream") is True,
        _blocks(body.get("system_instruction")),
        tuple(items(body.get("tools"))),
        _messages(body.get("input"), "user"),
        text(body.get("previous_interaction_id")),
        without(body, _TOLD_BY_PROMPT),
    )


def read_reply(body: Json) -> Reply:
    """An interaction, or an error body. NotReadable: it is no object."""
    if not isinstance(body, dict):
        raise NotReadable("the reply is no JSON object")
    status = text(body.get("status"))
    usage = body.get("usage")
    error = body.get("error") or None
    steps = body.get("steps") if "steps" in body else body.get("outputs")
    return Reply(
        DIALECT,
        text(body.get("id")),
        text(body.get("model")),
        _messages(steps, "model"),
        status,
        usage if isinstance(usage, dict) else None,
        error is None and status in _ENDED,
        error,
        without(body, _TOLD_BY_REPLY),
    )


class _Step:
    """A step (or, in the API's first version, a content) that grows."""

    def __init__(self, start: Mapping[str, Json]) -> None:
        self.top = Growing(without(start, ("content", "summary")))
        self.lists = {
            name: list(map(Growing, tables(start.get(name)))) for name in ("content", "summary") if name in start
        }

    def add(self, delta: Mapping[str, Json], step: bool) -> bool:
        """One delta; False for one of a kind nobody has heard of."""
        kind = text(delta.get("type"))
        own = text(self.top.get("type"))
        said = without(delta, ("type",))
        if kind == own or not kind:
            for name, value in said.items():
                self.top.merge(name, value)
        elif kind == "thought_signature":
            for name, value in said.items():
                self.top.put(name, value)
        elif kind == "thought_summary":
            self._element("summary", table(delta.get("content")))
        elif kind == "arguments_delta" or (kind == "function_call" and isinstance(delta.get("arguments"), str)):
            self.top.add(_ARGUMENTS, text(delta.get("arguments")) or text(delta.get("partial_arguments")))
        elif kind in ("text_annotation_delta", "text_annotation"):
            self._annotate(said)
        elif kind in _KINDS and step:
            self._element("content", delta)
        else:
            return False
        return True

    def _element(self, name: str, value: Mapping[str, Json]) -> None:
        """An element of a list of contents: text goes on with text."""
        known = self.lists.setdefault(name, [])
        kind = text(value.get("type"))
        if known and known[-1].get("type") == kind and kind in ("text", "audio"):
            grows = "text" if kind == "text" else "data"
            for key, member in without(value, ("type",)).items():
                if key == grows or isinstance(member, list):
                    known[-1].merge(key, member)
                else:
                    known[-1].put(key, member)
        else:
            known.append(Growing(value))

    def _annotate(self, said: Mapping[str, Json]) -> None:
        texts = self.lists.get("content")
        target = texts[-1] if texts else self.top
        for name, value in said.items():
            target.merge(name, value)

    def plain(self) -> dict[str, Json]:
        value = self.top.plain()
        partial = text(value.pop(_ARGUMENTS, ""))
        if partial:
            try:
                value["arguments"] = loads(partial)
            except NotReadable:
                value["arguments"] = partial  # cut, or no JSON at all: as it came
        return {**value, **{name: [each.plain() for each in found] for name, found in self.lists.items()}}


class Assembler:
    """Takes the events of a stream."""

    def __init__(self) -> None:
        self._top: dict[str, Json] = {}
        self._steps: dict[int, _Step] = {}
        self._name = "steps"
        self._ended = False
        self.error: Json = None
        self.unknown: list[Json] = []

    @property
    def complete(self) -> bool:
        return self._ended and self.error is None

    def bodies(self) -> list[dict[str, Json]]:
        """The interaction; none before anything has come."""
        if not self._top and not self._steps:
            return []
        told = items(self._top.get(self._name))
        gathered = [self._steps[at].plain() for at in sorted(self._steps)]
        return [{**self._top, self._name: list(told) if len(told) >= len(gathered) else gathered}]

    def feed(self, event: Json, name: str = "") -> None:
        """One event."""
        if not isinstance(event, dict):
            if event != "[DONE]":
                self.unknown.append(event)
            return
        kind = text(event.get("event_type")) or text(event.get("type")) or name
        if isinstance(event.get("interaction"), dict) and kind.startswith("interaction."):
            self._top.update(table(event["interaction"]))
            self._ended = self._ended or kind in _ENDS
            if kind in _FAILS and self.error is None:
                self.error = self._top.get("error") or {"code": "failed", "message": kind}
        elif kind == "interaction.status_update":
            self._top["status"] = event.get("status")
        elif event.get("error"):
            self.error = event["error"]
        elif not self._placed(kind, event):
            self.unknown.append(event)

    def _placed(self, kind: str, event: Mapping[str, Json]) -> bool:
        noun, _, verb = kind.partition(".")
        if noun not in ("step", "content"):
            return False
        if noun == "content":
            self._name = "outputs"
        at = number(event.get("index"), max(self._steps, default=0))
        start, delta = event.get(noun), event.get("delta")
        if verb == "start" and isinstance(start, dict):
            self._steps[at] = _Step(start)
            return True
        if verb == "delta" and isinstance(delta, dict):
            if at not in self._steps:
                content = text(delta.get("type")) in _KINDS
                self._steps[at] = _Step({"type": "model_output" if content and noun == "step" else delta.get("type")})
            return self._steps[at].add(delta, noun == "step")
        return verb == "stop"

    def end(self) -> None:
        """The dialect has an end of its own, which counts."""

    def fresh(self, event: Json) -> list[View]:
        """The text of a delta, and the beginning of a call."""
        event = table(event)
        step = table(event.get("step", event.get("content")))
        if kind_of(step) is Kind.TOOL_CALL:
            return [View(Kind.TOOL_CALL, "", text(step.get("name")) or text(step.get("type")), text(step.get("id")))]
        delta = table(event.get("delta"))
        if delta.get("type") == "thought_summary":
            words = text(table(delta.get("content")).get("text"))
            return [View(Kind.THINKING, words)] if words else []
        if words := text(delta.get("text")):
            return [View(Kind.TEXT, words)]
        words = text(delta.get("arguments"))
        return [View(Kind.TOOL_CALL, words)] if words else []

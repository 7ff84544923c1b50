"""The stream of OpenAI Responses, put together to the response that would have been sent without streaming.

Pure. Two things are trusted: ``response.output_item.done`` and the terminal event. Deltas count only where these did not come.
Owns no framing.
"""

from collections.abc import Callable, Mapping

from .gather import Growing, items, number, table, tables, text, without
from .model import Json, Kind, View

TERMINAL = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
"""Events behind which nothing more comes, with the whole response in them."""

_WHOLE = ("response.created", "response.queued", "response.in_progress", *TERMINAL)
_ADDRESS = ("type", "item_id", "output_index", "content_index", "summary_index", "sequence_number", "obfuscation")
_IN_CONTENT = {
    "output_text": ("output_text", "text"),
    "reasoning_text": ("reasoning_text", "text"),
    "refusal": ("refusal", "refusal"),
}
"""Deltas of a part of the content: the type of the part, its member."""

_MOST_PARTS = 100_000
"""Above this number no place in a list is believed."""


class _Item:
    """One output item that grows."""

    def __init__(self, start: Mapping[str, Json]) -> None:
        self.top = Growing(start)
        self.done = False
        self.lists: dict[str, dict[int, Growing]] = {}
        self.commands: dict[int, Growing] = {}
        self.outputs: dict[int, Growing] = {}
        self.operation: Growing | None = None

    def part(self, name: str, at: int, start: Mapping[str, Json]) -> Growing:
        """Part number ``at`` of the list ``name``; ``start`` where it is new."""
        parts = self.lists.get(name)
        if parts is None:
            parts = self.lists[name] = dict(enumerate(map(Growing, tables(self.top.get(name)))))
        if at not in parts:
            parts[at] = Growing(start)
        return parts[at]

    def plain(self) -> dict[str, Json]:
        value = self.top.plain()
        if self.done:
            return value
        for name, parts in self.lists.items():
            value[name] = [parts[at].plain() for at in sorted(parts)]
        if self.commands:
            said = [text(self.commands[at].get("command")) for at in sorted(self.commands)]
            value["action"] = {**table(value.get("action")), "commands": said}
        if self.operation is not None:
            value["operation"] = self.operation.plain()
        if self.outputs:
            value["output"] = [self.outputs[at].plain() for at in sorted(self.outputs)]
        return value


class _Response:
    """One response of the stream."""

    def __init__(self) -> None:
        self.top: dict[str, Json] = {}
        self.items: dict[int, _Item] = {}
        self.terminal = ""

    def body(self) -> dict[str, Json]:
        """The terminal event's response; where it lists fewer items than have come (some servers list none), those."""
        told = items(self.top.get("output"))
        gathered = [self.items[at].plain() for at in sorted(self.items)]
        return {**self.top, "output": list(told) if len(told) >= len(gathered) else gathered}

    def item(self, event: Mapping[str, Json]) -> _Item:
        """The item that an event speaks of."""
        at = event.get("output_index")
        if type(at) is not int:
            named = event.get("item_id")
            found = [place for place, each in self.items.items() if named and each.top.get("id") == named]
            at = found[0] if found else max(self.items, default=0)
        if at not in self.items:
            self.items[at] = _Item({"id": event["item_id"]} if "item_id" in event else {})
        return self.items[at]


class Assembler:
    """Takes the events of a stream, or of one turn over a WebSocket."""

    def __init__(self) -> None:
        self._responses: list[_Response] = []
        self.error: Json = None
        self.unknown: list[Json] = []

    @property
    def complete(self) -> bool:
        good = ("response.completed", "response.incomplete")
        return bool(self._responses) and self.error is None and all(each.terminal in good for each in self._responses)

    @property
    def ended(self) -> bool:
        """Whether a terminal event has come, a good one or not."""
        return self.error is not None or (bool(self._responses) and bool(self._responses[-1].terminal))

    def bodies(self) -> list[dict[str, Json]]:
        """The responses; one, but for streams that hold several."""
        return [each.body() for each in self._responses]

    def feed(self, event: Json, name: str = "") -> None:
        """One event."""
        if not isinstance(event, dict):
            if event != "[DONE]":
                self.unknown.append(event)
            return
        kind = text(event.get("type")) or name
        if kind in _WHOLE and isinstance(event.get("response"), dict):
            self._whole(kind, table(event["response"]))
        elif kind == "error" or (not kind and "error" in event):
            self.error = event["error"] if event.get("error") else without(event, ("type", "sequence_number"))
        elif kind == "keepalive":
            pass
        elif not self._placed(kind, event):
            self.unknown.append(event)

    def _whole(self, kind: str, response: Mapping[str, Json]) -> None:
        known = self._responses[-1] if self._responses else None
        if known is None or (known.terminal and kind not in TERMINAL and known.top.get("id") != response.get("id")):
            known = _Response()
            self._responses.append(known)
        known.top = {**known.top, **response}
        if kind in TERMINAL:
            known.terminal = kind
            if kind == "response.failed" and self.error is None:
                self.error = response.get("error") or {"code": "failed", "message": "the response failed"}

    def _placed(self, kind: str, event: Mapping[str, Json]) -> bool:
        if not kind.startswith("response."):
            return False
        if not self._responses:
            self._responses.append(_Response())
        response = self._responses[-1]
        if kind in ("response.output_item.added", "response.output_item.done"):
            return self._output_item(response, event, done=kind.endswith("done"))
        place, _, verb = kind.removeprefix("response.").rpartition(".")
        if not place:
            return False
        known = "output_index" in event or "item_id" in event
        item = response.item(event) if known else None
        if item is None:
            return False
        if item.done:
            return (verb in ("delta", "done", "added") and place in _PLACES) or self._status(item, place, event)
        handler = _PLACES.get(place)
        if handler is not None and verb in ("added", "delta", "done"):
            return handler(item, verb, event)
        return _own_member(item, place, verb, event) or self._status(item, place, event)

    def _output_item(self, response: _Response, event: Mapping[str, Json], done: bool) -> bool:
        value = event.get("item")
        if not isinstance(value, dict):
            return False
        at = number(event.get("output_index"), len(response.items))
        item = _Item(value)
        item.done = done
        response.items[at] = item
        return True

    def _status(self, item: _Item, place: str, event: Mapping[str, Json]) -> bool:
        """``response.web_search_call.searching`` and its like: how far an item is, and nothing else."""
        return place == text(item.top.get("type")) and not without(event, _ADDRESS)

    def end(self) -> None:
        """The dialect has an end of its own, which counts."""

    def fresh(self, event: Json) -> list[View]:
        """The text of a delta, and the beginning of a call."""
        event = table(event)
        kind = text(event.get("type"))
        item = table(event.get("item"))
        if kind == "response.output_item.added" and text(item.get("type")).endswith("_call"):
            name = text(item.get("name")) or text(item.get("type"))
            return [View(Kind.TOOL_CALL, "", name, text(item.get("call_id")) or text(item.get("id")))]
        words = text(event.get("delta")) if kind.endswith(".delta") else ""
        if not words:
            return []
        place = kind.removeprefix("response.").removesuffix(".delta")
        kinds = {"output_text": Kind.TEXT, "refusal": Kind.REFUSAL}
        thinking = place.startswith("reasoning")
        return [View(Kind.THINKING if thinking else kinds.get(place, Kind.TOOL_CALL), words)]


Handler = Callable[[_Item, str, Mapping[str, Json]], bool]


def _at(event: Mapping[str, Json], name: str) -> int:
    return min(number(event.get(name), 0), _MOST_PARTS)


def _grow(part: Growing, member: str, verb: str, event: Mapping[str, Json]) -> bool:
    """``.delta`` adds, ``.done`` says it all; log probabilities go with their text."""
    if verb == "delta" and isinstance(event.get("delta"), str):
        part.add(member, text(event["delta"]))
        if event.get("logprobs"):
            part.merge("logprobs", event["logprobs"])
        return True
    if verb == "done" and member in event:
        part.put(member, event[member])
        return True
    return verb == "done"


def _content(place: str) -> Handler:
    kind, member = _IN_CONTENT[place]

    def handle(item: _Item, verb: str, event: Mapping[str, Json]) -> bool:
        if "type" not in item.top:  # its beginning is missing
            item.top.put("type", "reasoning" if place == "reasoning_text" else "message")
        part = item.part("content", _at(event, "content_index"), {"type": kind, member: ""})
        return _grow(part, member, verb, event)

    return handle


def _part(name: str, index: str) -> Handler:
    def handle(item: _Item, verb: str, event: Mapping[str, Json]) -> bool:
        value = event.get("part")
        if not isinstance(value, dict):
            return False
        at = _at(event, index)
        item.part(name, at, value)
        if verb == "done":
            item.lists[name][at] = Growing(value)
        return True

    return handle


def _summary(item: _Item, verb: str, event: Mapping[str, Json]) -> bool:
    part = item.part("summary", _at(event, "summary_index"), {"type": "summary_text", "text": ""})
    return _grow(part, "text", verb, event)


def _annotation(item: _Item, verb: str, event: Mapping[str, Json]) -> bool:
    part = item.part("content", _at(event, "content_index"), {"type": "output_text", "text": ""})
    part.extend("annotations", [event.get("annotation")])
    return True


def _command(item: _Item, verb: str, event: Mapping[str, Json]) -> bool:
    command = item.commands.setdefault(_at(event, "command_index"), Growing({"command": ""}))
    if verb == "added":
        command.put("command", event.get("command"))
        return True
    return _grow(command, "command", verb, event)


def _shell_output(item: _Item, verb: str, event: Mapping[str, Json]) -> bool:
    if verb == "done" and isinstance(event.get("output"), list):
        item.outputs = dict(enumerate(map(Growing, tables(event["output"]))))
        return True
    output = item.outputs.setdefault(_at(event, "command_index"), Growing({}))
    for name, value in table(event.get("delta")).items():
        output.merge(name, value)
    return True


def _diff(item: _Item, verb: str, event: Mapping[str, Json]) -> bool:
    if item.operation is None:
        item.operation = Growing(table(item.top.get("operation")))
    return _grow(item.operation, "diff", verb, event)


def _own_member(item: _Item, place: str, verb: str, event: Mapping[str, Json]) -> bool:
    """``response.<type of the item>_<member>.delta``: most items are streamed so, those of the future perhaps too."""
    kind = text(item.top.get("type"))
    member = place.removeprefix(f"{kind}_") if kind else ""
    if not kind and place in ("function_call_arguments", "mcp_call_arguments", "custom_tool_call_input"):
        kind, _, member = place.rpartition("_")
        item.top.put("type", kind)
    if not member or member == place:
        return False
    if verb == "delta" and isinstance(event.get("delta"), str):
        item.top.add(member, text(event["delta"]))
        return True
    if verb == "done" and member in event:
        item.top.put(member, event[member])
        return True
    return False


_PLACES: dict[str, Handler] = {
    **{place: _content(place) for place in _IN_CONTENT},
    "content_part": _part("content", "content_index"),
    "reasoning_summary_part": _part("summary", "summary_index"),
    "reasoning_summary_text": _summary,
    "output_text.annotation": _annotation,
    "shell_call_command": _command,
    "shell_call_output_content": _shell_output,
    "apply_patch_call_operation_diff": _diff,
}

"""What a stream of each dialect says, gathered in the simplest way there is: a second opinion for the tests of transcripts.

Nothing of this knows the code under test. It is right for streams as providers send them, not for hostile ones.
"""

import json
import re
from typing import Any

import attrs

from kgb_gateway.dewey.transcripts.model import Dialect


@attrs.define
class Said:
    """``calls``: name and input of each tool call, the input as JSON where it is JSON."""

    text: str = ""
    thinking: str = ""
    calls: list[tuple[str, Any]] = attrs.field(factory=list)
    stop: str = ""
    usage: dict[str, Any] | None = None


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def anthropic(events: Any) -> Said:
    said = Said()
    names: dict[Any, str] = {}
    inputs: dict[Any, str] = {}
    turn = 0
    for event in events:
        kind = event["type"]
        if kind == "message_start":
            said.usage = dict(event["message"]["usage"])
            turn = event["message"]["id"]
        elif kind == "content_block_start":
            block = event["content_block"]
            said.text += block.get("text", "") if block["type"] == "text" else ""
            if block["type"] in ("tool_use", "server_tool_use", "mcp_tool_use"):
                names[turn, event["index"]], inputs[turn, event["index"]] = block["name"], ""
        elif kind == "content_block_delta":
            delta = event["delta"]
            said.text += delta.get("text", "")
            said.thinking += delta.get("thinking", "")
            if "partial_json" in delta:
                inputs[turn, event["index"]] += delta["partial_json"]
        elif kind == "message_delta":
            said.stop = event["delta"]["stop_reason"]
            assert said.usage is not None
            said.usage.update(event["usage"])
    said.calls = [(names[key], parsed(inputs[key]) if inputs[key] else {}) for key in names]
    return said


def chat(events: Any) -> Said:
    said = Said()
    calls: dict[int, list[str]] = {}
    for event in events:
        said.usage = event.get("usage") or said.usage
        for choice in event["choices"]:
            delta = choice["delta"]
            said.text += delta.get("content") or ""
            said.thinking += delta.get("reasoning_content") or ""
            said.stop = choice.get("finish_reason") or said.stop
            for call in delta.get("tool_calls") or ():
                known = calls.setdefault(call.get("index", 0), ["", ""])
                known[0] += call["function"].get("name") or ""
                known[1] += call["function"].get("arguments") or ""
    said.calls = [(name, parsed(arguments)) for name, arguments in calls.values()]
    return said


def completions(events: Any) -> Said:
    said = Said()
    for event in events:
        said.usage = event.get("usage") or said.usage
        for choice in event["choices"]:
            said.text += choice["text"]
            said.stop = choice["finish_reason"] or said.stop
    return said


def responses(events: Any) -> Said:
    said = Said()
    for event in events:
        kind = event["type"]
        if kind == "response.output_text.done":  # in one recording the deltas were shortened by hand
            said.text += event["text"]
        elif kind == "response.reasoning_summary_text.delta":
            said.thinking += event["delta"]
        elif kind in ("response.function_call_arguments.done", "response.mcp_call_arguments.done"):
            said.calls.append(("", parsed(event["arguments"])))
        elif kind in ("response.completed", "response.failed"):
            said.stop, said.usage = event["response"]["status"], event["response"]["usage"]
    return said


def gemini(events: Any) -> Said:
    said = Said()
    said.usage = {}
    paths: list[dict[str, Any]] = []
    for event in events:
        said.usage.update(event.get("usageMetadata", {}))
        for candidate in event["candidates"]:
            said.stop = candidate.get("finishReason") or said.stop
            for part in candidate["content"]["parts"]:
                if part.get("thought"):
                    said.thinking += part["text"]
                else:
                    said.text += part.get("text", "")
                call = part.get("functionCall", {})
                if call.get("name"):
                    said.calls.append((call["name"], call.get("args")))
                    paths.append({})
                for piece in call.get("partialArgs", ()):
                    path = piece["jsonPath"]
                    if "stringValue" in piece:
                        paths[-1][path] = paths[-1].get(path, "") + piece["stringValue"]
                    else:
                        paths[-1][path] = piece.get("numberValue", piece.get("boolValue"))
    said.calls = [(name, values or args) for (name, args), values in zip(said.calls, paths, strict=True)]
    return said


def by_path(value: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """The members of ``value`` at the paths of ``wanted``."""
    found = {}
    for path in wanted:
        here = value
        for name, place in re.findall(r"\.([^.\[]+)|\[(\d+)\]", path):
            here = here[name] if name else here[int(place)]
        found[path] = here
    return found


def interactions(events: Any) -> Said:
    said = Said()
    names: dict[int, str] = {}
    inputs: dict[int, str] = {}
    for event in events:
        kind = event["event_type"]
        if kind == "step.start" and event["step"]["type"].endswith("_call"):
            names[event["index"]] = event["step"].get("name", event["step"]["type"])
            inputs[event["index"]] = ""
        elif kind == "step.delta":
            delta = event["delta"]
            said.text += delta.get("text", "")
            if isinstance(delta.get("arguments"), str):
                inputs[event["index"]] += delta["arguments"]
            elif "arguments" in delta:
                inputs[event["index"]] = json.dumps(delta["arguments"])
        elif kind == "interaction.completed":
            said.stop, said.usage = event["interaction"]["status"], event["interaction"]["usage"]
    said.calls = [(names[index], parsed(inputs[index])) for index in names]
    return said


ORACLES = {
    Dialect.ANTHROPIC_MESSAGES: anthropic,
    Dialect.OPENAI_CHAT: chat,
    Dialect.OPENAI_COMPLETIONS: completions,
    Dialect.OPENAI_RESPONSES: responses,
    Dialect.GEMINI: gemini,
    Dialect.GEMINI_INTERACTIONS: interactions,
}

"""OpenAI Responses: requests, replies, and what a message of it is. Its stream is in ``responses_stream``.

Pure. Every item of the input and of the output is one message: an item is either a message itself, or one block. Owns no framing.
"""

from collections.abc import Mapping

from .gather import blocks, items, table, tables, text, without
from .model import Block, Dialect, Json, Kind, Message, NotReadable, Prompt, Reply

DIALECT = Dialect.OPENAI_RESPONSES

_PARTS = {
    "input_text": Kind.TEXT,
    "output_text": Kind.TEXT,
    "text": Kind.TEXT,
    "summary_text": Kind.TEXT,
    "reasoning_text": Kind.THINKING,
    "refusal": Kind.REFUSAL,
    "input_image": Kind.IMAGE,
    "input_audio": Kind.AUDIO,
    "output_audio": Kind.AUDIO,
    "input_file": Kind.DOCUMENT,
}

_ITEMS = {
    "reasoning": Kind.THINKING,
    "program": Kind.TOOL_CALL,
    "mcp_approval_request": Kind.TOOL_CALL,
    "mcp_approval_response": Kind.TOOL_RESULT,
}

_TOLD_BY_PROMPT = ("model", "stream", "instructions", "tools", "input", "previous_response_id")
_TOLD_BY_REPLY = ("id", "model", "output", "usage", "error")
_ENDED = ("completed", "incomplete")


def kind_of_part(part: Mapping[str, Json]) -> Kind:
    """What a part of a message item's content is."""
    return _PARTS.get(text(part.get("type")), Kind.OTHER)


def kind_of_item(item: Mapping[str, Json]) -> Kind:
    """What an item that is no message is: ``X_call`` calls a tool, ``X_output`` is what came of it."""
    name = text(item.get("type"))
    if name in _ITEMS:
        return _ITEMS[name]
    if name.endswith("_call"):
        return Kind.TOOL_CALL
    return Kind.TOOL_RESULT if name.endswith(("_output", "_result")) else Kind.OTHER


def message(item: Mapping[str, Json]) -> Message:
    """One item as a message."""
    role = text(item.get("role"))
    if role and item.get("type", "message") == "message":
        bare = "output_text" if role == "assistant" else "input_text"
        content = blocks(item.get("content"), kind_of_part, lambda words: {"type": bare, "text": words})
        return Message(role, content, without(item, ("role", "content")))
    if item.get("type") == "message":
        return message({**item, "role": "assistant"})
    kind = kind_of_item(item)
    return Message(role or ("tool" if kind is Kind.TOOL_RESULT else "assistant"), (Block(kind, item),))


def _bare(words: str) -> Mapping[str, Json]:
    return {"type": "input_text", "text": words}


def _items(value: Json) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", (Block(Kind.TEXT, _bare(value)),)),)
    return tuple(message(each) for each in tables(value))


def read_prompt(body: Json) -> Prompt:
    """A request, or a ``response.create`` event of the WebSocket. NotReadable: it is no object."""
    if not isinstance(body, dict):
        raise NotReadable("the request is no JSON object")
    instructions = body.get("instructions")
    if isinstance(instructions, list):
        system = tuple(block for each in _items(instructions) for block in each.blocks)
    else:
        system = blocks(instructions, kind_of_part, _bare)
    return Prompt(
        DIALECT,
        text(body.get("model")),
        body.get("stream") is True,
        system,
        tuple(items(body.get("tools"))),
        _items(body.get("input")),
        text(body.get("previous_response_id")),
        without(body, _TOLD_BY_PROMPT),
    )


def read_reply(body: Json) -> Reply:
    """A response, or an error body. NotReadable: it is no object."""
    if not isinstance(body, dict):
        raise NotReadable("the reply is no JSON object")
    status = text(body.get("status"))
    error = body.get("error") or None
    usage = body.get("usage")
    reason = text(table(body.get("incomplete_details")).get("reason"))
    return Reply(
        DIALECT,
        text(body.get("id")),
        text(body.get("model")),
        tuple(message(each) for each in tables(body.get("output"))),
        reason or status,
        usage if isinstance(usage, dict) else None,
        error is None and (status in _ENDED if status else "output" in body),
        error,
        without(body, _TOLD_BY_REPLY),
    )

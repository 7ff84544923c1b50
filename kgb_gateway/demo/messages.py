"""Anthropic's Messages API, as the demo speaks it: body to ``Ask``, ``Reply`` to events or one document.

Pure; shapes after https://platform.claude.com/docs/en/api/messages and .../build-with-claude/streaming.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from kgb_gateway.demo.reply import (
    Ask,
    BadRequest,
    Event,
    Reply,
    compact,
    limit_of,
    new_id,
    objects,
    parse_body,
    pieces,
    require,
)
from kgb_gateway.demo.sample import Tool

SIGNATURE = base64.b64encode(b"kgb demo: this thinking was signed by nobody").decode()

_ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error", 405: "invalid_request_error", 413: "request_too_large"}  # fmt: skip


def read(body: bytes) -> Ask:
    """An Ask from a Messages body; BadRequest for what the real API refuses too."""
    document = parse_body(body)
    model = require(document, "model", str)
    messages = objects(require(document, "messages", list))
    if not messages:
        raise BadRequest("messages: at least one message is required", "messages")
    require(document, "max_tokens", int)
    last = next((message for message in reversed(messages) if message.get("role") == "user"), messages[-1])
    return Ask(
        raw=document,
        model=model,
        said=_said(last.get("content")),
        size=len(body),
        messages=len(messages),
        streams=document.get("stream") is True,
        thinks=_thinks(document),
        result=_result(last.get("content")),
        limit=limit_of(document, "max_tokens"),
        tools=_tools(document),
        forced=_forced(document.get("tool_choice")),
        schema=_schema(document),
    )


def _thinks(document: Mapping[str, Any]) -> bool:
    """A stream shows thinking unless it is switched off; one document only on request, for ``content[0].text``."""
    thinking = document.get("thinking")
    kind = thinking.get("type") if isinstance(thinking, Mapping) else None
    return kind in ("enabled", "adaptive") or (kind is None and document.get("stream") is True)


def _said(content: Any) -> str:
    """The last text that is the user's own: agents wrap what they add themselves in tags."""
    texts = (
        [content] if isinstance(content, str) else [str(block.get("text", "")) for block in _blocks(content, "text")]
    )
    own = [text for text in texts if text.strip() and not text.lstrip().startswith("<")]
    return own[-1] if own else ""


def _result(content: Any) -> str | None:
    results = _blocks(content, "tool_result")
    if not results:
        return None
    inner = results[-1].get("content", "")
    return inner if isinstance(inner, str) else "".join(str(block.get("text", "")) for block in objects(inner))


def _blocks(content: Any, kind: str) -> list[Mapping[str, Any]]:
    return [block for block in objects(content) if block.get("type") == kind]


def _tools(document: Mapping[str, Any]) -> tuple[Tool, ...]:
    choice = document.get("tool_choice")
    if isinstance(choice, Mapping) and choice.get("type") == "none":
        return ()
    offered = objects(document.get("tools"))
    return tuple(
        Tool(str(tool.get("name", "")), tool["input_schema"])
        for tool in offered
        if isinstance(tool.get("input_schema"), Mapping)
    )


def _forced(choice: Any) -> bool | str:
    if not isinstance(choice, Mapping):
        return False
    return str(choice.get("name", "")) if choice.get("type") == "tool" else choice.get("type") == "any"


def _schema(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    config = document.get("output_config")
    wanted = config.get("format") if isinstance(config, Mapping) else document.get("output_format")
    if not isinstance(wanted, Mapping) or wanted.get("type") != "json_schema":
        return None
    schema = wanted.get("schema")
    return schema if isinstance(schema, Mapping) else None


def usage(ask: Ask, output: int, thinking: int = 0) -> dict[str, Any]:
    """Token counts; marked prompts count as written to the cache first, as read from it later."""
    total = ask.input_tokens
    cached = total * 3 // 4 if '"cache_control"' in json.dumps(ask.raw) else 0
    written, reading = (cached, 0) if ask.messages == 1 else (0, cached)
    return {
        "input_tokens": total - cached,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": reading,
        "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"thinking_tokens": thinking},
        "service_tier": "standard",
    }


def _message(ask: Ask, content: list[dict[str, Any]], stop: str | None, counts: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": ask.model,
        "id": new_id("msg_demo"),
        "type": "message",
        "role": "assistant",
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": counts,
    }


def _stop_reason(reply: Reply) -> str:
    return "max_tokens" if reply.cut else "tool_use" if reply.call else "end_turn"


def document(ask: Ask, reply: Reply) -> dict[str, Any]:
    """The whole reply as one Message."""
    content: list[dict[str, Any]] = []
    if reply.thinking:
        content.append({"type": "thinking", "thinking": reply.thinking, "signature": SIGNATURE})
    content.append({"type": "text", "text": reply.text})
    if reply.call:
        given = json.loads(reply.call.arguments)
        content.append({"type": "tool_use", "id": new_id("toolu_demo"), "name": reply.call.name, "input": given})
    return _message(ask, content, _stop_reason(reply), usage(ask, reply.output_tokens, reply.thinking_tokens))


def events(ask: Ask, reply: Reply) -> Iterator[Event]:
    """The reply as a stream, message_start to message_stop."""
    yield _event({"type": "message_start", "message": _message(ask, [], None, usage(ask, 1))})
    for index, (block, deltas) in enumerate(_streamed(reply)):
        yield _event({"type": "content_block_start", "index": index, "content_block": block}, paced=True)
        if index == 0:
            yield _event({"type": "ping"})
        for delta in deltas:
            yield _event({"type": "content_block_delta", "index": index, "delta": delta}, paced=True)
        yield _event({"type": "content_block_stop", "index": index})
    counts = usage(ask, reply.output_tokens, reply.thinking_tokens)
    # The final counts come without the tiers and without the service tier, as the real ones do.
    final = {name: counts[name] for name in counts if name not in ("cache_creation", "service_tier")}
    delta = {"stop_reason": _stop_reason(reply), "stop_sequence": None}
    yield _event({"type": "message_delta", "delta": delta, "usage": final}, paced=True)
    yield _event({"type": "message_stop"})


def _streamed(reply: Reply) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each content block as it starts, with its deltas."""
    if reply.thinking:
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in pieces(reply.thinking)]
        deltas.append({"type": "signature_delta", "signature": SIGNATURE})
        yield {"type": "thinking", "thinking": "", "signature": ""}, deltas
    yield {"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces(reply.text)]
    if reply.call:
        parts = ["", *reply.call.fragments]
        block = {"type": "tool_use", "id": new_id("toolu_demo"), "name": reply.call.name, "input": {}}
        yield block, [{"type": "input_json_delta", "partial_json": part} for part in parts]


def _event(payload: dict[str, Any], *, paced: bool = False) -> Event:
    return Event(payload["type"], compact(payload), paced)


def error(status: int, message: str, param: str | None, request_id: str) -> dict[str, Any]:
    """The error envelope; ``param`` stands in the message already."""
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def model(name: str) -> dict[str, Any]:
    """A ModelInfo for any name."""
    return {
        "type": "model",
        "id": name,
        "display_name": f"kgb demo ({name})",
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 200_000,
        "max_tokens": 64_000,
    }


def model_page(names: tuple[str, ...]) -> dict[str, Any]:
    """The list of models, in one page."""
    return {"data": [model(name) for name in names], "has_more": False, "first_id": names[0], "last_id": names[-1]}

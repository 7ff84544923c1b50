"""OpenAI's Responses API, as the demo speaks it: body to ``Ask``, ``Reply`` to events or one document.

Pure; shapes after https://platform.openai.com/docs/api-reference/responses-streaming. The stream is built from the
finished items, so what the deltas add up to and what ``response.completed`` carries cannot differ.
"""

import base64
import time
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from kgb_gateway.demo.chat import error, forced, model, model_page, text_of
from kgb_gateway.demo.reply import (
    FRAGMENT,
    Ask,
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

__all__ = ["document", "error", "events", "model", "model_page", "read"]

_OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")


def read(body: bytes) -> Ask:
    """An Ask from a Responses body; BadRequest for what the real API refuses too."""
    document = parse_body(body)
    model_name = require(document, "model", str)
    given = document.get("input", "")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else objects(given)
    texts = [text_of(item.get("content")) for item in items if item.get("role") == "user"]
    own = [text for text in texts if text.strip() and not text.lstrip().startswith("<")]
    last = items[-1] if items else {}
    streams = document.get("stream") is True
    return Ask(
        raw=document,
        model=model_name,
        said=own[-1] if own else "",
        size=len(body),
        messages=len(items),
        streams=streams,
        thinks=_thinks(document),
        result=_output(last) if last.get("type") in _OUTPUTS else None,
        limit=limit_of(document, "max_output_tokens"),
        tools=_tools(document),
        forced=forced(document.get("tool_choice")),
        schema=_schema(document),
    )


def _thinks(document: Mapping[str, Any]) -> bool:
    reasoning = document.get("reasoning")
    if isinstance(reasoning, Mapping):
        return reasoning.get("effort") != "none"
    return document.get("stream") is True


def _output(item: Mapping[str, Any]) -> str:
    return text_of(item.get("output"))


def _tools(document: Mapping[str, Any]) -> tuple[Tool, ...]:
    if document.get("tool_choice") == "none":
        return ()
    return tuple(
        Tool(str(tool.get("name", "")), tool.get("parameters") or {})
        for tool in objects(document.get("tools"))
        if tool.get("type") == "function"
    )


def _schema(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    text = document.get("text")
    wanted = text.get("format") if isinstance(text, Mapping) else None
    if not isinstance(wanted, Mapping) or wanted.get("type") in (None, "text"):
        return None
    schema = wanted.get("schema", {"type": "object"})
    return schema if isinstance(schema, Mapping) else None


def _items(ask: Ask, reply: Reply) -> list[dict[str, Any]]:
    """The finished output items."""
    items: list[dict[str, Any]] = []
    status = "incomplete" if reply.cut else "completed"
    if reply.thinking:
        reasoning: dict[str, Any] = {"id": new_id("rs_demo"), "type": "reasoning"}
        include = ask.raw.get("include")
        if isinstance(include, list) and "reasoning.encrypted_content" in include:
            reasoning["encrypted_content"] = base64.urlsafe_b64encode(reply.thinking.encode()).decode()
        items.append(reasoning | {"summary": [{"type": "summary_text", "text": reply.thinking}]})
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": reply.text}
    message = {"id": new_id("msg_demo"), "type": "message", "status": status, "content": [part], "role": "assistant"}
    items.append(message)
    if reply.call:
        call = {"status": "completed", "arguments": reply.call.arguments, "call_id": new_id("call_demo")}
        items.append({"id": new_id("fc_demo"), "type": "function_call", **call, "name": reply.call.name})
    return items


def _head(ask: Ask) -> dict[str, Any]:
    """The response as it stands before anything was written."""
    raw = ask.raw
    return {
        "id": new_id("resp_demo"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": raw.get("instructions"),
        "max_output_tokens": raw.get("max_output_tokens"),
        "max_tool_calls": None,
        "model": ask.model,
        "output": [],
        "parallel_tool_calls": raw.get("parallel_tool_calls", True),
        "previous_response_id": raw.get("previous_response_id"),
        "prompt_cache_key": raw.get("prompt_cache_key"),
        "reasoning": raw.get("reasoning") or {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": raw.get("store", True),
        "temperature": raw.get("temperature", 1.0),
        "text": raw.get("text") or {"format": {"type": "text"}},
        "tool_choice": raw.get("tool_choice", "auto"),
        "tools": raw.get("tools") or [],
        "top_logprobs": 0,
        "top_p": raw.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": raw.get("metadata") or {},
    }


def _finished(head: dict[str, Any], ask: Ask, reply: Reply, items: list[dict[str, Any]]) -> dict[str, Any]:
    counts = {
        "input_tokens": ask.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": reply.output_tokens,
        "output_tokens_details": {"reasoning_tokens": reply.thinking_tokens},
        "total_tokens": ask.input_tokens + reply.output_tokens,
    }
    ended: dict[str, Any] = {"status": "completed"}
    if reply.cut:
        ended = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    return head | ended | {"output": items, "usage": counts}


def document(ask: Ask, reply: Reply) -> dict[str, Any]:
    """The whole reply as one Response."""
    return _finished(_head(ask), ask, reply, _items(ask, reply))


@attrs.define
class _Numbering:
    """Gives every event its ``sequence_number``."""

    next: int = 0

    def event(self, kind: str, *, paced: bool = False, **fields: Any) -> Event:
        payload = {"type": kind, "sequence_number": self.next, **fields}
        self.next += 1
        return Event(kind, compact(payload), paced)


def events(ask: Ask, reply: Reply) -> Iterator[Event]:
    """The reply as a stream, response.created to response.completed (or incomplete)."""
    number = _Numbering()
    head = _head(ask)
    items = _items(ask, reply)
    yield number.event("response.created", response=head)
    yield number.event("response.in_progress", response=head)
    for index, item in enumerate(items):
        begun = item | _UNWRITTEN[item["type"]]
        yield number.event("response.output_item.added", paced=True, output_index=index, item=begun)
        yield from _STREAMS[item["type"]](number, index, item)
        yield number.event("response.output_item.done", output_index=index, item=item)
    finished = _finished(head, ask, reply, items)
    yield number.event(f"response.{finished['status']}", paced=True, response=finished)


# What an item looks like when it is announced.
_UNWRITTEN: dict[str, dict[str, Any]] = {
    "reasoning": {"summary": []},
    "message": {"status": "in_progress", "content": []},
    "function_call": {"status": "in_progress", "arguments": ""},
}


def _reasoning(number: _Numbering, index: int, item: dict[str, Any]) -> Iterator[Event]:
    where = {"item_id": item["id"], "output_index": index, "summary_index": 0}
    part = item["summary"][0]
    yield number.event("response.reasoning_summary_part.added", **where, part=part | {"text": ""})
    for piece in pieces(part["text"]):
        yield number.event("response.reasoning_summary_text.delta", paced=True, **where, delta=piece)
    yield number.event("response.reasoning_summary_text.done", **where, text=part["text"])
    yield number.event("response.reasoning_summary_part.done", **where, part=part)


def _message(number: _Numbering, index: int, item: dict[str, Any]) -> Iterator[Event]:
    where = {"item_id": item["id"], "output_index": index, "content_index": 0}
    part = item["content"][0]
    yield number.event("response.content_part.added", **where, part=part | {"text": ""})
    for piece in pieces(part["text"]):
        yield number.event("response.output_text.delta", paced=True, **where, delta=piece, logprobs=[])
    yield number.event("response.output_text.done", **where, text=part["text"], logprobs=[])
    yield number.event("response.content_part.done", **where, part=part)


def _function_call(number: _Numbering, index: int, item: dict[str, Any]) -> Iterator[Event]:
    where = {"item_id": item["id"], "output_index": index}
    arguments = item["arguments"]
    for start in range(0, len(arguments), FRAGMENT):
        delta = arguments[start : start + FRAGMENT]
        yield number.event("response.function_call_arguments.delta", paced=True, **where, delta=delta)
    done = {"arguments": arguments, "name": item["name"]}
    yield number.event("response.function_call_arguments.done", **where, **done)


_STREAMS = {"reasoning": _reasoning, "message": _message, "function_call": _function_call}

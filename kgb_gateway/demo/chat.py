"""OpenAI's Chat Completions API, as the demo speaks it: body to ``Ask``, ``Reply`` to chunks or one document.

Pure; shapes after https://platform.openai.com/docs/api-reference/chat. Reasoning is not part of this API, so none is shown.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from kgb_gateway.demo.reply import (
    Ask,
    BadRequest,
    Call,
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


def read(body: bytes) -> Ask:
    """An Ask from a Chat Completions body; BadRequest for what the real API refuses too."""
    document = parse_body(body)
    model = require(document, "model", str)
    messages = objects(require(document, "messages", list))
    if not messages:
        raise BadRequest("messages: expected an array with minimum length 1", "messages")
    said = next((text_of(m.get("content")) for m in reversed(messages) if m.get("role") == "user"), "")
    last = messages[-1]
    return Ask(
        raw=document,
        model=model,
        said=said,
        size=len(body),
        messages=len(messages),
        streams=document.get("stream") is True,
        thinks=False,
        result=text_of(last.get("content")) if last.get("role") == "tool" else None,
        limit=limit_of(document, "max_completion_tokens", "max_tokens"),
        tools=_tools(document),
        forced=forced(document.get("tool_choice")),
        schema=_schema(document),
    )


def text_of(content: Any) -> str:
    """The text of a message: a string, or the last text part of a list."""
    if isinstance(content, str):
        return content
    texts = [str(part["text"]) for part in objects(content) if "text" in part]
    return texts[-1] if texts else ""


def forced(choice: Any) -> bool | str:
    """What ``tool_choice`` demands: a name, any tool (True), or nothing."""
    if not isinstance(choice, Mapping):
        return bool(choice == "required")
    function = choice.get("function", choice)
    return str(function.get("name", "")) if isinstance(function, Mapping) else False


def _tools(document: Mapping[str, Any]) -> tuple[Tool, ...]:
    if document.get("tool_choice") == "none":
        return ()
    functions = [tool.get("function") for tool in objects(document.get("tools"))]
    return tuple(
        Tool(str(function.get("name", "")), function.get("parameters") or {})
        for function in functions
        if isinstance(function, Mapping)
    )


def _schema(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    wanted = document.get("response_format")
    if not isinstance(wanted, Mapping):
        return None
    if wanted.get("type") == "json_object":
        return {"type": "object"}
    inner = wanted.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    return schema if isinstance(schema, Mapping) else None


def _usage(ask: Ask, reply: Reply) -> dict[str, Any]:
    return {
        "prompt_tokens": ask.input_tokens,
        "completion_tokens": reply.output_tokens,
        "total_tokens": ask.input_tokens + reply.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _finish(reply: Reply) -> str:
    return "length" if reply.cut else "tool_calls" if reply.call else "stop"


def document(ask: Ask, reply: Reply) -> dict[str, Any]:
    """The whole reply as one chat.completion."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None, "annotations": []}
    if reply.call:
        message["tool_calls"] = [_tool_call(reply.call, reply.call.arguments)]
    return {
        "id": new_id("chatcmpl-demo"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": ask.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(reply)}],
        "usage": _usage(ask, reply),
        "service_tier": "default",
        "system_fingerprint": "fp_kgb_demo",
    }


def _tool_call(call: Call, arguments: str) -> dict[str, Any]:
    return {"id": new_id("call_demo"), "type": "function", "function": {"name": call.name, "arguments": arguments}}


def events(ask: Ask, reply: Reply) -> Iterator[Event]:
    """The reply as chunks; a last one with usage and no choices only when asked for; then ``[DONE]``."""
    options = ask.raw.get("stream_options")
    wants_usage = isinstance(options, Mapping) and options.get("include_usage") is True
    common = {
        "id": new_id("chatcmpl-demo"),
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": ask.model,
        "service_tier": "default",
        "system_fingerprint": "fp_kgb_demo",
    }
    for delta in _deltas(reply):
        yield _chunk(common, [_choice(delta, None)], wants_usage)
    yield _chunk(common, [_choice({}, _finish(reply))], wants_usage)
    if wants_usage:
        yield Event("", compact(common | {"choices": [], "usage": _usage(ask, reply)}))
    yield Event("", "[DONE]")


def _deltas(reply: Reply) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": "", "refusal": None}
    for piece in pieces(reply.text):
        yield {"content": piece}
    if reply.call:
        yield {"tool_calls": [{"index": 0, **_tool_call(reply.call, "")}]}
        for fragment in reply.call.fragments:
            yield {"tool_calls": [{"index": 0, "function": {"arguments": fragment}}]}


def _choice(delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _chunk(common: dict[str, Any], choices: list[dict[str, Any]], wants_usage: bool) -> Event:
    # With include_usage every chunk but the last carries "usage": null.
    extra: dict[str, Any] = {"usage": None} if wants_usage else {}
    return Event("", compact(common | {"choices": choices} | extra), paced=True)


def error(status: int, message: str, param: str | None, request_id: str) -> dict[str, Any]:
    """The error envelope of every OpenAI API; the request id travels in the header alone."""
    del request_id
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def model(name: str) -> dict[str, Any]:
    """A Model for any name."""
    return {"id": name, "object": "model", "created": 1_767_225_600, "owned_by": "kgb-demo"}


def model_page(names: tuple[str, ...]) -> dict[str, Any]:
    """The list of models."""
    return {"object": "list", "data": [model(name) for name in names]}

"""Blocks for people and for search: what each says, whatever its dialect calls it.

Pure. Nothing is left out that was said; bytes (images, files, signatures) are named, not shown. Owns no layout.
"""

import json
from collections.abc import Callable, Mapping

from .gather import table, tables, text
from .model import Block, Dialect, Json, Kind, View, text_of

_QUIET = (
    "signature",
    "encrypted_content",
    "encrypted_index",
    "encrypted_stdout",
    "thoughtSignature",
    "thought_signature",
)
"""Members that hold bytes for the provider alone."""


def view(dialect: Dialect, block: Block) -> View:
    """``block`` for a reader."""
    text_, name, identity = _VIEWS[dialect](block.kind, block.value)
    return View(block.kind, text_, name, identity)


Seen = tuple[str, str, str]
"""Text, name, id."""


def compact(value: Json) -> str:
    """A value as JSON without spaces; a text as it is, None as nothing."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def size_of(base64: Json) -> str:
    """How many bytes a Base64 text stands for, for people."""
    size = len(text(base64)) * 3 // 4
    return f"{size} bytes" if size < 10_000 else f"{size // 1000} kB"


def media(kind: str, data: Json, where: Json = "") -> str:
    """A picture, a sound or a file by name: its media type, its size, or where it is."""
    return " ".join(part for part in (kind or "data", size_of(data) if data else "", text(where)) if part)


def quiet(value: Json) -> Json:
    """``value`` without what only the provider can read."""
    if isinstance(value, dict):
        return {name: quiet(member) for name, member in value.items() if name not in _QUIET}
    return [quiet(each) for each in value] if isinstance(value, list) else value


def _data_url(url: str) -> Seen | None:
    if not url.startswith("data:"):
        return None
    head, _, data = url[5:].partition(",")
    kind = head.partition(";")[0]
    return media(kind, data), kind, ""


# Anthropic.


def _anthropic(kind: Kind, value: Mapping[str, Json]) -> Seen:
    name = text(value.get("type"))
    if name in ("text", "thinking"):
        return text(value.get(name)), "", ""
    if name == "redacted_thinking":
        return "", "redacted", ""
    if kind is Kind.TOOL_CALL:
        called = text(value.get("name")) or text(value.get("server_name"))
        return compact(value.get("input")), called, text(value.get("id"))
    if kind is Kind.TOOL_RESULT:
        return _flat(value.get("content")), name if name != "tool_result" else "", text(value.get("tool_use_id"))
    if name in ("image", "document"):
        return _source(value)
    if name == "search_result":
        return text_of([text(value.get("title")), text(value.get("source")), _flat(value.get("content"))]), name, ""
    if name == "container_upload":
        return text(value.get("file_id")), name, text(value.get("file_id"))
    if name == "compaction":
        return text(value.get("content")), name, ""
    if name == "fallback":
        models = [text(table(value.get(side)).get("model")) for side in ("from", "to")]
        return " -> ".join(models), name, ""
    return compact(quiet(value)), name, ""


def _source(value: Mapping[str, Json]) -> Seen:
    source = table(value.get("source"))
    kind = text(source.get("media_type")) or text(value.get("type"))
    title = text_of([text(value.get("title")), text(value.get("context"))])
    if source.get("type") == "text":
        return text_of([title, text(source.get("data"))]), kind, ""
    if source.get("type") == "content":
        return text_of([title, _flat(source.get("content"))]), kind, ""
    where = text(source.get("url")) or text(source.get("file_id"))
    return text_of([title, media(kind, source.get("data"), where)]), kind, ""


def _flat(content: Json) -> str:
    """A result's content as text: its texts, line by line; results of the provider's tools by what they say."""
    if isinstance(content, list):
        return text_of([_flat(each) for each in content])
    if not isinstance(content, dict):
        return compact(content)
    name = text(content.get("type"))
    if name == "text":
        return text(content.get("text"))
    if name in ("image", "document"):
        return _source(content)[0]
    if name in ("web_search_result", "search_result"):
        told = [text(content.get(member)) for member in ("title", "url", "source", "page_age")]
        return text_of([" ".join(part for part in told if part), _flat(content.get("content"))])
    if "stdout" in content or "stderr" in content:
        ended = content.get("return_code")
        code = [f"exit code {ended}"] if ended else []
        files = [_flat(content["content"])] if content.get("content") else []
        return text_of([text(content.get("stdout")), text(content.get("stderr")), *code, *files])
    if name == "tool_reference":
        return text(content.get("tool_name"))
    if "tool_references" in content:
        return _flat(content["tool_references"])
    if "text" in content and isinstance(content["text"], str):
        return text_of([text(content["text"])])
    return compact(quiet(content))


# OpenAI Chat, and Completions.


def _chat(kind: Kind, value: Mapping[str, Json]) -> Seen:
    if kind is Kind.TOOL_RESULT:
        return _part_texts(value.get("content")), text(value.get("name")), text(value.get("tool_call_id"))
    if kind is Kind.TOOL_CALL:
        inner = table(value.get("function") or value.get("custom") or value.get("function_call"))
        said = inner.get("arguments") if "arguments" in inner else inner.get("input")
        return compact(said), text(inner.get("name")), text(value.get("id"))
    if kind is Kind.THINKING:
        thought = value.get("thinking")
        return (_part_texts(thought) if thought is not None else text(value.get("text"))), "", ""
    if kind in (Kind.TEXT, Kind.REFUSAL):
        return text(value.get("text")) or text(value.get("refusal")), "", ""
    return _chat_media(value)


def _chat_media(value: Mapping[str, Json]) -> Seen:
    name = text(value.get("type"))
    inner = table(value.get(name))
    if name in ("image_url", "document_url"):
        url = text(inner.get("url")) or text(value.get(name))
        return _data_url(url) or (url, name, "")
    if name == "input_audio":
        kind = f"audio/{text(inner.get('format'))}"
        return media(kind, inner.get("data")), kind, ""
    if name == "audio":
        return text(inner.get("transcript")) or media("audio", inner.get("data")), "audio", text(inner.get("id"))
    if name == "file":
        named = text(inner.get("filename")) or text(inner.get("file_id"))
        found = _data_url(text(inner.get("file_data")))
        return (text_of([named, found[0]]) if found else named), named or "file", ""
    return compact(value), name, ""


def _part_texts(content: Json) -> str:
    if isinstance(content, list):
        return text_of(
            [text(each.get("text")) or compact(each) if isinstance(each, dict) else compact(each) for each in content]
        )
    return compact(content)


# OpenAI Responses.


def _responses(kind: Kind, value: Mapping[str, Json]) -> Seen:
    name = text(value.get("type"))
    identity = text(value.get("call_id")) or text(value.get("id"))
    if name == "reasoning":
        parts = [*tables(value.get("summary")), *tables(value.get("content"))]
        return text_of([text(part.get("text")) for part in parts]), "", text(value.get("id"))
    if kind is Kind.TOOL_CALL:
        return _called(value), text(value.get("name")) or name, identity
    if kind is Kind.TOOL_RESULT:
        return _result(value), "" if name == "function_call_output" else name, identity
    if kind in (Kind.TEXT, Kind.THINKING):
        return text(value.get("text")), "", ""
    if kind is Kind.REFUSAL:
        return text(value.get("refusal")), "", ""
    if name == "input_image":
        where = text(value.get("image_url")) or text(value.get("file_id"))
        return _data_url(where) or (where, "image", "")
    if name == "input_file":
        named = text(value.get("filename")) or text(value.get("file_url")) or text(value.get("file_id"))
        found = _data_url(text(value.get("file_data")))
        return (text_of([named, found[0]]) if found else named), named, ""
    if kind is Kind.AUDIO:
        inner = table(value.get("input_audio")) or value
        return text(inner.get("transcript")) or media("audio", inner.get("data")), "audio", ""
    if name == "mcp_list_tools":
        tools = [text(tool.get("name")) for tool in tables(value.get("tools"))]
        return text_of([", ".join(tools), compact(value.get("error"))]), text(value.get("server_label")), identity
    return compact(quiet(value)), name, identity


_SAID = ("arguments", "input", "code", "action", "operation", "queries", "revised_prompt")
_CAME = ("outputs", "output", "results", "result", "error")


def _called(value: Mapping[str, Json]) -> str:
    """What a call says; what came of it too, where the provider ran the tool and answers in the same item."""
    said = [compact(value[member]) for member in _SAID if value.get(member) not in (None, "", [], {})]
    came = []
    for member in _CAME:
        if isinstance(value.get(member), str) and value.get("type") == "image_generation_call":
            came.append(media("image", value[member]))
        elif value.get(member):
            came.append(_came(value[member]))
    return text_of([*said, *came])


def _result(value: Mapping[str, Json]) -> str:
    return text_of(
        [_came(value[member]) for member in (*_CAME, "tools", "approve", "reason") if value.get(member) is not None]
    )


def _came(value: Json) -> str:
    """What a tool gave, as text: texts by themselves, the output of commands by its streams, files by their names."""
    if isinstance(value, list):
        return text_of([_came(each) for each in value])
    if not isinstance(value, dict):
        return compact(value)
    if "stdout" in value or "stderr" in value:
        code = table(value.get("outcome")).get("exit_code")
        ended = [f"exit code {code}"] if code else []
        return text_of([text(value.get("stdout")), text(value.get("stderr")), *ended])
    if value.get("type") == "logs":
        return text(value.get("logs"))
    if text(value.get("type")).startswith("input_"):
        return _responses(Kind.TEXT if "text" in value else Kind.OTHER, value)[0]
    if "filename" in value and "text" in value:
        return text_of([text(value.get("filename")), text(value.get("text"))])
    return text(value.get("text")) or compact(quiet(value))


# Gemini.


def _gemini(kind: Kind, value: Mapping[str, Json]) -> Seen:
    call = table(value.get("functionCall") or value.get("toolCall"))
    if call:
        said = call.get("args", call.get("partialArgs"))
        return compact(said), text(call.get("name")) or text(call.get("toolType")), text(call.get("id"))
    came = table(value.get("functionResponse") or value.get("toolResponse"))
    if came:
        response = came.get("response")
        single = next(iter(response.values())) if isinstance(response, dict) and len(response) == 1 else response
        inside = [_gemini(Kind.OTHER, part)[0] for part in tables(came.get("parts"))]
        shown = single if isinstance(single, str) else compact(response)
        return text_of([shown, *inside]), text(came.get("name")) or text(came.get("toolType")), text(came.get("id"))
    if "text" in value:
        return text(value.get("text")), "", ""
    code, result = table(value.get("executableCode")), table(value.get("codeExecutionResult"))
    if code:
        return text(code.get("code")), text(code.get("language")).lower(), text(code.get("id"))
    if result:
        return (
            text_of([text(result.get("output"))]) or text(result.get("outcome")),
            "code_execution",
            text(result.get("id")),
        )
    for name in ("inlineData", "inline_data", "fileData", "file_data"):
        if name in value:
            data = table(value[name])
            found = text(data.get("mimeType")) or text(data.get("mime_type"))
            return media(found, data.get("data"), data.get("fileUri", data.get("file_uri"))), found, ""
    return compact(quiet(value)), "", ""


def _interactions(kind: Kind, value: Mapping[str, Json]) -> Seen:
    name = text(value.get("type"))
    identity = text(value.get("call_id")) or text(value.get("id"))
    if name == "text":
        return text(value.get("text")), "", ""
    if name == "thought":
        summary = value.get("summary")
        return text_of([text(part.get("text")) for part in tables(summary)]) or text(summary), "", ""
    if kind is Kind.TOOL_CALL:
        return compact(value.get("arguments")), text(value.get("name")) or name, identity
    if kind is Kind.TOOL_RESULT:
        return _came(value.get("result")), text(value.get("name")) or name, identity
    if kind in (Kind.IMAGE, Kind.AUDIO, Kind.DOCUMENT):
        found = text(value.get("mime_type")) or name
        return media(found, value.get("data"), value.get("uri")), found, ""
    return compact(quiet(value)), name, identity


_VIEWS: dict[Dialect, Callable[[Kind, Mapping[str, Json]], Seen]] = {
    Dialect.ANTHROPIC_MESSAGES: _anthropic,
    Dialect.OPENAI_CHAT: _chat,
    Dialect.OPENAI_COMPLETIONS: _chat,
    Dialect.OPENAI_RESPONSES: _responses,
    Dialect.GEMINI: _gemini,
    Dialect.GEMINI_INTERACTIONS: _interactions,
}

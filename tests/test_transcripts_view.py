"""Blocks for people: what each says, is called, and which call a result belongs to."""

from collections.abc import Callable

import pytest

from kgb_gateway.dewey.transcripts import anthropic, gemini, gemini_interactions, openai_chat, openai_responses
from kgb_gateway.dewey.transcripts.model import Block, Dialect, Json, Kind, View
from kgb_gateway.dewey.transcripts.view import view

DATA = "QUJD" * 4  # 12 bytes
A, C, R, G, N = (
    Dialect.ANTHROPIC_MESSAGES, Dialect.OPENAI_CHAT, Dialect.OPENAI_RESPONSES, Dialect.GEMINI, Dialect.GEMINI_INTERACTIONS,
)  # fmt: skip
KINDS: dict[Dialect, Callable[[dict[str, Json]], Kind]] = {
    A: anthropic.kind_of, C: openai_chat.kind_of, G: gemini.kind_of, N: gemini_interactions.kind_of,
    R: lambda value: openai_responses.message({"type": "message", "role": "user", "content": [value]}).blocks[0].kind
    if str(value.get("type")).startswith(("input_", "output_", "refusal")) and "call_id" not in value
    else openai_responses.kind_of_item(value),
}  # fmt: skip

CASES: list[tuple[Dialect, dict[str, Json], View]] = [
    (A, {"type": "text", "text": "a", "citations": [{"cited_text": "never told twice"}]}, View(Kind.TEXT, "a")),
    (A, {"type": "thinking", "thinking": "a", "signature": "zzz"}, View(Kind.THINKING, "a")),
    (A, {"type": "redacted_thinking", "data": "zzz"}, View(Kind.THINKING, "", "redacted")),
    (A, {"type": "tool_use", "id": "t", "name": "w", "input": {"a": [1, "é"]}}, View(Kind.TOOL_CALL, '{"a":[1,"é"]}', "w", "t")),
    (A, {"type": "tool_use", "id": "t", "name": "w", "input": '{"a'}, View(Kind.TOOL_CALL, '{"a', "w", "t")),
    (A, {"type": "mcp_tool_use", "id": "t", "name": "w", "server_name": "s", "input": {}}, View(Kind.TOOL_CALL, "{}", "w", "t")),
    (A, {"type": "tool_result", "tool_use_id": "t", "content": "18"}, View(Kind.TOOL_RESULT, "18", "", "t")),
    (A, {"type": "tool_result", "tool_use_id": "t"}, View(Kind.TOOL_RESULT, "", "", "t")),
    (A, {"type": "tool_result", "tool_use_id": "t", "content": [
        {"type": "text", "text": "a"}, {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}]},
     View(Kind.TOOL_RESULT, "a\nimage/png 12 bytes", "", "t")),
    (A, {"type": "bash_code_execution_tool_result", "tool_use_id": "t", "content": {
        "type": "bash_code_execution_result", "stdout": "out", "stderr": "err", "return_code": 2, "content": []}},
     View(Kind.TOOL_RESULT, "out\nerr\nexit code 2", "bash_code_execution_tool_result", "t")),
    (A, {"type": "web_search_tool_result", "tool_use_id": "t", "content": [
        {"type": "web_search_result", "title": "T", "url": "u", "encrypted_content": "zzz"}]},
     View(Kind.TOOL_RESULT, "T u", "web_search_tool_result", "t")),
    (A, {"type": "web_search_tool_result", "tool_use_id": "t", "content": {"type": "web_search_tool_result_error", "error_code": "max_uses"}},
     View(Kind.TOOL_RESULT, '{"type":"web_search_tool_result_error","error_code":"max_uses"}', "web_search_tool_result", "t")),
    (A, {"type": "tool_search_tool_result", "tool_use_id": "t", "content": {"tool_references": [{"type": "tool_reference", "tool_name": "w"}]}},
     View(Kind.TOOL_RESULT, "w", "tool_search_tool_result", "t")),
    (A, {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}, View(Kind.IMAGE, "image http://x/y.png", "image")),
    (A, {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 40_000}}, View(Kind.IMAGE, "image/png 30 kB", "image/png")),
    (A, {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "words"}}, View(Kind.DOCUMENT, "T\nwords", "text/plain")),
    (A, {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": DATA}}, View(Kind.DOCUMENT, "application/pdf 12 bytes", "application/pdf")),
    (A, {"type": "compaction", "content": "summary", "encrypted_content": "zzz"}, View(Kind.OTHER, "summary", "compaction")),
    (A, {"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}}, View(Kind.OTHER, "a -> b", "fallback")),
    (A, {"type": "hologram", "h": 1}, View(Kind.OTHER, '{"type":"hologram","h":1}', "hologram")),
    (C, {"type": "text", "text": "a"}, View(Kind.TEXT, "a")),
    (C, {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}, View(Kind.IMAGE, "image/png 12 bytes", "image/png")),
    (C, {"type": "image_url", "image_url": {"url": "http://x"}}, View(Kind.IMAGE, "http://x", "image_url")),
    (C, {"type": "input_audio", "input_audio": {"format": "wav", "data": DATA}}, View(Kind.AUDIO, "audio/wav 12 bytes", "audio/wav")),
    (C, {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{DATA}"}}, View(Kind.DOCUMENT, "a.pdf\napplication/pdf 12 bytes", "a.pdf")),
    (C, {"type": "refusal", "refusal": "no"}, View(Kind.REFUSAL, "no")),
    (R, {"type": "input_text", "text": "a"}, View(Kind.TEXT, "a")),
    (R, {"type": "output_text", "text": "a", "annotations": [{"title": "never told twice"}]}, View(Kind.TEXT, "a")),
    (R, {"type": "refusal", "refusal": "no"}, View(Kind.REFUSAL, "no")),
    (R, {"type": "input_image", "image_url": f"data:image/png;base64,{DATA}"}, View(Kind.IMAGE, "image/png 12 bytes", "image/png")),
    (R, {"type": "input_file", "filename": "a.pdf"}, View(Kind.DOCUMENT, "a.pdf", "a.pdf")),
    (R, {"type": "reasoning", "id": "r", "summary": [{"text": "a"}], "content": [{"text": "b"}], "encrypted_content": "zzz"}, View(Kind.THINKING, "a\nb", "", "r")),
    (R, {"type": "function_call", "call_id": "c", "id": "f", "name": "w", "arguments": "{}"}, View(Kind.TOOL_CALL, "{}", "w", "c")),
    (R, {"type": "function_call_output", "call_id": "c", "output": "18"}, View(Kind.TOOL_RESULT, "18", "", "c")),
    (R, {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": f"data:image/png;base64,{DATA}"}]},
     View(Kind.TOOL_RESULT, "a\nimage/png 12 bytes", "", "c")),
    (R, {"type": "custom_tool_call", "call_id": "c", "name": "sh", "input": "ls"}, View(Kind.TOOL_CALL, "ls", "sh", "c")),
    (R, {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "a", "stderr": "b", "outcome": {"type": "exit", "exit_code": 1}}]},
     View(Kind.TOOL_RESULT, "a\nb\nexit code 1", "shell_call_output", "c")),
    (R, {"type": "web_search_call", "id": "w", "action": {"type": "search", "query": "q"}}, View(Kind.TOOL_CALL, '{"type":"search","query":"q"}', "web_search_call", "w")),
    (R, {"type": "mcp_call", "id": "m", "name": "w", "arguments": "{}", "output": "18", "error": None}, View(Kind.TOOL_CALL, "{}\n18", "w", "m")),
    (R, {"type": "code_interpreter_call", "id": "c", "code": "1+1", "outputs": [{"type": "logs", "logs": "2"}]}, View(Kind.TOOL_CALL, "1+1\n2", "code_interpreter_call", "c")),
    (R, {"type": "image_generation_call", "id": "g", "result": DATA, "revised_prompt": "cat"}, View(Kind.TOOL_CALL, "cat\nimage 12 bytes", "image_generation_call", "g")),
    (R, {"type": "mcp_list_tools", "id": "m", "server_label": "s", "tools": [{"name": "a"}, {"name": "b"}]}, View(Kind.OTHER, "a, b", "s", "m")),
    (R, {"type": "program_output", "call_id": "c", "result": "42"}, View(Kind.TOOL_RESULT, "42", "program_output", "c")),
    (G, {"text": "a", "thoughtSignature": "zzz"}, View(Kind.TEXT, "a")),
    (G, {"functionCall": {"name": "f", "args": {"a": 1}}}, View(Kind.TOOL_CALL, '{"a":1}', "f")),
    (G, {"functionResponse": {"name": "f", "response": {"a": 1, "b": 2}}}, View(Kind.TOOL_RESULT, '{"a":1,"b":2}', "f")),
    (N, {"type": "function_call", "id": "c", "name": "f", "arguments": {"a": 1}}, View(Kind.TOOL_CALL, '{"a":1}', "f", "c")),
    (N, {"type": "image", "mime_type": "image/png", "data": DATA}, View(Kind.IMAGE, "image/png 12 bytes", "image/png")),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "value", "seen"), CASES, ids=lambda each: str(each)[:40])
def test_what_a_block_says(dialect: Dialect, value: dict[str, Json], seen: View) -> None:
    assert view(dialect, Block(KINDS[dialect](value), value)) == seen


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    "value",
    [
        {},
        {"type": None},
        {"type": "text", "text": 5},
        {"content": [1, None, {"a": []}], "source": 5, "summary": 5, "type": "image"},
    ],
)
def test_no_shape_raises(dialect: Dialect, kind: Kind, value: dict[str, Json]) -> None:
    assert view(dialect, Block(kind, value)).kind is kind

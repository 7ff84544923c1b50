"""OpenAI Responses: prompts, replies, and streams of which parts are missing."""

from collections.abc import Sequence
from typing import Any

import pytest

from kgb_gateway.dewey.transcripts.assembling import assembled
from kgb_gateway.dewey.transcripts.model import Json, Kind, NotReadable, Reply, View
from kgb_gateway.dewey.transcripts.openai_responses import read_prompt, read_reply
from kgb_gateway.dewey.transcripts.responses_stream import Assembler
from kgb_gateway.dewey.transcripts.view import view


def event(kind: str, **more: Json) -> dict[str, Json]:
    return {"type": f"response.{kind}", "sequence_number": 1, **more}


def whole(kind: str, status: str, output: Sequence[Json] = (), number: int = 1, **more: Json) -> dict[str, Json]:
    response = {
        "id": f"resp_{number}",
        "object": "response",
        "model": "gpt",
        "status": status,
        "output": list(output),
        **more,
    }
    return event(kind, response=response)


CREATED = whole("created", "in_progress", usage=None, instructions="i")


def added(index: int, done: bool = False, **item: Json) -> dict[str, Json]:
    return event("output_item.done" if done else "output_item.added", output_index=index, item=item)


def at(kind: str, index: int = 0, **more: Json) -> dict[str, Json]:
    return event(kind, output_index=index, item_id="i", **more)


def read(*events: Json) -> Reply:
    assembler = Assembler()
    for each in events:
        assembler.feed(each)
    return assembled(assembler, read_reply)


def only(reply: Reply) -> Any:
    (message,) = reply.messages
    (block,) = message.blocks
    return dict(block.value)


def test_a_prompt() -> None:
    prompt = read_prompt(
        {
            "model": "gpt", "instructions": "Be brief.", "stream": True, "tools": [{"type": "web_search"}], "store": False,
            "previous_response_id": "resp_0",
            "input": [
                {"role": "user", "content": "hi"},
                {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text", "text": "a"}]},
                {"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "18"},
                {"type": "mcp_approval_response", "approve": True, "approval_request_id": "q"},
                {"type": "item_reference", "id": "z"},
            ],
        }
    )  # fmt: skip
    assert (prompt.model, prompt.stream, prompt.previous, prompt.params) == ("gpt", True, "resp_0", {"store": False})
    assert prompt.system[0].value == {"type": "input_text", "text": "Be brief."}
    assert [each.role for each in prompt.messages] == [
        "user",
        "assistant",
        "assistant",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    kinds = [each.blocks[0].kind for each in prompt.messages]
    assert kinds == [
        Kind.TEXT,
        Kind.TEXT,
        Kind.THINKING,
        Kind.TOOL_CALL,
        Kind.TOOL_RESULT,
        Kind.TOOL_RESULT,
        Kind.OTHER,
    ]
    assert prompt.messages[1].extra == {"type": "message", "id": "m"}


def test_a_bare_text_is_the_users() -> None:
    assert read_prompt({"input": "hi"}).messages == read_prompt({"input": [{"role": "user", "content": "hi"}]}).messages


@pytest.mark.parametrize("body", [None, [], "x"])
def test_no_prompt(body: Json) -> None:
    with pytest.raises(NotReadable):
        read_prompt(body)


def test_the_terminal_event_counts() -> None:
    item: Json = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "last"}]}
    reply = read(CREATED, added(0, type="message", role="assistant", content=[]), at("output_text.delta", delta="first"),
                 whole("completed", "completed", [item], usage={"total_tokens": 1}))  # fmt: skip
    assert only(reply)["text"] == "last"
    assert (reply.stop_reason, reply.usage, reply.complete) == ("completed", {"total_tokens": 1}, True)
    assert reply.rest["instructions"] == "i"


def test_a_terminal_event_that_lists_nothing_leaves_the_items() -> None:
    done = added(0, True, type="function_call", call_id="c", name="f", arguments='{"a":1}')
    reply = read(CREATED, at("function_call_arguments.delta", delta="junk"), done, whole("completed", "completed"))
    assert only(reply)["arguments"] == '{"a":1}'
    assert reply.complete


PARTS: dict[str, tuple[list[Json], Json]] = {
    "text": (
        [added(0, type="message", role="assistant", content=[]), at("content_part.added", content_index=0, part={"type": "output_text", "text": "", "annotations": []}),
         at("output_text.delta", content_index=0, delta="a"), at("output_text.annotation.added", content_index=0, annotation_index=0, annotation={"n": 1}),
         at("output_text.delta", content_index=0, delta="b", logprobs=[{"t": 1}])],
        {"type": "output_text", "text": "ab", "annotations": [{"n": 1}], "logprobs": [{"t": 1}]},
    ),
    "text without a beginning": ([at("output_text.delta", delta="a"), at("output_text.delta", delta="b")], {"type": "output_text", "text": "ab"}),
    "text that is told whole": ([at("output_text.delta", delta="a"), at("output_text.done", text="abc")], {"type": "output_text", "text": "abc"}),
    "refusal": ([at("refusal.delta", delta="no"), at("refusal.delta", delta="!")], {"type": "refusal", "refusal": "no!"}),
    "reasoning": (
        [added(0, type="reasoning", summary=[]), at("reasoning_summary_part.added", summary_index=0, part={"type": "summary_text", "text": ""}),
         at("reasoning_summary_text.delta", summary_index=0, delta="a"), at("reasoning_summary_text.delta", summary_index=1, delta="b"),
         at("reasoning_text.delta", content_index=0, delta="c")],
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "a"}, {"type": "summary_text", "text": "b"}],
         "content": [{"type": "reasoning_text", "text": "c"}]},
    ),
    "function": ([added(0, type="function_call", name="f", arguments=""), at("function_call_arguments.delta", delta="{"), at("function_call_arguments.delta", delta="}")],
                 {"type": "function_call", "name": "f", "arguments": "{}"}),
    "function without a beginning": ([at("function_call_arguments.delta", delta="{")], {"id": "i", "type": "function_call", "arguments": "{"}),
    "custom": ([added(0, type="custom_tool_call", input=""), at("custom_tool_call_input.delta", delta="ls")], {"type": "custom_tool_call", "input": "ls"}),
    "code": ([added(0, type="code_interpreter_call", code=None), at("code_interpreter_call.in_progress"), at("code_interpreter_call_code.delta", delta="1+1"), at("code_interpreter_call.interpreting")],
             {"type": "code_interpreter_call", "code": "1+1"}),
    "patch": ([added(0, type="apply_patch_call", operation={"path": "p", "diff": ""}), at("apply_patch_call_operation_diff.delta", delta="+"), at("apply_patch_call_operation_diff.delta", delta="a")],
              {"type": "apply_patch_call", "operation": {"path": "p", "diff": "+a"}}),
    "shell": ([added(0, type="shell_call", action={"commands": [], "timeout_ms": 1}), at("shell_call_command.added", command_index=0, command=""),
               at("shell_call_command.delta", command_index=0, delta="l"), at("shell_call_command.delta", command_index=0, delta="s"), at("shell_call_command.delta", command_index=1, delta="pwd")],
              {"type": "shell_call", "action": {"commands": ["ls", "pwd"], "timeout_ms": 1}}),
    "output of a shell": ([added(0, type="shell_call_output", output=[]), at("shell_call_output_content.delta", command_index=0, delta={"stdout": "a"}),
                           at("shell_call_output_content.delta", command_index=0, delta={"stdout": "b", "stderr": "c"})],
                          {"type": "shell_call_output", "output": [{"stdout": "ab", "stderr": "c"}]}),
    "a tool of the future": ([added(0, type="oracle_call"), at("oracle_call.asking"), at("oracle_call_riddle.delta", delta="wh"), at("oracle_call_riddle.delta", delta="y")],
                             {"type": "oracle_call", "riddle": "why"}),
}  # fmt: skip


@pytest.mark.parametrize("way", PARTS)
def test_without_an_end_the_deltas_count(way: str) -> None:
    events, wanted = PARTS[way]
    reply = read(CREATED, *events)
    assert only(reply) == wanted
    assert reply.unknown == ()
    assert not reply.complete


def test_unknown_events_are_kept() -> None:
    strange: list[dict[str, Json]] = [
        {"type": "codex.rate_limits", "x": 1}, event("hologram.delta", delta="x"), at("hologram.delta", delta="x"),
        event("output_item.added", output_index=0), at("web_search_call.searching", news=1), {"no": "type"},
    ]  # fmt: skip
    reply = read(CREATED, added(0, type="web_search_call"), at("web_search_call.searching"), *strange, 7)
    assert reply.unknown == (*strange, 7)


def test_incomplete_is_an_end_with_a_reason() -> None:
    reply = read(CREATED, whole("incomplete", "incomplete", incomplete_details={"reason": "max_output_tokens"}))
    assert (reply.stop_reason, reply.complete) == ("max_output_tokens", True)


@pytest.mark.parametrize("error", [{"error": {"code": "c", "message": "m"}}, {"code": "c", "message": "m"}])
def test_errors(error: dict[str, Json]) -> None:
    reply = read(CREATED, at("output_text.delta", delta="half"), {"type": "error", "sequence_number": 2, **error})
    assert reply.error == {"code": "c", "message": "m"}
    assert only(reply)["text"] == "half"
    assert not reply.complete


def test_a_failure() -> None:
    reply = read(CREATED, whole("failed", "failed", error={"code": "c"}))
    assert (reply.error, reply.complete, reply.stop_reason) == ({"code": "c"}, False, "failed")


def test_several_responses_in_one_stream() -> None:
    item: Json = {"type": "function_call", "name": "f", "arguments": "{}"}
    text: Json = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}
    reply = read(CREATED, whole("completed", "completed", [item], usage={"t": 1}), whole("created", "in_progress", number=2),
                 whole("completed", "completed", [text], 2, usage={"t": 2}))  # fmt: skip
    assert [each.blocks[0].kind for each in reply.messages] == [Kind.TOOL_CALL, Kind.TEXT]
    assert (reply.id, reply.usage, reply.complete) == ("resp_2", {"t": 2}, True)


@pytest.mark.parametrize("wrong", [
    None, 5, [], {}, event("created"), event("completed", response=1), event("output_item.done"), at("output_text.delta", content_index="x", delta=5),
    at("content_part.added", part=1), at("content_part.added", content_index=10**12, part={}), event("output_text.delta"),
    at("output_text.annotation.added"), added(0, type=["x"], content=7, summary=8), {"type": 4}, event(""), event("output_item.added", output_index="x", item={}),
    at("shell_call_output_content.delta", delta=1), at("shell_call_command.added"), at("apply_patch_call_operation_diff.done"), {"type": "error"},
])  # fmt: skip
def test_wrong_shapes_never_raise(wrong: Json) -> None:
    assembler = Assembler()
    for each in (
        wrong,
        CREATED,
        wrong,
        added(0, type="message", role="assistant", content=[]),
        wrong,
        whole("completed", "completed"),
        wrong,
    ):
        assembler.feed(each)
        assembler.fresh(each)
        reply = assembled(assembler, read_reply)
        for message in reply.messages:
            assert len([view(reply.dialect, block) for block in message.blocks]) == len(message.blocks)


def test_a_body_in_the_background_is_not_complete_yet() -> None:
    assert not read_reply({"id": "r", "status": "queued", "output": []}).complete
    assert read_reply({"id": "r", "object": "response.compaction", "output": [{"type": "compaction"}]}).complete


def test_what_is_fresh() -> None:
    assembler = Assembler()
    assert assembler.fresh(at("output_text.delta", delta="a")) == [View(Kind.TEXT, "a")]
    assert assembler.fresh(at("reasoning_summary_text.delta", delta="a")) == [View(Kind.THINKING, "a")]
    assert assembler.fresh(added(0, type="function_call", name="f", call_id="c")) == [
        View(Kind.TOOL_CALL, "", "f", "c")
    ]
    assert assembler.fresh(at("function_call_arguments.delta", delta="{")) == [View(Kind.TOOL_CALL, "{")]

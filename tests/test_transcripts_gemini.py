"""Gemini's generateContent and Interactions: prompts, replies, streams."""

from typing import Any

import pytest

from kgb_gateway.dewey.transcripts import gemini_interactions as interactions
from kgb_gateway.dewey.transcripts.assembling import assembled
from kgb_gateway.dewey.transcripts.gemini import Assembler, read_prompt, read_reply
from kgb_gateway.dewey.transcripts.model import Json, Kind, NotReadable, Reply, View
from kgb_gateway.dewey.transcripts.partial_args import PartialArgs
from kgb_gateway.dewey.transcripts.view import view


def chunk(*parts: Json, finish: str | None = None, **more: Json) -> dict[str, Json]:
    candidate: dict[str, Json] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": "gemini", "responseId": "r", **more}


def read(*events: Json) -> Reply:
    assembler = Assembler()
    for each in events:
        assembler.feed(each)
    return assembled(assembler, read_reply)


def values(reply: Reply) -> list[Any]:
    return [dict(block.value) for message in reply.messages for block in message.blocks]


REQUEST: dict[str, Json] = {
    "systemInstruction": {"parts": [{"text": "Be brief."}]},
    "contents": [
        {"role": "user", "parts": [{"text": "hi"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
        {"role": "model", "parts": [{"text": "hm", "thought": True}, {"functionCall": {"name": "f", "args": {"a": 1}, "id": "c"}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "id": "c", "response": {"output": "18"}}}]},
    ],
    "tools": [{"functionDeclarations": []}],
    "generationConfig": {"temperature": 0},
}  # fmt: skip


def test_a_prompt() -> None:
    prompt = read_prompt(REQUEST)
    assert prompt.system[0].value == {"text": "Be brief."}
    kinds = [[block.kind for block in each.blocks] for each in prompt.messages]
    assert kinds == [[Kind.TEXT, Kind.IMAGE], [Kind.THINKING, Kind.TOOL_CALL], [Kind.TOOL_RESULT]]
    assert prompt.params == {"generationConfig": {"temperature": 0}}
    assert view(prompt.dialect, prompt.messages[1].blocks[1]) == View(Kind.TOOL_CALL, '{"a":1}', "f", "c")
    assert view(prompt.dialect, prompt.messages[2].blocks[0]) == View(Kind.TOOL_RESULT, "18", "f", "c")


def test_code_assists_wrapping() -> None:
    prompt = read_prompt({"model": "gemini-x", "project": "p", "request": {**REQUEST, "session_id": "s"}})
    assert (prompt.model, prompt.messages) == ("gemini-x", read_prompt(REQUEST).messages)
    assert prompt.params["project"] == "p"
    assert prompt.params["session_id"] == "s"
    wrapped: list[Json] = [
        {"response": chunk({"text": "a"}), "traceId": "t"},
        {"response": chunk({"text": "b"}, finish="STOP")},
    ]
    assert values(read(*wrapped)) == [{"text": "ab"}]
    assert read(*wrapped).rest == {"traceId": "t"}
    assert read_reply(wrapped[1]).complete


@pytest.mark.parametrize("contents", ["hi", {"parts": [{"text": "hi"}]}, [{"parts": {"text": "hi"}}], ["hi"]])
def test_contents_in_short(contents: Json) -> None:
    (message,) = read_prompt({"contents": contents}).messages
    assert (message.role, message.blocks[0].value) == ("user", {"text": "hi"})


@pytest.mark.parametrize("body", [None, [], "x"])
def test_no_prompt(body: Json) -> None:
    with pytest.raises(NotReadable):
        read_prompt(body)


def test_plain_texts_merge_and_signed_ones_do_not() -> None:
    reply = read(
        chunk({"text": "a", "thought": True}), chunk({"text": "b", "thought": True}), chunk({"text": "c"}, {"text": "d"}),
        chunk({"text": "e", "thoughtSignature": "s"}), chunk({"text": "f"}), chunk({"text": ""}, finish="STOP"),
    )  # fmt: skip
    assert values(reply) == [
        {"text": "ab", "thought": True},
        {"text": "cd"},
        {"text": "e", "thoughtSignature": "s"},
        {"text": "f"},
    ]
    assert (reply.id, reply.model, reply.stop_reason, reply.complete) == ("r", "gemini", "STOP", True)


def test_the_last_usage_that_is_there_counts() -> None:
    reply = read(chunk(usageMetadata={"promptTokenCount": 5, "totalTokenCount": 9}), chunk(usageMetadata=None),
                 chunk(usageMetadata={"promptTokenCount": None, "totalTokenCount": 12}))  # fmt: skip
    assert reply.usage == {"promptTokenCount": 5, "totalTokenCount": 12}


def test_what_is_told_of_a_candidate_in_several_chunks() -> None:
    def grounded(**grounding: Json) -> dict[str, Json]:
        event: Any = chunk({"text": "a"})
        event["candidates"][0]["groundingMetadata"] = grounding
        return event  # type: ignore[no-any-return]

    reply = read(grounded(chunks=[1], q=1), grounded(chunks=[1, 2]), grounded(chunks=[3], q=2), chunk(finish="STOP"))
    candidates: Any = reply.rest["candidates"]
    assert candidates[0]["groundingMetadata"] == {"chunks": [1, 2, 3], "q": 2}


def test_several_candidates() -> None:
    second: dict[str, Json] = {
        "candidates": [{"index": 1, "content": {"parts": [{"text": "b"}]}, "finishReason": "STOP"}]
    }
    reply = read(chunk({"text": "a"}), second, chunk({"text": "A"}, finish="MAX_TOKENS"))
    assert [(each.role, each.blocks[0].value["text"]) for each in reply.messages] == [("model", "aA"), ("model", "b")]
    assert reply.stop_reason == "MAX_TOKENS"


def test_a_blocked_prompt_is_an_answer() -> None:
    reply = read({"promptFeedback": {"blockReason": "SAFETY"}})
    assert (reply.stop_reason, reply.complete, reply.messages) == ("SAFETY", True, ())


def test_errors() -> None:
    error: Json = {"code": 503, "message": "m"}
    assert read(chunk({"text": "a"}), {"error": error}).error == error
    assert read_reply([{"error": error}]).error == error
    assert not read(chunk({"text": "a"}, finish="STOP"), {"error": error}).complete


def test_parts_of_every_kind() -> None:
    parts: list[dict[str, Json]] = [
        {"executableCode": {"language": "PYTHON", "code": "1+1"}}, {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "2"}},
        {"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}, {"fileData": {"mimeType": "application/pdf", "fileUri": "gs://x"}}, {"new": 1},
    ]  # fmt: skip
    (message,) = read(chunk(*parts, finish="STOP")).messages
    assert [block.kind for block in message.blocks] == [
        Kind.TOOL_CALL,
        Kind.TOOL_RESULT,
        Kind.AUDIO,
        Kind.DOCUMENT,
        Kind.OTHER,
    ]
    seen = [view(read_prompt({}).dialect, block) for block in message.blocks]
    assert [each.text for each in seen] == ["1+1", "2", "audio/wav 3 bytes", "application/pdf gs://x", '{"new":1}']


def piece(path: str, goes_on: bool = False, **value: Json) -> Json:
    return {"jsonPath": path, **value, **({"willContinue": True} if goes_on else {})}


def call(*pieces: Json, goes_on: bool = True, **more: Json) -> Json:
    return {
        "functionCall": {
            **more,
            **({"partialArgs": list(pieces)} if pieces else {}),
            **({"willContinue": True} if goes_on else {}),
        }
    }


def test_arguments_value_by_value() -> None:
    reply = read(
        chunk(call(name="cook", id="c")),
        chunk(call(piece("$.recipe.steps[0].text", True, stringValue="Mix "))),
        chunk(
            call(piece("$.recipe.steps[0].text", stringValue="well"), piece("$.recipe.steps[0].minutes", numberValue=5))
        ),
        chunk(
            call(
                piece("$.recipe.steps[1]['text']", stringValue="Bake"),
                piece("$.ok", boolValue=False),
                piece("$.no", nullValue="NULL_VALUE"),
            )
        ),
        chunk(call(goes_on=False)),
        chunk(call(name="eat", goes_on=False)),
        chunk({"text": ""}, finish="STOP"),
    )
    assert values(reply) == [
        {"functionCall": {"name": "cook", "id": "c", "args": {
            "recipe": {"steps": [{"text": "Mix well", "minutes": 5}, {"text": "Bake"}]}, "ok": False, "no": None}}},
        {"functionCall": {"name": "eat"}},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path", ["", "recipe", "$", "$.a[999999]", "$.a[-1]", "$..a", "$.a[0", "$" + ".a" * 5000, "$.b.c", "$.b[0]", "$[0]"]
)
def test_a_path_that_leads_nowhere_is_kept(path: str) -> None:
    args = PartialArgs({"name": "f", "partialArgs": [piece("$.b", numberValue=1), piece(path, numberValue=2)]})
    assert (
        args.plain() == {"name": "f", "args": {"b": 1}, "partialArgs": [piece(path, numberValue=2)]}
        or path == "$.a[999999]"
    )
    assert {"jsonPath": path, "numberValue": 2} in args.plain()["partialArgs"]  # type: ignore[operator]


@pytest.mark.parametrize("wrong", [
    None, 5, [], {}, {"candidates": 1}, {"candidates": [{"content": 1}]}, {"candidates": [{"content": {"parts": [1, {"text": 5}, {"functionCall": 1}]}}]},
    {"candidates": [{"index": "x", "content": {"parts": [{"functionCall": {"partialArgs": [1, {"jsonPath": 5}], "willContinue": True}}]}}]},
    {"usageMetadata": 7, "promptFeedback": 8}, {"response": {"candidates": None}},
])  # fmt: skip
def test_wrong_shapes_never_raise(wrong: Json) -> None:
    assembler = Assembler()
    for each in (wrong, chunk({"text": "a"}), wrong, chunk(finish="STOP"), wrong):
        assembler.feed(each)
        assembler.fresh(each)
        reply = assembled(assembler, read_reply)
        for message in reply.messages:
            assert len([view(reply.dialect, block) for block in message.blocks]) == len(message.blocks)


def test_what_is_fresh() -> None:
    seen = Assembler().fresh(
        chunk({"text": "a"}, {"text": "b", "thought": True}, {"functionCall": {"name": "f", "id": "i"}})
    )
    assert seen == [View(Kind.TEXT, "a"), View(Kind.THINKING, "b"), View(Kind.TOOL_CALL, "", "f", "i")]


# Interactions.


def gather(*events: Json) -> Reply:
    assembler = interactions.Assembler()
    for each in events:
        assembler.feed(each)
        assembler.fresh(each)
    return assembled(assembler, interactions.read_reply)


def step(verb: str, index: int = 0, **more: Json) -> dict[str, Json]:
    return {"event_type": f"step.{verb}", "index": index, **more}


def state(kind: str, status: str, **more: Json) -> dict[str, Json]:
    return {
        "event_type": f"interaction.{kind}",
        "interaction": {"id": "v1", "model": "gemini", "status": status, **more},
    }


CREATED = state("created", "in_progress")
COMPLETED = state("completed", "completed", usage={"total_tokens": 1})


def test_an_interaction() -> None:
    reply = gather(
        CREATED,
        {"event_type": "interaction.status_update", "status": "in_progress"},
        step("start", 0, step={"type": "thought"}),
        step("delta", 0, delta={"type": "thought_summary", "content": {"type": "text", "text": "h"}}),
        step("delta", 0, delta={"type": "thought_summary", "content": {"type": "text", "text": "m"}}),
        step("delta", 0, delta={"type": "thought_signature", "signature": "s"}),
        step("stop", 0),
        step("start", 1, step={"type": "model_output"}),
        step("delta", 1, delta={"type": "text", "text": "a"}),
        step("delta", 1, delta={"type": "text", "text": "b"}),
        step("delta", 1, delta={"type": "text_annotation_delta", "annotations": [{"n": 1}]}),
        step("delta", 1, delta={"type": "image", "mime_type": "image/png", "data": "AAAA"}),
        step("start", 2, step={"type": "function_call", "id": "c", "name": "f", "arguments": {}}),
        step("delta", 2, delta={"type": "arguments_delta", "arguments": '{"a"'}),
        step("delta", 2, delta={"type": "arguments_delta", "arguments": ":1}"}),
        step("start", 3, step={"type": "google_search_result", "call_id": "g"}),
        step("delta", 3, delta={"type": "google_search_result", "result": [{"r": 1}]}),
        COMPLETED,
    )
    assert values(reply) == [
        {"type": "thought", "summary": [{"type": "text", "text": "hm"}], "signature": "s"},
        {"type": "text", "text": "ab", "annotations": [{"n": 1}]},
        {"type": "image", "mime_type": "image/png", "data": "AAAA"},
        {"type": "function_call", "id": "c", "name": "f", "arguments": {"a": 1}},
        {"type": "google_search_result", "call_id": "g", "result": [{"r": 1}]},
    ]
    assert [each.role for each in reply.messages] == ["model", "model", "model", "tool"]
    assert view(reply.dialect, reply.messages[0].blocks[0]).text == "hm"
    assert (reply.id, reply.stop_reason, reply.usage, reply.complete, reply.unknown) == (
        "v1",
        "completed",
        {"total_tokens": 1},
        True,
        (),
    )


def test_arguments_that_were_cut_stay_text() -> None:
    reply = gather(
        CREATED,
        step("start", step={"type": "function_call"}),
        step("delta", delta={"type": "arguments_delta", "arguments": '{"a'}),
    )
    assert values(reply)[0]["arguments"] == '{"a'
    assert not reply.complete


def test_the_first_version_of_the_api() -> None:
    reply = gather(
        {"event_type": "interaction.start", "interaction": {"id": "v1", "status": "in_progress"}},
        {"event_type": "content.start", "index": 0, "content": {"type": "text", "text": ""}},
        {"event_type": "content.delta", "index": 0, "delta": {"type": "text", "text": "a"}},
        {"event_type": "content.delta", "index": 0, "delta": {"type": "text", "text": "b"}},
        {"event_type": "content.stop", "index": 0},
        {"event_type": "interaction.complete", "interaction": {"id": "v1", "status": "completed"}},
    )
    assert values(reply) == [{"type": "text", "text": "ab"}]
    assert reply.complete


def test_unknown_events_and_errors() -> None:
    strange: list[dict[str, Json]] = [
        step("delta", delta={"type": "hologram", "h": 1}),
        {"event_type": "weather.changed"},
        step("start"),
    ]
    reply = gather(CREATED, step("start", step={"type": "model_output"}), *strange)
    assert reply.unknown == tuple(strange)
    failed = gather(CREATED, {"event_type": "error", "error": {"code": "x"}})
    assert (failed.error, failed.complete) == ({"code": "x"}, False)
    assert gather(CREATED, state("failed", "failed")).error


def test_prompts_of_interactions() -> None:
    prompt = interactions.read_prompt(
        {
            "model": "models/gemini", "system_instruction": "Be brief.", "stream": True, "previous_interaction_id": "v0", "store": False,
            "input": [
                {"role": "user", "content": "hi"}, {"type": "user_input", "content": [{"type": "text", "text": "a"}]},
                {"type": "model_output", "content": [{"type": "text", "text": "b"}]}, {"type": "function_call", "id": "c", "name": "f", "arguments": {}},
                {"type": "function_result", "call_id": "c", "result": "18"}, {"type": "text", "text": "x"}, {"type": "image", "data": "AAAA", "mime_type": "image/png"},
            ],
        }
    )  # fmt: skip
    assert (prompt.model, prompt.previous, prompt.stream, prompt.params) == ("gemini", "v0", True, {"store": False})
    assert [each.role for each in prompt.messages] == ["user", "user", "model", "model", "tool", "user"]
    assert [block.kind for block in prompt.messages[-1].blocks] == [Kind.TEXT, Kind.IMAGE]
    assert view(prompt.dialect, prompt.messages[4].blocks[0]) == View(Kind.TOOL_RESULT, "18", "function_result", "c")
    assert interactions.read_prompt({"input": "hi"}).messages[0].blocks[0].value == {"type": "text", "text": "hi"}


@pytest.mark.parametrize("wrong", [
    None, 5, [], {}, step("start", step=1), step("delta", delta=1), step("delta", -1, delta={"type": ["x"]}), step("stop"), {"event_type": 5},
    {"event_type": "interaction.created", "interaction": 1}, step("delta", delta={"type": "text", "text": 5}), step("delta", delta={}),
])  # fmt: skip
def test_wrong_shapes_of_interactions_never_raise(wrong: Json) -> None:
    gather(wrong, CREATED, wrong, step("start", step={"type": "model_output", "content": 5}), wrong, COMPLETED, wrong)

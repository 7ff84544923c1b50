"""Anthropic Messages: prompts, replies, and streams that are not as in the book."""

from typing import Any

import pytest

from kgb_gateway.dewey.transcripts.anthropic import Assembler, read_prompt, read_reply
from kgb_gateway.dewey.transcripts.assembling import assembled
from kgb_gateway.dewey.transcripts.model import Block, Json, Kind, Message, NotReadable, Reply, View

START: dict[str, Json] = {
    "type": "message_start",
    "message": {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": [], "stop_reason": None,
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1, "service_tier": "standard"},
    },
}  # fmt: skip
STOP: dict[str, Json] = {"type": "message_stop"}


def begin(index: int, **block: Json) -> dict[str, Json]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, **change: Json) -> dict[str, Json]:
    return {"type": "content_block_delta", "index": index, "delta": change}


def end(reason: str = "end_turn", **usage: Json) -> dict[str, Json]:
    return {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage}


def read(*events: Json) -> Reply:
    assembler = Assembler()
    for event in events:
        assembler.feed(event)
    return assembled(assembler, read_reply)


def values(reply: Reply) -> list[Any]:
    return [dict(block.value) for message in reply.messages for block in message.blocks]


def test_a_prompt() -> None:
    prompt = read_prompt(
        {
            "model": "claude", "max_tokens": 5, "stream": True, "system": "Be brief.", "tools": [{"name": "t"}],
            "metadata": {"user_id": "u"},
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "user", "content": [{"type": "text", "text": "hi"}], "id": "x"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "t", "input": {}}, "bare", 7]},
            ],
        }
    )  # fmt: skip
    assert (prompt.model, prompt.stream, prompt.tools) == ("claude", True, ({"name": "t"},))
    assert prompt.system == (Block(Kind.TEXT, {"type": "text", "text": "Be brief."}),)
    assert prompt.messages[0].blocks == prompt.messages[1].blocks
    assert prompt.messages[1].extra == {"id": "x"}
    assert [block.kind for block in prompt.messages[2].blocks] == [Kind.TOOL_CALL, Kind.TEXT, Kind.OTHER]
    assert prompt.params == {"max_tokens": 5, "metadata": {"user_id": "u"}}


@pytest.mark.parametrize("body", [None, [], "x", {}, {"messages": "x"}])
def test_no_prompt(body: Json) -> None:
    with pytest.raises(NotReadable):
        read_prompt(body)


def test_usage_is_cumulative_and_revised_upward() -> None:
    reply = read(START, end(output_tokens=3), end(input_tokens=40, output_tokens=7, server_tool_use=None), STOP)
    assert reply.usage == {
        "input_tokens": 40, "cache_read_input_tokens": 5, "output_tokens": 7, "service_tier": "standard",
        "server_tool_use": None,
    }  # fmt: skip
    assert reply.complete


def test_tool_input_in_pieces() -> None:
    pieces = ["", '{"city"', ': "Par', 'is"}']
    reply = read(START, begin(0, type="tool_use", id="t", name="w", input={}), *(delta(0, type="input_json_delta", partial_json=each) for each in pieces), STOP)  # fmt: skip
    assert values(reply) == [{"type": "tool_use", "id": "t", "name": "w", "input": {"city": "Paris"}}]


@pytest.mark.parametrize("raw", ['{"city": "Par', "city=Paris", '{"a": 1}{"b": 2}'])
def test_tool_input_that_is_no_json_stays_as_it_came(raw: str) -> None:
    reply = read(
        START,
        begin(0, type="tool_use", id="t", name="w", input={}),
        delta(0, type="input_json_delta", partial_json=raw),
    )
    assert values(reply)[0]["input"] == raw


def test_tool_input_that_comes_whole() -> None:
    assert values(read(START, begin(0, type="tool_use", input={"a": 1})))[0]["input"] == {"a": 1}


def test_thinking_signature_and_citations() -> None:
    reply = read(
        START,
        begin(0, type="thinking", thinking="", signature=""),
        delta(0, type="thinking_delta", thinking="one "),
        delta(0, type="thinking_delta", thinking="two"),
        delta(0, type="signature_delta", signature="old"),
        delta(0, type="signature_delta", signature="new"),
        begin(1, type="text", text="pre", citations=None),
        delta(1, type="citations_delta", citation={"n": 1}),
        delta(1, type="text_delta", text="text"),
        delta(1, type="citations_delta", citation={"n": 2}),
        STOP,
    )
    assert values(reply) == [
        {"type": "thinking", "thinking": "one two", "signature": "new"},
        {"type": "text", "text": "pretext", "citations": [{"n": 1}, {"n": 2}]},
    ]


def test_unknown_things_are_kept() -> None:
    strange: list[dict[str, Json]] = [
        {"type": "from_the_future", "x": 1},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "hologram_delta", "h": 1}},
        {"type": "content_block_stop", "index": 0, "more": 1},
        {"type": "content_block_start", "index": 9},
        {"no": "type"},
    ]
    reply = read(START, begin(0, type="hologram", h=0), *strange, "text", delta(0, type="text_delta", text="a", mood="b"),
                 delta(0, type="text_delta", text="c", mood="d"), STOP)  # fmt: skip
    assert reply.unknown == (*strange, "text")
    assert values(reply) == [{"type": "hologram", "h": 0, "text": "ac", "mood": "bd"}]
    assert reply.messages[0].blocks[0].kind is Kind.OTHER


def test_members_of_a_message_delta_belong_to_the_message() -> None:
    event = {**end(), "context_management": {"applied_edits": []}}
    event["delta"] = {"stop_reason": "refusal", "stop_details": {"type": "refusal"}, "container": {"id": "c"}}
    reply = read(START, event, {**STOP, "metrics": 1})
    assert reply.stop_reason == "refusal"
    assert reply.rest["context_management"] == {"applied_edits": []}
    assert reply.rest["stop_details"] == {"type": "refusal"}
    assert reply.rest["container"] == {"id": "c"}
    assert reply.rest["metrics"] == 1


def test_a_doubled_start_changes_nothing() -> None:
    text = begin(0, type="text", text="a")
    assert read(START, START, text, end(), STOP) == read(START, text, end(), STOP)
    assert values(read(START, text, START, STOP)) == [{"type": "text", "text": "a"}]


def test_two_messages_in_one_stream() -> None:
    other: Json = {
        "type": "message_start",
        "message": {"id": "msg_2", "role": "assistant", "model": "claude-2", "usage": {"input_tokens": 9}},
    }
    reply = read(
        START,
        begin(0, type="text", text="a"),
        end("tool_use"),
        STOP,
        other,
        begin(0, type="text", text="b"),
        end(output_tokens=2),
        STOP,
    )
    assert [message.blocks[0].value["text"] for message in reply.messages] == ["a", "b"]
    assert (reply.id, reply.stop_reason, reply.usage) == ("msg_2", "end_turn", {"input_tokens": 9, "output_tokens": 2})
    earlier: Any = reply.rest["earlier"]
    assert (earlier[0]["id"], earlier[0]["stop_reason"], earlier[0]["usage"]["input_tokens"]) == (
        "msg_1",
        "tool_use",
        10,
    )
    assert reply.complete


def test_an_error_in_mid_stream() -> None:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    reply = read(START, begin(0, type="text", text="half"), {"type": "error", "error": error})
    assert (reply.error, reply.complete, values(reply)) == (error, False, [{"type": "text", "text": "half"}])


def test_a_stream_without_its_end_is_not_complete() -> None:
    assert not read(START, begin(0, type="text", text="a"), end()).complete
    assert not read().complete
    assert read().messages == ()


def test_a_stream_without_its_beginning() -> None:
    reply = read(delta(3, type="text_delta", text="b"), delta(1, type="thinking_delta", thinking="a"), end(), STOP)
    assert values(reply) == [{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize("wrong", [
    {"type": "message_start"}, {"type": "message_start", "message": 1}, {"type": "content_block_delta"},
    {"type": "content_block_delta", "index": "x", "delta": {"type": "text_delta", "text": 1}},
    {"type": "content_block_delta", "index": -5, "delta": {"type": "citations_delta"}},
    {"type": "message_delta"}, {"type": "message_delta", "delta": [], "usage": 3}, {"type": []}, {"type": "error"},
    {"type": "content_block_start", "content_block": {"type": ["a"]}}, 5, None, [],
])  # fmt: skip
def test_wrong_shapes_never_raise(wrong: Json) -> None:
    assembler = Assembler()
    for event in (wrong, START, wrong, STOP, wrong):
        assembler.feed(event)
        assembler.fresh(event)
        assembled(assembler, read_reply)


def test_an_error_body() -> None:
    reply = read_reply({"type": "error", "error": {"type": "not_found_error", "message": "m"}, "request_id": "r"})
    assert reply.error == {"type": "not_found_error", "message": "m"}
    assert reply.rest["request_id"] == "r"
    assert not reply.complete


def test_a_whole_body() -> None:
    reply = read_reply(
        {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "model": "c",
            "content": [{"type": "new"}],
            "stop_reason": "end_turn",
            "usage": {"a": 1},
        }
    )
    assert reply.messages == (Message("assistant", (Block(Kind.OTHER, {"type": "new"}),)),)
    assert reply.complete
    assert reply.rest == {"type": "message"}


def test_behind_a_fallback_the_model_that_wrote_is_named() -> None:
    reply = read(
        START, begin(0, type="fallback", **{"from": {"model": "claude"}, "to": {"model": "other"}}), end(), STOP
    )
    assert reply.model == "other"


def test_what_is_fresh() -> None:
    assembler = Assembler()
    assert assembler.fresh(delta(0, type="text_delta", text="a")) == [View(Kind.TEXT, "a")]
    assert assembler.fresh(delta(0, type="thinking_delta", thinking="a")) == [View(Kind.THINKING, "a")]
    assert assembler.fresh(begin(0, type="tool_use", id="i", name="n")) == [View(Kind.TOOL_CALL, "", "n", "i")]
    assert assembler.fresh(STOP) == []

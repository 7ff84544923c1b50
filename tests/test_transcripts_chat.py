"""OpenAI Chat and Completions: prompts, replies, and the streams of servers that read the book differently."""

from typing import Any

import pytest

from kgb_gateway.dewey.transcripts import openai_chat, openai_completions
from kgb_gateway.dewey.transcripts.assembling import assembled
from kgb_gateway.dewey.transcripts.model import Block, Json, Kind, NotReadable, Reply, View
from kgb_gateway.dewey.transcripts.openai_chat import Assembler, message, read_prompt, read_reply
from kgb_gateway.dewey.transcripts.view import view


def chunk(finish: str | None = None, index: int = 0, **delta: Json) -> dict[str, Json]:
    return {
        "id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt",
        "choices": [{"index": index, "delta": delta, "finish_reason": finish}],
    }  # fmt: skip


def call(
    index: int | None = None, call_id: str | None = None, name: str | None = None, arguments: str | None = None
) -> Json:
    """A chunk with a fragment of a tool call; None leaves a member out."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    fragment = {"index": index, "id": call_id, "function": function}
    return chunk(tool_calls=[{key: value for key, value in fragment.items() if value is not None}])


def read(*events: Json) -> Reply:
    assembler = Assembler()
    for event in events:
        assembler.feed(event)
    return assembled(assembler, read_reply)


def calls(reply: Reply) -> list[tuple[str, str, str]]:
    seen = [view(reply.dialect, block) for block in reply.messages[0].blocks if block.kind is Kind.TOOL_CALL]
    return [(each.id, each.name, each.text) for each in seen]


def test_a_prompt() -> None:
    prompt = read_prompt(
        {
            "model": "gpt", "stream": True, "temperature": 0, "tools": [{"type": "function"}],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "u"}}]},
                {"role": "assistant", "content": None, "refusal": None, "name": "bob",
                 "tool_calls": [{"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "t", "content": "18"},
                {"role": "assistant", "content": "", "reasoning_content": "hm", "function_call": {"name": "g", "arguments": ""}},
            ],
        }
    )  # fmt: skip
    assert prompt.params == {"temperature": 0}
    kinds = [[block.kind for block in each.blocks] for each in prompt.messages]
    assert kinds == [
        [Kind.TEXT],
        [Kind.TEXT, Kind.IMAGE],
        [Kind.TOOL_CALL],
        [Kind.TOOL_RESULT],
        [Kind.THINKING, Kind.TOOL_CALL],
    ]
    assert prompt.messages[2].extra == {"name": "bob"}
    assert prompt.messages[3].extra == {"tool_call_id": "t"}
    assert view(prompt.dialect, prompt.messages[3].blocks[0]) == View(Kind.TOOL_RESULT, "18", "", "t")


@pytest.mark.parametrize("body", [None, [], {}, {"messages": {}}])
def test_no_prompt(body: Json) -> None:
    with pytest.raises(NotReadable):
        read_prompt(body)


def test_a_stream() -> None:
    reply = read(
        chunk(role="assistant", content=""), chunk(content="He"), chunk(content="llo", refusal=None), chunk("stop"),
        {"id": "c1", "choices": [], "usage": {"total_tokens": 3}}, "[DONE]",
    )  # fmt: skip
    assert reply.messages[0].blocks == (Block(Kind.TEXT, {"type": "text", "text": "Hello"}),)
    assert (reply.id, reply.model, reply.stop_reason, reply.usage) == ("c1", "gpt", "stop", {"total_tokens": 3})
    assert reply.rest["object"] == "chat.completion"
    assert reply.complete
    assert reply.unknown == ()


FRAGMENTS: dict[str, tuple[list[Json], list[tuple[str, str, str]]]] = {
    "by the book": (
        [call(0, "a", "f", ""), call(0, arguments='{"x"'), call(0, arguments=":1}"), call(1, "b", "g", ""), call(1, arguments="{}")],
        [("a", "f", '{"x":1}'), ("b", "g", "{}")],
    ),
    "interleaved": ([call(0, "a", "f", "1"), call(1, "b", "g", "2"), call(0, arguments="3")], [("a", "f", "13"), ("b", "g", "2")]),
    "no index": ([call(None, "a", "f", '{"x"'), call(None, arguments=":1}"), call(None, "b", "g", "{}")],
                 [("a", "f", '{"x":1}'), ("b", "g", "{}")]),
    "no index, no id": ([call(None, None, "f", "{}"), call(None, None, "g", "{}")], [("", "f", "{}"), ("", "g", "{}")]),
    "one index for all": ([call(0, "a", "f", "{}"), call(0, "b", "g", "{}")], [("a", "f", "{}"), ("b", "g", "{}")]),
    "one index, no ids, one name": ([call(0, None, "f", '{"a":1}'), call(0, None, "f", '{"a":2}')],
                                    [("", "f", '{"a":1}'), ("", "f", '{"a":2}')]),
    "id and name on every fragment": ([call(0, "a", "f", '{"x"'), call(0, "a", "f", ":1}")], [("a", "f", '{"x":1}')]),
    "an empty id and name later": ([call(0, "a", "f", "{"), call(0, "", "", "}")], [("a", "f", "{}")]),
    "a new id on every fragment": ([call(0, "a", "f", "{"), call(0, "z", None, "}")], [("a", "f", "{}")]),
    "the name in pieces": ([call(0, "a", "get_"), call(0, None, "weather"), call(0, arguments="{}")], [("a", "get_weather", "{}")]),
    "an index that starts late": ([call(5, "a", "f", "{}")], [("a", "f", "{}")]),
}  # fmt: skip


@pytest.mark.parametrize("way", FRAGMENTS)
def test_tool_calls_from_fragments(way: str) -> None:
    events, wanted = FRAGMENTS[way]
    reply = read(*events, chunk("tool_calls"), "[DONE]")
    assert calls(reply) == wanted


def test_a_custom_tool_and_unknown_members_of_a_call() -> None:
    one: Json = {
        "index": 0,
        "id": "a",
        "type": "custom",
        "custom": {"name": "sh", "input": "l"},
        "extra_content": {"sig": 1},
    }
    reply = read(chunk(tool_calls=[one]), chunk(tool_calls=[{"index": 0, "custom": {"input": "s"}}]), "[DONE]")
    assert calls(reply) == [("a", "sh", "ls")]
    assert reply.messages[0].blocks[0].value["extra_content"] == {"sig": 1}


def test_an_old_function_call() -> None:
    reply = read(
        chunk(function_call={"name": "f", "arguments": "{"}), chunk(function_call={"arguments": "}"}), "[DONE]"
    )
    assert calls(reply) == [("", "f", "{}")]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning(name: str) -> None:
    reply = read(chunk(None, 0, **{name: "I "}), chunk(None, 0, **{name: "think"}), chunk(content="so"), "[DONE]")
    assert [block.kind for block in reply.messages[0].blocks] == [Kind.THINKING, Kind.TEXT]
    assert view(reply.dialect, reply.messages[0].blocks[0]).text == "I think"


def test_reasoning_under_two_names_is_told_once() -> None:
    assert len(message({"role": "assistant", "reasoning": "x", "reasoning_content": "x"}).blocks) == 1


def test_content_lists() -> None:
    def thought(words: str) -> Json:
        return [{"type": "thinking", "thinking": [{"type": "text", "text": words}]}]

    reply = read(chunk(content=thought("a")), chunk(content=thought("b")), chunk(content="c"), chunk(content=[{"type": "text", "text": "d"}]),
                 chunk(content=[{"type": "reference", "ids": [1]}]), "[DONE]")  # fmt: skip
    assert [dict(block.value) for block in reply.messages[0].blocks] == [
        {"type": "thinking", "thinking": [{"type": "text", "text": "ab"}]},
        {"type": "text", "text": "cd"},
        {"type": "reference", "ids": [1]},
    ]
    assert [view(reply.dialect, block).text for block in reply.messages[0].blocks][:2] == ["ab", "cd"]


def test_a_refusal_is_a_block_of_its_own() -> None:
    reply = read(chunk(refusal="I can"), chunk(refusal="not"), chunk("stop"), "[DONE]")
    assert reply.messages[0].blocks == (Block(Kind.REFUSAL, {"type": "refusal", "refusal": "I cannot"}),)


def test_several_choices() -> None:
    reply = read(
        chunk(content="a"), chunk(index=1, content="b"), chunk("stop", content="A"), chunk("length", index=1), "[DONE]"
    )
    assert [each.blocks[0].value["text"] for each in reply.messages] == ["aA", "b"]
    assert reply.rest["choices"] == [{"index": 0, "finish_reason": "stop"}, {"index": 1, "finish_reason": "length"}]


def test_log_probabilities_audio_and_unknown_members_go_on() -> None:
    def said(number: int) -> Any:
        event: Any = chunk(
            audio={"id": "a", "data": "AA", "transcript": f"{number}"}, mood="x", notes=[number], meta={"n": number}
        )
        event["choices"][0]["logprobs"] = {"content": [{"token": number}], "refusal": None}
        return event

    reply = read(said(1), said(2), "[DONE]")
    (block,) = reply.messages[0].blocks
    assert block == Block(Kind.AUDIO, {"type": "audio", "audio": {"id": "a", "data": "AAAA", "transcript": "12"}})
    assert reply.messages[0].extra == {"mood": "xx", "notes": [1, 2], "meta": {"n": 2}}
    choices: Any = reply.rest["choices"]
    assert choices[0]["logprobs"] == {"content": [{"token": 1}, {"token": 2}], "refusal": None}


def test_usage_in_other_places() -> None:
    assert read(chunk("stop"), {"id": "c1", "choices": [], "x_groq": {"usage": {"total_tokens": 1}}}).usage == {
        "total_tokens": 1
    }
    early = {**chunk(content="a"), "usage": {"total_tokens": 1}}
    late = {**chunk("stop"), "usage": {"total_tokens": 2}}
    assert read(early, late, {**chunk(), "usage": None}).usage == {"total_tokens": 2}


def test_the_end() -> None:
    assert not read(chunk(content="a")).complete
    assert not read(chunk("stop")).complete, "the usage, and [DONE], may be missing"
    assert read(chunk("stop"), "[DONE]").complete
    assembler = Assembler()
    assembler.feed(chunk("stop"))
    assembler.end()
    assert assembler.complete


def test_an_error_in_mid_stream() -> None:
    reply = read(chunk(content="a"), {"error": {"message": "m"}}, "[DONE]")
    assert (reply.error, reply.complete) == ({"message": "m"}, False)
    assert reply.messages[0].blocks[0].value["text"] == "a"


def test_an_error_that_only_the_events_name_tells() -> None:
    assembler = Assembler()
    assembler.feed({"message": "m"}, "error")
    assert assembler.error == {"message": "m"}


@pytest.mark.parametrize("wrong", [
    None, 5, [], {}, {"choices": 1}, {"choices": [None]}, {"choices": [{"delta": 1}]}, {"choices": [{"delta": {"tool_calls": [1, {}]}}]},
    {"choices": [{"index": -1, "delta": {"tool_calls": [{"index": "x", "id": 5, "function": []}]}}]},
    {"choices": [{"delta": {"content": [1, None, {"type": "thinking", "thinking": [1]}]}}]},
    {"choices": [{"delta": {"content": {"a": 1}, "audio": 1, "function_call": 2}, "logprobs": 3, "finish_reason": 4}]},
])  # fmt: skip
def test_wrong_shapes_never_raise(wrong: Json) -> None:
    for kind, reader in ((Assembler, read_reply), (openai_completions.Assembler, openai_completions.read_reply)):
        assembler = kind()
        for event in (wrong, chunk(content="a"), wrong, "[DONE]"):
            assembler.feed(event)
            assembler.fresh(event)
        reply = assembled(assembler, reader)
        for each in reply.messages:
            assert len([view(reply.dialect, block) for block in each.blocks]) == len(each.blocks)


def test_unknown_events_are_kept() -> None:
    assert read({"ping": 1}, "text", 7).unknown == ({"ping": 1}, "text", 7)


def test_completions() -> None:
    def piece(text: str, finish: str | None = None, index: int = 0) -> Json:
        logprobs = {"tokens": [text], "token_logprobs": [-1]}
        return {
            "id": "c",
            "object": "text_completion",
            "model": "m",
            "choices": [{"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}],
        }

    assembler = openai_completions.Assembler()
    for event in (piece("a"), piece("b", "stop"), piece("c", "length", 1), "[DONE]"):
        assembler.feed(event)
    reply = assembled(assembler, openai_completions.read_reply)
    assert [each.blocks[0].value["text"] for each in reply.messages] == ["ab", "c"]
    choices: Any = reply.rest["choices"]
    assert choices[0]["logprobs"]["tokens"] == ["a", "b"]
    assert reply.complete


def test_prompts_of_completions() -> None:
    def texts(prompt: Json) -> list[Json]:
        found = openai_completions.read_prompt({"model": "m", "prompt": prompt, "suffix": "s"})
        return [each.blocks[0].value.get("text", each.blocks[0].value.get("prompt")) for each in found.messages]

    assert texts("a") == ["a"]
    assert texts(["a", "b"]) == ["a", "b"]
    assert texts([1, 2]) == [[1, 2]]
    with pytest.raises(NotReadable):
        openai_completions.read_prompt(3)


def test_what_is_fresh() -> None:
    assembler = openai_chat.Assembler()
    assert assembler.fresh(chunk(content="a", reasoning="b")) == [View(Kind.THINKING, "b"), View(Kind.TEXT, "a")]
    assert assembler.fresh(call(0, "i", "f", "{")) == [View(Kind.TOOL_CALL, "{", "f", "i")]
    assert assembler.fresh("[DONE]") == []

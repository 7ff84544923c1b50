"""Claude-Code-style transcripts: a tree of lines that such readers, ours among them, understand."""

import json
from typing import Any

import attrs

from kgb_gateway.dewey.document import Turn
from kgb_gateway.dewey.imports import ClaudeReader, Fault
from kgb_gateway.dewey.transcripts.model import Block, Kind, Message
from tests.documents import CHAT, CLAUDE, assistant, conversation, number, text, turns, user
from tests.test_export_streams import export


def lines(*found: Turn) -> list[Any]:
    return [json.loads(line) for line in export("claude", conversation(found or turns())).splitlines()]


def test_turns_become_a_chain_of_lines() -> None:
    found = lines()
    assert [line["type"] for line in found] == ["user", "assistant", "user", "assistant"]
    assert [line["parentUuid"] for line in found] == [None, *(line["uuid"] for line in found[:-1])]
    assert {line["sessionId"] for line in found} == {"s1"}
    assert {line["isSidechain"] for line in found} == {False}
    assert {line["cwd"] for line in found} == {"/home/ada"}
    assert found[1]["timestamp"] == "2026-05-28T20:26:42.625Z"
    message = found[1]["message"]
    assert (message["id"], message["model"], message["stop_reason"]) == ("msg_1", "claude-sonnet-4-5", "tool_use")
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use"]
    assert message["usage"] == {"input_tokens": 400, "cache_read_input_tokens": 11_900, "output_tokens": 456}
    assert found[3]["message"]["stop_reason"] is None
    assert found[3]["message"]["usage"]["cache_read_input_tokens"] == 11_900


def say(n: int, relation: str, after: int = 0, agent_id: str = "") -> Turn:
    asked, answered = (user(text(f"q{n}")),), (assistant(text(f"a{n}")),)
    before = number(after) if after else ""
    return Turn(
        number(n), dialect=CLAUDE, added=asked, replies=answered, relation=relation, after=before, agent_id=agent_id
    )


def test_forks_and_retries_hang_where_they_begin() -> None:
    retry = attrs.evolve(say(3, "retry", 2), added=())
    found = lines(
        say(1, "first"), say(2, "appended", 1), retry, say(4, "fork", 2), say(5, "appended", 1), say(6, "appended", 99)
    )
    names = {line["uuid"]: line["message"]["content"][0]["text"] for line in found}
    parents = {names[line["uuid"]]: names.get(line["parentUuid"]) for line in found}
    assert parents == {
        "q1": None, "a1": "q1", "q2": "a1", "a2": "q2", "a3": "q2", "q4": "a1", "a4": "q4", "q5": "a1", "a5": "q5", "q6": "a5", "a6": "q6",
    }  # fmt: skip


def test_a_compaction_begins_anew_and_knows_what_went_before() -> None:
    found = lines(say(1, "first"), say(2, "compaction", 1))
    assert found[2]["parentUuid"] is None
    assert found[2]["logicalParentUuid"] == found[1]["uuid"]
    assert found[2]["isCompactSummary"] is True


def test_another_agent_is_a_side_chain() -> None:
    found = lines(say(1, "sub_agent", 9, agent_id="a7"))
    assert [(line["isSidechain"], line["agentId"], line["parentUuid"] is None) for line in found] == [
        (True, "a7", True),
        (True, "a7", False),
    ]


def test_an_error_is_an_error_of_the_api() -> None:
    (line,) = lines(Turn("x", dialect=CLAUDE, status=529, error={"type": "overloaded_error"}))
    assert line["isApiErrorMessage"] is True
    assert line["message"]["model"] == "<synthetic>"
    assert "529" in line["message"]["content"][0]["text"]


def test_other_dialects_are_told_in_this_one() -> None:
    asked = Block(Kind.TOOL_CALL, {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"p": 1}'}})
    broken = Block(Kind.TOOL_CALL, {"id": "c2", "type": "function", "function": {"name": "ls", "arguments": '{"p'}})
    answer = Message("tool", (text("files"),), {"tool_call_id": "c0"})
    found = lines(Turn("x", dialect=CHAT, added=(answer,), replies=(assistant(text("ok"), asked, broken),)))
    assert found[0]["type"] == "user"
    assert found[0]["message"]["content"] == [{"type": "tool_result", "tool_use_id": "c0", "content": "files"}]
    assert found[1]["message"]["content"] == [
        {"type": "text", "text": "ok"},
        {"type": "tool_use", "id": "c1", "name": "ls", "input": {"p": 1}},
        {"type": "tool_use", "id": "c2", "name": "ls", "input": {"input": '{"p'}},
    ]


def test_our_reader_reads_it_again() -> None:
    faults: list[Fault] = []
    found = list(ClaudeReader(faults.append).read(export("claude", conversation()).splitlines()))
    assert not faults
    assert [turn.added for turn in found] == [turn.added for turn in turns()]
    assert [turn.replies for turn in found] == [turn.replies for turn in turns()]
    assert [turn.relation for turn in found] == ["first", "appended"]
    assert found[1].after == found[0].exchange
    assert found[0].reported == turns()[0].reported

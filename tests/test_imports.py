"""Conversations that others have kept: Claude Code's transcripts and HAR."""

import base64
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgb_gateway.dewey.document import Turn
from kgb_gateway.dewey.imports import ClaudeReader, Fault, read_har, read_jsonl
from kgb_gateway.dewey.imports.har import dialect_of
from kgb_gateway.dewey.transcripts.model import Dialect
from tests.documents import VALUES

# Claude Code's transcripts.


class Session:
    """Writes a transcript as Claude Code does."""

    def __init__(self, **common: Any) -> None:
        self.lines: list[str] = []
        self.common = {
            "sessionId": "s1",
            "cwd": "/home/ada/x",
            "gitBranch": "main",
            "version": "2.1.47",
            "isSidechain": False,
        } | common

    def put(self, type: str, uuid: str, parent: str | None, message: Any = None, **more: Any) -> None:  # noqa: A002
        second = len(self.lines)
        line = {
            "parentUuid": parent,
            **self.common,
            "type": type,
            "uuid": uuid,
            "timestamp": f"2026-02-19T02:08:{second:02}.500Z",
        }
        self.lines.append(json.dumps(line | ({"message": message} if message is not None else {}) | more))

    def user(self, uuid: str, parent: str | None, content: Any, **more: Any) -> None:
        self.put("user", uuid, parent, {"role": "user", "content": content}, **more)

    def reply(self, uuid: str, parent: str | None, reply: str, *content: Any, output: int = 1, **more: Any) -> None:
        usage = {"input_tokens": 3, "cache_read_input_tokens": 100, "output_tokens": output}
        message = {"id": f"msg_{reply}", "type": "message", "role": "assistant", "model": "claude-opus-4-6", "content": list(content),
                   "stop_reason": more.pop("stop", None), "usage": usage}  # fmt: skip
        self.put("assistant", uuid, parent, message, requestId=f"req_{reply}", **more)

    def read(self) -> tuple[list[Turn], list[str]]:
        faults: list[Fault] = []
        return list(ClaudeReader(faults.append, "of-the-file").read(self.lines)), [str(fault) for fault in faults]


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def call(name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": name, "name": "Bash", "input": {}}


def answer(name: str) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": name, "content": "done"}


def said(turn: Turn) -> tuple[list[Any], list[Any]]:
    """All blocks asked, all blocks answered."""
    return (
        [dict(block.value) for message in turn.added for block in message.blocks],
        [dict(block.value) for message in turn.replies for block in message.blocks],
    )


def usual() -> Session:
    """A prompt; a reply in four lines with two calls side by side; their results; a last reply."""
    session = Session()
    session.lines.append(json.dumps({"type": "summary", "summary": "About tools", "leafUuid": "x"}))
    session.lines.append(json.dumps({"type": "file-history-snapshot", "messageId": "u1", "snapshot": {}}))
    session.user("u1", None, "run both")
    session.put("attachment", "x1", "u1", attachment={"type": "todo"})
    session.reply("a1", "x1", "A", {"type": "thinking", "thinking": "hm", "signature": "s"}, output=2)
    session.reply("a2", "a1", "A", text("I shall."), output=2)
    session.reply("a3", "a2", "A", call("t1"), output=2)
    session.user("r1", "a3", [answer("t1")])
    session.reply("a4", "a3", "A", call("t2"), output=77, stop="tool_use")
    session.user("r2", "a4", [answer("t2")])
    session.reply("a5", "r2", "B", text("Both done."), output=5, stop="end_turn")
    return session


def test_the_lines_of_a_reply_are_one_turn() -> None:
    (one, two), faults = usual().read()
    assert not faults
    asked, answered = said(one)
    assert asked == [text("run both")]
    assert [block["type"] for block in answered] == ["thinking", "text", "tool_use", "tool_use"]
    assert one.reported == {"input_tokens": 3, "cache_read_input_tokens": 100, "output_tokens": 77}
    assert (one.stop_reason, one.reply_id, one.model, one.partial) == ("tool_use", "msg_A", "claude-opus-4-6", False)
    assert (one.session, one.project, one.source, one.dialect) == (
        "s1",
        "/home/ada/x",
        "claude-code",
        Dialect.ANTHROPIC_MESSAGES,
    )
    assert one.facts == {"git_branch": "main", "version": "2.1.47", "request_id": "req_A"}
    assert (one.at, one.duration) == (1771466882.5, 6.0)
    assert one.relation == "first"
    assert said(two) == ([answer("t1"), answer("t2")], [text("Both done.")])
    assert (two.relation, two.after, two.shared, two.replied) == ("appended", one.exchange, 1, True)


def test_the_title_is_the_last_one() -> None:
    reader = ClaudeReader(print)
    lines = [*usual().lines, json.dumps({"type": "custom-title", "customTitle": "Mine", "sessionId": "s1"})]
    list(reader.read(lines))
    assert reader.title == "Mine"


def test_reading_twice_and_reading_a_resumed_copy_give_the_same_ids() -> None:
    ids = [turn.exchange for turn in usual().read()[0]]
    resumed = usual()
    resumed.lines = [line.replace('"s1"', '"s2"').replace('"u1"', '"v1"') for line in resumed.lines]
    assert [turn.exchange for turn in resumed.read()[0]] == ids
    assert len(set(ids)) == 2


def test_lines_that_come_twice_count_once() -> None:
    session = usual()
    session.lines += session.lines
    (one, _), faults = session.read()
    assert not faults
    assert len(said(one)[1]) == 4


def test_bad_lines_are_told_and_the_rest_is_read() -> None:
    session = usual()
    session.lines[3:3] = ["{broken", "[]", '{"no": "type"}', '{"type": "user", "uuid": "z"}', '{"type": "assistant"}']
    found, faults = session.read()
    assert [said(turn)[1][-1] for turn in found] == [call("t2"), text("Both done.")]
    assert [fault.split(":")[0] for fault in faults] == [f"line {n}" for n in (4, 5, 6, 7, 8)]
    assert faults[3:] == ["line 7: a user's line without a message", "line 8: a message without a uuid"]


def test_a_prompt_that_was_taken_back_is_told() -> None:
    session = usual()
    session.user("u3", "a5", "no, wait")
    session.user("u4", "a5", "better")
    session.reply("a6", "u4", "C", text("Yes."), stop="end_turn")
    session.user("u5", "a6", "last words")
    found, faults = session.read()
    assert said(found[2]) == ([text("better")], [text("Yes.")])
    assert faults == ["line 12: a prompt without an answer", "line 15: a prompt without an answer"]


def test_going_back_is_a_fork() -> None:
    session = usual()
    session.user("u3", "a4", "instead")
    session.reply("a6", "u3", "C", text("So."), stop="end_turn")
    one, _, three = session.read()[0]
    assert (three.relation, three.after, three.shared) == ("fork", one.exchange, 1)


def test_a_compaction_is_linked_to_what_went_before() -> None:
    session = usual()
    session.put("system", "b1", None, subtype="compact_boundary", logicalParentUuid="a5")
    session.user("u3", "b1", "This session is being continued", isCompactSummary=True)
    session.reply("a6", "u3", "C", text("On."), stop="end_turn")
    _, two, three = session.read()[0]
    assert (three.relation, three.after, three.shared, three.replied) == ("compaction", two.exchange, 0, False)


def test_side_chains_in_the_same_file_are_kept_apart() -> None:
    session = Session()
    session.user("u1", None, "main")
    session.user("w1", None, "sub", isSidechain=True)
    session.user("z1", None, "named", isSidechain=True, agentId="a7")
    session.reply("a1", "u1", "A", text("m"))
    session.reply("b1", "w1", "B", text("s"), isSidechain=True)
    session.reply("c1", "z1", "C", text("n"), isSidechain=True, agentId="a7")
    session.reply("a2", "a1", "A", text("m2"), stop="end_turn")
    found, faults = session.read()
    assert not faults
    told = {turn.reply_id: (turn.agent_id, turn.relation, len(said(turn)[1])) for turn in found}
    assert told == {"msg_A": ("", "first", 2), "msg_B": ("w1", "sub_agent", 1), "msg_C": ("a7", "sub_agent", 1)}


def test_what_claude_code_wrote_itself_is_no_reply() -> None:
    session = Session()
    session.user("u1", None, "hi")
    message = {
        "id": "x",
        "model": "<synthetic>",
        "role": "assistant",
        "content": [text("API Error: 529")],
        "usage": {"input_tokens": 0},
    }
    session.put("assistant", "a1", "u1", message, isApiErrorMessage=True)
    (turn,), _ = session.read()
    assert (turn.model, turn.error, turn.replies, turn.reported, turn.partial) == ("", "API Error: 529", (), None, True)


def test_the_last_reply_is_partial_until_its_end_is_there() -> None:
    session = Session()
    session.user("u1", None, "hi")
    session.reply("a1", "u1", "A", text("part"))
    (turn,), _ = session.read()
    session.reply("a2", "a1", "A", text("rest"), stop="end_turn")
    (whole,), _ = session.read()
    assert (turn.partial, whole.partial) == (True, False)
    assert turn.exchange == whole.exchange


def test_turns_come_while_the_file_is_read() -> None:
    lines = iter(usual().lines)
    assert next(ClaudeReader(print).read(lines)).reply_id == "msg_A"


def test_a_circle_of_parents_ends() -> None:
    session = Session()
    session.user("u1", "u2", "a")
    session.user("u2", "u1", "b")
    session.reply("a1", "u2", "A", text("c"))
    (turn,), _ = session.read()
    assert len(turn.added) == 2


_LINES = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["user", "assistant", "summary", "system", 1]),
        "uuid": st.sampled_from(["a", "b", "c", "d", 1]),
        "message": st.one_of(
            VALUES, st.fixed_dictionaries({"content": VALUES, "id": VALUES, "usage": VALUES, "model": VALUES})
        ),
    },
    optional={
        "parentUuid": st.sampled_from(["a", "b", "c"]),
        "timestamp": VALUES,
        "isSidechain": st.booleans(),
        "agentId": VALUES,
    },
)


@settings(max_examples=100)
@given(
    st.lists(
        st.one_of(_LINES.map(json.dumps), VALUES.map(json.dumps), st.text(max_size=20), st.binary(max_size=20)),
        max_size=8,
    )
)
def test_no_line_stops_the_reading(lines: list[str | bytes]) -> None:
    faults: list[Fault] = []
    list(ClaudeReader(faults.append).read(lines))
    list(read_jsonl(lines, faults.append))
    for line in lines:
        list(read_har([line], faults.append))


# HAR.


def entry(url: str = "https://api.openai.com/v1/chat/completions?key=SECRET", **more: Any) -> dict[str, Any]:
    return {
        "startedDateTime": "2026-02-19T02:08:00.000Z",
        "time": 1500,
        "timings": {"blocked": 100, "dns": -1, "send": 100, "wait": 300, "receive": 1000},
        "request": {
            "method": "POST",
            "url": url,
            "headers": [{"name": "Authorization", "value": "Bearer SECRET"}, {"name": "A", "value": "b"}],
            "postData": {"mimeType": "application/json", "text": '{"model":"é"}'},
        },
        "response": {
            "status": 200,
            "headers": [{"name": "content-encoding", "value": "gzip"}, {"name": "Set-Cookie", "value": "SECRET"}],
            "content": {"text": base64.b64encode(b"data: {}\n\n").decode(), "encoding": "base64"},
        },
    } | more


def archive(*entries: Any) -> str:
    log = {
        "version": "1.2",
        "pages": [{"entries": [1], "title": '"entries": [{'}],
        "comment": "entries",
        "entries": entries,
        "after": [2],
    }
    return json.dumps({"entries": [3], "log": log}, indent=1)


def har(*entries: Any) -> tuple[list[Turn], list[str]]:
    faults: list[Fault] = []
    found = list(read_har([archive(*entries)], faults.append))
    return found, [str(fault) for fault in faults]


def test_a_browsers_archive_is_read() -> None:
    (turn,), faults = har(entry())
    assert not faults
    assert (turn.method, turn.upstream, turn.status) == ("POST", "https://api.openai.com", 200)
    assert turn.dialect is Dialect.OPENAI_CHAT
    assert (turn.request_body, turn.response_body) == ('{"model":"é"}'.encode(), b"data: {}\n\n")
    assert (turn.at, turn.duration, turn.first_byte) == (1771466880.0, 1.5, 0.5)
    assert turn.facts == {"encoded": False}
    assert len(turn.request_sha256) == 64


def test_its_credentials_stay_behind() -> None:
    (turn,), _ = har(entry("https://user:SECRET@api.openai.com/v1/chat/completions?key=SECRET&a=b"))
    assert "SECRET" not in repr(turn)
    assert turn.target == "/v1/chat/completions?key=[REDACTED]&a=b"


def test_only_model_apis_are_read_and_bad_entries_are_told() -> None:
    other = entry("https://example.org/logo.png")
    bad = entry()
    del bad["request"]
    broken = entry(response={"content": {"text": "x", "encoding": "rot13"}})
    found, faults = har(other, bad, entry(), 7, broken, entry(startedDateTime="yesterday"))
    assert len(found) == 1
    assert faults == [
        "line 2: request is missing",
        "line 4: request is missing",
        "line 5: a body is in an unknown encoding, 'rot13'",
        "line 6: startedDateTime is no point in time",
    ]


def test_ids_are_the_same_each_time_and_differ_by_what_was_asked() -> None:
    other = entry()
    other["request"]["postData"]["text"] = "{}"
    (one, two), _ = har(entry(), other)
    assert har(entry())[0][0].exchange == one.exchange != two.exchange


@settings(max_examples=50)
@given(st.lists(st.integers(0, 100), max_size=5), st.lists(VALUES, max_size=2))
def test_an_archive_may_come_in_any_pieces(cuts: list[int], others: list[Any]) -> None:
    data = archive(*others, entry(comment='\\"]}'), *others, entry()).encode()
    places = [0, *sorted(len(data) * cut // 100 for cut in cuts), len(data)]
    faults: list[Fault] = []
    found = list(read_har((data[a:b] for a, b in itertools.pairwise(places)), faults.append))
    assert len(found) == 2
    assert [fault.line for fault in faults] == [
        *range(1, len(others) + 1),
        *range(len(others) + 2, 2 * len(others) + 2),
    ]


def test_an_archive_cut_anywhere_gives_what_was_whole() -> None:
    data = archive(entry(), entry(), entry())
    counts = []
    for end in range(0, len(data), 7):
        faults: list[Fault] = []
        counts.append(len(list(read_har([data[:end]], faults.append))))
        assert faults or counts[-1] == 3
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3}


def test_an_entry_that_is_not_json_costs_only_itself() -> None:
    data = archive(entry(), entry(), entry()).replace('"status": 200', '"status": 2OO', 1)
    faults: list[Fault] = []
    assert len(list(read_har([data], faults.append))) == 2
    assert faults[0].line == 1
    assert faults[0].reason.startswith("not JSON")


def test_what_is_no_archive_says_so() -> None:
    faults: list[Fault] = []
    assert list(read_har(["{}"], faults.append)) == []
    assert list(read_har([b"\xff"], faults.append)) == []
    assert [fault.reason for fault in faults] == [
        "no log.entries: not a HAR file",
        "not UTF-8: nothing is read from here on",
    ]


@pytest.mark.parametrize(
    ("target", "dialect"),
    [
        ("/v1/messages?beta=true", Dialect.ANTHROPIC_MESSAGES),
        ("/anthropic-proxy/v1/messages", Dialect.ANTHROPIC_MESSAGES),
        ("/model/anthropic.claude/invoke-with-response-stream", Dialect.ANTHROPIC_MESSAGES),
        ("/v1/projects/p/models/claude:streamRawPredict", Dialect.ANTHROPIC_MESSAGES),
        ("/v1/messages/count_tokens", None),
        ("/openai/deployments/d/chat/completions?api-version=1", Dialect.OPENAI_CHAT),
        ("/v1/completions", Dialect.OPENAI_COMPLETIONS),
        ("/v1/responses", Dialect.OPENAI_RESPONSES),
        ("/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", Dialect.GEMINI),
        ("/v1beta/interactions", Dialect.GEMINI_INTERACTIONS),
        ("/v1/models", None),
    ],
)
def test_targets_tell_their_dialect(target: str, dialect: Dialect | None) -> None:
    assert dialect_of(target) is dialect

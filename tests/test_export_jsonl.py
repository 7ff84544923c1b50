"""Our own JSONL: what is written is read again, turn by turn, and a bad line costs only itself."""

import json

import attrs
import pytest
from hypothesis import given, settings

from kgb_gateway.dewey.document import Conversation, Turn
from kgb_gateway.dewey.imports import Fault, read_jsonl
from kgb_gateway.dewey.texts import json_text
from kgb_gateway.dewey.transcripts.model import Block, Kind
from kgb_gateway.dewey.turn_json import FORMAT, NotATurn, dump, load
from tests.documents import any_conversations, assistant, conversation, number, turns
from tests.test_export_streams import export


def read(data: bytes) -> tuple[list[Turn], list[Fault], list[Conversation]]:
    faults: list[Fault] = []
    heads: list[Conversation] = []
    return list(read_jsonl(data.splitlines(keepends=True), faults.append, heads.append)), faults, heads


def test_a_line_says_all() -> None:
    line = json.loads(export("jsonl", conversation()).splitlines()[1])
    assert line["format"] == FORMAT
    assert line["of"] == {
        "id": "c1", "session": "s1", "agent": "claude-code", "kind": "main", "title": "A dot", "project": "/home/ada",
    }  # fmt: skip
    assert line["exchange"] == number(2)
    assert line["replies"] == [
        {"role": "assistant", "blocks": [{"kind": "text", "value": {"type": "text", "text": "There are"}}]}
    ]
    assert line["partial"] is True
    assert line["usage"][0]["cache_read"] == 11_900
    assert "raw_kept" not in line


def test_what_is_written_is_read_again() -> None:
    found, faults, heads = read(export("jsonl", conversation()))
    assert found == turns()
    assert not faults
    assert heads == [attrs.evolve(conversation(), turns=())]


@settings(max_examples=80)
@given(any_conversations())
def test_whatever_is_written_is_read_again(of: Conversation) -> None:
    found, faults, _ = read(export("jsonl", of))
    assert found == list(of.turns)
    assert not faults


def test_bad_lines_are_told_and_the_rest_is_read() -> None:
    good = export("jsonl", conversation()).splitlines()
    deep = b"[" * 100_000
    lines = [
        b"{",
        good[0],
        b"",
        b"[1]",
        b'{"format": "other"}',
        b"\xff\xfe{}",
        deep,
        b'{"n": ' + b"1" * 5000 + b"}",
        good[1],
    ]
    faults: list[Fault] = []
    assert list(read_jsonl(lines, faults.append)) == turns()
    assert [fault.line for fault in faults] == [1, 4, 5, 6, 7, 8]
    reasons = [str(fault) for fault in faults]
    assert reasons[0].startswith("line 1: not JSON: ")
    assert reasons[1:4] == [
        "line 4: not a JSON object",
        f"line 5: format is not {FORMAT!r}",
        "line 6: not UTF-8 at byte 0",
    ]


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ({"exchange": ""}, "exchange (its id) is missing"),
        ({"at": "now"}, "at: not a number"),
        ({"at": True}, "at: not a number"),
        ({"at": 10**400}, "at: not a number"),
        ({"status": 1.5}, "status: not a whole number of reasonable size"),
        ({"cost_micro_usd": 2**70}, "cost_micro_usd: not a whole number of reasonable size"),
        ({"partial": 1}, "partial: not true or false"),
        ({"model": None}, "model: not a text"),
        ({"dialect": "klingon"}, "dialect: 'klingon' is no dialect that this version knows"),
        ({"added": [{"role": "user"}]}, "added: not a list"),
        ({"added": [{"role": "user", "blocks": [{"kind": "text"}]}]}, "added: not an object"),
        ({"usage": [1]}, "usage: not an object"),
        ({"request_headers": [["a"]]}, "request_headers: not pairs of name and value"),
        ({"request_body": "?"}, "request_body: not base64"),
    ],
)
def test_a_turn_that_is_none_says_why(member: dict[str, object], reason: str) -> None:
    with pytest.raises(NotATurn) as caught:
        load({**dump(turns()[0]), **member})
    assert str(caught.value) == reason


def test_what_a_later_version_adds_is_passed_over() -> None:
    novel = {**dump(turns()[0]), "novelty": [1]}
    assert load(novel) == turns()[0]
    kind = {**dump(Turn("x")), "replies": [{"role": "r", "blocks": [{"kind": "hologram", "value": {"a": 1}}]}]}
    assert load(kind).replies[0].blocks == (Block(Kind.OTHER, {"a": 1}),)


def test_lone_surrogates_and_line_separators_survive() -> None:
    block = Block(Kind.TEXT, {"type": "text", "text": "a\ud800b\u2028c\x85d\x7f"})
    turn = Turn("x", replies=(assistant(block),))
    line = json_text(dump(turn))
    assert line.encode("utf-8").splitlines() == [line.encode("utf-8")]
    assert len(line.splitlines()) == 1
    assert load(json.loads(line)) == turn

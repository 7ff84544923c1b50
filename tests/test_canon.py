"""Canonical forms: what was said twice has one hash, and nothing else has it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.dewey.canon import (
    Mark,
    canonical,
    chain_of,
    digest,
    from_json,
    hash_of,
    link_hash,
    marks_of,
    to_json,
    without_marks,
)
from kgb_gateway.dewey.transcripts.model import Block, Kind, Message

MARK = {"type": "ephemeral", "ttl": "1h"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def text(value: str, **more: Any) -> Block:
    return Block(Kind.TEXT, {"type": "text", "text": value, **more})


def message(*blocks: Block, role: str = "user", **extra: Any) -> Message:
    return Message(role, blocks, extra)


@given(json_values)
def test_json_comes_back_as_it_was(value: object) -> None:
    assert from_json(to_json(value)) == value


@given(json_values | st.dictionaries(st.text(), st.text()))
def test_it_is_the_json_that_the_encoder_writes(value: object) -> None:
    plain = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert to_json(value) == plain.encode("utf-8", "surrogatepass")
    ordered = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    assert hash_of(value) == digest(ordered.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("value", ["\ud800", "a\0b", {"\udfff": "\ud800x"}, "🙂", 10**400])
def test_what_other_databases_reject_is_kept(value: object) -> None:
    assert from_json(to_json(value)) == value
    assert len(hash_of(value)) == 20


def test_the_order_of_members_is_no_part_of_what_was_said() -> None:
    assert hash_of({"a": 1, "b": {"c": 2, "d": 3}}) == hash_of({"b": {"d": 3, "c": 2}, "a": 1})
    assert hash_of([1, 2]) != hash_of([2, 1])


def test_members_keep_their_order_in_what_is_stored() -> None:
    assert to_json({"b": 1, "a": 2}) == b'{"b":1,"a":2}'


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_no_two_lists_of_parts_have_one_digest(one: list[bytes], other: list[bytes]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


def test_a_cache_mark_is_taken_out_and_told() -> None:
    marked = {"type": "text", "text": "x", "cache_control": MARK}
    result = {"type": "tool_result", "content": [{"type": "text", "text": "y", "cache_control": MARK}, "odd"]}
    assert without_marks(marked) == {"type": "text", "text": "x"}
    assert without_marks(result) == {"type": "tool_result", "content": [{"type": "text", "text": "y"}, "odd"]}
    assert marks_of([marked, result], 3) == [Mark(3, 0, -1, MARK), Mark(3, 1, 0, MARK)]
    assert "cache_control" in marked, "what came in is never changed"


def test_a_message_is_the_same_with_and_without_a_mark() -> None:
    assert canonical(message(text("x", cache_control=MARK))).hash == canonical(message(text("x"))).hash


@pytest.mark.parametrize(
    "other",
    [
        message(text("y")),
        message(text("x"), role="assistant"),
        message(text("x"), text("x")),
        message(text("x"), name="bob"),
        message(),
    ],
    ids=["text", "role", "blocks", "extra", "nothing"],
)
def test_another_message_has_another_hash(other: Message) -> None:
    assert canonical(message(text("x"))).hash != canonical(other).hash


def test_a_chain_covers_all_before_it() -> None:
    one, two, three = (hash_of(name) for name in "abc")
    assert chain_of([one, two])[0] == chain_of([one, three])[0]
    assert chain_of([one, two, three])[2] != chain_of([two, one, three])[2]
    assert (
        chain_of([two], parent=chain_of([one])[0])[0] == chain_of([one, two])[1] == link_hash(chain_of([one])[0], two)
    )

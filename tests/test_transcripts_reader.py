"""From the bytes of a body to a prompt or a reply: coding, framing, headers that lie, hostile bodies."""

import gzip
import json
import zlib
from typing import Any

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgb_gateway.dewey.transcripts import reader as reader_module
from kgb_gateway.dewey.transcripts.detect import Surface
from kgb_gateway.dewey.transcripts.model import Dialect, Json, Kind, NotReadable, Reply, View
from kgb_gateway.dewey.transcripts.reader import ReplyReader, read_request
from kgb_gateway.dewey.transcripts.view import view

A = Surface(Dialect.ANTHROPIC_MESSAGES, "turn")
C = Surface(Dialect.OPENAI_CHAT, "turn")
G = Surface(Dialect.GEMINI, "turn", "gemini-x", True)
SSE = ("Content-Type", "text/event-stream; charset=utf-8")
JSON = ("Content-Type", "application/json")

BODY = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn", "stop_sequence": None,
    "content": [{"type": "text", "text": "héllo 😀"}, {"type": "tool_use", "id": "t", "name": "w", "input": {"a": [1]}}],
    "usage": {"input_tokens": 3, "output_tokens": 2},
}  # fmt: skip
EVENTS = [
    {"type": "message_start", "message": {**BODY, "content": [], "stop_reason": None, "usage": {"input_tokens": 3, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hé"}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "llo 😀"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "w", "input": {}}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a": '}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "[1]}"}},
    {"type": "content_block_stop", "index": 1},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]  # fmt: skip


def sse(*events: Any, ascii: bool = False) -> bytes:  # noqa: A002
    return "".join(
        f"event: {each['type']}\ndata: {json.dumps(each, ensure_ascii=ascii)}\n\n" for each in events
    ).encode()


STREAM = sse(*EVENTS)
PLAIN = json.dumps(BODY, indent=1).encode()


def read(
    *pieces: bytes, surface: Surface = A, headers: list[tuple[str, str]] | None = None, whole: bool = True
) -> Reply:
    reader = ReplyReader(surface, headers if headers is not None else [])
    for piece in pieces:
        reader.feed(piece)
    return reader.finish(whole)


def test_the_streamed_and_the_unstreamed_twin_are_equal() -> None:
    assert read(STREAM, headers=[SSE]) == read(PLAIN, headers=[JSON])


@pytest.mark.parametrize("kind", [SSE, JSON, ("content-type", "application/octet-stream"), ("Content-Type", "")])
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\r\n\r\n"])
def test_the_bytes_tell_when_the_header_lies(kind: tuple[str, str], before: bytes) -> None:
    assert read(before + STREAM, headers=[kind]) == read(STREAM, headers=[SSE])
    assert read(before + PLAIN, headers=[kind]) == read(PLAIN, headers=[JSON])


def test_a_stream_that_begins_with_a_comment() -> None:
    assert read(b": ok\n\n" + STREAM, headers=[JSON]) == read(STREAM, headers=[SSE])


CODED = [
    ("gzip", gzip.compress), ("br", brotli.compress), ("deflate", zlib.compress), ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "coder"), CODED)
def test_coded_bodies(name: str, coder: Any) -> None:
    packed = coder(STREAM)
    head = [("content-ENCODING", name), SSE]
    assert read(packed, headers=head) == read(STREAM, headers=[SSE])
    assert read(*(packed[at : at + 1] for at in range(len(packed))), headers=head) == read(STREAM, headers=[SSE])
    assert read_request(A, [("Content-Encoding", name)], coder(b'{"messages": []}'))[1] == {"messages": []}


def test_a_coding_that_the_header_forgets_or_invents() -> None:
    assert read(gzip.compress(PLAIN)) == read(PLAIN)
    assert read(PLAIN, headers=[("Content-Encoding", "gzip")]) == read(PLAIN)
    assert read(STREAM, headers=[("Content-Encoding", "gzip")]) == read(STREAM)


def test_a_coded_stream_that_is_cut_gives_what_came() -> None:
    packer = zlib.compressobj(wbits=31)
    pieces = [packer.compress(sse(each)) + packer.flush(zlib.Z_SYNC_FLUSH) for each in EVENTS]
    reply = read(*pieces[:5], headers=[("Content-Encoding", "gzip"), SSE], whole=False)
    assert view(reply.dialect, reply.messages[0].blocks[0]).text == "héllo 😀"
    assert not reply.complete


def test_a_coding_nobody_knows_is_told_when_bytes_come() -> None:
    reader = ReplyReader(A, [("Content-Encoding", "rot13")])
    with pytest.raises(NotReadable, match="rot13"):
        reader.feed(STREAM)


@pytest.mark.parametrize("whole", [True, False])
def test_a_stream_whose_last_event_came_is_complete_whatever_the_transport_says(whole: bool) -> None:
    assert read(STREAM, whole=whole).complete
    assert not read(STREAM[:-30], whole=whole).complete


@pytest.mark.parametrize("size", range(len(b'{"type": "message"'), len(PLAIN)))
def test_a_body_that_is_cut_gives_what_can_be_read(size: int) -> None:
    reply = read(PLAIN[:size], whole=False)
    assert not reply.complete
    blocks = [block for message in reply.messages for block in message.blocks]
    assert len(blocks) <= 2
    if blocks and blocks[0].kind is Kind.TEXT:
        assert "héllo 😀".startswith(view(reply.dialect, blocks[0]).text)


@pytest.mark.parametrize("cut", [b"", b"{", b'{"type'])
def test_a_body_of_which_nothing_can_be_read_is_not_readable(cut: bytes) -> None:
    with pytest.raises(NotReadable):
        read(cut, whole=False)


def test_a_body_that_is_wrong_though_whole_is_not_readable() -> None:
    for bad in (PLAIN[:-5], b"<html>", b"", b"nope", b"[1, 2]", b"5"):
        with pytest.raises(NotReadable):
            read(bad, headers=[JSON])


def test_an_event_that_lacks_brackets_is_read_and_kept() -> None:
    bad = STREAM.replace(b'"message_stop"}', b'"message_stop"')
    reply = read(bad, headers=[SSE])
    assert reply.complete
    assert reply.unknown == ({"event": "message_stop", "data": '{"type": "message_stop"'},)


def test_an_event_that_is_no_json_is_kept() -> None:
    reply = read(STREAM[:200], b"\n\nevent: odd\ndata: <html>\n\n", STREAM, headers=[SSE])
    assert {"event": "odd", "data": "<html>"} in reply.unknown


def test_an_error_event_that_is_no_json() -> None:
    reply = read(sse(EVENTS[0]) + b"event: error\ndata: upstream failed\n\n", headers=[SSE])
    assert reply.error == {"event": "error", "data": "upstream failed"}
    assert not reply.complete


def test_an_error_body_where_a_stream_was_expected() -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "m"}}
    assert read(json.dumps(error).encode(), headers=[SSE]).error == error["error"]


def test_an_empty_stream() -> None:
    reply = read(b"", headers=[SSE], whole=False)
    assert (reply.messages, reply.complete) == ((), False)


# Gemini's array, lines of JSON.

CHUNKS = [
    {"candidates": [{"content": {"role": "model", "parts": [{"text": each}]}}], "responseId": "r"} for each in "abc"
] + [{"candidates": [{"content": {"parts": []}, "finishReason": "STOP"}]}]


@pytest.mark.parametrize("wire", [
    json.dumps(CHUNKS).encode(), json.dumps(CHUNKS, indent=1).encode(), b"\n".join(json.dumps(each).encode() for each in CHUNKS),
    b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in CHUNKS),
])  # fmt: skip
def test_geminis_chunks_in_every_framing(wire: bytes) -> None:
    reply = read(*(wire[at : at + 3] for at in range(0, len(wire), 3)), surface=G, headers=[JSON])
    assert reply.messages[0].blocks[0].value == {"text": "abc"}
    assert (reply.complete, reply.model, reply.id) == (True, "gemini-x", "r")


def test_geminis_array_that_is_cut() -> None:
    wire = json.dumps(CHUNKS).encode()
    reply = read(wire[: wire.index(b'"b"') + 2], surface=G, headers=[JSON], whole=False)
    assert reply.messages[0].blocks[0].value == {"text": "ab"}
    assert not reply.complete


# Live.


def test_live_tells_what_came_since() -> None:
    reader = ReplyReader(A, [SSE])
    told = []
    for at in range(0, len(STREAM), 50):
        reader.feed(STREAM[at : at + 50])
        told += reader.live()
    assert "".join(each.text for each in told if each.kind is Kind.TEXT) == "héllo 😀"
    assert [each for each in told if each.name] == [View(Kind.TOOL_CALL, "", "w", "t")]
    assert "".join(each.text for each in told if each.kind is Kind.TOOL_CALL) == '{"a": [1]}'
    assert reader.live() == []
    assert reader.finish(True).complete


def test_live_joins_what_came_together() -> None:
    reader = ReplyReader(A, [SSE])
    reader.feed(STREAM)
    assert reader.live() == [View(Kind.TEXT, "héllo 😀"), View(Kind.TOOL_CALL, '{"a": [1]}', "w", "t")]


def test_whoever_never_asks_does_not_keep_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_UNSEEN", 3)
    reader = ReplyReader(A, [SSE])
    reader.feed(STREAM)
    assert reader._unseen is None
    assert reader.live() == []


# Requests, and what is no turn.


def test_a_request() -> None:
    prompt, body = read_request(A, [], b'{"model": "m", "messages": [], "metadata": {"user_id": "u"}}')
    assert (prompt.model, prompt.dialect) == ("m", Dialect.ANTHROPIC_MESSAGES)
    assert body["metadata"] == {"user_id": "u"}


def test_the_path_tells_what_the_body_leaves_out() -> None:
    prompt, _ = read_request(G, [], b'{"contents": []}')
    assert (prompt.model, prompt.stream) == ("gemini-x", True)
    prompt, _ = read_request(
        Surface(Dialect.GEMINI, "count_tokens"),
        [],
        b'{"generateContentRequest": {"model": "models/g", "contents": "a"}}',
    )
    assert (prompt.model, len(prompt.messages)) == ("g", 1)


@pytest.mark.parametrize("body", [b"", b"no", b"[]", b"[" * 100_000, b'{"messages": 1}', gzip.compress(b"{}")[:-4]])
def test_requests_that_are_not_readable(body: bytes) -> None:
    with pytest.raises(NotReadable):
        read_request(A, [], body)


def test_other_kinds_of_exchanges() -> None:
    counted = read(b'{"input_tokens": 7}', surface=Surface(Dialect.ANTHROPIC_MESSAGES, "count_tokens"), headers=[JSON])
    assert (counted.rest, counted.complete) == ({"input_tokens": 7}, True)
    batch = Surface(Dialect.ANTHROPIC_MESSAGES, "batch")
    assert read_request(batch, [], b'{"requests": [1]}')[0].params == {"requests": [1]}
    lines = read(b'{"custom_id": "a"}\n{"custom_id": "b"}\n', surface=batch)
    assert lines.rest == {"values": [{"custom_id": "a"}, {"custom_id": "b"}]}
    assert read(b'{"error": {"message": "m"}}', surface=batch).error == {"message": "m"}


# Hostile bodies.


def test_hostile_json_is_read_or_refused() -> None:
    digits = "9" * 6000
    text = f'{{"messages": [{{"role": "user", "content": "a\\u0000\\ud83d", "n": {digits}}}], "x": NaN, "x": 2}}'
    prompt, body = read_request(A, [], text.encode())
    assert prompt.messages[0].blocks[0].value["text"] == "a\0\ud83d"
    assert prompt.messages[0].extra["n"] == digits
    assert body["x"] == 2


def test_deep_nesting_in_an_event_is_kept_as_text() -> None:
    deep = '{"type": "x", "a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    reply = read(sse(EVENTS[0]) + f"data: {deep}\n\n".encode() + sse(*EVENTS[1:]), headers=[SSE])
    assert reply.complete
    assert reply.unknown == ({"data": deep},)


def test_many_small_deltas_cost_what_they_are_long() -> None:
    """With texts that are copied at every delta this would move 40 GB."""
    delta = sse({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x" * 50}})
    reader = ReplyReader(A, [SSE])
    reader.feed(sse(*EVENTS[:2]))
    for _ in range(40):
        reader.feed(delta * 1000)
    (block,) = reader.finish(False).messages[0].blocks
    assert len(str(block.value["text"])) == 2_000_000


SURFACES = [Surface(dialect, "turn") for dialect in Dialect]
WORDS = [
    "type", "index", "delta", "text", "content", "choices", "candidates", "message", "parts", "tool_calls", "id", "response", "output", "item", "step",
    "message_start", "content_block_delta", "content_block_start", "text_delta", "message_delta", "response.output_item.added", "response.output_text.delta",
    "response.completed", "output_index", "interaction", "event_type", "step.delta", "step.start", "functionCall", "partialArgs", "usage", "error", "arguments",
]  # fmt: skip
VALUES: st.SearchStrategy[Json] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(WORDS) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(VALUES, max_size=6), st.sampled_from(SURFACES), st.booleans())
def test_any_json_is_a_reply_or_not_readable(values: list[Json], surface: Surface, streamed: bool) -> None:
    if streamed:
        wire = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in values)
    else:
        wire = json.dumps(values[0] if values else {}).encode()
    try:
        reply = read(wire, surface=surface, headers=[SSE if streamed else JSON])
    except NotReadable:
        return
    for message in reply.messages:
        for block in message.blocks:
            assert isinstance(view(reply.dialect, block).text, str)
    json.dumps([reply.rest, reply.usage, reply.error, reply.unknown])


@settings(max_examples=200, deadline=None)
@given(VALUES, st.sampled_from(SURFACES))
def test_any_json_is_a_request_or_not_readable(value: Json, surface: Surface) -> None:
    try:
        prompt, _ = read_request(surface, [], json.dumps(value).encode())
    except NotReadable:
        return
    for block in [*prompt.system, *(each for message in prompt.messages for each in message.blocks)]:
        assert isinstance(view(prompt.dialect, block).text, str)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from(SURFACES),
    st.sampled_from(["", "gzip", "br", "zstd", "deflate"]),
    st.booleans(),
)
def test_any_bytes_are_a_reply_or_not_readable(data: bytes, surface: Surface, coding: str, whole: bool) -> None:
    try:
        read(data, surface=surface, headers=[("Content-Encoding", coding)], whole=whole)
    except NotReadable:
        return

"""WebSocket bytes read back, with an encoder of our own; turns of the Responses API told apart."""

import json
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.dewey.transcripts.responses_socket import split, turns
from kgb_gateway.dewey.transcripts.websocket import Deflate, MessageDecoder, negotiated, texts

EXTENSION = "Sec-WebSocket-Extensions"


class Encoder:
    """One side of a connection. ``mask``: four bytes for a client's frames."""

    def __init__(
        self, mask: bytes = b"", deflate: Deflate | None = None, *, fresh: bool = False, bits: int = 15
    ) -> None:
        self.mask, self.deflate, self.fresh, self.bits = mask, deflate, fresh, bits
        self.packer = zlib.compressobj(wbits=-bits)

    def frame(self, first: int, payload: bytes) -> bytes:
        size, masked = len(payload), 0x80 if self.mask else 0
        if size < 126:
            head = bytes([first, masked | size])
        elif size < 65536:
            head = bytes([first, masked | 126]) + struct.pack("!H", size)
        else:
            head = bytes([first, masked | 127]) + struct.pack("!Q", size)
        body = bytes(byte ^ self.mask[at % 4] for at, byte in enumerate(payload)) if self.mask else payload
        return head + self.mask + body

    def message(self, text: str, *, parts: int = 1, operation: int = 1, between: bytes = b"") -> bytes:
        data, bit = text.encode(), 0
        if self.deflate is not None:
            if self.fresh:
                self.packer = zlib.compressobj(wbits=-self.bits)
            data = (self.packer.compress(data) + self.packer.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")
            bit = 0x40
        step = max(1, -(-len(data) // parts))
        pieces = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
        wire = b""
        for number, piece in enumerate(pieces):
            first = (operation | bit) if number == 0 else 0
            wire += self.frame(first | (0x80 if number == len(pieces) - 1 else 0), piece) + between
        return wire


TEXTS = ["", "a", "héllo 😀", "x" * 125, "y" * 126, "z" * 70_000, '{"a": 1}' * 50]


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("deflate", [True, False])
def test_messages_come_back(server: bool, parts: int, fresh: bool, deflate: bool) -> None:
    agreed = Deflate(fresh, fresh) if deflate else None
    encoder = Encoder(b"" if server else b"\x01\x82\x03\xf4", agreed, fresh=fresh, bits=12)
    ping = encoder.frame(0x89, b"ping")
    wire = b"".join(encoder.message(text, parts=parts, between=ping) for text in TEXTS)
    assert texts([wire], agreed, server=server) == TEXTS
    assert texts([wire[at : at + 7] for at in range(0, len(wire), 7)], agreed, server=server) == TEXTS


def test_a_message_may_be_plain_though_compression_is_agreed_on() -> None:
    assert texts([Encoder().message("plain")], Deflate(), server=True) == ["plain"]


def test_binary_messages_are_left_out_and_nothing_comes_behind_a_close() -> None:
    encoder = Encoder()
    wire = encoder.message("b", operation=2) + encoder.message("t") + encoder.frame(0x88, b"") + encoder.message("late")
    decoder = MessageDecoder(server=True)
    assert decoder.feed(wire) == ["t"]
    assert decoder.closed
    assert decoder.feed(encoder.message("later")) == []


@pytest.mark.parametrize("first", [0x80, 0x83, 0x91, 0xA1, 0xC1, 0xC9])
def test_damage_is_told_and_what_came_before_stands(first: int) -> None:
    decoder = MessageDecoder(server=True)
    assert decoder.feed(Encoder().message("ok") + Encoder().frame(first, b"x") + Encoder().message("no")) == ["ok"]
    assert decoder.fault


def test_damaged_compression_is_told() -> None:
    decoder = MessageDecoder(Deflate(), server=True)
    assert decoder.feed(Encoder().frame(0xC1, b"\xff\xff\xff")) == []
    assert decoder.fault


def test_an_impossible_size_is_told() -> None:
    decoder = MessageDecoder(server=True)
    decoder.feed(b"\x81\x7f" + b"\xff" * 8)
    assert decoder.fault


@given(st.lists(st.text(max_size=200), max_size=6), st.integers(1, 9), st.booleans(), st.booleans())
def test_any_messages_in_any_pieces(messages: list[str], size: int, deflate: bool, fresh: bool) -> None:
    messages = [each.encode("utf-8", "replace").decode() for each in messages]
    agreed = Deflate(fresh, fresh) if deflate else None
    encoder = Encoder(b"abcd", agreed, fresh=fresh)
    wire = b"".join(encoder.message(each) for each in messages)
    assert texts([wire[at : at + size] for at in range(0, len(wire), size)], agreed, server=False) == messages


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", None),
        ("x-other; a", None),
        ("permessage-deflate", Deflate()),
        ("Permessage-Deflate; server_no_context_takeover; client_max_window_bits=12", Deflate(True, False)),
        ("x-other, permessage-deflate; client_no_context_takeover", Deflate(False, True)),
    ],
)
def test_what_was_agreed_on(value: str, expected: Deflate | None) -> None:
    assert negotiated([(EXTENSION, value)] if value else []) == expected


# The Responses API.


def create(words: str) -> str:
    return json.dumps({"type": "response.create", "model": "gpt", "input": words, "stream": True})


def answer(number: int, words: str) -> list[str]:
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": words}]}
    done = {
        "id": f"resp_{number}",
        "model": "gpt",
        "status": "completed",
        "output": [item],
        "usage": {"output_tokens": 1},
    }
    return [
        json.dumps({"type": "codex.rate_limits", "n": number}),
        json.dumps(
            {"type": "response.created", "response": {**done, "status": "in_progress", "output": [], "usage": None}}
        ),
        json.dumps({"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": words}),
        json.dumps({"type": "response.completed", "response": done}),
    ]


def test_turns_over_a_websocket() -> None:
    agreed = Deflate(False, True)
    client, server = Encoder(b"\xff\x00\x10\x7f", agreed, fresh=True), Encoder(b"", agreed)
    sent = [client.message(create("one")), client.message(create("two"))]
    received = [server.message(each) for each in (*answer(1, "uno"), *answer(2, "due"))]
    head = [(EXTENSION, "permessage-deflate; client_no_context_takeover")]
    first, second = turns(head, sent, received)
    assert [body["input"] for body, _ in (first, second)] == ["one", "two"]
    assert "type" not in first[0]
    assert [reply.id for _, reply in (first, second)] == ["resp_1", "resp_2"]
    assert [reply.messages[0].blocks[0].value["text"] for _, reply in (first, second)] == ["uno", "due"]
    assert first[1].complete
    assert first[1].unknown == ({"type": "codex.rate_limits", "n": 1},)


def test_an_older_way_to_ask() -> None:
    asked = json.dumps({"type": "response.create", "response": {"input": "x"}})
    ((body, reply),) = split([asked, "no json", json.dumps({"type": "other"})], answer(1, "a"))
    assert body == {"input": "x"}
    assert reply.complete


def test_a_turn_that_breaks_off_and_one_without_an_answer() -> None:
    (_, first), (_, second) = split([create("a"), create("b")], answer(1, "half")[:-1])
    assert not first.complete
    assert first.messages[0].blocks[0].value["text"] == "half"
    assert not second.complete
    assert second.messages == ()


def test_an_error_ends_a_turn() -> None:
    error = json.dumps({"type": "error", "status": 400, "error": {"code": "previous_response_not_found"}})
    failed = json.dumps(
        {"type": "response.failed", "response": {"id": "resp_1", "status": "failed", "error": {"code": "x"}}}
    )
    found = split([create("a"), create("b"), create("c")], [error, *answer(1, "x")[:2], error, failed, *answer(2, "y")])
    assert [reply.error is not None for _, reply in found] == [True, True, False]
    assert [reply.complete for _, reply in found] == [False, False, True]


def test_a_reply_that_nobody_asked_for_is_kept() -> None:
    ((body, reply),) = split([], answer(1, "x"))
    assert body == {}
    assert reply.complete


def test_a_message_that_is_no_json_is_kept() -> None:
    ((_, reply),) = split([create("a")], ["<html>", *answer(1, "x")])
    assert reply.unknown[0] == {"data": "<html>"}

"""Amazon's event stream encoding, with an encoder written from its description."""

import base64
import json
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.dewey.transcripts.detect import detect
from kgb_gateway.dewey.transcripts.eventstream import EventStreamDecoder, StreamMessage
from kgb_gateway.dewey.transcripts.model import Reply
from kgb_gateway.dewey.transcripts.reader import ReplyReader

HEADERS = {":event-type": "chunk", ":content-type": "application/json", ":message-type": "event"}


def text_header(name: str, value: str) -> bytes:
    return bytes([len(name)]) + name.encode() + b"\x07" + struct.pack("!H", len(value.encode())) + value.encode()


def message(payload: bytes, headers: dict[str, str] | None = None, more: bytes = b"") -> bytes:
    packed = b"".join(text_header(*each) for each in (HEADERS if headers is None else headers).items()) + more
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    begin = prelude + struct.pack("!I", zlib.crc32(prelude)) + packed + payload
    return begin + struct.pack("!I", zlib.crc32(begin))


def event(value: object) -> bytes:
    packed = base64.b64encode(json.dumps(value).encode()).decode()
    return message(json.dumps({"bytes": packed, "p": "abcdef"}).encode())


EVENTS = [
    {"type": "message_start", "message": {"id": "m", "role": "assistant", "model": "claude", "content": [], "usage": {"input_tokens": 3}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "héllo"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop", "amazon-bedrock-invocationMetrics": {"inputTokenCount": 3}},
]  # fmt: skip
WIRE = b"".join(map(event, EVENTS))
TARGET = "/model/anthropic.claude-x/invoke-with-response-stream"


def read(*pieces: bytes, kind: str = "application/vnd.amazon.eventstream") -> Reply:
    surface = detect("POST", TARGET, [], [])
    assert surface is not None
    reader = ReplyReader(surface, [("content-type", kind)])
    for piece in pieces:
        reader.feed(piece)
    return reader.finish(True)


def test_every_type_of_header_is_passed_over() -> None:
    values = {0: b"", 1: b"", 2: b"x", 3: b"xx", 4: b"x" * 4, 5: b"x" * 8, 6: b"\0\x02xx", 8: b"x" * 8, 9: b"x" * 16}
    more = b"".join(b"\x01a" + bytes([kind]) + value for kind, value in values.items())
    decoder = EventStreamDecoder()
    assert decoder.feed(message(b"p", {"n": "é"}, more)) == [StreamMessage({"n": "é"}, b"p")]
    assert decoder.whole


@given(st.lists(st.binary(max_size=40), max_size=4), st.integers(1, 50))
def test_any_pieces(payloads: list[bytes], size: int) -> None:
    wire = b"".join(map(message, payloads))
    decoder = EventStreamDecoder()
    found = [each for at in range(0, len(wire), size) for each in decoder.feed(wire[at : at + size])]
    assert [each.payload for each in found] == payloads
    assert decoder.whole


def test_every_flipped_byte_is_noticed() -> None:
    wire = message(b"payload")
    for at in range(len(wire)):
        flipped = wire[:at] + bytes([wire[at] ^ 0x10]) + wire[at + 1 :]
        decoder = EventStreamDecoder()
        assert decoder.feed(flipped) == []
        assert decoder.fault
        assert decoder.feed(wire) == []


def test_a_reply_of_bedrock() -> None:
    reply = read(WIRE)
    assert reply == read(*(WIRE[at : at + 1] for at in range(len(WIRE))))
    assert reply.complete
    assert reply.messages[0].blocks[0].value == {"type": "text", "text": "héllo"}
    assert reply.usage == {"input_tokens": 3, "output_tokens": 2}
    assert reply.rest["amazon-bedrock-invocationMetrics"] == {"inputTokenCount": 3}
    assert reply.unknown == ()


def test_the_bytes_tell_when_the_header_does_not() -> None:
    assert read(WIRE, kind="application/json") == read(WIRE)
    plain = b'{"id": "m", "content": [], "stop_reason": "end_turn", "role": "assistant", "model": "c"}'
    assert read(plain).complete


def test_an_exception_in_mid_stream() -> None:
    headers = {":message-type": "exception", ":exception-type": "modelStreamErrorException"}
    reply = read(WIRE[: len(event(EVENTS[0]))], message(b'{"message": "overloaded"}', headers))
    assert reply.error == {"type": "modelStreamErrorException", "message": "overloaded"}
    assert not reply.complete


def test_damage_in_mid_stream_keeps_what_came_before() -> None:
    cut = b"".join(map(event, EVENTS[:3]))
    reply = read(cut, b"\xff" * 40)
    assert reply.messages[0].blocks[0].value["text"] == "héllo"
    assert not reply.complete
    assert "checksum" in str(reply.unknown[-1])


@pytest.mark.parametrize("payload", [b"no json", b'{"other": 1}', b'{"bytes": "?"}', b'{"bytes": "bm8="}'])
def test_a_payload_nobody_understands_is_kept(payload: bytes) -> None:
    reply = read(event(EVENTS[0]), message(payload))
    assert payload.decode() in str(reply.unknown[0])

"""The shapes in which the fake upstream answers, and how a request asks for one.

``raw``: the target says what is wanted, the body is nothing but its size. ``messages``: for peers that relay nothing but the Anthropic
Messages API; the first word of the prompt is the target that a raw request would have had, and the answer is what that API would say.
"""

import functools
import json
import re

import attrs

EVENT_MARK = b"@"
"""Occurs exactly once in every event, near its start, and nowhere else in a response: counting it counts events."""

LAST_CHUNK = b"0\r\n\r\n"
MESSAGES = "/v1/messages"
_STAMP = b"%020d"
_ID = b"request-id: req_011CSHoEeqs5C35K2UUqR7Fy\r\n"
_WORDS = "What is asked for stands at the beginning, and this is here for its length. "
_TARGET = re.compile(rb'"(/[a-z]+(?:\?[\w=&]*)?)[ "]')


def fixed(body: bytes, content_type: bytes = b"application/json") -> bytes:
    """A complete 200 response with a content length."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n"
    return head % (content_type, _ID, len(body)) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def message(text: str) -> bytes:
    """An answer of the Messages API."""
    return json.dumps(
        {
            "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
            "type": "message",
            "role": "assistant",
            "model": "bench",
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 12, "output_tokens": 9},
        }
    ).encode()


JSON_BODY = message("Hello! How can I help you today?")
JSON_ANSWER = fixed(JSON_BODY)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
    + _ID
    + b"Transfer-Encoding: chunked\r\n\r\n"
)


@functools.lru_cache(maxsize=4)
def _filler(size: int) -> bytes:
    return fixed(b"x" * size, b"application/octet-stream")


@functools.lru_cache(maxsize=4)
def _told(size: int) -> bytes:
    return fixed(message(words(size)))


@attrs.frozen
class Shape:
    """``begin``: before the first event of a stream, its head included; ``event``: a chunk; ``end``: after the last. Each is
    bytes that are ready; in ``stamped``, an event too, %d stands for the time. ``big``: a complete answer of so many bytes."""

    begin: bytes
    event: bytes
    stamped: bytes
    end: bytes

    def big(self, size: int) -> bytes:
        return _filler(size) if self is RAW else _told(size)


def _stamped(event: bytes) -> bytes:
    """With the time in the place of as many characters behind the mark."""
    return event.replace(EVENT_MARK + b"x" * 20, EVENT_MARK + _STAMP)


def _event(name: str, **fields: object) -> bytes:
    """An event of the Messages API, a chunk."""
    return chunk(f"event: {name}\ndata: {json.dumps({'type': name, **fields}, separators=(',', ':'))}\n\n".encode())


_EVENT_START = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"text":"@'
EVENT = _EVENT_START + b"x" * (120 - len(_EVENT_START) - 5) + b'"}}\n\n'
CHUNK = chunk(EVENT)
RAW = Shape(STREAM_HEAD, CHUNK, _stamped(CHUNK), LAST_CHUNK)

_DELTA = _event("content_block_delta", index=0, delta={"type": "text_delta", "text": "@" + "x" * 25})
_START = json.loads(JSON_BODY) | {"content": [], "stop_reason": None}
SPOKEN = Shape(
    STREAM_HEAD
    + _event("message_start", message=_START)
    + _event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    _DELTA,
    _stamped(_DELTA),
    _event("content_block_stop", index=0)
    + _event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 9})
    + _event("message_stop")
    + LAST_CHUNK,
)
"""The same as the Messages API says it. Its events are longer, as they must hold all that its readers look for."""


def words(size: int) -> str:
    """So many characters of text: peers that count tokens take minutes for a word of a megabyte."""
    return (_WORDS * (size // len(_WORDS) + 1))[:size] if size > 0 else ""


def asking(target: str, size: int) -> bytes:
    """A request body of the Messages API that asks for what ``target`` is for a raw request, in ``size`` bytes where that is enough."""
    prompt = {"role": "user", "content": target + " "}
    told = {"model": "bench", "max_tokens": 1024, "stream": target.startswith("/stream"), "messages": [prompt]}
    prompt["content"] += words(size - len(json.dumps(told)))
    return json.dumps(told).encode()


def asked(body: bytes | bytearray) -> bytes:
    """The target that such a body asks for, whatever a peer has made of its other fields; b"" where it asks for none."""
    found = _TARGET.search(body)
    return found[1] if found else b""

"""Responses: every shape and flush of the upstream reaches the caller as it came, and connections serve again."""

import asyncio
import gzip
import hashlib
import json
import os
import struct
import zlib
from pathlib import Path

import pytest

from fiedler_proxy.exchange import Outcome
from fiedler_proxy.testing import (
    ReceivedRequest,
    Rendezvous,
    ScriptedUpstream,
    UpstreamConnection,
    chunk_bytes,
    head_bytes,
    in_turn,
    load_stream,
    respond,
    serve_forever,
    sse,
)

from .helpers import SOON, relaying

BOTH_LOOPS = True

CHUNKED = (b"Transfer-Encoding", b"chunked")
EVENT_STREAM = (b"Content-Type", b"text/event-stream")
LAST = b"0\r\n\r\n"
STREAMS = Path(__file__).resolve().parents[3] / "shared" / "streams"


def eventstream_message(payload: bytes) -> bytes:
    """One message of application/vnd.amazon.eventstream: lengths, CRC of them, payload, CRC of all."""
    prelude = struct.pack(">II", 16 + len(payload), 0)
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + payload
    return message + struct.pack(">I", zlib.crc32(message))


FLUSHES = {
    "sse": ([EVENT_STREAM], [sse(("ping", {"n": n})) for n in range(4)]),
    "sse cut within events": ([EVENT_STREAM], [b"event: a\nda", b"ta: {}\n", b"\n: comment\r", b"\n\r\n"]),
    "split utf-8": ([EVENT_STREAM], [b'data: "\xe2', b"\x82", b'\xac"\n\n']),
    "json lines": ([(b"Content-Type", b"application/x-ndjson")], [b'{"a":1}\n', b'{"b"', b":2}\n"]),
    "eventstream": (
        [(b"Content-Type", b"application/vnd.amazon.eventstream")],
        [eventstream_message(b'{"bytes":"%d"}' % n) for n in range(3)],
    ),
    "binary": ([(b"Content-Type", b"application/octet-stream")], [bytes(range(256)), b"\x00", b"\r\n0\r\n\r\n"]),
}


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "until close"])
@pytest.mark.parametrize("kind", FLUSHES)
async def test_every_flush_reaches_the_caller_without_waiting_for_its_successor(kind: str, chunked: bool) -> None:
    """The upstream writes a piece only when the caller has read the piece before."""
    headers, pieces = FLUSHES[kind]
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [*headers, CHUNKED] if chunked else headers)
        for number, piece in enumerate(pieces):
            await points.wait(f"read {number}")
            await conn.send(chunk_bytes(piece) if chunked else piece)
        await points.wait(f"read {len(pieces)}")
        if chunked:
            await conn.end_chunks()
            await conn.stall()

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        response = await c.read_head()
        assert response.headers == [*headers, CHUNKED]
        for number, piece in enumerate(pieces):
            points.reach(f"read {number}")
            assert await c.read_chunk() == piece
        points.reach(f"read {len(pieces)}")
        assert await c.read_chunk() == b""
        assert await gate.records.outcome() is Outcome.COMPLETED


async def test_the_head_reaches_the_caller_before_any_byte_of_the_body() -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [EVENT_STREAM, (b"Content-Length", b"3")])
        await points.wait("head was read")
        await conn.send(b"abc")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        assert (await c.read_head()).headers == [EVENT_STREAM, (b"Content-Length", b"3")]
        points.reach("head was read")
        assert await c.read_body() == b"abc"


async def test_flushes_of_a_declared_length_are_not_held_back() -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send(head_bytes(b"HTTP/1.1 200 OK", [(b"Content-Length", b"6")]) + b"one")
        await points.wait("one was read")
        await conn.send(b"two")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_head()
        assert await c.read_some() == b"one"
        points.reach("one was read")
        assert await c.read_body() == b"two"


@pytest.mark.parametrize("raw_from_the_first_byte", [True, False])
async def test_dribbles_of_one_byte(raw_from_the_first_byte: bool) -> None:
    """Head, chunk sizes, payload and trailers, all cut into single bytes."""
    body = sse({"text": "é€"}, "[DONE]")
    head = head_bytes(b"HTTP/1.1 200 OK", [EVENT_STREAM, CHUNKED])
    tail = chunk_bytes(body[:7], b";ext=1") + chunk_bytes(body[7:]) + b"0\r\nX-Sum: 1\r\n\r\n"

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        raw = head + tail if raw_from_the_first_byte else tail
        if not raw_from_the_first_byte:
            await conn.send(head)
        for byte in raw:
            await conn.send(bytes([byte]))
            await asyncio.sleep(0)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        for _ in range(2):
            await c.get("/")
            response = await c.read_response()
            assert (response.headers, response.body) == ([EVENT_STREAM, CHUNKED], body)
        await gate.settled(1)


async def test_an_event_of_10_mb() -> None:
    event = b"data: " + os.urandom(5_000_000).hex().encode() + b"\n\n"

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [EVENT_STREAM, CHUNKED])
        await conn.chunk(event)
        await conn.end_chunks()

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_head()
        digest = hashlib.sha256()
        while piece := await c.read_some():
            digest.update(piece)
        assert digest.digest() == hashlib.sha256(event).digest()
        (recorder,) = await gate.records.ended()
        assert recorder.response_body == event


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"zstd", b"unknown"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_trap_compressed_responses_stay_compressed(coding: bytes, chunked: bool) -> None:
    body = gzip.compress(b"x" * 10_000, mtime=0)
    up_script = respond(200, [(b"Content-Encoding", coding)], body, chunked=chunked)
    async with ScriptedUpstream(up_script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/", [(b"Accept-Encoding", coding)])
        response = await c.read_response()
        assert (response.header("content-encoding"), response.body) == (coding, body)
        assert response.all("content-length") == ([] if chunked else [b"%d" % len(body)])


async def test_every_recorded_provider_stream_passes_unchanged() -> None:
    if not STREAMS.is_dir():
        pytest.skip(f"recorded streams are not at {STREAMS}")
    paths = sorted(STREAMS.glob("*/*.chunks.txt"))
    assert paths

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, [EVENT_STREAM, CHUNKED])
        for event in load_stream(paths[int(request.target[1:])]):
            await conn.chunk(event)
        await conn.end_chunks()

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        for number, path in enumerate(paths):
            await c.get(f"/{number}")
            assert (await c.read_response()).body == b"".join(load_stream(path)), path.name
        assert len(up.connections) == 1


@pytest.mark.parametrize(
    "head",
    [
        head_bytes(b"HTTP/1.1 200 OK", [(b"Content-Length", b"1234")]),
        head_bytes(b"HTTP/1.1 200 OK", [(b"Content-Type", b"a/b")]),
        head_bytes(b"HTTP/1.1 404 Not Found", [(b"Content-Length", b"0")]),
    ],
)
async def test_head_keeps_its_content_length_and_has_no_body(head: bytes) -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send(head)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        for _ in range(3):
            await c.request("HEAD", "/")
            assert (await c.read_response()).raw_head == head
        await gate.settled(1)
        assert len(up.connections) == 1


async def test_head_of_a_chunked_resource() -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, [CHUNKED])

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        for _ in range(2):
            await c.request("HEAD", "/")
            response = await c.read_response()
            assert (response.status, response.body) == (200, b"")
        assert len(up.connections) == 1


@pytest.mark.parametrize(
    "head",
    [
        head_bytes(b"HTTP/1.1 204 No Content", [(b"X-A", b"1")]),
        head_bytes(b"HTTP/1.1 304 Not Modified", [(b"ETag", b'"x"')]),
        head_bytes(b"HTTP/1.1 304 Not Modified", [(b"Content-Length", b"99")]),
    ],
)
async def test_responses_that_never_have_a_body(head: bytes) -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send(head)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        for _ in range(2):
            await c.get("/")
            assert (await c.read_response()).raw_head == head
        await gate.settled(1)
        assert len(up.connections) == 1
        assert await gate.records.outcomes(2) == [Outcome.COMPLETED] * 2


async def test_trap_1xx_is_relayed_and_never_taken_for_the_answer() -> None:
    hints = head_bytes(b"HTTP/1.1 103 Early Hints", [(b"Link", b"</a>"), (b"X-Caf", b"\xe9")])
    processing = head_bytes(b"HTTP/1.1 102 Processing", [])
    points = Rendezvous()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send(hints[:-4] + b"\r\nConnection: X-Private\r\nX-Private: 1\r\n\r\n")
        await points.wait("the hints were read")
        await conn.send(processing + hints)
        await conn.send_response(body=b"x")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        assert (await c.read_head()).raw_head == hints
        points.reach("the hints were read")
        assert [(await c.read_head()).raw_head for _ in range(2)] == [processing, hints]
        response = await c.read_response()
        assert (response.status, response.body) == (200, b"x")
        (recorder,) = await gate.records.ended()
        assert recorder.calls == ["request_head", "response_head", "response_bytes", "closed"]


async def test_1xx_reaches_no_http_1_0_caller() -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(103, [(b"Link", b"</a>")])
        await conn.send_response(body=b"x")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.send(b"GET / HTTP/1.0\r\n\r\n")
        assert (await c.read_head()).status == 200
        assert await c.read_body() == b"x"


async def test_an_unasked_100_is_dropped() -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(100)
        await request.body()
        await conn.send_response(body=b"x")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        assert (await c.read_head()).status == 200
        assert await c.read_body() == b"x"
        await c.post("/", body=b"abc")
        assert (await c.read_head()).status == 200
        assert await c.read_body() == b"x"


@pytest.mark.parametrize("asked", [[], [(b"Upgrade", b"h2c"), (b"Connection", b"Upgrade")]])
async def test_trap_an_unasked_101_is_502(asked: list[tuple[bytes, bytes]]) -> None:
    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        assert request.all("upgrade") == []
        await conn.send_head(101, [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")])
        await conn.closed(SOON)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/", asked)
        response = await c.read_response()
        assert (response.status, response.header("x-kgb-error")) == (502, b"upstream_unasked_upgrade")
        assert await gate.records.outcome() is Outcome.UPSTREAM_BROKE
        assert (gate.pool.idle, gate.pool.open) == (0, 0)


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_a_close_delimited_body_becomes_chunked_and_ends_as_complete(version: bytes) -> None:
    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send(version + b" 200 OK\r\nX-A: 1\r\n\r\nabc")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        for _ in range(2):
            await c.get("/")
            response = await c.read_response()
            assert (response.raw_head, response.body) == (
                head_bytes(b"HTTP/1.1 200 OK", [(b"X-A", b"1"), CHUNKED]),
                b"abc",
            )
        assert len(up.connections) == 2
        assert await gate.records.outcomes(2) == [Outcome.COMPLETED] * 2


@pytest.mark.parametrize("headers", [[], [CHUNKED]])
async def test_a_body_of_unknown_length_ends_with_the_connection_of_an_http_1_0_caller(
    headers: list[tuple[bytes, bytes]],
) -> None:
    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, headers)
        await conn.send(chunk_bytes(b"abc") + LAST if headers else b"abc")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        response = await c.read_response()
        assert (response.raw_head, response.body) == (b"HTTP/1.0 200 OK\r\n\r\n", b"abc")
        assert not c.peer.reset
        assert await gate.records.outcome() is Outcome.COMPLETED


@pytest.mark.parametrize(
    ("head", "again"),
    [
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: X-A, Close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", True),
    ],
)
async def test_an_upstream_connection_is_kept_only_where_its_head_allows(head: bytes, again: bool) -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send(head + b"abc")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        for _ in range(2):
            await c.get("/")
            response = await c.read_response()
            assert response.raw_head == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
            assert response.body == b"abc"
        assert len(up.connections) == (1 if again else 2)


@pytest.mark.parametrize("status", [200, 500])
async def test_empty_chunked_responses(status: int) -> None:
    async with ScriptedUpstream(respond(status, chunked=True)) as up, relaying(up) as gate, gate.caller() as c:
        for _ in range(2):
            await c.get("/")
            response = await c.read_response()
            assert (response.status, response.headers, response.body) == (status, [CHUNKED], b"")
        assert len(up.connections) == 1


async def test_trailers_end_here_and_spoil_nothing() -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, [(b"Trailer", b"X-Sum"), CHUNKED])
        await conn.chunk(b"abc")
        await conn.end_chunks([(b"X-Sum", b"1"), (b"Set-Cookie", b"smuggled=1")])

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        for _ in range(2):
            await c.get("/")
            response = await c.read_response()
            assert (response.headers, response.body, response.trailers) == ([CHUNKED], b"abc", [])
        assert len(up.connections) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 403, 404, 413, 429, 500, 503, 529, 599])
async def test_upstream_errors_pass_verbatim(status: int) -> None:
    body = json.dumps({"type": "error", "error": {"type": "overloaded_error", "message": "prompt is too long: é"}})
    headers = [(b"retry-after", b"7"), (b"x-should-retry", b"false"), (b"request-id", b"req_1"), (b"Location", b"/x")]
    up_script = respond(status, headers, body.encode())
    async with ScriptedUpstream(up_script) as up, relaying(up) as gate, gate.caller() as c:
        await c.post("/v1/messages", [(b"anthropic-version", b"2023-06-01")], b"{}")
        response = await c.read_response()
        assert (response.status, response.body) == (status, body.encode())
        assert response.headers == [*headers, (b"Content-Length", b"%d" % len(body.encode()))]
        assert await gate.records.outcome() is Outcome.COMPLETED


async def test_an_agents_day_is_one_connection_on_either_side() -> None:
    """HEAD / and many turns over one kept-alive connection, as Claude Code works."""
    events = [sse(("content_block_delta", {"n": n})) for n in range(20)]

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await request.body()
        if request.method == "HEAD":
            await conn.send_response(404)
            return
        await conn.send_head(200, [EVENT_STREAM, CHUNKED])
        for event in events:
            await conn.chunk(event)
        await conn.end_chunks()

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.request("HEAD", "/")
        assert (await c.read_response()).status == 404
        for turn in range(50):
            await c.post("/v1/messages?beta=true", body=b"t" * (80_000 + turn))
            assert (await c.read_response()).body == b"".join(events)
        assert len(up.connections) == 1
        assert [len(request.arrived) for request in up.requests[1:]] == [80_000 + turn for turn in range(50)]
        await gate.settled(1)
        assert gate.pool.dialled == 1


async def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    points = Rendezvous()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        body = await request.body()
        if request.target == b"/0":
            await points.wait("all were written")
        await conn.send_response(body=request.target + b" " + body)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/0")
        for number in range(1, 8):
            if number % 2:
                await c.post(f"/{number}", body=b"b%d" % number)
            else:
                await c.post(f"/{number}", [CHUNKED], chunk_bytes(b"b%d" % number) + LAST)
        await up.wait_for_requests(1)
        points.reach("all were written")
        bodies = [(await c.read_response()).body for _ in range(8)]
        assert bodies == [b"/0 "] + [b"/%d b%d" % (number, number) for number in range(1, 8)]
        assert await gate.records.outcomes(8) == [Outcome.COMPLETED] * 8
        assert len(up.connections) == 1


async def test_a_second_stream_needs_a_second_connection_and_both_are_kept() -> None:
    points = Rendezvous()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await points.wait("both came")
        await conn.send_response(body=request.target)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as a, gate.caller() as b:
        await a.get("/a")
        await b.get("/b")
        await up.wait_for_requests(2)
        points.reach("both came")
        assert (await a.read_response()).body == b"/a"
        assert (await b.read_response()).body == b"/b"
        await gate.settled(2)
        await a.get("/c")
        assert (await a.read_response()).body == b"/c"
        assert len(up.connections) == 2


async def test_a_body_behind_the_head_of_an_answer_without_one_is_not_the_next_answer() -> None:
    """A 204 with a body, as some servers write it: those bytes belong to nobody."""
    first = [b"HTTP/1.1 204 No Content\r\nContent-Length: 38\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]

    async def lying(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send(first[0])
        await conn.closed(SOON)

    script = in_turn(lying, respond(body=b"true"))
    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        assert (await c.read_response()).status == 204
        await c.get("/")
        assert (await c.read_response()).body == b"true"
        assert len(up.connections) == 2

"""Request bodies: every framing and coding byte for byte, as they come, and never twice."""

import asyncio
import gzip
import hashlib
import os
import zlib

import attrs
import pytest
from aiohttp import web

from fiedler_proxy import upload
from fiedler_proxy.errors import ExchangeError
from fiedler_proxy.exchange import Outcome
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import (
    ReceivedRequest,
    Rendezvous,
    ScriptedUpstream,
    UpstreamConnection,
    chunk_bytes,
    head_bytes,
    serve_forever,
)

from .helpers import SOON, relaying

CHUNKED = (b"Transfer-Encoding", b"chunked")
LAST = b"0\r\n\r\n"
TWO_MIB = 2 * 1024 * 1024


def echo() -> ScriptedUpstream:
    """An upstream that returns the body of each request."""

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_response(200, body=await request.body())

    return ScriptedUpstream(script)


def multipart(boundary: bytes) -> bytes:
    part = b'--%s\r\nContent-Disposition: form-data; name="f"; filename="a.bin"\r\n\r\n' % boundary
    return part + bytes(range(256)) + b"\r\n--%s--\r\n" % boundary


# zstd and brotli: what matters is that nobody opens them, so the frames need not be valid.
CODED = [
    ([], b"{}"),
    ([], bytes(range(256)) * 5),
    ([(b"Content-Encoding", b"gzip")], gzip.compress(b"x" * 100_000, mtime=0)),
    ([(b"Content-Encoding", b"deflate")], zlib.compress(b"x" * 100_000)),
    ([(b"Content-Encoding", b"gzip")], b"this claims to be gzip"),
    ([(b"Content-Encoding", b"zstd")], b"\x28\xb5\x2f\xfd\x04\x00\x09\x00\x00abc"),
    ([(b"Content-Encoding", b"br")], b"\x0b\x02\x80hello\x03"),
    ([(b"Content-Type", b"multipart/form-data; boundary=B")], multipart(b"B")),
    ([(b"Content-Type", b"application/x-www-form-urlencoded")], b"a=%20&b=+&&c"),
    ([(b"Content-Type", b"application/json; charset=utf-16")], '{"a": "é"}'.encode("utf-16")),
]


@pytest.mark.parametrize(("headers", "body"), CODED)
async def test_trap_auto_decompression_is_off_for_declared_lengths(
    headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    async with echo() as up, relaying(up) as gate, gate.caller() as c:
        await c.post("/v1/x", headers, body)
        assert (await c.read_response()).body == body
        assert up.requests[0].without("host") == [*headers, (b"Content-Length", b"%d" % len(body))]


@pytest.mark.parametrize(("headers", "body"), CODED)
async def test_trap_auto_decompression_is_off_for_chunked_bodies(
    headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    async with echo() as up, relaying(up) as gate, gate.caller() as c:
        cut = len(body) // 3 or 1
        await c.post("/v1/x", [*headers, CHUNKED], chunk_bytes(body[:cut]) + chunk_bytes(body[cut:]) + LAST)
        assert (await c.read_response()).body == body
        assert up.requests[0].without("host") == [*headers, CHUNKED]


async def test_trap_auto_decompression_is_off_whatever_the_runner_says() -> None:
    body = gzip.compress(b"x" * 1000, mtime=0)
    async with echo() as up, relaying(up, auto_decompress=True) as gate, gate.caller() as c:
        await c.post("/", [(b"Content-Encoding", b"gzip")], body)
        assert (await c.read_response()).body == body


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, TWO_MIB, 9_000_001])
@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_of_any_size_arrive_whole(size: int, chunked: bool) -> None:
    body = os.urandom(size)
    async with echo() as up, relaying(up) as gate, gate.caller() as c:
        pieces = b"".join(chunk_bytes(body[at : at + 50_000]) for at in range(0, size, 50_000)) + LAST
        sending = asyncio.create_task(c.post("/", [CHUNKED] if chunked else [], pieces if chunked else body))
        response = await c.read_response()
        await sending
        assert hashlib.sha256(response.body).digest() == hashlib.sha256(body).digest()
        (recorder,) = await gate.records.ended()
        assert recorder.request_body == body
        assert (recorder.exchange.request_size, recorder.exchange.response_size) == (size, size)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_no_body_stays_no_body(method: str) -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.request(method, "/")
        assert (await c.read_response()).status == 200
        assert up.requests[0].without("host") == []


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_an_announced_empty_body_stays_announced(method: str) -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.request(method, "/", [(b"content-length", b"0")])
        await c.read_response()
        await c.request(method, "/", [CHUNKED], LAST)
        await c.read_response()
        assert [request.without("host") for request in up.requests] == [[(b"content-length", b"0")], [CHUNKED]]
        assert [request.arrived for request in up.requests] == [b"", b""]
        assert [recorder.request_body for recorder in await gate.records.ended(2)] == [b"", b""]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
async def test_a_body_travels_with_any_method(method: str) -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.request(method, "/", body=b"abc")
        assert (await c.read_response()).status == 200
        assert up.requests[0].arrived == b"abc"


async def test_chunk_extensions_and_trailers_of_a_request_end_here() -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        raw = b'3;ext="a;b"\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n'
        await c.post("/", [CHUNKED, (b"Trailer", b"X-Sum")], raw)
        assert (await c.read_response()).status == 200
        assert (bytes(up.requests[0].arrived), up.requests[0].trailers) == (b"abc", [])
        await c.get("/next")
        assert (await c.read_response()).status == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_trap_an_upload_starts_before_the_caller_has_sent_its_end(chunked: bool) -> None:
    """Each piece is written only when the upstream has read the one before: nothing may wait for the whole."""
    points = Rendezvous()
    pieces = [b"one", b"two", b"three"]

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        points.reach("head")
        for piece in pieces:
            arrived = b""
            while len(arrived) < len(piece):
                arrived += await request.read_some()
            assert arrived == piece
            points.reach(piece.decode())
        await request.body()
        await conn.send_response()

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        framing = CHUNKED if chunked else (b"Content-Length", b"%d" % len(b"".join(pieces)))
        await c.post("/", [framing])
        await points.wait("head")
        for piece in pieces:
            await c.send(chunk_bytes(piece) if chunked else piece)
            await points.wait(piece.decode())
        if chunked:
            await c.send(LAST)
        assert (await c.read_response()).status == 200
        assert await gate.records.outcome() is Outcome.COMPLETED


@pytest.mark.usefixtures("short_linger")
async def test_trap_a_declared_length_over_the_limit_gets_413_and_reaches_no_upstream() -> None:
    async with ScriptedUpstream() as up, relaying(up, body_limit=10) as gate, gate.caller() as c:
        await c.post("/v1/messages", [(b"Content-Length", b"11"), (b"anthropic-version", b"2023-06-01")])
        response = await c.read_response()
        assert (response.status, response.header("x-kgb-error")) == (413, b"body_too_large")
        assert response.header("connection") == b"close"
        assert b'"request_too_large"' in response.body
        await c.closed()
        assert up.connections == []
        assert await gate.records.outcome() is Outcome.REFUSED


async def test_a_body_of_exactly_the_limit_passes() -> None:
    async with echo() as up, relaying(up, body_limit=10) as gate, gate.caller() as c:
        await c.post("/", body=b"x" * 10)
        assert (await c.read_response()).body == b"x" * 10
        await c.post("/", [CHUNKED], chunk_bytes(b"x" * 4) + chunk_bytes(b"y" * 6) + LAST)
        assert (await c.read_response()).body == b"xxxxyyyyyy"


async def test_a_chunked_body_over_the_limit_gets_413_and_is_cut_off_at_the_upstream() -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        assert await request.read_some() == b"x" * 10
        points.reach("ten")
        await conn.closed(SOON)
        assert not request.complete
        points.reach("cut")

    async with ScriptedUpstream(script) as up, relaying(up, body_limit=10) as gate, gate.caller() as c:
        await c.post("/", [CHUNKED], chunk_bytes(b"x" * 10))
        await points.wait("ten")
        await c.send(chunk_bytes(b"y"))
        response = await c.read_response()
        assert (response.status, response.header("connection")) == (413, b"close")
        await points.wait("cut")
        assert await gate.records.outcome() is Outcome.REFUSED


async def test_a_chunked_body_that_arrives_at_once_over_the_limit_gets_413() -> None:
    async with ScriptedUpstream(ignore_errors=True) as up, relaying(up, body_limit=10) as gate, gate.caller() as c:
        await c.post("/", [CHUNKED], chunk_bytes(b"x" * 11) + LAST)
        assert (await c.read_response()).status == 413
        assert await gate.records.outcome() is Outcome.REFUSED
        assert all(not request.complete for request in up.requests)


async def test_trap_expect_100_continue_is_the_upstreams_to_answer() -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        assert request.header("expect") == b"100-continue"
        points.reach("head")
        await points.wait("nothing yet")
        assert conn.unread == b""
        await conn.send_head(100, [(b"X-Hint", b"1")])
        assert await request.body() == b"abc"
        await conn.send_response(body=b"done")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.request("POST", "/", [(b"Expect", b"100-continue"), (b"Content-Length", b"3")])
        await points.wait("head")
        assert c.unread == b""
        points.reach("nothing yet")
        assert (await c.read_head()).raw_head == head_bytes(b"HTTP/1.1 100 Continue", [(b"X-Hint", b"1")])
        await c.send(b"abc")
        response = await c.read_response()
        assert (response.status, response.body) == (200, b"done")


async def test_expect_100_continue_with_a_chunked_body() -> None:
    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        await conn.send_head(100)
        await conn.send_response(body=await request.body())

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.request("POST", "/", [(b"Expect", b"100-Continue"), CHUNKED])
        assert (await c.read_head()).status == 100
        await c.send(chunk_bytes(b"abc") + LAST)
        assert (await c.read_response()).body == b"abc"


async def test_an_upstream_that_ignores_the_expectation_gets_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "CONTINUE_AFTER", 0.01)

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        await conn.send_response(body=await request.body())

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.request("POST", "/", [(b"Expect", b"100-continue"), (b"Content-Length", b"3")])
        assert (await c.read_head()).raw_head == b"HTTP/1.1 100 Continue\r\n\r\n"
        await c.send(b"abc")
        assert (await c.read_head()).status == 200
        assert await c.read_body() == b"abc"


async def test_a_late_100_of_the_upstream_does_not_follow_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "CONTINUE_AFTER", 0.01)
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        await points.wait("our own 100 was read")
        await conn.send_head(100)
        await conn.send_response(body=await request.body())

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.request("POST", "/", [(b"Expect", b"100-continue"), (b"Content-Length", b"3")])
        assert (await c.read_head()).status == 100
        points.reach("our own 100 was read")
        await c.send(b"abc")
        assert (await c.read_head()).status == 200


async def test_a_caller_that_does_not_wait_for_its_100() -> None:
    async with echo() as up, relaying(up) as gate, gate.caller() as c:
        await c.request("POST", "/", [(b"Expect", b"100-continue"), (b"Content-Length", b"3")], b"abc")
        response = await c.read_head()
        assert (response.status, await c.read_body()) == (200, b"abc")


@pytest.mark.usefixtures("short_linger")
async def test_a_final_answer_instead_of_the_100_closes_the_connection() -> None:
    """Whether the caller sends its body now is open (RFC 9110 section 10.1.1): no next request can be told from it."""

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_response(417, body=b"no")
        await conn.closed(SOON)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.request("POST", "/", [(b"Expect", b"100-continue"), (b"Content-Length", b"3")])
        response = await c.read_response()
        assert (response.status, response.body, response.header("connection")) == (417, b"no", b"close")
        assert not await c.closed()
        assert await gate.records.outcome() is Outcome.COMPLETED
        assert gate.pool.idle == 0


@web.middleware
@attrs.frozen
class Denying:
    """A link that refuses everybody, as auth does."""

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        raise ExchangeError("denied", "No.", status=401)


@pytest.mark.usefixtures("short_linger")
async def test_trap_expect_gets_no_100_before_auth() -> None:
    async with ScriptedUpstream() as up, relaying(up, Denying()) as gate, gate.caller() as c:
        await c.request("POST", "/", [(b"Expect", b"100-continue"), (b"Content-Length", b"3")])
        response = await c.read_head()
        assert (response.status, response.header("connection")) == (401, b"close")
        await c.read_body()
        await c.closed()
        assert c.unread == b""
        assert up.connections == []


async def test_an_unknown_expectation_is_the_upstreams_to_judge() -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.request("POST", "/", [(b"Expect", b"something-else")], b"abc")
        assert (await c.read_head()).status == 200
        assert up.requests[0].header("expect") == b"something-else"


@pytest.mark.parametrize("chunked", [False, True])
async def test_trap_an_early_answer_is_relayed_while_the_body_still_flows(chunked: bool) -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        assert await request.read_some() == b"first"
        await conn.send_head(200, [CHUNKED])
        await conn.chunk(b"early")
        await points.wait("the early answer was read")
        rest = await request.body()
        assert rest == b"firstlast"
        await conn.chunk(b"late")
        await conn.end_chunks()

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.post("/", [CHUNKED if chunked else (b"Content-Length", b"9")])
        await c.send(chunk_bytes(b"first") if chunked else b"first")
        assert (await c.read_head()).status == 200
        assert await c.read_chunk() == b"early"
        points.reach("the early answer was read")
        await c.send(chunk_bytes(b"last") + LAST if chunked else b"last")
        assert await c.read_body() == b"late"
        assert await gate.records.outcome() is Outcome.COMPLETED


async def test_full_duplex_each_side_waits_for_the_other() -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, [CHUNKED])
        while piece := await request.read_some():
            await conn.chunk(piece.upper())
        await conn.end_chunks()

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        for _ in range(2):
            await c.post("/", [CHUNKED])
            assert (await c.read_head()).status == 200
            for piece in (b"a", b"bc", b"d" * 1000):
                await c.send(chunk_bytes(piece))
                assert await c.read_chunk() == piece.upper()
            await c.send(LAST)
            assert await c.read_chunk() == b""
        await gate.settled(1)
        assert len(up.connections) == 1


@pytest.mark.usefixtures("short_linger")
async def test_an_answer_that_ends_before_the_upload_closes_both_connections() -> None:
    """The rest of the upload belongs to nobody: neither connection may carry another exchange."""

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        await request.read_some()
        await conn.send_response(400, body=b"too much")
        await conn.closed(SOON)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.post("/", [(b"Content-Length", b"100000000")])
        await c.send(b"first")
        response = await c.read_response()
        assert (response.status, response.body) == (400, b"too much")
        assert await gate.records.outcome() is Outcome.COMPLETED
        assert (gate.pool.idle, gate.pool.open) == (0, 0)
        await c.closed()
        assert c.unread == b""


@pytest.mark.parametrize(
    "broken", [b"zz\r\nabc\r\n", b"3\r\nabcd\r\n", b"3\nabc\r\n", b"-1\r\n", b"3\r\nabc\r\nffffffffffffffffff\r\n"]
)
async def test_trap_a_bad_chunk_in_mid_upload_never_hangs(broken: bytes) -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        assert await request.read_some() == b"good"
        points.reach("good")
        await conn.closed(SOON)
        assert not request.complete
        points.reach("cut")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.post("/", [CHUNKED], chunk_bytes(b"good"))
        await points.wait("good")
        await c.send(broken)
        response = await c.read_response()
        assert (response.status, response.header("connection")) == (400, b"close")
        await points.wait("cut")
        await c.closed()
        assert c.unread == b""
        assert await gate.records.outcome() is Outcome.REFUSED
        assert gate.pool.idle == 0


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [0, 3, TWO_MIB])
async def test_trap_client_max_size_of_1_mib_does_not_bind_a_link_that_reads(chunked: bool, size: int) -> None:
    """A link that read the body beforehand: it still reaches the upstream, once and whole."""
    seen: list[bytes] = []

    @web.middleware
    async def reading(request: web.Request, handler: Handler) -> web.StreamResponse:
        seen.append(await request.read())
        return await handler(request)

    body = os.urandom(size)
    async with echo() as up, relaying(up, reading) as gate, gate.caller() as c:
        framed = (chunk_bytes(body) if body else b"") + LAST
        sending = asyncio.create_task(c.post("/", [CHUNKED] if chunked else [], framed if chunked else body))
        response = await c.read_response()
        await sending
        assert (seen, response.body) == ([body], body)
        (recorder,) = await gate.records.ended()
        assert recorder.request_body == body
        assert up.requests[0].all("transfer-encoding") == ([b"chunked"] if chunked else [])


async def test_a_body_limit_binds_a_link_that_reads_too() -> None:
    @web.middleware
    async def reading(request: web.Request, handler: Handler) -> web.StreamResponse:
        await request.read()
        return await handler(request)

    async with ScriptedUpstream() as up, relaying(up, reading, body_limit=10) as gate, gate.caller() as c:
        await c.post("/", [CHUNKED], chunk_bytes(b"x" * 11) + LAST)
        assert (await c.read_response()).status == 413
        assert up.connections == []
        assert await gate.records.outcome() is Outcome.REFUSED


async def test_a_link_that_reads_a_body_announced_with_an_expectation() -> None:
    """The link waits for a body that the caller holds back until it hears 100: somebody must say it."""

    @web.middleware
    async def reading(request: web.Request, handler: Handler) -> web.StreamResponse:
        await request.read()
        return await handler(request)

    async with echo() as up, relaying(up, reading) as gate, gate.caller() as c:
        await c.request("POST", "/", [(b"Expect", b"100-continue"), (b"Content-Length", b"3")])
        assert (await c.read_head()).status == 100
        await c.send(b"abc")
        assert (await c.read_head()).status == 200
        assert await c.read_body() == b"abc"


@pytest.mark.parametrize("size", [9, 30_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_caller_whose_upload_was_answered_early_may_send_the_rest_and_go_on(size: int, chunked: bool) -> None:
    """The rest is read and dropped; what stands behind it is the next request."""

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        if request.target == b"/next":
            await conn.send_response(body=b"next")
            return
        await conn.pause_reading()
        await conn.send_response(400, body=b"enough")
        await conn.stall()

    async with ScriptedUpstream(script, receive_buffer=32 * 1024) as up, relaying(up) as gate, gate.caller() as c:
        body = os.urandom(size)
        await c.post("/", [CHUNKED if chunked else (b"Content-Length", b"%d" % size)])
        await c.send(chunk_bytes(body[:3]) if chunked else body[:3])
        response = await c.read_response()
        assert (response.status, response.body, response.header("connection")) == (400, b"enough", None)
        await c.send(chunk_bytes(body[3:]) + LAST if chunked else body[3:])
        await c.get("/next")
        assert (await c.read_response()).body == b"next"
        assert await gate.records.outcomes(2) == [Outcome.COMPLETED] * 2
        assert len(up.connections) == 2


@web.middleware
async def reads_first(request: web.Request, handler: Handler) -> web.StreamResponse:
    await request.read()
    return await handler(request)


@pytest.mark.parametrize("broken", [b"zz\r\n", b"3\r\nabcd\r\n"])
async def test_a_malformed_body_that_a_link_reads_is_the_callers_fault(broken: bytes) -> None:
    async with ScriptedUpstream() as up, relaying(up, reads_first) as gate, gate.caller() as c:
        await c.post("/v1/messages", [CHUNKED, (b"anthropic-version", b"2023-06-01")], chunk_bytes(b"good"))
        await gate.records.begun()
        await c.send(broken)
        response = await c.read_response()
        assert (response.status, response.header("x-kgb-error")) == (400, b"malformed_body")
        assert response.header("connection") == b"close"
        assert await gate.records.outcome() is Outcome.REFUSED
        assert up.connections == []


async def test_a_body_over_the_limit_that_a_link_reads_is_refused_in_the_callers_dialect() -> None:
    async with ScriptedUpstream() as up, relaying(up, reads_first, body_limit=10) as gate, gate.caller() as c:
        await c.post("/v1/messages", [CHUNKED, (b"anthropic-version", b"2023-06-01")], chunk_bytes(b"x" * 11) + LAST)
        response = await c.read_response()
        assert (response.status, response.header("x-kgb-error")) == (413, b"body_too_large")
        assert b'"request_too_large"' in response.body
        assert up.connections == []

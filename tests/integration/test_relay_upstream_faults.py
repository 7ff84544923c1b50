"""An upstream that fails: an honest error before the head, a visible cut after it, and nobody else harmed."""

import asyncio
import json
import logging
import os
import socket
from pathlib import Path

import pytest

from fiedler_proxy.exchange import Outcome
from fiedler_proxy.testing import (
    Abort,
    BrokenResponse,
    Close,
    Garbage,
    RawClient,
    ReadBody,
    ReadHead,
    ReceivedRequest,
    Rendezvous,
    ScriptedUpstream,
    Send,
    Stall,
    Step,
    UpstreamConnection,
    Wait,
    chunk_bytes,
    in_turn,
    respond,
    serve_forever,
)
from fiedler_proxy.upstream import PoolLimits

from .helpers import SOON, Serving, relaying

BOTH_LOOPS = True

CHUNKED = (b"Transfer-Encoding", b"chunked")
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LENGTH_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
CLOSE_HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def error_of(c: RawClient) -> tuple[int, str]:
    """Status and stable code of an error of the gateway's own; the error must be whole and name its exchange."""
    response = await c.read_response()
    code = response.header("x-kgb-error")
    assert code is not None, response
    document = json.loads(response.body)
    assert document["code"] == code.decode()
    assert document["request_id"].encode() == response.header("x-kgb-request-id") != b""
    return response.status, code.decode()


async def cut_off(c: RawClient) -> bytes:
    """The body must break off; what was delivered before."""
    with pytest.raises(BrokenResponse) as broken:
        await c.read_body()
    return broken.value.received


async def broke(gate: Serving) -> None:
    """The one exchange ended once, as upstream_broke, and its connection serves nobody else."""
    assert await gate.records.outcome() is Outcome.UPSTREAM_BROKE
    await gate.settled(0)


# Before the head: 502 with a code of its own.


async def test_an_upstream_that_refuses() -> None:
    async with relaying(f"http://127.0.0.1:{free_port()}") as gate, gate.caller() as c:
        for _ in range(2):
            await c.get("/")
            assert await error_of(c) == (502, "upstream_refused")
        assert await gate.records.outcomes(2) == [Outcome.UPSTREAM_BROKE] * 2
        assert gate.pool.open == 0


async def test_an_upstream_whose_name_does_not_resolve() -> None:
    async with relaying("http://no-such-host.invalid") as gate, gate.caller() as c:
        await c.get("/")
        assert await error_of(c) == (502, "upstream_unresolvable")
        await broke(gate)


async def test_an_upstream_whose_socket_is_missing(tmp_path: Path) -> None:
    async with relaying(f"unix:{tmp_path}/none") as gate, gate.caller() as c:
        await c.get("/")
        assert await error_of(c) == (502, "upstream_refused")
        await broke(gate)


BEFORE_THE_HEAD: dict[str, tuple[list[Step], str]] = {
    "reset": ([ReadHead(), Abort()], "upstream_reset"),
    "closed": ([ReadHead(), Close()], "upstream_closed"),
    "closed at once": ([Close()], "upstream_closed or upstream_reset"),
    "closed within the head": ([ReadHead(), Send(b"HTTP/1.1 200 OK\r\nX-A: "), Close()], "upstream_closed"),
    "closed after 1xx": ([ReadHead(), Send(b"HTTP/1.1 103 Early Hints\r\n\r\n"), Close()], "upstream_closed"),
    "garbage": ([ReadHead(), Garbage()], "upstream_garbage"),
    "another protocol": ([ReadHead(), Send(b"SSH-2.0-OpenSSH_9.9\r\n"), Stall()], "upstream_garbage"),
    "TLS": ([ReadHead(), Send(b"\x15\x03\x01\x00\x02\x02\x46"), Stall()], "upstream_garbage"),
    "HTTP/2": ([ReadHead(), Send(b"HTTP/2.0 200 OK\r\n\r\n"), Stall()], "upstream_garbage"),
    "HTTP/0.9": ([ReadHead(), Send(b"HTTP/0.9 200 OK\r\n\r\n"), Stall()], "upstream_garbage"),
    "HTTP/1.2": ([ReadHead(), Send(b"HTTP/1.2 200 OK\r\n\r\n"), Stall()], "upstream_garbage"),
    "no status": ([ReadHead(), Send(b"HTTP/1.1 abc OK\r\n\r\n"), Stall()], "upstream_garbage"),
    "status 99": ([ReadHead(), Send(b"HTTP/1.1 099 OK\r\n\r\n"), Stall()], "upstream_garbage"),
    "status 1000": ([ReadHead(), Send(b"HTTP/1.1 1000 OK\r\n\r\n"), Stall()], "upstream_garbage"),
    "html": ([ReadHead(), Send(b"<html>\r\n\r\n</html>"), Close()], "upstream_garbage"),
    "no colon": ([ReadHead(), Send(b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n"), Stall()], "upstream_garbage"),
    "space in a name": ([ReadHead(), Send(b"HTTP/1.1 200 OK\r\nX A: 1\r\n\r\n"), Stall()], "upstream_garbage"),
    "NUL in a value": ([ReadHead(), Send(b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n"), Stall()], "upstream_garbage"),
    "CR in a value": ([ReadHead(), Send(b"HTTP/1.1 200 OK\r\nX: a\rY: b\r\n\r\n"), Stall()], "upstream_garbage"),
    "NUL in the reason": ([ReadHead(), Send(b"HTTP/1.1 200 O\x00K\r\n\r\n"), Stall()], "upstream_garbage"),
    "CR in the reason": ([ReadHead(), Send(b"HTTP/1.1 200 O\rK\r\n\r\n"), Stall()], "upstream_garbage"),
    "NUL in 1xx": ([ReadHead(), Send(b"HTTP/1.1 103 E\r\nX: a\x00b\r\n\r\n"), Stall()], "upstream_garbage"),
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("fault", BEFORE_THE_HEAD)
async def test_an_upstream_that_breaks_before_its_head(fault: str, method: str) -> None:
    steps, code = BEFORE_THE_HEAD[fault]
    if method == "POST" and ReadHead() in steps:
        steps = [ReadHead(), ReadBody(), *steps[1:]]
    async with ScriptedUpstream(steps) as up, relaying(up) as gate, gate.caller() as c:
        await c.request(method, "/", body=b"" if method == "GET" else b"{}")
        head = await c.read_head()
        if head.status == 103:
            head = await c.read_head()
        given = head.header("x-kgb-error")
        assert (head.status, given is not None and given.decode() in code.split(" or ")) == (502, True), head
        await c.read_body()
        await broke(gate)
        assert len(up.connections) == 1


OVERSIZED = {
    "endless line": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000,
    "long field": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    "many fields": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
    "long reason": b"HTTP/1.1 200 " + b"x" * 200_000 + b"\r\n\r\n",
    "endless hints": b"HTTP/1.1 103 Early Hints\r\nX: " + b"x" * 300_000,
}


@pytest.mark.parametrize("fault", OVERSIZED)
async def test_an_oversized_head_of_an_upstream_is_502(fault: str) -> None:
    async with ScriptedUpstream([ReadHead(), Send(OVERSIZED[fault]), Stall()]) as up:
        async with relaying(up) as gate, gate.caller() as c:
            await c.get("/")
            assert await error_of(c) == (502, "upstream_garbage")
            await broke(gate)


CONTRADICTORY = [
    b"Content-Length: 3\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3",
    b"Content-Length: 3\r\nContent-Length: 4",
    b"Content-Length: 3\r\ncontent-length: 3",
    b"Content-Length: 3, 3",
    b"Content-Length: +3",
    b"Content-Length: -3",
    b"Content-Length: 0x3",
    b"Content-Length: 3 3",
    b"Content-Length: ",
    b"Content-Length: 99999999999999999999999",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding: ",
]


@pytest.mark.parametrize("framing", CONTRADICTORY)
async def test_contradictory_framing_of_an_upstream_is_502(framing: bytes) -> None:
    raw = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    async with ScriptedUpstream([ReadHead(), Send(raw), Stall()]) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        assert await error_of(c) == (502, "upstream_garbage")
        await broke(gate)


@pytest.mark.parametrize("keep", [b"", b"Connection: keep-alive\r\n"])
async def test_a_connection_is_not_reused_after_transfer_encoding_in_an_http_1_0_answer(keep: bytes) -> None:
    """RFC 9112 section 6.1: such framing is faulty, and nothing behind it can be trusted."""
    raw = b"HTTP/1.0 200 OK\r\n" + keep + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    script = in_turn([ReadHead(), Send(raw), Stall()], respond(body=b"next"))
    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        assert (await c.read_response()).body == b"abc"
        await c.get("/")
        assert (await c.read_response()).body == b"next"
        assert len(up.connections) == 2


DIALECTS = {
    "anthropic by header": ("POST", "/x", [(b"anthropic-version", b"2023-06-01")]),
    "anthropic by path": ("POST", "/v1/messages?beta=true", [(b"Authorization", b"Bearer t")]),
    "openai by path": ("POST", "/v1/chat/completions", [(b"Authorization", b"Bearer t")]),
    "openai by credential": ("GET", "/v1/models", [(b"Authorization", b"Bearer t")]),
    "gemini by header": ("GET", "/v1/models", [(b"x-goog-api-key", b"k")]),
    "gemini by path": ("POST", "/v1beta/models/m:generateContent?key=SECRET", []),
    "problem": ("GET", "/anything?key=SECRET", []),
}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_errors_take_the_callers_dialect_with_status_code_hint_and_request_id(dialect: str) -> None:
    method, target, headers = DIALECTS[dialect]
    async with relaying(f"http://127.0.0.1:{free_port()}") as gate, gate.caller() as c:
        await c.request(method, target, headers, b"{}" if method == "POST" else b"")
        response = await c.read_response()
        assert (response.status, response.header("x-kgb-error")) == (502, b"upstream_refused")
        given = response.header("x-kgb-request-id")
        assert given
        name, document = given.decode(), json.loads(response.body)
        hint = "check that it runs"
        match dialect.partition(" ")[0]:
            case "anthropic":
                assert (document["type"], document["error"]["type"]) == ("error", "api_error")
                assert (document["request_id"], document["error"]["code"]) == (name, "upstream_refused")
                assert hint in document["error"]["message"]
                assert response.header("request-id") == given
            case "openai":
                assert (document["error"]["type"], document["error"]["code"]) == ("server_error", "upstream_refused")
                assert hint in document["error"]["message"]
                assert response.header("x-request-id") == given
            case "gemini":
                assert document["error"]["code"] == 502
                assert document["error"]["details"][0]["reason"] == "UPSTREAM_REFUSED"
                assert document["error"]["details"][0]["metadata"]["request_id"] == name
                assert hint in document["error"]["message"]
            case _:
                assert response.header("content-type") == b"application/problem+json"
                assert (document["status"], document["code"]) == (502, "upstream_refused")
                assert (document["request_id"], hint in document["hint"]) == (name, True)
        assert b"SECRET" not in response.body
        await c.request(method, target, headers, b"{}" if method == "POST" else b"")
        assert (await c.read_response()).status == 502  # the caller's connection is none the worse for it


# After the head: what arrived is delivered, then the caller's connection is cut.

BAD_CHUNKS = {
    "no hex": b"zz\r\nabc\r\n",
    "longer than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "no CR": b"3\nabc\n0\n\n",
    "negative": b"-1\r\n",
    "17 digits": b"11111111111111111\r\n",
    "0x": b"0x3\r\nabc\r\n",
    "empty line": b"\r\n",
    "endless extension": b"3;" + b"x" * 100_000,
    "bare LF in a trailer": b"0\r\nX-A: 1\nX-B: 2\r\n\r\n",
    "endless trailers": b"0\r\n" + b"X-A: 1\r\n" * 20_000,
}


@pytest.mark.parametrize("together", [True, False], ids=["in one write", "apart"])
@pytest.mark.parametrize("fault", BAD_CHUNKS)
async def test_trap_bad_chunk_in_mid_body_never_hangs(fault: str, together: bool) -> None:
    """And loses nothing that came before it, in the same write or earlier."""
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        good = CHUNKED_HEAD + chunk_bytes(b"hello ") + chunk_bytes(b"world")
        if together:
            await conn.send(good + BAD_CHUNKS[fault])
        else:
            await conn.send(good)
            await points.wait("the good was read")
            await conn.send(BAD_CHUNKS[fault])
        await conn.closed(SOON)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_head()
        assert (await c.read_until(b"world"))[:11] == b"hello world"
        points.reach("the good was read")
        assert (await cut_off(c)).startswith(b"hello world")
        await broke(gate)
        assert gate.records.all[0].response_body.startswith(b"hello world")
        assert gate.records.all[0].exchange.error_code == "upstream_broke"


AFTER_THE_HEAD = {
    "chunked": (CHUNKED_HEAD, chunk_bytes(b"some bytes")),
    "within a chunk": (CHUNKED_HEAD, b"ff\r\nsome bytes"),
    "length": (LENGTH_HEAD, b"some bytes"),
    "before any byte of a length": (LENGTH_HEAD, b""),
    "before any chunk": (CHUNKED_HEAD, b""),
}


@pytest.mark.parametrize("fault", AFTER_THE_HEAD)
@pytest.mark.parametrize("end", [Close(), Abort()], ids=["FIN", "RST"])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_trap_a_broken_answer_is_visibly_broken(fault: str, end: Step, version: bytes) -> None:
    """A returned prepared response would end cleanly on the wire: it must be cut instead, after delivery."""
    head, body = AFTER_THE_HEAD[fault]
    points = Rendezvous()
    steps = [ReadHead(), Send(head + body), Wait(points.point("read")), end]
    async with ScriptedUpstream(steps) as up, relaying(up) as gate, gate.caller() as c:
        await c.send(b"GET / %b\r\nHost: %b\r\n\r\n" % (version, gate.host))
        await c.read_head()
        payload = b"some bytes" if body else b""
        received = await c.read_until(payload) if payload else b""
        assert received == payload
        points.reach("read")
        assert await cut_off(c) == payload
        await broke(gate)
        assert gate.records.all[0].response_body == payload


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
async def test_trap_a_reset_in_a_close_delimited_body_never_looks_like_a_clean_end(version: bytes) -> None:
    """To an HTTP/1.0 caller a FIN would be the end of the body: it must see RST, behind the delivered bytes."""
    points = Rendezvous()
    steps = [ReadHead(), Send(CLOSE_HEAD + b"some bytes"), Wait(points.point("read")), Abort()]
    async with ScriptedUpstream(steps) as up, relaying(up) as gate, gate.caller() as c:
        await c.send(b"GET / %b\r\nHost: %b\r\n\r\n" % (version, gate.host))
        await c.read_head()
        assert await c.read_some() == b"some bytes"
        points.reach("read")
        assert await cut_off(c) == b"some bytes"
        assert c.peer.reset or version == b"HTTP/1.1"
        await broke(gate)


@pytest.mark.parametrize("head", [CHUNKED_HEAD, CLOSE_HEAD], ids=["chunked", "until close"])
async def test_an_http_1_0_caller_sees_a_reset_behind_every_byte_that_had_arrived(head: bytes) -> None:
    """Megabytes are on their way to the caller when the upstream breaks: all of them arrive, then RST."""
    body = os.urandom(3_000_000)
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send(head + (chunk_bytes(body) if head is CHUNKED_HEAD else body))
        await points.wait("all arrived")
        conn.abort()

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller(receive_buffer=256 * 1024) as c:
        await c.send(b"GET / HTTP/1.0\r\nHost: %b\r\n\r\n" % gate.host)
        (recorder,) = await gate.records.begun()
        reading = asyncio.create_task(cut_off_of(c))
        await gate.records.signal.until(lambda: recorder.exchange.response_size == len(body), lambda: "all bytes")
        points.reach("all arrived")
        assert await reading == body
        assert c.peer.reset
        await broke(gate)


async def cut_off_of(c: RawClient) -> bytes:
    await c.read_head()
    return await cut_off(c)


@pytest.mark.parametrize("end", [b"zz\r\n", b""], ids=["bad chunk", "FIN"])
async def test_trap_buffered_bytes_are_delivered_before_the_break(end: bytes) -> None:
    """The caller reads slowly: what waits for it in our memory when the upstream breaks must not be lost."""
    body = os.urandom(8_000_000)

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send(CHUNKED_HEAD + chunk_bytes(body) + end)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller(receive_buffer=32 * 1024) as c:
        await c.get("/")
        await c.read_head()
        assert await cut_off(c) == body
        await broke(gate)


async def test_a_cut_stream_leaves_its_neighbours_alone() -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        await conn.send(CHUNKED_HEAD + chunk_bytes(b"one"))
        await points.wait("both stream")
        if request.target == b"/broken":
            await conn.send(b"zz\r\n")
        else:
            await points.wait("the other is cut")
            await conn.chunk(b"two")
            await conn.end_chunks()

    async with (
        ScriptedUpstream(script) as up,
        relaying(up) as gate,
        gate.caller() as broken,
        gate.caller() as whole,
    ):
        await broken.get("/broken")
        await whole.get("/whole")
        for c in (broken, whole):
            await c.read_head()
            assert await c.read_some() == b"one"
        points.reach("both stream")
        assert await cut_off(broken) == b"one"
        points.reach("the other is cut")
        assert await whole.read_body() == b"two"


# Connections: a fault of one exchange never reaches the next.


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_trap_extra_bytes_behind_an_answer_are_never_the_next_answer(answer: bytes) -> None:
    extra = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"

    async def lying(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send(answer + extra)
        await conn.closed(SOON)

    async with ScriptedUpstream(in_turn(lying, respond(body=b"good"))) as up, relaying(up) as gate:
        async with gate.caller() as c:
            await c.get("/")
            first = await c.read_response()
            assert first.body in (b"abc", b"")
            await c.get("/")
            assert (await c.read_response()).body == b"good"
            assert len(up.connections) == 2
            assert await gate.records.outcomes(2) == [Outcome.COMPLETED] * 2


@pytest.mark.parametrize("seen", [True, False], ids=["seen by the loop", "perhaps not yet seen"])
@pytest.mark.parametrize(
    "unasked",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL", b"HTTP/1.1 408 Request Timeout\r\n\r\n", b"x", b"\r\n"],
)
async def test_trap_unasked_bytes_on_an_idle_connection_never_reach_the_next_caller(unasked: bytes, seen: bool) -> None:
    points = Rendezvous()

    async def lying(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_response(body=b"first")
        await points.wait("idle")
        await conn.send(unasked)
        points.reach("poisoned")
        await conn.closed(SOON)

    script = in_turn(lying, respond(body=b"good"))
    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as a, gate.caller() as b:
        await a.get("/")
        assert (await a.read_response()).body == b"first"
        await gate.settled(1)
        points.reach("idle")
        await points.wait("poisoned")
        if seen:
            await gate.settled(0)
        await b.get("/")
        assert (await b.read_response()).body == b"good"
        assert len(up.connections) == 2


@pytest.mark.parametrize("end", [Close(), Abort()], ids=["FIN", "RST"])
async def test_trap_a_stale_idle_connection_is_never_lent(end: Step) -> None:
    """The upstream closed it while it was idle: no caller may pay for that, and POST is not sent twice either."""
    idle = [asyncio.Event() for _ in range(20)]

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        await request.body()
        await conn.send_response()
        await idle[conn.number].wait()
        await end.run(conn)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        for event in idle:
            await c.post("/", body=b"once")
            assert (await c.read_response()).status == 200
            event.set()
            for _ in range(3):  # one runs the script, one closes the transport, and with it goes the socket
                await asyncio.sleep(0)
        assert len(up.requests) == len(up.connections) == len(idle)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("end", [Close(), Abort()], ids=["FIN", "RST"])
@pytest.mark.parametrize("kept_alive", [False, True], ids=["new connection", "reused connection"])
async def test_trap_a_request_is_never_sent_twice(method: str, end: Step, kept_alive: bool) -> None:
    async def script(conn: UpstreamConnection) -> None:
        if kept_alive:
            await conn.request()
            await conn.send_response()
        await (await conn.request()).body()
        await end.run(conn)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        if kept_alive:
            await c.get("/before")
            await c.read_response()
        await c.request(method, "/once", body=b"" if method in ("GET", "HEAD") else b"{}")
        assert (await c.read_response()).status == 502
        assert [request.target for request in up.requests].count(b"/once") == 1
        assert len(up.connections) == gate.pool.dialled == 1


@pytest.mark.parametrize("status", [413, 400, 200])
async def test_an_early_answer_survives_that_its_upstream_closes_without_reading_the_upload(status: int) -> None:
    """The kernel makes a close with unread bytes an RST: our next write fails while the answer waits to be read."""

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_response(status, body=b"too much")
        conn.close()

    async with ScriptedUpstream(script) as up, relaying(up) as gate:
        for _ in range(20):
            async with gate.caller() as c:
                sending = asyncio.create_task(c.post("/", body=bytes(20_000_000)))
                response = await c.read_response()
                assert (response.status, response.body) == (status, b"too much")
                c.abort()
                await asyncio.gather(sending, return_exceptions=True)


async def test_an_upstream_that_resets_in_mid_upload() -> None:
    async with ScriptedUpstream([ReadHead(), Abort()]) as up, relaying(up) as gate, gate.caller() as c:
        await c.post("/", [CHUNKED], chunk_bytes(b"first"))
        response = await c.read_response()
        assert (response.status, response.header("connection")) == (502, b"close")
        await broke(gate)


async def test_the_queue_beyond_the_limit_of_connections_is_bounded_and_counted() -> None:
    points = Rendezvous()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await points.wait("go on")
        await conn.send_response(body=request.target)

    limits = PoolLimits(connections=1, queue=1)
    async with ScriptedUpstream(script) as up, relaying(up, limits=limits) as gate:
        async with gate.caller() as a, gate.caller() as b, gate.caller() as c:
            await a.get("/a")
            await up.wait_for_requests(1)
            await b.get("/b")
            await gate.records.begun(2)
            await c.get("/c")
            response = await c.read_response()
            assert (response.status, response.header("retry-after")) == (503, b"1")
            assert (gate.pool.waiting, gate.pool.refused) == (1, 1)
            points.reach("go on")
            assert (await a.read_response()).body == b"/a"
            assert (await b.read_response()).body == b"/b"
            await c.get("/c")
            assert (await c.read_response()).body == b"/c"
            outcomes = await gate.records.outcomes(4)
            assert outcomes == [Outcome.COMPLETED, Outcome.COMPLETED, Outcome.REFUSED, Outcome.COMPLETED]


async def test_waiting_in_the_queue_has_an_end() -> None:
    limits = PoolLimits(connections=1, queue_timeout=0.05)
    async with ScriptedUpstream([ReadHead(), Stall()]) as up, relaying(up, limits=limits) as gate:
        async with gate.caller() as a, gate.caller() as b:
            await a.get("/a")
            await up.wait_for_requests(1)
            await b.get("/b")
            assert await error_of(b) == (503, "upstream_queue_timeout")
            assert (gate.pool.waiting, gate.pool.open) == (0, 1)


# Logs: what a fault quotes must not be what passed.


@pytest.mark.parametrize(
    "answer",
    [
        b"SECRET garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-SECRET\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: SECRET\x00\r\n\r\n",
        CHUNKED_HEAD + b"SECRET\r\n",
    ],
)
async def test_trap_the_error_log_quotes_no_upstream_bytes(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with ScriptedUpstream([ReadHead(), Send(answer), Stall()]) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/?q=SECRET", [(b"Authorization", b"Bearer SECRET")])
        raw, _ = await c.read_until_close() if answer.startswith(CHUNKED_HEAD) else ((await c.read_response()).body, 0)
        assert b"SECRET" not in raw
        await broke(gate)
    assert "SECRET" not in caplog.text
    assert not any("SECRET" in str(record.exc_info) for record in caplog.records)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"SECRET\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nSECRET header\r\n\r\n",
        b"GET /?SECRET#x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: SECRET\r\n\r\n",
    ],
)
async def test_trap_the_error_log_quotes_no_offending_request(
    request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as c:
        await c.send(request_bytes)
        response = await c.read_response()
        assert response.status == 400
        assert b"SECRET" not in response.body
        assert up.connections == []
    assert "SECRET" not in caplog.text

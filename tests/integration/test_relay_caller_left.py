"""A caller that goes away takes its upstream request with it, within a second, wherever the exchange stands.

The bound is a guard: ``closed(SOON)`` raises TimeoutError in the upstream's script where the gateway holds on.
"""

import asyncio
import os
from collections.abc import Callable

import pytest
from aiohttp import web

from fiedler_proxy.exchange import Outcome
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import (
    BrokenRequest,
    RawClient,
    ReceivedRequest,
    Rendezvous,
    ScriptedUpstream,
    UpstreamConnection,
    chunk_bytes,
    in_turn,
    respond,
    serve_forever,
    sse,
)
from fiedler_proxy.upstream import PoolLimits

from .helpers import SOON, Serving, becomes, deaf_port, relaying

BOTH_LOOPS = True

CHUNKED = (b"Transfer-Encoding", b"chunked")
LAST = b"0\r\n\r\n"
PIECE = os.urandom(1024 * 1024)

Leave = Callable[[RawClient], None]


def fin(caller: RawClient) -> None:
    caller.close()


def rst(caller: RawClient) -> None:
    caller.abort()


leaving = pytest.mark.parametrize("leave", [fin, rst])


async def left_nothing_behind(gate: Serving) -> None:
    """The one exchange ended once, as caller_left, and its connection serves nobody else."""
    async with asyncio.timeout(SOON):
        assert await gate.records.outcome() is Outcome.CALLER_LEFT
    await becomes(lambda: gate.pool.open == 0, "the upstream connection to go")
    assert (gate.pool.idle, gate.pool.waiting, len(gate.gateway.live)) == (0, 0, 0)


@leaving
@pytest.mark.parametrize("body", [b"", b"{}"])
async def test_trap_handler_cancellation_is_on_a_caller_leaves_before_the_first_byte(leave: Leave, body: bytes) -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await (await conn.request()).body()
        points.reach("the model thinks")
        await conn.closed(SOON)
        points.reach("cancelled")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.post("/v1/messages", body=body)
        await points.wait("the model thinks")
        leave(c)
        await points.wait("cancelled")
        await left_nothing_behind(gate)
        (recorder,) = gate.records.all
        assert recorder.calls[-1] == "closed"
        assert "response_head" not in recorder.calls


async def test_trap_handler_cancellation_is_on_whatever_the_runner_says() -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        points.reach("the model thinks")
        await conn.closed(SOON)
        points.reach("cancelled")

    async with ScriptedUpstream(script) as up, relaying(up, handler_cancellation=False) as gate, gate.caller() as c:
        await c.get("/")
        await points.wait("the model thinks")
        c.close()
        await points.wait("cancelled")
        await left_nothing_behind(gate)


@leaving
@pytest.mark.parametrize("headers", [[CHUNKED], [(b"Content-Length", b"1000")], []], ids=["chunked", "length", "close"])
async def test_a_caller_leaves_in_mid_stream(leave: Leave, headers: list[tuple[bytes, bytes]]) -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, headers)
        await conn.send(chunk_bytes(b"first") if CHUNKED in headers else b"first")
        await conn.closed(SOON)
        points.reach("cancelled")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_head()
        assert await c.read_some() == b"first"
        leave(c)
        await points.wait("cancelled")
        await left_nothing_behind(gate)
        assert gate.records.all[0].response_body == b"first"


@leaving
@pytest.mark.parametrize("framing", [CHUNKED, (b"Content-Length", b"1000")], ids=["chunked", "length"])
async def test_a_caller_leaves_in_mid_upload(leave: Leave, framing: tuple[bytes, bytes]) -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        assert await request.read_some() == b"first"
        points.reach("first")
        await conn.closed(SOON)
        with pytest.raises(BrokenRequest):  # above all no last chunk: half an upload must not look whole
            await request.body()
        points.reach("cancelled")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.post("/", [framing])
        await c.send(chunk_bytes(b"first") if framing is CHUNKED else b"first")
        await points.wait("first")
        leave(c)
        await points.wait("cancelled")
        await left_nothing_behind(gate)
        assert gate.records.all[0].request_body == b"first"


@leaving
async def test_a_caller_leaves_while_it_waits_for_100(leave: Leave) -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        points.reach("head")
        await conn.closed(SOON)
        points.reach("cancelled")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.request("POST", "/", [(b"Expect", b"100-continue"), (b"Content-Length", b"3")])
        await points.wait("head")
        leave(c)
        await points.wait("cancelled")
        await left_nothing_behind(gate)


@leaving
async def test_a_caller_leaves_in_an_upload_that_the_upstream_holds_back(leave: Leave) -> None:
    """Its connection is not read at that time: the loop hears nothing, and the kernel has to be asked."""
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.pause_reading()
        points.reach("stalled")
        await points.wait("the exchange has ended")
        await conn.resume_reading()
        await conn.closed(SOON)
        points.reach("cancelled")

    async with ScriptedUpstream(script, receive_buffer=32 * 1024) as up, relaying(up) as gate, gate.caller() as c:
        await c.post("/", [(b"Content-Length", b"%d" % (64 * len(PIECE)))])
        await points.wait("stalled")
        transport = c.peer.transport
        (recorder,), (connection,) = gate.records.all, gate.upstream_connections
        while recorder.transport.is_reading() or not connection.writing_paused:
            transport.write(PIECE[:65536] if transport.get_write_buffer_size() < len(PIECE) else b"")
            await asyncio.sleep(0)
        if leave is fin:
            transport.abort()  # drops what the kernel has not taken yet, then FIN: a program that ended
        leave(c)
        await left_nothing_behind(gate)
        points.reach("the exchange has ended")
        await points.wait("cancelled")


@leaving
async def test_a_caller_leaves_that_had_stopped_reading(leave: Leave) -> None:
    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [CHUNKED])
        while True:
            await conn.send(chunk_bytes(PIECE))

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller(receive_buffer=32 * 1024) as c:
        await c.get("/")
        await c.read_head()
        c.stop_reading()
        (connection,) = gate.upstream_connections
        await becomes(lambda: connection.reading_paused, "the upstream to be paused")
        leave(c)
        await left_nothing_behind(gate)
        await up.connections[0].closed(SOON)


@leaving
async def test_a_caller_leaves_while_the_upstream_is_being_dialled(leave: Leave) -> None:
    with deaf_port() as port:
        async with relaying(f"http://127.0.0.1:{port}") as gate, gate.caller() as c:
            await c.get("/")
            await becomes(lambda: gate.pool.open == 1, "the dial to begin")
            leave(c)
            await left_nothing_behind(gate)


@leaving
async def test_a_caller_leaves_the_queue_and_disturbs_nobody(leave: Leave) -> None:
    points = Rendezvous()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        if request.target == b"/first":
            await points.wait("the second has left")
        await conn.send_response(body=request.target)

    limits = PoolLimits(connections=1)
    async with (
        ScriptedUpstream(script) as up,
        relaying(up, limits=limits) as gate,
        gate.caller() as first,
        gate.caller() as second,
        gate.caller() as third,
    ):
        await first.get("/first")
        await up.wait_for_requests(1)
        await second.get("/second")
        await becomes(lambda: gate.pool.waiting == 1, "the second to queue")
        await third.get("/third")
        await becomes(lambda: gate.pool.waiting == 2, "the third to queue")
        leave(second)
        await becomes(lambda: gate.pool.waiting == 1, "the second to leave the queue")
        points.reach("the second has left")
        assert (await first.read_response()).body == b"/first"
        assert (await third.read_response()).body == b"/third"
        assert await gate.records.outcomes(3) == [Outcome.COMPLETED, Outcome.CALLER_LEFT, Outcome.COMPLETED]
        assert [request.target for request in up.requests] == [b"/first", b"/third"]
        assert gate.pool.dialled == 1


async def test_a_turn_granted_to_a_caller_that_is_just_leaving_is_handed_on() -> None:
    """The connection comes free in the very moment in which the one whose turn it is goes away."""
    points = Rendezvous()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        if request.target == b"/first":
            await points.wait("go on")
        await conn.send_response(body=request.target)

    async with (
        ScriptedUpstream(script) as up,
        relaying(up, limits=PoolLimits(connections=1)) as gate,
        gate.caller() as first,
        gate.caller() as second,
        gate.caller() as third,
    ):
        await first.get("/first")
        await up.wait_for_requests(1)
        for number, caller in enumerate((second, third), 1):
            await caller.get(f"/{number}")
            await becomes(lambda wanted=number: gate.pool.waiting == wanted, "the queue to grow")  # type: ignore[misc]
        points.reach("go on")
        second.abort()
        assert (await first.read_response()).body == b"/first"
        assert (await third.read_response()).body == b"/2"
        outcomes = await gate.records.outcomes(3)
        assert (outcomes[0], outcomes[2]) == (Outcome.COMPLETED, Outcome.COMPLETED)


async def test_trap_a_write_to_a_caller_who_has_gone_never_blames_the_upstream() -> None:
    """Callers leave at any point of a flood: never upstream_broke, and the next caller is served."""

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, [CHUNKED])
        while request.target == b"/flood":
            await conn.chunk(PIECE[:10_000])
        await conn.end_chunks()

    async with ScriptedUpstream(script) as up, relaying(up) as gate:
        for turn in range(20):
            async with gate.caller() as c:
                await c.get("/flood")
                await c.read_head()
                while len(c.peer.unread) < turn * 5_000:
                    await c.peer.fill()
                (fin if turn % 2 else rst)(c)
        assert await gate.records.outcomes(20) == [Outcome.CALLER_LEFT] * 20
        assert all(recorder.exchange.error_code in ("", "caller_left") for recorder in gate.records.all)
        async with gate.caller() as c:
            await c.get("/")
            assert (await c.read_response()).status == 200


async def test_a_caller_that_closes_after_done_and_before_the_last_chunk_has_all_its_bytes_on_record() -> None:
    points = Rendezvous()
    body = sse({"a": 1}, "[DONE]")

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [CHUNKED])
        await conn.chunk(body)
        await points.wait("the caller has left")
        await conn.closed(SOON)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_head()
        await c.read_until(b"[DONE]\n\n")
        c.close()
        points.reach("the caller has left")
        await left_nothing_behind(gate)
        assert gate.records.all[0].response_body == body


@leaving
async def test_a_caller_that_leaves_after_its_answer_was_whole_has_completed(leave: Leave) -> None:
    async with ScriptedUpstream(respond(body=b"x")) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_response()
        leave(c)
        assert await gate.records.outcome() is Outcome.COMPLETED
        await gate.settled(1)
        async with gate.caller() as d:
            await d.get("/")
            assert (await d.read_response()).body == b"x"
        assert len(up.connections) == 1


@leaving
async def test_a_connection_left_in_mid_stream_is_not_reused(leave: Leave) -> None:
    points = Rendezvous()

    async def abandoned(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [CHUNKED])
        await conn.chunk(b"secret of the first caller")
        await conn.closed(SOON)
        points.reach("cancelled")

    script = in_turn(abandoned, respond(body=b"for the second"))
    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as a, gate.caller() as b:
        await a.get("/")
        await a.read_head()
        leave(a)
        await points.wait("cancelled")
        await b.get("/")
        assert (await b.read_response()).body == b"for the second"
        assert len(up.connections) == 2


@pytest.mark.parametrize("where", ["before the relay", "behind the relay"])
async def test_trap_cancellation_may_come_at_any_await_and_still_closes_once(where: str) -> None:
    points = Rendezvous()

    @web.middleware
    async def slow(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await handler(request) if where == "behind the relay" else None
            points.reach("in the link")
            await asyncio.Event().wait()
            assert response is not None
            return response
        finally:
            points.reach("cancelled")

    async with ScriptedUpstream(respond(body=b"x")) as up, relaying(up, slow) as gate, gate.caller() as c:
        await c.get("/")
        await points.wait("in the link")
        c.abort()
        await points.wait("cancelled")
        assert await gate.records.outcome() is Outcome.CALLER_LEFT


async def test_a_caller_that_leaves_between_its_requests_is_no_exchange() -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate:
        async with gate.caller() as c:
            await c.send(b"GET / HTTP/1.1\r\nHost: 127")
            c.abort()
        async with gate.caller() as c:
            await c.get("/")
            await c.read_response()
        assert await gate.records.outcomes(1) == [Outcome.COMPLETED]
        assert len(up.requests) == 1


@leaving
async def test_a_caller_leaves_while_a_link_reads_its_body(leave: Leave, caplog: pytest.LogCaptureFixture) -> None:
    @web.middleware
    async def reading(request: web.Request, handler: Handler) -> web.StreamResponse:
        await request.read()
        return await handler(request)

    async with ScriptedUpstream() as up, relaying(up, reading) as gate, gate.caller() as c:
        await c.post("/", [CHUNKED], chunk_bytes(b"first"))
        await gate.records.begun()
        leave(c)
        await left_nothing_behind(gate)
        assert up.connections == []
    assert caplog.records == []


@leaving
async def test_a_caller_leaves_while_a_link_streams_its_own_answer(
    leave: Leave, caplog: pytest.LogCaptureFixture
) -> None:
    @web.middleware
    async def streaming(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(PIECE)

    async with ScriptedUpstream() as up, relaying(up, streaming) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_head()
        await c.read_some()
        leave(c)
        await left_nothing_behind(gate)
    assert caplog.records == []

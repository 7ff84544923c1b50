"""The testing kit: what it shows must be what was on the wire, else every test built on it is worth nothing."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector, web

from fiedler_proxy.testing import (
    Abort,
    BrokenRequest,
    BrokenResponse,
    Close,
    Garbage,
    MalformedMessage,
    PeerLeft,
    RawClient,
    ReadBody,
    ReadHead,
    ReceivedRequest,
    Rendezvous,
    ScriptedUpstream,
    Send,
    Stall,
    StreamStyle,
    UpstreamConnection,
    Wait,
    chunk_bytes,
    head_bytes,
    in_turn,
    load_stream,
    respond,
    serve_forever,
    sse,
    start_app,
)
from fiedler_proxy.testing.peer import READ_AHEAD
from fiedler_proxy.testing.streams import style_of

STREAMS = Path(__file__).resolve().parents[2] / "shared" / "streams"


@pytest.fixture
async def echo() -> AsyncIterator[ScriptedUpstream]:
    """An upstream that returns the body of each request."""

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_response(200, [(b"X-Number", b"%d" % len(conn.requests))], await request.body())

    async with ScriptedUpstream(script) as up:
        yield up


class TestRequests:
    async def test_a_request_is_recorded_byte_for_byte(self) -> None:
        raw = b"PUT /a%2F//b?%20&q HTTP/1.1\r\nHost: x\r\nX-Odd:\t caf\xe9 \r\nx-odd: 2\r\nContent-Length: 3\r\n\r\n"
        async with ScriptedUpstream() as up, RawClient(up.host, up.port) as c:
            await c.send(raw + b"abc")
            await c.read_response()
            request = up.requests[0]
            assert request.raw_head == raw
            assert (request.method, request.target, request.version) == ("PUT", b"/a%2F//b?%20&q", (1, 1))
            assert request.headers[1:3] == [(b"X-Odd", b"caf\xe9"), (b"x-odd", b"2")]
            assert request.all("X-ODD") == [b"caf\xe9", b"2"]
            assert request.header("content-length") == b"3"
            assert request.header("missing") is None
            assert request.without("x-odd", b"host") == [(b"Content-Length", b"3")]
            assert await request.body() == b"abc"
            assert request.complete
            with pytest.raises(AssertionError, match="came 2 times"):
                request.header("x-odd")

    async def test_the_head_is_there_before_the_body(self) -> None:
        points = Rendezvous()

        async def script(conn: UpstreamConnection) -> None:
            request = await conn.request()
            assert not request.complete
            assert await request.read_some() == b"first"
            points.reach("first arrived")
            assert await request.body() == b"firstsecond"
            assert request.complete
            await conn.send_response()

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.send(head_bytes(b"POST / HTTP/1.1", [("Host", "x"), ("Content-Length", "11")]) + b"first")
            await points.wait("first arrived")
            await c.send(b"second")
            assert (await c.read_response()).status == 200

    async def test_a_chunked_request_with_trailers(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            request = await conn.request()
            assert await request.read_chunk() == b"one"
            assert await request.read_chunk() == b"two!"
            assert await request.read_chunk() == b""
            assert request.trailers == [(b"X-Sum", b"7")]
            assert await request.body() == b"onetwo!"
            await conn.send_response()

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.post("/", [("Transfer-Encoding", "chunked")])
            await c.send(chunk_bytes(b"one") + chunk_bytes(b"two!", b";x=y") + b"0\r\nX-Sum: 7\r\n\r\n")
            assert (await c.read_response()).status == 200

    async def test_bytes_of_large_bodies_need_not_be_kept(self) -> None:
        seen = []

        @serve_forever
        async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            size = 0
            while data := await request.read_some(keep=False):
                size += len(data)
            seen.append((size, len(request.arrived)))
            await conn.send_response()

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.post("/", body=bytes(3_000_000))
            await c.read_response()
        assert seen == [(3_000_000, 0)]

    @pytest.mark.parametrize(
        ("raw", "where"),
        [
            (b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", "not a header line"),
            (b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", "not a header line"),
            (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", "not a header line"),
            (b"GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n", "not a header line"),
            (b"GET /\r\n\r\n", "not a request line"),
            (b"GET /a b HTTP/1.1\r\n\r\n", "not a request line"),
            (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", "ambiguous framing"),
            (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "ambiguous framing"),
            (b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", "bad content-length"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "unknown transfer coding"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "not a chunk-size line"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", "goes on after its size"),
        ],
    )
    async def test_what_no_gateway_may_send_fails_the_test(self, raw: bytes, where: str) -> None:
        with pytest.raises(MalformedMessage, match=where):
            async with ScriptedUpstream() as up, RawClient(up.host, up.port) as c:
                await c.send(raw)
                await c.closed()

    async def test_a_request_cut_in_its_body(self) -> None:
        points = Rendezvous()

        async def script(conn: UpstreamConnection) -> None:
            request = await conn.request()
            with pytest.raises(BrokenRequest) as broken:
                await request.body()
            assert (broken.value.received, broken.value.reset) == (b"ab", False)
            assert not request.complete
            points.reach("seen")

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
            c.close()
            await points.wait("seen")

    async def test_what_follows_a_request_is_visible(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await (await conn.request()).body()
            assert conn.unread == b"GET /smuggled"
            await conn.send_response()

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\naGET /smuggled")
            await c.read_response()
            assert up.connections[0].received_size == 61


class TestScripts:
    async def test_keep_alive_serves_several_requests_on_one_connection(self, echo: ScriptedUpstream) -> None:
        async with RawClient(echo.host, echo.port) as c:
            for number, body in enumerate((b"a", b"", b"c" * 100_000), start=1):
                await c.post("/", body=body)
                response = await c.read_response()
                assert response.body == body
                assert response.header("x-number") == b"%d" % number
        assert len(echo.connections) == 1
        assert len(echo.requests) == 3

    async def test_an_unread_body_does_not_spill_into_the_next_request(self) -> None:
        @serve_forever
        async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
            await conn.send_response(200, body=request.target)

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.post("/one", body=b"x" * 200_000)
            assert (await c.read_response()).body == b"/one"
            await c.get("/two")
            assert (await c.read_response()).body == b"/two"

    async def test_a_fixed_response(self) -> None:
        async with ScriptedUpstream(respond(418, [("X-A", "1"), ("X-A", "2")], b"tea", chunked=True)) as up:
            async with RawClient(up.host, up.port) as c:
                await c.get("/")
                response = await c.read_response()
        assert (response.status, response.all("x-a"), response.body) == (418, [b"1", b"2"], b"tea")
        assert response.reason == b"I'm a Teapot"

    async def test_a_list_of_steps(self) -> None:
        points = Rendezvous()
        steps = [
            ReadHead(),
            ReadBody(),
            Send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab"),
            Wait(points.point("half was read")),
            Send(b"cd"),
            Close(),
        ]
        async with ScriptedUpstream(steps) as up, RawClient(up.host, up.port) as c:
            await c.post("/", body=b"hello")
            await c.read_head()
            assert await c.read_some() == b"ab"
            points.reach("half was read")
            assert await c.read_body() == b"cd"
            assert await c.read_until_close() == (b"", False)
            assert up.requests[0].complete

    async def test_a_script_for_each_connection(self) -> None:
        async with ScriptedUpstream(in_turn([ReadHead(), Close()], respond(200), respond(503))) as up:
            statuses: list[int | bytes] = []
            for _ in range(4):
                async with RawClient(up.host, up.port) as c:
                    await c.get("/")
                    try:
                        statuses.append((await c.read_response()).status)
                    except BrokenResponse as broken:
                        statuses.append(broken.received)
        assert statuses == [b"", 200, 503, 503]

    async def test_the_end_of_a_script_closes_its_connection(self) -> None:
        async with ScriptedUpstream([ReadHead()]) as up, RawClient(up.host, up.port) as c:
            await c.get("/")
            assert await c.read_until_close() == (b"", False)

    async def test_garbage(self) -> None:
        async with ScriptedUpstream([ReadHead(), Garbage(), Stall()]) as up, RawClient(up.host, up.port) as c:
            await c.get("/")
            with pytest.raises(MalformedMessage):
                await c.read_head()

    async def test_a_stalled_script_ends_with_the_server(self) -> None:
        async with ScriptedUpstream([Stall()]) as up, RawClient(up.host, up.port) as c:
            await up.wait_for_connections(1)
            await up.stop()
            assert await c.closed() is True

    async def test_failures_of_scripts_are_raised_at_exit(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await conn.request()
            raise ValueError("scripted")

        async def run(connections: int, *, ignore_errors: bool = False) -> None:
            async with ScriptedUpstream(script, ignore_errors=ignore_errors) as up:
                for _ in range(connections):
                    async with RawClient(up.host, up.port) as c:
                        await c.get("/")
                        await c.closed()

        with pytest.raises(ValueError, match="scripted"):
            await run(1)
        with pytest.raises(ExceptionGroup, match="scripts failed") as several:
            await run(2)
        assert len(several.value.exceptions) == 2
        await run(1, ignore_errors=True)

    async def test_a_failure_of_the_test_itself_comes_first(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            raise ValueError("scripted")

        with pytest.raises(KeyError) as failure:
            async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
                await c.closed()
                raise KeyError("the test")
        assert "ValueError('scripted')" in failure.value.__notes__[0]

    async def test_waiting_ends_when_a_script_failed(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            raise ValueError("scripted")

        with pytest.raises(AssertionError, match=r"before 2 requests came.*scripted"):
            async with ScriptedUpstream(script) as up, RawClient(up.host, up.port):
                await up.wait_for_requests(2)

    async def test_waiting_has_an_end(self) -> None:
        async with ScriptedUpstream(guard=0.01) as up:
            with pytest.raises(TimeoutError, match="1 connections; there were 0"):
                await up.wait_for_connections(1)

    async def test_no_task_is_left_behind(self) -> None:
        before = asyncio.all_tasks()
        async with ScriptedUpstream([Stall()]) as up, RawClient(up.host, up.port), RawClient(up.host, up.port):
            await up.wait_for_connections(2)
            assert len(asyncio.all_tasks()) == len(before) + 2
        assert asyncio.all_tasks() == before

    async def test_nobody_listens_afterwards(self) -> None:
        async with ScriptedUpstream() as up:
            port = up.port
        with pytest.raises(ConnectionRefusedError):
            await RawClient("127.0.0.1", port).__aenter__()


class TestEnds:
    """FIN and RST are told apart on both sides, whatever was sent before."""

    @pytest.mark.parametrize(("reset", "end"), [(False, Close()), (True, Abort())])
    @pytest.mark.parametrize(
        "framing", [b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n"], ids=["length", "chunked"]
    )
    async def test_a_response_cut_in_its_body(self, framing: bytes, end: Close | Abort, reset: bool) -> None:
        points = Rendezvous()
        body = b"3\r\nabc\r\n" if b"chunked" in framing else b"abc"
        head = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n"
        steps = [ReadHead(), Send(head + body), Wait(points.point("read")), end]
        async with ScriptedUpstream(steps) as up, RawClient(up.host, up.port) as c:
            await c.get("/")
            await c.read_head()
            assert await c.read_some() == b"abc"
            points.reach("read")
            with pytest.raises(BrokenResponse) as broken:
                await c.read_body()
            assert (broken.value.received, broken.value.reset) == (b"abc", reset)

    async def test_a_body_that_ends_with_its_connection_is_whole_after_fin_and_broken_after_rst(self) -> None:
        points = Rendezvous()
        head = Send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        fin = [ReadHead(), head, Close()]
        rst = [ReadHead(), head, Wait(points.point("read")), Abort()]
        async with ScriptedUpstream(in_turn(fin, rst)) as up:
            async with RawClient(up.host, up.port) as c:
                await c.get("/")
                assert (await c.read_response()).body == b"abc"
            async with RawClient(up.host, up.port) as c:
                await c.get("/")
                await c.read_head()
                assert await c.read_some() == b"abc"
                points.reach("read")
                with pytest.raises(BrokenResponse) as broken:
                    await c.read_body()
                assert broken.value.reset

    @pytest.mark.parametrize(("reset", "end"), [(False, Close()), (True, Abort())])
    async def test_before_and_within_the_head(self, end: Close | Abort, reset: bool) -> None:
        async with ScriptedUpstream(in_turn([ReadHead(), end], [ReadHead(), Send(b"HTTP/1.1 2"), end])) as up:
            for sent in (b"", b"HTTP/1.1 2"):
                async with RawClient(up.host, up.port) as c:
                    await c.get("/")
                    with pytest.raises(BrokenResponse) as broken:
                        await c.read_head()
                    assert broken.value.reset is reset
                    if not reset:
                        assert broken.value.received == sent

    @pytest.mark.parametrize("reset", [False, True])
    async def test_the_upstream_sees_its_caller_leave(self, reset: bool) -> None:
        ends = []

        async def script(conn: UpstreamConnection) -> None:
            await conn.request()
            assert not conn.gone
            ends.append(await conn.closed())
            assert conn.gone

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.get("/")
            await up.wait_for_requests(1)
            c.abort() if reset else c.close()
            assert await up.connections[0].closed() is reset
        assert ends == [reset]

    async def test_closed_hears_of_a_peer_that_goes_on_writing(self) -> None:
        async with ScriptedUpstream([ReadHead(), Stall()]) as up, RawClient(up.host, up.port) as c:
            await c.post("/", body=b"x" * (READ_AHEAD * 8))
            c.close()
            assert await up.connections[0].closed() is False

    async def test_sending_to_a_peer_that_has_gone(self) -> None:
        left = asyncio.Event()

        async def script(conn: UpstreamConnection) -> None:
            await conn.request()
            await conn.closed()
            with pytest.raises(PeerLeft):
                while True:
                    await conn.send(b"x" * 65536)
            left.set()

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.get("/")
            await up.wait_for_requests(1)
            c.abort()
            await left.wait()

    async def test_half_close_leaves_the_other_direction_open(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await conn.request()
            assert await conn.closed() is False
            await conn.send_response(200, body=b"after your FIN")

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.get("/")
            c.half_close()
            assert (await c.read_response()).body == b"after your FIN"

    async def test_an_early_answer_survives_a_failing_upload(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await conn.request()
            await conn.pause_reading()
            await conn.send_response(413, body=b"too much")
            conn.abort()

        async with ScriptedUpstream(script, receive_buffer=4096) as up, RawClient(up.host, up.port) as c:
            with pytest.raises(PeerLeft):
                await c.post("/", body=b"x" * 8_000_000)
            assert c.unread == b"" or c.unread.startswith(b"HTTP/1.1 413")

    async def test_reading_until_close(self) -> None:
        async with ScriptedUpstream([ReadHead(), Send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 300_000), Close()]) as up:
            async with RawClient(up.host, up.port) as c:
                await c.get("/")
                raw, reset = await c.read_until_close()
        assert len(raw) == 300_019
        assert not reset


class TestBackpressure:
    @staticmethod
    async def fill_until_stuck(send: Callable[[bytes], object], buffered: Callable[[], int]) -> None:
        """Write until bytes stay in the writer's own buffer although the loop has turned."""
        while True:
            send(b"x" * 65536)
            for _ in range(20):
                await asyncio.sleep(0)
            if buffered() > 4 * 65536:
                return

    async def test_a_client_that_stops_reading(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await conn.request()
            await conn.send_head(200)
            await self.fill_until_stuck(conn.peer.transport.write, conn.peer.transport.get_write_buffer_size)
            points.reach("stuck")
            await conn.send(b"end")

        points = Rendezvous()
        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port, receive_buffer=4096) as c:
            await c.get("/")
            await c.read_head()
            c.stop_reading()
            await points.wait("stuck")
            with pytest.raises(RuntimeError, match="resume_reading"):
                while True:
                    await c.read_some()
            c.resume_reading()
            assert (await c.read_body()).endswith(b"xend")

    async def test_an_upstream_that_reads_only_ahead(self) -> None:
        """A script that reads nothing is enough: unread bytes stay few, the rest waits in the sender."""
        async with ScriptedUpstream([ReadHead(), Stall()], receive_buffer=4096) as up:
            async with RawClient(up.host, up.port) as c:
                await c.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
                conn = (await up.wait_for_connections(1))[0]
                await up.wait_for_requests(1)
                await conn.pause_reading()
                transport = c.peer.transport
                await self.fill_until_stuck(transport.write, transport.get_write_buffer_size)
                assert len(conn.unread) <= READ_AHEAD + 256 * 1024
                c.abort()

    async def test_read_ahead_is_bounded_and_goes_on_on_demand(self) -> None:
        points = Rendezvous()

        async def script(conn: UpstreamConnection) -> None:
            request = await conn.request()
            await points.wait("sent much")
            assert len(conn.unread) <= READ_AHEAD + 256 * 1024
            assert len(await request.body()) == 9_000_000
            await conn.send_response()

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            sending = asyncio.create_task(c.post("/", body=bytes(9_000_000)))
            await up.wait_for_requests(1)
            points.reach("sent much")
            await sending
            assert (await c.read_response()).status == 200


class TestClient:
    async def test_exactly_what_is_asked_is_written(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            for _ in range(4):
                await (await conn.request()).body()
                await conn.send_response()

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.get(b"/a?", [("x-B", b"\xff")])
            await c.post("/", [("Host", "other"), ("content-length", "2")], b"ab")
            await c.post("/")
            await c.get("/", [], exact=True)
            for _ in range(4):
                await c.read_response()
            host = f"Host: 127.0.0.1:{up.port}\r\n".encode()
            assert [request.raw_head for request in up.requests] == [
                b"GET /a? HTTP/1.1\r\n" + host + b"x-B: \xff\r\n\r\n",
                b"POST / HTTP/1.1\r\nHost: other\r\ncontent-length: 2\r\n\r\n",
                b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 0\r\n\r\n",
                b"GET / HTTP/1.1\r\n\r\n",
            ]

    async def test_chunks_are_seen_as_they_were_framed(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await conn.request()
            await conn.send_head(200, [("Transfer-Encoding", "chunked")], reason="Fine")
            for data in (b"one", b"two!", b"x" * 200_000):
                await conn.chunk(data)
            await conn.end_chunks([("X-Sum", "1")])

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.get("/")
            response = await c.read_head()
            assert response.raw_head == b"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\n"
            assert [len(await c.read_chunk()) for _ in range(4)] == [3, 4, 200_000, 0]
            assert response.trailers == [(b"X-Sum", b"1")]
            assert len(response.body) == 200_007

    async def test_a_chunk_is_withheld_until_its_forerunner_was_read(self) -> None:
        points = Rendezvous()

        async def script(conn: UpstreamConnection) -> None:
            await conn.request()
            await conn.send_head(200, [("Transfer-Encoding", "chunked")])
            await conn.chunk(b"one")
            await points.wait("one was read")
            await conn.chunk(b"two")
            await conn.end_chunks()

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.get("/")
            await c.read_head()
            assert await c.read_some() == b"one"
            points.reach("one was read")
            assert await c.read_body() == b"two"

    @pytest.mark.parametrize("status", [204, 304])
    async def test_responses_without_body(self, status: int) -> None:
        async with ScriptedUpstream(respond(status)) as up, RawClient(up.host, up.port) as c:
            await c.get("/")
            assert (await c.read_response()).body == b""
            await c.get("/")
            assert (await c.read_response()).status == status

    async def test_head_has_no_body_whatever_it_announces(self) -> None:
        async with ScriptedUpstream(respond(body=b"hello")) as up, RawClient(up.host, up.port) as c:
            await c.request("HEAD", "/")
            await c.get("/")
            response = await c.read_response()
            assert (response.header("content-length"), response.body) == (b"5", b"")
            assert (await c.read_response()).body == b"hello"
            await c.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await c.read_response("HEAD")).body == b""

    async def test_interim_responses(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await conn.request()
            await conn.send_head(100)
            await conn.send_response(103, [("Link", "</a>")])
            await conn.send_response(200, body=b"x")
            await conn.request()
            await conn.send_head(103)
            await conn.send_response(201)

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.get("/")
            assert [(await c.read_head()).status for _ in range(3)] == [100, 103, 200]
            assert await c.read_body() == b"x"
            await c.get("/")
            assert (await c.read_response()).status == 201

    async def test_a_tunnel(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await conn.request()
            await conn.send_head(101, [("Upgrade", "x"), ("Connection", "upgrade")])
            while data := await conn.read_raw():
                await conn.send(data.upper())

        async with ScriptedUpstream(script) as up, RawClient(up.host, up.port) as c:
            await c.get("/", [("Upgrade", "x"), ("Connection", "upgrade")])
            assert (await c.read_head()).status == 101
            await c.send(b"hello\r\n")
            assert await c.read_until(b"\r\n") == b"HELLO\r\n"
            c.half_close()
            assert await c.read_some() == b""

    async def test_reading_until_a_marker_that_never_comes(self) -> None:
        async with ScriptedUpstream(respond(body=b"abc")) as up, RawClient(up.host, up.port) as c:
            await c.get("/")
            await c.read_head()
            with pytest.raises(BrokenResponse, match="never came") as broken:
                await c.read_until(b"\n\n")
            assert broken.value.received == b"abc"

    async def test_misuse_is_named(self) -> None:
        client = RawClient()
        with pytest.raises(RuntimeError, match="does not stand yet"):
            await client.send(b"x")
        with pytest.raises(RuntimeError, match="read_head"):
            await client.read_body()
        with pytest.raises(ValueError, match="empty chunk"):
            chunk_bytes(b"")
        with pytest.raises(RuntimeError, match="came over no connection"):
            await ReceivedRequest(b"", (1, 1), []).body()

    async def test_reading_chunks_of_a_body_that_has_none(self, echo: ScriptedUpstream) -> None:
        async with RawClient(echo.host, echo.port) as c:
            await c.post("/", body=b"abc")
            await c.read_head()
            with pytest.raises(MalformedMessage, match="not chunked"):
                await c.read_chunk()

    async def test_a_read_has_an_end(self) -> None:
        async with ScriptedUpstream([Stall()]) as up, RawClient(up.host, up.port, guard=0.01) as c:
            with pytest.raises(TimeoutError, match="more bytes"):
                await c.read_head()

    async def test_an_endless_head(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fiedler_proxy.testing.messages.HEAD_CAP", 1000)
        async with ScriptedUpstream([Send(b"x" * 2000), Stall()]) as up, RawClient(up.host, up.port) as c:
            with pytest.raises(MalformedMessage, match="endless head"):
                await c.read_head()


class TestTransports:
    async def test_unix_sockets(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        async with ScriptedUpstream(respond(body=b"x"), unix=path) as up, RawClient(unix=path) as c:
            assert up.url == f"unix:{path}"
            await c.get("/")
            assert (await c.read_response()).body == b"x"
            assert up.requests[0].header("host") == b"localhost"
            c.abort()
            await up.connections[0].closed()

    async def test_ipv6(self) -> None:
        if not socket.has_ipv6:
            pytest.skip("no IPv6 here")
        async with ScriptedUpstream(host="::1") as up, RawClient("::1", up.port) as c:
            assert up.url == f"http://[::1]:{up.port}"
            await c.get("/")
            assert (await c.read_response()).status == 200

    async def test_tls(self) -> None:
        trustme = pytest.importorskip("trustme", reason="trustme makes the certificates")
        authority = trustme.CA()
        server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
        authority.issue_cert("upstream.test").configure_cert(server)
        authority.configure_trust(client)
        points = Rendezvous()
        steps = [
            ReadHead(),
            Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),
            Wait(points.point("read")),
            Abort(),
        ]
        async with ScriptedUpstream(in_turn(respond(body=b"x"), steps), ssl=server) as up:
            assert up.url == f"https://127.0.0.1:{up.port}"
            async with RawClient(up.host, up.port, ssl=client, server_name="upstream.test") as c:
                await c.get("/")
                assert (await c.read_response()).body == b"x"
            await up.connections[0].closed()
            async with RawClient(up.host, up.port, ssl=client, server_name="upstream.test") as c:
                await c.get("/")
                await c.read_head()
                assert await c.read_some() == b"abc"
                points.reach("read")
                with pytest.raises(BrokenResponse) as broken:
                    await c.read_body()
                assert broken.value.reset

    async def test_a_chosen_source_port(self, echo: ScriptedUpstream) -> None:
        async with ScriptedUpstream() as other, RawClient(other.host, other.port) as holder:
            try:
                async with RawClient(echo.host, echo.port, source_port=holder.local_port) as c:
                    assert c.local_port == holder.local_port
            except OSError as error:
                pytest.skip(f"this system cannot choose a port that is in use: {error}")

    async def test_another_http_client_understands_the_upstream(self, echo: ScriptedUpstream) -> None:
        async with ClientSession(connector=TCPConnector()) as session:
            async with session.post(echo.url, data=b"x" * 100_000) as response:
                assert await response.read() == b"x" * 100_000


class TestRendezvous:
    async def test_a_point_is_reached_once_and_for_all(self) -> None:
        points = Rendezvous()
        waiting = asyncio.create_task(points.wait("there"))
        await asyncio.sleep(0)
        assert not points.reached("there")
        assert not waiting.done()
        points.reach("there")
        points.reach("there")
        await waiting
        await points.wait("there")
        assert points.reached("there")

    async def test_a_wait_says_what_was_reached_instead(self) -> None:
        points = Rendezvous(guard=0.01)
        points.reach("here")
        with pytest.raises(TimeoutError, match=r"'there'; reached so far: \['here'\]"):
            await points.wait("there")


class TestServing:
    async def test_an_application_is_served_through_app_runner(self) -> None:
        async def hello(request: web.Request) -> web.Response:
            return web.Response(text=request.path)

        app = web.Application()
        app.router.add_get("/{rest:.*}", hello)
        async with start_app(app) as address, RawClient(address.host, address.port) as c:
            await c.get("/a")
            assert (await c.read_response()).body == b"/a"
            assert str(address) == f"127.0.0.1:{address.port}"
            assert address.url == f"http://{address}"
        with pytest.raises(ConnectionRefusedError):
            await RawClient(address.host, address.port).__aenter__()

    async def test_a_handler_is_cancelled_when_its_caller_leaves(self) -> None:
        points = Rendezvous()

        async def wait(request: web.Request) -> web.Response:
            points.reach("in the handler")
            try:
                await asyncio.Event().wait()
            finally:
                points.reach("cancelled")
            return web.Response()

        app = web.Application()
        app.router.add_get("/", wait)
        async with start_app(app) as address, RawClient(address.host, address.port) as c:
            await c.get("/")
            await points.wait("in the handler")
            c.abort()
            await points.wait("cancelled")


class TestStreams:
    def test_events(self) -> None:
        assert sse("plain", {"a": "é"}, ("ping", {"b": [1, 2]}), "two\nlines") == (
            b'data: plain\n\ndata: {"a":"\xc3\xa9"}\n\nevent: ping\ndata: {"b":[1,2]}\n\ndata: two\ndata: lines\n\n'
        )

    @pytest.mark.parametrize(
        ("payload", "style", "event"),
        [
            ('{"type":"ping"}', StreamStyle.ANTHROPIC, b'event: ping\ndata: {"type":"ping"}\n\n'),
            ('{"type":"response.created"}', StreamStyle.RESPONSES, b'event: response.created\ndata: {"type"'),
            ('{"object":"chat.completion.chunk"}', StreamStyle.OPENAI, b'data: {"object"'),
            ('{"type":"response.created" oops}', StreamStyle.RESPONSES, b"event: response.created"),
            ('{"candidates": [] }', StreamStyle.BARE, b'data: {"candidates": [] }\n\n'),
        ],
    )
    def test_a_stream_is_dressed_in_its_own_style(
        self, tmp_path: Path, payload: str, style: StreamStyle, event: bytes
    ) -> None:
        path = tmp_path / "x.chunks.txt"
        path.write_text(payload + "\n" + payload)
        assert style_of(payload) is style
        events = load_stream(path)
        assert events[0].startswith(event)
        assert events[0] == events[1]
        assert events[2:] == ([b"data: [DONE]\n\n"] if style is StreamStyle.OPENAI else [])
        assert load_stream(path, StreamStyle.BARE)[0] == f"data: {payload}\n\n".encode()

    def test_a_text_that_is_sse_already_stays_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "x.txt"
        path.write_bytes(b"event: a\ndata: 1\n\nevent: b\r\ndata: 2\r\n\r\ndata: no end")
        assert load_stream(path) == [b"event: a\ndata: 1\n\n", b"event: b\r\ndata: 2\r\n\r\n", b"data: no end"]

    def test_every_recorded_stream_can_be_loaded(self) -> None:
        if not STREAMS.is_dir():
            pytest.skip(f"recorded streams are not at {STREAMS}")
        paths = sorted(STREAMS.glob("*/*.chunks.txt"))
        for path in paths:
            events = load_stream(path)
            assert all(event.endswith(b"\n\n") for event in events)
            lines = [line for line in path.read_text().split("\n") if line]
            assert len(events) - len(lines) == (events[-1] == b"data: [DONE]\n\n")
        assert paths

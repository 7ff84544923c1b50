"""Upgrades: asked of the upstream, tunnelled raw after its own 101, its refusals relayed as they are."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import attrs
import pytest
from aiohttp import ClientSession, WSMsgType, WSServerHandshakeError, web

from fiedler_proxy.exchange import Direction, Exchange, Observer, Outcome
from fiedler_proxy.lifecycle import EXCHANGE
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import (
    Abort,
    BrokenResponse,
    PeerLeft,
    RawClient,
    ReadHead,
    ReceivedResponse,
    Rendezvous,
    ScriptedUpstream,
    Send,
    Stall,
    UpstreamConnection,
    respond,
    start_app,
)
from fiedler_proxy.testing.rendezvous import GUARD
from fiedler_proxy.upstream import PoolLimits, Timeouts

from .helpers import Clock, Serving, relaying

BOTH_LOOPS = True

ASKED = [
    (b"Connection", b"keep-alive, Upgrade"),
    (b"Upgrade", b"websocket"),
    (b"Sec-WebSocket-Version", b"13"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"Sec-WebSocket-Protocol", b"realtime, openai-insecure-api-key.x"),
    (b"OpenAI-Beta", b"realtime=v1"),
]
SWITCH = [
    (b"upgrade", b"WebSocket"),
    (b"Connection", b"upgrade"),
    (b"Sec-Websocket-Accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    (b"sec-websocket-protocol", b"realtime"),
    (b"openai-request-id", b"req_1"),
]


@attrs.define(eq=False)
class Wiretap(Observer):
    """A link and an observer: what it heard of a tunnel."""

    heard: list[tuple[Direction, bytes]] = attrs.field(factory=list)
    exchange: Exchange | None = None

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.exchange = request[EXCHANGE]
        request[EXCHANGE].observe(self)
        return await handler(request)

    def tunnel_bytes(self, exchange: Exchange, direction: Direction, data: bytes) -> None:
        self.heard.append((direction, data))

    def of(self, direction: Direction) -> bytes:
        return b"".join(data for where, data in self.heard if where is direction)


async def switch(conn: UpstreamConnection, more: bytes = b"") -> None:
    """Read the request and take the upgrade; ``more`` leaves in the same segment as the 101."""
    await conn.request()
    lines = b"".join(name + b": " + value + b"\r\n" for name, value in SWITCH)
    await conn.send(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n" + more)


async def read_exactly(conn: UpstreamConnection, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await conn.read_raw()
        assert piece, f"the tunnel ended after {data!r}"
        data += piece
    return data


async def caller_reads(client: RawClient, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await client.read_some()
        assert piece, f"the tunnel ended after {data!r}"
        data += piece
    return data


@contextlib.asynccontextmanager
async def opened(serving: Serving, *, receive_buffer: int | None = None) -> AsyncIterator[RawClient]:
    """A caller whose upgrade was taken."""
    async with serving.caller(receive_buffer=receive_buffer) as client:
        await client.get("/v1/realtime?model=gpt", ASKED)
        assert (await client.read_head()).status == 101
        yield client


class TestHandshake:
    async def test_the_request_asks_for_the_upgrade(self) -> None:
        async with ScriptedUpstream(respond(404)) as upstream, relaying(upstream) as serving:
            async with serving.caller() as client:
                await client.get("/v1//realtime?model=a%2Fb", ASKED)
                await client.read_response()
            request = upstream.requests[0]
            assert request.target == b"/v1//realtime?model=a%2Fb"
            assert request.headers == [
                (b"Host", f"{upstream.host}:{upstream.port}".encode()),
                *ASKED[2:],
                (b"Connection", b"Upgrade"),
                (b"Upgrade", b"websocket"),
            ]

    async def test_the_101_arrives_with_its_headers_untouched(self) -> None:
        async with ScriptedUpstream(switch) as upstream, relaying(upstream) as serving:
            async with serving.caller() as client:
                await client.get("/", ASKED)
                response = await client.read_head()
            assert (response.status, response.reason) == (101, b"Switching Protocols")
            assert response.header("connection") == b"Upgrade"
            assert response.without("connection", "upgrade") == SWITCH[2:]
            assert response.header("upgrade") == b"WebSocket"

    async def test_headers_that_links_add_stand_in_the_101(self) -> None:
        async def label(request: web.Request, handler: Handler) -> web.StreamResponse:
            request[EXCHANGE].add_response_header("x-kgb-request-id", "id-1")
            return await handler(request)

        async with ScriptedUpstream(switch) as upstream, relaying(upstream, label) as serving:
            async with serving.caller() as client:
                await client.get("/", ASKED)
                assert (await client.read_head()).header("x-kgb-request-id") == b"id-1"

    async def test_trap_an_unasked_101_is_an_error(self) -> None:
        async with ScriptedUpstream(switch) as upstream, relaying(upstream) as serving:
            async with serving.caller() as client:
                await client.get("/", [(b"Authorization", b"Bearer x")])
                response = await client.read_response()
                assert (response.status, response.header("x-kgb-error")) == (502, b"upstream_unasked_upgrade")
            assert await serving.records.outcome() is Outcome.UPSTREAM_BROKE
            assert serving.pool.idle == 0

    @pytest.mark.parametrize("protocol", [b"h2c", b"tcp", b"websocket, h2c", b"TLS/1.0"])
    async def test_other_protocols_are_not_asked_for(self, protocol: bytes) -> None:
        async with ScriptedUpstream() as upstream, relaying(upstream) as serving:
            async with serving.caller() as client:
                await client.get("/", [(b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", protocol)])
                assert (await client.read_response()).status == 200
            assert [name for name, _ in upstream.requests[0].headers] == [b"Host"]


class TestTunnel:
    async def test_bytes_pass_raw_both_ways(self) -> None:
        up, down = bytes(range(256)), bytes(reversed(range(256)))

        async def script(conn: UpstreamConnection) -> None:
            await switch(conn)
            for _ in range(3):
                assert await read_exactly(conn, len(up)) == up
                await conn.send(down)
            await conn.stall()

        tap = Wiretap()
        async with ScriptedUpstream(script) as upstream, relaying(upstream, tap) as serving:
            async with opened(serving) as client:
                for _ in range(3):
                    await client.send(up)
                    assert await caller_reads(client, len(down)) == down
            assert await serving.records.outcome() is Outcome.COMPLETED
        assert tap.of(Direction.TO_UPSTREAM) == up * 3
        assert tap.of(Direction.TO_CALLER) == down * 3
        assert tap.exchange is not None
        assert (tap.exchange.status, tap.exchange.tunnelled) == (101, True)
        assert (tap.exchange.request_size, tap.exchange.response_size) == (768, 768)

    async def test_bytes_that_come_with_the_101_are_the_tunnels(self) -> None:
        """They look like HTTP, and are none of ours."""
        early = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"

        async def script(conn: UpstreamConnection) -> None:
            await switch(conn, early)
            await conn.send(b"|late")
            await conn.stall()

        tap = Wiretap()
        async with ScriptedUpstream(script) as upstream, relaying(upstream, tap) as serving:
            async with opened(serving) as client:
                assert await caller_reads(client, len(early) + 5) == early + b"|late"
        assert tap.of(Direction.TO_CALLER) == early + b"|late"

    async def test_bytes_that_a_caller_sends_before_its_101_wait_for_it(self) -> None:
        points = Rendezvous()
        early = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

        async def script(conn: UpstreamConnection) -> None:
            await conn.request()
            await points.wait("sent early")
            assert conn.unread == b""
            await conn.send_head(101, SWITCH)
            assert await read_exactly(conn, len(early) + 5) == early + b"|late"
            await conn.send(b"seen")
            await conn.stall()

        tap = Wiretap()
        async with ScriptedUpstream(script) as upstream, relaying(upstream, tap) as serving:
            async with serving.caller() as client:
                await client.get("/", ASKED)
                await upstream.wait_for_requests(1)
                await client.send(early)
                await asyncio.sleep(0)
                points.reach("sent early")
                assert (await client.read_head()).status == 101
                await client.send(b"|late")
                assert await caller_reads(client, 4) == b"seen"
        assert len(upstream.requests) == 1
        assert tap.of(Direction.TO_UPSTREAM) == early + b"|late"

    async def test_bytes_in_the_same_segment_as_the_request_are_the_tunnels(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await switch(conn)
            assert await read_exactly(conn, 5) == b"early"
            await conn.send(b"seen")
            await conn.stall()

        async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving:
            async with serving.caller() as client:
                await client.request("GET", "/", ASKED, b"early", exact=True)
                # exact: no Content-Length; a Host was not added either
                response = await client.read_head()
                assert response.status == 400
            async with serving.caller() as client:
                await client.request("GET", "/", [(b"Host", serving.host), *ASKED], b"early", exact=True)
                assert (await client.read_head()).status == 101
                assert await caller_reads(client, 4) == b"seen"

    async def test_a_large_flow_passes_whole_in_both_directions_at_once(self) -> None:
        block, count = bytes(range(256)) * 256, 64

        async def script(conn: UpstreamConnection) -> None:
            await switch(conn)

            async def send() -> None:
                for _ in range(count):
                    await conn.send(block)

            sending = asyncio.ensure_future(send())
            assert await read_exactly(conn, len(block) * count) == block * count
            await sending
            await conn.stall()

        async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving:
            async with opened(serving) as client:

                async def send() -> None:
                    for _ in range(count):
                        await client.send(block)

                sending = asyncio.ensure_future(send())
                received = 0
                while received < len(block) * count:
                    received += len(await client.read_some(keep=False))
                await sending
            assert received == len(block) * count

    async def test_a_silent_tunnel_is_not_timed_out(self) -> None:
        if not isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop):
            pytest.skip("only the time of asyncio's own loop can be moved")

        async def script(conn: UpstreamConnection) -> None:
            conn.peer.guard = None  # waits for ever: the clock that would wake it is being moved
            await switch(conn)
            await read_exactly(conn, 1)
            await conn.send(b"!")
            await conn.stall()

        timeouts = Timeouts(connect=5.0, first_byte=5.0, idle=5.0)
        async with ScriptedUpstream(script) as upstream, relaying(upstream, timeouts=timeouts) as serving:
            async with opened(serving) as client:
                clock = Clock()
                for _ in range(3):
                    await clock.advance(3600.0)
                await client.send(b"?")
                assert await caller_reads(client, 1) == b"!"

    async def test_nothing_of_the_bytes_is_looked_at(self) -> None:

        async def script(conn: UpstreamConnection) -> None:
            await switch(conn, b"\xff\xff\xff not a frame")
            await conn.stall()

        async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving:
            async with opened(serving) as client:
                assert await caller_reads(client, 15) == b"\xff\xff\xff not a frame"


class TestEnds:
    async def test_the_upstream_closes(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await switch(conn)
            await conn.send(b"farewell")

        async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving:
            async with opened(serving) as client:
                assert await client.read_body() == b"farewell"
                assert await client.closed() is False
            assert await serving.records.outcome() is Outcome.COMPLETED
            assert serving.pool.open == 0

    async def test_the_upstream_resets(self) -> None:
        """A broken tunnel does not look like one that was closed."""

        async def script(conn: UpstreamConnection) -> None:
            await switch(conn, b"some")
            await read_exactly(conn, 1)
            conn.abort()

        async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving:
            async with opened(serving) as client:
                assert await caller_reads(client, 4) == b"some"
                await client.send(b"x")
                with pytest.raises(BrokenResponse) as caught:
                    await client.read_body()
                assert caught.value.reset
            assert await serving.records.outcome() is Outcome.UPSTREAM_BROKE

    async def test_the_caller_closes(self) -> None:
        points = Rendezvous()

        async def script(conn: UpstreamConnection) -> None:
            await switch(conn)
            assert await read_exactly(conn, 8) == b"farewell"
            assert await conn.closed() is False
            points.reach("closed")

        async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving:
            async with opened(serving) as client:
                await client.send(b"farewell")
                client.close()
                await points.wait("closed")
                assert await serving.records.outcome() is Outcome.COMPLETED
            await serving.settled(0)

    async def test_the_caller_resets(self) -> None:
        async with ScriptedUpstream([ReadHead(), Send(b"HTTP/1.1 101 x\r\n\r\n"), Stall()]) as upstream:
            async with relaying(upstream) as serving, opened(serving) as client:
                client.abort()
                await upstream.connections[0].closed()
                assert await serving.records.outcome() is Outcome.CALLER_LEFT

    async def test_what_a_closing_caller_sent_last_still_arrives(self) -> None:
        """More than the kernel takes: the upstream reads only after the caller has gone."""
        points = Rendezvous()
        farewell = b"x" * 60_000

        async def script(conn: UpstreamConnection) -> None:
            await switch(conn)
            await conn.pause_reading()
            points.reach("reads no more")
            await points.wait("has left")
            await conn.resume_reading()
            assert await read_exactly(conn, len(farewell)) == farewell
            assert await conn.closed() is False
            points.reach("read all")

        async with ScriptedUpstream(script, receive_buffer=4096) as upstream, relaying(upstream) as serving:
            async with opened(serving) as client:
                await points.wait("reads no more")
                await client.send(farewell)
                client.close()
                assert await serving.records.outcome() is Outcome.COMPLETED
                points.reach("has left")
                await points.wait("read all")

    async def test_a_drain_ends_tunnels(self) -> None:
        async def script(conn: UpstreamConnection) -> None:
            await switch(conn, b"some")
            await conn.stall()

        async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving, opened(serving) as client:
            assert await caller_reads(client, 4) == b"some"
            assert await serving.gateway.drain(0.0) == 1
            await client.closed()
            await upstream.connections[0].closed()
            assert await serving.records.outcome() is Outcome.GATEWAY_STOPPED

    async def test_a_drain_lets_a_tunnel_end_by_itself(self) -> None:
        points = Rendezvous()

        async def script(conn: UpstreamConnection) -> None:
            await switch(conn)
            await points.wait("drains")

        async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving, opened(serving) as client:
            drain = asyncio.ensure_future(serving.gateway.drain(GUARD))
            while not serving.gateway.draining:
                await asyncio.sleep(0)
            points.reach("drains")
            assert await client.read_body() == b""
            assert await drain == 0
            assert await serving.records.outcome() is Outcome.COMPLETED


async def flood(send: Callable[[bytes], Awaitable[None]], count: list[int]) -> None:
    """Send until cancelled; ``count`` gets the size of every block that was begun."""
    while True:
        count.append(65536)
        await send(b"x" * 65536)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(GUARD):
        while not condition():
            await asyncio.sleep(0.001)


BOUND = 32 * 2**20
"""More than all buffers of the kernel and the gateway together; an unbounded one passes it within a second."""


class TestBackpressure:
    """Memory stays bounded: whoever does not read stops who writes to him, and nobody else."""

    async def test_a_caller_who_does_not_read_stops_the_upstream(self) -> None:
        points, sent = Rendezvous(), [0]

        async def script(conn: UpstreamConnection) -> None:
            await switch(conn)
            conn.peer.guard = None
            flooding = asyncio.ensure_future(flood(conn.send, sent))
            assert await read_exactly(conn, 5) == b"hello"  # the other direction flows on
            flooding.cancel()
            points.reach("heard")
            await conn.stall()

        async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving:
            async with opened(serving, receive_buffer=4096) as client:
                client.stop_reading()
                (connection,) = serving.pool._connections
                await until(lambda: connection.reading_paused or sum(sent) > BOUND)
                await client.send(b"hello")
                await points.wait("heard")
                assert sum(sent) < BOUND
                client.resume_reading()
                received = 0
                while received < sum(sent):
                    received += len(await client.read_some(keep=False))
                assert received == sum(sent)

    async def test_an_upstream_that_does_not_read_stops_the_caller(self) -> None:
        points, sent = Rendezvous(), [0]

        async def script(conn: UpstreamConnection) -> None:
            await switch(conn)
            await conn.pause_reading()
            points.reach("reads no more")
            await points.wait("stopped")
            await conn.send(b"hello")
            await points.wait("heard")
            await conn.resume_reading()
            received = 0
            while received < sum(sent):
                received += len(await conn.read_raw())
            assert received == sum(sent)
            points.reach("read all")
            await conn.stall()

        async with ScriptedUpstream(script, receive_buffer=4096) as upstream, relaying(upstream) as serving:
            async with opened(serving) as client:
                await points.wait("reads no more")
                client.peer.guard = None
                flooding = asyncio.ensure_future(flood(client.send, sent))
                (connection,) = serving.pool._connections
                await until(lambda: connection.writing_paused or sum(sent) > BOUND)
                points.reach("stopped")
                assert await caller_reads(client, 5) == b"hello"
                assert sum(sent) < BOUND
                flooding.cancel()
                points.reach("heard")
                await points.wait("read all")

    async def test_a_caller_who_leaves_a_stopped_tunnel_is_noticed(self) -> None:
        """Its connection is not being read, since the upstream does not read either."""
        points = Rendezvous()

        async def script(conn: UpstreamConnection) -> None:
            await switch(conn)
            await conn.pause_reading()
            points.reach("reads no more")
            await conn.stall()

        async with ScriptedUpstream(script, receive_buffer=4096) as upstream, relaying(upstream) as serving:
            async with opened(serving) as client:
                await points.wait("reads no more")
                (connection,) = serving.pool._connections

                async def flood() -> None:
                    while True:
                        await client.send(b"x" * 65536)

                flooding = asyncio.create_task(flood())
                async with asyncio.timeout(10):
                    while not connection.writing_paused:
                        await asyncio.sleep(0.001)
                client.abort()
                assert await serving.records.outcome() is Outcome.CALLER_LEFT
                flooding.cancel()
                await asyncio.wait([flooding])
            await serving.settled(0)


class TestRefusals:
    @pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 405, 426, 429, 501, 503])
    async def test_a_refusal_is_relayed_as_it_is_and_the_connection_stays(self, status: int) -> None:
        headers = [(b"Content-Type", b"application/json"), (b"x-request-id", b"theirs")]
        async with ScriptedUpstream(respond(status, headers, b'{"error": "no"}')) as upstream:
            async with relaying(upstream) as serving, serving.caller() as client:
                await client.get("/v1/responses", ASKED)
                response = await client.read_response()
                assert (response.status, response.body) == (status, b'{"error": "no"}')
                assert response.without("content-length") == headers
                await client.post("/v1/responses", body=b"fallback")
                assert (await client.read_response()).status == status
                assert bytes(upstream.requests[1].arrived) == b"fallback"
            assert await serving.records.outcomes(2) == [Outcome.COMPLETED] * 2

    async def test_a_426_keeps_what_it_says_of_protocols(self) -> None:
        """RFC 9110 section 15.5.22: Upgrade names what the server would rather speak; it belongs to that hop."""
        async with ScriptedUpstream(respond(426, [(b"Content-Type", b"text/plain")], b"plain HTTP please")) as upstream:
            async with relaying(upstream) as serving, serving.caller() as client:
                await client.get("/v1/responses", ASKED)
                response = await client.read_response()
                assert (response.status, response.body) == (426, b"plain HTTP please")

    async def test_a_request_sent_behind_a_refused_upgrade_is_served(self) -> None:
        async with ScriptedUpstream(respond(404, body=b"no")) as upstream:
            async with relaying(upstream) as serving, serving.caller() as client:
                await client.get("/first", ASKED)
                await client.get("/second")
                for _ in range(2):
                    assert (await client.read_response()).status == 404
            assert [request.target for request in upstream.requests] == [b"/first", b"/second"]

    async def test_a_broken_refusal_is_broken(self) -> None:
        steps = [ReadHead(), Send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 10\r\n\r\nsome"), Abort()]
        async with ScriptedUpstream(steps) as upstream, relaying(upstream) as serving:
            async with serving.caller() as client:
                await client.get("/", ASKED)
                with pytest.raises(BrokenResponse):
                    await client.read_response()


@pytest.fixture
def refusing() -> Iterator[str]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


class TestUnreachable:
    @staticmethod
    async def ask(serving: Serving) -> ReceivedResponse:
        async with serving.caller() as client:
            await client.get("/v1/responses", ASKED)
            return await client.read_response()

    async def test_an_upstream_that_cannot_be_asked_gives_426_so_that_clients_fall_back(self, refusing: str) -> None:
        async with relaying(refusing) as serving:
            response = await self.ask(serving)
            assert response.status == 426
            assert response.header("x-kgb-error") == b"upgrade_unavailable"
            assert response.header("upgrade") == b"HTTP/1.1"
            assert b"Upgrade" in (response.header("connection") or b"")
            error = json.loads(response.body)["error"]
            assert "plain HTTP" in error["message"]
            assert await serving.records.outcome() is Outcome.UPSTREAM_BROKE

    async def test_a_full_pool_too(self) -> None:
        limits = PoolLimits(connections=1, queue=0)

        async def script(conn: UpstreamConnection) -> None:
            await switch(conn)
            await conn.stall()

        async with ScriptedUpstream(script) as upstream, relaying(upstream, limits=limits) as serving:
            async with opened(serving):
                assert (await self.ask(serving)).status == 426

    async def test_the_caller_may_fall_back_on_the_same_connection(self, refusing: str) -> None:
        async with relaying(refusing) as serving, serving.caller() as client:
            await client.get("/v1/responses", ASKED)
            assert (await client.read_response()).status == 426
            await client.post("/v1/responses", body=b"{}")
            assert (await client.read_response()).status == 502

    async def test_an_upstream_that_dies_before_its_101_is_an_ordinary_error(self) -> None:
        async with ScriptedUpstream([ReadHead(), Abort()]) as upstream, relaying(upstream) as serving:
            assert (await self.ask(serving)).status == 502


Ws = Callable[[web.WebSocketResponse], Awaitable[None]]


class TestForeignParties:
    """aiohttp's own WebSocket client and server, with the gateway between them."""

    @staticmethod
    @contextlib.asynccontextmanager
    async def server(talk: Ws) -> AsyncIterator[str]:
        async def handler(request: web.Request) -> web.StreamResponse:
            if request.path == "/forbidden":
                raise web.HTTPForbidden(text="not you")
            ws = web.WebSocketResponse(protocols=["realtime"], autoping=False)
            await ws.prepare(request)
            await talk(ws)
            return ws

        app = web.Application()
        app.router.add_get("/{path:.*}", handler)
        async with start_app(app) as address:
            yield address.url

    async def test_a_conversation_is_the_same_as_a_direct_one(self) -> None:
        large = bytes(range(256)) * 4096

        async def talk(ws: web.WebSocketResponse) -> None:
            async for message in ws:
                if message.type is WSMsgType.TEXT:
                    await ws.send_str(message.data.upper())
                elif message.type is WSMsgType.BINARY:
                    await ws.send_bytes(bytes(reversed(message.data)))
                elif message.type is WSMsgType.PING:
                    await ws.pong(message.data)

        async def converse(url: str) -> list[object]:
            async with (
                ClientSession() as session,
                session.ws_connect(
                    f"{url}/v1/realtime?model=x", protocols=["realtime"], compress=15, autoping=False
                ) as ws,
            ):
                heard: list[object] = [ws.protocol, ws.compress]
                await ws.send_str("caf\xe9")
                heard.append(await ws.receive_str())
                await ws.send_bytes(large)
                heard.append(await ws.receive_bytes())
                await ws.ping(b"are you there")
                heard.append((await ws.receive()).data)
                await ws.close(code=4001, message=b"done")
                return [*heard, ws.close_code]

        async with self.server(talk) as url, relaying(url) as serving:
            direct, relayed = await converse(url), await converse(serving.address.url)
            assert relayed == direct
            assert relayed[:5] == ["realtime", 15, "CAF\xc9", large[::-1], b"are you there"]
            assert await serving.records.outcome() is Outcome.COMPLETED

    async def test_a_close_by_the_server_brings_its_code(self) -> None:
        async def talk(ws: web.WebSocketResponse) -> None:
            await ws.close(code=4002, message=b"enough")

        async with self.server(talk) as url, relaying(url) as serving, ClientSession() as session:
            async with session.ws_connect(serving.address.url) as ws:
                message = await ws.receive()
                assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4002, "enough")

    async def test_a_refusal(self) -> None:
        async def talk(ws: web.WebSocketResponse) -> None:
            raise AssertionError

        async with self.server(talk) as url, relaying(url) as serving, ClientSession() as session:
            with pytest.raises(WSServerHandshakeError) as caught:
                await session.ws_connect(f"{serving.address.url}/forbidden")
            assert caught.value.status == 403


async def test_the_callers_peer_leaves_in_the_handshake() -> None:
    """Before the 101: an exchange like any other."""
    async with ScriptedUpstream([ReadHead(), Stall()]) as upstream, relaying(upstream) as serving:
        async with serving.caller() as client:
            await client.get("/", ASKED)
            await upstream.wait_for_requests(1)
            client.abort()
            with contextlib.suppress(PeerLeft):
                await upstream.connections[0].closed()
            assert await serving.records.outcome() is Outcome.CALLER_LEFT

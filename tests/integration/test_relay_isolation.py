"""No cookie, credential, connection state or byte ever crosses callers, however many there are."""

import asyncio
import hashlib
import os
import random

import pytest

from fiedler_proxy.exchange import Outcome
from fiedler_proxy.flow import Flow
from fiedler_proxy.testing import (
    RawClient,
    ReceivedRequest,
    Rendezvous,
    ScriptedUpstream,
    UpstreamConnection,
    chunk_bytes,
    respond,
    serve_forever,
    sse,
)
from fiedler_proxy.wire import State
from fiedler_proxy.wire import UpstreamConnection as WireConnection

from .helpers import Serving, relaying

BOTH_LOOPS = True

CHUNKED = (b"Transfer-Encoding", b"chunked")
LAST = b"0\r\n\r\n"


async def test_trap_no_cookie_jar_is_shared_by_callers() -> None:
    """By name, not by address: a jar that skips IP addresses would hide here."""
    cookies = [(b"Set-Cookie", b"session=of-the-first; Path=/"), (b"Set-Cookie", b"wide=1; Domain=localhost")]
    async with ScriptedUpstream(respond(200, cookies)) as up, relaying(f"http://localhost:{up.port}") as gate:
        async with gate.caller() as first, gate.caller() as second:
            await first.get("/")
            assert (await first.read_response()).all("set-cookie") == [value for _, value in cookies]
            await second.get("/")
            await second.read_response()
            await first.get("/")
            await first.read_response()
            await first.get("/", [(b"Cookie", b"own=1")])
            await first.read_response()
            sent = [request.all("cookie") for request in up.requests]
            assert sent == [[], [], [], [b"own=1"]]
            assert len(up.connections) == 1


async def test_credentials_stay_with_the_request_that_brought_them() -> None:
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as first, gate.caller() as second:
        await first.get("/", [(b"Authorization", b"Bearer first"), (b"x-api-key", b"k"), (b"X-Trace", b"1")])
        await first.read_response()
        await second.get("/")
        await second.read_response()
        await first.get("/")
        await first.read_response()
        assert len(up.connections) == 1
        assert [request.without("host") for request in up.requests[1:]] == [[], []]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_trap_redirects_are_passed_and_never_followed(status: int, method: str) -> None:
    async with ScriptedUpstream() as stranger:
        for location in (f"{stranger.url}/steal".encode(), b"//127.0.0.1:%d/steal" % stranger.port, b"/elsewhere", b""):
            headers = [(b"Location", location), (b"Content-Length", b"5")]
            async with ScriptedUpstream(respond(status, headers, b"moved")) as up, relaying(up) as gate:
                async with gate.caller() as c:
                    body = b"{}" if method == "POST" else b""
                    await c.request(method, "/v1/x", [(b"Authorization", b"Bearer t")], body)
                    response = await c.read_response()
                    assert (response.status, response.headers, response.body) == (status, headers, b"moved")
                    assert len(up.requests) == 1
        assert stranger.connections == []


async def talk(gate: Serving, number: int, rounds: int, points: Rendezvous) -> bytes:
    async with gate.caller() as c:
        await c.post(f"/{number}", [(b"X-Number", b"%d" % number)], b"question %d" % number)
        head = await c.read_head()
        assert head.header("x-number") == b"%d" % number
        body = b""
        for turn in range(rounds):
            body += await c.read_chunk()
            points.reach(f"{number} has read {turn}")
        assert await c.read_chunk() == b""
        return body


def event(number: int, turn: int) -> bytes:
    return sse({"number": number, "turn": turn, "noise": f"{number * 7919 + turn:x}" * (1 + number % 5)})


async def test_fifty_parallel_streams_are_never_mixed() -> None:
    """Round by round, in another order each time, every stream gets its next event."""
    streams, rounds = 50, 6
    points = Rendezvous()
    open_streams: dict[int, UpstreamConnection] = {}

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        number = int(request.target[1:])
        assert await request.body() == b"question %d" % number
        await conn.send_head(200, [(b"X-Number", request.header("x-number") or b""), CHUNKED])
        open_streams[number] = conn
        if len(open_streams) == streams:
            points.reach("all are open")
        await points.wait(f"{number} has read {rounds - 1}")
        await conn.end_chunks()

    shuffle = random.Random(2).shuffle
    async with ScriptedUpstream(script) as up, relaying(up) as gate:
        callers = [asyncio.create_task(talk(gate, number, rounds, points)) for number in range(streams)]
        await points.wait("all are open")
        for turn in range(rounds):
            numbers = list(open_streams)
            shuffle(numbers)
            for number in numbers:
                await open_streams[number].chunk(event(number, turn))
            for number in numbers:
                await points.wait(f"{number} has read {turn}")
        bodies = await asyncio.gather(*callers)
        assert bodies == [b"".join(event(number, turn) for turn in range(rounds)) for number in range(streams)]
        for recorder in await gate.records.ended(streams):
            number = int(recorder.exchange.path[1:])
            assert recorder.request_body == b"question %d" % number
            assert recorder.response_body == bodies[number]
            assert recorder.outcomes == [Outcome.COMPLETED]


async def test_trap_no_silent_limit_of_100_connections() -> None:
    streams = 150
    points = Rendezvous()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, [CHUNKED])
        await conn.chunk(request.target)
        await points.wait("all have begun")
        await conn.end_chunks()

    async def first_chunk(c: RawClient, number: int) -> None:
        await c.get(f"/{number}")
        await c.read_head()
        assert await c.read_chunk() == b"/%d" % number

    async with ScriptedUpstream(script) as up, relaying(up) as gate:
        callers = [await gate.caller().__aenter__() for _ in range(streams)]
        try:
            await asyncio.gather(*(first_chunk(c, number) for number, c in enumerate(callers)))
            assert (len(up.connections), gate.pool.waiting) == (streams, 0)
            points.reach("all have begun")
            assert [await c.read_chunk() for c in callers] == [b""] * streams
        finally:
            for c in callers:
                await c.__aexit__(None, None, None)


async def test_a_caller_who_leaves_takes_no_connection_of_another_exchange_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once an answer is whole its connection serves others, in the same turn of the loop perhaps, before the answer is written."""
    lent: list[WireConnection] = []
    turn = Flow.on_turn

    def leaves(self: Flow) -> None:
        turn(self)
        if self.exchange.target == "/leaves" and not lent:
            transport = self._caller.transport
            assert transport is not None
            transport.abort()
            connection = gate.pool.take()
            assert connection is self._connection, "it is free"
            connection.begin(Silent(), "GET", upgrade=False)
            lent.append(connection)

    monkeypatch.setattr(Flow, "on_turn", leaves)
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as first:
        await first.get("/stays")
        await first.read_response()
        await first.get("/leaves")
        ended = await gate.records.ended(2)
        assert ended[1].outcomes == [Outcome.CALLER_LEFT]
        assert lent[0].state is State.HEAD
        lent[0].abort()


class Silent:
    """A sink that hears nothing."""

    def on_nothing(self, *_: object) -> None: ...

    on_interim = on_head = on_body = on_broken = on_nothing
    on_end = on_turn = on_writable = on_nothing


async def test_parallel_uploads_are_never_mixed() -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_response(body=hashlib.sha256(await request.body()).digest())

    async def upload(gate: Serving, seed: int) -> bool:
        body = random.Random(seed).randbytes(300_000 + seed)
        async with gate.caller() as c:
            for _ in range(3):
                cut = 10_000 * (seed + 1)
                framed = chunk_bytes(body[:cut]) + chunk_bytes(body[cut:]) + LAST
                await c.post("/", [CHUNKED] if seed % 2 else [], framed if seed % 2 else body)
                assert (await c.read_response()).body == hashlib.sha256(body).digest()
        return True

    async with ScriptedUpstream(script) as up, relaying(up) as gate:
        assert all(await asyncio.gather(*(upload(gate, seed) for seed in range(16))))
        assert len(up.requests) == 48


SHAPES = ["length", "chunked", "empty chunked", "head", "204", "304", "interim", "trailers", "paused", "upload"]


async def test_no_state_of_a_connection_reaches_its_next_exchange() -> None:
    """One connection carries every shape of answer after every other, for callers in turn."""
    marks: dict[bytes, bytes] = {}

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        body = await request.body()
        marks[request.target] = body
        match request.target.partition(b"-")[0].decode().strip("/").replace("%20", " "):
            case "chunked":
                await conn.send_response(body=request.target, chunked=True)
            case "empty chunked":
                await conn.send_response(chunked=True)
            case "204":
                await conn.send_response(204)
            case "304":
                await conn.send_head(304, [(b"Content-Length", b"77")])
            case "interim":
                await conn.send_response(103, [(b"Link", b"</a>")])
                await conn.send_response(body=request.target)
            case "trailers":
                await conn.send_head(200, [CHUNKED])
                await conn.chunk(request.target)
                await conn.end_chunks([(b"X-Sum", b"1")])
            case "paused":
                await conn.send_response(body=request.target * 100_000)
            case _:
                await conn.send_response(body=request.target)

    async def once(c: RawClient, shape: str, number: int) -> None:
        target = f"/{shape.replace(' ', '%20')}-{number}"
        method = "HEAD" if shape == "head" else "POST" if shape == "upload" else "GET"
        sent = os.urandom(200_000) if shape == "upload" else b""
        await c.request(method, target, body=sent)
        response = await c.read_response()
        bodiless = shape in ("head", "204", "304", "empty chunked")
        expected = b"" if bodiless else target.encode() * (100_000 if shape == "paused" else 1)
        assert (response.body, response.trailers, marks[target.encode()]) == (expected, [], sent)
        assert response.status == (int(shape) if shape in ("204", "304") else 200)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller() as a, gate.caller() as b:
        number = 0
        for first in SHAPES:
            for second in SHAPES:
                await once(a, first, number)
                await gate.settled(1)
                await once(b, second, number + 1)
                await gate.settled(1)
                number += 2
        assert len(up.connections) == gate.pool.dialled == 1


async def test_a_caller_that_pipelines_gets_no_answer_of_another() -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await asyncio.sleep(0)
        await conn.send_response(body=request.target)

    async def pipeline(gate: Serving, name: str) -> list[bytes]:
        async with gate.caller() as c:
            for number in range(10):
                await c.get(f"/{name}{number}")
            return [(await c.read_response()).body for _ in range(10)]

    async with ScriptedUpstream(script) as up, relaying(up) as gate:
        answers = await asyncio.gather(*(pipeline(gate, name) for name in "abcdefgh"))
        assert answers == [[b"/%b%d" % (name.encode(), number) for number in range(10)] for name in "abcdefgh"]
        assert len(up.requests) == 80

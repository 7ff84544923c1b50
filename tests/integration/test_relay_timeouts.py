"""Timeouts: connect, first byte, idle; none of the whole. Hours pass on the loop's clock, not on the tester's.

The defaults are tested as well as small values: models think for long, and an agent's patience is 600 s.
"""

import asyncio
import json

import pytest

from fiedler_proxy.exchange import Outcome
from fiedler_proxy.testing import (
    BrokenResponse,
    RawClient,
    ReadHead,
    ReceivedRequest,
    ScriptedUpstream,
    Stall,
    UpstreamConnection,
    chunk_bytes,
    serve_forever,
)
from fiedler_proxy.upstream import PoolLimits, Timeouts

from .helpers import SOON, Clock, Serving, becomes, deaf_port, relaying

BOTH_LOOPS = False

CHUNKED = (b"Transfer-Encoding", b"chunked")
LAST = b"0\r\n\r\n"
PIECE = bytes(1024 * 1024)
DEFAULT = Timeouts()
HOURS = 100_000.0


class Puppet:
    """An upstream whose strings the test pulls itself; its script only takes the next head when told."""

    def __init__(self) -> None:
        self._came: asyncio.Queue[tuple[ReceivedRequest, UpstreamConnection]] = asyncio.Queue()
        self.answered = asyncio.Event()

    async def script(self, conn: UpstreamConnection) -> None:
        while True:
            self._came.put_nowait((await conn.request(), conn))
            await self.answered.wait()
            self.answered.clear()

    async def next(self) -> tuple[ReceivedRequest, UpstreamConnection]:
        """The next request whose head arrived, and its connection."""
        return await self._came.get()


async def still_running(gate: Serving) -> None:
    (recorder,) = gate.records.all
    assert recorder.outcomes == []


async def timed_out(c: RawClient, gate: Serving, status: int, code: str) -> None:
    """The caller is told in its dialect; the exchange ended so, and its connection is gone."""
    response = await c.read_response()
    assert (response.status, response.header("x-kgb-error")) == (status, code.encode())
    assert json.loads(response.body)["error"]["code"] == code
    assert await gate.records.outcome() is (Outcome.TIMED_OUT if status == 504 else Outcome.REFUSED)
    await gate.settled(0)


ANTHROPIC = [(b"anthropic-version", b"2023-06-01")]


def test_the_defaults_fit_long_thinking() -> None:
    assert DEFAULT.first_byte >= 600
    assert DEFAULT.idle >= 300
    assert 0 < DEFAULT.connect <= 60


async def test_connect_timeout_when_nobody_accepts() -> None:
    with deaf_port() as port:
        async with relaying(f"http://127.0.0.1:{port}") as gate, gate.caller() as c:
            clock = Clock()
            await c.post("/v1/messages", ANTHROPIC, b"{}")
            await becomes(lambda: gate.pool.open == 1, "the dial to begin")
            await clock.advance(DEFAULT.connect - 1)
            await still_running(gate)
            await clock.advance(2)
            await timed_out(c, gate, 504, "connect_timeout")


async def test_connect_timeout_covers_a_tls_handshake_that_is_never_answered() -> None:
    async def script(conn: UpstreamConnection) -> None:
        await conn.stall()

    timeouts = Timeouts(connect=0.1)
    async with ScriptedUpstream(script) as up, relaying(f"https://127.0.0.1:{up.port}", timeouts=timeouts) as gate:
        async with gate.caller() as c:
            await c.post("/v1/messages", ANTHROPIC, b"{}")
            await timed_out(c, gate, 504, "connect_timeout")
            await up.connections[0].closed(SOON)
            assert up.requests == []


async def test_a_small_first_byte_timeout_in_real_time() -> None:
    """The one test of the kind that trusts no moved clock."""
    timeouts = Timeouts(first_byte=0.05)
    async with ScriptedUpstream([ReadHead(), Stall()]) as up, relaying(up, timeouts=timeouts) as gate:
        async with gate.caller() as c:
            await c.post("/v1/messages", ANTHROPIC, b"{}")
            await timed_out(c, gate, 504, "first_byte_timeout")
            await up.connections[0].closed(SOON)


async def test_a_model_may_think_for_600_s_and_not_for_ever() -> None:
    puppet = Puppet()
    async with ScriptedUpstream(puppet.script) as up, relaying(up) as gate, gate.caller() as c:
        clock = Clock()
        await c.post("/v1/messages", ANTHROPIC, b"{}")
        await (await puppet.next())[0].body()
        await clock.advance(600)
        await still_running(gate)
        await clock.advance(DEFAULT.first_byte - 600 + 1)
        await timed_out(c, gate, 504, "first_byte_timeout")
        await up.connections[0].closed(SOON)
        await c.get("/next")
        await puppet.next()  # the caller's connection goes on


async def test_the_clock_of_the_first_byte_begins_when_the_upload_has_ended() -> None:
    puppet = Puppet()
    async with ScriptedUpstream(puppet.script) as up, relaying(up) as gate, gate.caller() as c:
        clock = Clock()
        await c.post("/", [CHUNKED], chunk_bytes(b"x"))
        request, conn = await puppet.next()
        assert await request.read_some() == b"x"
        for _ in range(5):
            await clock.advance(DEFAULT.idle - 1)
            await c.send(chunk_bytes(b"y"))
            assert await request.read_some() == b"y"
        await clock.advance(DEFAULT.idle - 1)
        await c.send(LAST)
        assert await request.read_some() == b""
        await clock.advance(DEFAULT.first_byte - 1)
        await still_running(gate)
        await conn.send_response(body=b"thought through")
        assert (await c.read_response()).body == b"thought through"
        assert await gate.records.outcome() is Outcome.COMPLETED


async def test_interim_answers_are_signs_of_life() -> None:
    puppet = Puppet()
    async with ScriptedUpstream(puppet.script) as up, relaying(up) as gate, gate.caller() as c:
        clock = Clock()
        await c.get("/")
        _, conn = await puppet.next()
        for _ in range(5):
            await clock.advance(DEFAULT.first_byte - 1)
            await conn.send_head(103, [(b"Link", b"</a>")])
            assert (await c.read_head()).status == 103
        await conn.send_response(body=b"x")
        assert (await c.read_response()).body == b"x"


async def test_a_stream_that_falls_silent_is_cut() -> None:
    puppet = Puppet()
    async with ScriptedUpstream(puppet.script) as up, relaying(up) as gate, gate.caller() as c:
        clock = Clock()
        await c.get("/")
        _, conn = await puppet.next()
        await conn.send_head(200, [CHUNKED])
        await conn.chunk(b"first")
        await c.read_head()
        assert await c.read_some() == b"first"
        await clock.advance(DEFAULT.idle - 1)
        await conn.chunk(b"second")
        assert await c.read_some() == b"second"
        await clock.advance(DEFAULT.idle - 1)
        await still_running(gate)
        await clock.advance(2)
        with pytest.raises(BrokenResponse) as broken:
            await c.read_body()
        assert broken.value.received == b"firstsecond"
        assert await gate.records.outcome() is Outcome.TIMED_OUT
        assert gate.records.all[0].exchange.error_code == "idle_timeout"
        await conn.closed(SOON)
        await gate.settled(0)


@pytest.mark.parametrize("thinks", [0.0, 4.0, 7.0, 800.0])
async def test_a_short_idle_timeout_holds_beside_a_long_first_byte(thinks: float) -> None:
    """However long the model thought, the silence after its head is judged by the idle timeout alone."""
    puppet = Puppet()
    timeouts = Timeouts(first_byte=900, idle=5)
    async with ScriptedUpstream(puppet.script) as up, relaying(up, timeouts=timeouts) as gate, gate.caller() as c:
        clock = Clock()
        await c.get("/")
        _, conn = await puppet.next()
        for _ in range(int(thinks)):
            await clock.advance(1)
        await conn.send_head(200, [CHUNKED])
        await c.read_head()
        await clock.advance(4)
        await still_running(gate)
        await clock.advance(2)
        assert await gate.records.outcome() is Outcome.TIMED_OUT


async def test_a_short_idle_timeout_holds_without_any_first_byte_timeout() -> None:
    puppet = Puppet()
    timeouts = Timeouts(first_byte=0, idle=5)
    async with ScriptedUpstream(puppet.script) as up, relaying(up, timeouts=timeouts) as gate, gate.caller() as c:
        clock = Clock()
        await c.get("/")
        _, conn = await puppet.next()
        for _ in range(30):
            await clock.advance(HOURS)
        await still_running(gate)
        await conn.send_head(200, [CHUNKED])
        await c.read_head()
        await clock.advance(4)
        await still_running(gate)
        await clock.advance(2)
        assert await gate.records.outcome() is Outcome.TIMED_OUT


async def test_trap_there_is_no_total_limit() -> None:
    """A client's default of 300 s would end a long stream however lively it is."""
    puppet = Puppet()
    async with ScriptedUpstream(puppet.script) as up, relaying(up) as gate, gate.caller() as c:
        clock = Clock()
        await c.get("/")
        _, conn = await puppet.next()
        await conn.send_head(200, [CHUNKED])
        await c.read_head()
        for number in range(200):
            await clock.advance(DEFAULT.idle - 1)
            await conn.chunk(b"%d" % number)
            assert await c.read_chunk() == b"%d" % number
        await conn.end_chunks()
        assert await c.read_chunk() == b""
        assert await gate.records.outcome() is Outcome.COMPLETED


async def test_the_idle_clock_stands_still_while_the_caller_does_not_read() -> None:
    puppet = Puppet()
    async with ScriptedUpstream(puppet.script) as up, relaying(up) as gate, gate.caller(receive_buffer=32_768) as c:
        clock = Clock()
        await c.get("/")
        _, conn = await puppet.next()
        await conn.send_head(200, [CHUNKED])
        await c.read_head()
        c.stop_reading()
        conn.peer.guard = None  # its send waits while hours pass
        flooding = asyncio.create_task(conn.send(chunk_bytes(PIECE) * 32))
        (connection,) = gate.upstream_connections
        await becomes(lambda: connection.reading_paused, "the upstream to be paused")
        for _ in range(10):
            await clock.advance(HOURS)
        await still_running(gate)
        c.resume_reading()
        received = 0
        while received < 32 * len(PIECE):
            received += len(await c.read_some(keep=False))
        await flooding
        await still_running(gate)
        await clock.advance(DEFAULT.idle - 1)  # from now on it is the upstream that is silent
        await still_running(gate)
        await clock.advance(2)
        assert await gate.records.outcome() is Outcome.TIMED_OUT


async def test_a_caller_that_stalls_its_upload_gets_408() -> None:
    puppet = Puppet()
    async with ScriptedUpstream(puppet.script) as up, relaying(up) as gate, gate.caller() as c:
        clock = Clock()
        await c.post("/v1/messages", [*ANTHROPIC, (b"Content-Length", b"10")])
        await c.send(b"half")
        request, conn = await puppet.next()
        assert await request.read_some() == b"half"
        await clock.advance(DEFAULT.idle - 1)
        await still_running(gate)
        await clock.advance(2)
        await timed_out(c, gate, 408, "request_timeout")
        await conn.closed(SOON)
        assert not request.complete


async def test_an_upstream_that_never_reads_an_upload_is_given_up() -> None:
    puppet = Puppet()
    async with ScriptedUpstream(puppet.script, receive_buffer=32_768) as up, relaying(up) as gate, gate.caller() as c:
        clock = Clock()
        c.peer.guard = None
        await c.post("/v1/messages", [*ANTHROPIC, (b"Content-Length", b"%d" % (64 * len(PIECE)))])
        _, conn = await puppet.next()
        await conn.pause_reading()
        sending = asyncio.create_task(c.send(PIECE * 64))
        (recorder,), (connection,) = gate.records.all, gate.upstream_connections
        await becomes(
            lambda: connection.writing_paused and not recorder.transport.is_reading(), "the caller to be paused"
        )
        await clock.advance(DEFAULT.first_byte - 1)
        await still_running(gate)
        await clock.advance(2)
        await timed_out(c, gate, 504, "first_byte_timeout")
        c.abort()
        await asyncio.gather(sending, return_exceptions=True)


async def test_timeouts_can_be_switched_off() -> None:
    puppet = Puppet()
    timeouts = Timeouts(connect=0, first_byte=0, idle=0)
    async with ScriptedUpstream(puppet.script) as up, relaying(up, timeouts=timeouts) as gate, gate.caller() as c:
        clock = Clock()
        await c.get("/")
        _, conn = await puppet.next()
        await clock.advance(HOURS)
        await conn.send_head(200, [(b"Content-Length", b"1")])
        await c.read_head()
        await clock.advance(HOURS)
        await conn.send(b"x")
        assert await c.read_body() == b"x"
        assert await gate.records.outcome() is Outcome.COMPLETED


async def test_an_idle_upstream_connection_is_kept_for_a_while_and_then_closed() -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_response()

    limits = PoolLimits(keepalive=30)
    async with ScriptedUpstream(script) as up, relaying(up, limits=limits) as gate, gate.caller() as c:
        clock = Clock()
        await c.get("/")
        await c.read_response()
        await clock.advance(29)
        assert gate.pool.idle == 1
        await c.get("/")
        await c.read_response()
        await clock.advance(29)
        assert gate.pool.idle == 1  # it was used in between
        await clock.advance(2)
        await gate.settled(0)
        assert not await up.connections[0].closed()
        await c.get("/")
        assert (await c.read_response()).status == 200
        assert len(up.connections) == 2


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: "], ids=["silent", "half a head"])
async def test_trap_keepalive_timeout_is_the_deadline_of_the_first_request(begun: bytes) -> None:
    """aiohttp's default lets a caller that says nothing stay for an hour."""
    options: dict[str, object] = {"keepalive_timeout": 30.0}
    async with ScriptedUpstream() as up, relaying(up, server_options=options) as gate, gate.caller() as c:
        clock = Clock()
        await c.send(begun)
        await clock.advance(31)
        await c.closed()
        assert c.unread == b""
        assert up.connections == []


async def test_trap_keepalive_timeout_spares_callers_in_mid_exchange() -> None:
    puppet = Puppet()
    options: dict[str, object] = {"keepalive_timeout": 30.0}
    async with ScriptedUpstream(puppet.script) as up, relaying(up, server_options=options) as gate, gate.caller() as c:
        clock = Clock()
        for _ in range(2):
            await c.get("/")
            _, conn = await puppet.next()
            await clock.advance(500)
            await conn.send_head(200, [CHUNKED])
            await c.read_head()
            await clock.advance(500)
            await conn.chunk(b"x")
            await conn.end_chunks()
            assert await c.read_body() == b"x"
            puppet.answered.set()
            await clock.advance(20)
        await clock.advance(31)
        assert not await c.closed()

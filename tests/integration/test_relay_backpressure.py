"""Law 5: whoever reads slowly slows its own sender and nobody else, and no buffer of ours grows."""

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from fiedler_proxy.exchange import Outcome
from fiedler_proxy.server import READ_BUFFER
from fiedler_proxy.testing import (
    RawClient,
    ReceivedRequest,
    Rendezvous,
    ScriptedUpstream,
    UpstreamConnection,
    chunk_bytes,
    serve_forever,
)
from fiedler_proxy.wire import WRITE_BUFFER
from fiedler_proxy.wire import UpstreamConnection as GatewaysEnd

from .helpers import Recorder, Serving, becomes, relaying

BOTH_LOOPS = True

CHUNKED = (b"Transfer-Encoding", b"chunked")
LAST = b"0\r\n\r\n"
PIECE = os.urandom(1024 * 1024)
PIECES = 32
WHOLE = hashlib.sha256(PIECE * PIECES).digest()

ONE_READ = 256 * 1024
"""Most bytes an event loop hands over at once."""

WRITE_HIGH = 64 * 1024
"""Bytes waiting for a caller at which its transport says stop (asyncio's and uvloop's default)."""

SOCKET = 6 * 1024 * 1024
"""Most that the kernel takes in for one direction of a loopback connection whose reader has a small buffer."""

FRAMING = 64 * 1024
"""Room for heads and chunk sizes."""


async def flood(peer: UpstreamConnection | RawClient, points: Rendezvous) -> None:
    """Send the whole body as fast as it is taken."""
    for _ in range(PIECES):
        await peer.send(chunk_bytes(PIECE))
    points.reach("all was taken")
    await peer.send(LAST)


async def digest_of(reader: RawClient | ReceivedRequest) -> bytes:
    """Read the whole body without keeping it."""
    digest = hashlib.sha256()
    while data := await reader.read_some(keep=False):
        digest.update(data)
    return digest.digest()


async def small_talk(gate: Serving, points: Rendezvous) -> None:
    """Another exchange, event by event, while somebody else is stuck."""
    async with gate.caller() as other:
        await other.get("/small")
        await other.read_head()
        for number in range(20):
            assert await other.read_chunk() == b"event %d" % number
            points.reach(f"read {number}")
        assert await other.read_chunk() == b""


async def small_events(conn: UpstreamConnection, points: Rendezvous) -> None:
    await conn.send_head(200, [CHUNKED])
    for number in range(20):
        await conn.chunk(b"event %d" % number)
        await points.wait(f"read {number}")
    await conn.end_chunks()


def held_for_the_caller(recorder: Recorder) -> int:
    return recorder.transport.get_write_buffer_size()


def both_paused(connection: GatewaysEnd, recorder: Recorder) -> bool:
    """The upload is held back on either side of the gateway (the caller's alone may be for a moment)."""
    return connection.writing_paused and not recorder.transport.is_reading()


async def test_trap_a_caller_that_stops_reading_pauses_its_own_upstream_and_nobody_else() -> None:
    points = Rendezvous()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        if request.target == b"/small":
            await small_events(conn, points)
            return
        await conn.send_head(200, [CHUNKED])
        await flood(conn, points)

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller(receive_buffer=32 * 1024) as c:
        await c.get("/flood")
        await c.read_head()
        c.stop_reading()
        (recorder,) = await gate.records.begun()
        (connection,) = gate.upstream_connections
        await becomes(lambda: connection.reading_paused, "the upstream to be paused")
        await small_talk(gate, points)
        assert connection.reading_paused
        assert recorder.exchange.response_size <= SOCKET
        assert held_for_the_caller(recorder) <= WRITE_HIGH + ONE_READ + FRAMING
        assert not points.reached("all was taken")
        c.resume_reading()
        assert await digest_of(c) == WHOLE
        assert await gate.records.outcomes(2) == [Outcome.COMPLETED] * 2


async def test_a_declared_length_is_held_back_as_well() -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [(b"Content-Length", b"%d" % (PIECES * len(PIECE)))])
        for _ in range(PIECES):
            await conn.send(PIECE)
        points.reach("all was taken")

    async with ScriptedUpstream(script) as up, relaying(up) as gate, gate.caller(receive_buffer=32 * 1024) as c:
        await c.get("/")
        await c.read_head()
        c.stop_reading()
        (recorder,) = await gate.records.begun()
        (connection,) = gate.upstream_connections
        await becomes(lambda: connection.reading_paused, "the upstream to be paused")
        assert held_for_the_caller(recorder) <= WRITE_HIGH + ONE_READ + FRAMING
        assert not points.reached("all was taken")
        c.resume_reading()
        assert await digest_of(c) == WHOLE


@pytest.mark.parametrize("chunked", [True, False])
async def test_trap_an_upload_to_a_stalled_upstream_pauses_its_caller_and_nobody_else(chunked: bool) -> None:
    points = Rendezvous()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        if request.target == b"/small":
            await small_events(conn, points)
            return
        await conn.pause_reading()
        points.reach("stalled")
        await points.wait("go on")
        await conn.resume_reading()
        await conn.send_response(body=(await digest_of(request)).hex().encode())

    async with ScriptedUpstream(script, receive_buffer=32 * 1024) as up, relaying(up) as gate, gate.caller() as c:
        await c.post("/flood", [CHUNKED if chunked else (b"Content-Length", b"%d" % (PIECES * len(PIECE)))])
        await points.wait("stalled")
        sending = asyncio.create_task(flood(c, points) if chunked else c.send(PIECE * PIECES))
        (recorder,) = await gate.records.begun()
        (connection,) = gate.upstream_connections
        await becomes(lambda: both_paused(connection, recorder), "the caller to be paused")
        await small_talk(gate, points)
        assert both_paused(connection, recorder)
        assert recorder.exchange.request_size <= SOCKET
        assert connection.transport is not None
        assert connection.transport.get_write_buffer_size() <= WRITE_BUFFER + 2 * READ_BUFFER + ONE_READ + FRAMING
        assert not sending.done()
        points.reach("go on")
        response = await c.read_response()
        await sending
        assert response.body == WHOLE.hex().encode()
        assert await gate.records.outcomes(2) == [Outcome.COMPLETED] * 2


async def test_a_caller_that_writes_first_and_reads_later_is_never_locked_in() -> None:
    """Full duplex with both directions full: whoever reads again frees everything."""

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        await conn.send_head(200, [CHUNKED])
        while data := await request.read_some(keep=False):
            await conn.chunk(data)
        await conn.end_chunks()

    points = Rendezvous()
    async with (
        ScriptedUpstream(script, receive_buffer=64 * 1024) as up,
        relaying(up) as gate,
        gate.caller(receive_buffer=64 * 1024) as c,
    ):
        await c.post("/", [CHUNKED])
        await c.read_head()
        c.stop_reading()
        sending = asyncio.create_task(flood(c, points))
        (recorder,) = await gate.records.begun()
        (connection,) = gate.upstream_connections
        await becomes(
            lambda: connection.reading_paused and not recorder.transport.is_reading(), "both directions to be full"
        )
        c.resume_reading()
        assert await digest_of(c) == WHOLE
        await sending
        assert await gate.records.outcome() is Outcome.COMPLETED


async def test_a_connection_that_was_paused_serves_again() -> None:
    """What one caller's slowness left behind must not hold the next caller of the same connection."""

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, [CHUNKED])
        await flood(conn, Rendezvous())

    async with ScriptedUpstream(script) as up, relaying(up) as gate:
        for _ in range(3):
            async with gate.caller(receive_buffer=32 * 1024) as c:
                await c.get("/")
                await c.read_head()
                c.stop_reading()
                (connection,) = gate.upstream_connections
                await becomes(lambda held=connection: held.reading_paused, "the upstream to be paused")  # type: ignore[misc]
                c.resume_reading()
                assert await digest_of(c) == WHOLE
            await gate.settled(1)
        assert len(up.connections) == 1


HUGE = 200
"""Mebibytes of a body that must pass in flat memory."""

FLAT = 48 * 1024 * 1024
"""Bytes by which this process (gateway, caller and upstream together) may grow meanwhile."""


def resident() -> int:
    """Bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")


@needs_proc
@pytest.mark.parametrize("chunked", [True, False])
async def test_an_upload_of_200_mb_passes_in_flat_memory(chunked: bool) -> None:
    before = resident()

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        size = 0
        while data := await request.read_some(keep=False):
            size += len(data)
            assert resident() - before < FLAT
        await conn.send_response(body=b"%d" % size)

    async with ScriptedUpstream(script) as up, relaying(up, keep=False) as gate, gate.caller() as c:
        await c.post("/", [CHUNKED if chunked else (b"Content-Length", b"%d" % (HUGE * len(PIECE)))])
        for _ in range(HUGE):
            await c.send(chunk_bytes(PIECE) if chunked else PIECE)
        if chunked:
            await c.send(LAST)
        assert (await c.read_response()).body == b"%d" % (HUGE * len(PIECE))
        (recorder,) = await gate.records.ended()
        assert recorder.exchange.request_size == HUGE * len(PIECE)


@needs_proc
async def test_a_response_of_200_mb_passes_in_flat_memory() -> None:
    before = resident()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [CHUNKED])
        for _ in range(HUGE):
            await conn.chunk(PIECE)
        await conn.end_chunks()

    async with ScriptedUpstream(script) as up, relaying(up, keep=False) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_head()
        size = 0
        while data := await c.read_some(keep=False):
            size += len(data)
            assert resident() - before < FLAT
        assert size == HUGE * len(PIECE)
        assert await gate.records.outcome() is Outcome.COMPLETED

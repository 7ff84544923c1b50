"""kill -9 of a recording gateway while streams run: whatever a caller received is on record, once.

The gateway is a process of its own; this one keeps the ledger of what its callers received.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
from pathlib import Path

import attrs
import pytest

from fiedler_proxy.testing import BrokenResponse, RawClient, ScriptedUpstream, UpstreamConnection
from fiedler_proxy.testing.peer import PeerLeft
from kgb_gateway.middlewares.dewey_tap import key_of
from kgb_gateway.record import Frame, Kind
from kgb_gateway.segments import SegmentReader, segments_in
from tests.integration.test_serve_process import Server, serving

STREAMS = 50
LENGTH = 1 << 30
"""What the upstream announces and never reaches."""

CONFIG = """
upstream = "{upstream}"
data_dir = "{home}"
chain = ["request_id", "dewey_tap", "auth"]

[links.dewey_tap]
watermark = 0
"""


async def endless(conn: UpstreamConnection) -> None:
    """Random bytes in events of all sizes, as fast as they are taken."""
    request = await conn.request()
    await request.body()
    chance = random.Random(request.target)
    with contextlib.suppress(PeerLeft):
        await conn.send_head(200, [(b"Content-Length", b"%d" % LENGTH)])
        while True:
            await conn.send(chance.randbytes(chance.choice((1, 100, 120, 5000))))
            await asyncio.sleep(0.002)


@attrs.define(eq=False)
class Ledger:
    """What one caller received: the id of its exchange, and the body so far."""

    exchange: bytes = b""
    body: bytearray = attrs.field(factory=bytearray)

    async def stream(self, server: Server, target: str) -> None:
        """Read one stream until the gateway dies."""
        with contextlib.suppress(BrokenResponse, PeerLeft, ConnectionError):
            async with RawClient("127.0.0.1", server.port) as client:
                await client.get(target)
                head = await client.read_head()
                self.exchange = key_of((head.header("x-kgb-request-id") or b"").decode())
                while data := await client.read_some():
                    self.body += data


async def kill_one(config: Path, number: int, enough: int) -> list[Ledger]:
    """Start a gateway, let streams run until ``enough`` bytes have come in all, kill it."""
    ledgers = [Ledger() for _ in range(STREAMS)]
    async with serving(config.parent, "--config", str(config)) as server:
        async with asyncio.TaskGroup() as running:
            for place, ledger in enumerate(ledgers):
                running.create_task(ledger.stream(server, f"/{number}/{place}"))
            while sum(len(ledger.body) for ledger in ledgers) < enough:
                await asyncio.sleep(0.001)
            os.kill(server.process.pid, signal.SIGKILL)
    return ledgers


async def rounds(home: Path, count: int, seed: int) -> None:
    """Kill ``count`` gateways on one data directory, then hold the ledgers against the record."""
    chance, ledgers = random.Random(seed), list[Ledger]()
    async with ScriptedUpstream(endless, ignore_errors=True) as upstream:
        config = home / "gateway.toml"
        config.write_text(CONFIG.format(upstream=upstream.url, home=home))
        for number in range(count):
            ledgers += await kill_one(config, number, chance.randrange(1, 1_500_000))
        async with serving(home, "--config", str(config)) as last:  # takes what the last one left
            last.process.send_signal(signal.SIGTERM)
            assert (await last.ended())[0] == 0
    check(home / "spool", ledgers)


def check(spool: Path, ledgers: list[Ledger]) -> None:
    bodies: dict[bytes, bytearray] = {}
    sequences: list[int] = []
    for name in segments_in(spool):
        with SegmentReader(spool / str(name)) as reader:
            for frame in reader.frames(finished=True):
                sequences.append(frame.sequence)
                _take(bodies, frame)
    assert sequences == list(range(1, len(sequences) + 1)), "a frame is missing, or there twice"
    received = [ledger for ledger in ledgers if ledger.body]
    assert received
    for ledger in received:
        assert bodies[ledger.exchange].startswith(ledger.body), "bytes that a caller received are not on record"


def _take(bodies: dict[bytes, bytearray], frame: Frame) -> None:
    assert frame.kind != Kind.GAP
    if frame.kind == Kind.REQUEST_HEAD:
        assert frame.exchange not in bodies
        assert json.loads(frame.payload.partition(b"\n")[0])["method"] == "GET"
        bodies[frame.exchange] = bytearray()
    elif frame.kind == Kind.RESPONSE_BYTES:
        bodies[frame.exchange] += frame.payload


async def test_kill_9_of_a_gateway_under_fifty_streams(tmp_path: Path) -> None:
    await rounds(tmp_path, 2, 1)


@pytest.mark.soak
async def test_kill_9_of_a_gateway_for_long(tmp_path: Path) -> None:
    await rounds(tmp_path, 200, 7)

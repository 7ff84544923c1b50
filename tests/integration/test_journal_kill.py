"""kill -9 of a recording gateway, of its librarian, or of both, while streams run: whatever a caller received is on record, once.

Gateway and librarian are processes of their own; this one keeps the ledger of what the callers received.
"""

import asyncio
import contextlib
import hashlib
import os
import random
import signal
from pathlib import Path

import attrs
import pytest
from aiohttp import ClientError, ClientSession, UnixConnector

from fiedler_proxy.testing import BrokenResponse, RawClient, ScriptedUpstream, UpstreamConnection
from fiedler_proxy.testing.peer import PeerLeft
from kgb_gateway.dewey.entry import Position
from kgb_gateway.dewey.feed import SOCKET
from kgb_gateway.dewey.librarian import Librarian, lock
from kgb_gateway.dewey.raw import every
from kgb_gateway.dewey.spool import InstanceReader, Layout
from kgb_gateway.dewey.store.reader import StoreReader
from kgb_gateway.dewey.verify import verify
from kgb_gateway.middlewares.dewey_tap import key_of
from kgb_gateway.record import Kind
from tests.integration.test_serve_process import Server, serving
from tests.spools import prices, reading

STREAMS = 50
VICTIMS = ("gateway", "librarian", "both")

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


async def librarian_of(home: Path) -> int:
    """The process of the librarian at work, 0 for none."""
    with contextlib.suppress(ClientError, OSError):
        async with ClientSession(connector=UnixConnector(str(home / SOCKET))) as session:
            async with session.get("http://dewey/status") as response:
                return int((await response.json())["pid"])
    return 0


async def kill_one(config: Path, number: int, victim: str, enough: int) -> list[Ledger]:
    """Start a gateway, let streams run until ``enough`` bytes have come in all, kill the victim; in the end the gateway."""
    ledgers = [Ledger() for _ in range(STREAMS)]
    async with serving(config.parent, "--config", str(config)) as server:
        async with asyncio.TaskGroup() as running:
            for place, ledger in enumerate(ledgers):
                running.create_task(ledger.stream(server, f"/{number}/{place}"))
            if victim != "gateway":
                librarian = 0
                while not librarian:
                    librarian = await librarian_of(config.parent)
                await _received(ledgers, enough)
                os.kill(librarian, signal.SIGKILL)
            await _received(ledgers, enough if victim != "librarian" else 2 * enough)
            os.kill(server.process.pid, signal.SIGKILL)
    return ledgers


async def _received(ledgers: list[Ledger], enough: int) -> None:
    while sum(len(ledger.body) for ledger in ledgers) < enough:
        await asyncio.sleep(0.001)


async def rounds(home: Path, count: int, seed: int) -> None:
    """Kill ``count`` times on one data directory, then hold the ledgers against the record."""
    chance, ledgers = random.Random(seed), list[Ledger]()
    async with ScriptedUpstream(endless, ignore_errors=True) as upstream:
        config = home / "gateway.toml"
        config.write_text(CONFIG.format(upstream=upstream.url, home=home))
        for number in range(count):
            victim = VICTIMS[number % len(VICTIMS)]
            ledgers += await kill_one(config, number, victim, chance.randrange(1, 1_500_000))
        async with serving(home, "--config", str(config)) as last:  # takes what the last one left
            last.process.send_signal(signal.SIGTERM)
            assert (await last.ended())[0] == 0
    check(home, ledgers)


def check(home: Path, ledgers: list[Ledger]) -> None:
    """Segments, packed or not, and the store against what callers have."""
    layout = Layout(home)
    received = {ledger.exchange: bytes(ledger.body) for ledger in ledgers if ledger.body}
    assert received
    (instance,) = layout.instances()
    reader = InstanceReader(layout, Position(instance))
    sequences = [found.frame.sequence for found in reader.frames() if found.frame.kind != Kind.GAP]
    assert sequences == list(range(1, len(sequences) + 1)), "a frame is missing"
    assert reader.faults == []
    bodies: dict[bytes, bytes] = {}
    for gathered in every(layout):
        assert gathered.key not in bodies, "an exchange is there twice"
        bodies[gathered.key] = gathered.body(Kind.RESPONSE_BYTES).read()
    for exchange, body in received.items():
        assert bodies[exchange].startswith(body), "bytes that a caller received are not on record"
    with lock(home):
        librarian = Librarian(home, prices())
        librarian.finish()
        librarian.close()
    with StoreReader(layout) as store:
        stored = store.connection.execute("SELECT uuid, response_sha256, outcome FROM exchange").fetchall()
        wanted = {key: hashlib.sha256(body).digest() for key, body in bodies.items()}
        assert {row[0]: row[1] for row in stored} == wanted
        assert {row[2] for row in stored} == {"interrupted"}
        assert verify(layout, store, reading(), lambda _: None).faults == []


async def test_kill_9_under_fifty_streams(tmp_path: Path) -> None:
    await rounds(tmp_path, 3, 1)


@pytest.mark.soak
async def test_kill_9_for_long(tmp_path: Path) -> None:
    await rounds(tmp_path, 200, 7)

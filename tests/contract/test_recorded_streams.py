"""Recorded replies of real providers, replayed through the gateway in several chunkings: byte for byte.

The recordings stand beside the project, not in it.
"""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from fiedler_proxy.testing import (
    RawClient,
    ReceivedRequest,
    ScriptedUpstream,
    UpstreamConnection,
    load_stream,
    serve_forever,
)
from tests.integration.helpers import Serving, relaying

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "streams"

REPLIES = sorted(FOLDER.rglob("*.txt")) + sorted(FOLDER.rglob("*.json"))

pytestmark = pytest.mark.skipif(not REPLIES, reason=f"no recorded replies at {FOLDER}")

Chunking = Callable[[Sequence[bytes]], Sequence[bytes]]


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """``data`` in pieces of ``sizes``, again and again."""
    pieces, at, number = [], 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        pieces.append(data[at : at + size])
        at, number = at + size, number + 1
    return pieces


def by_event(events: Sequence[bytes]) -> Sequence[bytes]:
    return events


def at_once(events: Sequence[bytes]) -> Sequence[bytes]:
    return [b"".join(events)]


def in_shreds(events: Sequence[bytes]) -> Sequence[bytes]:
    """Cuts through events, lines and characters, different for each length, the same in each run."""
    data = b"".join(events)
    rng = random.Random(len(data))
    return cut(data, [rng.choice([1, 2, 3, 7, 61, 997]) for _ in range(100)])


class Player:
    """An upstream that plays what it was given last."""

    def __init__(self) -> None:
        self.pieces: Sequence[bytes] = ()
        self.kind = "text/event-stream"

    async def __call__(self, conn: UpstreamConnection) -> None:
        await serve_forever(self._play)(conn)

    async def _play(self, request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, [("Content-Type", self.kind), ("Transfer-Encoding", "chunked")])
        for piece in self.pieces:
            await conn.chunk(piece)
        await conn.end_chunks()


@pytest.fixture
async def player() -> AsyncIterator[tuple[Player, Serving]]:
    player = Player()
    async with ScriptedUpstream(player) as upstream, relaying(upstream) as serving:
        yield player, serving


def events_of(path: Path) -> list[bytes]:
    return [path.read_bytes()] if path.suffix == ".json" else load_stream(path)


@pytest.mark.parametrize("path", REPLIES, ids=lambda path: f"{path.parent.name}/{path.name}")
async def test_a_recorded_reply_arrives_byte_for_byte(path: Path, player: tuple[Player, Serving]) -> None:
    played, serving = player
    events = events_of(path)
    whole = b"".join(events)
    assert whole
    played.kind = "application/json" if path.suffix == ".json" else "text/event-stream"
    async with RawClient(serving.address.host, serving.address.port) as client:
        for number, chunking in enumerate((by_event, at_once, in_shreds), 1):
            played.pieces = chunking(events)
            assert b"".join(played.pieces) == whole
            await client.get("/")
            assert (await client.read_response()).body == whole
            recorders = await serving.records.ended(number)
            assert bytes(recorders[-1].response_body) == whole

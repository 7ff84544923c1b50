"""aiohttp-sse-client as a foreign caller: another reader of event streams, with its own idea of reconnecting."""

import pytest
from aiohttp import ClientError, ClientSession
from aiohttp_sse_client.client import EventSource

from fiedler_proxy.exchange import Outcome
from fiedler_proxy.testing import (
    ReceivedRequest,
    Rendezvous,
    Script,
    ScriptedUpstream,
    UpstreamConnection,
    serve_forever,
)
from tests.integration.helpers import relaying

HEAD = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache"), ("Transfer-Encoding", "chunked")]

Event = tuple[str, str, str]


def served(*pieces: bytes, end: bool = True) -> Script:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, HEAD)
        for piece in pieces:
            await conn.chunk(piece)
        if end:
            await conn.end_chunks()
        else:
            conn.close()

    return script


async def events(url: str, count: int) -> list[Event]:
    """The first ``count`` events, or as many as there are: type, id, data."""
    heard: list[Event] = []
    async with ClientSession() as session, EventSource(url, session=session, max_connect_retry=0) as source:
        async for event in source:
            heard.append((event.type or "", event.last_event_id, event.data))
            if len(heard) == count:
                break
    return heard


async def both(script: Script, count: int) -> list[Event]:
    """What the client hears through the gateway, after a direct call that must have heard the same."""
    async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving:
        direct = await events(f"{upstream.url}/events", count)
        relayed = await events(f"{serving.address.url}/events", count)
        assert [request.target for request in upstream.requests] == [b"/events"] * 2
        assert upstream.requests[0].header("accept") == upstream.requests[1].header("accept") == b"text/event-stream"
    assert relayed == direct
    return relayed


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
async def test_names_ids_comments_and_lines(ending: bytes) -> None:
    lines = [
        b": a comment", b"", b"data: one", b"", b"event: named", b"id: 7", b"data: two", b"data: lines \xc3\xa9", b"", b"data:three",
        b"", b"",
    ]  # fmt: skip
    heard = await both(served(ending.join(lines)), 3)
    assert heard == [("", "", "one"), ("named", "7", "two\nlines \xe9"), ("", "7", "three")]


async def test_events_split_anywhere() -> None:
    wire = "event: e\nid: 1\ndata: caf\xe9 \u20ac\n\n".encode() * 3
    heard = await both(served(*(wire[i : i + 1] for i in range(len(wire)))), 3)
    assert heard == [("e", "1", "caf\xe9 \u20ac")] * 3


async def test_an_event_arrives_before_the_next_is_sent() -> None:
    points = Rendezvous()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, HEAD)
        for number in range(3):
            await conn.chunk(b"data: %d\n\n" % number)
            await points.wait(f"heard {number}")
        await conn.end_chunks()

    async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving, ClientSession() as session:
        async with EventSource(serving.address.url, session=session, max_connect_retry=0) as source:
            for number in range(3):
                assert (await anext(source)).data == str(number)
                points.reach(f"heard {number}")


async def test_a_client_that_leaves_ends_the_upstream() -> None:
    points = Rendezvous()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, HEAD)
        await conn.chunk(b"data: one\n\n")
        await conn.closed()
        points.reach("left")

    async with ScriptedUpstream(script) as upstream, relaying(upstream) as serving:
        assert await events(serving.address.url, 1) == [("", "", "one")]
        await points.wait("left")
        assert await serving.records.outcome() is Outcome.CALLER_LEFT


async def test_a_stream_that_breaks_is_no_stream_that_ended() -> None:
    async with ScriptedUpstream(served(b"data: one\n\n", end=False)) as upstream, relaying(upstream) as serving:
        for url in (upstream.url, serving.address.url):
            with pytest.raises((ClientError, ConnectionError)):
                await events(url, 2)
        assert await serving.records.outcome() is Outcome.UPSTREAM_BROKE

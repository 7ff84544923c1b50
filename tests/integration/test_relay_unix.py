"""Upstreams on a Unix socket: the same relay, another kind of address."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import pytest

from fiedler_proxy.exchange import Outcome
from fiedler_proxy.testing import (
    Abort,
    BrokenResponse,
    ReadHead,
    ReceivedRequest,
    Rendezvous,
    ScriptedUpstream,
    Send,
    Stall,
    UpstreamConnection,
    respond,
    serve_forever,
)

from .helpers import relaying

BOTH_LOOPS = True


@pytest.fixture
def path() -> Iterator[str]:
    """A short path: the address of a Unix socket holds about a hundred bytes."""
    with TemporaryDirectory(prefix="kgb") as directory:
        yield f"{directory}/up.sock"


async def test_requests_and_answers_pass(path: str) -> None:
    async with ScriptedUpstream(respond(201, [("X-A", "1")], b"over a socket"), unix=path) as upstream:
        async with relaying(upstream) as serving, serving.caller() as client:
            await client.post("/v1//messages?beta=true", [("X-B", "2")], b"body")
            response = await client.read_response()
            assert (response.status, response.header("x-a"), response.body) == (201, b"1", b"over a socket")
            request = upstream.requests[0]
            assert (request.method, request.target, bytes(request.arrived)) == (
                "POST", b"/v1//messages?beta=true", b"body",
            )  # fmt: skip
            assert request.headers == [(b"Host", b"localhost"), (b"X-B", b"2"), (b"Content-Length", b"4")]


async def test_a_base_path_stands_behind_the_quoted_socket(path: str) -> None:
    async with ScriptedUpstream(unix=path) as upstream:
        async with relaying(f"http+unix://{quote(path, safe='')}/base") as serving, serving.caller() as client:
            await client.get("/x")
            assert (await client.read_response()).status == 200
        assert upstream.requests[0].target == b"/base/x"


async def test_a_connection_is_kept_and_used_again(path: str) -> None:
    async with ScriptedUpstream(unix=path) as upstream, relaying(upstream) as serving:
        for _ in range(3):
            async with serving.caller() as client:
                await client.get("/")
                await client.read_response()
            await serving.settled(1)
        assert len(upstream.connections) == 1


async def test_every_flush_arrives_before_the_next(path: str) -> None:
    points = Rendezvous()

    @serve_forever
    async def drip(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        for event in (b"data: 1\n\n", b"data: 2\n\n"):
            await conn.chunk(event)
            await points.wait(event.decode())
        await conn.end_chunks()

    async with ScriptedUpstream(drip, unix=path) as upstream:
        async with relaying(upstream) as serving, serving.caller() as client:
            await client.get("/")
            await client.read_head()
            for event in (b"data: 1\n\n", b"data: 2\n\n"):
                assert await client.read_chunk() == event
                points.reach(event.decode())
            assert await client.read_chunk() == b""
            assert await serving.records.outcome() is Outcome.COMPLETED


async def test_a_large_body_passes_both_ways(path: str) -> None:
    @serve_forever
    async def echo(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_response(200, body=await request.body())

    body = bytes(range(256)) * 8192
    async with ScriptedUpstream(echo, unix=path) as upstream:
        async with relaying(upstream) as serving, serving.caller() as client:
            await client.post("/", body=body)
            assert (await client.read_response()).body == body


async def test_a_caller_who_leaves_ends_the_upstream(path: str) -> None:
    async with ScriptedUpstream([ReadHead(), Stall()], unix=path) as upstream:
        async with relaying(upstream) as serving, serving.caller() as client:
            await client.get("/")
            await upstream.wait_for_requests(1)
            client.abort()
            await upstream.connections[0].closed()
            assert await serving.records.outcome() is Outcome.CALLER_LEFT


async def test_a_break_in_mid_body_is_visible(path: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome"
    async with ScriptedUpstream([ReadHead(), Send(head), Abort()], unix=path) as upstream:
        async with relaying(upstream) as serving, serving.caller() as client:
            await client.get("/")
            with pytest.raises(BrokenResponse) as caught:
                await client.read_response()
            assert caught.value.received == b"some"
            assert await serving.records.outcome() is Outcome.UPSTREAM_BROKE


async def test_a_socket_that_is_not_there_is_named(path: str) -> None:
    async with relaying(f"unix:{path}") as serving, serving.caller() as client:
        await client.post("/v1/messages", [("anthropic-version", "2023-06-01")], b"{}")
        response = await client.read_response()
        assert (response.status, response.header("x-kgb-error")) == (502, b"upstream_refused")
        assert path in json.loads(response.body)["error"]["message"]
        assert serving.pool.open == 0


async def test_a_restarted_upstream_is_found_again(path: str) -> None:
    async with relaying(f"unix:{path}") as serving, serving.caller() as client:
        for body in (b"before", b"after"):
            async with ScriptedUpstream(respond(body=body), unix=path):
                await client.get("/")
                assert (await client.read_response()).body == body
            Path(path).unlink(missing_ok=True)  # Python 3.13 does it by itself
            await client.get("/")
            assert (await client.read_response()).status == 502

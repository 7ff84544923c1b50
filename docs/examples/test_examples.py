"""The links of the documentation, tested the way their authors would."""

import json

import pytest
from aiohttp import web
from at_once import AtOnce
from pauses import Pauses
from pin_model import PinModel

from fiedler_proxy.exchange import Exchange
from fiedler_proxy.lifecycle import EXCHANGE, Gateway, Link, create_application
from fiedler_proxy.relay import Relay
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import (
    RawClient,
    ReceivedRequest,
    Rendezvous,
    ScriptedUpstream,
    UpstreamConnection,
    check_middleware,
    serve_forever,
    start_app,
)
from fiedler_proxy.upstream import parse_upstream


@pytest.mark.parametrize("link", [AtOnce(), Pauses(), PinModel("m")], ids=repr)
async def test_the_contract(link: Link) -> None:
    await check_middleware(link)


async def test_one_too_many_at_once_is_refused() -> None:
    points = Rendezvous()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        points.reach("asked")
        await points.wait("refused")
        await conn.send_response(200, [], b"done")

    async with ScriptedUpstream(script) as upstream:
        gateway = Gateway(parse_upstream(upstream.url))
        app = create_application(gateway, [AtOnce(limit=1)], Relay(gateway))
        async with (
            start_app(app) as address,
            RawClient(address.host, address.port) as first,
            RawClient(address.host, address.port) as second,
        ):
            await first.request("GET", "/v1/models", [])
            await points.wait("asked")
            await second.request("GET", "/v1/models", [])
            refused = await second.read_response()
            assert (refused.status, refused.header("retry-after")) == (429, b"5")
            points.reach("refused")
            assert (await first.read_response()).body == b"done"


async def test_the_longest_pause_becomes_a_fact() -> None:
    points, seen = Rendezvous(), list[Exchange]()

    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n1")
        await points.wait("the first byte was read")
        await conn.send(b"2")

    @web.middleware
    async def look(request: web.Request, handler: Handler) -> web.StreamResponse:
        seen.append(request[EXCHANGE])
        return await handler(request)

    async with ScriptedUpstream(script) as upstream:
        gateway = Gateway(parse_upstream(upstream.url))
        app = create_application(gateway, [look, Pauses()], Relay(gateway))
        async with start_app(app) as address, RawClient(address.host, address.port) as client:
            await client.request("GET", "/", [])
            await client.read_head()
            assert await client.read_some() == b"1"
            points.reach("the first byte was read")
            await client.read_body()
    assert isinstance(seen[0].facts["longest_pause_ms"], float)


async def test_the_model_is_pinned() -> None:
    @serve_forever
    async def echo(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_response(200, [], await request.body())

    async with ScriptedUpstream(echo) as upstream:
        gateway = Gateway(parse_upstream(upstream.url))
        app = create_application(gateway, [PinModel("small")], Relay(gateway))
        async with start_app(app) as address, RawClient(address.host, address.port) as client:
            body = b'{"model": "large", "n": 1}'
            headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
            await client.request("POST", "/v1/messages", headers, body)
            assert json.loads((await client.read_response()).body) == {"model": "small", "n": 1}

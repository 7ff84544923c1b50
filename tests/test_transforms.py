"""Changing bytes: a declared power, visible in the exchange."""

from typing import ClassVar

import attrs
import pytest
from aiohttp import web

from fiedler_proxy.exchange import Exchange
from fiedler_proxy.lifecycle import EXCHANGE, Gateway, Link, create_application
from fiedler_proxy.relay import Relay
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import (
    BrokenResponse,
    RawClient,
    ReceivedRequest,
    ReceivedResponse,
    ScriptedUpstream,
    UpstreamConnection,
    serve_forever,
    start_app,
)
from fiedler_proxy.upstream import parse_upstream


class Upper:
    """Holds one byte back, so that the end matters."""

    def __init__(self) -> None:
        self.held = b""

    def feed(self, data: bytes) -> bytes:
        data = self.held + data.upper()
        self.held = data[-1:]
        return data[:-1]

    def end(self) -> bytes:
        return self.held + b"!"


class Failing(Upper):
    def feed(self, data: bytes) -> bytes:
        raise ValueError("no")


@web.middleware
@attrs.frozen
class Shout:
    kind: type[Upper] = Upper
    seen: list[Exchange] = attrs.field(factory=list)
    transforms: ClassVar[bool] = True

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        self.seen.append(exchange)
        exchange.transform_response(self.kind())
        exchange.replace_request_body((await request.read()).upper())
        return await handler(request)


@web.middleware
class Undeclared(Shout):
    transforms: ClassVar[bool] = False


@serve_forever
async def echo(request: ReceivedRequest, conn: UpstreamConnection) -> None:
    body = await request.body()
    await conn.send_response(200, [(b"ETag", b'"1"')], b"got " + body)


async def ask(link: Link, client_head: bytes, body: bytes) -> tuple[ScriptedUpstream, ReceivedResponse]:
    async with ScriptedUpstream(echo) as upstream:
        gateway = Gateway(parse_upstream(upstream.url))
        app = create_application(gateway, [link], Relay(gateway))
        async with start_app(app) as address, RawClient(address.host, address.port) as client:
            await client.send(client_head + body)
            return upstream, await client.read_response("POST")


@pytest.mark.parametrize(
    "head", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
async def test_both_bodies_are_replaced_and_their_framing_with_them(head: bytes) -> None:
    link = Shout()
    upstream, response = await ask(link, b"POST / HTTP/1.1\r\nHost: localhost\r\n", head)
    assert (response.status, response.body) == (200, b"GOT ABC!")
    assert response.header("etag") is None
    request = upstream.requests[0]
    assert request.all(b"content-length") == [b"3"]
    assert request.header(b"transfer-encoding") is None
    assert link.seen[0].transformed


async def test_a_body_of_another_length_is_framed_anew() -> None:
    @web.middleware
    @attrs.frozen
    class Longer:
        transforms: ClassVar[bool] = True

        async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
            request[EXCHANGE].replace_request_body(b"x" * 1000)
            return await handler(request)

    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    _, response = await ask(Longer(), head, b"")
    assert (response.status, response.body) == (200, b"got " + b"x" * 1000)


async def test_without_the_declared_power_nothing_is_changed() -> None:
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"
    upstream, response = await ask(Undeclared(), head, b"abc")
    assert response.status == 500
    assert b"gateway_fault" in response.body
    assert not upstream.requests


async def test_a_transform_that_raises_cuts_the_response() -> None:
    with pytest.raises(BrokenResponse):
        await ask(Shout(Failing), b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n", b"abc")

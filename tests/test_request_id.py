"""request_id: the caller learns the exchange's id, and everybody else's ids pass."""

import contextlib
import uuid
from collections.abc import AsyncIterator

import attrs
from aiohttp import web

from fiedler_proxy.errors import ExchangeError
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.lifecycle import EXCHANGE, Gateway, Link, create_application
from fiedler_proxy.relay import Relay
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import (
    RawClient,
    ReceivedRequest,
    ScriptedUpstream,
    UpstreamConnection,
    check_middleware,
    serve_forever,
    start_app,
)
from fiedler_proxy.upstream import parse_upstream
from kgb_gateway.middlewares.request_id import RequestId

HEADER = "x-kgb-request-id"


@web.middleware
@attrs.frozen
class Spy:
    """Keeps the exchanges; on request forgets their ids, as an embedder's edge might, or refuses."""

    forget: bool = False
    exchanges: list[Exchange] = attrs.field(factory=list)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        self.exchanges.append(exchange)
        if self.forget:
            exchange.id = ""
        return await handler(request)


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    raise ExchangeError("no", "No.", status=403)


@serve_forever
async def answer(request: ReceivedRequest, conn: UpstreamConnection) -> None:
    headers = [(b"request-id", b"req_up"), (b"x-request-id", b"theirs"), (b"X-KGB-Request-Id", b"forged")]
    await conn.send_response(200, headers, b"ok")


@contextlib.asynccontextmanager
async def serving(*links: Link) -> AsyncIterator[tuple[RawClient, ScriptedUpstream]]:
    async with ScriptedUpstream(answer) as upstream:
        gateway = Gateway(parse_upstream(upstream.url))
        app = create_application(gateway, links, Relay(gateway))
        async with start_app(app) as address, RawClient(address.host, address.port) as client:
            yield client, upstream


async def test_the_caller_learns_the_id_of_the_exchange_and_each_has_its_own() -> None:
    spy = Spy()
    async with serving(spy, RequestId()) as (client, _):
        seen = []
        for _ in range(3):
            await client.get("/")
            response = await client.read_response()
            assert len(response.all(HEADER)) == 1
            seen.append((response.header(HEADER) or b"").decode())
    assert seen == [exchange.id for exchange in spy.exchanges]
    assert len(set(seen)) == 3
    assert all(uuid.UUID(text).version == 7 for text in seen)


async def test_an_exchange_without_an_id_gets_one() -> None:
    spy = Spy(forget=True)
    async with serving(spy, RequestId()) as (client, _):
        await client.get("/")
        response = await client.read_response()
    assert spy.exchanges[0].id
    assert response.header(HEADER) == spy.exchanges[0].id.encode()


async def test_an_id_that_is_there_stays() -> None:
    exchange = Exchange("GET", "/", id="given")

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response()

    await RequestId()({EXCHANGE: exchange}, handler)  # type: ignore[arg-type]
    assert (exchange.id, exchange.added_headers[HEADER]) == ("given", "given")


async def test_the_callers_ids_reach_the_upstream_and_the_upstreams_the_caller() -> None:
    headers = [("X-Request-Id", "mine"), ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
    async with serving(RequestId()) as (client, upstream):
        await client.get("/", [*headers, ("x-kgb-request-id", "forged")])
        response = await client.read_response()
    (request,) = upstream.requests
    assert request.header("x-request-id") == b"mine"
    assert request.header("traceparent") == headers[1][1].encode()
    assert request.header(HEADER) is None
    assert (response.header("request-id"), response.header("x-request-id")) == (b"req_up", b"theirs")
    assert b"forged" not in response.raw_head


async def test_a_refusal_carries_the_id_once() -> None:
    spy = Spy()
    async with serving(RequestId(), spy, refuse) as (client, _):
        await client.get("/")
        response = await client.read_response()
    assert response.status == 403
    assert response.all(HEADER) == [spy.exchanges[0].id.encode()]


async def test_it_keeps_the_contract_of_a_middleware() -> None:
    assert await check_middleware(RequestId())
    assert RequestId.outer

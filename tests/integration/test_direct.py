"""A request that nothing has to be waited for but the bytes of its answer: it has no task, and ends as any other does.

That takes links which only act before the next one, and a connection to the upstream that is at hand: here it is dialled beforehand.
"""

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable

import attrs
import pytest
from aiohttp import web

from fiedler_proxy.errors import ExchangeError
from fiedler_proxy.exchange import Exchange, Outcome
from fiedler_proxy.lifecycle import EXCHANGE, Gateway, create_application
from fiedler_proxy.middlewares.guard import Guard
from fiedler_proxy.middlewares.health import Health
from fiedler_proxy.relay import Relay
from fiedler_proxy.server import Handler, OwnResponse
from fiedler_proxy.testing import (
    BrokenResponse,
    RawClient,
    ReceivedRequest,
    Rendezvous,
    ScriptedUpstream,
    UpstreamConnection,
    respond,
    serve_forever,
    start_app,
)
from fiedler_proxy.upstream import Timeouts, parse_upstream

from .helpers import SOON, Recorder, Records, Serving, becomes

BOTH_LOOPS = True

CHUNKED = (b"Transfer-Encoding", b"chunked")
_AROUND: contextvars.ContextVar[str] = contextvars.ContextVar("around", default="")

Act = Callable[[web.Request, Exchange], Awaitable[web.StreamResponse] | None]


def nothing(request: web.Request, exchange: Exchange) -> None:
    """A link that does nothing."""


@web.middleware
@attrs.frozen(eq=False)
class Entering:
    """A link that only acts before the next one: it records, then does ``act``."""

    records: Records
    act: Act = nothing

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await (self.enter(request, request[EXCHANGE]) or handler(request))

    def enter(self, request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse] | None:
        """``links.Entering``."""
        assert request.transport is not None
        recorder = Recorder(self.records.signal, exchange, request.transport)
        self.records.all.append(recorder)
        exchange.observe(recorder)
        self.records.signal.notify()
        return self.act(request, exchange)


@contextlib.asynccontextmanager
async def direct(up: ScriptedUpstream, act: Act = nothing, timeouts: Timeouts | None = None) -> AsyncIterator[Serving]:
    """A gateway in front of ``up``, with a connection at hand."""
    gateway, records = Gateway(parse_upstream(up.url, timeouts=timeouts)), Records()
    app = create_application(gateway, [Guard(), Health(), Entering(records, act)], Relay(gateway))
    async with start_app(app) as address:
        serving = Serving(gateway, address, records)
        await serving.pool.probe()
        yield serving


def tasks_that_serve() -> list[str]:
    """The coroutines of tasks that serve a caller."""
    named = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return [name for name in named if name.endswith("._serve")]


async def test_it_has_no_task() -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        points.reach("asked")
        await points.wait("looked")
        await conn.send_response(body=b"{}")

    async with ScriptedUpstream(script) as up, direct(up) as gate, gate.caller() as c:
        await c.get("/")
        await points.wait("asked")
        assert tasks_that_serve() == []
        (request,) = gate.gateway.live.values()
        assert request.task is None
        points.reach("looked")
        assert (await c.read_response()).body == b"{}"
        assert await gate.records.outcome() is Outcome.COMPLETED
        assert gate.gateway.live == {}


@pytest.mark.parametrize("leave", [RawClient.close, RawClient.abort])
@pytest.mark.parametrize("begun", [False, True], ids=["before the head", "in the midst"])
async def test_a_caller_leaves(begun: bool, leave: Callable[[RawClient], None]) -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        if begun:
            await conn.send_head(200, [CHUNKED])
            await conn.chunk(b"first")
        points.reach("asked")
        await conn.closed(SOON)
        points.reach("cancelled")

    async with ScriptedUpstream(script) as up, direct(up) as gate, gate.caller() as c:
        await c.post("/", body=b"{}")
        await points.wait("asked")
        if begun:
            await c.read_head()
            assert await c.read_chunk() == b"first"
        leave(c)
        await points.wait("cancelled")
        assert await gate.records.outcome() is Outcome.CALLER_LEFT
        await becomes(lambda: gate.pool.open == 0 and not gate.gateway.live, "the exchange to be forgotten")


async def test_an_upstream_that_breaks_before_its_head_is_answered_for() -> None:
    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        conn.abort()

    async with ScriptedUpstream(script) as up, direct(up) as gate, gate.caller() as c:
        await c.get("/")
        assert (await c.read_response()).status == 502
        assert await gate.records.outcome() is Outcome.UPSTREAM_BROKE


async def test_an_upstream_that_breaks_in_the_midst_is_seen_to() -> None:
    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [CHUNKED])
        await conn.chunk(b"first")
        conn.close()

    async with ScriptedUpstream(script) as up, direct(up) as gate, gate.caller() as c:
        await c.get("/")
        with pytest.raises(BrokenResponse):
            await c.read_response()
        assert await gate.records.outcome() is Outcome.UPSTREAM_BROKE


async def test_an_upstream_that_stays_silent_is_given_up() -> None:
    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.closed()

    timeouts = Timeouts(first_byte=0.05)
    async with ScriptedUpstream(script) as up, direct(up, timeouts=timeouts) as gate, gate.caller() as c:
        await c.get("/")
        assert (await c.read_response()).status == 504
        assert await gate.records.outcome() is Outcome.TIMED_OUT


@pytest.mark.parametrize("begun", [False, True], ids=["before the head", "in the midst"])
async def test_the_gateway_stops(begun: bool) -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        if begun:
            await conn.send_head(200, [CHUNKED])
            await conn.chunk(b"first")
        points.reach("asked")
        await conn.closed()

    async with ScriptedUpstream(script) as up, direct(up) as gate, gate.caller() as c:
        await c.get("/")
        await points.wait("asked")
        if begun:
            await c.read_head()
        assert await gate.gateway.stop() == 1
        assert gate.gateway.live == {}
        assert await gate.records.outcome() is Outcome.GATEWAY_STOPPED


async def test_a_caller_who_reads_slowly_gets_the_end_too() -> None:
    body = bytes(8 * 1024 * 1024)
    async with (
        ScriptedUpstream(respond(body=body)) as up,
        direct(up) as gate,
        gate.caller(receive_buffer=8192) as slow,
        gate.caller() as quick,
    ):
        await slow.get("/")
        slow.stop_reading()
        await quick.get("/healthz")
        assert (await quick.read_response()).status == 200
        slow.resume_reading()
        assert (await slow.read_response()).body == body
        await slow.get("/healthz")
        assert (await slow.read_response()).status == 200


async def test_an_answer_that_comes_before_the_upload_has_ended() -> None:
    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_response(413, body=b"too long")
        await conn.closed()

    async with ScriptedUpstream(script) as up, direct(up) as gate, gate.caller() as c:
        await c.request("POST", "/", [(b"Content-Length", b"10")], b"12345")
        answer = await c.read_response()
        assert (answer.status, answer.body) == (413, b"too long")
        assert await gate.records.outcome() is Outcome.COMPLETED


async def test_requests_that_arrive_together_are_answered_in_order() -> None:
    async def echo(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_response(body=request.target)

    async with ScriptedUpstream(serve_forever(echo)) as up, direct(up) as gate, gate.caller() as c:
        head = b" HTTP/1.1\r\nHost: " + gate.host + b"\r\n\r\n"
        await c.send(b"GET /one" + head + b"GET /two" + head + b"GET /three" + head)
        assert [(await c.read_response("GET")).body for _ in range(3)] == [b"/one", b"/two", b"/three"]
        assert await gate.records.outcomes(3) == [Outcome.COMPLETED] * 3


async def test_what_a_link_sets_in_its_context_ends_with_the_request() -> None:
    seen: list[str] = []

    def act(request: web.Request, exchange: Exchange) -> None:
        seen.append(_AROUND.get())
        _AROUND.set(exchange.path)

    async with ScriptedUpstream(respond(body=b"{}")) as up, direct(up, act) as gate, gate.caller() as c:
        for target in ("/one", "/two"):
            await c.get(target)
            await c.read_response()
    assert seen == ["", ""]


async def test_a_link_that_refuses_and_one_that_answers() -> None:
    async def answer() -> web.StreamResponse:
        return OwnResponse(text="mine")

    def act(request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse] | None:
        if exchange.path == "/refused":
            raise ExchangeError("no", "No.", status=403)
        return answer() if exchange.path == "/mine" else None

    async with ScriptedUpstream(respond(body=b"theirs")) as up, direct(up, act) as gate, gate.caller() as c:
        for target, status, body in (("/refused", 403, b"No."), ("/mine", 200, b"mine"), ("/theirs", 200, b"theirs")):
            await c.get(target)
            response = await c.read_response()
            assert response.status == status
            assert body in response.body
        assert (await gate.records.outcomes(3))[0] is Outcome.REFUSED


async def test_a_link_that_fails_is_a_fault_of_the_gateway() -> None:
    def act(request: web.Request, exchange: Exchange) -> None:
        raise ValueError("secret")

    async with ScriptedUpstream(respond(body=b"{}")) as up, direct(up, act) as gate, gate.caller() as c:
        await c.get("/")
        response = await c.read_response()
        assert response.status == 500
        assert b"secret" not in response.body
        assert await gate.records.outcome() is Outcome.GATEWAY_FAULT

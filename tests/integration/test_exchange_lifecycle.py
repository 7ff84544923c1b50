"""The life of an exchange on a real gateway: what observers hear, what links may do, and one true end on every path."""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable

import attrs
import pytest
from aiohttp import web

from fiedler_proxy import exchange as exchange_module
from fiedler_proxy.errors import ExchangeError, Fault
from fiedler_proxy.exchange import Exchange, Observer, Outcome
from fiedler_proxy.lifecycle import EXCHANGE, Link
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import (
    Abort,
    BrokenResponse,
    Close,
    RawClient,
    ReadHead,
    ReceivedRequest,
    Rendezvous,
    ScriptedUpstream,
    Send,
    Stall,
    UpstreamConnection,
    chunk_bytes,
    respond,
    serve_forever,
)
from fiedler_proxy.testing.rendezvous import GUARD
from fiedler_proxy.upstream import PoolLimits, Timeouts

from .helpers import SOON, Serving, becomes, deaf_port, relaying

CHUNKED = (b"Transfer-Encoding", b"chunked")
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"
SECRET = "what an exception quotes"
ANTHROPIC = [(b"anthropic-version", b"2023-06-01")]


@web.middleware
@attrs.frozen(eq=False)
class Observing:
    """A link that attaches an observer."""

    observer: Observer

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request[EXCHANGE].observe(self.observer)
        return await handler(request)


def answering(act: Callable[[web.Request, Handler], "web.StreamResponse | None"]) -> Link:
    """A link that acts by itself, without calling the next one."""

    @web.middleware
    async def link(request: web.Request, handler: Handler) -> web.StreamResponse:
        return act(request, handler)  # type: ignore[return-value]

    return link


def peeked(transport: asyncio.BaseTransport) -> bytes:
    """What waits in the kernel for the reader of ``transport``, left where it is."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as twin:
        try:
            return twin.recv(1_000_000, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""


# Observers.


class Witness(Observer):
    """Looks at the other side's socket while it is told of bytes: they must not be there yet."""

    def __init__(self) -> None:
        self.caller: RawClient | None = None
        self.upstream: UpstreamConnection | None = None
        self.heard: list[bytes] = []

    def request_head(self, exchange: Exchange) -> None:
        self.heard.append(b"request head")

    def request_bytes(self, exchange: Exchange, data: bytes) -> None:
        if self.upstream is not None:
            assert data not in peeked(self.upstream.peer.transport)
        self.heard.append(data)

    def response_head(self, exchange: Exchange) -> None:
        assert self.caller is not None
        assert b"HTTP/1.1" not in peeked(self.caller.peer.transport)
        self.heard.append(b"response head")

    def response_bytes(self, exchange: Exchange, data: bytes) -> None:
        assert self.caller is not None
        assert data not in peeked(self.caller.peer.transport)
        self.heard.append(data)

    def closed(self, exchange: Exchange) -> None:
        self.heard.append(b"closed")


async def test_observers_hear_every_byte_in_order_before_it_is_written() -> None:
    points = Rendezvous()
    witness = Witness()

    async def script(conn: UpstreamConnection) -> None:
        request = await conn.request()
        witness.upstream = conn
        for piece in (b"up one", b"up two"):
            assert await request.read_some() == piece
            points.reach(piece.decode())
        assert await request.read_some() == b""
        await conn.send_head(200, [CHUNKED])
        for piece in (b"down one", b"down two", b"down three"):
            await conn.chunk(piece)
            await points.wait(piece.decode())
        await conn.end_chunks()

    async with ScriptedUpstream(script) as up, relaying(up, Observing(witness)) as gate, gate.caller() as c:
        witness.caller = c
        await c.post("/", [CHUNKED])
        await up.wait_for_requests(1)
        for piece in (b"up one", b"up two"):
            await c.send(chunk_bytes(piece))
            await points.wait(piece.decode())
        await c.send(LAST)
        await c.read_head()
        for piece in (b"down one", b"down two", b"down three"):
            assert await c.read_chunk() == piece
            points.reach(piece.decode())
        assert await c.read_chunk() == b""
        (recorder,) = await gate.records.ended()
        assert witness.heard == [
            b"request head",
            b"up one",
            b"up two",
            b"response head",
            b"down one",
            b"down two",
            b"down three",
            b"closed",
        ]
        assert "detached" not in recorder.exchange.facts


class Facts(Observer):
    """Notes what is known of an exchange at its head and at its end."""

    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def request_head(self, exchange: Exchange) -> None:
        self.seen.append(("request", exchange.method, exchange.target, exchange.path, exchange.upstream is not None))

    def response_head(self, exchange: Exchange) -> None:
        self.seen.append(("response", exchange.status, exchange.reason, exchange.response_headers, exchange.head_sent))

    def closed(self, exchange: Exchange) -> None:
        times = exchange.first_byte is not None and exchange.ended is not None
        self.seen.append(("closed", exchange.outcome, exchange.request_size, exchange.response_size, times))


async def test_an_observer_knows_the_facts_at_head_and_end() -> None:
    facts = Facts()
    script = respond(201, [(b"X-Odd", b"caf\xe9"), (b"Keep-Alive", b"x")], b"hello")
    async with ScriptedUpstream(script) as up, relaying(up, Observing(facts), base="/base") as gate:
        async with gate.caller() as c:
            await c.post("/v1/x?key=secret", body=b"abc")
            await c.read_response()
            (recorder,) = await gate.records.ended()
            end_to_end = ((b"X-Odd", b"caf\xe9"), (b"Content-Length", b"5"))
            assert facts.seen == [
                ("request", "POST", "/v1/x?key=secret", "/v1/x", True),
                ("response", 201, "Created", end_to_end, True),
                ("closed", Outcome.COMPLETED, 3, 5, True),
            ]
            exchange = recorder.exchange
            assert exchange.ended is not None
            assert exchange.first_byte is not None
            assert exchange.started <= exchange.first_byte <= exchange.ended
            assert exchange.remote == "127.0.0.1"


class Raising(Observer):
    """Raises in one of its methods, and counts what it hears afterwards."""

    def __init__(self, where: str) -> None:
        self.calls = 0
        for name in ("request_head", "request_bytes", "response_head", "response_bytes", "closed"):
            setattr(self, name, self._raise if name == where else self._count)
        self.raised = False

    def _raise(self, exchange: Exchange, data: bytes = b"") -> None:
        self.raised = True
        raise RuntimeError(SECRET)

    def _count(self, exchange: Exchange, data: bytes = b"") -> None:
        assert not self.raised
        self.calls += 1


@pytest.mark.parametrize("where", ["request_head", "request_bytes", "response_head", "response_bytes", "closed"])
async def test_an_observer_is_detached_at_its_first_exception_and_the_stream_goes_on(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    observer = Raising(where)
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await (await conn.request()).body()
        await conn.send_head(200, [CHUNKED])
        for piece in (b"one", b"two"):
            await conn.chunk(piece)
            await points.wait(piece.decode())
        await conn.end_chunks()

    async with ScriptedUpstream(script) as up, relaying(up, Observing(observer)) as gate, gate.caller() as c:
        await c.post("/", body=b"abc")
        await c.read_head()
        for piece in (b"one", b"two"):
            assert await c.read_chunk() == piece
            points.reach(piece.decode())
        assert await c.read_chunk() == b""
        (recorder,) = await gate.records.ended()
        await becomes(lambda: "detached" in recorder.exchange.facts, "the report")
        assert observer.raised
        assert (recorder.request_body, recorder.response_body) == (b"abc", b"onetwo")
        assert recorder.outcomes == [Outcome.COMPLETED]
    assert "Raising" in caplog.text
    assert recorder.exchange.id in caplog.text
    assert SECRET not in caplog.text


async def test_a_slow_observer_is_detached_and_the_stream_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[bytes] = []

    class Slow(Observer):
        def response_bytes(self, exchange: Exchange, data: bytes) -> None:
            heard.append(data)

    monkeypatch.setattr(exchange_module, "OBSERVER_SLOW_SECONDS", -1.0)  # every call counts as slow
    pieces = [b"%d" % number for number in range(exchange_module.OBSERVER_STRIKES + 3)]
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [CHUNKED])
        for piece in pieces:
            await conn.chunk(piece)
            await points.wait(piece.decode())
        await conn.end_chunks()

    async with ScriptedUpstream(script) as up, relaying(up, Observing(Slow())) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_head()
        for piece in pieces:
            assert await c.read_chunk() == piece
            points.reach(piece.decode())
        assert await c.read_chunk() == b""
    assert heard == pieces[: exchange_module.OBSERVER_STRIKES]
    assert "Slow" in caplog.text


# Headers of links.


def adding(*pairs: tuple[str, str]) -> Link:
    @web.middleware
    async def link(request: web.Request, handler: Handler) -> web.StreamResponse:
        for name, value in pairs:
            request[EXCHANGE].add_response_header(name, value)
        return await handler(request)

    return link


async def test_added_headers_replace_their_namesakes_of_the_upstream() -> None:
    script = respond(200, [(b"X-Twice", b"1"), (b"x-kgb-A", b"upstream's"), (b"X-Twice", b"2"), (b"X-KGB-A", b"again")])
    link = adding(("x-kgb-a", "ours"), ("x-kgb-b", "b"))
    async with ScriptedUpstream(script) as up, relaying(up, link) as gate, gate.caller() as c:
        await c.get("/")
        response = await c.read_response()
        assert response.headers == [
            (b"X-Twice", b"1"),
            (b"X-Twice", b"2"),
            (b"Content-Length", b"0"),
            (b"x-kgb-a", b"ours"),
            (b"x-kgb-b", b"b"),
        ]


@pytest.mark.parametrize("kind", ["error", "answer", "stream", "http exception"])
async def test_added_headers_stand_on_answers_of_our_own_too(kind: str) -> None:
    @web.middleware
    async def own(request: web.Request, handler: Handler) -> web.StreamResponse:
        if kind == "error":
            raise ExchangeError("denied", "No.", status=403)
        if kind == "http exception":
            raise web.HTTPForbidden(text="no")
        if kind == "answer":
            return web.Response(text="no")
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"no")
        return response

    link = adding(("x-kgb-request-id", "the id"))
    async with ScriptedUpstream() as up, relaying(up, link, own) as gate, gate.caller() as c:
        await c.get("/")
        response = await c.read_response()
        assert response.header("x-kgb-request-id") == b"the id"
        assert response.header("server") is None
        assert up.connections == []


async def test_a_header_cannot_be_added_once_the_head_has_left() -> None:
    errors: list[str] = []

    @web.middleware
    async def late(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = await handler(request)
        with pytest.raises(RuntimeError) as error:
            request[EXCHANGE].add_response_header("x-late", "1")
        errors.append(str(error.value))
        return response

    async with ScriptedUpstream(respond(body=b"x")) as up, relaying(up, late) as gate, gate.caller() as c:
        await c.get("/")
        assert (await c.read_response()).body == b"x"
        assert await gate.records.outcome() is Outcome.COMPLETED
        assert "x-late" in errors[0]


async def test_a_link_may_take_a_request_header_away() -> None:
    @web.middleware
    async def taking(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[EXCHANGE].remove_request_headers(lambda name, value: value == b"Bearer kgb")
        return await handler(request)

    async with ScriptedUpstream() as up, relaying(up, taking) as gate, gate.caller() as c:
        key, own = (b"Authorization", b"Bearer kgb"), (b"authorization", b"Bearer own")
        await c.get("/", [key, own, (b"x-api-key", b"Bearer kgb")])
        await c.read_response()
        assert up.requests[0].without("host") == [own]


# Answers of links.


async def test_a_link_answers_itself() -> None:
    link = answering(lambda request, handler: web.Response(text="hello", headers={"X-A": "1"}))
    async with ScriptedUpstream() as up, relaying(up, link) as gate, gate.caller() as c:
        for _ in range(2):
            await c.post("/", body=b"ignored")
            response = await c.read_response()
            assert (response.status, response.body, response.header("x-a")) == (200, b"hello", b"1")
        for recorder in await gate.records.ended(2):
            assert (recorder.response_body, recorder.outcomes) == (b"hello", [Outcome.COMPLETED])
            assert recorder.calls == ["response_head", "response_bytes", "closed"]
            assert (recorder.exchange.status, recorder.exchange.response_size) == (200, 5)
        assert up.connections == []


async def test_a_link_streams_an_answer_itself_and_observers_hear_it() -> None:
    points = Rendezvous()

    @web.middleware
    async def streaming(request: web.Request, handler: Handler) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in (b"one", b"two"):
            await response.write(piece)
            await points.wait(piece.decode())
        await response.write_eof()
        return response

    async with ScriptedUpstream() as up, relaying(up, streaming) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_head()
        for piece in (b"one", b"two"):
            assert await c.read_chunk() == piece
            points.reach(piece.decode())
        assert await c.read_chunk() == b""
        (recorder,) = await gate.records.ended()
        assert (recorder.response_body, recorder.outcomes) == (b"onetwo", [Outcome.COMPLETED])
        assert up.connections == []


class Boom(Exception):
    pass


async def test_an_unknown_exception_of_a_link_is_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    def boom(request: web.Request, handler: Handler) -> None:
        raise Boom(SECRET)

    caplog.set_level(logging.DEBUG)
    async with ScriptedUpstream() as up, relaying(up, answering(boom)) as gate, gate.caller() as c:
        await c.post("/v1/messages", ANTHROPIC, b"{}")
        response = await c.read_response()
        assert (response.status, response.header("x-kgb-error")) == (500, b"gateway_fault")
        document = json.loads(response.body)
        assert document["error"]["type"] == "api_error"
        assert SECRET.encode() not in response.body
        assert b"Boom" not in response.body
        assert await gate.records.outcome() is Outcome.GATEWAY_FAULT
        await c.get("/healthz")
        assert (await c.read_response()).status == 200
    assert SECRET not in caplog.text
    assert "Boom" in caplog.text
    assert document["request_id"] in caplog.text


# One close with the true outcome on every path.


def raising(error: Exception) -> Link:
    def act(request: web.Request, handler: Handler) -> None:
        raise error

    return answering(act)


@web.middleware
async def fails_after_the_relay(request: web.Request, handler: Handler) -> web.StreamResponse:
    await handler(request)
    raise Boom


@web.middleware
async def refuses_after_the_relay(request: web.Request, handler: Handler) -> web.StreamResponse:
    await handler(request)
    raise ExchangeError("too_late", "No.", status=403)


@web.middleware
async def second_response(request: web.Request, handler: Handler) -> web.StreamResponse:
    await handler(request)
    return web.Response(text="EVIL")


@web.middleware
async def asks_twice(request: web.Request, handler: Handler) -> web.StreamResponse:
    await handler(request)
    return await handler(request)


@web.middleware
async def swallows(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What an author writes who wants to be kind: any failure becomes a friendly answer."""
    try:
        return await handler(request)
    except Exception:
        return web.Response(text="friendly")


@web.middleware
async def half_an_answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"half")
    raise Boom


OK = respond(body=b"fine")
LINK_PATHS: dict[str, tuple[Link, Outcome, int, bool]] = {
    "returns an answer": (answering(lambda r, h: web.Response(text="x")), Outcome.COMPLETED, 200, True),
    "returns an error": (answering(lambda r, h: web.Response(status=429)), Outcome.REFUSED, 429, True),
    "raises HTTPException": (raising(web.HTTPTooManyRequests(text="x")), Outcome.REFUSED, 429, True),
    "raises a redirect": (raising(web.HTTPFound("/x")), Outcome.COMPLETED, 302, True),
    "refuses": (raising(ExchangeError("no", "No.", status=403)), Outcome.REFUSED, 403, True),
    "is too busy": (raising(ExchangeError("b", "B.", status=503, fault=Fault.GATEWAY)), Outcome.REFUSED, 503, True),
    "raises": (raising(Boom()), Outcome.GATEWAY_FAULT, 500, True),
    "raises a connection error of its own": (raising(ConnectionResetError()), Outcome.GATEWAY_FAULT, 500, True),
    "raises TimeoutError": (raising(TimeoutError()), Outcome.GATEWAY_FAULT, 500, True),
    "returns nothing": (answering(lambda r, h: None), Outcome.GATEWAY_FAULT, 500, True),
    "fails after the relay": (fails_after_the_relay, Outcome.GATEWAY_FAULT, 200, False),
    "refuses after the relay": (refuses_after_the_relay, Outcome.REFUSED, 200, False),
    "answers after the relay": (second_response, Outcome.GATEWAY_FAULT, 200, False),
    "asks the relay twice": (asks_twice, Outcome.GATEWAY_FAULT, 200, False),
}


@pytest.mark.parametrize("path", LINK_PATHS)
async def test_one_close_with_the_true_outcome_whatever_a_link_does(path: str) -> None:
    link, outcome, status, goes_on = LINK_PATHS[path]
    async with ScriptedUpstream(OK) as up, relaying(up, link) as gate, gate.caller() as c:
        await c.get("/")
        response = await c.read_response()
        assert response.status == status
        assert await gate.records.outcome() is outcome
        assert len(up.requests) == (0 if goes_on else 1)
        if goes_on:
            await c.get("/healthz")
            assert (await c.read_response()).status == 200
        else:
            assert response.body == b"fine"
            rest, _ = await c.read_until_close()
            assert rest == b""  # a response after the response would be read as the answer to the next request


async def test_half_an_answer_of_a_link_that_raises_is_visibly_broken() -> None:
    async with ScriptedUpstream() as up, relaying(up, half_an_answer) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_head()
        with pytest.raises(BrokenResponse) as broken:
            await c.read_body()
        assert broken.value.received == b"half"
        assert await gate.records.outcome() is Outcome.GATEWAY_FAULT


@pytest.mark.parametrize("headers", [CHUNKED_HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"])
async def test_trap_a_link_that_swallows_a_broken_stream_cannot_make_it_look_whole(headers: bytes) -> None:
    points = Rendezvous()

    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send(headers + (chunk_bytes(b"some") if headers is CHUNKED_HEAD else b"some"))
        await points.wait("read")
        conn.abort()

    async with ScriptedUpstream(script) as up, relaying(up, swallows) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_head()
        assert await c.read_some() == b"some"
        points.reach("read")
        with pytest.raises(BrokenResponse) as broken:
            await c.read_body()
        assert broken.value.received == b"some"
        assert await gate.records.outcome() is Outcome.UPSTREAM_BROKE


UPSTREAM_PATHS: dict[str, tuple[object, Outcome]] = {
    "completes": (OK, Outcome.COMPLETED),
    "answers with an error": (respond(500), Outcome.COMPLETED),
    "closes": ([ReadHead(), Close()], Outcome.UPSTREAM_BROKE),
    "resets": ([ReadHead(), Abort()], Outcome.UPSTREAM_BROKE),
    "breaks in mid-stream": ([ReadHead(), Send(CHUNKED_HEAD + b"3\r\nabc\r\nzz\r\n"), Stall()], Outcome.UPSTREAM_BROKE),
    "stalls before its head": ([ReadHead(), Stall()], Outcome.TIMED_OUT),
    "stalls in mid-stream": ([ReadHead(), Send(CHUNKED_HEAD + b"3\r\nabc\r\n"), Stall()], Outcome.TIMED_OUT),
}


@pytest.mark.parametrize("path", UPSTREAM_PATHS)
async def test_one_close_with_the_true_outcome_whatever_the_upstream_does(path: str) -> None:
    script, outcome = UPSTREAM_PATHS[path]
    timeouts = Timeouts(first_byte=0.1, idle=0.1) if outcome is Outcome.TIMED_OUT else None
    async with ScriptedUpstream(script) as up, relaying(up, timeouts=timeouts) as gate, gate.caller() as c:  # type: ignore[arg-type]
        await c.get("/")
        assert await gate.records.outcome() is outcome
        assert gate.records.all[0].calls.count("closed") == 1
        await becomes(lambda: not gate.gateway.live, "nothing to be live")


# Draining and stopping.


class Streaming:
    """An upstream whose streams go on until the test says so."""

    def __init__(self) -> None:
        self.points = Rendezvous()

    async def script(self, conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [CHUNKED])
        await conn.chunk(b"first")
        await self.points.wait("finish")
        await conn.chunk(b"last")
        await conn.end_chunks()
        await conn.stall()


async def ready(gate: Serving) -> int:
    async with gate.caller() as c:
        await c.get("/readyz")
        return (await c.read_response()).status


async def test_a_drain_lets_streams_finish_and_takes_readiness_back() -> None:
    streaming = Streaming()
    async with ScriptedUpstream(streaming.script) as up, relaying(up) as gate, gate.caller() as c:
        assert await ready(gate) == 200
        await c.get("/")
        await c.read_head()
        assert await c.read_chunk() == b"first"
        draining = asyncio.create_task(gate.gateway.drain(GUARD))
        await becomes(lambda: gate.gateway.draining, "the drain to begin")
        assert await ready(gate) == 503
        assert not draining.done()
        streaming.points.reach("finish")
        assert await c.read_chunk() == b"last"
        assert await c.read_chunk() == b""
        assert await draining == 0
        assert await gate.records.outcome() is Outcome.COMPLETED


async def test_answers_during_a_drain_close_their_connections() -> None:
    async with ScriptedUpstream(OK) as up, relaying(up) as gate, gate.caller() as a, gate.caller() as b:
        gate.gateway.draining = True
        await a.get("/")
        response = await a.read_response()
        assert (response.body, response.header("connection")) == (b"fine", b"close")
        assert not await a.closed()
        await b.get("/healthz")
        assert (await b.read_response()).header("connection") == b"close"
        assert not await b.closed()


@pytest.mark.parametrize("how", ["drain", "stop"])
async def test_what_does_not_finish_in_time_ends_as_gateway_stopped(how: str) -> None:
    streaming = Streaming()
    async with ScriptedUpstream(streaming.script) as up, relaying(up) as gate, gate.caller() as c:
        await c.get("/")
        await c.read_head()
        assert await c.read_chunk() == b"first"
        ended = await (gate.gateway.drain(0.05) if how == "drain" else gate.gateway.stop())
        assert ended == 1
        with pytest.raises(BrokenResponse) as broken:
            await c.read_body()
        assert broken.value.received == b"first"
        assert await gate.records.outcome() is Outcome.GATEWAY_STOPPED
        await up.connections[0].closed(SOON)
        assert not gate.gateway.live


async def test_a_stop_before_the_head_is_told_in_the_callers_dialect() -> None:
    async with ScriptedUpstream([ReadHead(), Stall()]) as up, relaying(up) as gate, gate.caller() as c:
        await c.post("/v1/messages", ANTHROPIC, b"{}")
        await up.wait_for_requests(1)
        assert await gate.gateway.stop() == 1
        response = await c.read_response()
        assert (response.status, response.header("x-kgb-error")) == (503, b"gateway_stopping")
        assert json.loads(response.body)["type"] == "error"
        assert await gate.records.outcome() is Outcome.GATEWAY_STOPPED
        await up.connections[0].closed(SOON)


@web.middleware
async def holding_behind(request: web.Request, handler: Handler) -> web.StreamResponse:
    await handler(request)
    await asyncio.Event().wait()
    raise AssertionError


@web.middleware
async def holding(request: web.Request, handler: Handler) -> web.StreamResponse:
    await asyncio.Event().wait()
    return await handler(request)


@pytest.mark.parametrize("where", ["dialling", "queueing", "in a link", "behind the relay", "uploading"])
async def test_a_stop_ends_whatever_holds_an_exchange(where: str) -> None:
    links = {"in a link": [holding], "behind the relay": [holding_behind]}.get(where, [])
    limits = PoolLimits(connections=1)
    with deaf_port() as port:
        async with ScriptedUpstream(OK if where == "behind the relay" else [ReadHead(), Stall()]) as up:
            url = f"http://127.0.0.1:{port}" if where == "dialling" else up.url
            async with relaying(url, *links, limits=limits) as gate, gate.caller() as a, gate.caller() as b:
                await a.post("/", [CHUNKED] if where == "uploading" else [])
                await gate.records.begun()
                if where == "queueing":
                    await b.get("/")
                    await becomes(lambda: gate.pool.waiting == 1, "the queue")
                if where == "behind the relay":
                    await a.read_response()
                count = len(gate.gateway.live)
                assert await gate.gateway.stop() == count
                outcomes = await gate.records.outcomes(count)
                assert outcomes == [Outcome.GATEWAY_STOPPED] * count
                assert not gate.gateway.live
                await becomes(lambda: gate.pool.open == gate.pool.idle, "the connections to go")
                assert gate.pool.waiting == 0


async def test_trap_shutdown_waits_for_no_timeout_however_long() -> None:
    """shutdown_timeout is waited up to twice: an hour here. What still runs is ended first instead."""
    streaming = Streaming()
    async with ScriptedUpstream(streaming.script) as up:
        async with asyncio.timeout(GUARD):
            async with relaying(up, shutdown_timeout=3600.0) as gate:
                c = await gate.caller().__aenter__()
                await c.get("/")
                await c.read_head()
                assert await c.read_chunk() == b"first"
                idle = await gate.caller().__aenter__()
                await idle.get("/healthz")
                await idle.read_response()
        assert await gate.records.outcome() is Outcome.GATEWAY_STOPPED
        await c.closed()
        await idle.closed()
        await c.__aexit__(None, None, None)
        await idle.__aexit__(None, None, None)


async def test_a_stopped_gateway_leaves_no_idle_connection_behind() -> None:
    @serve_forever
    async def script(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await conn.send_response()

    async with ScriptedUpstream(script) as up:
        async with relaying(up) as gate, gate.caller() as c:
            await c.get("/")
            await c.read_response()
            await gate.settled(1)
        assert not await up.connections[0].closed(SOON)


async def test_a_stop_does_not_wait_for_a_caller_that_does_not_read() -> None:
    async def script(conn: UpstreamConnection) -> None:
        await conn.request()
        await conn.send_head(200, [CHUNKED])
        while True:
            await conn.send(chunk_bytes(bytes(1_000_000)))

    async with ScriptedUpstream(script) as up, asyncio.timeout(GUARD):
        async with relaying(up, shutdown_timeout=3600.0) as gate:
            c = await gate.caller(receive_buffer=32 * 1024).__aenter__()
            await c.get("/")
            await c.read_head()
            c.stop_reading()
            (connection,) = gate.upstream_connections
            await becomes(lambda: connection.reading_paused, "the upstream to be paused")
            assert await gate.gateway.stop() == 1
            assert await gate.records.outcome() is Outcome.GATEWAY_STOPPED
        c.abort()
        await c.__aexit__(None, None, None)


async def test_once_stopped_nothing_begins_that_nobody_would_end() -> None:
    """What was on its way when the last exchange had ended: its records may be closed by then."""
    async with ScriptedUpstream() as up, relaying(up) as gate, gate.caller() as caller:
        await caller.get("/")
        await caller.read_response()
        gate.gateway.stopping = True
        await caller.get("/late")
        assert (await caller.read_until_close())[0] == b""
        assert len(gate.records.all) == 1
        assert len(up.requests) == 1

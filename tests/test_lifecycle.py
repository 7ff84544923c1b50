"""The edge: every request becomes an exchange, every exchange ends exactly once and truthfully, and draining ends all."""

import asyncio
import contextlib
import contextvars
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import attrs
import pytest
from aiohttp import web

from fiedler_proxy.errors import ExchangeError, Fault
from fiedler_proxy.exchange import Exchange, Observer, Outcome
from fiedler_proxy.lifecycle import EXCHANGE, GATEWAY, Gateway, Link, ResponseCut, create_application, error_outcome
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import Address, BrokenResponse, RawClient, ReceivedResponse, Rendezvous, start_app
from fiedler_proxy.testing.rendezvous import Signal
from fiedler_proxy.upstream import parse_upstream

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

Terminal = Callable[[web.Request], Awaitable[web.StreamResponse]]


@attrs.define(eq=False)
class Watch(Observer):
    """A link and an observer in one: it keeps every exchange and what was heard of it."""

    exchanges: list[Exchange] = attrs.field(factory=list)
    ends: list[Outcome | None] = attrs.field(factory=list)
    bodies: list[bytes] = attrs.field(factory=list)
    heads: list[tuple[int, tuple[tuple[bytes, bytes], ...]]] = attrs.field(factory=list)
    signal: Signal = attrs.field(factory=Signal)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        exchange.observe(self)
        self.exchanges.append(exchange)
        return await handler(request)

    def response_head(self, exchange: Exchange) -> None:
        self.heads.append((exchange.status, exchange.response_headers))

    def response_bytes(self, exchange: Exchange, data: bytes) -> None:
        self.bodies.append(data)

    def closed(self, exchange: Exchange) -> None:
        self.ends.append(exchange.outcome)
        self.signal.notify()

    async def end(self, count: int = 1) -> Outcome | None:
        """Wait until ``count`` exchanges have ended; how the last one did. Each ended once."""
        await self.signal.until(lambda: len(self.ends) >= count, lambda: f"{count} ends, not {self.ends}")
        assert len(self.ends) == count
        return self.ends[-1]


@attrs.define(eq=False)
class Edge:
    """A served application and what was seen in it."""

    watch: Watch
    gateway: Gateway
    address: Address

    def caller(self) -> RawClient:
        return RawClient(self.address.host, self.address.port)

    async def get(self, *headers: tuple[str, str], target: str = "/v1/messages") -> ReceivedResponse:
        async with self.caller() as client:
            await client.get(target, headers)
            return await client.read_response()


@contextlib.asynccontextmanager
async def edge(terminal: Terminal, *links: Link) -> AsyncIterator[Edge]:
    watch, gateway = Watch(), Gateway(parse_upstream("http://127.0.0.1:9"))
    async with start_app(create_application(gateway, [watch, *links], terminal)) as address:
        yield Edge(watch, gateway, address)
    assert not gateway.live


def raising(error: BaseException) -> Terminal:
    async def terminal(request: web.Request) -> web.StreamResponse:
        raise error

    return terminal


async def ok(request: web.Request) -> web.StreamResponse:
    return web.Response(text="ok")


async def begin(request: web.Request) -> web.StreamResponse:
    """A response that has begun: its head and some of its body have left."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"begun")
    return response


class TestOpening:
    async def test_a_request_becomes_an_exchange(self) -> None:
        async with edge(ok) as served:
            async with served.caller() as client:
                await client.post("/v1//x?key=s3cret", [("X-A", "1"), ("x-a", "2")], b"body")
                await client.read_response()
            (exchange,) = served.watch.exchanges
            assert (exchange.method, exchange.target, exchange.path) == ("POST", "/v1//x?key=s3cret", "/v1//x")
            assert exchange.version == (1, 1)
            assert exchange.request_headers[1:3] == ((b"X-A", b"1"), (b"x-a", b"2"))
            assert exchange.remote == "127.0.0.1"
            assert exchange.upstream is served.gateway.upstream
            assert exchange.outcome is Outcome.COMPLETED

    async def test_ids_are_uuid7_and_rise(self) -> None:
        async with edge(ok) as served:
            for _ in range(3):
                await served.get()
            ids = [exchange.id for exchange in served.watch.exchanges]
        assert ids == sorted(set(ids))
        assert all(UUID7.fullmatch(text) for text in ids)


class TestEnding:
    """Exactly once, truthfully, on every path."""

    async def test_a_response_that_was_written_whole(self) -> None:
        async with edge(ok) as served:
            assert (await served.get()).body == b"ok"
            assert await served.watch.end() is Outcome.COMPLETED
            assert served.watch.bodies == [b"ok"]
            assert served.watch.exchanges[0].response_size == 2
            status, headers = served.watch.heads[0]
            assert status == 200
            assert (b"Content-Length", b"2") in headers

    @pytest.mark.parametrize(
        ("error", "outcome"),
        [
            (ExchangeError("c", "m", status=401), Outcome.REFUSED),
            (ExchangeError("c", "m", status=503, fault=Fault.GATEWAY), Outcome.REFUSED),
            (ExchangeError("c", "m", status=508, fault=Fault.GATEWAY), Outcome.GATEWAY_FAULT),
            (ExchangeError("c", "m", status=502, fault=Fault.UPSTREAM), Outcome.UPSTREAM_BROKE),
            (ExchangeError("c", "m", status=504, fault=Fault.UPSTREAM), Outcome.TIMED_OUT),
        ],
    )
    async def test_an_exchange_error(self, error: ExchangeError, outcome: Outcome) -> None:
        assert error_outcome(error) is outcome
        async with edge(raising(error)) as served:
            assert (await served.get()).status == error.status
            assert await served.watch.end() is outcome
            exchange = served.watch.exchanges[0]
            assert exchange.error_code == "c"
            assert exchange.facts["fault"] == str(error.fault)

    async def test_a_link_that_answers_itself(self) -> None:
        for status, outcome in ((200, Outcome.COMPLETED), (403, Outcome.REFUSED)):

            async def answer(request: web.Request, status: int = status) -> web.StreamResponse:
                return web.Response(status=status)

            async with edge(answer) as served:
                assert (await served.get()).status == status
                assert await served.watch.end() is outcome

    async def test_an_http_exception_of_aiohttp(self) -> None:
        async def refuse(request: web.Request) -> web.StreamResponse:
            raise web.HTTPForbidden(text="not you", headers={"X-Why": "because"})

        async with edge(refuse) as served:
            async with served.caller() as client:
                for count in (1, 2):
                    await client.get("/")
                    response = await client.read_response()
                    assert (response.status, response.body) == (403, b"not you")
                    assert response.header("x-why") == b"because"
                    assert await served.watch.end(count) is Outcome.REFUSED

    async def test_a_redirect_of_a_link_is_no_refusal(self) -> None:
        async with edge(raising(web.HTTPFound("/elsewhere"))) as served:
            response = await served.get()
            assert (response.status, response.header("location")) == (302, b"/elsewhere")
            assert await served.watch.end() is Outcome.COMPLETED

    @pytest.mark.parametrize("error", [RuntimeError("s3cret"), KeyError("s3cret"), TimeoutError("s3cret")])
    async def test_a_fault_of_a_link(self, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
        async with edge(raising(error)) as served:
            response = await served.get(("anthropic-version", "2023-06-01"))
            assert await served.watch.end() is Outcome.GATEWAY_FAULT
        assert response.status == 500
        body = json.loads(response.body)
        assert body["error"]["code"] == "gateway_fault"
        assert body["request_id"] == served.watch.exchanges[0].id
        assert served.watch.exchanges[0].id in caplog.text
        assert "in terminal" in caplog.text
        assert "s3cret" not in caplog.text + response.body.decode()

    @pytest.mark.parametrize("error", [ConnectionRefusedError(), ConnectionResetError(), BrokenPipeError()])
    async def test_a_links_own_connection_trouble_is_not_the_callers_leaving(self, error: ConnectionError) -> None:
        async with edge(raising(error)) as served:
            assert (await served.get()).status == 500
            assert await served.watch.end() is Outcome.GATEWAY_FAULT

    async def test_a_link_that_gets_itself_cancelled_is_not_the_callers_leaving(self) -> None:
        async with edge(raising(asyncio.CancelledError())) as served:
            async with served.caller() as client:
                await client.get("/")
                assert await client.closed() is False
            assert await served.watch.end() is Outcome.GATEWAY_FAULT

    @pytest.mark.parametrize("nothing", [None, "text", b"bytes", 200])
    async def test_a_link_that_returns_no_response(self, nothing: object) -> None:
        async def terminal(request: web.Request) -> web.StreamResponse:
            return nothing  # type: ignore[return-value]

        async with edge(terminal) as served:
            assert (await served.get()).status == 500
            assert await served.watch.end() is Outcome.GATEWAY_FAULT

    async def test_a_caller_who_leaves_before_the_answer(self) -> None:
        points = Rendezvous()

        async def terminal(request: web.Request) -> web.StreamResponse:
            points.reach("asked")
            await asyncio.Event().wait()
            raise AssertionError

        async with edge(terminal) as served:
            async with served.caller() as client:
                await client.get("/")
                await points.wait("asked")
                client.abort()
                assert await served.watch.end() is Outcome.CALLER_LEFT

    async def test_a_caller_who_leaves_in_mid_answer(self) -> None:
        async def terminal(request: web.Request) -> web.StreamResponse:
            response = await begin(request)
            while True:
                await response.write(b"x" * 65536)
                await asyncio.sleep(0)

        async with edge(terminal) as served:
            async with served.caller() as client:
                await client.get("/")
                await client.read_head()
                client.abort()
                assert await served.watch.end() is Outcome.CALLER_LEFT


class TestBroken:
    """A response that broke after its head is cut, never ended as if complete (law 4)."""

    @pytest.mark.parametrize(
        ("error", "outcome", "code"),
        [
            (ResponseCut(Outcome.UPSTREAM_BROKE, "upstream_broke"), Outcome.UPSTREAM_BROKE, "upstream_broke"),
            (ExchangeError("late", "m", status=502, fault=Fault.UPSTREAM), Outcome.UPSTREAM_BROKE, "late"),
            (RuntimeError(), Outcome.GATEWAY_FAULT, "gateway_fault"),
            (web.HTTPForbidden(), Outcome.GATEWAY_FAULT, "second_response"),
        ],
    )
    async def test_an_error_after_the_head(self, error: Exception, outcome: Outcome, code: str) -> None:
        async def terminal(request: web.Request) -> web.StreamResponse:
            await begin(request)
            raise error

        async with edge(terminal) as served:
            with pytest.raises(BrokenResponse) as caught:
                await served.get()
            assert caught.value.received == b"begun"
            assert await served.watch.end() is outcome
            assert served.watch.exchanges[0].error_code == code

    async def test_a_second_response_is_refused(self) -> None:
        async def terminal(request: web.Request) -> web.StreamResponse:
            await begin(request)
            return web.Response(text="another")

        async with edge(terminal) as served:
            with pytest.raises(BrokenResponse) as caught:
                await served.get()
            assert caught.value.received == b"begun"
            assert await served.watch.end() is Outcome.GATEWAY_FAULT

    async def test_a_response_that_a_link_began_is_ended(self) -> None:
        async with edge(begin) as served:
            assert (await served.get()).body == b"begun"
            assert await served.watch.end() is Outcome.COMPLETED
            assert served.watch.bodies == [b"begun"]


class TestOwnAnswers:
    ERROR = ExchangeError("no", "No.", status=429, hint="wait", retry=True, headers=[("Retry-After", "7")])

    @pytest.mark.parametrize(
        ("headers", "target", "shape"),
        [
            ([("anthropic-version", "2023-06-01")], "/v1/models", "type"),
            ([("authorization", "Bearer x")], "/v1/chat/completions", "error"),
            ([("x-goog-api-key", "x")], "/v1/models", "error"),
            ([], "/", "title"),
        ],
    )
    async def test_they_are_in_the_callers_dialect(
        self, headers: list[tuple[str, str]], target: str, shape: str
    ) -> None:
        async with edge(raising(self.ERROR)) as served:
            response = await served.get(*headers, target=target)
        body = json.loads(response.body)
        assert shape in body
        assert response.header("x-kgb-error") == b"no"
        assert response.header("retry-after") == b"7"
        assert response.header("x-should-retry") == b"true"
        assert response.header("x-kgb-request-id") == served.watch.exchanges[0].id.encode()
        assert response.header("server") is None

    async def test_an_answered_connection_stays(self) -> None:
        async with edge(raising(self.ERROR)) as served, served.caller() as client:
            for _ in range(2):
                await client.post("/v1/messages", body=b"{}")
                assert (await client.read_response()).status == 429

    @pytest.mark.parametrize("status", [400, 413, 501])
    async def test_where_the_next_request_begins_is_doubtful_the_connection_ends(self, status: int) -> None:
        async with edge(raising(ExchangeError("c", "m", status=status))) as served, served.caller() as client:
            await client.get("/")
            assert (await client.read_response()).header("connection") == b"close"
            assert await client.closed() is False

    async def test_a_body_that_is_still_coming_ends_the_connection(self) -> None:
        async with edge(raising(self.ERROR)) as served, served.caller() as client:
            await client.request("POST", "/", [("Content-Length", "1000000")], b"first")
            response = await client.read_response()
            assert response.status == 429
            assert response.header("connection") == b"close"

    async def test_added_headers_stand_in_them(self) -> None:
        async def label(request: web.Request, handler: Handler) -> web.StreamResponse:
            request[EXCHANGE].add_response_header("X-Label", "caf\xe9")
            request[EXCHANGE].add_response_header("retry-after", "9")
            return await handler(request)

        async with edge(raising(self.ERROR), label) as served:
            response = await served.get()
        assert response.header("x-label") == "caf\xe9".encode()
        assert response.all("retry-after") == [b"9"]

    async def test_head_gets_no_body(self) -> None:
        async with edge(raising(self.ERROR)) as served, served.caller() as client:
            await client.request("HEAD", "/")
            assert (await client.read_response()).body == b""
            await client.get("/")
            assert (await client.read_response()).status == 429


class TestComposition:
    async def test_links_run_in_order_and_see_the_gateway(self) -> None:
        order: list[str] = []

        def link(name: str) -> Link:
            async def run(request: web.Request, handler: Handler) -> web.StreamResponse:
                order.append(f"{name} in")
                assert request.app[GATEWAY].live == {request[EXCHANGE]: request}
                response = await handler(request)
                order.append(f"{name} out")
                return response

            return run

        async with edge(ok, link("a"), link("b")) as served:
            await served.get()
        assert order == ["a in", "b in", "b out", "a out"]

    async def test_a_link_with_a_context_is_started_and_stopped_with_the_application(self) -> None:
        life: list[str] = []

        class Living:
            async def context(self, app: web.Application) -> AsyncIterator[None]:
                life.append("started")
                yield
                life.append("stopped")

            async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
                life.append("asked")
                return await handler(request)

        async with edge(ok, Living()) as served:
            assert life == ["started"]
            await served.get()
        assert life == ["started", "asked", "stopped"]

    @pytest.mark.parametrize("declared", [True, False])
    async def test_changing_bytes_needs_a_declaration_in_the_chain(self, declared: bool) -> None:
        class Changing:
            transforms = declared

            async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
                request[EXCHANGE].replace_request_body(b"other")
                return await handler(request)

        async with edge(ok, Changing()) as served:
            assert (await served.get()).status == (200 if declared else 500)
            assert served.watch.exchanges[0].transformed is declared

    async def test_one_pool_an_upstream(self) -> None:
        gateway = Gateway(parse_upstream("http://a"))
        one, same, other = (gateway.pool(parse_upstream(url)) for url in ("http://b", "http://b/", "http://c"))
        assert one is same
        assert one is not other
        assert set(gateway.pools) == {one, other}
        assert set(gateway.upstreams) == {gateway.upstream, one.upstream, other.upstream}


class TestDraining:
    @staticmethod
    def held(points: Rendezvous) -> Terminal:
        async def terminal(request: web.Request) -> web.StreamResponse:
            points.reach("asked")
            await points.wait("go on")
            return web.Response(text="done")

        return terminal

    async def test_what_runs_may_finish(self) -> None:
        points = Rendezvous()
        async with edge(self.held(points)) as served, served.caller() as client:
            await client.get("/")
            await points.wait("asked")
            drain = asyncio.ensure_future(served.gateway.drain(15.0))
            while not served.gateway.draining:
                await asyncio.sleep(0)
            points.reach("go on")
            response = await client.read_response()
            assert response.body == b"done"
            assert response.header("connection") == b"close"
            assert await drain == 0
            assert await served.watch.end() is Outcome.COMPLETED

    async def test_what_does_not_finish_in_time_is_ended_and_counted(self) -> None:
        points = Rendezvous()
        async with edge(self.held(points)) as served, served.caller() as client:
            await client.get("/")
            await points.wait("asked")
            assert await served.gateway.drain(0.0) == 1
            assert await served.watch.end() is Outcome.GATEWAY_STOPPED
            assert await client.closed() is False

    async def test_stopping_ends_everything_at_once(self) -> None:
        points = Rendezvous()
        async with edge(self.held(points)) as served, served.caller() as one, served.caller() as two:
            for client in (one, two):
                await client.get("/")
            while len(served.gateway.live) < 2:
                await asyncio.sleep(0)
            assert await served.gateway.stop() == 2
            await served.watch.end(2)
            assert served.watch.ends == [Outcome.GATEWAY_STOPPED] * 2

    async def test_one_who_will_not_stop_does_not_hold_the_gateway_up_for_ever(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fiedler_proxy.lifecycle.ABORT_GRACE", 0.05)
        points = Rendezvous()

        async def stubborn(request: web.Request) -> web.StreamResponse:
            points.reach("asked")
            while not points.reached("go on"):
                with contextlib.suppress(asyncio.CancelledError):
                    await points.wait("go on")
            return web.Response()

        async with edge(stubborn) as served, served.caller() as client:
            await client.get("/")
            await points.wait("asked")
            assert await served.gateway.stop() == 1
            assert len(served.gateway.live) == 1
            points.reach("go on")
            await served.watch.end()

    async def test_a_shutdown_of_the_server_ends_what_runs(self) -> None:
        points = Rendezvous()
        async with edge(self.held(points)) as served:
            client = await served.caller().__aenter__()
            await client.get("/")
            await points.wait("asked")
        assert await served.watch.end() is Outcome.GATEWAY_STOPPED
        await client.__aexit__(None, None, None)

    async def test_nothing_to_do_is_done_at_once(self) -> None:
        gateway = Gateway(parse_upstream("http://a"))
        assert await gateway.drain(3600) == 0
        gateway.close()


async def test_a_broken_link_leaves_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A response cut by a broken link leaves one line in the log, not a traceback with what passed."""
    caplog.set_level(logging.DEBUG)
    error = RuntimeError("s3cret")

    async def terminal(request: web.Request) -> web.StreamResponse:
        await begin(request)
        raise error

    async with edge(terminal) as served:
        with pytest.raises(BrokenResponse):
            await served.get()
        await served.watch.end()
    assert [record.name for record in caplog.records if record.levelno >= logging.ERROR] == ["kgb.edge"]
    assert "s3cret" not in caplog.text


class Entered:
    """A link that acts before the next one, by ``enter``; ``calls`` is what was called."""

    def __init__(self, name: str, calls: list[str], answer: str = "") -> None:
        self.name = name
        self.calls = calls
        self.answer = answer

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        raise AssertionError("the chain calls enter instead")

    def enter(self, request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse] | None:
        assert request[EXCHANGE] is exchange
        self.calls.append(self.name)
        if self.answer == "refuse":
            raise ExchangeError("refused_here", "No.", status=418)
        return self._answer() if self.answer else None

    async def _answer(self) -> web.StreamResponse:
        return web.Response(text=self.answer)


class AlsoAfter(Entered):
    """A subclass that does more than enter: its own call counts."""

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.calls.append(f"{self.name} before")
        response = await handler(request)
        self.calls.append(f"{self.name} after")
        return response


async def _ok(request: web.Request) -> web.StreamResponse:
    return web.Response(text="ok")


class TestEntering:
    async def test_links_that_only_enter_are_called_in_order_among_the_others(self) -> None:
        calls: list[str] = []

        async def plain(request: web.Request, handler: Handler) -> web.StreamResponse:
            calls.append("plain")
            return await handler(request)

        links = (Entered("a", calls), Entered("b", calls), plain, Entered("c", calls), AlsoAfter("d", calls))
        async with edge(_ok, *links) as there:
            assert (await there.get()).body == b"ok"
            assert await there.watch.end() is Outcome.COMPLETED
        assert calls == ["a", "b", "plain", "c", "d before", "d after"]

    async def test_the_first_answer_counts_and_nothing_behind_it_is_called(self) -> None:
        calls: list[str] = []
        async with edge(_ok, Entered("a", calls, "mine"), Entered("b", calls)) as there:
            assert (await there.get()).body == b"mine"
        assert calls == ["a"]

    async def test_what_it_raises_is_answered(self) -> None:
        calls: list[str] = []
        async with edge(_ok, Entered("a", calls, "refuse"), Entered("b", calls)) as there:
            assert (await there.get()).status == 418
            assert await there.watch.end() is Outcome.REFUSED
        assert calls == ["a"]


async def test_a_response_that_served_another_request_is_a_fault_of_the_link() -> None:
    """aiohttp would write nothing, and the caller wait for ever."""
    kept = web.Response(text="once")

    async def again(request: web.Request) -> web.StreamResponse:
        return kept

    async with edge(again) as there:
        assert (await there.get()).body == b"once"
        assert (await there.get()).status == 500
        assert await there.watch.end(2) is Outcome.GATEWAY_FAULT


async def test_what_a_link_sets_in_its_context_ends_with_its_request() -> None:
    seen: list[str] = []
    mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="nothing")

    async def marking(request: web.Request) -> web.StreamResponse:
        seen.append(mark.get())
        mark.set("of an earlier request")
        return web.Response()

    async with edge(marking) as there, there.caller() as client:
        for _ in range(3):
            await client.get("/")
            await client.read_response()
        await client.send(b"GET / HTTP/1.1\r\nHost: x.localhost\r\n\r\n" * 500)
        for _ in range(500):
            assert (await client.read_response("GET")).status == 200
    assert set(seen) == {"nothing"}
    assert len(seen) == 503

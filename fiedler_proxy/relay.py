"""The relay: the last link, from an exchange with its upstream to a flow of bytes.

Owns how an exchange comes to a connection: the head that goes upstream, the bounds of a body, and that a request is sent once, or
in turn to several upstreams where a route says so. The bytes are the flow's.
"""

import asyncio
from collections.abc import Awaitable
from typing import Protocol

from aiohttp import web

from fiedler_proxy import heads
from fiedler_proxy.errors import ExchangeError, Fault, body_too_large
from fiedler_proxy.exchange import Exchange, Outcome
from fiedler_proxy.flow import Answer, Flow, Judge
from fiedler_proxy.hold import take_in
from fiedler_proxy.lifecycle import EXCHANGE, Gateway, ResponseCut
from fiedler_proxy.upstream import Upstream
from fiedler_proxy.wire import UpstreamConnection


class Plan(Judge, Protocol):
    """Asks upstreams in turn, for an exchange that may go to several."""

    def begin(self, relay: "Relay", request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse]:
        """Relay the exchange, with ``Relay.once`` for each attempt."""

    def served(self, exchange: Exchange) -> None:
        """The attempt has come to its end, and the caller has got its answer."""

    async def go_on(
        self, relay: "Relay", request: web.Request, exchange: Exchange, error: BaseException
    ) -> web.StreamResponse:
        """The attempt has ended with ``error``: what another one comes to, or ``error`` again."""


class Relay:
    """The terminal handler of the chain: relays the exchange to its upstream."""

    __slots__ = ("_gateway",)

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def __call__(self, request: web.Request) -> Awaitable[web.StreamResponse]:
        exchange = request[EXCHANGE]
        plan: Plan | None = exchange.plan
        return self.once(request, exchange) if plan is None else plan.begin(self, request, exchange)

    async def once(
        self, request: web.Request, exchange: Exchange, judge: Judge | None = None, plan: Plan | None = None
    ) -> web.StreamResponse:
        """Relay to the exchange's upstream. ``judge`` is asked who takes the answer; ``plan`` hears how it went, and may go on where it failed:
        in here, since a coroutine around this one would cost every request as much as all of its routing."""
        upstream = exchange.upstream
        assert upstream is not None
        try:
            if exchange.head_sent:
                raise ResponseCut(Outcome.GATEWAY_FAULT, "second_response")  # a link asked again after an answer
            head = self._head(exchange, upstream)
            if exchange.holds and exchange.held_body is None:
                await take_in(request, exchange, head)
            pool = self._gateway.pool(upstream)
            exchange.attempts += 1
            try:
                connection = pool.take() or await pool.acquire()
            except ExchangeError as error:
                if head.upgrade:
                    raise _upgrade_unavailable(error) from error
                raise
            if judge is not None:
                judge.began = True
            flow = Flow(request, exchange, self._gateway, connection, head)
            try:
                response = await flow.run(judge)
            finally:
                flow.stop()
        except BaseException as error:
            if plan is None:
                raise
            failed = error
        else:
            if plan is not None:
                plan.served(exchange)
            return response
        return await plan.go_on(self, request, exchange, failed)

    async def play(self, request: web.Request, exchange: Exchange, answer: Answer) -> web.StreamResponse:
        """Give the caller an answer that an upstream gave before, and that was put aside."""
        assert exchange.upstream is not None
        spent = UpstreamConnection(
            asyncio.get_running_loop(), self._gateway.pool(exchange.upstream)
        )  # that was never opened
        flow = Flow(request, exchange, self._gateway, spent, self._head(exchange, exchange.upstream))
        try:
            return await flow.play(answer)
        finally:
            flow.stop()

    def _head(self, exchange: Exchange, upstream: Upstream) -> heads.RequestHead:
        try:
            head = heads.request_head(exchange, upstream, self._gateway.say)
        except ValueError:
            raise ExchangeError("malformed_request", "A request header is malformed.", status=400) from None
        limit = self._gateway.body_limit
        if limit and head.length > limit:
            raise body_too_large(limit)
        return head


def _upgrade_unavailable(error: ExchangeError) -> ExchangeError:
    """RFC 9110 section 15.5.22: a client that could fall back to plain HTTP does so at once."""
    return ExchangeError(
        "upgrade_unavailable",
        f"No WebSocket can be opened: {error.message}",
        status=426,
        fault=Fault.UPSTREAM,
        hint="use plain HTTP",
        headers=(("Upgrade", "HTTP/1.1"), ("Connection", "Upgrade")),
    )

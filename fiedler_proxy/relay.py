"""The relay: the last link, from an exchange with its upstream to a flow of bytes.

Owns how an exchange comes to a connection: the head that goes upstream, the bounds of a body, and that a request is sent once, or
in turn to several upstreams where a route says so. The bytes are the flow's.
"""

import asyncio
from collections.abc import Awaitable
from functools import partial
from typing import Protocol

from aiohttp import web

from fiedler_proxy import heads
from fiedler_proxy.answer import Answer
from fiedler_proxy.errors import ExchangeError, Fault, body_too_large
from fiedler_proxy.exchange import Exchange, Outcome
from fiedler_proxy.flow import Flow, Judge
from fiedler_proxy.hold import take_in
from fiedler_proxy.lifecycle import EXCHANGE, Gateway, ResponseCut
from fiedler_proxy.links import Ends
from fiedler_proxy.upstream import Upstream
from fiedler_proxy.wire import UpstreamConnection


class Plan(Judge, Protocol):
    """Asks upstreams in turn, for an exchange that may go to several."""

    def ready(self, exchange: Exchange) -> bool:
        """Make the exchange one for its first upstream, where that needs no waiting; whether it is. Its first attempt counts as made."""

    def begin(self, relay: "Relay", request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse]:
        """Relay the exchange, with ``Relay.once`` for each attempt."""

    def served(self, exchange: Exchange) -> None:
        """The attempt has come to its end, and the caller has got its answer."""

    async def go_on(
        self, relay: "Relay", request: web.Request, exchange: Exchange, error: BaseException
    ) -> web.StreamResponse:
        """The attempt has ended with ``error``: what another one comes to, or ``error`` again."""


class Relay:
    """The terminal handler of the chain: relays the exchange to its upstream (a ``links.Terminal``)."""

    __slots__ = ("_ends", "_gateway")

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._ends: Ends | None = None

    def __call__(self, request: web.Request) -> Awaitable[web.StreamResponse]:
        exchange = request[EXCHANGE]
        plan: Plan | None = exchange.plan
        return self.once(request, exchange) if plan is None else plan.begin(self, request, exchange)

    def tell(self, ends: Ends) -> None:
        """``links.Terminal``."""
        self._ends = ends

    def begin(self, request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse] | None:
        """``links.Terminal``: where a connection is at hand, nothing has to be waited for but the answer."""
        plan: Plan | None = exchange.plan
        if plan is not None and not plan.ready(exchange):
            return plan.begin(self, request, exchange)
        upstream = exchange.upstream
        if upstream is None or exchange.holds or exchange.head_sent:
            return self.once(request, exchange, plan, plan)
        try:
            head = self._head(exchange, upstream)
            connection = None if head.upgrade else self._gateway.pool(upstream).take()
            if connection is None:
                return self.once(request, exchange, plan, plan)
            exchange.attempts += 1
            flow = Flow(request, exchange, self._gateway, connection, head)
            if plan is not None:
                plan.began = True
            try:
                flow.start_alone(plan, self._over)
            except BaseException:
                flow.stop()
                raise
        except Exception as error:
            return self._failed(request, exchange, plan, error)
        return None

    def _over(self, flow: Flow, error: Exception | None) -> None:
        """A flow that nobody waits for is over."""
        flow.turn.end(partial(self._end, flow, error))

    def _end(self, flow: Flow, error: Exception | None) -> None:
        request, exchange, ends = flow.request, flow.exchange, self._ends
        assert ends is not None
        plan: Plan | None = exchange.plan
        response = flow.finished
        if error is not None or response is None:
            ends.go_on(request, exchange, self._settled(flow, plan, error))
            return
        flow.stop()
        if plan is not None:
            plan.served(exchange)
        ends.ended(request, exchange, response)

    async def _settled(self, flow: Flow, plan: Plan | None, error: Exception | None) -> web.StreamResponse:
        """What comes of a flow that has ended with ``error``, or whose caller has not taken everything yet."""
        try:
            try:
                response = await flow.settle(error)
            finally:
                flow.stop()
        except BaseException as failed:
            return await self._failed(flow.request, flow.exchange, plan, failed)
        if plan is not None:
            plan.served(flow.exchange)
        return response

    async def _failed(
        self, request: web.Request, exchange: Exchange, plan: Plan | None, error: BaseException
    ) -> web.StreamResponse:
        if plan is None:
            raise error
        return await plan.go_on(self, request, exchange, error)

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

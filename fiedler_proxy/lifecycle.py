"""The life of an exchange and of the gateway that holds them.

Owns the edge, where every request becomes an exchange and every exchange ends exactly once, whatever happened on the
way; the answers of the gateway's own; and draining. It knows no route and relays no byte.
"""

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Iterable
from functools import partial

import attrs
from aiohttp import web

from fiedler_proxy.clock import Clock
from fiedler_proxy.errors import Answer, Dialect, ExchangeError, Fault, dialect_of, malformed_body, render
from fiedler_proxy.exchange import Exchange, Outcome
from fiedler_proxy.headers import RawHeaders
from fiedler_proxy.heads import Announcements
from fiedler_proxy.ids import new_id
from fiedler_proxy.inner import adopt
from fiedler_proxy.links import EXCHANGE as EXCHANGE  # noqa: PLC0414 - from here everybody takes it
from fiedler_proxy.links import Enter, Terminal, called, chained, enters
from fiedler_proxy.links import Link as Link  # noqa: PLC0414
from fiedler_proxy.pool import Pool
from fiedler_proxy.server import (
    Application,
    ConnectionCut,
    Handler,
    OwnResponse,
    RelayResponse,
    answer_in_our_version,
    caller_connection,
    next_request_is_lost,
    observe_writes,
    raw_message,
)
from fiedler_proxy.sockets import caller_has_left
from fiedler_proxy.target import path_of
from fiedler_proxy.upstream import Upstream

ABORT_GRACE = 1.0
"""Seconds that cut exchanges have to close their connections and records at the end of a drain."""

_VERSIONS = ((1, 1), (1, 0))

_CLOSING = frozenset((400, 413, 501))

_log = logging.getLogger("kgb.edge")


class ResponseCut(ConnectionCut):
    """The response broke after its head had left; the caller's connection is cut and the exchange ends so."""

    def __init__(self, outcome: Outcome, code: str) -> None:
        super().__init__(code)
        self.outcome = outcome
        self.code = code


@attrs.define(eq=False)
class Gateway:
    """What a running gateway holds: its upstream, its connections, its live exchanges.

    ``body_limit``: most body bytes of a request, 0 for no limit. ``local`` holds, by the address of its own end, where
    each of its outgoing connections goes: a request that came over one of them is its own. ``draining``: no new work;
    ``stopping``: what still runs is being ended. ``inner``: the token of the inner door, where there is one; ``name``: which hop this is.
    """

    upstream: Upstream
    body_limit: int = 0
    say: Announcements = Announcements()
    local: dict[object, object] = attrs.field(factory=dict)
    live: dict[Exchange, web.Request] = attrs.field(factory=dict)
    draining: bool = False
    stopping: bool = False
    inner: bytes = b""
    name: str = ""
    clock: Clock = attrs.field(factory=Clock)
    _pools: dict[Upstream, Pool] = attrs.field(factory=dict)

    def pool(self, upstream: Upstream) -> Pool:
        """The connections to ``upstream``; SettingsError when its TLS files cannot be used."""
        pool = self._pools.get(upstream)
        if pool is None:
            pool = self._pools[upstream] = Pool(upstream, self.local)
        return pool

    @property
    def upstreams(self) -> Iterable[Upstream]:
        """Every upstream in use, and the one that is configured."""
        return (self.upstream, *self._pools)

    @property
    def pools(self) -> Iterable[Pool]:
        """Every pool in use."""
        return tuple(self._pools.values())

    async def drain(self, limit: float) -> int:
        """Let live exchanges finish for up to ``limit`` seconds, then end the rest; returns how many were ended."""
        self.draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit
        while self.live and loop.time() < deadline:
            await asyncio.sleep(min(0.05, max(0.0, deadline - loop.time())))
        return await self.stop()

    async def stop(self) -> int:
        """End every live exchange as gateway_stopped; returns how many there were."""
        self.draining = self.stopping = True
        cut = dict(self.live)
        waiting = [pair for pair in cut.items() if not end_exchange(*pair, Outcome.GATEWAY_STOPPED)]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ABORT_GRACE
        while self.live and loop.time() < deadline:
            await asyncio.sleep(0.01)
            waiting = [pair for pair in waiting if not end_exchange(*pair, Outcome.GATEWAY_STOPPED)]
        return len(cut)

    def close(self) -> None:
        """Drop the idle upstream connections."""
        for pool in self.pools:
            pool.close()


def end_exchange(exchange: Exchange, request: web.Request, outcome: Outcome) -> bool:
    """End a live exchange from outside. False where its task has not begun yet, and so cannot be told."""
    if exchange.outcome is not None or exchange.abort(outcome):
        return True
    # Not with an upstream (yet): a link or the pool holds it.
    task: asyncio.Task[None] | None = request.task
    if task is None:
        return False
    task.cancel()
    return True


GATEWAY: web.AppKey[Gateway] = web.AppKey("gateway", Gateway)
"""``app[GATEWAY]``: the gateway of an application."""


def create_application(
    gateway: Gateway,
    links: Iterable[Link],
    terminal: Handler,
    *,
    server_options: dict[str, object] | None = None,
) -> Application:
    """An application in which every request passes ``links`` in order and ends in ``terminal``.

    ``links`` are aiohttp middlewares; one that has a ``context(app)`` generator is started and stopped with the
    application. ``server_options`` are keyword arguments of aiohttp's server (``keepalive_timeout``, limits).
    """
    edge = Edge(gateway)
    app = Application(edge, server_options=server_options, max_read=gateway.body_limit or 2**62)
    app[GATEWAY] = gateway
    links = tuple(links)
    for link in reversed(links):
        context = getattr(link, "context", None)
        if context is not None:
            app.cleanup_ctx.append(context)
    app[EDGE] = edge
    edge.pass_through(links, terminal)
    app.on_response_prepare.append(own_head)
    app.on_shutdown.append(_stop)
    return app


async def _stop(app: web.Application) -> None:
    """The server is going down: what was not drained before ends now, instead of holding it up."""
    gateway = app[GATEWAY]
    await gateway.stop()
    gateway.close()


async def own_head(request: web.Request, response: web.StreamResponse) -> None:
    """Before the head of any response that is not the relay's own leaves: its headers, and who hears of it."""
    exchange = request[EXCHANGE]
    response.headers.popall("Server", None)
    for name, value in exchange.added_headers.items():
        response.headers[name] = value
    if response.keep_alive and (request.app[GATEWAY].draining or next_request_is_lost(request)):
        response.force_close()
        response.headers["Connection"] = "close"
    exchange.head_sent = True
    raw: RawHeaders = tuple((n.encode(), v.encode("utf-8", "surrogateescape")) for n, v in response.headers.items())
    exchange.status, exchange.reason, exchange.response_headers = response.status, response.reason, raw
    exchange.tell_response_head()

    async def told(data: bytes) -> None:
        exchange.tell_response_bytes(bytes(data))

    observe_writes(request, told)


class Edge:
    """The entrance of the application: a request comes in, an exchange is opened, and closed exactly once."""

    __slots__ = ("_entering", "_gateway", "_rest", "_terminal", "chain", "links", "may_transform")

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.chain: Handler = _no_chain
        self.may_transform = False
        self._terminal: Handler = _no_chain
        self.links: tuple[Link, ...] = ()
        self._entering: tuple[Enter, ...] = ()
        self._rest: Terminal | None = None

    def pass_through(self, links: tuple[Link, ...], terminal: Handler | None = None) -> None:
        """From the next request on, ``links`` are the chain, and ``terminal`` (that of before) its end."""
        self._terminal, self.links = terminal or self._terminal, links
        self.chain = chained(links, self._terminal)
        self.may_transform = any(getattr(link, "transforms", False) for link in links)
        entering = tuple(enters(links))
        self._entering, self._rest = entering, None
        if len(entering) == len(links) and isinstance(self._terminal, Terminal):
            self._rest = self._terminal
            self._rest.tell(self)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        exchange = self._open(request)
        return await self._through(request, exchange, called(self.chain, request))

    def begin(self, request: web.Request) -> Awaitable[web.StreamResponse] | None:
        """``server.Begin``: where every link only acts before the next one, and the relay has a connection at hand, a request is served by
        what its upstream's bytes call, and no task waits for them."""
        if self._gateway.stopping:
            # Whoever closes exchanges and their records may be gone.
            return _raising(ConnectionResetError("the gateway has stopped"))
        exchange, terminal = self._open(request), self._rest
        if terminal is None:
            return self._through(request, exchange, called(self.chain, request))
        try:
            for enter in self._entering:
                answer = enter(request, exchange)
                if answer is not None:
                    break
            else:
                answer = terminal.begin(request, exchange)
        except Exception as error:
            answer = _raising(error)
        return None if answer is None else self._through(request, exchange, answer)

    def _open(self, request: web.Request) -> Exchange:
        exchange = open_exchange(request, self._gateway)
        exchange.may_transform = self.may_transform
        return exchange

    def ended(self, request: web.Request, exchange: Exchange, response: RelayResponse) -> None:
        """``Ends``."""
        self._gateway.live.pop(exchange, None)
        connection = caller_connection(request)
        connection.turn.close(partial(exchange.close, exchange.ending or Outcome.COMPLETED))
        connection.finish(request, response)

    def go_on(self, request: web.Request, exchange: Exchange, answer: Awaitable[web.StreamResponse]) -> None:
        """``Ends``."""
        caller_connection(request).go_on(request, self._through(request, exchange, answer))

    async def _through(
        self, request: web.Request, exchange: Exchange, answer: Awaitable[web.StreamResponse]
    ) -> web.StreamResponse:
        """The response of ``exchange``, which ``answer`` comes to, written; and its end."""
        outcome = Outcome.GATEWAY_FAULT
        try:
            try:
                response = await answer
            except Exception as error:
                response = self._answer(request, exchange, error)
            if type(response) is not RelayResponse or not exchange.head_sent:
                response = await self._send(request, exchange, response)
            outcome = outcome_of(exchange, response)
            return response
        except ResponseCut as cut:
            outcome, exchange.error_code = cut.outcome, exchange.error_code or cut.code
            raise
        except ConnectionError:
            outcome = Outcome.CALLER_LEFT
            raise
        except asyncio.CancelledError:
            if self._gateway.stopping:
                outcome = Outcome.GATEWAY_STOPPED
            elif request.transport is None:
                outcome = Outcome.CALLER_LEFT
            raise
        finally:
            self._gateway.live.pop(exchange, None)
            exchange.close(outcome)

    def _answer(self, request: web.Request, exchange: Exchange, error: Exception) -> web.StreamResponse:
        """What is answered where the chain raised; raises what ends the connection."""
        if isinstance(error, ExchangeError):
            return self._own_answer(request, exchange, error)
        if isinstance(error, web.HTTPException):
            return OwnResponse(status=error.status, reason=error.reason, headers=error.headers, body=error.body)
        if isinstance(error, web.RequestPayloadError):
            return self._own_answer(request, exchange, malformed_body())
        if isinstance(error, ResponseCut) or (isinstance(error, ConnectionError) and caller_has_left(request)):
            raise error
        _log.error("exchange %s: %s\n%s", exchange.id, type(error).__name__, _frames(error))
        return self._own_answer(request, exchange, _gateway_fault(error))

    async def _send(self, request: web.Request, exchange: Exchange, response: object) -> web.StreamResponse:
        wrong = ""
        if not isinstance(response, web.StreamResponse):
            wrong = f"{type(response).__name__}, not a response"
        elif response.prepared and not exchange.head_sent:
            wrong = "the response of another request"  # aiohttp would write nothing, and the caller wait for ever
        if wrong or not isinstance(response, web.StreamResponse):
            _log.error("exchange %s: a link returned %s", exchange.id, wrong)
            response = self._own_answer(request, exchange, _gateway_fault(TypeError()))
        return await send(request, exchange, response)

    def _own_answer(self, request: web.Request, exchange: Exchange, error: ExchangeError) -> web.StreamResponse:
        exchange.error_code = error.code
        exchange.facts["fault"] = str(error.fault)
        ending = exchange.ending = exchange.ending or error_outcome(error)
        if exchange.head_sent:
            raise ResponseCut(ending, error.code)
        answer = render_for(exchange, error, self._gateway.name)
        response = OwnResponse(status=answer.status, headers=answer.headers, body=answer.body)
        if error.status in _CLOSING or not request.content.is_eof():
            # Where the next request begins is doubtful, or not worth reading the rest of an upload for.
            response.force_close()
        return response


EDGE: web.AppKey[Edge] = web.AppKey("edge", Edge)
"""``app[EDGE]``: the entrance of an application."""


async def send(request: web.Request, exchange: Exchange, response: web.StreamResponse) -> web.StreamResponse:
    """Write ``response`` unless the relay or a link has; a second response on one request is a fault of a link."""
    if exchange.head_sent:
        if not response.prepared:
            _log.error("exchange %s: a link answered although a response had begun", exchange.id)
            raise ResponseCut(exchange.ending or Outcome.GATEWAY_FAULT, "second_response")
        await response.write_eof()
        return response
    await response.prepare(request)
    await response.write_eof()
    return response


def open_exchange(request: web.Request, gateway: Gateway) -> Exchange:
    """The exchange of ``request``, live from now on."""
    message = raw_message(request)
    target, version = message.path, message.version
    exchange = Exchange(
        message.method,
        target,
        (version[0], version[1]),
        message.raw_headers,
        request.remote or "",
        new_id(),
        path_of(target),
        upstream=gateway.upstream,
    )
    if version not in _VERSIONS:
        answer_in_our_version(request)
    if gateway.inner and not exchange.remote:
        adopt(exchange, gateway.inner)
    request[EXCHANGE] = exchange
    gateway.live[exchange] = request
    return exchange


def render_for(exchange: Exchange, error: ExchangeError, hop: str = "") -> Answer:
    """``error`` in the dialect that ``exchange``'s caller speaks."""
    names = [name.decode("latin-1").lower() for name, _ in exchange.request_headers]
    credential = exchange.find(b"authorization") or b""
    dialect = dialect_of(exchange.path, names, bearer=credential[:7].lower() == b"bearer ")
    if dialect is Dialect.PROBLEM and exchange.dialect is not None:
        dialect = exchange.dialect
    return render(error, dialect, exchange.id, hop)


def error_outcome(error: ExchangeError) -> Outcome:
    """How an exchange ends that ``error`` answers."""
    if error.fault is Fault.CALLER or (error.fault is Fault.GATEWAY and error.status == 503):
        return Outcome.REFUSED
    if error.fault is Fault.UPSTREAM:
        return Outcome.TIMED_OUT if error.status == 504 else Outcome.UPSTREAM_BROKE
    return Outcome.GATEWAY_FAULT


def outcome_of(exchange: Exchange, response: web.StreamResponse) -> Outcome:
    """How an exchange ends whose response was written whole."""
    if exchange.ending is not None:
        return exchange.ending
    if exchange.attempts == 0 and not exchange.local and response.status >= 400:
        return Outcome.REFUSED  # a link's own answer
    return Outcome.COMPLETED


def _gateway_fault(error: Exception) -> ExchangeError:
    return ExchangeError(
        "gateway_fault",
        "The gateway failed on this request.",
        status=500,
        fault=Fault.GATEWAY,
        hint="its log tells more under the request id",
    )


def _frames(error: BaseException) -> str:
    """Where it happened, without the message: that may quote what passed."""
    return "".join(traceback.format_tb(error.__traceback__)).rstrip()


async def _raising(error: Exception) -> web.StreamResponse:
    raise error


async def _no_chain(request: web.Request) -> web.StreamResponse:
    raise RuntimeError("the edge has no chain")

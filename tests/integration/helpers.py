"""What the integration tests share: a gateway in front of a scripted upstream, and a record of its exchanges.

Owns the composition of the tested application, nothing else: callers and upstreams come from the testing kit.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

import attrs
from aiohttp import web

from fiedler_proxy.exchange import Exchange, Observer, Outcome
from fiedler_proxy.heads import Announcements
from fiedler_proxy.lifecycle import EXCHANGE, Gateway, Link, create_application
from fiedler_proxy.middlewares.guard import Guard
from fiedler_proxy.middlewares.health import Health
from fiedler_proxy.pool import Pool
from fiedler_proxy.relay import Relay
from fiedler_proxy.server import Handler
from fiedler_proxy.testing import Address, RawClient, ScriptedUpstream, start_app
from fiedler_proxy.testing.rendezvous import GUARD, Signal
from fiedler_proxy.upstream import PoolLimits, Timeouts, Upstream, parse_upstream
from fiedler_proxy.wire import UpstreamConnection

SOON = 1.0
"""Seconds within which an upstream must learn that its caller has left: a bound of the contract, used as a guard."""


@attrs.define(eq=False)
class Recorder(Observer):
    """What an observer of one exchange heard. ``calls``: the methods in order; ``transport``: the caller's."""

    signal: Signal
    exchange: Exchange
    transport: asyncio.Transport
    keep: bool = True
    calls: list[str] = attrs.field(factory=list)
    request_body: bytearray = attrs.field(factory=bytearray, repr=lambda body: f"<{len(body)} bytes>")
    response_body: bytearray = attrs.field(factory=bytearray, repr=lambda body: f"<{len(body)} bytes>")
    outcomes: list[Outcome | None] = attrs.field(factory=list)

    def request_head(self, exchange: Exchange) -> None:
        self._heard("request_head")

    def request_bytes(self, exchange: Exchange, data: bytes) -> None:
        if self.keep:
            self.request_body += data
            self._heard("request_bytes")

    def response_head(self, exchange: Exchange) -> None:
        self._heard("response_head")

    def response_bytes(self, exchange: Exchange, data: bytes) -> None:
        if self.keep:
            self.response_body += data
            self._heard("response_bytes")

    def closed(self, exchange: Exchange) -> None:
        self.outcomes.append(exchange.outcome)
        self._heard("closed")

    def _heard(self, call: str) -> None:
        self.calls.append(call)
        self.signal.notify()


async def becomes(condition: Callable[[], bool], what: str) -> None:
    """Wait until ``condition()`` holds where nobody can say so: for the state of transports and pools."""
    for _ in range(int(GUARD * 1000)):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError(f"waited {GUARD:g} s for {what}")


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port of 127.0.0.1 on which connections are neither accepted nor refused: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@attrs.define(eq=False)
class Records:
    """The recorders of a gateway's exchanges, in the order in which the exchanges began."""

    signal: Signal = attrs.field(factory=Signal)
    all: list[Recorder] = attrs.field(factory=list)

    async def begun(self, count: int = 1) -> list[Recorder]:
        """Wait until ``count`` exchanges have begun."""
        await self.signal.until(lambda: len(self.all) >= count, lambda: f"{count} exchanges; begun: {len(self.all)}")
        return self.all

    async def ended(self, count: int = 1) -> list[Recorder]:
        """Wait until ``count`` exchanges have ended; returns all recorders, in the order of beginning."""
        await self.signal.until(lambda: self._ended() >= count, lambda: f"{count} ends; there were {self._ended()}")
        return self.all

    async def outcome(self) -> Outcome:
        """Wait for the one exchange of a test to end: how it did. AssertionError unless it ended exactly once."""
        (recorder,) = await self.ended()
        assert len(recorder.outcomes) == 1, recorder.outcomes
        assert recorder.outcomes[0] is not None
        return recorder.outcomes[0]

    async def outcomes(self, count: int) -> list[Outcome | None]:
        """Wait for ``count`` exchanges to end: how each did, in the order of beginning."""
        ended = await self.ended(count)
        assert all(len(recorder.outcomes) == 1 for recorder in ended), ended
        return [recorder.outcomes[0] for recorder in ended]

    def _ended(self) -> int:
        return sum(bool(recorder.outcomes) for recorder in self.all)


@web.middleware
@attrs.frozen(eq=False)
class Recording:
    """A link that attaches a recorder to every exchange; one that keeps no body unless told to."""

    records: Records
    keep: bool

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        assert request.transport is not None
        recorder = Recorder(self.records.signal, exchange, request.transport, self.keep)
        self.records.all.append(recorder)
        exchange.observe(recorder)
        self.records.signal.notify()
        return await handler(request)


@attrs.frozen(eq=False)
class Serving:
    """A gateway that serves. ``records`` hold what became of its exchanges."""

    gateway: Gateway
    address: Address
    records: Records

    def caller(self, *, receive_buffer: int | None = None, guard: float = GUARD) -> RawClient:
        """A caller on a connection of its own."""
        return RawClient(self.address.host, self.address.port, receive_buffer=receive_buffer, guard=guard)

    @property
    def pool(self) -> Pool:
        """The connections to the one upstream."""
        return self.gateway.pool(self.gateway.upstream)

    @property
    def host(self) -> bytes:
        """The Host header that a caller of the kit sends."""
        return str(self.address).encode()

    async def settled(self, connections: int) -> None:
        """Wait until ``connections`` connections to the upstream are idle and none is in use."""
        both = (connections, connections)
        await becomes(lambda: (self.pool.idle, self.pool.open) == both, f"{connections} idle connections and no other")

    @property
    def upstream_connections(self) -> list[UpstreamConnection]:
        """The gateway's ends of its connections to the upstream."""
        return list(self.pool._connections)


@contextlib.asynccontextmanager
async def relaying(
    upstream: ScriptedUpstream | Upstream | str,
    *links: Link,
    base: str = "",
    timeouts: Timeouts | None = None,
    limits: PoolLimits | None = None,
    body_limit: int = 0,
    say: Announcements | None = None,
    server_options: dict[str, object] | None = None,
    keep: bool = True,
    **runner: object,
) -> AsyncIterator[Serving]:
    """A gateway in front of ``upstream`` with the base path ``base``, served as in production.

    An ``Upstream`` is taken as it is: it has its own base path, timeouts and limits. ``links`` stand between the
    recorder and the relay. ``server_options`` are those of the listener, ``runner`` those that whoever runs the
    application may give. ``keep``: whether recorders keep bodies.
    """
    if isinstance(upstream, Upstream):
        target = upstream
    else:
        url = upstream if isinstance(upstream, str) else upstream.url
        target = parse_upstream(url + base, timeouts=timeouts, limits=limits)
    gateway = Gateway(target, body_limit=body_limit, say=say or Announcements())
    records = Records()
    chain: Iterable[Link] = [Guard(), Health(), Recording(records, keep), *links]
    app = create_application(gateway, chain, Relay(gateway), server_options=server_options)
    async with start_app(app, **runner) as address:
        yield Serving(gateway, address, records)


class Clock:
    """The time of asyncio's own loop, moved forward by hand: hours pass in a test without anybody waiting.

    The kit's guards run on the same clock: nothing of the kit may be waiting (for ever is fine) while time is moved.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._real = loop.time
        self._ahead = 0.0
        loop.time = self._time  # type: ignore[method-assign]

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass and the loop do what is due by then."""
        self._ahead += seconds
        for _ in range(20):
            await asyncio.sleep(0)

    def _time(self) -> float:
        return self._real() + self._ahead

"""The contract of a middleware, as a check that its author runs.

Owns the rules and how each is shown: the link stands in a real application, over a real connection, before a scripted
terminal handler, and a probe outside it sees what it returns and raises.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
from aiohttp import web

from fiedler_proxy.errors import ExchangeError, Fault
from fiedler_proxy.exchange import Outcome
from fiedler_proxy.lifecycle import Gateway, Link, ResponseCut, create_application
from fiedler_proxy.server import Handler
from fiedler_proxy.testing.client import RawClient
from fiedler_proxy.testing.messages import BrokenResponse, Headers
from fiedler_proxy.testing.peer import PeerLeft
from fiedler_proxy.testing.rendezvous import Rendezvous
from fiedler_proxy.testing.serving import start_app
from fiedler_proxy.upstream import Upstream, parse_upstream

SAMPLE_BODY = (
    b'{"model": "m", "stream": true,  "max_tokens": 8, "messages": [{"role": "user", "content": "caf\\u00e9"}]}'
)
NOWHERE = "http://upstream.invalid"


class ContractBroken(AssertionError):
    """A middleware breaks its contract; ``faults`` holds one sentence a rule."""

    def __init__(self, link: object, faults: list[str]) -> None:
        self.faults = tuple(faults)
        lines = "".join(f"\n- {fault}" for fault in faults)
        name = getattr(link, "__name__", type(link).__name__)
        super().__init__(f"{name} breaks the contract of a middleware:{lines}")


class _NotPassedOn(AssertionError):
    """The link answered the sample request itself: nothing else can be shown."""


async def check_middleware(
    link: Link,
    *,
    method: str = "POST",
    target: str = "/v1/messages?beta=true",
    headers: Headers = (("Content-Type", "application/json"),),
    body: bytes = SAMPLE_BODY,
    upstream: Upstream | None = None,
    guard: float = 5.0,
) -> tuple[str, ...]:
    """Check ``link`` (an instance of a decorated class, or a decorated function) against every rule.

    The sample request must be one that the link passes on: give ``headers`` with a key to a link that authenticates.
    ``body`` has at least two bytes. ``upstream`` is what the exchange is bound for; nothing is connected to. A link
    that may read the body of the request before it calls the next one says so by ``reads_body = True`` or
    ``transforms = True``; only the latter may hand back another response. ``guard``: seconds a step may take.

    Returns the rules that were checked; raises ContractBroken with every fault.
    """
    bench = _Bench(link, method, target, tuple(headers), body, upstream or parse_upstream(NOWHERE), guard)
    if getattr(link, "__middleware_version__", 0) != 1:
        raise ContractBroken(link, ["decorated: put @web.middleware on the class (above @attrs.frozen)"])
    faults = []
    for name, rule in RULES.items():
        try:
            await rule(bench)
        except _NotPassedOn as error:
            raise ContractBroken(link, [f"{name}: {error}"]) from None
        except (AssertionError, BrokenResponse, PeerLeft, TimeoutError) as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ContractBroken(link, faults)
    return ("decorated", *RULES)


@attrs.define
class _Seen:
    """What the probe outside the link saw of its last call."""

    returned: web.StreamResponse | None = None
    raised: BaseException | None = None
    done: asyncio.Event = attrs.field(factory=asyncio.Event)

    def describe(self) -> str:
        if self.returned is not None:
            return f"answered {self.returned.status}"
        return f"raised {self.raised!r}"


@attrs.frozen
class _Bench:
    """The link under test and the sample request."""

    link: Link
    method: str
    target: str
    headers: tuple[tuple[bytes | str, bytes | str], ...]
    body: bytes
    upstream: Upstream
    guard: float

    @property
    def transforms(self) -> bool:
        return bool(getattr(self.link, "transforms", False))

    @property
    def reads_body(self) -> bool:
        return self.transforms or bool(getattr(self.link, "reads_body", False))

    @asynccontextmanager
    async def run(self, terminal: Handler, sent: bytes | None = None) -> AsyncIterator[tuple[RawClient, _Seen]]:
        """Serve the link before ``terminal`` and send it the head of the sample request and ``sent`` of its body."""
        seen = _Seen()

        async def probe(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                seen.returned = await handler(request)
            except BaseException as error:
                seen.raised = error
                raise
            finally:
                seen.done.set()
            return seen.returned

        app = create_application(Gateway(self.upstream), [probe, self.link], terminal)
        async with start_app(app) as address:
            async with RawClient(address.host, address.port, guard=self.guard) as client:
                headers = [*self.headers, ("Content-Length", str(len(self.body)))]
                await client.request(self.method, self.target, headers, self.body if sent is None else sent)
                yield client, seen

    async def within(self, step: Awaitable[object], otherwise: str) -> None:
        """Wait for ``step``; AssertionError saying ``otherwise`` when it does not come."""
        try:
            async with asyncio.timeout(self.guard):
                await step
        except TimeoutError:
            raise AssertionError(otherwise) from None


async def _passes_the_response_through(bench: _Bench) -> None:
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})

    async def terminal(request: web.Request) -> web.StreamResponse:
        await request.read()
        await answer.prepare(request)
        await answer.write(b"data: 1\n\n")
        return answer

    async with bench.run(terminal) as (client, seen):
        response = await client.read_head()
        if response.status != 200:
            raise _NotPassedOn(
                f"the link {seen.describe()} itself to the sample request; give check_middleware a request it passes on"
            )
        if bench.transforms:
            return
        await seen.done.wait()
        if seen.returned is not answer:
            raise AssertionError("it must return the very response that the next handler returned")
        await client.read_body()
        if response.body != b"data: 1\n\n":
            raise AssertionError(f"the caller received other bytes: {response.body!r}")


async def _leaves_the_body_alone(bench: _Bench) -> None:
    points = Rendezvous(bench.guard)
    arrived: list[bytes] = []

    async def terminal(request: web.Request) -> web.StreamResponse:
        points.reach("called")
        arrived.append(await request.read())
        return web.Response()

    early = bench.body if bench.reads_body else bench.body[: len(bench.body) // 2]
    async with bench.run(terminal, early) as (client, _):
        await bench.within(
            points.wait("called"),
            "it waits for the body of the request before it calls the next handler; "
            "declare reads_body = True if it must, at the price that no upload starts early",
        )
        await client.send(bench.body[len(early) :])
        await client.read_response()
    if not bench.transforms and arrived != [bench.body]:
        raise AssertionError("the next handler does not find the body that the caller sent")


async def _streams(bench: _Bench) -> None:
    points = Rendezvous(bench.guard)

    async def terminal(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await points.wait("the first event was read")
        await response.write(b"data: 2\n\n")
        return response

    async with bench.run(terminal) as (client, _):
        await bench.within(_first_bytes(client), "it holds back the first event of a stream until the second is there")
        points.reach("the first event was read")
        await client.read_body()


async def _first_bytes(client: RawClient) -> None:
    await client.read_head()
    await client.read_some()


async def _lets_cancellation_pass(bench: _Bench) -> None:
    points = Rendezvous(bench.guard)

    async def terminal(request: web.Request) -> web.StreamResponse:
        points.reach("called")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            points.reach("cancelled")
            raise
        return web.Response()

    async with bench.run(terminal) as (client, seen):
        await points.wait("called")
        client.abort()
        await bench.within(points.wait("cancelled"), "the next handler is not cancelled when the caller leaves")
        await bench.within(seen.done.wait(), "it does not end when its caller has left")
        if not isinstance(seen.raised, asyncio.CancelledError):
            raise AssertionError(f"it swallows CancelledError: after its caller had left it {seen.describe()}")


async def _lets_errors_pass(bench: _Bench) -> None:
    error = ExchangeError("scripted", "The scripted upstream failed.", status=502, fault=Fault.UPSTREAM)

    async def terminal(request: web.Request) -> web.StreamResponse:
        await request.read()
        raise error

    async with bench.run(terminal) as (client, seen):
        await client.read_response()
        if seen.raised is not error and not bench.transforms:
            raise AssertionError(f"it does not re-raise an ExchangeError of the next handler: it {seen.describe()}")


async def _keeps_a_broken_answer_broken(bench: _Bench) -> None:
    async def terminal(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        raise ResponseCut(Outcome.UPSTREAM_BROKE, "scripted")

    async with bench.run(terminal) as (client, seen):
        try:
            await client.read_response()
        except BrokenResponse:
            return
        raise AssertionError(
            f"an answer that broke after its head ends as if it were whole: the link {seen.describe()}"
        )


RULES: dict[str, Callable[[_Bench], Awaitable[None]]] = {
    "same response": _passes_the_response_through,
    "no early read": _leaves_the_body_alone,
    "no buffering": _streams,
    "cancellation": _lets_cancellation_pass,
    "errors": _lets_errors_pass,
    "broken stays broken": _keeps_a_broken_answer_broken,
}
"""Every rule beside ``decorated``, in the order of checking."""

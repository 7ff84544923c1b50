"""Links: what a chain is made of, and how they become one handler.

Owns what a link may be, and that one which only acts before the next costs no coroutine. It knows no link.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Protocol, runtime_checkable

from aiohttp import web

from fiedler_proxy.exchange import Exchange
from fiedler_proxy.server import Handler, RelayResponse

Link = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]
"""An aiohttp middleware: what a chain is made of."""

Enter = Callable[[web.Request, Exchange], Awaitable[web.StreamResponse] | None]


@runtime_checkable
class Entering(Protocol):
    """A link that acts before the next one and never after it, and says so by having ``enter``.

    The chain then calls that instead of the link, and saves a coroutine for every request. As a middleware the link
    is ``return await (self.enter(request, request[EXCHANGE]) or handler(request))``.
    """

    def enter(self, request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse] | None:
        """Act on ``exchange``; the answer where this link gives it itself, else None. Raises like any link."""


EXCHANGE: web.RequestKey[Exchange] = web.RequestKey("exchange", Exchange)
"""``request[EXCHANGE]``: the exchange of a request."""


class Ends(Protocol):
    """Who closes the exchanges that are served without a task."""

    def ended(self, request: web.Request, exchange: Exchange, response: RelayResponse) -> None:
        """The response is written, and taken by the caller."""

    def go_on(self, request: web.Request, exchange: Exchange, answer: Awaitable[web.StreamResponse]) -> None:
        """What comes of the exchange takes a task, which awaits ``answer``."""


@runtime_checkable
class Terminal(Protocol):
    """A terminal handler that can serve an exchange without a task."""

    def tell(self, ends: Ends) -> None:
        """Who is told what comes of the exchanges that are served so."""

    def begin(self, request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse] | None:
        """Begin to serve it without a task: None then. Else what a task is to await."""


def chained(links: tuple[Link, ...], handler: Handler) -> Handler:
    """One handler of ``links`` and what stands behind them; neighbours that are Entering cost no coroutine each."""
    entering: list[Enter] = []
    for link in reversed(links):
        if isinstance(link, Entering) and _means_it(link):
            entering.insert(0, link.enter)
            continue
        if entering:
            handler, entering = _entered(tuple(entering), handler), []
        handler = _bound(link, handler)
    return _entered(tuple(entering), handler) if entering else handler


def enters(links: tuple[Link, ...]) -> Iterator[Enter]:
    for link in links:
        if isinstance(link, Entering) and _means_it(link):
            yield link.enter


def _means_it(link: Entering) -> bool:
    """Whether ``enter`` is all that ``link`` does: not where a subclass has a ``__call__`` of its own."""
    own: Mapping[str, object] = next((vars(kind) for kind in type(link).__mro__ if "__call__" in vars(kind)), {})
    return "enter" in own


def _bound(link: Link, handler: Handler) -> Handler:
    return lambda request: link(request, handler)


def _entered(entering: tuple[Enter, ...], handler: Handler) -> Handler:
    def call(request: web.Request) -> Awaitable[web.StreamResponse]:
        exchange = request[EXCHANGE]
        for enter in entering:
            answer = enter(request, exchange)
            if answer is not None:
                return answer
        return handler(request)

    return call


async def called(chain: Handler, request: web.Request) -> web.StreamResponse:
    return await chain(request)

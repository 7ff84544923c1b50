"""Links for chains of any length: forty that only act before the next one, and forty ordinary middlewares.

Owns nothing but what a link costs at least: each looks for one header and does nothing else. In a chain they are
``tests.bench.growth.links:MADE.enter0`` and ``tests.bench.growth.links:MADE.around0``.
"""

from types import SimpleNamespace

import attrs
from aiohttp import web
from aiohttp.typedefs import Middleware

from fiedler_proxy.exchange import Exchange
from fiedler_proxy.lifecycle import EXCHANGE
from fiedler_proxy.server import Handler

MOST = 40
"""Links of a kind: a chain names each of its links once."""


@web.middleware
@attrs.frozen
class Before:
    """Acts before the next link and says so."""

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.enter(request, request[EXCHANGE])
        return await handler(request)

    def enter(self, request: web.Request, exchange: Exchange) -> None:
        exchange.find(b"x-team")


def around() -> Middleware:
    """An ordinary middleware, of its own."""

    @web.middleware
    async def link(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[EXCHANGE].find(b"x-team")
        return await handler(request)

    return link


MADE = SimpleNamespace(
    **{f"enter{at}": Before() for at in range(MOST)}, **{f"around{at}": around() for at in range(MOST)}
)


def names(kind: str, count: int) -> list[str]:
    """How a chain calls ``count`` links of the kind ``enter`` or ``around``."""
    return [f"{__name__}:MADE.{kind}{at}" for at in range(count)]

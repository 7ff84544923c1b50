"""request_id: the exchange's own id, told to the caller.

The caller's ``x-request-id`` and ``traceparent`` and the upstream's ids are not its business: they pass untouched.
"""

from typing import ClassVar

import attrs
from aiohttp import web

from fiedler_proxy.exchange import Exchange
from fiedler_proxy.ids import new_id
from fiedler_proxy.lifecycle import EXCHANGE
from fiedler_proxy.server import Handler

HEADER = "x-kgb-request-id"


@web.middleware
@attrs.frozen
class RequestId:
    """Sends the exchange's id (a UUIDv7) as ``x-kgb-request-id`` with every response."""

    outer: ClassVar[bool] = True

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.enter(request, request[EXCHANGE])
        return await handler(request)

    def enter(self, request: web.Request, exchange: Exchange) -> None:
        """``links.Entering``."""
        if not exchange.id:
            exchange.id = new_id()
        exchange.add_response_header(HEADER, exchange.id)

"""pauses: how long the caller waited between two pieces of an answer, at worst."""

import time

import attrs
from aiohttp import web

from fiedler_proxy import EXCHANGE, Exchange, Handler, Observer


class LongestPause(Observer):
    """Keeps the fact ``longest_pause_ms`` of one exchange up to date."""

    __slots__ = ("_before", "_longest")

    def __init__(self) -> None:
        self._before: float | None = None
        self._longest = 0.0

    def response_bytes(self, exchange: Exchange, data: bytes) -> None:
        now = time.monotonic()
        if self._before is not None and now - self._before > self._longest:
            self._longest = now - self._before
            exchange.facts["longest_pause_ms"] = round(self._longest * 1000, 1)
        self._before = now


@web.middleware
@attrs.frozen
class Pauses:
    """Notes the longest pause of every answer for the access log."""

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request[EXCHANGE].observe(LongestPause())
        return await handler(request)

"""at_once: how many exchanges one caller may have at the same time."""

from collections import Counter
from typing import ClassVar

import attrs
from aiohttp import web

from fiedler_proxy import EXCHANGE, ExchangeError, Handler


@web.middleware
@attrs.frozen
class AtOnce:
    """``limit``: exchanges that one caller may have open."""

    limit: int = 8
    _open: Counter[str] = attrs.field(init=False, factory=Counter, eq=False, repr=False)

    after: ClassVar[tuple[str, ...]] = ("auth",)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        caller = request[EXCHANGE].caller
        if self._open[caller] >= self.limit:
            raise ExchangeError(
                "too_many_at_once",
                f"{self.limit} requests of this caller are already being answered.",
                status=429,
                hint="wait for one of them",
                headers=(("Retry-After", "5"),),
            )
        self._open[caller] += 1
        try:
            return await handler(request)
        finally:
            self._open[caller] -= 1

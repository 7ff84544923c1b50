"""A link that watches the loop: how long it did not come round."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import attrs
from aiohttp import web

from fiedler_proxy.config import setting
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.server import Handler

LOOK_SECONDS = 0.002
SETTLED_SECONDS = 2.0
"""After the start, before anything counts."""


@web.middleware
@attrs.frozen
class Stalls:
    """Writes into ``path``, at the end, a JSON object: ``worst``, the longest time in ms that the loop was late for a timer, and
    ``late``, how often it was so by more than 5 ms; of ``looks``."""

    path: str = setting("", path=True)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)

    def enter(self, request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse] | None:
        """Nothing is done for an exchange."""
        return None

    async def context(self, app: web.Application) -> AsyncIterator[None]:
        watch = asyncio.create_task(self._watch())
        yield
        watch.cancel()

    async def _watch(self) -> None:
        loop, lags, begun = asyncio.get_running_loop(), list[float](), time.monotonic()
        try:
            while True:
                due = loop.time() + LOOK_SECONDS
                await asyncio.sleep(LOOK_SECONDS)
                if time.monotonic() - begun > SETTLED_SECONDS:
                    lags.append((loop.time() - due) * 1000)
        finally:
            told = {"worst": max(lags, default=0.0), "late": sum(lag > 5 for lag in lags), "looks": len(lags)}
            Path(self.path).write_text(json.dumps(told), encoding="utf-8")

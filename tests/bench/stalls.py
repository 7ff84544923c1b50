"""A link that watches the loop: how long it did not come round.

Two hundred requests that arrive in one turn of the loop take it a while, with or without a tap. What a disk does to the loop shows when
nothing begins and nothing ends, so the two are told apart.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
from aiohttp import web

from fiedler_proxy.config import setting
from fiedler_proxy.server import Handler

LOOK_SECONDS = 0.002
SETTLED_SECONDS = 2.0
"""After the start, before anything counts."""
STEADY_SECONDS = 0.25
"""After an exchange has begun or ended, before the loop is steady again."""


@web.middleware
@attrs.frozen
class Stalls:
    """Writes into ``path``, at the end, a JSON object: ``worst``, the longest time in ms that the loop was late for a timer while streams
    ran, and ``late``, how often it was so by more than 5 ms, of ``looks``; ``changing``, the longest while exchanges began or ended."""

    path: str = setting("", path=True)
    changed: list[float] = attrs.field(init=False, factory=lambda: [0.0])

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.changed[0] = time.monotonic()
        try:
            return await handler(request)
        finally:
            self.changed[0] = time.monotonic()

    async def context(self, app: web.Application) -> AsyncIterator[None]:
        watch = asyncio.create_task(self._watch())
        yield
        watch.cancel()

    async def _watch(self) -> None:
        begun = time.monotonic()
        lags, changing = list[float](), list[float]()
        try:
            while True:
                due = time.monotonic() + LOOK_SECONDS  # uvloop's own clock counts whole milliseconds
                await asyncio.sleep(LOOK_SECONDS)
                now = time.monotonic()
                if now - begun > SETTLED_SECONDS:
                    steady = now - self.changed[0] > STEADY_SECONDS
                    (lags if steady else changing).append((now - due) * 1000)
        finally:
            told = {
                "worst": max(lags, default=0.0),
                "late": sum(lag > 5 for lag in lags),
                "looks": len(lags),
                "changing": max(changing, default=0.0),
            }
            Path(self.path).write_text(json.dumps(told), encoding="utf-8")

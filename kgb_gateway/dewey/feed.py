"""The feed: the librarian's events over HTTP, on a Unix socket for its owner alone.

Owns event ids and how a reader who was away goes on: ids are ``EPOCH.NUMBER``, the last KEPT events are kept, and one who asks for
older ones, or for those of an earlier librarian, is told so by a ``missed`` event instead of being left to guess.
"""

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from kgb_gateway.dewey.transcripts.model import Json

KEPT = 10_000
"""Events that are kept for those who come back."""

BEAT_SECONDS = 15.0
"""How often a silent feed says that it is there."""

SOCKET = "dewey.sock"


class Feed:
    """Events for any number of readers; all on one event loop. ``watch`` is called with whether anybody reads."""

    def __init__(self, epoch: str, watch: Callable[[bool], None]) -> None:
        self._epoch = epoch
        self._watch = watch
        self._events: deque[tuple[int, str, str]] = deque(maxlen=KEPT)
        self._last = 0
        self._news = asyncio.Event()
        self._readers = 0

    def publish(self, event: str, data: str) -> None:
        """One more event. ``data`` is JSON, on one line."""
        self._last += 1
        self._events.append((self._last, event, data))
        self._news.set()

    async def events(self, request: web.Request) -> web.StreamResponse:
        """``GET /events``: a stream of events, from now on, or from behind ``Last-Event-ID``."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        at = self._begin(request.headers.get("Last-Event-ID", ""))
        self._readers += 1
        self._watch(True)
        try:
            await response.prepare(request)
            await response.write(b": the librarian's events\nretry: 500\n\n")
            while True:
                at = await self._send(response, at)
                self._news.clear()
                if at == self._last:
                    await self._wait(response)
        finally:
            self._readers -= 1
            self._watch(self._readers > 0)

    def _begin(self, last: str) -> int:
        """Behind which event a reader goes on; -1 where some of what it wants is gone."""
        if not last:
            return self._last
        epoch, _, number = last.partition(".")
        if epoch != self._epoch or not number.isdecimal() or int(number) > self._last:
            return -1
        return int(number)

    async def _send(self, response: web.StreamResponse, at: int) -> int:
        oldest = self._events[0][0] if self._events else self._last + 1
        lines = []
        if at < 0 or at < oldest - 1:
            lines.append(f"event: missed\ndata: {json.dumps({'after': max(at, 0), 'oldest': oldest})}\n\n")
            at = oldest - 1
        lines += [
            f"id: {self._epoch}.{number}\nevent: {event}\ndata: {data}\n\n"
            for number, event, data in self._events
            if number > at
        ]
        if lines:
            await response.write("".join(lines).encode())
        return max(at, self._events[-1][0] if self._events else at)

    async def _wait(self, response: web.StreamResponse) -> None:
        try:
            await asyncio.wait_for(self._news.wait(), BEAT_SECONDS)
        except TimeoutError:
            await response.write(b": beat\n\n")


@asynccontextmanager
async def serving(
    home: Path, feed: Feed, status: Callable[[], Mapping[str, Json]], step_aside: Callable[[], Awaitable[None]]
) -> AsyncIterator[str]:
    """Serve ``feed``, ``status`` and ``POST /aside`` on the Unix socket in ``home``; yields its path."""

    async def tell(_: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(status))

    async def aside(_: web.Request) -> web.Response:
        await step_aside()
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/aside", aside)
    app.router.add_get("/events", feed.events)
    app.router.add_get("/status", tell)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5, handler_cancellation=True)
    await runner.setup()
    path = home / SOCKET
    path.unlink(missing_ok=True)
    before = os.umask(0o177)  # the socket is for its owner alone from its first moment on
    try:
        await web.UnixSite(runner, path).start()
    finally:
        os.umask(before)
    try:
        yield str(path)
    finally:
        await runner.cleanup()
        path.unlink(missing_ok=True)

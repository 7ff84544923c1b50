"""Ordering in tests: named points that one side reaches and the other waits for.

Owns waiting with a guard. Knows nothing of connections or HTTP. The guard is no measurement: it turns a test that would
hang for ever into one that fails and says what it waited for.
"""

import asyncio
from collections.abc import Callable

GUARD = 15.0
"""Seconds after which a wait in a test is given up."""


class Signal:
    """Wakes everybody who waits for a condition to become true."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def notify(self) -> None:
        """Something changed: let every waiter look again."""
        waiting, self._waiting = self._waiting, set()
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def until(self, condition: Callable[[], bool], what: Callable[[], str], guard: float | None = GUARD) -> None:
        """Wait until ``condition()`` holds; TimeoutError naming ``what()`` after ``guard`` seconds (None: never)."""
        if condition():
            return
        try:
            async with asyncio.timeout(guard):
                while not condition():
                    await self._next()
        except TimeoutError:
            raise TimeoutError(f"waited {guard} s for {what()}") from None

    async def _next(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)


class Rendezvous:
    """Named points of a test, each reached once.

    ``reach(name)`` on one side, ``await wait(name)`` on the other::

        points = Rendezvous()


        async def script(conn):
            await conn.request()
            await conn.send_head(200, [(b"Transfer-Encoding", b"chunked")])
            await conn.chunk(b"one")
            await points.wait("one was read")
            await conn.chunk(b"two")
            await conn.end_chunks()
    """

    def __init__(self, guard: float = GUARD) -> None:
        self.guard = guard
        self._points: dict[str, asyncio.Event] = {}

    def point(self, name: str) -> asyncio.Event:
        """The point as an event, for ``Wait(points.point("name"))`` in a list of steps."""
        return self._points.setdefault(name, asyncio.Event())

    def reach(self, name: str) -> None:
        """Say that the test has come to ``name``; saying it again changes nothing."""
        self.point(name).set()

    def reached(self, name: str) -> bool:
        """Whether ``name`` was reached, without waiting."""
        return name in self._points and self._points[name].is_set()

    async def wait(self, name: str) -> None:
        """Wait until somebody reaches ``name``; TimeoutError says what was reached instead."""
        event = self.point(name)
        try:
            async with asyncio.timeout(self.guard):
                await event.wait()
        except TimeoutError:
            reached = sorted(known for known, point in self._points.items() if point.is_set())
            raise TimeoutError(f"waited {self.guard} s for {name!r}; reached so far: {reached}") from None

"""The clock of running exchanges: one timer for all of them, instead of one each.

Owns when to look, not what for: whatever is watched is asked a few times within its own shortest limit. A timer for
every exchange would cost more than the look.
"""

import asyncio
from typing import Protocol

LONGEST = 1.0
"""Seconds between two looks at the most; a limit of minutes may run over by as much, and by twice as much where there are thousands."""

SHORTEST = 0.005

SHARE = 8
"""Looks within the shortest limit that is watched."""


LOOKS = 200
"""Most that are looked at in one go: thousands would hold up every stream for milliseconds."""


class Watched(Protocol):
    """What the clock looks after; must be hashable."""

    def look(self, now: float) -> None:
        """``now`` is the loop's time: see whether a limit has passed."""


class Clock:
    """Looks at everything watched, in turn, for as long as there is anything."""

    __slots__ = ("_interval", "_left", "_pace", "_timer", "_watched")

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._interval = self._pace = LONGEST
        self._left: list[Watched] = []
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, watched: Watched, limit: float) -> None:
        """Look at ``watched`` until ``forget``; ``limit`` seconds is the shortest it wants kept (0: none)."""
        if not limit:
            return
        self._watched.add(watched)
        if self._timer is not None and limit >= self._interval * SHARE:
            return
        interval = min(LONGEST, max(SHORTEST, limit / SHARE))
        if self._timer is None or interval < self._interval:
            if self._timer is not None:
                self._timer.cancel()
            self._interval = interval if self._timer is None else min(interval, self._interval)
            self._left.clear()
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._look)

    def forget(self, watched: Watched) -> None:
        """Look at it no more. A timer without work ends by itself."""
        self._watched.discard(watched)

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now, left = loop.time(), self._left
        if not left:
            left += self._watched
            self._pace = self._interval / max(1, -(-len(left) // LOOKS))  # all of them within one interval
        some = left[-LOOKS:]
        del left[-LOOKS:]
        for watched in some:
            if watched in self._watched:
                watched.look(now)
        if self._watched and self._timer is None:
            self._timer = loop.call_later(self._pace, self._look)

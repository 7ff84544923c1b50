"""The librarian as a process: at work until it is told to stop, and standing by while another one is.

Owns the process's rhythm and its end. The store is written in one thread, the feed is served on the event loop beside it.
"""

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from kgb_gateway.dewey.feed import Feed, serving
from kgb_gateway.dewey.librarian import Busy, Librarian, Retention, lock
from kgb_gateway.dewey.live import Live
from kgb_gateway.dewey.prices import Prices
from kgb_gateway.dewey.sink import Sink
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.database import StoreError, open_reader
from kgb_gateway.dewey.store.stats import lag
from kgb_gateway.dewey.transcripts.model import Json

POLL_SECONDS = 0.25
"""How often the spool is looked at while nobody watches."""

WATCHED_SECONDS = 0.03
"""How often while somebody does."""

STANDBY_SECONDS = 1.0
"""How often one who stands by asks whether the place is free."""

RETRY_SECONDS = 5.0
"""How long the librarian waits after the store or the disk has refused it."""

_log = logging.getLogger("kgb.dewey")


def calm_collector() -> None:
    """Look for cycles less often: a body of a megabyte is ten thousand objects, and hardly any of them is in one."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


class Process:
    """The librarian of ``home`` as a process. ``sink``: an existing Dewey that gets every conversation too, "" for none. ``stop`` may be called from anywhere."""

    def __init__(self, home: Path, prices: Prices, retention: Retention, sink: str = "") -> None:
        self._sink = sink
        self._home = home
        self._prices = prices
        self._retention = retention
        self._stopping = threading.Event()
        self._aside = threading.Event()
        self._state: dict[str, Json] = {"state": "starting", "pid": os.getpid()}
        self._live: Live | None = None

    def stop(self) -> None:
        """End after what is being written."""
        self._stopping.set()

    async def run(self) -> None:
        """Stand by until the place is free, then work until ``stop``. StoreError when the store cannot be used at all."""
        told = False
        while not self._stopping.is_set():
            try:
                with lock(self._home):
                    await self._work()
                told = False
                if self._aside.is_set():  # somebody wants the place: let them have it
                    self._aside.clear()
                    await asyncio.to_thread(self._stopping.wait, STANDBY_SECONDS)
            except Busy:
                if not told:
                    _log.info("another librarian is at work in %s; standing by", self._home)
                told = True
                await asyncio.to_thread(self._stopping.wait, STANDBY_SECONDS)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        feed = Feed(secrets.token_hex(4), self._watch)
        self._live = Live(lambda event, data: _soon(loop, feed, event, data))
        closed = asyncio.Event()
        async with serving(self._home, feed, self.status, lambda: self._step_aside(closed)):
            async with _delivering(self._home, self._sink):
                await asyncio.to_thread(self._follow)
            closed.set()

    async def _step_aside(self, closed: asyncio.Event) -> None:
        """Give the place away; back when the store is closed."""
        self._aside.set()
        await closed.wait()

    def _watch(self, watched: bool) -> None:
        if self._live is not None:
            self._live.watched = watched

    def _follow(self) -> None:
        """In a thread: everything that touches the store."""
        while not self._stopping.is_set() and not self._aside.is_set():
            self._keep_up()

    def _keep_up(self) -> None:
        """Until somebody wants the place, or the store is taken away."""
        assert self._live is not None
        librarian = Librarian(self._home, self._prices, self._retention, self._live)
        self._state = {"state": "working", "pid": os.getpid(), "since": time.time()}
        try:
            while not self._stopping.is_set() and not self._aside.is_set():
                if not librarian.store.is_there:
                    _log.warning("the store of %s was taken away; it is made anew from the segments", self._home)
                    return
                wait = WATCHED_SECONDS if self._live.watched else POLL_SECONDS
                try:
                    if librarian.step():
                        wait = 0.0
                    self._state.pop("failing", None)
                except (sqlite3.Error, OSError) as error:
                    if "failing" not in self._state:
                        _log.error("the store cannot be written (%s); trying again", error)
                    self._state["failing"] = str(error)
                    wait = RETRY_SECONDS
                if not self._aside.is_set():
                    self._stopping.wait(wait)
        finally:
            self._state["state"] = "stopping"
            with contextlib.suppress(sqlite3.Error):
                librarian.close()

    def status(self) -> Mapping[str, Json]:
        """What the librarian is doing, and how far behind it is."""
        layout = Layout(self._home)
        try:
            with contextlib.closing(open_reader(layout.store)) as db:
                return {**self._state, "lag_bytes": lag(layout, db)}
        except (StoreError, sqlite3.Error):
            return {**self._state, "lag_bytes": lag(layout, None)}


@contextlib.asynccontextmanager
async def _delivering(home: Path, sink: str) -> AsyncIterator[None]:
    """Deliver to ``sink``, if there is one, while the context is open."""
    if not sink:
        yield
        return
    task = asyncio.create_task(Sink(Layout(home), sink).run(), name="kgb-sink")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _soon(loop: asyncio.AbstractEventLoop, feed: Feed, event: str, data: str) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(feed.publish, event, data)


def stop_with_parent(process: Process) -> threading.Thread:
    """Stop ``process`` when standard input ends: the gateway that started it holds the other end, and lives no longer."""

    def wait() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(sys.stdin.fileno(), 64):
                pass
        process.stop()

    thread = threading.Thread(target=wait, name="kgb-parent", daemon=True)
    thread.start()
    return thread

"""The feed of events, the librarian's process, and the companion that keeps it running."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector
from aiohttp_sse_client.client import EventSource

from kgb_gateway import companion as companion_module
from kgb_gateway.companion import Companion, command_of
from kgb_gateway.dewey.aside import set_aside
from kgb_gateway.dewey.feed import SOCKET, Feed, serving
from kgb_gateway.dewey.librarian import Retention, lock
from kgb_gateway.dewey.notes import SpoolWriter
from kgb_gateway.dewey.serving import Process
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.database import StoreError
from kgb_gateway.dewey.store.reader import Filter, StoreReader
from tests.spools import Exchange, events, prices, request, turns, user, write


@contextlib.asynccontextmanager
async def client_of(home: Path) -> AsyncIterator[ClientSession]:
    async with ClientSession(connector=UnixConnector(str(home / SOCKET))) as session:
        yield session


async def eventually(there: Callable[[], bool]) -> None:
    """Wait until something is so; the suite's own limit is the only one."""
    while not there():
        await asyncio.sleep(0.005)


async def no_step() -> None:
    pass


class TestFeed:
    @pytest.fixture
    async def feed(self, tmp_path: Path) -> AsyncIterator[Feed]:
        watched: list[bool] = []
        feed = Feed("e1", watched.append)
        async with serving(tmp_path, feed, lambda: {"state": "working", "watched": list(watched)}, no_step):
            yield feed

    async def take(self, source: EventSource, number: int) -> list[tuple[str, str, str]]:
        found = []
        async for event in source:
            found.append((event.type, event.data, event.last_event_id))
            if len(found) == number:
                break
        return found

    async def test_events_come_as_they_happen(self, feed: Feed, tmp_path: Path) -> None:
        feed.publish("old", "{}")
        async with client_of(tmp_path) as session, EventSource("http://dewey/events", session=session) as source:
            feed.publish("began", '{"id":"x"}')
            assert await self.take(source, 1) == [("began", '{"id":"x"}', "e1.2")]
            feed.publish("ended", "{}")
            assert await self.take(source, 1) == [("ended", "{}", "e1.3")]

    async def test_one_who_was_away_goes_on_where_they_were(self, feed: Feed, tmp_path: Path) -> None:
        for number in range(1, 6):
            feed.publish("n", str(number))
        headers = {"Last-Event-ID": "e1.2"}
        async with client_of(tmp_path) as session:
            async with EventSource("http://dewey/events", session=session, headers=headers) as source:
                assert [data for _, data, _ in await self.take(source, 3)] == ["3", "4", "5"]

    @pytest.mark.parametrize("last", ["e0.4", "e1.99", "nonsense", "e1.x"])
    async def test_ids_of_another_librarian_bring_what_is_kept(self, feed: Feed, tmp_path: Path, last: str) -> None:
        feed.publish("n", "1")
        async with client_of(tmp_path) as session:
            async with session.get("http://dewey/events", headers={"Last-Event-ID": last}) as response:
                text = b""
                while b"data: 1" not in text:
                    text += await response.content.readany()
        assert text.index(b"event: missed") < text.index(b"event: n\n")

    async def test_the_socket_is_for_its_owner_alone(self, feed: Feed, tmp_path: Path) -> None:
        assert stat.S_IMODE((tmp_path / SOCKET).stat().st_mode) == 0o600

    async def test_it_says_whether_anybody_watches(self, feed: Feed, tmp_path: Path) -> None:
        async with client_of(tmp_path) as session:
            async with session.get("http://dewey/events") as response:
                await response.content.readany()
                async with session.get("http://dewey/status") as status:
                    assert (await status.json())["watched"] == [True]
            watched: list[bool] = []
            while watched != [True, False]:
                async with session.get("http://dewey/status") as status:
                    watched = (await status.json())["watched"]


@contextlib.asynccontextmanager
async def working(home: Path) -> AsyncIterator[Process]:
    """A librarian at work in ``home``."""
    process = Process(home, prices(), Retention())
    task = asyncio.create_task(process.run())
    await eventually(lambda: (home / SOCKET).exists() or task.done())
    try:
        yield process
    finally:
        process.stop()
        await task


def sessions(home: Path) -> int:
    try:
        with StoreReader(Layout(home)) as store:
            return len(store.sessions(Filter(), 10))
    except StoreError:
        return 0


class TestProcess:
    async def test_takes_in_what_comes(self, tmp_path: Path) -> None:
        async with working(tmp_path):
            for number in (1, 2):
                write(tmp_path, turns(["one"], first=number, session=f"s-{number}"))
                await eventually(lambda number=number: sessions(tmp_path) == number)  # type: ignore[misc]
            async with client_of(tmp_path) as session, session.get("http://dewey/status") as response:
                status = await response.json()
            assert (status["state"], status["lag_bytes"], status["pid"]) == ("working", 0, os.getpid())
        assert not (tmp_path / SOCKET).exists()

    async def test_live_exchanges_are_told_as_they_stream(self, tmp_path: Path) -> None:
        exchange = Exchange(1, request([user("hello")]), events("some words that stream"))
        async with working(tmp_path), client_of(tmp_path) as session:
            async with EventSource("http://dewey/events", session=session) as source:
                # The spool is read only when the feed is watched: what is written now is heard.
                await eventually(lambda: source.ready_state == 1)
                with SpoolWriter(tmp_path / "spool", "test") as writer:
                    for kind, payload in exchange.frames():
                        writer.write(kind, exchange.key, payload)
                seen: list[tuple[str, Any]] = []
                async for event in source:
                    seen.append((event.type, json.loads(event.data)))
                    if event.type == "stored":
                        break
        kinds = [kind for kind, _ in seen]
        assert kinds[0] == "began"
        assert kinds[1] == "answered"
        assert kinds[-2:] == ["ended", "stored"]
        assert "".join(said["text"] for kind, said in seen if kind == "text") == "some words that stream"
        assert (seen[-1][1]["session"], seen[-1][1]["output"]) == (f"{exchange.session}@alice", 20)

    async def test_one_stands_by_until_the_place_is_free(self, tmp_path: Path) -> None:
        tmp_path.joinpath("spool").mkdir()
        with lock(tmp_path):
            second = Process(tmp_path, prices(), Retention())
            task = asyncio.create_task(second.run())
            await asyncio.sleep(0)
            assert not (tmp_path / SOCKET).exists()
        await eventually((tmp_path / SOCKET).exists)
        second.stop()
        await task

    async def test_it_steps_aside_for_a_command_and_comes_back(self, tmp_path: Path) -> None:
        write(tmp_path, turns(["one"]))
        async with working(tmp_path):
            await eventually(lambda: sessions(tmp_path) == 1)

            def borrow() -> None:
                with set_aside(tmp_path), lock(tmp_path, 0.5):
                    assert sessions(tmp_path) == 1

            await asyncio.to_thread(borrow)
            write(tmp_path, turns(["two"], first=5, session="other"))
            await eventually(lambda: sessions(tmp_path) == 2)

    async def test_a_store_that_cannot_be_written_is_tried_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kgb_gateway.dewey.serving.RETRY_SECONDS", 0.01)
        monkeypatch.setattr("kgb_gateway.dewey.store.database.BUSY_SECONDS", 0.01)
        async with working(tmp_path) as process:
            other = sqlite3.connect(tmp_path / "dewey.db", isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            write(tmp_path, turns(["one"]))
            await eventually(lambda: "failing" in process.status())
            other.execute("ROLLBACK")
            other.close()
            await eventually(lambda: sessions(tmp_path) == 1)
            await eventually(lambda: "failing" not in process.status())

    async def test_a_store_that_is_taken_away_is_made_anew(self, tmp_path: Path) -> None:
        async with working(tmp_path):
            write(tmp_path, turns(["one"]))
            await eventually(lambda: sessions(tmp_path) == 1)
            (tmp_path / "dewey.db").unlink()
            write(tmp_path, turns(["two"], first=5, session="other"))
            await eventually(lambda: sessions(tmp_path) == 2)


class TestCompanion:
    async def test_it_runs_and_ends_with_its_gateway(self, tmp_path: Path) -> None:
        companion = Companion(command_of(str(tmp_path)))
        companion.start()
        await eventually((tmp_path / SOCKET).exists)
        pid = companion.pid
        assert pid is not None
        await companion.stop()
        assert companion.pid is None
        assert not (tmp_path / SOCKET).exists()

    async def test_one_that_dies_is_started_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(companion_module, "FIRST_PAUSE", 0.01)
        companion = Companion([sys.executable, "-c", "import sys; sys.stdin.read()"])
        companion.start()
        for number in (1, 2, 3):
            await eventually(lambda number=number: companion.starts == number and companion.pid is not None)  # type: ignore[misc]
            assert companion.pid is not None
            os.kill(companion.pid, signal.SIGKILL)
        await eventually(lambda: companion.starts == 4)
        await companion.stop()

    async def test_one_that_cannot_be_started_harms_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(companion_module, "FIRST_PAUSE", 0.01)
        companion = Companion(["/nothing/here"])
        companion.start()
        await asyncio.sleep(0.05)
        assert companion.pid is None
        await companion.stop()

    async def test_one_that_does_not_listen_is_killed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(companion_module, "STOP_SECONDS", 0.05)
        stubborn = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1); time.sleep(600)"
        companion = Companion([sys.executable, "-c", stubborn])
        companion.start()
        await eventually(lambda: companion.pid is not None)
        await companion.stop()
        assert companion.pid is None

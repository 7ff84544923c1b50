"""Slots under load: switches, reloads and a canary that fails, while streams run."""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
from aiohttp import web

from fiedler_proxy.control import Control
from fiedler_proxy.exchange import Exchange, Observer, Outcome
from fiedler_proxy.router import ROUTER
from fiedler_proxy.testing import RawClient, ScriptedUpstream, UpstreamConnection, respond
from tests.controlled import controlled

SLOTS = ("one", "two")
CHUNKS = 5


class Seen(Observer):
    """How the exchanges of one gateway ended, by id."""

    def __init__(self) -> None:
        self.began: dict[str, str] = {}
        self.ended: dict[str, tuple[str, str, Outcome | None]] = {}

    def watch(self, exchange: Exchange) -> None:
        """A router.Watcher, which comes after the others."""
        self.began[exchange.id] = exchange.slot
        exchange.observe(self)

    def closed(self, exchange: Exchange) -> None:
        name = exchange.upstream.name if exchange.upstream is not None else ""
        self.ended[exchange.id] = (exchange.slot, name, exchange.outcome)


def upstream(name: str, *, breaks_each: int = 0) -> ScriptedUpstream:
    """Answers with its name in every chunk; each ``breaks_each``-th answer breaks off in the middle."""
    count = 0

    async def script(connection: UpstreamConnection) -> None:
        nonlocal count
        while True:
            request = await connection.request()
            await request.body()
            count += 1
            number = count
            await connection.send_head(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
            for place in range(CHUNKS):
                await connection.chunk(f"<{name}>".encode())
                await asyncio.sleep(0)
                if breaks_each and number % breaks_each == 0 and place == 2:
                    connection.abort()
                    return
            await connection.end_chunks()

    return ScriptedUpstream(script, ignore_errors=True)


@attrs.define(eq=False)
class Place:
    app: web.Application
    control: Control
    host: str
    port: int
    config: Path
    text: str
    seen: Seen


@contextlib.asynccontextmanager
async def place(tmp_path: Path, one: ScriptedUpstream, two: ScriptedUpstream, more: str = "") -> AsyncIterator[Place]:
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(one)
        await stack.enter_async_context(two)
        text = f'upstream = "http://127.0.0.1:9"\nslot = "one"\nchain = ["request_id", "auth", "fiedler"]\n{more}\n'
        for name, far in zip(SLOTS, (one, two), strict=True):
            text += f'[providers.{name}]\nurl = "{far.url}"\n[[slots.{name}]]\nname = "all"\nupstreams = ["{name}"]\n'
        config = tmp_path / "gateway.toml"
        config.write_text(text)
        flags = {"config": str(config), "data_dir": str(tmp_path / "data")}
        at = await stack.enter_async_context(controlled(flags))
        seen = Seen()
        at.router.watchers += (seen.watch,)
        yield Place(at.app, at.control, at.host, at.port, config, text, seen)


@attrs.define
class Tally:
    """What callers saw."""

    whole: int = 0
    broken: int = 0
    wrong: list[str] = attrs.field(factory=list)
    asked: int = 0


async def caller(at: Place, number: int, tally: Tally, stop: asyncio.Event) -> None:
    """Ask again and again; every answer must be of one slot alone, and of the one that the exchange is pinned to."""
    while not stop.is_set():
        async with RawClient(at.host, at.port) as client:
            while not stop.is_set():
                tally.asked += 1
                await client.post("/v1/messages", [("x-claude-code-session-id", f"s{number}")], b"{}")
                head = await client.read_head()
                identity = dict(head.headers)[b"x-kgb-request-id"].decode()
                body, ended = b"", True
                try:
                    body = await client.read_body()
                except Exception:  # the upstream broke off
                    ended = False
                names = {each for each in body.replace(b"<", b"").split(b">") if each}
                slot = at.seen.began[identity].encode()
                if names - {slot}:
                    tally.wrong.append(f"{identity}: {names} in {slot!r}")
                if ended and body.count(b"<") != CHUNKS:
                    tally.wrong.append(f"{identity}: whole with {body!r}")
                tally.whole += ended
                tally.broken += not ended
                if not ended:
                    break


async def switched(tmp_path: Path, *, switches: int, streams: int, reload_each: int) -> tuple[Tally, Place]:
    one, two = upstream("one"), upstream("two", breaks_each=7)
    async with place(tmp_path, one, two) as at:
        tally, stop = Tally(), asyncio.Event()
        callers = [asyncio.create_task(caller(at, number, tally, stop)) for number in range(streams)]
        router = at.app[ROUTER]
        for number in range(switches):
            match number % 4:
                case 0:
                    await router.change(lambda choice: choice.using("two", "test"))
                case 1:
                    await router.change(lambda choice: choice.with_canary("one", 0.5, "test"))
                case 2:
                    await router.change(lambda choice: choice.rolled_back("test"))
                case 3:
                    await router.change(lambda choice: choice.using("one", "test"))
            if number % reload_each == 0:
                assert at.control.reload is not None
                at.control.reload(False)
                router.watchers = (*(each for each in router.watchers if each != at.seen.watch), at.seen.watch)
        stop.set()
        await asyncio.wait_for(asyncio.gather(*callers), 60)
        return tally, at


def judge(tally: Tally, at: Place) -> None:
    """Lost, mixed, wrongly pinned: none."""
    assert tally.wrong == []
    assert tally.whole + tally.broken == tally.asked
    assert set(at.seen.began) == set(at.seen.ended)
    assert all(at.seen.began[identity] == slot == name for identity, (slot, name, _) in at.seen.ended.items())
    outcomes = collections.Counter(outcome for _, _, outcome in at.seen.ended.values())
    assert set(outcomes) == {Outcome.COMPLETED, Outcome.UPSTREAM_BROKE}
    assert outcomes[Outcome.UPSTREAM_BROKE] == tally.broken
    assert {slot for slot, _, _ in at.seen.ended.values()} == set(SLOTS)


async def test_switches_and_reloads_lose_nothing(tmp_path: Path) -> None:
    judge(*await switched(tmp_path, switches=120, streams=20, reload_each=25))


@pytest.mark.soak
async def test_ten_thousand_switches_under_two_hundred_streams(tmp_path: Path) -> None:
    tally, at = await switched(tmp_path, switches=10_000, streams=200, reload_each=100)
    judge(tally, at)


async def test_a_canary_that_fails_is_taken_back_by_itself(tmp_path: Path) -> None:
    async def failing(connection: UpstreamConnection) -> None:
        while True:
            await (await connection.request()).body()
            await connection.send_response(500, [], b"oops")

    good = ScriptedUpstream(respond(200, [], b"ok"))
    async with place(tmp_path, good, ScriptedUpstream(failing, ignore_errors=True)) as at:
        router = at.app[ROUTER]
        await router.change(lambda choice: choice.with_canary("two", 0.5, "test"))
        statuses: collections.Counter[int] = collections.Counter()
        async with RawClient(at.host, at.port) as client:
            for number in range(200):
                await client.post("/v1/messages", [("x-claude-code-session-id", f"s{number}")], b"{}")
                statuses[(await client.read_response()).status] += 1
                if not router.choice.canary:
                    break
            assert router.choice.canary == ""
            assert statuses[500] == 5  # the least number of requests that are judged
            last = router.choice.log[-1]
            assert (last.action, last.by) == ("rollback", "guard")
            assert "5 of 5 requests failed, against 1.0% of the active slot" in last.why
            for number in range(20):
                await client.post("/v1/messages", [("x-claude-code-session-id", f"t{number}")], b"{}")
                assert (await client.read_response()).status == 200
        while router.file is not None and router.file.load(router.slots, "one").canary:
            await asyncio.sleep(0.01)


async def test_without_the_guard_a_canary_stays(tmp_path: Path) -> None:
    good, bad = ScriptedUpstream(respond(200, [], b"ok")), ScriptedUpstream(respond(500, [], b"oops"))
    async with place(tmp_path, good, bad, more="[canary]\nguard = false\n") as at:
        router = at.app[ROUTER]
        await router.change(lambda choice: choice.with_canary("two", 0.99, "test"))
        async with RawClient(at.host, at.port) as client:
            for number in range(20):
                await client.post("/v1/messages", [("x-claude-code-session-id", f"s{number}")], b"{}")
                await client.read_response()
        assert router.choice.canary == "two"

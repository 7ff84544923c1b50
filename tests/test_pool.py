"""The pool: how many connections there are, who waits, and that none is ever lost count of."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import attrs
import pytest

from fiedler_proxy import pool as module
from fiedler_proxy.errors import ExchangeError, Fault, SettingsError
from fiedler_proxy.pool import RETRY_AFTER, Pool
from fiedler_proxy.testing import RawClient, ScriptedUpstream, UpstreamConnection
from fiedler_proxy.testing.rendezvous import GUARD
from fiedler_proxy.upstream import PoolLimits, Timeouts, Upstream, parse_upstream
from fiedler_proxy.wire import ResponseHead, State, WireError
from fiedler_proxy.wire import UpstreamConnection as Connection

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


async def settle(condition: Callable[[], bool]) -> None:
    """Let the loop run until ``condition`` holds."""
    async with asyncio.timeout(GUARD):
        while not condition():
            await asyncio.sleep(0.001)


@attrs.define(eq=False)
class Deaf:
    """A sink that only notes the end."""

    ended: asyncio.Event = attrs.field(factory=asyncio.Event)

    def on_interim(self, head: ResponseHead) -> None: ...
    def on_head(self, head: ResponseHead) -> None: ...
    def on_body(self, data: bytes) -> None: ...
    def on_end(self) -> None:
        self.ended.set()

    def on_broken(self, error: WireError) -> None:
        self.ended.set()

    def on_turn(self) -> None: ...
    def on_writable(self) -> None: ...


async def use(connection: Connection) -> None:
    """One whole exchange on ``connection``: afterwards it is the pool's again."""
    sink = Deaf()
    connection.begin(sink, "GET", False)
    connection.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    connection.finish_request()
    await sink.ended.wait()


@attrs.define(eq=False)
class Ground:
    """A pool in front of an upstream that answers everything."""

    upstream: ScriptedUpstream
    pools: list[Pool] = attrs.field(factory=list)

    def pool(self, *, url: str = "", connect: float = 10.0, **limits: float) -> Pool:
        target = parse_upstream(
            url or self.upstream.url,
            timeouts=Timeouts(connect=connect),
            limits=PoolLimits(**limits),  # type: ignore[arg-type]
        )
        pool = Pool(target)
        self.pools.append(pool)
        return pool


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    async with ScriptedUpstream() as upstream:
        ground = Ground(upstream)
        yield ground
        for pool in ground.pools:
            pool.close()
            for connection in tuple(pool._connections):
                connection.abort()
        await settle(lambda: not any(pool.open for pool in ground.pools))


@pytest.fixture
def refusing() -> Iterator[str]:
    """A URL whose port refuses: bound, but not listening."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


class TestLending:
    async def test_a_connection_is_kept_and_lent_again(self, ground: Ground) -> None:
        pool = ground.pool()
        first = await pool.acquire()
        assert (pool.open, pool.idle, pool.dialled) == (1, 0, 1)
        await use(first)
        assert (pool.open, pool.idle) == (1, 1)
        assert await pool.acquire() is first
        assert (pool.open, pool.idle, pool.dialled) == (1, 0, 1)

    async def test_the_newest_idle_connection_is_lent_first(self, ground: Ground) -> None:
        pool = ground.pool()
        old, new = await pool.acquire(), await pool.acquire()
        await use(old)
        await use(new)
        assert pool.take() is new
        assert pool.take() is old
        assert pool.take() is None

    async def test_two_exchanges_never_share_a_connection(self, ground: Ground) -> None:
        pool = ground.pool()
        connections = await asyncio.gather(*(pool.acquire() for _ in range(20)))
        assert len(set(connections)) == 20
        assert pool.open == 20

    async def test_a_connection_that_ended_badly_is_not_kept(self, ground: Ground) -> None:
        pool = ground.pool()
        connection = await pool.acquire()
        connection.begin(Deaf(), "GET", False)
        connection.abort()
        await settle(lambda: pool.open == 0)
        assert pool.idle == 0


class TestCleanliness:
    """Trap: an idle connection that heard anything is never handed to the next caller."""

    @staticmethod
    async def idle(ground: Ground, pool: Pool) -> tuple[Connection, UpstreamConnection]:
        connection = await pool.acquire()
        await use(connection)
        return connection, ground.upstream.connections[-1]

    async def test_trap_a_poisoned_idle_connection_is_dropped_when_taken(self, ground: Ground) -> None:
        pool = ground.pool()
        poisoned, peer = await self.idle(ground, pool)
        # Written without a turn of our loop: only the kernel knows when the connection is asked for.
        peer.peer.transport.write(ANSWER)
        fresh = pool.take() or await pool.acquire()
        assert fresh is not poisoned
        assert poisoned.state is State.CLOSED
        await settle(lambda: pool.open == 1)

    async def test_trap_a_poisoned_idle_connection_is_dropped_when_it_hears(self, ground: Ground) -> None:
        pool = ground.pool()
        poisoned, peer = await self.idle(ground, pool)
        await peer.send(b"x")
        await settle(lambda: pool.open == 0)
        assert pool.idle == 0
        assert poisoned.state is State.CLOSED

    async def test_an_idle_connection_that_the_upstream_closed_is_dropped(self, ground: Ground) -> None:
        pool = ground.pool()
        closed, peer = await self.idle(ground, pool)
        peer.peer.transport.get_extra_info("socket").shutdown(socket.SHUT_WR)
        fresh = pool.take() or await pool.acquire()
        assert fresh is not closed
        assert await self._answers(fresh)

    @staticmethod
    async def _answers(connection: Connection) -> bool:
        await use(connection)
        return connection.state is State.IDLE

    async def test_a_closed_idle_connection_leaves_by_itself(self, ground: Ground) -> None:
        pool = ground.pool()
        _, peer = await self.idle(ground, pool)
        peer.close()
        await settle(lambda: pool.open == 0)
        assert pool.idle == 0


class TestLimits:
    async def test_beyond_the_limit_exchanges_wait_their_turn(self, ground: Ground) -> None:
        pool = ground.pool(connections=2)
        held = [await pool.acquire() for _ in range(2)]
        waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(3)]
        await settle(lambda: pool.waiting == 3)
        await use(held[0])
        first = await waiting[0]
        assert first is held[0]
        assert not waiting[1].done()
        await use(first)
        assert await waiting[1] is first
        held[1].abort()
        last = await waiting[2]
        assert last not in held
        assert (pool.open, pool.waiting, pool.refused, pool.dialled) == (2, 0, 0, 3)

    async def test_a_newcomer_does_not_overtake_those_who_wait(self, ground: Ground) -> None:
        pool = ground.pool(connections=1)
        held = await pool.acquire()
        waiting = asyncio.ensure_future(pool.acquire())
        await settle(lambda: pool.waiting == 1)
        newcomer = asyncio.ensure_future(pool.acquire())
        await settle(lambda: pool.waiting == 2)
        await use(held)
        assert await waiting is held
        assert not newcomer.done()
        await use(held)
        assert await newcomer is held

    async def test_trap_nobody_takes_the_connection_of_one_who_was_woken(self, ground: Ground) -> None:
        """In the loop turn in which a connection comes free, its waiter has not run yet."""
        pool = ground.pool(connections=1)
        held = await pool.acquire()
        waiting = asyncio.ensure_future(pool.acquire())
        await settle(lambda: pool.waiting == 1)
        held.begin(Deaf(), "GET", False)
        held.finish_request()
        held.data_received(ANSWER)
        assert (pool.waiting, pool.idle) == (0, 1)
        assert pool.take() is None
        newcomer = asyncio.ensure_future(pool.acquire())
        assert await waiting is held
        assert not newcomer.done()
        await use(held)
        assert await newcomer is held

    async def test_one_who_waited_behind_a_turn_gets_the_room_beside_it(self, ground: Ground) -> None:
        """Two places came free at once; the second one was nobody's turn when it did."""
        pool = ground.pool(connections=2)
        held = [await pool.acquire() for _ in range(2)]
        waiting = asyncio.ensure_future(pool.acquire())
        await settle(lambda: pool.waiting == 1)
        for connection in held:
            connection.begin(Deaf(), "GET", False)
            connection.finish_request()
            connection.data_received(ANSWER)
        newcomer = asyncio.ensure_future(pool.acquire())
        assert {await waiting, await newcomer} == set(held)

    async def test_the_queue_time_does_not_begin_anew(self, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
        """One whose turns find nothing stays first in the queue, and its time goes on."""
        pool = ground.pool(connections=1, queue_timeout=0.05)
        await pool.acquire()
        first = asyncio.ensure_future(pool.acquire())
        second = asyncio.ensure_future(pool.acquire())
        await settle(lambda: pool.waiting == 2)

        async def wake() -> None:
            while not first.done():
                pool._wake()  # a turn for nothing
                await asyncio.sleep(0.005)

        with pytest.raises(ExchangeError, match="no connection came free"):
            await asyncio.gather(first, wake())
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert (pool.waiting, pool._turns) == (0, 0)

    async def test_beyond_the_queue_there_is_503_at_once(self, ground: Ground) -> None:
        pool = ground.pool(connections=1, queue=2)
        held = await pool.acquire()
        waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(2)]
        await settle(lambda: pool.waiting == 2)
        with pytest.raises(ExchangeError) as caught:
            await pool.acquire()
        error = caught.value
        assert (error.status, error.code, error.fault) == (503, "upstream_queue_full", Fault.GATEWAY)
        assert ("Retry-After", RETRY_AFTER) in error.headers
        assert "limits.connections" in error.hint
        assert (pool.waiting, pool.refused) == (2, 1)
        for task in waiting:
            await use(held)
            assert await task is held

    async def test_a_queue_of_nothing_refuses_at_once(self, ground: Ground) -> None:
        pool = ground.pool(connections=1, queue=0)
        await pool.acquire()
        with pytest.raises(ExchangeError, match="0 requests already wait"):
            await pool.acquire()

    async def test_waiting_has_an_end(self, ground: Ground) -> None:
        pool = ground.pool(connections=1, queue_timeout=0.02)
        held = await pool.acquire()
        with pytest.raises(ExchangeError) as caught:
            await pool.acquire()
        assert (caught.value.status, caught.value.code) == (503, "upstream_queue_timeout")
        assert ("Retry-After", RETRY_AFTER) in caught.value.headers
        assert (pool.waiting, pool.refused, pool.open) == (0, 1, 1)
        await use(held)
        assert await pool.acquire() is held


class TestCancelledWaiters:
    async def test_a_cancelled_waiter_leaves_the_queue(self, ground: Ground) -> None:
        pool = ground.pool(connections=1)
        held = await pool.acquire()
        gone, staying = (asyncio.ensure_future(pool.acquire()) for _ in range(2))
        await settle(lambda: pool.waiting == 2)
        gone.cancel()
        await settle(gone.done)
        assert pool.waiting == 1
        await use(held)
        assert await staying is held

    async def test_a_waiter_cancelled_in_its_own_turn_passes_the_turn_on(self, ground: Ground) -> None:
        """Its future was set, its task has not run yet: the turn must not die with it."""
        pool = ground.pool(connections=1)
        held = await pool.acquire()
        gone, next_one = (asyncio.ensure_future(pool.acquire()) for _ in range(2))
        await settle(lambda: pool.waiting == 2)
        sink = Deaf()
        held.begin(sink, "GET", False)
        held.finish_request()
        held.data_received(ANSWER)  # frees the connection and wakes the first waiter, in this very turn
        assert pool.waiting == 1
        gone.cancel()
        assert await next_one is held
        assert gone.cancelled()
        assert (pool.open, pool.waiting) == (1, 0)

    async def test_a_turn_that_finds_nothing_waits_on(self, ground: Ground) -> None:
        """The connection that came free broke before the waiter ran: it dials its own in the free place."""
        pool = ground.pool(connections=1)
        held = await pool.acquire()
        waiting = asyncio.ensure_future(pool.acquire())
        await settle(lambda: pool.waiting == 1)
        held.begin(Deaf(), "GET", False)
        held.finish_request()
        held.data_received(ANSWER)
        held.data_received(b"poison")
        connection = await waiting
        assert connection is not held
        assert pool.open == 1

    async def test_cancelling_everybody_at_once_leaves_nothing(self, ground: Ground) -> None:
        pool = ground.pool(connections=2)
        held = [await pool.acquire() for _ in range(2)]
        waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(10)]
        await settle(lambda: pool.waiting == 10)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert pool.waiting == 0
        for connection in held:
            await use(connection)
        assert (pool.open, pool.idle) == (2, 2)
        assert await pool.acquire() in held

    async def test_a_cancelled_dial_gives_its_place_back(self, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
        pool = ground.pool(connections=1)
        dialling, never = asyncio.Event(), asyncio.Event()

        async def hang(*args: object) -> list[object]:
            dialling.set()
            await never.wait()
            return []

        with monkeypatch.context() as patch:
            patch.setattr(module, "_resolve", hang)
            stuck = asyncio.ensure_future(pool.acquire())
            await dialling.wait()
            waiting = asyncio.ensure_future(pool.acquire())
            await settle(lambda: pool.waiting == 1)
        stuck.cancel()
        connection = await waiting
        assert stuck.cancelled()
        assert pool.open == 1
        await use(connection)


class TestFailures:
    """Whatever fails, a place is given back and the caller hears whose fault it was."""

    @staticmethod
    async def error_of(pool: Pool) -> ExchangeError:
        with pytest.raises(ExchangeError) as caught:
            await pool.acquire()
        error = caught.value
        assert error.fault is Fault.UPSTREAM
        assert pool.upstream.where in error.message
        assert error.hint
        assert pool.open == 0
        return error

    async def test_refused(self, ground: Ground, refusing: str) -> None:
        error = await self.error_of(ground.pool(url=refusing))
        assert (error.status, error.code) == (502, "upstream_refused")

    async def test_unresolvable(self, ground: Ground) -> None:
        error = await self.error_of(ground.pool(url="http://no-such-host.invalid"))
        assert (error.status, error.code) == (502, "upstream_unresolvable")

    @pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example"])
    async def test_a_name_that_no_dns_can_hold(self, ground: Ground, host: str) -> None:
        pool = Pool(Upstream("odd", "http", host, 80))
        error = await self.error_of(pool)
        assert error.code == "upstream_unresolvable"

    async def test_connect_timeout(self, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
        async def hang(*args: object) -> list[object]:
            return await asyncio.Event().wait()  # type: ignore[return-value]

        monkeypatch.setattr(module, "_resolve", hang)
        error = await self.error_of(ground.pool(connect=0.02))
        assert (error.status, error.code) == (504, "connect_timeout")

    async def test_no_socket_at_that_path(self, ground: Ground, tmp_path: Path) -> None:
        error = await self.error_of(ground.pool(url=f"unix:{tmp_path}/none.sock"))
        assert (error.status, error.code) == (502, "upstream_refused")

    async def test_a_socket_that_nobody_serves(self, ground: Ground, tmp_path: Path) -> None:
        path = str(tmp_path / "dead.sock")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path)
        error = await self.error_of(ground.pool(url=f"unix:{path}"))
        assert error.code == "upstream_refused"

    @pytest.mark.parametrize(
        ("raised", "code"),
        [(OSError(113, "No route to host"), "upstream_unreachable"), (ConnectionResetError(), "upstream_reset"),
         (OSError(24, "Too many open files"), "upstream_unreachable")],
    )  # fmt: skip
    async def test_other_faults_of_the_network(
        self, ground: Ground, monkeypatch: pytest.MonkeyPatch, raised: OSError, code: str
    ) -> None:
        async def fail(*args: object) -> list[object]:
            raise raised

        monkeypatch.setattr(module, "_resolve", fail)
        error = await self.error_of(ground.pool())
        assert (error.status, error.code) == (502, code)

    async def test_a_fault_of_our_own_is_not_blamed_on_the_upstream_and_leaks_no_place(
        self, ground: Ground, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*args: object) -> list[object]:
            raise RuntimeError("ours")

        pool = ground.pool()
        monkeypatch.setattr(module, "_resolve", fail)
        with pytest.raises(RuntimeError, match="ours"):
            await pool.acquire()
        assert pool.open == 0

    async def test_a_failed_dial_wakes_the_next_waiter(self, ground: Ground, refusing: str) -> None:
        """Everybody hears of the failure; nobody waits for a place that will not come free."""
        pool = ground.pool(url=refusing, connections=1)
        results = await asyncio.gather(*(pool.acquire() for _ in range(5)), return_exceptions=True)
        assert [getattr(result, "code", result) for result in results] == ["upstream_refused"] * 5
        assert (pool.open, pool.waiting) == (0, 0)


class TestReaping:
    async def test_idle_connections_are_closed_after_a_while(self, ground: Ground) -> None:
        pool = ground.pool(keepalive=0.02)
        await use(await pool.acquire())
        assert pool.idle == 1
        await settle(lambda: pool.open == 0)
        assert pool.idle == 0
        await ground.upstream.connections[0].closed()

    async def test_younger_ones_are_kept_until_their_own_time(self, ground: Ground) -> None:
        pool = ground.pool(keepalive=0.05)
        connections = [await pool.acquire() for _ in range(2)]
        for connection in connections:
            await use(connection)
        old, young = connections
        old.idle_since -= 1
        pool._reap()
        assert pool.idle == 1
        assert pool.take() is young
        pool.freed(young)
        await settle(lambda: pool.open == 0)

    async def test_one_that_was_lent_meanwhile_is_left_alone(self, ground: Ground) -> None:
        pool = ground.pool(keepalive=0.02)
        connection = await pool.acquire()
        await use(connection)
        assert await pool.acquire() is connection
        connection.begin(Deaf(), "GET", False)
        await settle(lambda: pool._reaper is None)
        assert connection.state is State.HEAD
        assert pool.open == 1

    async def test_no_more_are_kept_than_the_limit(self, ground: Ground) -> None:
        pool = ground.pool(idle=2)
        connections = [await pool.acquire() for _ in range(4)]
        for connection in connections:
            await use(connection)
        assert pool.idle == 2
        await settle(lambda: pool.open == 2)


class TestClosing:
    async def test_idle_ones_go_at_once_and_lent_ones_with_their_exchange(self, ground: Ground) -> None:
        pool = ground.pool()
        idle, lent = await pool.acquire(), await pool.acquire()
        await use(idle)
        pool.close()
        await settle(lambda: pool.open == 1)
        await use(lent)
        await settle(lambda: pool.open == 0)
        assert pool.idle == 0


class TestProbe:
    async def test_it_keeps_what_it_dialled(self, ground: Ground) -> None:
        pool = ground.pool()
        await pool.probe()
        assert (pool.open, pool.idle) == (1, 1)
        await pool.probe()
        assert (pool.open, pool.dialled) == (1, 1)

    async def test_it_says_why_not(self, ground: Ground, refusing: str) -> None:
        pool = ground.pool(url=refusing)
        with pytest.raises(ExchangeError, match="refused"):
            await pool.probe()
        assert pool.open == 0

    async def test_a_full_pool_is_a_reachable_upstream(self, ground: Ground) -> None:
        """A probe takes no connection from callers, and exceeds their limit for no longer than it lasts."""
        pool = ground.pool(connections=1)
        await pool.acquire()
        for _ in range(3):
            await pool.probe()
        await settle(lambda: pool.open == 1)
        assert pool.idle == 0


class TestOwnAddresses:
    async def test_the_near_ends_are_noted_while_they_exist(self, ground: Ground) -> None:
        local: dict[object, object] = {}
        pool = Pool(parse_upstream(ground.upstream.url), local)
        ground.pools.append(pool)
        connection = await pool.acquire()
        peer = (await ground.upstream.wait_for_connections(1))[0]
        near, far = (peer.peer.transport.get_extra_info(name) for name in ("peername", "sockname"))
        assert local == {near: far}
        connection.abort()
        await settle(lambda: not local)

    async def test_a_unix_socket_has_none(self, ground: Ground, tmp_path: Path) -> None:
        local: dict[object, object] = {}
        async with ScriptedUpstream(unix=str(tmp_path / "u.sock")) as upstream:
            pool = Pool(parse_upstream(upstream.url), local)
            ground.pools.append(pool)
            await use(await pool.acquire())
            assert local == {}


class TestTlsFiles:
    def test_a_ca_file_that_cannot_be_used_stops_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "bad.pem").write_text("no certificate")
        for path in (tmp_path / "none.pem", tmp_path / "bad.pem"):
            with pytest.raises(SettingsError, match=r"upstream named: ca_file .*cannot be used"):
                Pool(parse_upstream("https://h", "named", ca_file=str(path)))


async def test_the_count_is_exact_whatever_happens(ground: Ground) -> None:
    """Many exchanges, a third of them cancelled, a third broken: in the end every place is free."""
    pool = ground.pool(connections=5, queue=1000)

    async def exchange(number: int) -> None:
        connection = await pool.acquire()
        assert pool.open <= 5
        if number % 3 == 1:
            connection.begin(Deaf(), "GET", False)
            connection.abort()
        else:
            await use(connection)

    tasks = [asyncio.ensure_future(exchange(number)) for number in range(120)]
    await settle(lambda: pool.waiting > 20)
    for number, task in enumerate(tasks):
        if number % 3 == 2:
            task.cancel()
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    for connection in tuple(pool._connections):
        if connection.state is State.HEAD:
            connection.abort()
    await settle(lambda: pool.open == pool.idle)
    assert pool.waiting == 0
    assert pool.open <= 5


async def test_the_ground_itself_answers(ground: Ground) -> None:
    """The other tests are worth something only if the upstream is real."""
    async with RawClient(ground.upstream.host, ground.upstream.port) as client:
        await client.get("/")
        assert (await client.read_response()).status == 200

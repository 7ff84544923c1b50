"""The clock: everything watched is looked at, within its limit, and nothing is kept alive for nothing."""

import asyncio

from fiedler_proxy.clock import LONGEST, LOOKS, Clock


class Seen:
    def __init__(self, clock: Clock, until: int = 10**9) -> None:
        self.looks = 0
        self.clock = clock
        self.until = until
        self.event = asyncio.Event()

    def look(self, now: float) -> None:
        assert abs(asyncio.get_running_loop().time() - now) < 1
        self.looks += 1
        if self.looks >= self.until:
            self.clock.forget(self)
            self.event.set()


async def test_it_looks_until_told_to_forget() -> None:
    clock = Clock()
    seen = Seen(clock, until=3)
    clock.watch(seen, 0.05)
    async with asyncio.timeout(10):
        await seen.event.wait()
    other = Seen(clock, until=2)
    clock.watch(other, 0.05)
    async with asyncio.timeout(10):
        await other.event.wait()
    assert seen.looks == 3


async def test_a_shorter_limit_quickens_it_for_everybody() -> None:
    clock = Clock()
    slow, quick = Seen(clock), Seen(clock, until=2)
    clock.watch(slow, 1000 * LONGEST)
    clock.watch(quick, 0.04)
    async with asyncio.timeout(LONGEST):
        await quick.event.wait()
    assert slow.looks >= 1


async def test_without_a_limit_nothing_is_watched() -> None:
    clock = Clock()
    clock.watch(Seen(clock), 0)
    assert clock._timer is None


async def test_it_stops_when_there_is_nothing_left() -> None:
    clock = Clock()
    seen = Seen(clock, until=1)
    clock.watch(seen, 0.04)
    async with asyncio.timeout(10):
        await seen.event.wait()
    await asyncio.sleep(0)
    assert clock._timer is None


async def test_one_may_be_forgotten_while_it_looks() -> None:
    clock = Clock()
    both = [Seen(clock), Seen(clock)]

    class Forgets(Seen):
        def look(self, now: float) -> None:
            for seen in both:
                self.clock.forget(seen)
            super().look(now)

    forgets = Forgets(clock, until=2)
    for watched in (*both, forgets):
        clock.watch(watched, 0.04)
    async with asyncio.timeout(10):
        await forgets.event.wait()
    assert all(seen.looks <= 1 for seen in both)


async def test_many_are_looked_at_a_few_at_a_time_and_all_of_them() -> None:
    clock, turns = Clock(), list[int]()

    class One(Seen):
        def look(self, now: float) -> None:
            super().look(now)
            turn[0] += 1
            if turn[0] == 1:
                asyncio.get_running_loop().call_soon(told)

    def told() -> None:
        turns.append(turn[0])
        turn[0] = 0

    turn = [0]
    many = [One(clock, until=2) for _ in range(5 * LOOKS + 1)]
    for one in many:
        clock.watch(one, 0.08)
    gone = many.pop()
    clock.forget(gone)
    async with asyncio.timeout(20):
        for one in many:
            await one.event.wait()
    assert gone.looks == 0
    assert max(turns) <= LOOKS
    assert {one.looks for one in many} == {2}

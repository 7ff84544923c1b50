"""Exchange ids: UUIDv7 that only ever rise."""

import re
import threading
import time
import uuid
from itertools import pairwise

import pytest

from fiedler_proxy import ids
from fiedler_proxy.ids import new_id

CANONICAL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class Clock:
    """Stands still until it is told to move."""

    def __init__(self, millis: int) -> None:
        self.millis = millis

    def time_ns(self) -> int:
        return self.millis * 1_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(1_700_000_000_000)
    monkeypatch.setattr(ids, "time", clock)
    monkeypatch.setattr(ids, "_generator", ids._Generator())
    return clock


def millis_of(text: str) -> int:
    return uuid.UUID(text).int >> 80


def test_an_id_is_a_canonical_uuid_of_version_7() -> None:
    for _ in range(1000):
        text = new_id()
        assert CANONICAL.fullmatch(text), text
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, text)


def test_its_first_48_bits_are_the_time_in_milliseconds(clock: Clock) -> None:
    assert millis_of(new_id()) == clock.millis
    clock.millis += 5
    assert millis_of(new_id()) == clock.millis


def test_the_real_clock_is_used() -> None:
    before = time.time_ns() // 1_000_000
    stamp = millis_of(new_id())
    assert before - 1 <= stamp <= time.time_ns() // 1_000_000 + 1


def test_ids_rise_within_one_millisecond(clock: Clock) -> None:
    made = [new_id() for _ in range(5000)]
    assert all(a < b for a, b in pairwise(made))
    assert {millis_of(text) for text in made} == {clock.millis}


def test_ids_rise_while_the_clock_runs_backwards(clock: Clock) -> None:
    made = []
    for _ in range(100):
        made.append(new_id())
        clock.millis -= 1000
    assert all(a < b for a, b in pairwise(made))


def test_a_full_random_part_lets_the_timestamp_run_ahead(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    ids._generator._begin(clock.millis, 0xFFF, (1 << 62) - 1)
    last = f"{uuid.UUID(int=clock.millis << 80 | 7 << 76 | 0xFFF << 64 | (1 << 64) - 1 - (1 << 62))}"
    first, second = new_id(), new_id()
    assert last < first < second
    assert CANONICAL.fullmatch(first)
    assert millis_of(first) == clock.millis + 1


def test_the_random_part_is_random(clock: Clock) -> None:
    parts = set()
    for _ in range(200):
        clock.millis += 1
        parts.add(uuid.UUID(new_id()).int & ((1 << 62) - 1))
    assert len(parts) == 200


def test_threads_never_share_an_id() -> None:
    made: list[list[str]] = [[] for _ in range(4)]
    start = threading.Barrier(4)

    def work(mine: list[str]) -> None:
        start.wait()
        mine.extend(new_id() for _ in range(3000))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({text for mine in made for text in mine}) == 12000
    assert all(a < b for mine in made for a, b in pairwise(mine))

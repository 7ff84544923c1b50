"""The disk's side of the journal: every byte comes to disk, past the system's cache or through it; and what a full ring costs is told."""

import asyncio
import contextlib
import errno
import fcntl
import os
import sqlite3
import threading
import zlib
from pathlib import Path

import attrs
import pytest

from kgb_gateway import journal as journal_module
from kgb_gateway import record
from kgb_gateway import tail as tail_module
from kgb_gateway.dewey.librarian import Librarian
from kgb_gateway.disk import BLOCK, DIRECT_LEAST, Disk
from kgb_gateway.journal import OPEN_ROOM, Journal, JournalOptions, gap_of
from kgb_gateway.record import NO_EXCHANGE, PAYLOAD_CAP, Frame, Kind
from kgb_gateway.segments import READ_SIZE, Name, SegmentReader, head_of, segments_in
from kgb_gateway.spooling import lost_of
from kgb_gateway.tail import LEAST, PAGE, SLOTS, Gap, Lost, Tail
from tests.spools import prices
from tests.test_dewey_tap import serving, tap
from tests.test_journal import ONE, SMALL, TWO, House, abandon, frames_in, until

MB = 1024 * 1024


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@attrs.define
class Seen(Disk):
    """The real disk, which notes how it was written to. ``held``: what comes meanwhile is written at a stroke afterwards."""

    past: list[int] = attrs.field(factory=list)
    through: list[int] = attrs.field(factory=list)
    held: threading.Event = attrs.field(factory=threading.Event)
    refuses: int = 0
    direct: bool = Disk.direct

    def writev(self, fd: int, buffers: list[memoryview]) -> int:
        assert self.held.wait(20)
        before = len(self.past)
        sent = super().writev(fd, buffers)
        if len(self.past) == before:
            self.through.append(sent)
        return sent

    def _past_the_cache(self, fd: int, buffer: memoryview) -> int:
        if self.refuses:
            self.direct = False
            raise BlockingIOError
        sent = super()._past_the_cache(fd, buffer)
        self.past.append(sent)
        return sent


def fill(journal: Journal, size: int, piece: int = 100_001) -> bytes:
    """Append ``size`` bytes of a body in odd pieces."""
    data = os.urandom(size)
    for at in range(0, size, piece):
        assert journal.body(Kind.RESPONSE_BYTES, ONE, at, data[at : at + piece])
    return data


def body_in(spool: Path) -> bytes:
    return b"".join(frame.payload for frame in frames_in(spool) if frame.kind == Kind.RESPONSE_BYTES)


def test_much_goes_past_the_cache_in_whole_blocks_and_is_whole(house: House) -> None:
    disk = Seen()
    sent, offset = b"", 0
    options = attrs.evolve(SMALL, tail_size=8 * MB)
    with house.running(options=options, files=disk) as journal:
        for _ in range(5):  # the ring wraps
            disk.held.clear()
            data = fill(journal, 3 * MB + 12_345)
            disk.held.set()
            until(lambda: journal.lag == 0)
            sent, offset = sent + data, offset + len(data)
    assert body_in(house.spool) == sent
    assert not any(size % BLOCK for size in disk.past)
    if disk.direct:
        assert sum(disk.past) > 10 * MB
        assert max(disk.through) < MB


@pytest.mark.parametrize("refuses", [0, 1], ids=["misaligned", "refused"])
def test_where_it_cannot_be_it_goes_through_the_cache(house: House, refuses: int) -> None:
    """A ring of an odd size has its blocks elsewhere than the file; and not every file system has such writes."""
    disk = Seen(refuses=refuses)
    options = attrs.evolve(SMALL, tail_size=4 * MB + (0 if refuses else 1001))
    sent = b""
    with house.running(options=options, files=disk) as journal:
        for _ in range(5):
            disk.held.clear()
            data = fill(journal, 2 * MB)
            disk.held.set()
            until(lambda: journal.lag == 0)
            sent += data
        assert not journal.failing
    assert body_in(house.spool) == sent
    assert sum(disk.through) >= (10 * MB if refuses else 0)


def test_what_an_earlier_process_left_goes_through_the_cache(house: House) -> None:
    """It lies anywhere in memory: a disk that is strict about that would be taken for one that has no such writes."""
    options = attrs.evolve(SMALL, tail_size=8 * MB)
    journal = house.open(options=options)
    data = fill(journal, 3 * MB)
    abandon(journal)
    disk = Seen()
    disk.held.set()
    with house.running(options=options, files=disk):
        pass
    assert body_in(house.spool) == data
    assert not disk.past
    assert disk.direct is Disk.direct


def test_a_disk_that_refuses_such_a_write_is_asked_otherwise_and_what_it_says_else_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, whole = Disk(), memoryview(bytes(DIRECT_LEAST))
    if not disk.direct:
        pytest.skip("this system has no writes past its cache")
    write, answers = os.write, [errno.EINVAL, errno.ENOSPC]

    def refusing(fd: int, data: memoryview) -> int:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
        error = answers.pop(0)
        raise OSError(error, os.strerror(error))

    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    monkeypatch.setattr(os, "write", refusing)
    assert disk.writev(fd, [whole]) == len(whole)
    assert not disk.direct
    disk.direct = True
    with pytest.raises(OSError, match="space"):
        disk.writev(fd, [whole])
    monkeypatch.setattr(os, "write", write)
    assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    os.close(fd)


def test_checksums_of_the_faster_library_are_the_same() -> None:
    for size in (0, 1, 60, 70_001):
        data = os.urandom(size)
        assert record.crc32(data, 12345) == zlib.crc32(data, 12345)


@pytest.mark.parametrize("length", [0, 1, 100, 150, 200, BLOCK - 1])
def test_a_head_is_as_long_as_asked(tmp_path: Path, length: int) -> None:
    head = head_of(Name("a", 1), "v", 0.5, 7, length)
    assert len(head) % BLOCK == length
    path = tmp_path / str(Name("a", 1))
    path.write_bytes(head + record.encode(Frame(1, Kind.NOTE, ONE, 0, 0, b"x"), 7))
    with SegmentReader(path) as reader:
        assert [frame.payload for frame in reader.frames(finished=True)] == [b"x"]


class TestEnd:
    def test_the_last_frame_is_found_near_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / str(Name("a", 1))
        frames = [Frame(n, Kind.RESPONSE_BYTES, ONE, 0, 0, os.urandom(90_000)) for n in range(1, 40)]
        path.write_bytes(head_of(Name("a", 1), "v", 0.0, 7) + b"".join(record.encode(each, 7) for each in frames))
        with SegmentReader(path) as reader:
            reader.seek_end()
            assert path.stat().st_size - reader.offset <= READ_SIZE
            assert [frame.sequence for frame in reader.frames(finished=True)] == list(range(29, 40))

    def test_where_nothing_whole_is_near_all_of_it_is_read(self, house: House) -> None:
        with house.running() as journal:
            journal.append(Kind.NOTE, ONE, b"x")
        path = house.spool / str(segments_in(house.spool)[0])
        with path.open("ab") as file:
            file.write(bytes(2 * READ_SIZE))
        with house.running() as again:
            assert again.sequence == 1


@attrs.define
class Full(Disk):
    """A disk that is full until it is not."""

    space: int = 0

    def free(self, path: Path) -> int:
        return self.space


CLOSED = attrs.evolve(SMALL, watermark=1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "RETRY_SECONDS", 0.001)


def stuff(journal: Journal) -> None:
    """Until there is no room for another exchange."""
    while journal.begin(os.urandom(16), b"x" * 3000):
        pass


@pytest.mark.usefixtures("impatient")
class TestLost:
    def test_what_has_begun_ends_however_full_it_is(self, house: House) -> None:
        disk = Full()
        with house.running(options=CLOSED, files=disk) as journal:
            begun = []
            while journal.begin(key := os.urandom(16), b"head"):
                begun.append(key)
                journal.body(Kind.REQUEST_BYTES, key, 0, b"x" * 1000)
            for key in begun:
                journal.head(key, b"h" * 300)
                for at in range(0, 6000, 2000):
                    journal.body(Kind.RESPONSE_BYTES, key, at, b"y" * 2000)
            assert len(begun) > 100
            assert all(journal.end(key, b"e" * 400) for key in begun)
            disk.space = 2**40
            until(lambda: journal.lag == 0)
        got = frames_in(house.spool)
        assert sum(frame.kind == Kind.END for frame in got) == len(begun)
        said = sum(
            gap_of(frame).length if frame.kind == Kind.GAP else len(frame.payload)
            for frame in got
            if frame.kind in (Kind.RESPONSE_BYTES, Kind.REQUEST_BYTES, Kind.GAP, Kind.RESPONSE_HEAD)
        )
        assert said == len(begun) * (1000 + 300 + 6000)

    def test_more_gaps_than_there_are_slots_are_told_in_the_end(self, house: House) -> None:
        disk = Full()
        options = attrs.evolve(CLOSED, tail_size=32 * MB)
        with house.running(options=options, files=disk) as journal:
            begun = [os.urandom(16) for _ in range(SLOTS + 50)]
            for key in begun:
                assert journal.begin(key, b"head")
            while journal.body(Kind.TO_CALLER, ONE, 0, b"x" * PAYLOAD_CAP):
                pass
            for key in begun:
                assert not journal.body(Kind.RESPONSE_BYTES, key, 0, b"x" * 250_000)
                assert not journal.body(Kind.RESPONSE_BYTES, key, 250_000, b"x" * 250_000)
            assert journal.counters.unsaid_bytes == 51 * 500_000
            assert all(journal.end(key, b"end") for key in begun)
            assert journal.counters.unsaid_bytes == 0
            disk.space = 2**40
            until(lambda: journal.lag == 0)
        gaps = [gap_of(frame) for frame in frames_in(house.spool) if frame.kind == Kind.GAP and frame.exchange != ONE]
        assert {gap.exchange for gap in gaps} == set(begun)
        assert {(gap.offset, gap.length) for gap in gaps} == {(0, 500_000)}

    def test_a_gap_without_a_slot_lasts_until_the_end_whatever_room_there_is(self, house: House) -> None:
        disk = Full()
        with house.running(options=CLOSED, files=disk) as journal:
            assert journal.begin(ONE, b"head")
            assert journal.begin(TWO, b"head")
            while journal.body(Kind.RESPONSE_BYTES, ONE, 0, b"x" * 100_000):
                pass
            free, journal._tail._free = journal._tail._free, []
            assert not journal.body(Kind.RESPONSE_BYTES, TWO, 0, b"y" * 100_000)
            journal._tail._free = free
            disk.space = 2**40
            until(lambda: journal.lag == 0)
            assert journal.end(ONE, b"end")
            assert not journal._tail.gaps
            assert not journal.body(Kind.RESPONSE_BYTES, TWO, 100_000, b"y" * 50)
            assert journal.end(TWO, b"end")
        got = [frame for frame in frames_in(house.spool) if frame.exchange == TWO]
        assert [frame.kind for frame in got] == [Kind.REQUEST_HEAD, Kind.GAP, Kind.END]
        assert gap_of(got[1]) == Gap(TWO, Kind.RESPONSE_BYTES, 0, 100_050)

    def test_exchanges_without_a_trace_are_counted_and_a_note_tells_of_them(self, house: House) -> None:
        disk = Full()
        with house.running(options=CLOSED, files=disk) as journal:
            stuff(journal)
            assert journal.request(TWO, b"x" * 3000, b"a question") is None
            journal.lose(0, 77)
            assert (journal.counters.lost, journal.counters.lost_bytes) == (2, 87)
            disk.space = 2**40
            until(lambda: journal.lag == 0)
            assert journal.begin(ONE, b"again")
        *_, note, last = frames_in(house.spool)
        said = lost_of(note)
        assert said is not None
        assert (said.exchanges, said.up, said.down) == (2, 10, 77)
        assert said.first <= said.last
        assert last.payload == b"again"

    def test_they_are_told_when_the_journal_ends_and_after_a_kill(self, house: House) -> None:
        disk = Full()
        journal = house.open(options=CLOSED, files=disk)
        stuff(journal)
        journal.lose(3, 4)
        abandon(journal)
        with house.running(options=CLOSED, files=Full(2**40)) as again:
            again.append(Kind.NOTE, ONE, b"after")
        notes = [lost for frame in frames_in(house.spool) if (lost := lost_of(frame)) is not None]
        assert [(lost.exchanges, lost.up, lost.down) for lost in notes] == [(1, 3, 4)]
        with house.running(options=CLOSED, files=Full(2**40)):
            pass
        assert len([frame for frame in frames_in(house.spool) if lost_of(frame) is not None]) == 1, "told once"

    def test_an_end_in_a_thread_appends_nothing_and_they_are_told_at_the_next_start(self, house: House) -> None:
        disk = Full()
        journal = house.open(options=CLOSED, files=disk)
        journal.start()
        stuff(journal)
        last, disk.space = journal.sequence, 2**40
        thread = threading.Thread(target=journal.stop)
        thread.start()
        thread.join(20)
        assert journal.sequence == last
        assert not [frame for frame in frames_in(house.spool) if lost_of(frame)]
        with house.running(options=CLOSED, files=disk):
            pass
        assert [lost.exchanges for frame in frames_in(house.spool) if (lost := lost_of(frame))] == [1]

    def test_killed_between_the_note_and_the_slot_they_are_told_once(self, house: House) -> None:
        journal = house.open(options=attrs.evolve(CLOSED, tail_size=4 * LEAST), files=Full())
        stuff(journal)
        lost = journal._tail.lost
        assert lost is not None
        journal._tail.mark_drained(*journal._tail.mark)  # as if the disk had taken all of it
        assert journal.tell_lost()
        journal._tail.lose(lost)
        abandon(journal)
        with house.running(options=attrs.evolve(CLOSED, tail_size=4 * LEAST), files=Full(2**40)):
            pass
        assert [each for frame in frames_in(house.spool) if (each := lost_of(frame))] == [
            attrs.evolve(lost, first=int(lost.first / 1e9 * 1e9), last=int(lost.last / 1e9 * 1e9))
        ]

    def test_one_torn_copy_of_them_costs_the_last_step(self, house: House) -> None:
        path = house.home / "t"
        tail = Tail.open(path, LEAST)
        tail.lose(Lost(1, 2, 3, 4, 5))
        tail.lose(Lost(2, 2, 3, 4, 5))
        for at, there in ((256, Lost(1, 2, 3, 4, 5)), (320, None)):
            tail._memory[at] ^= 1
            assert tail.left().lost == there
        tail.close()

    def test_room_is_given_back(self, house: House) -> None:
        with house.running() as journal:
            before = journal._keep
            for number in range(50):
                key = number.to_bytes(16)
                assert journal.begin(key, b"x")
                assert journal._keep == before + OPEN_ROOM
                journal.end(key, b"x")
            journal.end(ONE, b"of nobody")
            assert journal._keep == before


def test_the_tail_of_an_earlier_version_has_fewer_slots_and_is_taken(house: House) -> None:
    path = house.home / "a.tail"
    Tail.open(path, LEAST).close()
    data = path.read_bytes()
    fewer = 1024
    path.write_bytes(data[:16] + fewer.to_bytes(4, "little") + data[20 : PAGE + fewer * 48] + data[PAGE + SLOTS * 48 :])
    tail = Tail.open(path, LEAST)
    for number in range(1, fewer + 1):
        assert tail.gap(number.to_bytes(16), Kind.RESPONSE_BYTES, 0, 1)
    assert not tail.gap(ONE, Kind.RESPONSE_BYTES, 0, 1)
    tail.gap_told(Gap((5).to_bytes(16), Kind.RESPONSE_BYTES, 0, 1))
    assert tail.gap(ONE, Kind.RESPONSE_BYTES, 0, 1)
    assert len(tail.left().gaps) == fewer
    tail.close()


def test_only_a_note_of_lost_exchanges_is_one() -> None:
    for frame in (
        Frame(1, Kind.NOTE, NO_EXCHANGE, 0, 0, b'{"event":"started"}'),
        Frame(1, Kind.NOTE, ONE, 0, 0, b'{"event":"lost"}'),
        Frame(1, Kind.END, NO_EXCHANGE, 0, 0, b'{"event":"lost"}'),
    ):
        assert lost_of(frame) is None


def test_blocks_of_the_ring_are_blocks_of_memory() -> None:
    assert JournalOptions().tail_size % BLOCK == 0
    assert (PAGE + SLOTS * 48) % BLOCK == 0


async def test_a_tap_without_room_says_what_it_could_not_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail_module, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(Disk, "free", lambda *_: 0)
    link = tap(tmp_path, watermark=1)
    async with serving(link) as client:
        journal = link.journal
        assert journal is not None
        stuff(journal)
        lost = journal.counters.lost
        await client.post("/v1/messages", [], b"12345")
        response = await client.read_response()
        assert response.status == 200
        assert journal.counters.lost == lost + 1
        assert journal.counters.lost_bytes == 5 + len(response.body)
        assert link.status()["journal"]["lost"] == lost + 1  # type: ignore[index]
        monkeypatch.setattr(Disk, "free", lambda *_: 2**40)
        await asyncio.to_thread(until, lambda: journal.lag == 0)
    (said,) = [each for frame in frames_in(tmp_path / "spool") if (each := lost_of(frame)) is not None]
    assert (said.exchanges, said.up, said.down) == (lost + 1, 5, len(response.body))


def test_dewey_tells_of_lost_exchanges(house: House) -> None:
    disk = Full()
    journal = house.open(options=CLOSED, files=disk)
    stuff(journal)
    journal.lose(3, 4)
    abandon(journal)
    with house.running(options=CLOSED, files=Full(2**40)):
        pass
    librarian = Librarian(house.home, prices())
    librarian.step()
    librarian.close()
    with contextlib.closing(sqlite3.connect(house.home / "dewey.db")) as store:
        found = [row[0] for row in store.execute("SELECT why FROM problem")]
    assert [
        why for why in found if why.startswith("not on record, since the disk did not keep up: 1 exchanges, 3 bytes")
    ]

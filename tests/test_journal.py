"""The journal: what was appended is on record after any death of the process, once, in order, or an exact gap."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgb_gateway import journal as journal_module
from kgb_gateway.disk import Disk, Files
from kgb_gateway.journal import Journal, JournalOptions, gap_of
from kgb_gateway.record import (
    HEADER,
    NO_EXCHANGE,
    PAYLOAD_CAP,
    Damage,
    Frame,
    Kind,
    decode,
    encode,
    find,
    pieces,
    scan,
)
from kgb_gateway.segments import Name, SegmentReader, head_of, is_held, parse_name, segments_in
from kgb_gateway.tail import LEAST, PAGE, SLOTS, Gap, Tail, TailError

GUARD = 20.0
"""Seconds after which a test gives up; it orders and measures nothing."""

ONE, TWO = b"1" * 16, b"2" * 16
SMALL = JournalOptions(tail_size=LEAST, watermark=0, cap=0, sync_seconds=0.001)


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + GUARD
    while not there():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def frames_in(spool: Path, instance: str = "") -> list[Frame]:
    """Every frame on disk once, in order, however many segments have it."""
    seen: dict[tuple[str, int], Frame] = {}
    for name in segments_in(spool, instance):
        with SegmentReader(spool / str(name)) as reader:
            for frame in reader.frames(finished=True):
                seen.setdefault((name.instance, frame.sequence), frame)
    return [seen[key] for key in sorted(seen)]


@attrs.define
class House:
    """A spool, and journals that are opened on it."""

    home: Path

    @property
    def spool(self) -> Path:
        return self.home / "spool"

    def open(self, instance: str = "a", options: JournalOptions = SMALL, files: Files | None = None) -> Journal:
        self.spool.mkdir(exist_ok=True)
        tail = Tail.open(self.home / f"{instance}.tail", options.tail_size)
        return Journal(self.spool, instance, tail, options, "test", files)

    @contextlib.contextmanager
    def running(
        self, instance: str = "a", options: JournalOptions = SMALL, files: Files | None = None
    ) -> Iterator[Journal]:
        journal = self.open(instance, options, files)
        journal.start()
        try:
            yield journal
        finally:
            journal.stop()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def abandon(journal: Journal) -> None:
    """What kill -9 leaves of a journal that never drained: its tail."""
    journal._tail._memory.close()
    os.close(journal._tail._fd)


frames = st.builds(
    Frame,
    st.integers(0, 2**64 - 1),
    st.sampled_from(Kind),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=300),
)


class TestFrames:
    @given(st.lists(frames, max_size=5))
    def test_what_is_written_is_read(self, written: list[Frame]) -> None:
        data = b"".join(encode(frame) for frame in written)
        assert [frame for frame, _ in scan(data)] == written

    @given(frames, st.data())
    def test_a_frame_that_is_not_whole_is_none_yet(self, frame: Frame, data: st.DataObject) -> None:
        raw = encode(frame)
        assert decode(raw[: data.draw(st.integers(0, len(raw) - 1))]) is None

    @given(frames, st.data())
    def test_a_flipped_bit_is_seen(self, frame: Frame, data: st.DataObject) -> None:
        raw = bytearray(encode(frame))
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        try:
            assert decode(bytes(raw)) is None  # the length says that more is to come
        except Damage:
            return

    def test_a_frame_behind_damage_is_found_and_a_magic_in_a_body_is_no_frame(self) -> None:
        frame = Frame(7, Kind.NOTE, NO_EXCHANGE, 1, 2, b"KGB1 and more KGB1")
        data = b"KGB1 torn" + encode(frame)
        assert find(data, 0) == 9
        assert find(data, 9) == -1

    def test_long_data_is_cut(self) -> None:
        data = os.urandom(2 * PAYLOAD_CAP + 5)
        cut = [bytes(piece) for piece in pieces(data)]
        assert b"".join(cut) == data
        assert max(map(len, cut)) == PAYLOAD_CAP
        assert list(pieces(b"")) == [b""]
        with pytest.raises(ValueError, match="longer than"):
            encode(Frame(1, Kind.NOTE, NO_EXCHANGE, 0, 0, data))


class TestTail:
    def test_it_is_its_owners_alone_and_held_once(self, house: House) -> None:
        path = house.home / "t"
        tail = Tail.open(path, LEAST)
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(TailError, match="in use by another gateway"):
            Tail.open(path, LEAST)
        tail.close()
        Tail.open(path, LEAST).close(remove=True)
        assert not path.exists()

    def test_a_link_is_not_followed_and_a_strange_file_is_refused(self, house: House) -> None:
        (house.home / "link").symlink_to(house.home / "elsewhere")
        with pytest.raises(TailError, match="cannot be opened"):
            Tail.open(house.home / "link", LEAST)
        (house.home / "strange").write_bytes(b"x" * (PAGE + SLOTS * 48 + LEAST))
        with pytest.raises(TailError, match="no tail of this version"):
            Tail.open(house.home / "strange", LEAST)
        with pytest.raises(TailError, match="too small"):
            Tail.open(house.home / "small", LEAST - 1)

    def test_no_room_is_an_error_and_no_signal(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(TailError, match="no room for"):
            Tail.open(house.home / "t", LEAST)
        monkeypatch.undo()
        Tail.open(house.home / "t", LEAST).close()

    @settings(max_examples=30)
    @given(st.integers())
    def test_what_is_not_drained_is_found_again_however_the_ring_wraps(
        self, tmp_path_factory: pytest.TempPathFactory, seed: int
    ) -> None:
        chance = random.Random(seed)
        sizes = [chance.randrange(60_000) for _ in range(chance.randrange(1, 80))]
        path = tmp_path_factory.mktemp("tail") / "t"
        tail = Tail.open(path, LEAST)
        try:
            kept: list[bytes] = []
            for size in sizes:
                payload = chance.randbytes(size)
                if not tail.append(Kind.RESPONSE_BYTES, ONE, 1, 2, payload, 0):
                    tail.mark_drained(*tail.mark)
                    kept.clear()
                    assert tail.append(Kind.RESPONSE_BYTES, ONE, 1, 2, payload, 0)
                kept.append(payload)
            last = tail.sequence
            tail.close()
            tail = Tail.open(path, LEAST)
            left = tail.left().frames
            assert [frame.payload for frame in left] == kept
            assert left[-1].sequence == last
        finally:
            tail.close(remove=True)

    def test_one_torn_copy_of_the_state_is_survived(self, house: House) -> None:
        path = house.home / "t"
        tail = Tail.open(path, LEAST)
        for number in range(3):
            tail.append(Kind.NOTE, ONE, 0, 0, b"%d" % number, 0)
            tail.mark_drained(*tail.mark)
        tail.close()
        for at in (64, 128):
            data = bytearray(path.read_bytes())
            data[at] ^= 1
            torn = path.with_suffix(f".{at}")
            torn.write_bytes(data)
            again = Tail.open(torn, LEAST)
            assert again.on_disk in (2, 3)
            again.close()


class TestDrain:
    def test_frames_come_to_disk_in_order(self, house: House) -> None:
        with house.running() as journal:
            for number in range(1000):
                assert journal.body(Kind.RESPONSE_BYTES, ONE, number, b"%d" % number)
            until(lambda: journal.synced == 1000)
        assert [frame.payload for frame in frames_in(house.spool)] == [b"%d" % number for number in range(1000)]
        assert [frame.sequence for frame in frames_in(house.spool)] == list(range(1, 1001))
        assert not (house.home / "a.tail").exists()
        assert all((house.spool / str(name)).stat().st_mode & 0o777 == 0o600 for name in segments_in(house.spool))

    def test_a_segment_that_is_large_enough_is_followed_by_another(self, house: House) -> None:
        options = attrs.evolve(SMALL, segment_size=10_000)
        with house.running(options=options) as journal:
            for number in range(40):
                journal.body(Kind.RESPONSE_BYTES, ONE, number * 1000, b"x" * 1000)
                until(lambda: journal.lag == 0)
        names = segments_in(house.spool)
        assert len(names) == 4
        assert [frame.sequence for frame in frames_in(house.spool)] == list(range(1, 41))
        assert all(frames_in_one(house.spool / str(name))[0].sequence == name.first for name in names)

    def test_numbers_go_on_after_an_orderly_end(self, house: House) -> None:
        for number in range(3):
            with house.running() as journal:
                journal.append(Kind.NOTE, ONE, b"%d" % number)
        assert [(f.sequence, f.payload) for f in frames_in(house.spool)] == [(1, b"0"), (2, b"1"), (3, b"2")]

    def test_three_instances_share_a_spool(self, house: House) -> None:
        with contextlib.ExitStack() as stack:
            journals = {name: stack.enter_context(house.running(name)) for name in ("a", "b", "c")}
            for number in range(300):
                for name, journal in journals.items():
                    journal.append(Kind.NOTE, ONE, f"{name}{number}".encode())
            until(lambda: all(journal.lag == 0 for journal in journals.values()))
            assert [is_held(house.spool / str(name)) for name in segments_in(house.spool)] == [True] * 3
        for name in journals:
            assert [f.payload.decode() for f in frames_in(house.spool, name)] == [f"{name}{n}" for n in range(300)]
        assert not any(is_held(house.spool / str(name)) for name in segments_in(house.spool))


def frames_in_one(path: Path) -> list[Frame]:
    with SegmentReader(path) as reader:
        return list(reader.frames(finished=True))


@attrs.define
class Faulty(Disk):
    """A disk that fails or hangs when told to."""

    error: int = 0
    at: str = "sync"
    space: int = 2**40
    hang: threading.Event = attrs.field(factory=threading.Event)
    hanging: threading.Event = attrs.field(factory=threading.Event)
    hangs: bool = False

    def writev(self, fd: int, buffers: list[memoryview]) -> int:
        if self.error and self.at == "write":
            raise OSError(self.error, os.strerror(self.error))
        return super().writev(fd, [memoryview(b"".join(buffers))[:70_000]])  # and never all of it

    def sync(self, fd: int) -> None:
        if self.hangs:
            self.hanging.set()
            assert self.hang.wait(GUARD)
        if self.error and self.at == "sync":
            raise OSError(self.error, os.strerror(self.error))

    def free(self, path: Path) -> int:
        return self.space


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "RETRY_SECONDS", 0.001)


@pytest.mark.usefixtures("impatient")
class TestFaultyDisk:
    @pytest.mark.parametrize("at", ["write", "sync"])
    @pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
    def test_what_the_disk_refused_is_written_again_elsewhere(self, house: House, at: str, error: int) -> None:
        disk = Faulty(at=at)
        with house.running(files=disk) as journal:
            journal.append(Kind.NOTE, ONE, b"before")
            until(lambda: journal.synced == 1)
            disk.error = error
            for number in range(10):
                journal.append(Kind.NOTE, ONE, b"%d" % number)
            until(lambda: journal.counters.failures > 0)
            assert journal.synced == 1
            failed = set(segments_in(house.spool))
            disk.error = 0
            until(lambda: journal.synced == 11)
            assert set(segments_in(house.spool)) - failed, "a failed sync is never tried again on the same segment"
        assert [f.payload for f in frames_in(house.spool)] == [b"before", *(b"%d" % n for n in range(10))]

    def test_a_hanging_disk_holds_nobody_up_and_what_does_not_fit_is_an_exact_gap(self, house: House) -> None:
        disk = Faulty(hangs=True)
        with house.running(files=disk) as journal:
            journal.append(Kind.REQUEST_HEAD, ONE, b"head")
            assert disk.hanging.wait(GUARD)
            chunk, offset, kept = os.urandom(50_000), 0, 0
            while journal.counters.gap_bytes < 10 * len(chunk):  # this loop is the event loop: it never waits
                kept += journal.body(Kind.RESPONSE_BYTES, ONE, offset, chunk)
                offset += len(chunk)
            assert journal.end(ONE, b"end")
            disk.hangs = False
            disk.hang.set()
            until(lambda: journal.lag == 0)
            assert journal.body(Kind.RESPONSE_BYTES, TWO, 0, b"goes on")
        got = frames_in(house.spool)
        assert [f.kind for f in got] == [
            Kind.REQUEST_HEAD,
            *[Kind.RESPONSE_BYTES] * kept,
            Kind.GAP,
            Kind.END,
            Kind.RESPONSE_BYTES,
        ]
        assert gap_of(got[kept + 1]) == Gap(ONE, Kind.RESPONSE_BYTES, kept * len(chunk), offset - kept * len(chunk))
        assert journal.counters.gap_bytes + kept * len(chunk) == offset

    def test_an_exchange_that_goes_on_after_a_gap_says_first_what_is_missing(self, house: House) -> None:
        disk = Faulty(space=0)
        with house.running(files=disk, options=attrs.evolve(SMALL, watermark=1)) as journal:
            sent: list[bytes] = []
            while not journal.counters.gaps:
                sent.append(os.urandom(40_000))
                journal.body(Kind.RESPONSE_BYTES, ONE, 40_000 * (len(sent) - 1), sent[-1])
            disk.space = 2**40
            until(lambda: journal.lag == 0)
            journal.body(Kind.RESPONSE_BYTES, ONE, 40_000 * len(sent), b"after")
        *body, gap, after = frames_in(house.spool)
        assert gap_of(gap) == Gap(ONE, Kind.RESPONSE_BYTES, 40_000 * (len(sent) - 1), 40_000)
        assert b"".join(frame.payload for frame in body) == b"".join(sent[:-1])
        assert after.payload == b"after"

    def test_a_spool_at_its_cap_takes_no_more(self, house: House) -> None:
        with house.running(options=attrs.evolve(SMALL, cap=5000)) as journal:
            journal.append(Kind.NOTE, ONE, b"x" * 4000)
            until(lambda: journal.lag == 0)
            time.sleep(0.01)
            journal.append(Kind.NOTE, ONE, b"x" * 4000)
            until(lambda: "cap" in journal.failing)
            assert journal.synced == 1

    def test_a_disk_that_hangs_at_the_end_costs_no_frame(self, house: House) -> None:
        disk = Faulty(hangs=True)
        journal = house.open(files=disk)
        journal.start()
        journal.append(Kind.NOTE, ONE, b"kept")
        assert disk.hanging.wait(GUARD)
        journal.stop(0.01)
        disk.error = errno.EIO
        disk.hang.set()
        until(lambda: not any(thread.name == "kgb-journal" for thread in threading.enumerate()))
        journal._tail.close()
        with house.running() as again:
            assert again.sequence >= 1
        assert [f.payload for f in frames_in(house.spool)] == [b"kept"]

    def test_more_gaps_than_can_be_told_are_counted(self, house: House) -> None:
        journal = house.open()
        while journal.body(Kind.RESPONSE_BYTES, ONE, 0, b"x" * PAYLOAD_CAP):
            pass
        for number in range(SLOTS + 5):
            journal.body(Kind.RESPONSE_BYTES, number.to_bytes(16), 0, b"x" * PAYLOAD_CAP)
        assert journal.counters.unsaid_bytes == 6 * PAYLOAD_CAP
        assert journal.counters.gaps == SLOTS
        abandon(journal)


class TestDeath:
    def test_what_was_appended_and_never_drained_is_taken_at_the_next_start(self, house: House) -> None:
        journal = house.open()
        for number in range(100):
            assert journal.body(Kind.RESPONSE_BYTES, ONE, number, b"%d" % number)
        abandon(journal)
        with house.running() as again:
            assert again.counters.recovered == 100
            again.append(Kind.NOTE, TWO, b"after")
        assert [f.payload for f in frames_in(house.spool)] == [*(b"%d" % n for n in range(100)), b"after"]
        assert [f.sequence for f in frames_in(house.spool)] == list(range(1, 102))

    def test_gaps_outlive_the_process_too(self, house: House) -> None:
        journal = house.open()
        kept = 0
        while journal.body(Kind.RESPONSE_BYTES, ONE, kept * 50_000, b"x" * 50_000):
            kept += 1
        journal.body(Kind.RESPONSE_BYTES, ONE, (kept + 1) * 50_000, b"x" * 50_000)
        abandon(journal)
        with house.running():
            pass
        got = frames_in(house.spool)
        assert len(got) == kept + 1
        assert gap_of(got[-1]) == Gap(ONE, Kind.RESPONSE_BYTES, kept * 50_000, 100_000)
        with house.running() as again:
            assert again.counters.recovered == 0
        assert len(frames_in(house.spool)) == kept + 1

    def test_a_lost_tail_costs_what_was_in_it_and_no_number_is_given_twice(self, house: House) -> None:
        with house.running() as journal:
            journal.append(Kind.NOTE, ONE, b"on disk")
        with house.running() as journal:
            assert journal.sequence == 1
            journal.append(Kind.NOTE, ONE, b"more")
        assert [f.sequence for f in frames_in(house.spool)] == [1, 2]

    def test_frames_that_are_on_disk_and_in_the_tail_are_there_once(self, house: House) -> None:
        """Killed between the write and the note of it in the tail."""
        journal = house.open()
        journal._recover()
        for number in range(10):
            journal.append(Kind.NOTE, ONE, b"%d" % number)
        fd = journal._segment(1)
        journal._write(fd, journal._tail.pending(journal._tail.written))
        journal._close_segment()
        abandon(journal)
        with house.running() as again:
            assert again.counters.recovered == 0
        assert [f.payload for f in frames_in(house.spool)] == [b"%d" % n for n in range(10)]

    def test_the_file_of_a_segment_may_end_anywhere(self, house: House) -> None:
        with house.running() as journal:
            for number in range(5):
                journal.append(Kind.NOTE, ONE, b"payload %d" % number)
        (name,) = segments_in(house.spool)
        path = house.spool / str(name)
        whole = path.read_bytes()
        size = HEADER.size + len(b"payload 0")
        start = len(whole) - 5 * size
        for end in range(len(whole)):
            path.write_bytes(whole[:end])
            with SegmentReader(path) as reader:
                got = list(reader.frames(finished=True))
                assert len(got) == max(0, end - start) // size
                lost = sum(finding.length for finding in reader.findings)
                assert lost == (end if end < start else (end - start) % size)
            with house.running() as journal:  # and to write on, and to recover once more, is always possible
                first = journal.sequence + 1
                assert first == len(got) + 1
                journal.append(Kind.NOTE, TWO, b"after")
            assert [f.sequence for f in frames_in(house.spool)] == list(range(1, first + 1))
            for other in segments_in(house.spool):
                (house.spool / str(other)).unlink()

    def test_a_flipped_bit_anywhere_costs_its_own_frame_alone(self, house: House) -> None:
        with house.running() as journal:
            for number in range(5):
                journal.append(Kind.NOTE, ONE, b"payload %d" % number)
        (name,) = segments_in(house.spool)
        path = house.spool / str(name)
        whole = path.read_bytes()
        start = whole.index(b"\n") + 1
        for at in range(start, len(whole)):
            damaged = bytearray(whole)
            damaged[at] ^= 0x10
            path.write_bytes(damaged)
            with SegmentReader(path) as reader:
                got = list(reader.frames(finished=True))
                assert len(got) == 4
                assert sum(finding.length for finding in reader.findings) == HEADER.size + 9

    def test_a_live_segment_is_read_as_it_grows(self, house: House) -> None:
        with house.running() as journal:
            journal.append(Kind.NOTE, ONE, b"one")
            until(lambda: journal.lag == 0)
            (name,) = segments_in(house.spool)
            with SegmentReader(house.spool / str(name)) as reader:
                assert [f.payload for f in reader.frames()] == [b"one"]
                assert list(reader.frames()) == []
                journal.append(Kind.NOTE, ONE, b"two")
                until(lambda: journal.lag == 0)
                assert [f.payload for f in reader.frames()] == [b"two"]
                place = reader.offset
            journal.append(Kind.NOTE, ONE, b"three")
            until(lambda: journal.lag == 0)
            with SegmentReader(house.spool / str(name), place) as reader:
                assert [f.payload for f in reader.frames()] == [b"three"]
                assert reader.findings == []


class TestNames:
    def test_a_name_is_read_as_written(self) -> None:
        name = Name("a.b-c", 17, 3)
        assert parse_name(str(name)) == name
        assert parse_name("a.seg") is None
        assert sorted([Name("a", 10), Name("a", 9, 1), Name("a", 9)]) == [Name("a", 9), Name("a", 9, 1), Name("a", 10)]

    def test_a_newer_format_is_refused(self, house: House) -> None:
        path = house.home / "x.seg"
        path.write_bytes(head_of(Name("a", 1), "v", 0.0).replace(b'"format": 1', b'"format": 9'))
        with SegmentReader(path) as reader, pytest.raises(ValueError, match="format 9"):
            list(reader.frames())

    def test_no_spool_has_no_segments(self, tmp_path: Path) -> None:
        assert segments_in(tmp_path / "none") == []


WRITER = """
import os, random, sys
from pathlib import Path
from kgb_gateway.journal import Journal, JournalOptions
from kgb_gateway.record import Kind
from kgb_gateway.tail import LEAST, Tail

home, seed = Path(sys.argv[1]), int(sys.argv[2])
chance = random.Random(seed)
options = JournalOptions(tail_size=LEAST, watermark=0, cap=0, sync_seconds=0.001, segment_size=200_000)
journal = Journal(home / "spool", "a", Tail.open(home / "a.tail", LEAST), options, "test")
journal.start()
out = sys.stdout.buffer
while True:
    size = chance.choice((1, 50, 120, 4000, 60_000))
    data = os.urandom(8) + bytes(size)
    while not journal.body(Kind.RESPONSE_BYTES, b"x" * 16, 0, data):
        for slot, gap in list(journal._tail.gaps.values()):
            journal._tail.gap_told(gap)  # this writer waits for room instead: its ledger is exact
    out.write(data[:8])  # only now the caller has it
    out.flush()
"""


def kill_rounds(home: Path, rounds: int, seed: int) -> None:
    """Kill a writer again and again while it writes; what its callers got is on record, once and in order."""
    (home / "spool").mkdir()
    chance = random.Random(seed)
    ledger = b""
    for number in range(rounds):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(home), str(seed + number)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        for _ in range(chance.randrange(1, 400)):
            ledger += child.stdout.read(8)
        child.send_signal(signal.SIGKILL)
        child.wait()
        ledger += child.stdout.read()
        ledger = ledger[: len(ledger) // 8 * 8]
        child.stdout.close()
    with House(home).running() as journal:
        assert journal.counters.gaps == 0
    got = frames_in(home / "spool", "a")
    assert [frame.sequence for frame in got] == list(range(1, len(got) + 1))
    recorded = [frame.payload[:8] for frame in got if frame.kind != Kind.GAP]  # a gap is of what came again
    expected = [ledger[at : at + 8] for at in range(0, len(ledger), 8)]
    # A killed writer may have appended one that it could not hand on any more.
    rest = iter(recorded)
    assert all(mark in rest for mark in expected), "bytes that a caller received are not on record"
    assert len(recorded) - len(expected) <= rounds
    assert len(set(recorded)) == len(recorded), "a record is there twice"


def test_kill_9_loses_and_doubles_nothing(tmp_path: Path) -> None:
    kill_rounds(tmp_path, 6, 1)


@pytest.mark.soak
def test_kill_9_for_long(tmp_path: Path) -> None:
    kill_rounds(tmp_path, 200, 1000)

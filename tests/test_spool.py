"""The spool as the librarian reads it, and the archive that it packs finished segments into."""

import os
from pathlib import Path
from typing import cast

import attrs
import pytest

from kgb_gateway.dewey import archive as module
from kgb_gateway.dewey.archive import archived_in, open_archived, path_of, scrub, scrub_archived, seal
from kgb_gateway.dewey.entry import Position
from kgb_gateway.dewey.exchanges import Collector
from kgb_gateway.dewey.raw import bodies, every, raw_of
from kgb_gateway.dewey.spool import Found, InstanceReader, Layout, SegmentFile
from kgb_gateway.journal import Journal, JournalOptions
from kgb_gateway.record import NO_EXCHANGE, STARTED, Frame, Kind, encode
from kgb_gateway.segments import Name, head_of, is_held
from kgb_gateway.tail import LEAST, Tail, tail_path
from tests.spools import Exchange, events, interleaved, key, request, turns, user, write

SALT = 7


def segment(home: Path, name: Name, frames: list[Frame]) -> Path:
    """A segment as a gateway leaves it."""
    path = home / "spool" / str(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(head_of(name, "test", 1.0, SALT) + b"".join(encode(frame, SALT) for frame in frames))
    return path


def frame(sequence: int, payload: bytes = b"x", exchange: bytes = key(1), kind: Kind = Kind.RESPONSE_BYTES) -> Frame:
    return Frame(sequence, kind, exchange, 10**18 + sequence, sequence, payload)


def sequences(reader: InstanceReader) -> list[int]:
    return [found.frame.sequence for found in reader.frames()]


class TestReading:
    def test_segments_in_order_as_one_line_of_frames(self, tmp_path: Path) -> None:
        segment(tmp_path, Name("a", 3), [frame(3), frame(4)])
        segment(tmp_path, Name("a", 1), [frame(1), frame(2)])
        segment(tmp_path, Name("b", 1), [frame(1)])
        layout = Layout(tmp_path)
        assert layout.instances() == ["a", "b"]
        assert sequences(InstanceReader(layout, Position("a"))) == [1, 2, 3, 4]

    def test_a_frame_that_stands_in_two_segments_is_given_once(self, tmp_path: Path) -> None:
        segment(tmp_path, Name("a", 1), [frame(1), frame(2), frame(3)])
        segment(tmp_path, Name("a", 2, 1), [frame(2), frame(3), frame(4)])
        reader = InstanceReader(Layout(tmp_path), Position("a"))
        assert sequences(reader) == [1, 2, 3, 4]
        assert reader.faults == []

    def test_what_is_missing_is_told(self, tmp_path: Path) -> None:
        segment(tmp_path, Name("a", 1), [frame(1)])
        segment(tmp_path, Name("a", 5), [frame(5)])
        reader = InstanceReader(Layout(tmp_path), Position("a"))
        assert sequences(reader) == [1, 5]
        assert [fault.why for fault in reader.faults] == ["3 frames before this place are missing"]

    def test_damage_is_told_and_the_rest_is_read(self, tmp_path: Path) -> None:
        path = segment(tmp_path, Name("a", 1), [frame(1, b"first" * 10), frame(2, b"second" * 10), frame(3)])
        data = bytearray(path.read_bytes())
        data[data.index(b"second")] ^= 1
        path.write_bytes(data)
        reader = InstanceReader(Layout(tmp_path), Position("a"))
        assert sequences(reader) == [1, 3]
        assert any("are no frame" in fault.why for fault in reader.faults)
        assert any("1 frames before" in fault.why for fault in reader.faults)

    def test_a_frame_that_was_torn_and_stands_whole_in_the_next_segment_is_no_fault(self, tmp_path: Path) -> None:
        path = segment(tmp_path, Name("a", 1), [frame(1), frame(2, b"torn" * 10)])
        path.write_bytes(path.read_bytes()[:-5])
        tail = tail_path(tmp_path.resolve(), "a")
        reader = InstanceReader(Layout(tmp_path), Position("a"))
        try:
            tail.write_bytes(b"what the writer left")
            assert sequences(reader) == [1]
            assert reader.faults == []
        finally:
            tail.unlink()
        segment(tmp_path, Name("a", 2), [frame(2, b"torn" * 10), frame(3)])
        assert sequences(reader) == [2, 3]
        assert reader.faults == []

    def test_a_frame_that_was_torn_and_is_nowhere_else_is_told(self, tmp_path: Path) -> None:
        path = segment(tmp_path, Name("a", 1), [frame(1), frame(2, b"torn" * 10)])
        path.write_bytes(path.read_bytes()[:-5])
        alone = InstanceReader(Layout(tmp_path), Position("a"))
        assert sequences(alone) == [1]
        assert ["a torn end" in fault.why for fault in alone.faults] == [True]
        segment(tmp_path, Name("a", 3), [frame(3)])
        followed = InstanceReader(Layout(tmp_path), Position("a"))
        assert sequences(followed) == [1, 3]
        assert ["a torn end" in fault.why for fault in followed.faults] == [True, False]

    def test_it_goes_on_where_the_position_says(self, tmp_path: Path) -> None:
        segment(tmp_path, Name("a", 1), [frame(1), frame(2)])
        layout = Layout(tmp_path)
        first = InstanceReader(layout, Position("a"))
        next(first.frames())
        assert first.segment is not None
        position = Position("a", str(first.segment), first.offset, 1)
        assert sequences(InstanceReader(layout, position)) == [2]

    def test_a_position_whose_segment_has_gone_goes_on_behind_it(self, tmp_path: Path) -> None:
        segment(tmp_path, Name("a", 5), [frame(5)])
        position = Position("a", str(Name("a", 1)), 100, 4)
        assert sequences(InstanceReader(Layout(tmp_path), position)) == [5]

    def test_a_live_segment_is_followed_as_it_grows(self, tmp_path: Path) -> None:
        tail = Tail.open(tmp_path / "tail", LEAST)
        (tmp_path / "spool").mkdir()
        options = JournalOptions(LEAST, watermark=0, sync_seconds=0.001)
        journal = Journal(tmp_path / "spool", "a", tail, options, "test")
        journal.start()
        reader = InstanceReader(Layout(tmp_path), Position("a"))
        seen: list[int] = []
        for number in range(1, 21):
            journal.append(Kind.NOTE, key(1), b"x")
            while number not in seen:
                seen += sequences(reader)
        assert reader.segment is not None
        assert is_held(tmp_path / "spool" / str(reader.segment))
        journal.stop()
        assert seen == list(range(1, 21))
        assert reader.faults == []

    def test_a_segment_is_none_before_it_is_held_and_has_its_head(self, tmp_path: Path) -> None:
        (tmp_path / "spool").mkdir()
        (tmp_path / "spool" / "a.begun").write_bytes(b"KGB seg")
        assert Layout(tmp_path).segments() == []


class TestGathering:
    def test_exchanges_that_are_interleaved_come_apart_again(self, tmp_path: Path) -> None:
        sent = [Exchange(n, request([user(f"question {n}")]), events(f"answer {n} " * n)) for n in range(1, 6)]
        interleaved(tmp_path, sent)
        found = {gathered.key: gathered for gathered in every(Layout(tmp_path))}
        for exchange in sent:
            raw = bodies(found[exchange.key])
            assert (raw.request, raw.response) == (exchange.body, b"".join(exchange.reply))
            assert found[exchange.key].end is not None

    def test_what_has_no_end_is_open_until_its_gateway_begins_anew(self) -> None:
        collector = Collector("a")
        layout_free = _found(frame(1, b"{}", kind=Kind.REQUEST_HEAD))
        assert list(collector.feed(layout_free)) == []
        assert len(collector.open) == 1
        (gone,) = collector.feed(_found(frame(2, STARTED, NO_EXCHANGE, Kind.NOTE)))
        assert (gone.key, gone.end) == (key(1), None)
        assert collector.open == {}

    @pytest.mark.parametrize("payload", [b"", b"\n", b"{", b"[]\n", b"\xff\n\xff", b'{"a": ' + b"[" * 100_000])
    def test_a_head_that_is_none_costs_only_itself(self, payload: bytes) -> None:
        collector = Collector("a")
        collector.feed(_found(frame(1, payload, kind=Kind.REQUEST_HEAD)))
        (done,) = collector.feed(_found(frame(2, payload, kind=Kind.END)))
        assert done.asked == {}

    def test_raw_bytes_come_from_their_place(self, tmp_path: Path) -> None:
        write(tmp_path, turns(["one", "two", "three"]))
        layout = Layout(tmp_path)
        (name,) = layout.segments()
        places = {gathered.key: gathered.place for gathered in every(layout)}
        for _ in range(2):
            gathered = raw_of(layout, name.instance, str(name), places[key(2)], key(2))
            assert gathered is not None
            assert b"two" in bodies(gathered).request
            if name in archived_in(layout.archive):
                break
            seal(layout.spool, layout.archive, name)
        assert raw_of(layout, name.instance, "b-00000000000000000001-0000.seg", 0, key(2)) is None


@attrs.frozen
class NoFile:
    """Stands for a segment that nobody reads again."""

    name: Name = attrs.field(factory=lambda: Name("a", 1))


def _found(frame: Frame) -> Found:
    return Found(frame, cast(SegmentFile, NoFile()), 0)


class TestArchive:
    def test_a_sealed_segment_reads_as_before(self, tmp_path: Path) -> None:
        path = segment(tmp_path, Name("a", 1), [frame(n, b"the same body " * 1000) for n in range(1, 50)])
        before, layout = path.read_bytes(), Layout(tmp_path)
        size = seal(layout.spool, layout.archive, Name("a", 1))
        assert not path.exists()
        assert size < len(before) // 50
        assert sequences(InstanceReader(layout, Position("a"))) == list(range(1, 50))
        fd = open_archived(layout.archive, Name("a", 1))
        assert os.pread(fd, len(before) + 1, 0) == before
        os.close(fd)
        assert path_of(layout.archive, Name("a", 1)).stat().st_mode & 0o077 == 0

    def test_what_does_not_read_back_is_not_given_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, layout = segment(tmp_path, Name("a", 1), [frame(1)]), Layout(tmp_path)
        monkeypatch.setattr(module, "_hash", lambda pieces: os.urandom(4) + bytes(len(list(pieces))))
        with pytest.raises(OSError, match="does not read back"):
            seal(layout.spool, layout.archive, Name("a", 1))
        assert path.exists()
        assert list(layout.archive.iterdir()) == []

    def test_a_reader_that_has_the_segment_open_reads_on(self, tmp_path: Path) -> None:
        segment(tmp_path, Name("a", 1), [frame(1), frame(2)])
        layout = Layout(tmp_path)
        reader = InstanceReader(layout, Position("a"))
        frames = reader.frames()
        assert next(frames).frame.sequence == 1
        seal(layout.spool, layout.archive, Name("a", 1))
        assert [found.frame.sequence for found in frames] == [2]

    def test_few_are_unpacked_at_once(self, tmp_path: Path) -> None:
        layout = Layout(tmp_path)
        for number in range(1, 6):
            segment(tmp_path, Name("a", number), [frame(number)])
            seal(layout.spool, layout.archive, Name("a", number))
        open_before = len(os.listdir("/dev/fd"))
        files = [SegmentFile(layout, Name("a", number)) for number in (1, 2, 3, 4, 5)]
        for file in files:
            file.reader.close()
        assert len(os.listdir("/dev/fd")) <= open_before + module.KEPT
        assert list(tmp_path.rglob("*.tmp")) == []


class TestScrubbing:
    @pytest.mark.parametrize("sealed", [False, True])
    def test_an_exchange_goes_and_nothing_else(self, tmp_path: Path, sealed: bool) -> None:
        path = segment(
            tmp_path, Name("a", 1), [frame(1, b"kept"), frame(2, b"canary" * 50, key(2)), frame(3, b"kept too")]
        )
        layout = Layout(tmp_path)
        if sealed:
            seal(layout.spool, layout.archive, Name("a", 1))
            assert scrub_archived(layout.archive, Name("a", 1), {key(2)}) == 1
            fd = open_archived(layout.archive, Name("a", 1))
        else:
            fd = os.open(path, os.O_RDWR)
            assert scrub(fd, {key(2)}, path) == 1
        assert b"canary" not in os.pread(fd, 10_000, 0)
        os.close(fd)
        reader = InstanceReader(layout, Position("a"))
        assert [found.frame.payload for found in reader.frames() if found.frame.exchange == key(1)] == [
            b"kept",
            b"kept too",
        ]
        assert reader.faults == [], "numbers stay: nothing seems to be missing"

    def test_of_nothing_leaves_the_file_alone(self, tmp_path: Path) -> None:
        segment(tmp_path, Name("a", 1), [frame(1, b"kept")])
        layout = Layout(tmp_path)
        seal(layout.spool, layout.archive, Name("a", 1))
        before = path_of(layout.archive, Name("a", 1)).stat().st_mtime_ns
        assert scrub_archived(layout.archive, Name("a", 1), {key(9)}) == 0
        assert path_of(layout.archive, Name("a", 1)).stat().st_mtime_ns == before

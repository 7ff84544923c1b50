"""The log writer: nothing waits for it, what is lost is counted, and it follows its file."""

import contextlib
import json
import logging
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kgb_gateway import log_writer
from kgb_gateway.log_writer import LogWriter

GUARD = 10.0
"""Seconds after which a test gives up; it orders and measures nothing."""


class Writer(LogWriter):
    """A log writer of items."""

    def put(self, item: object) -> None:
        super().put(json.dumps({"item": item}))


def note(missing: int) -> str:
    return json.dumps({"dropped": missing})


def lines(path: Path) -> list[object]:
    """What the lines of a log say: the item, or how many are missing."""
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    return [document.get("item", document) for document in documents]


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + GUARD
    while not there():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


@contextlib.contextmanager
def running(path: str | Path, max_pending: int = 10_000) -> Iterator[Writer]:
    writer = Writer(str(path), note, max_pending)
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


class TestFile:
    def test_lines_arrive_in_order_and_the_end_flushes_them(self, path: Path) -> None:
        with running(path) as writer:
            for number in range(1000):
                writer.put(number)
        assert lines(path) == list(range(1000))
        assert writer.dropped == 0

    def test_a_line_arrives_without_the_end(self, path: Path) -> None:
        with running(path) as writer:
            for number in range(3):
                writer.put(number)
                until(lambda number=number: path.read_text().count("\n") == number + 1)  # type: ignore[misc]

    def test_what_was_put_before_the_start_is_written(self, path: Path) -> None:
        writer = Writer(str(path), note)
        writer.put(1)
        writer.start()
        writer.stop()
        assert lines(path) == [1]

    def test_a_file_is_made_for_its_owner_alone_and_appended_to(self, path: Path) -> None:
        old = os.umask(0)
        try:
            with running(path) as writer:
                writer.put("first")
        finally:
            os.umask(old)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with running(path) as writer:
            writer.put("second")
        assert lines(path) == ["first", "second"]

    def test_a_file_that_cannot_be_opened_fails_the_start(self, tmp_path: Path) -> None:
        for bad in (tmp_path, tmp_path / "none" / "access.log"):
            with pytest.raises(OSError, match="directory"):
                Writer(str(bad), note).start()

    def test_a_named_pipe_without_a_reader_fails_the_start_and_is_not_waited_for(self, path: Path) -> None:
        os.mkfifo(path)
        with pytest.raises(OSError, match="No such device"):
            Writer(str(path), note).start()

    def test_standard_output_gets_whole_lines(self, capfd: pytest.CaptureFixture[str]) -> None:
        with running("-") as writer:
            writer.put("a")
            writer.put("b" * 10_000)
        out = capfd.readouterr().out
        assert [json.loads(line)["item"] for line in out.splitlines()] == ["a", "b" * 10_000]
        os.fstat(1)  # and it is still open

    def test_a_pipe_gets_many_lines_in_one_piece(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []
        real = os.write

        def write(fd: int, data: bytes) -> int:
            sizes.append(len(data))
            return real(fd, data)

        monkeypatch.setattr(log_writer.os, "write", write)
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            writer = Writer(str(path), note)
            for number in range(500):
                writer.put(number)
            writer.start()
            writer.stop()
            received = os.read(reader, 65536)
        finally:
            os.close(reader)
        assert [json.loads(line)["item"] for line in received.splitlines()] == list(range(500))
        assert max(sizes) <= select.PIPE_BUF
        assert len(sizes) < 10

    def test_what_no_utf_8_can_say_is_escaped(self, path: Path) -> None:
        writer = LogWriter(str(path), note)
        writer.put("a\udcffb")
        writer.start()
        writer.stop()
        assert path.read_bytes() == b"a\\udcffb\n"


class TestRotation:
    def test_a_file_that_was_moved_away_is_made_anew(self, path: Path) -> None:
        with running(path) as writer:
            writer.put("old")
            until(lambda: path.read_text() != "")
            moved = path.rename(path.with_suffix(".1"))
            writer.put("new")
            until(lambda: path.exists() and path.read_text() != "")
        assert (lines(moved), lines(path)) == (["old"], ["new"])
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_a_file_that_was_replaced_is_followed(self, path: Path) -> None:
        with running(path) as writer:
            writer.put("old")
            until(lambda: path.read_text() != "")
            path.rename(path.with_suffix(".1"))
            path.touch()
            writer.put("new")
        assert lines(path) == ["new"]

    def test_a_file_that_cannot_be_made_anew_is_written_on(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        home = tmp_path / "logs"
        home.mkdir()
        with running(home / "access.log") as writer:
            writer.put("one")
            until(lambda: (home / "access.log").read_text() != "")
            home.rename(tmp_path / "away")
            writer.put("two")
            until(lambda: (tmp_path / "away" / "access.log").read_text().count("\n") == 2)
        assert lines(tmp_path / "away" / "access.log") == ["one", "two"]
        assert "cannot be written" in caplog.text


@pytest.fixture
def pipe(path: Path) -> Iterator[tuple[Path, int]]:
    """A named pipe whose reader does not read until it is told to."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path, reader
    with contextlib.suppress(OSError):
        os.close(reader)


class TestFull:
    def test_what_does_not_fit_is_dropped_counted_and_said(self, path: Path) -> None:
        writer = Writer(str(path), note, max_pending=3)
        for number in range(10):
            writer.put(number)
        assert writer.dropped == 7
        writer.start()
        writer.stop()
        assert lines(path) == [0, 1, 2, {"dropped": 7}]

    def test_a_small_queue_that_fills_up_is_emptied_before_it_overflows(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(log_writer, "LINGER", 10 * GUARD)
        with running(path, max_pending=10) as writer:
            for number in range(1000):
                until(lambda: len(writer._pending) < 10)
                writer.put(number)
        assert lines(path) == list(range(1000))

    def test_a_full_pipe_holds_up_neither_putting_nor_the_end(
        self, pipe: tuple[Path, int], caplog: pytest.LogCaptureFixture
    ) -> None:
        path, _ = pipe
        writer = Writer(str(path), note, max_pending=50)
        writer.start()
        done = threading.Event()

        def work() -> None:
            for _ in range(200):
                writer.put("x" * 4000)
            writer.stop(0.1)
            done.set()

        threading.Thread(target=work, daemon=True).start()
        assert done.wait(GUARD)
        assert writer.dropped > 0
        assert "are lost" in caplog.text
        until(lambda: not [thread for thread in threading.enumerate() if thread.name == "kgb-log"])

    def test_a_pipe_that_is_read_again_gets_the_rest_and_the_count(self, pipe: tuple[Path, int]) -> None:
        path, reader = pipe
        received = bytearray()
        writer = Writer(str(path), note, max_pending=10)
        writer.start()
        sent = 0
        while writer.dropped < 5:  # until the pipe and the queue are full
            writer.put(f"{sent:04} " + "x" * 2000)
            sent += 1
        dropped = writer.dropped

        def drained() -> bool:
            with contextlib.suppress(BlockingIOError):
                received.extend(os.read(reader, 65536))
            return b"dropped" in received and received.endswith(b"\n")

        until(drained)
        writer.stop()
        documents = [json.loads(line) for line in received.splitlines()]
        items = [document["item"] for document in documents if "item" in document]
        assert items == sorted(items)
        assert sum(document.get("dropped", 0) for document in documents) == dropped == sent - len(items)

    def test_a_reader_that_leaves_is_reported_once(
        self, pipe: tuple[Path, int], caplog: pytest.LogCaptureFixture
    ) -> None:
        path, reader = pipe
        with running(path) as writer:
            os.close(reader)
            for number in range(3):
                writer.put(number)
                until(lambda number=number: writer.dropped == number + 1)  # type: ignore[misc]
        assert caplog.text.count("cannot be written (Broken pipe)") == 1
        assert "3 lines of the log" in caplog.text

    def test_a_full_disk_tears_at_most_its_own_line(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.write
        room = [25]  # the first line and a part of the second

        def write(fd: int, data: bytes) -> int:
            if room[0] == 0:
                raise OSError(28, "No space left on device")
            count = real(fd, data[: room[0]])
            room[0] -= count
            return count

        monkeypatch.setattr(log_writer.os, "write", write)
        with running(path) as writer:
            writer.put("first")
            writer.put("second")
            until(lambda: writer.dropped == 1)
            room[0] = 10_000
            writer.put("third")
        first, torn, *rest = path.read_text().splitlines()
        assert json.loads(first) == {"item": "first"}
        assert torn == '{"item": '[: len(torn)]
        assert [json.loads(line) for line in rest] == [{"item": "third"}, {"dropped": 1}]

    def test_a_thread_that_hangs_in_the_kernel_is_left_behind(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hanging, release = threading.Event(), threading.Event()

        def write(fd: int, data: bytes) -> int:
            hanging.set()
            release.wait(GUARD)
            return len(data)

        monkeypatch.setattr(log_writer.os, "write", write)
        writer = Writer(str(path), note)
        writer.start()
        writer.put(1)
        assert hanging.wait(GUARD)
        writer.stop(0.01)
        assert not release.is_set()
        release.set()

    def test_nothing_is_said_when_nothing_is_lost(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        with running(path) as writer:
            writer.put(1)
        assert not caplog.records

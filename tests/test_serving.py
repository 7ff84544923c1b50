"""Serving: which loop, which limits, what is said; draining as a process is in integration/test_serve_process.py."""

import asyncio
import errno
import logging
import os
import socket
from pathlib import Path

import pytest

from fiedler_proxy import serving
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.logs import StderrHandler, logging_to_stderr
from fiedler_proxy.notify import Notifier, notifier
from fiedler_proxy.testing.rendezvous import GUARD
from kgb_gateway.app import create_app, load


class TestLoop:
    def test_never(self) -> None:
        assert serving.loop_factory("never") is asyncio.new_event_loop

    def test_auto_without_uvloop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serving, "uvloop", None)
        assert serving.loop_factory("auto") is asyncio.new_event_loop

    def test_always_without_uvloop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serving, "uvloop", None)
        with pytest.raises(SettingsError, match="not installed: pip install"):
            serving.loop_factory("always")

    def test_auto_takes_it(self) -> None:
        uvloop = pytest.importorskip("uvloop")
        assert serving.loop_factory("auto") is serving.loop_factory("always") is uvloop.new_event_loop


def test_the_python_parser_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "c_parser_in_use", lambda: False)
    with pytest.raises(SettingsError, match="C parser"):
        serving.run(load(), create_app)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EADDRINUSE, "x"), "port 8089 of there is taken"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "there is no address of this machine"),
        (socket.gaierror(socket.EAI_NONAME, "x"), "there is no address of this machine"),
        (OSError("could not bind on any address out of [('there', 8089)]"), "there is no address of this machine"),
        (UnicodeError("label too long"), "there is no name that a host can have"),
        (OSError(errno.EACCES, "x"), "above 1023"),
        (OSError(errno.EAFNOSUPPORT, "no such family"), "no such family"),
    ],
)
def test_why_there_is_no_listener(error: OSError | UnicodeError, words: str) -> None:
    assert words in serving._why_not(error, "there", 8089)


class TestAnnouncement:
    def test_says_what_serves_where(self, capsys: pytest.CaptureFixture[str]) -> None:
        serving.announce(load({"upstream": "http://up:1"}), ("http://127.0.0.1:7",))
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        for words in (
            "kgb: ",
            "http://127.0.0.1:7",
            "http://up:1",
            "request_id > access_log > dewey_tap > auth",
            "standard output",
        ):
            assert words in said

    def test_says_where_access_lines_go(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        config = tmp_path / "gateway.toml"
        config.write_text(f'[links.access_log]\npath = "{tmp_path}/access.log"\n')
        serving.announce(load({"config": str(config)}), ())
        assert f"{tmp_path}/access.log" in capsys.readouterr().err
        serving.announce(load({"chain": ["request_id"]}), ())
        assert "no access log" in capsys.readouterr().err

    def test_warns(self, capsys: pytest.CaptureFixture[str]) -> None:
        serving.announce(load({}, {"ANTHROPIC_BASE_URL": "http://127.0.0.1:8089"}), ())
        assert "kgb: warning: the environment's ANTHROPIC_BASE_URL" in capsys.readouterr().err


class TestLoopFaults:
    async def test_the_message_stays_out_of_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        try:
            raise ValueError("sk-secret")
        except ValueError as error:
            serving.report_loop_fault(asyncio.get_running_loop(), {"message": "never retrieved", "exception": error})
        assert "never retrieved: ValueError" in caplog.text
        assert "sk-secret" not in caplog.text.replace('raise ValueError("sk-secret")', "")

    async def test_without_an_exception(self, caplog: pytest.LogCaptureFixture) -> None:
        serving.report_loop_fault(asyncio.get_running_loop(), {"message": "odd"})
        assert "odd" in caplog.text


class TestNotifier:
    @pytest.mark.parametrize("named", ["", "relative", "vsock:2:1"])
    def test_nobody(self, named: str) -> None:
        assert notifier({"NOTIFY_SOCKET": named}) == Notifier()
        notifier({"NOTIFY_SOCKET": named}).send("READY=1")

    @pytest.mark.parametrize(
        ("more", "seconds"),
        [
            ({}, 0.0),
            ({"WATCHDOG_USEC": "30000000"}, 15.0),
            ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
            ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
            ({"WATCHDOG_USEC": "soon"}, 0.0),
        ],
    )
    def test_watchdog(self, more: dict[str, str], seconds: float) -> None:
        assert notifier({"NOTIFY_SOCKET": "/run/x", **more}).watchdog == seconds

    def test_a_manager_that_is_gone_is_no_fault(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        Notifier(str(tmp_path / "gone")).send("READY=1")
        assert "could not be told" in caplog.text

    def test_a_line_stays_one(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(tmp_path / "n"))
            sock.settimeout(GUARD)
            Notifier(str(tmp_path / "n")).send("STATUS=a\nREADY=1")
            assert sock.recv(100) == b"STATUS=a READY=1"


class TestLog:
    def _line(self, text: str, level: int = logging.INFO) -> logging.LogRecord:
        return logging.LogRecord("kgb.x", level, "", 0, text, (), None)

    def test_lines_can_neither_draw_nor_be_forged(self) -> None:
        reading, writing = os.pipe()
        handler = StderrHandler(writing)
        handler.emit(self._line("a\x1b[31m\nERROR kgb.x: b"))
        handler.stop()
        os.close(writing)
        with open(reading, "rb") as pipe:
            assert pipe.read() == b"INFO kgb.x: a\\x1b[31m\n  ERROR kgb.x: b\n"

    def test_what_nobody_reads_is_dropped_and_counted(self) -> None:
        reading, writing = os.pipe()
        handler = StderrHandler(writing, pending=2)
        # More than a pipe and the queue hold: none of these waits.
        for _ in range(8):
            handler.emit(self._line("x" * 65536))
        assert handler.dropped
        data = b""
        while b"are missing" not in data:
            data += os.read(reading, 65536)
        os.close(reading)
        handler.stop()
        os.close(writing)

    def test_a_closed_standard_error_is_no_fault(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        handler = StderrHandler(writing)
        handler.emit(self._line("nobody hears"))
        handler.stop()
        os.close(writing)

    def test_loggers_are_as_before_afterwards(self) -> None:
        logger = logging.getLogger("kgb")
        before = logger.level, logger.propagate, list(logger.handlers)
        with logging_to_stderr("error"):
            assert logger.level == logging.ERROR
        assert (logger.level, logger.propagate, list(logger.handlers)) == before

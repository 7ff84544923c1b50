"""``kgb demo``: a stream shown event by event, and a clear word when it cannot be."""

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiedler_proxy.errors import SettingsError
from fiedler_proxy.testing import Abort, Garbage, ReadBody, ReadHead, Script, ScriptedUpstream, Send, Step, respond, sse
from kgb_gateway.commands import demo as command
from kgb_gateway.compare.parse import Arrival
from kgb_gateway.demo.show import HEADING, EventReader, ShownEvent, paint

SSE = [(b"Content-Type", b"text/event-stream")]
LINE = re.compile(r" *(\d+\.\d) +(\d+\.\d)  (\w+)")


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    return parser.parse_args(["demo", *argv])


async def run(*argv: str) -> int:
    args = parse(*argv)
    code = await asyncio.to_thread(args.run, args)
    assert isinstance(code, int)
    return code


class TestCommand:
    async def test_shows_the_stream(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert await run("--pace", "0") == 0
        said = capsys.readouterr()
        assert said.err == ""
        assert "\x1b" not in said.out
        lines = said.out.splitlines()
        events = [match for match in map(LINE.match, lines) if match]
        names = [match[3] for match in events]
        assert names[0] == "message_start"
        assert names[-1] == "message_stop"
        assert {"ping", "content_block_delta", "message_delta"} <= set(names)
        times = [float(match[1]) for match in events]
        assert times == sorted(times)
        for kind in ("thinking", "signature", "text", "input_json", "tool_use get_weather"):
            assert any(kind in line for line in lines)
        summary = next(line for line in lines if line.startswith("200 OK"))
        assert re.search(r"request [0-9a-f]{8}-[0-9a-f]{4}-7", summary), "the gateway's own id shows that it was passed"
        assert f"{len(events)} events" in summary
        logged = json.loads(next(line for line in lines if line.startswith("  {")))
        assert logged["id"] in summary
        assert (logged["path"], logged["status"], logged["outcome"]) == ("/v1/messages", 200, "completed")
        assert "kgb serve --demo" in said.out
        recorded = said.out.partition("And on record (kgb dewey show last):")[2]
        assert command.PROMPT in recorded
        assert "get_weather" in recorded

    async def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert await run("--pace", "0", "--json") == 0
        first, *events, last = map(json.loads, capsys.readouterr().out.splitlines())
        assert first["gateway"].startswith("http://127.0.0.1:")
        assert [event["event"] for event in events] == [event["data"]["type"] for event in events]
        assert last["summary"]["events"] == len(events)
        assert last["summary"]["status"] == 200
        assert last["summary"]["error"] is None
        assert last["summary"]["access_log"]["id"] == last["summary"]["request_id"]
        text = "".join(event["data"]["delta"].get("text", "") for event in events if "delta" in event["data"])
        assert "built-in demo provider, not a model" in text

    async def test_depends_on_nobody(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Neither the user's configuration nor environment changes what is shown, and nothing is left behind."""
        for name in ("KGB_CONFIG", "KGB_HOST", "KGB_PORT", "ANTHROPIC_BASE_URL", "http_proxy", "XDG_DATA_HOME"):
            monkeypatch.setenv(name, "/no/such/thing")
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        assert await run("--pace", "0") == 0
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("argument", ["-1", "nan", "inf", "fast", "11"])
    def test_impossible_pace(self, argument: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            parse(f"--pace={argument}")
        assert "0 to 10" in capsys.readouterr().err


@contextlib.asynccontextmanager
async def broken_gateway(script: Script | list[Step], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """In place of the gateway, a server that plays ``script``."""
    async with ScriptedUpstream(script) as server:

        @contextlib.asynccontextmanager
        async def gateway(upstream: str, data_dir: Path) -> AsyncIterator[str]:
            yield server.url

        monkeypatch.setattr(command, "_gateway", gateway)
        yield


class TestFaults:
    @pytest.mark.parametrize(
        ("script", "words"),
        [
            (respond(502, [], b"no upstream"), "answered 502 Bad Gateway: no upstream"),
            (respond(200, SSE, sse(("message_start", {"type": "message_start"}))), "without message_stop"),
            (respond(200, SSE, b""), "without message_stop"),
            ([ReadHead(), ReadBody(), Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), Abort()], "stream broke off"),
            ([ReadHead(), ReadBody(), Garbage(b"SSH-2.0-x\r\n\r\n")], "gave no answer: malformed response head"),
        ],
    )  # fmt: skip
    async def test_bad_answer(
        self, script: Any, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async with broken_gateway(script, monkeypatch):
            assert await run("--pace", "0") == 1
            assert await run("--pace", "0", "--json") == 1
        said = capsys.readouterr()
        assert words in said.err
        assert words in json.loads(said.out.splitlines()[-1])["summary"]["error"]

    @pytest.mark.parametrize("fault", [SettingsError(["no such thing"]), OSError("no such thing")])
    async def test_gateway_does_not_start(
        self, fault: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        @contextlib.asynccontextmanager
        async def gateway(upstream: str, data_dir: Path) -> AsyncIterator[str]:
            raise fault
            yield ""

        monkeypatch.setattr(command, "_gateway", gateway)
        assert await run("--pace", "0") == 1
        assert "kgb demo: the gateway could not be shown: no such thing" in capsys.readouterr().err

    def test_reader_that_has_seen_enough(self) -> None:
        """``kgb demo | head -1``: no traceback, no noise."""
        script = (
            "import argparse, sys; from kgb_gateway.commands import demo; p = argparse.ArgumentParser();"
            "demo.add_parser(p.add_subparsers()); a = p.parse_args(['demo', '--pace', '0.05']); sys.exit(a.run(a))"
        )
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stderr is not None
        with child, child.stderr:
            child.stdout.readline()
            child.stdout.close()
            noise = child.stderr.read()
        assert child.returncode == 1
        assert noise == b""


class TestColour:
    def test_only_on_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        assert not command._wants_colour()
        monkeypatch.setattr(sys, "stdout", Terminal())
        assert command._wants_colour()
        monkeypatch.setenv("TERM", "dumb")
        assert not command._wants_colour()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("NO_COLOR", "1")
        assert not command._wants_colour()

    def test_colour_changes_no_words(self) -> None:
        event = ShownEvent(0.0015, 0.001, "message_start", {"message": {"model": "m", "id": "i"}})
        assert event.line() == "     1.5      1.0  message_start        m i"
        coloured = event.line(colour=True)
        assert "\x1b[" in coloured
        assert re.sub(r"\x1b\[\d+m", "", coloured) == event.line()
        assert paint("x", "36", False) == "x"


class TestEvents:
    WIRE = (
        b': comment\n\nevent: a\ndata: {"type": "b",\ndata: "text": "caf\xc3\xa9"}\n\nid: 7\n\n'
        b"data:[DONE]\r\n\r\nevent: end\r\rdata: cut"
    )

    @given(cuts=st.sets(st.integers(0, len(WIRE)), max_size=6))
    def test_cut_anywhere(self, cuts: set[int]) -> None:
        reader = EventReader()
        edges = [0, *sorted(cuts), len(self.WIRE)]
        for begin, stop in itertools.pairwise(edges):
            reader.feed(Arrival(float(begin), self.WIRE[begin:stop]))
        assert [(event.name, event.data) for event in reader.events] == [
            ("a", {"type": "b", "text": "café"}),
            ("message", "[DONE]"),
            ("end", ""),
        ]

    def test_times(self) -> None:
        reader = EventReader()
        reader.feed(Arrival(0.5, b'data: {"type":"one"}\n\ndata: {"ty'))
        [second] = reader.feed(Arrival(0.75, b'pe":"two"}\n\n'))
        assert (second.at, second.after, second.name) == (0.75, 0.25, "two")
        assert second.document() == {"ms": 750.0, "delta_ms": 250.0, "event": "two", "data": {"type": "two"}}

    @pytest.mark.parametrize(
        ("data", "content"),
        [
            ({"content_block": {"type": "tool_use", "name": "t"}}, "tool_use t"),
            ({"content_block": {"type": "text"}}, "text"),
            ({"delta": {"text": " a\n"}}, 'text       " a\\n"'),
            ({"delta": {"thinking": "é"}}, 'thinking   "é"'),
            ({"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}, "end_turn, 7 output tokens"),
            ({"type": "error", "error": {"message": "Overloaded"}}, "Overloaded"),
            ({"index": 3}, "block 3"),
            ({"type": "ping"}, ""),
            ("[DONE]", "[DONE]"),
            ([1], "[1]"),
        ],
    )
    def test_content(self, data: Any, content: str) -> None:
        assert ShownEvent(0, 0, "x", data).content == content

    def test_long_content_is_cut(self) -> None:
        line = ShownEvent(0, 0, "x", "y" * 500).line()
        assert line.endswith("y...")
        assert len(line) < len(HEADING) + 80


def test_encoding_that_lacks_characters(tmp_path: Any) -> None:
    script = (
        "import argparse, sys; from kgb_gateway.commands import demo; p = argparse.ArgumentParser();"
        "demo.add_parser(p.add_subparsers()); a = p.parse_args(['demo', '--pace', '0']); sys.exit(a.run(a))"
    )
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()

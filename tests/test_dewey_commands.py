"""``kgb dewey``: every command, over a data directory as gateways leave it, with a librarian at work and without."""

import base64
import hashlib
import io
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from fiedler_proxy.settings import FIEDLER
from kgb_gateway.__main__ import main
from kgb_gateway.dewey.librarian import lock
from kgb_gateway.journal import Journal, JournalOptions
from kgb_gateway.settings import KGB
from kgb_gateway.tail import LEAST, Tail, tail_path
from tests.spools import SESSION, Exchange, events, request, turns, user, write

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for program in (KGB, FIEDLER):
        for variable in (*program.variables, *program.upstream_variables, program.config_variable):
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "data"
    write(home, turns(["Please fix parse_name", "and the tests", "thanks"]))
    cut = Exchange(11, request([user("other thing")]), events("half", cut=True), session="s-other", caller="bob")
    write(home, [attrs.evolve(cut, outcome="upstream_broke")])
    write(
        home, [Exchange(12, b"", [b'{"data":[]}'], target="/v1/models", method="GET", caller="bob", session="s-other")]
    )
    return home


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str, code: int = 0) -> str:
        assert main(["dewey", *words, "--data-dir", str(home)]) == code, capsys.readouterr()
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    return run


def told(text: str) -> Any:
    return json.loads(text)


class TestList:
    def test_sessions_newest_first(self, run: Run) -> None:
        lines = run("list").splitlines()
        assert "Please fix parse_name" in lines[3]
        assert "other thing" in lines[2]
        assert "~$" in lines[2], "a cut stream's cost is marked as estimated"

    def test_as_json(self, run: Run) -> None:
        other, main_session = told(run("list", "--json"))
        assert (main_session["key"], main_session["turns"], main_session["caller"]) == (f"{SESSION}@alice", 3, "alice")
        assert main_session["cost_usd"] == pytest.approx(3 * 330 / 1e6)
        assert other["estimated"] == 1

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            (("--caller", "bob"), 1),
            (("--model", "claude-*"), 2),
            (("--outcome", "upstream_broke"), 1),
            (("--since", "2025-10-01"), 2),
            (("--since", "1h"), 0),
            (("--until", "2025-10-01"), 0),
            (("--agent", "claude-code"), 2),
            (("--min-cost", "0.0005"), 1),
            (("--session", SESSION[:8]), 1),
            (("-n", "1"), 1),
        ],
    )
    def test_filtered(self, run: Run, words: tuple[str, ...], found: int) -> None:
        assert len(told(run("list", "--json", *words))) == found

    def test_exchanges(self, run: Run) -> None:
        rows = told(run("list", "--exchanges", "--json"))
        assert [row["target"] for row in rows] == ["/v1/models", *["/v1/messages"] * 4]
        assert rows[1]["outcome"] == "upstream_broke"
        assert "upstream_broke" in run("list", "--exchanges")

    def test_a_time_that_is_none(self, run: Run) -> None:
        assert "is no time; write for example 7d" in run("list", "--since", "yesterday", code=2)


class TestShow:
    def test_as_a_person_reads_it(self, run: Run) -> None:
        text = run("show", SESSION[:8])
        for words in (
            "user:",
            "Please fix parse_name",
            "assistant:",
            "re: and the tests",
            "claude-sonnet-4-5",
            "$0.0003",
        ):
            assert words in text
        assert text.count("Please fix parse_name") == 3, "in the title, asked, and answered: not in every turn again"

    def test_last(self, run: Run) -> None:
        text = run("show", "last")
        for words in ("other thing", "half", "partial", "estimated", "upstream_broke"):
            assert words in text

    def test_one_turn(self, run: Run) -> None:
        text = run("show", SESSION[:8], "--turn", "2")
        assert "and the tests" in text
        assert "thanks" not in text
        assert "it has 3" in run("show", SESSION[:8], "--turn", "9", code=2)

    def test_as_json(self, run: Run) -> None:
        lines = run("show", SESSION[:8], "--json").splitlines()
        assert [json.loads(line)["relation"] for line in lines] == ["first", "appended", "appended"]

    def test_raw(self, run: Run) -> None:
        lines = [json.loads(line) for line in run("show", SESSION[:8], "--raw").splitlines()]
        body = base64.b64decode(lines[0]["request"]["body"])
        assert body == turns(["Please fix parse_name"])[0].body
        assert hashlib.sha256(body).hexdigest() == lines[0]["request"]["sha256"]

    def test_diff(self, run: Run) -> None:
        text = run("show", SESSION[:8], "--diff", "1:3")
        assert "+    re: and the tests" in text
        assert "turns from 1 to 3" in run("show", SESSION[:8], "--diff", "7", code=2)

    def test_colours_when_asked(self, run: Run) -> None:
        assert "\x1b[" not in run("show", "last")
        assert "\x1b[" in run("show", "last", "--colour", "always")

    def test_nothing_like_it(self, run: Run) -> None:
        assert "nothing on record has the id" in run("show", "zzz", code=1)

    def test_what_was_recorded_cannot_steer_the_terminal(self, run: Run, home: Path) -> None:
        write(home, turns(["\x1b]0;owned\x07 \x9b2J"], first=30, session="s-evil\x1b"))
        for words in (("show", "last"), ("list",), ("search", "owned"), ("list", "--exchanges")):
            assert not {"\x1b", "\x07", "\x9b"} & set(run(*words)), words


class TestSearch:
    def test_finds(self, run: Run) -> None:
        assert "parse_name" in run("search", "parse_name")
        hits = told(run("search", "--json", "fix", "parse*"))
        assert {(hit["role"], hit["session"]) for hit in hits} == {
            ("user", f"{SESSION}@alice"),
            ("assistant", f"{SESSION}@alice"),
        }
        assert len(told(run("search", "--json", "the tests"))) == 2
        assert told(run("search", "--json", "half", "--session", "s-other"))

    def test_finds_nothing(self, run: Run) -> None:
        assert "no message holds that" in run("search", "xyzzy", code=1)
        assert "no word to look for" in run("search", "...", code=2)


class TestStats:
    def test_by_everything(self, run: Run) -> None:
        for by in ("day", "model", "caller", "session", "agent", "route", "slot", "outcome"):
            assert "exchanges" in run("stats", "--by", by, "--plot", "tokens")
        found = told(run("stats", "--json", "--by", "caller"))
        assert {row["name"]: row["exchanges"] for row in found["rows"]} == {"alice": 3, "bob": 2}
        assert found["storage"]["lag"] == 0
        assert found["storage"]["store"] > 0

    def test_plots(self, run: Run) -> None:
        assert "█" in run("stats", "--by", "caller", "--plot", "exchanges")


class TestExport:
    @pytest.mark.parametrize("form", ["jsonl", "markdown", "html", "har", "claude", "raw"])
    def test_everything(self, run: Run, tmp_path: Path, form: str) -> None:
        out = tmp_path / "out"
        run("export", "--format", form, "-o", str(out))
        text = out.read_text(encoding="utf-8")
        assert out.stat().st_mode & 0o077 == 0
        if form == "raw":
            bodies = [json.loads(line)["request"]["body"] for line in text.splitlines()]
            assert turns(["Please fix parse_name"])[0].body in [base64.b64decode(body or "") for body in bodies]
        else:
            assert "Please fix parse_name" in text
        if form == "har":
            assert len(json.loads(text)["log"]["entries"]) == 5

    def test_one(self, run: Run, tmp_path: Path) -> None:
        out = tmp_path / "out"
        run("export", SESSION[:8], "-o", str(out))
        assert len(out.read_text().splitlines()) == 3

    def test_to_standard_output(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        stdout = io.TextIOWrapper(io.BytesIO())
        monkeypatch.setattr(sys, "stdout", stdout)
        run("export", "--caller", "bob")
        assert isinstance(stdout.buffer, io.BytesIO)
        assert len(stdout.buffer.getvalue().splitlines()) == 2

    def test_where_nothing_can_be_written(self, run: Run, tmp_path: Path) -> None:
        assert "cannot be written" in run("export", "-o", str(tmp_path / "no" / "out"), code=1)


class TestImport:
    @pytest.mark.parametrize("form", ["jsonl", "har"])
    def test_what_was_exported_comes_back_the_same(
        self, run: Run, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out, other = tmp_path / f"out.{form}", tmp_path / "other"
        run("export", SESSION[:8], "--format", form, "-o", str(out))
        before = [json.loads(line) for line in run("show", SESSION[:8], "--json").splitlines()]
        for imported, known in ((3, 0), (0, 3)):
            assert main(["dewey", "import", str(out), "--json", "--data-dir", str(other)]) == 0
            found = told(capsys.readouterr().out)
            assert (found["imported"], found["known"], found["not_read"]) == (imported, known, [])
        assert main(["dewey", "show", SESSION[:8], "--json", "--data-dir", str(other)]) == 0
        after = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for one, two in zip(before, after, strict=True):
            for name in (
                "exchange",
                "added",
                "replies",
                "usage",
                "relation",
                "cost_micro_usd",
                "model",
                "system",
                "params",
            ):
                assert one.get(name) == two.get(name), name

    def test_a_reply_that_is_still_being_written_waits_for_a_later_import(self, run: Run, tmp_path: Path) -> None:
        def line(number: int, text: str, **message: Any) -> str:
            said = {
                "role": "assistant",
                "content": [{"type": "text", "text": text}],
                "id": "msg_1",
                "model": "m",
                **message,
            }
            who = {"uuid": f"u-{number}", "parentUuid": f"u-{number - 1}", "sessionId": "s", "type": "assistant"}
            return json.dumps({**who, "timestamp": f"2026-01-01T00:00:0{number}Z", "message": said}) + "\n"

        asked = {"uuid": "u-0", "sessionId": "s", "type": "user", "message": {"role": "user", "content": "wombat?"}}
        path = tmp_path / "s.jsonl"
        path.write_text(json.dumps(asked) + "\n" + line(1, "first half", stop_reason=None))
        found = told(run("import", str(path), "--json"))
        assert found["imported"] == 0
        assert "left for a later import" in found["not_read"][0]
        with path.open("a") as more:
            more.write(line(2, "second half", stop_reason="end_turn"))
        assert told(run("import", str(path), "--json"))["imported"] == 1
        assert "second half" in run("show", "s")

        path.write_text(path.read_text().replace("msg_1", "msg_2").replace("end_turn", "") + "\n")
        os.utime(path, (1, 1))  # nobody will go on writing it
        assert told(run("import", str(path), "--json"))["imported"] == 1

    def test_claude_codes_own_folder(self, run: Run, tmp_path: Path) -> None:
        folder = tmp_path / "projects" / "-home-u-proj"
        folder.mkdir(parents=True)
        lines: list[dict[str, Any]] = []
        for number, (who, text) in enumerate(
            [("user", "quokka question"), ("assistant", "answer one"), ("user", "more"), ("assistant", "two")]
        ):
            message: dict[str, Any] = {"role": who, "content": [{"type": "text", "text": text}]}
            if who == "assistant":
                message |= {
                    "id": f"msg_{number}",
                    "model": "claude-sonnet-4-5",
                    "stop_reason": "end_turn",
                    "usage": {"input_tokens": 10, "output_tokens": 5},
                }
            lines.append(
                {
                    "type": who,
                    "uuid": f"u-{number}",
                    "parentUuid": f"u-{number - 1}" if number else None,
                    "sessionId": "claude-session",
                    "timestamp": f"2026-01-01T00:00:0{number}Z",
                    "cwd": "/home/u/proj",
                    "message": message,
                    **({"requestId": f"req_{number}"} if who == "assistant" else {}),
                }
            )
        (folder / "claude-session.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
        found = told(run("import", str(tmp_path / "projects"), "--json"))
        assert found["imported"] == 2
        assert len(found["not_read"]) == 1
        assert "line 5" in found["not_read"][0]
        assert told(run("import", str(tmp_path / "projects"), "--json"))["imported"] == 0
        (session,) = told(run("list", "--json", "--project", "/home/u/proj"))
        assert (session["turns"], session["agent"], session["cost_usd"]) == (
            2,
            "claude-code",
            2 * (10 * 3 + 5 * 15) / 1e6,
        )
        assert "quokka" in run("show", "claude-session")
        assert [json.loads(line)["relation"] for line in run("show", "claude-session", "--json").splitlines()] == [
            "first",
            "appended",
        ]

    def test_credentials_of_a_browsers_archive_stay_out(self, run: Run, tmp_path: Path, home: Path) -> None:
        entry = {
            "startedDateTime": "2026-01-01T00:00:00Z",
            "time": 5,
            "request": {
                "method": "POST",
                "url": "https://api.anthropic.com/v1/messages?key=canary-1",
                "headers": [{"name": "x-api-key", "value": "canary-2"}, {"name": "Cookie", "value": "canary-3"}],
                "postData": {"text": request([user("from a browser")]).decode()},
            },
            "response": {
                "status": 200,
                "headers": [{"name": "content-encoding", "value": "gzip"}],
                "content": {
                    "text": '{"type":"message","role":"assistant","content":[{"type":"text","text":"plain"}],"usage":{}}'
                },
            },
            "timings": {},
        }
        path = tmp_path / "a.har"
        path.write_text(json.dumps({"log": {"entries": [entry]}}))
        assert told(run("import", str(path), "--json"))["imported"] == 1
        assert "plain" in run("show", "last")
        for file in home.rglob("*"):
            assert not file.is_file() or b"canary" not in file.read_bytes(), file

    def test_what_is_not_there(self, run: Run, tmp_path: Path) -> None:
        assert "is not there" in run("import", str(tmp_path / "nothing"), code=2)


class TestUpkeep:
    def test_verify(self, run: Run, home: Path) -> None:
        assert "sound" in run("verify")
        assert told(run("verify", "--json"))["raw"] == 5
        db = sqlite3.connect(home / "dewey.db")
        db.execute("UPDATE exchange SET request_sha256 = zeroblob(32) WHERE id = 1")
        db.commit()
        db.close()
        assert main(["dewey", "verify", "--data-dir", str(home)]) == 1

    def test_prune_by_age_keeps_what_is_pinned(self, run: Run) -> None:
        run("list")
        assert "kept from every prune" in run("pin", SESSION[:8])
        assert "1 sessions, 2 exchanges would go" in run("prune", "--older-than", "1d", "--dry-run")
        assert len(told(run("list", "--json"))) == 2
        assert "are gone" in run("prune", "--older-than", "1d")
        assert [row["key"] for row in told(run("list", "--json"))] == [f"{SESSION}@alice"]
        run("pin", SESSION[:8], "--off")
        run("prune", "--older-than", "1d")
        assert told(run("list", "--json")) == []

    def test_prune_by_size(self, run: Run) -> None:
        assert "0 sessions" in run("prune", "--max-bytes", "1G")
        assert "2 sessions" in run("prune", "--max-bytes", "1")

    def test_prune_of_raw_bytes_leaves_what_was_said(self, run: Run, home: Path) -> None:
        run("list")
        for path in (home / "spool").iterdir():
            os.utime(path, (1.0, 1.0))
        run("list")
        assert "3 packed segments would go" in run("prune", "--raw", "--max-bytes", "1", "--dry-run")
        assert "3 packed segments are gone" in run("prune", "--raw", "--max-bytes", "1")
        assert "Please fix parse_name" in run("show", SESSION[:8])
        assert "not kept any more" in run("show", SESSION[:8], "--raw", code=1)
        assert "say what may go" in run("prune", code=2)

    def test_forget(self, run: Run, home: Path) -> None:
        assert "say --yes" in run("forget", SESSION[:8], code=2)
        assert "3 exchanges are erased" in run("forget", SESSION[:8], "--yes")
        assert [row["caller"] for row in told(run("list", "--json"))] == ["bob"]
        for file in home.rglob("*"):
            assert not file.is_file() or b"parse_name" not in file.read_bytes(), file
        assert "2 exchanges are erased" in run("forget", "--caller", "bob", "--yes")
        assert "nothing on record of" in run("forget", "--caller", "bob", "--yes", code=2)
        assert "say either" in run("forget", code=2)

    def test_rebuild(self, run: Run) -> None:
        before = run("show", SESSION[:8], "--json")
        assert "5 exchanges are read from segments, 0 carried over" in run("rebuild")
        assert run("show", SESSION[:8], "--json") == before


class TestPlace:
    def test_nothing_recorded_yet(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["dewey", "list", "--data-dir", str(tmp_path)]) == 1
        assert "nothing has been recorded yet" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_the_configuration_names_it(self, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = tmp_path / "gateway.toml"
        for text in (f'data_dir = "{home}"\n', '[links.dewey_tap]\ndata_dir = "data"\n'):
            config.write_text(text)
            assert main(["dewey", "list", "--json", "--config", str(config)]) == 0
            assert len(told(capsys.readouterr().out)) == 2

    def test_with_a_librarian_at_work_the_store_is_read_as_it_stands(self, run: Run, home: Path) -> None:
        run("list")
        with lock(home):
            assert len(told(run("list", "--json"))) == 2

    def test_what_a_dead_gateway_left_in_memory_is_taken_up(self, run: Run, home: Path) -> None:
        exchange = Exchange(50, request([user("quokka")]), events("half", cut=True), session="s-dead", outcome="")
        tail = Tail.open(tail_path(home.resolve(), "a"), LEAST)
        journal = Journal(home / "spool", "a", tail, JournalOptions(LEAST, watermark=0), "test")
        for kind, payload in exchange.frames():
            journal.append(kind, exchange.key, payload)
        assert len(told(run("list", "--json"))) == 2, "it lives: what it has in memory will come"
        tail._memory.close()  # what the kernel does when a process is killed
        os.close(tail._fd)
        assert len(told(run("list", "--json"))) == 3
        assert "interrupted" in run("show", "s-dead")
        assert not tail_path(home.resolve(), "a").exists()

    def test_a_price_table_of_ones_own(self, run: Run, home: Path) -> None:
        (home / "prices.json").write_text("{")
        assert "prices" in run("list", code=2).lower() or "json" in run("list", code=2).lower()

    def test_tail_without_a_librarian(self, run: Run) -> None:
        assert "no librarian is at work" in run("tail", code=1)

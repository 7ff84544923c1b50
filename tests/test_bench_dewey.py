"""The bench of Dewey works, and its verdict can fail. No time is asserted here."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from kgb_gateway.dewey import librarian
from kgb_gateway.dewey.spool import Layout
from tests.bench.dewey import __main__ as command
from tests.bench.dewey import figures, memory, million, sessions, storage, taking, texts
from tests.bench.dewey.figures import NONE_AT_ALL, Bound, Figure

TINY = figures.Sizes(turns=6, unseen=2, sessions=1, rounds=1, warm=2, messages=208, shown=4, queries=2)


def quiet(_text: str) -> None:
    pass


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody writes any more is packed at once."""
    monkeypatch.setattr(librarian, "_is_quiet", lambda _path: True)


@pytest.fixture
def few_sources(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found = [f"{name} {number}\n" for name in "abc" for number in range(50)]
    monkeypatch.setattr(texts, "sources", lambda: tuple("".join(found[at : at + 50]) for at in range(0, 150, 50)))
    return found


class TestTexts:
    def test_the_same_seed_gives_the_same_text_and_another_one_another(self) -> None:
        assert texts.Prose(1).take(5000) == texts.Prose(1).take(5000) != texts.Prose(2).take(5000)
        assert texts.Words(1).text(50) == texts.Words(1).text(50) != texts.Words(2).text(50)

    def test_pieces_of_real_text_stand_one_behind_the_other(self) -> None:
        prose = texts.Prose(3)
        assert prose.take(7) + prose.take(60_000) + prose.take(1) == texts.Prose(3).take(60_008)

    def test_when_it_is_used_up_it_goes_on_in_another_order(self, few_sources: list[str]) -> None:
        whole = "".join(few_sources)
        prose = texts.Prose(0)
        first, second = prose.take(len(whole)), prose.take(len(whole))
        assert sorted(first.splitlines()) == sorted(second.splitlines()) == sorted(whole.splitlines())
        assert first != second

    def test_words_are_as_rare_as_their_rank_says(self) -> None:
        words = texts.Words(1, 1000).text(20_000).split()
        seen = [words.count(texts.word(number)) for number in (0, 9, 99)]
        assert seen[0] > 5 * seen[1] > 25 * seen[2] > 0
        assert len({texts.word(number) for number in range(20_000)}) == 20_000


class TestSessions:
    def test_a_body_is_the_last_one_with_a_turn_behind_it(self) -> None:
        exchanges = list(sessions.Session(1, texts.Prose()).exchanges(5))
        before: list[dict[str, object]] = []
        for exchange in exchanges:
            body = json.loads(exchange.body)
            for message in body["messages"]:
                message["content"][-1].pop("cache_control", None)
            assert body["messages"][: len(before)] == before
            assert len(body["messages"]) == (len(before) or -1) + 2
            before = body["messages"]
        assert len({exchange.key for exchange in exchanges}) == 5

    def test_bodies_grow_towards_the_size_that_is_wanted(self) -> None:
        bodies = [len(exchange.body) for exchange in sessions.Session(1, texts.Prose()).exchanges(20)]
        grown = (bodies[-1] - bodies[0]) / 19
        assert 105_000 < bodies[0] < 120_000
        assert grown == pytest.approx((sessions.SIZE - bodies[0]) / sessions.TURNS, rel=0.1)

    def test_bodies_never_seen_have_nothing_in_common(self) -> None:
        first, second = (json.loads(exchange.body) for exchange in sessions.unseen(2, 2))
        assert not {tool["description"] for tool in first["tools"]} & {tool["description"] for tool in second["tools"]}
        assert first["system"] != second["system"]
        assert [len(each["messages"]) for each in (first, second)] == [3, 3]

    def test_sessions_take_turns(self) -> None:
        names = [exchange.session for exchange in islice(sessions.interleaved(2, 2), 4)]
        assert names[0] == names[2] != names[1] == names[3]


class TestStorage:
    def test_everything_is_kept_and_sound(self, tmp_path: Path) -> None:
        found = {each.name: each for each in storage.session(tmp_path, TINY, quiet)}
        assert not figures.misses(list(found.values()), quick=True)
        assert 0.05 < found["session"].value < 3
        assert found["session_twice"].value > 1

    def test_what_is_missing_or_changed_is_counted(self, tmp_path: Path) -> None:
        sent = list(sessions.Session(1, texts.Prose()).exchanges(3))
        assert storage.record(tmp_path, sent) == sum(len(each.body) + sum(map(len, each.reply)) for each in sent)
        storage.put_away(tmp_path)
        assert (storage.faults_of(tmp_path, 3), storage.differing(tmp_path, sent)) == ([], 0)
        assert storage.faults_of(tmp_path, 4) == [
            "3 of 4 exchanges are in the store",
            "3 of 4 exchanges are in segments",
        ]
        sent[1].body = sent[1].body.replace(b"agent", b"Agent")
        assert storage.differing(tmp_path, sent) == 1
        assert storage.differing(tmp_path, sent[:2]) == 3

    def test_the_archive_counts_as_much_as_the_store(self, tmp_path: Path) -> None:
        storage.record(tmp_path, sessions.Session(1, texts.Prose()).exchanges(1))
        storage.put_away(tmp_path)
        parts = [path.stat().st_size for path in (*(tmp_path / "archive").iterdir(), Layout(tmp_path).store)]
        assert len(parts) == 2
        assert storage.size_of(tmp_path) >= sum(parts)

    def test_a_librarian_that_did_not_read_everything_gives_no_figure(self, tmp_path: Path) -> None:
        total = storage.record(tmp_path, sessions.unseen(2, 1))
        assert set(taking.take(tmp_path, total)) == {"ingest", "seal"}
        with pytest.raises(RuntimeError, match=f"{total + 1} bytes were written; read: "):
            taking.take(tmp_path, total + 1)

    def test_a_spool_that_is_never_done_with_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(librarian, "_is_quiet", lambda _path: False)
        monkeypatch.setattr(storage, "SEAL_SECONDS", 0.0)
        storage.record(tmp_path, sessions.Session(1, texts.Prose()).exchanges(1))
        with pytest.raises(TimeoutError, match="segments stay in the spool"):
            storage.put_away(tmp_path)


class TestMillion:
    def test_every_message_is_found_by_words_and_the_commands_are_timed(self, tmp_path: Path) -> None:
        found = {each.name: each for each in million.million(tmp_path, TINY, quiet)}
        assert found["million_missing"].value == 0
        assert {"search_p50", "search_p99", "search_beside", "search_rare", "search_prefix", "list", "show"} <= set(
            found
        )
        assert "20.0 hits shown" in found["search_common"].note
        before = Layout(tmp_path).store.stat().st_ino
        million.million(tmp_path, TINY, quiet)
        assert Layout(tmp_path).store.stat().st_ino == before

    def test_the_long_conversation_is_shown_whole(self, tmp_path: Path) -> None:
        million.fill(tmp_path, TINY.messages, TINY.shown, quiet)
        _, lines = million.run(tmp_path, "show", million.SHOWN, "--json")
        assert len([line for line in lines if '"exchange":' in line]) == TINY.shown

    def test_a_store_that_lacks_something_is_told(self, tmp_path: Path) -> None:
        million.fill(tmp_path, TINY.messages - 20, TINY.shown, quiet)
        found = million.million(tmp_path, TINY, quiet)
        assert figures.misses(found, quick=True) == ["million_missing: 20.0 messages, wanted <= 0"]

    def test_a_command_that_fails_is_no_figure(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match=r"kgb dewey search word ended with 1: .*nothing has been recorded yet"):
            million.run(tmp_path, "search", "word")

    @pytest.mark.parametrize(("part", "wanted"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)])
    def test_shares(self, part: float, wanted: float) -> None:
        assert million.share([number / 1000 for number in range(100, 0, -1)], part) == pytest.approx(wanted)


def test_the_gateways_memory_and_the_lag_are_seen(tmp_path: Path) -> None:
    found = {each.name: each for each in memory.memory(tmp_path, TINY, quiet)}
    assert found["lag_left"].value == 0
    assert found["lag"].value > 0
    assert found["memory_librarian"].value > 10


class TestVerdict:
    FOUND = (
        Figure("small", "small", "MB", 2.0, Bound(3)),
        Figure("large", "large", "MB", 4.0, Bound(3)),
        Figure("slow", "slow", "MB/s", 9.0, Bound(10, most=False)),
        Figure("wrong", "wrong", "faults", 1.0, NONE_AT_ALL),
        Figure("told", "told", "MB", 1e9),
    )

    def test_what_is_missed_is_named(self) -> None:
        assert figures.misses(self.FOUND, quick=False) == [
            "large: 4.00 MB, wanted <= 3",
            "slow: 9.00 MB/s, wanted >= 10",
            "wrong: 1.00 faults, wanted <= 0",
        ]

    def test_a_quick_run_judges_what_depends_on_no_size_and_no_speed(self) -> None:
        assert [line.partition(":")[0] for line in figures.misses(self.FOUND, quick=True)] == ["wrong"]

    def test_the_table_has_a_line_for_each(self) -> None:
        lines = figures.table(self.FOUND).splitlines()
        assert [line.split()[0] for line in lines[2:]] == [each.name for each in self.FOUND]
        assert lines[4].split() == ["slow", "MB/s", "9.00", ">=", "10"]

    @pytest.mark.parametrize("wrong", [0.0, 1.0])
    def test_the_command_prints_writes_and_judges(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: float
    ) -> None:
        def part(_directory: Path, _sizes: figures.Sizes, _say: Callable[[str], None]) -> list[Figure]:
            return [Figure("faults", "faults", "faults", wrong, NONE_AT_ALL)]

        monkeypatch.setattr(command, "PARTS", {"session": part})
        output = tmp_path / "figures.json"
        status = command.main(["--quick", "--check", "--json", str(output)], TINY)
        assert status == wrong
        assert ("MISSED faults: 1.00 faults, wanted <= 0" in capsys.readouterr().out) is bool(wrong)
        document = json.loads(output.read_text(encoding="utf-8"))
        assert document["figures"]["faults"]["measured"] == wrong
        assert document["sizes"]["turns"] == TINY.turns

    def test_the_command_measures_what_it_is_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert command.main(["--quick", "--check", "--only", "ingest"], TINY) == 0
        assert "turns that append to known ones" in capsys.readouterr().out

"""The librarian: what is in the spool comes into the store, whole, once, whatever happens to it or to the spool."""

import errno
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import attrs
import pytest

from kgb_gateway.__main__ import main
from kgb_gateway.dewey import ingest as ingest_module
from kgb_gateway.dewey.archive import archived_in, open_archived, path_of
from kgb_gateway.dewey.document import Turn
from kgb_gateway.dewey.librarian import Busy, Librarian, Retention, lock
from kgb_gateway.dewey.linking import Relation
from kgb_gateway.dewey.notes import SpoolWriter, write_forget, write_pin
from kgb_gateway.dewey.rebuild import rebuild
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.reader import StoreReader
from kgb_gateway.dewey.verify import Report, verify
from kgb_gateway.journal import gap_payload
from kgb_gateway.record import NO_EXCHANGE, STARTED, Kind
from kgb_gateway.tail import Gap
from tests.spools import Exchange, events, interleaved, key, prices, reading, request, turns, user, write

ROOT = Path(__file__).resolve().parents[1]


@attrs.define
class Dewey:
    """A data directory with a librarian that is called when a test says so."""

    home: Path

    @property
    def layout(self) -> Layout:
        return Layout(self.home)

    def work(self, retention: Retention | None = None) -> Librarian:
        """Everything that a librarian does, once."""
        with lock(self.home):
            librarian = Librarian(self.home, prices(), retention)
            try:
                librarian.finish()
            finally:
                librarian.close()
        return librarian

    def store(self) -> StoreReader:
        return StoreReader(self.layout)

    def rows(self, query: str) -> list[Any]:
        with self.store() as store:
            return store.connection.execute(query).fetchall()

    def turns(self) -> list[Turn]:
        with self.store() as store:
            found = [turn for each in store.conversations() for turn in each.turns]
            return sorted([*found, *store.loose()], key=lambda turn: turn.at)

    def age(self) -> None:
        """Segments look as if they had been written a while ago."""
        for path in self.layout.spool.iterdir():
            os.utime(path, (1.0, 1.0))

    def verify(self) -> Report:
        with self.store() as store:
            return verify(self.layout, store, reading(), lambda _: None)

    def problems(self) -> list[str]:
        return [row[0] for row in self.rows("SELECT why FROM problem ORDER BY id")]


@pytest.fixture
def dewey(tmp_path: Path) -> Dewey:
    return Dewey(tmp_path)


def said(turn: Turn) -> tuple[list[str], list[str]]:
    """The texts that were new in a turn, and its reply's."""
    added = [str(block.value.get("text")) for message in turn.added for block in message.blocks]
    return added, [str(block.value.get("text")) for message in turn.replies for block in message.blocks]


class TestIngest:
    def test_a_conversation_comes_out_as_it_was(self, dewey: Dewey) -> None:
        write(dewey.home, turns(["one", "two", "three"]))
        dewey.work()
        found = dewey.turns()
        assert [said(turn) for turn in found] == [([t], [f"re: {t}"]) for t in ("one", "two", "three")]
        assert [turn.relation for turn in found] == [Relation.FIRST, Relation.APPENDED, Relation.APPENDED]
        assert {(turn.status, turn.outcome, turn.stop_reason, turn.partial) for turn in found} == {
            (200, "completed", "end_turn", False)
        }
        assert found[0].usage[0]["uncached"] == 10
        assert found[0].usage[0]["output"] == 20
        assert found[0].cost_micro_usd == 10 * 3 + 20 * 15
        assert found[0].raw_kept
        assert dewey.verify().faults == []

    def test_exchanges_that_ran_beside_each_other(self, dewey: Dewey) -> None:
        sent = [
            Exchange(n, request([user(f"question {n}")]), events(f"answer {n}"), session=f"s-{n}") for n in range(1, 20)
        ]
        interleaved(dewey.home, sent)
        dewey.work()
        assert [said(turn) for turn in dewey.turns()] == [([f"question {n}"], [f"answer {n}"]) for n in range(1, 20)]

    def test_what_has_not_ended_waits(self, dewey: Dewey) -> None:
        first, second = turns(["one", "two"])
        frames = list(second.frames())
        with SpoolWriter(dewey.home / "spool", "test") as writer:
            for kind, payload in frames[:-1]:
                writer.write(kind, second.key, payload)
            for kind, payload in first.frames():
                writer.write(kind, first.key, payload)
        with lock(dewey.home):
            librarian = Librarian(dewey.home, prices())
            assert librarian.ingest.run() == 1
            assert librarian.ingest.open == 1
            position = next(iter(librarian.store.positions().values()))
            librarian.close()
        assert position.sequence == len(frames) - 1 + len(list(first.frames()))
        assert position.place < 200, "where the open one began: nothing of it is missed after a restart"

    def test_a_cut_stream_is_partial_and_its_cost_estimated(self, dewey: Dewey) -> None:
        exchange = Exchange(1, request([user("one")]), events("half of it " * 40, cut=True), outcome="upstream_broke")
        write(dewey.home, [exchange])
        dewey.work()
        (turn,) = dewey.turns()
        assert said(turn)[1] == ["half of it " * 40]
        assert (turn.partial, turn.estimated, turn.outcome) == (True, True, "upstream_broke")
        assert turn.usage[0]["uncached"] == 10
        assert turn.usage[0]["output"] == len("half of it " * 40) // 4
        assert turn.cost_micro_usd == 10 * 3 + 110 * 15

    def test_a_caller_who_left_behind_the_last_event_had_it_all(self, dewey: Dewey) -> None:
        exchanges = turns(["one", "two"])
        write(dewey.home, [attrs.evolve(each, outcome="caller_left") for each in exchanges[:1]])
        cut = Exchange(2, request([user("x")]), events("y", cut=True), outcome="caller_left", session="other")
        write(dewey.home, [cut])
        dewey.work()
        assert [(turn.outcome, turn.partial) for turn in dewey.turns()] == [("completed", False), ("caller_left", True)]

    def test_no_end_means_interrupted_once_the_gateway_is_back(self, dewey: Dewey) -> None:
        with SpoolWriter(dewey.home / "spool", "test") as writer:
            exchange = Exchange(1, request([user("one")]), events("half", cut=True), outcome="")
            for kind, payload in exchange.frames():
                writer.write(kind, exchange.key, payload)
            writer.write(Kind.NOTE, NO_EXCHANGE, STARTED)
        dewey.work()
        (turn,) = dewey.turns()
        assert (turn.outcome, turn.partial) == ("interrupted", True)
        assert said(turn) == (["one"], ["half"])

    def test_a_gap_is_told_and_no_hash_is_made_up(self, dewey: Dewey) -> None:
        exchange = Exchange(1, request([user("one")]), events("answer"))
        with SpoolWriter(dewey.home / "spool", "test") as writer:
            for kind, payload in exchange.frames():
                if kind == Kind.END:
                    gap = gap_payload(Gap(exchange.key, Kind.RESPONSE_BYTES, 500, 77))
                    writer.write(Kind.GAP, exchange.key, gap)
                writer.write(kind, exchange.key, payload)
        dewey.work()
        (turn,) = dewey.turns()
        assert turn.notes == ("gap: 77 bytes of the response from byte 500 on are not on record",)
        assert (turn.response_sha256, bool(turn.request_sha256)) == ("", True)

    def test_what_is_no_model_api_is_on_record_too(self, dewey: Dewey) -> None:
        write(dewey.home, [Exchange(1, b"", [b"hello"], target="/some/path", method="GET", answers=())])
        dewey.work()
        (turn,) = dewey.turns()
        assert (turn.target, turn.dialect, turn.status, turn.response_size) == ("/some/path", None, 200, 5)

    @pytest.mark.parametrize("record", ["metadata", "off"])
    def test_without_bodies_there_are_facts_alone(self, dewey: Dewey, record: str) -> None:
        write(dewey.home, [Exchange(1, b"", (), record=record)])
        dewey.work()
        (turn,) = dewey.turns()
        assert (turn.status, turn.session, turn.added, turn.request_sha256) == (
            200,
            "5f1c2e4a-8f6b-4d5e-9a7c-0123456789ab@alice",
            (),
            "",
        )

    @pytest.mark.parametrize(
        "body",
        [
            b"{",
            b"[]",
            b"null",
            b"\xff\xfe",
            b'{"messages": 5}',
            b'{"messages": [[[',
            b"[" * 200_000,
            b'{"messages":[{"role":1}]}',
        ],
        ids=lambda body: repr(body[:12]),
    )
    def test_a_body_that_is_none_is_kept_raw_and_listed(self, dewey: Dewey, body: bytes) -> None:
        write(dewey.home, [Exchange(1, body, events("answer")), *turns(["fine"], first=2, session="other")])
        dewey.work()
        odd, fine = dewey.turns()
        assert said(fine) == (["fine"], ["re: fine"])
        assert odd.request_size == len(body)
        assert odd.raw_kept
        if odd.facts.get("unreadable"):
            assert len(dewey.problems()) == 1

    def test_a_poison_record_blocks_nobody(self, dewey: Dewey, monkeypatch: pytest.MonkeyPatch) -> None:
        write(dewey.home, turns(["one", "poison", "three"]))
        place = ingest_module.Placer.place

        def poisoned(self: Any, entry: Any) -> Any:
            if entry.prompt is not None and "poison" in str(entry.prompt.messages[-1]):
                raise ZeroDivisionError
            return place(self, entry)

        monkeypatch.setattr(ingest_module.Placer, "place", poisoned)
        dewey.work()
        found = {str(turn.facts["name"]): turn for turn in dewey.turns()}
        assert len(found) == 3
        bad = [turn for turn in found.values() if turn.facts.get("unreadable")]
        assert [str(turn.facts["unreadable"]) for turn in bad] == ["not stored as read: ZeroDivisionError: "]
        assert dewey.problems() == ["not stored as read: ZeroDivisionError: "]


class TestInstances:
    def test_three_share_a_spool(self, dewey: Dewey) -> None:
        for number in range(3):
            write(dewey.home, turns(["one", "two"], first=1 + 10 * number, session=f"s-{number}"))
        dewey.work()
        assert len(dewey.turns()) == 6
        assert len(dewey.rows("SELECT * FROM position")) == 3

    def test_one_librarian_at_a_time(self, dewey: Dewey) -> None:
        with lock(dewey.home), pytest.raises(Busy, match="another librarian"), lock(dewey.home):
            pass


class TestSealing:
    def test_what_is_read_is_packed_and_reads_the_same(self, dewey: Dewey) -> None:
        write(dewey.home, turns(["one", "two"]))
        dewey.age()
        dewey.work()
        assert list(dewey.layout.spool.iterdir()) == []
        assert len(archived_in(dewey.layout.archive)) == 1
        dewey.work()
        assert len(dewey.turns()) == 2
        assert dewey.verify().faults == []
        assert dewey.verify().raw == 2

    def test_old_ones_go_and_what_was_said_stays(self, dewey: Dewey) -> None:
        write(dewey.home, turns(["one"]))
        dewey.age()
        dewey.work()
        for path in dewey.layout.archive.iterdir():
            os.utime(path, (1.0, 1.0))
        dewey.work(Retention(raw_days=1.0))
        (turn,) = dewey.turns()
        assert (said(turn), turn.raw_kept) == ((["one"], ["re: one"]), False)

    def test_too_many_go_the_oldest_first_but_for_pinned_ones(self, dewey: Dewey) -> None:
        for number in (1, 2, 3):
            write(dewey.home, turns([f"text {number}"], first=number, session=f"s-{number}"))
            dewey.age()
            dewey.work()
        write_pin(dewey.layout.spool, "test", "s-1@alice", pinned=True)
        dewey.age()
        dewey.work()
        for number, name in enumerate(archived_in(dewey.layout.archive)):
            os.utime(path_of(dewey.layout.archive, name), (1000.0 + number,) * 2)
        sizes = [path_of(dewey.layout.archive, name).stat().st_size for name in archived_in(dewey.layout.archive)]
        with lock(dewey.home):
            librarian = Librarian(dewey.home, prices(), Retention(raw_days=0, raw_size=sum(sizes[2:]) + 1))
            would = librarian.tidy(dry_run=True)
            assert librarian.tidy() == would
            librarian.close()
        kept = {str(turn.facts["name"]): turn.raw_kept for turn in dewey.turns()}
        assert [kept[str(name)] for name in sorted(kept)] == [True, False, True]


class TestNotes:
    def test_forget_leaves_nothing_anywhere(self, dewey: Dewey) -> None:
        write(dewey.home, turns(["keep this"], session="s-1"))
        write(dewey.home, turns(["canary words", "canary more"], first=5, session="s-2"))
        dewey.age()
        dewey.work()
        write(dewey.home, turns(["canary live"], first=8, session="s-2"))
        dewey.work()
        uuids = [row[0] for row in dewey.rows("SELECT uuid FROM exchange WHERE at > 1760000004")]
        write_forget(dewey.layout.spool, "test", uuids)
        dewey.work()
        assert [said(turn)[0] for turn in dewey.turns()] == [["keep this"]]
        layout = dewey.layout
        for path in [layout.store, *layout.spool.iterdir()]:
            assert b"canary" not in path.read_bytes(), path
        for name in archived_in(layout.archive):
            fd = open_archived(layout.archive, name)
            assert b"canary" not in os.pread(fd, 10**7, 0), name
            os.close(fd)
        assert dewey.verify().faults == []

    def test_a_pin_is_kept_and_taken_back(self, dewey: Dewey) -> None:
        write(dewey.home, turns(["one"]))
        dewey.work()
        for pinned in (True, False):
            write_pin(dewey.layout.spool, "test", dewey.turns()[0].session, pinned=pinned)
            dewey.work()
            assert dewey.rows("SELECT pinned FROM session")[0][0] == pinned


class TestRebuild:
    def test_gives_the_same_again(self, dewey: Dewey) -> None:
        write(dewey.home, turns(["one", "two"]))
        write(dewey.home, [Exchange(7, b"{", events("x"))])
        dewey.work()
        before = dewey.turns()
        with lock(dewey.home):
            done = rebuild(dewey.layout, reading(), lambda _: None)
        assert (done.read, done.carried) == (3, 0)
        assert dewey.turns() == before
        assert dewey.verify().faults == []

    def test_carries_over_what_no_segment_tells_any_more(self, dewey: Dewey) -> None:
        write(dewey.home, turns(["one", "two"]))
        dewey.age()
        dewey.work()
        for path in dewey.layout.archive.iterdir():
            path.unlink()
        more = turns(["one", "two", "three"])[2:]
        write(dewey.home, more)
        dewey.work()
        write_pin(dewey.layout.spool, "test", dewey.turns()[0].session, pinned=True)
        dewey.work()
        before = dewey.turns()
        with lock(dewey.home):
            done = rebuild(dewey.layout, reading(), lambda _: None)
        assert (done.read, done.carried) == (1, 2)
        assert dewey.turns() == before
        assert dewey.rows("SELECT pinned FROM session")[0][0] == 1

    def test_what_was_erased_stays_so(self, dewey: Dewey) -> None:
        write(dewey.home, turns(["one", "two"]))
        dewey.work()
        write_forget(dewey.layout.spool, "test", [key(2)])
        dewey.work()
        with lock(dewey.home):
            rebuild(dewey.layout, reading(), lambda _: None)
        assert [said(turn)[0] for turn in dewey.turns()] == [["one"]]

    @pytest.mark.parametrize("how", ["deleted", "damaged"])
    def test_needs_no_store(self, dewey: Dewey, how: str) -> None:
        write(dewey.home, turns(["one", "two"]))
        dewey.work()
        before = dewey.turns()
        dewey.layout.store.unlink() if how == "deleted" else dewey.layout.store.write_bytes(b"x" * 5000)
        with lock(dewey.home):
            rebuild(dewey.layout, reading(), lambda _: None)
        assert [said(turn) for turn in dewey.turns()] == [said(turn) for turn in before]


class TestTrouble:
    def test_a_locked_store_is_tried_again(self, dewey: Dewey, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("kgb_gateway.dewey.store.database.BUSY_SECONDS", 0.05)
        dewey.work()
        write(dewey.home, turns(["one"]))
        with lock(dewey.home):
            librarian = Librarian(dewey.home, prices())
            other = sqlite3.connect(dewey.layout.store, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                librarian.step()
            other.execute("ROLLBACK")
            other.close()
            assert librarian.step() == 1
            librarian.close()
        assert len(dewey.turns()) == 1

    def test_a_full_disk_loses_nothing(self, dewey: Dewey) -> None:
        """SQLite's own "database or disk is full", at many places on the way."""
        write(dewey.home, turns([random.Random(number).randbytes(20_000).hex() for number in range(3)]))
        with lock(dewey.home):
            librarian = Librarian(dewey.home, prices())
            db = librarian.store.connection
            pages = db.execute("PRAGMA page_count").fetchone()[0]
            refused = 0
            while not librarian.ingest.totals.exchanges:
                db.execute(f"PRAGMA max_page_count = {pages}")
                try:
                    librarian.step()
                except sqlite3.OperationalError as error:
                    assert "full" in str(error)
                    refused += 1
                pages += 10
            db.execute("PRAGMA max_page_count = 4294967294")
            librarian.finish()
            librarian.close()
        assert refused > 1
        assert [turn.outcome for turn in dewey.turns()] == ["completed"] * 3
        assert dewey.problems() == []

    def test_a_store_that_may_not_be_written_is_read_as_it_stands(
        self, dewey: Dewey, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A data directory on a disk that is mounted read-only, as seen by the calls on it."""
        write(dewey.home, turns(["one"]))
        dewey.work()
        write(dewey.home, turns(["two"], first=5))

        def refuse(home: Path) -> None:
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr("kgb_gateway.commands.dewey.common.lock", refuse)
        assert main(["dewey", "list", "--json", "--data-dir", str(dewey.home)]) == 0
        said = capsys.readouterr()
        assert len(json.loads(said.out)) == 1
        assert "what is new is not taken in: [Errno 30] Read-only file system" in said.err

    def test_a_deleted_store_is_made_anew(self, dewey: Dewey) -> None:
        write(dewey.home, turns(["one"]))
        dewey.work()
        for path in dewey.home.glob("dewey.db*"):
            path.unlink()
        dewey.work()
        assert len(dewey.turns()) == 1

    @pytest.mark.parametrize("seed", range(20))
    def test_a_flipped_bit_costs_one_exchange_at_most(self, dewey: Dewey, seed: int) -> None:
        write(dewey.home, turns(["one", "two", "three"]))
        (path,) = dewey.layout.spool.iterdir()
        data = bytearray(path.read_bytes())
        place = random.Random(seed).randrange(200, len(data))
        data[place] ^= 1 << seed % 8
        path.write_bytes(data)
        dewey.work()
        whole = [turn for turn in dewey.turns() if turn.request_sha256 and turn.response_sha256]
        assert len(whole) >= 2, (place, dewey.problems())
        assert dewey.problems()

    def test_any_torn_end_is_read_up_to_it(self, dewey: Dewey) -> None:
        write(dewey.home, turns(["one", "two"]))
        (path,) = dewey.layout.spool.iterdir()
        data = path.read_bytes()
        for end in range(len(data) - 1, 0, -97):
            for each in dewey.home.glob("dewey.db*"):
                each.unlink()
            path.write_bytes(data[:end])
            dewey.work()
            if dewey.layout.archive.exists():
                for each in dewey.layout.archive.iterdir():
                    each.unlink()
            assert len(dewey.turns()) <= 2


CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from kgb_gateway.dewey import ingest
    from kgb_gateway.dewey.librarian import Librarian, lock
    from tests.spools import prices
    ingest.BATCH_EXCHANGES = 3
    home = Path(sys.argv[1])
    with lock(home):
        librarian = Librarian(home, prices())
        print("ready", flush=True)
        while True:
            librarian.step()
    """
)


@pytest.mark.soak
def test_kill_9_of_the_librarian_at_any_moment_doubles_and_loses_nothing(dewey: Dewey) -> None:
    """200 times: a child takes in a spool that grows, and is killed somewhere in it."""
    rnd = random.Random(11)
    sent: list[Exchange] = []
    for round_number in range(200):
        number = len(sent) + 1
        new = turns([f"text {n}" for n in range(6)], first=number, session=f"s-{round_number}")
        interleaved(dewey.home, new)
        sent += new
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(dewey.home)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        try:
            child.wait(rnd.random() * 0.03)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
        child.stdout.close()
        dewey.age()
    dewey.work()
    found = dewey.turns()
    assert len(found) == len(sent)
    assert len({turn.exchange for turn in found}) == len(sent)
    assert dewey.verify().faults == []


def test_json_of_a_report_can_be_printed(dewey: Dewey) -> None:
    write(dewey.home, turns(["one"]))
    dewey.work()
    assert json.loads(json.dumps(attrs.asdict(dewey.verify())))["exchanges"] == 1

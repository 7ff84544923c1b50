"""Every store holds to one suite: what goes in comes out, once, whatever it was and however often it came."""

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest

from kgb_gateway.dewey.canon import to_json
from kgb_gateway.dewey.document import Turn
from kgb_gateway.dewey.entry import Entry, Position, Priced, Problem
from kgb_gateway.dewey.identity import Identity
from kgb_gateway.dewey.linking import Relation
from kgb_gateway.dewey.placing import Placer
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.database import (
    StoreError,
    migrate,
    migrations,
    newest,
    open_reader,
    open_writer,
    version_of,
)
from kgb_gateway.dewey.store.erase import Eraser
from kgb_gateway.dewey.store.reader import Filter, StoreReader
from kgb_gateway.dewey.store.search import parse, search, snippet_of
from kgb_gateway.dewey.store.sqlite import SqliteWriter
from kgb_gateway.dewey.store.stats import MEASURES, stats
from kgb_gateway.dewey.transcripts.model import Block, Dialect, Kind, Message, Prompt, Reply, View
from kgb_gateway.dewey.usage import Usage
from tests.spools import key

MARK = {"type": "ephemeral"}


def view(_: Dialect, block: Block) -> View:
    return View(block.kind, str(block.value.get("text", "")), str(block.value.get("name", "")))


def said(role: str, *texts: str, **more: Any) -> Message:
    return Message(role, tuple(Block(Kind.TEXT, {"type": "text", "text": text, **more}) for text in texts))


def entry(number: int, *asked: str, reply: str | None = None, session: str = "s-1", **more: Any) -> Entry:
    """A turn: ``asked`` are user and assistant in turns."""
    messages = tuple(said("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(asked))
    return Entry(
        key(number),
        name=f"exchange-{number}",
        at=1000.0 + number,
        status=200,
        outcome="completed",
        caller="alice",
        dialect=Dialect.ANTHROPIC_MESSAGES,
        surface="turn",
        segment="a-00000000000000000001-0000.seg",
        prompt=Prompt(
            Dialect.ANTHROPIC_MESSAGES,
            "claude-x",
            True,
            (Block(Kind.TEXT, {"type": "text", "text": "You help."}),),
            ({"name": "Bash"},),
            messages,
            params={"max_tokens": 100},
        ),
        reply=None
        if reply is None
        else Reply(Dialect.ANTHROPIC_MESSAGES, "msg_1", "claude-x", (said("assistant", reply),)),
        identity=Identity("claude-code", session),
        **more,
    )


@attrs.define
class Store:
    """A store and what is needed to fill it."""

    layout: Layout
    writer: SqliteWriter
    placer: Placer
    eraser: Eraser
    opened: ExitStack

    def add(self, *entries: Entry) -> None:
        with self.writer.transaction():
            for each in entries:
                self.writer.add(self.placer.place(each))

    def reader(self) -> StoreReader:
        return self.opened.enter_context(StoreReader(self.layout))

    def turns(self) -> list[Turn]:
        with StoreReader(self.layout) as reader:
            return [turn for each in reader.conversations() for turn in each.turns]

    def count(self, table: str) -> int:
        found: int = self.writer.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return found


@pytest.fixture(params=["sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    assert request.param == "sqlite"
    layout = Layout(tmp_path)
    writer = SqliteWriter(layout.store, view)
    with ExitStack() as opened:
        opened.callback(writer.close)
        yield Store(layout, writer, Placer(writer), Eraser(writer), opened)


class TestWhatGoesIn:
    def test_comes_out_as_it_was(self, store: Store) -> None:
        priced = Priced(Usage("claude-x", 5, 6, 7, 8, 9, 2, {"web_search_requests": 1}), 1234)
        reply = Reply(
            Dialect.ANTHROPIC_MESSAGES,
            "msg_9",
            "claude-y",
            (said("assistant", "hi", citations=[{"x": 1}]),),
            "end_turn",
            {"input_tokens": 5},
            complete=True,
            rest={"container": {"id": "c"}},
            unknown=({"type": "new_event"},),
        )
        whole = attrs.evolve(
            entry(1, "hello", facts={"session": "x"}, notes=("a gap",), request_headers=(("A", "b"),)),
            reply=reply,
            usage=(priced,),
            cost=1234,
            prices="v1",
            duration=2.5,
            first_byte=0.5,
            request_sha256=b"r" * 32,
            project="/home/u/proj",
        )
        store.add(whole)
        (turn,) = store.turns()
        assert turn.exchange == str(uuid.UUID(bytes=key(1)))
        assert (turn.model, turn.stop_reason, turn.reply_id) == ("claude-y", "end_turn", "msg_9")
        assert (turn.added, turn.replies) == ((said("user", "hello"),), reply.messages)
        assert (turn.system[0].value["text"], turn.tools, turn.params) == (
            "You help.",
            ({"name": "Bash"},),
            {"max_tokens": 100},
        )
        assert turn.reported == {"input_tokens": 5}
        assert turn.usage[0]["cache_write_1h"] == 8
        assert turn.usage[0]["server_tools"] == {"web_search_requests": 1}
        assert (turn.cost_micro_usd, turn.price_version, turn.duration) == (1234, "v1", 2.5)
        assert (turn.request_sha256, turn.response_sha256) == ((b"r" * 32).hex(), "")
        assert turn.request_headers == (("A", "b"),)
        assert turn.notes == ("a gap",)
        assert turn.facts["rest"] == {"container": {"id": "c"}}
        assert turn.facts["unknown"] == [{"type": "new_event"}]
        assert (turn.project, turn.session) == ("/home/u/proj", "s-1@alice")

    def test_is_there_once_however_often_it_comes(self, store: Store) -> None:
        store.add(entry(1, "hello", reply="hi"), entry(1, "hello", reply="hi"))
        store.add(entry(1, "other"))
        assert store.count("exchange") == 1
        assert [turn.replies for turn in store.turns()] == [(said("assistant", "hi"),)]

    def test_costs_what_is_new_in_it(self, store: Store) -> None:
        texts: list[str] = []
        for number in range(1, 31):
            texts.append(f"question {number}")
            store.add(entry(number, *texts, reply=f"answer {number}"))
            texts.append(f"answer {number}")
        assert store.count("exchange") == 30
        assert store.count("node") == 60
        # Thirty questions, thirty answers, and once each: system, tools and parameters.
        assert store.count("block") == 63

    def test_keeps_cache_marks_beside(self, store: Store) -> None:
        marked = entry(1, "hello")
        assert marked.prompt is not None
        messages = (said("user", "hello", cache_control=MARK),)
        store.add(attrs.evolve(marked, prompt=attrs.evolve(marked.prompt, messages=messages)))
        store.add(entry(2, "hello", "hi", "more"))
        first, second = store.turns()
        assert first.facts["marks"] == [[0, 0, -1, MARK]]
        assert second.shared == 1
        assert second.relation == Relation.APPENDED

    @pytest.mark.parametrize("odd", ["a\0b", "\ud800", "x" * 20_000_000, "'; DROP TABLE block; --", "\u202e"])
    def test_may_hold_anything(self, store: Store, odd: str) -> None:
        store.add(entry(1, odd, reply=odd))
        (turn,) = store.turns()
        assert turn.added[0].blocks[0].value["text"] == odd
        assert turn.replies[0].blocks[0].value["text"] == odd

    def test_may_name_itself_as_it_likes(self, store: Store) -> None:
        odd = entry(1, "hello", target="/\ud800", session="\ud800x")
        assert odd.prompt is not None
        store.add(attrs.evolve(odd, prompt=attrs.evolve(odd.prompt, model="m\ud800", params={"\ud800": 10**400})))
        (turn,) = store.turns()
        assert turn.params == {"\ud800": 10**400}
        assert turn.model == "m?"


class TestTransactions:
    def test_what_failed_leaves_nothing(self, store: Store) -> None:
        def fail() -> None:
            with store.writer.transaction():
                store.writer.add(store.placer.place(entry(1, "hello", reply="hi")))
                store.writer.set_position(Position("a", "seg", 5, 6))
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert store.count("exchange") == store.count("block") == 0
        assert store.writer.positions() == {}
        store.add(entry(1, "hello", reply="hi"))
        assert store.turns()[0].replies == (said("assistant", "hi"),)

    def test_one_attempt_may_fail_alone(self, store: Store) -> None:
        def fail() -> None:
            with store.writer.attempt():
                store.writer.add(store.placer.place(entry(1, "hello", reply="hi")))
                raise RuntimeError

        with store.writer.transaction():
            with pytest.raises(RuntimeError):
                fail()
            store.writer.add(store.placer.place(entry(2, "hello", reply="hi")))
        assert [turn.facts["name"] for turn in store.turns()] == ["exchange-2"]

    def test_positions_and_problems_are_kept(self, store: Store) -> None:
        with store.writer.transaction():
            store.writer.set_position(Position("a", "seg", 5, 6))
            store.writer.set_position(Position("a", "seg2", 7, 8))
            store.writer.add_problem(Problem(1.0, "a", "seg", 5, "why \ud800", key(1)))
        assert store.writer.positions() == {"a": Position("a", "seg2", 7, 8)}
        assert store.count("problem") == 1


class TestLinks:
    def test_are_found_by_the_session_and_survive_a_restart(self, store: Store) -> None:
        store.add(entry(1, "hello", reply="hi"))
        writer = SqliteWriter(store.layout.store, view)
        store.opened.callback(writer.close)
        placed = Placer(writer).place(entry(2, "hello", "hi", "more"))
        assert placed.link.relation == Relation.APPENDED
        assert placed.link.replied
        assert placed.conversation == store.turns()[0].conversation

    def test_are_found_by_what_was_said_where_no_session_is_named(self, store: Store) -> None:
        store.add(entry(1, "hello", reply="hi", session=""))
        store.add(entry(2, "hello", "hi", "more", reply="yes", session=""))
        store.add(entry(3, "something else", session=""))
        first, second, third = store.turns()
        assert first.session == second.session == key(1).hex()
        assert second.relation == Relation.APPENDED
        assert third.session == key(3).hex()

    def test_never_join_two_callers(self, store: Store) -> None:
        store.add(entry(1, "hello", reply="hi"), entry(2, "hello", reply="hi", session=""))
        bob = attrs.evolve(entry(3, "hello", "hi", "more"), caller="bob")
        store.add(bob, attrs.evolve(entry(4, "hello", "hi", "more", session=""), caller="bob"))
        sessions = {turn.facts["name"]: turn.session for turn in store.turns()}
        assert sessions["exchange-3"] == "s-1@bob"
        assert sessions["exchange-4"] != sessions["exchange-2"]

    def test_a_turn_tells_what_is_new_in_it(self, store: Store) -> None:
        store.add(entry(1, "hello", reply="hi"), entry(2, "hello", "hi", "more", reply="yes"))
        second = store.turns()[1]
        assert (second.shared, second.replied, second.added) == (1, True, (said("user", "more"),))
        assert store.reader().request(2).added == (said("user", "hello"), said("assistant", "hi"), said("user", "more"))


class TestFinding:
    def test_sessions_newest_first_with_their_sums(self, store: Store) -> None:
        priced = Priced(Usage("claude-x", 100, 50, 0, 0, 20), 3000)
        store.add(entry(1, "first words", reply="hi", usage=(priced,), cost=3000))
        store.add(
            entry(2, "first words", "hi", "more", usage=(priced,), cost=2000), entry(3, "elsewhere", session="s-2")
        )
        newest_one, oldest = store.reader().sessions(Filter(), 10)
        assert newest_one["key"] == "s-2@alice"
        assert (oldest["turns"], oldest["tokens_in"], oldest["tokens_out"], oldest["cost"]) == (2, 300, 40, 5000)
        assert (oldest["title"], oldest["agent"], oldest["models"]) == ("first words", "claude-code", "claude-x")

    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            (Filter(), {"s-1@alice", "s-2@bob"}),
            (Filter(caller="bob"), {"s-2@bob"}),
            (Filter(caller="b*"), {"s-2@bob"}),
            (Filter(model="gpt*"), set()),
            (Filter(model="claude-*"), {"s-1@alice", "s-2@bob"}),
            (Filter(outcome="caller_left"), {"s-2@bob"}),
            (Filter(since=1002.0), {"s-2@bob"}),
            (Filter(until=1002.0), {"s-1@alice"}),
            (Filter(project="/p"), {"s-1@alice"}),
            (Filter(agent="claude*"), {"s-1@alice", "s-2@bob"}),
            (Filter(session="s-1@alice"), {"s-1@alice"}),
            (Filter(costs=5), {"s-1@alice"}),
            (Filter(costs=500), set()),
        ],
        ids=str,
    )
    def test_filters(self, store: Store, wanted: Filter, found: set[str]) -> None:
        store.add(entry(1, "hello", cost=7, project="/p"))
        other = attrs.evolve(entry(2, "other", session="s-2"), caller="bob", outcome="caller_left")
        store.add(other)
        assert {row["key"] for row in store.reader().sessions(wanted, 10)} == found

    def test_ids_may_be_shortened(self, store: Store) -> None:
        store.add(entry(1, "hello", reply="hi"), entry(2, "other", session="s-2"))
        reader = store.reader()
        conversation = store.turns()[0].conversation
        assert reader.find(conversation) == ("conversation", 1)
        assert reader.find(conversation[:6]) == ("conversation", 1)
        assert reader.find("s-1") == ("session", 1)
        assert reader.find("exchange-2") == ("exchange", 2)
        assert reader.find(str(uuid.UUID(bytes=key(2)))) == ("exchange", 2)
        assert reader.find("last") == ("conversation", 2)
        assert reader.find("nothing-like-it") is None
        with pytest.raises(ValueError, match="may mean"):
            reader.find("s-")

    def test_words(self, store: Store) -> None:
        store.add(
            entry(1, "call parse_name(x) in /usr/lib/foo.py", reply="The segment reader is slow"),
            entry(2, "nothing like it; Zürich", session="s-2"),
        )
        reader = store.reader()

        def hits(query: str) -> list[str]:
            return [hit.snippet for hit in search(reader.connection, query, view)]

        assert len(hits("parse_name")) == 1
        assert len(hits("PARSE_NAME")) == 1
        assert len(hits("pars*")) == 1
        assert len(hits("/usr/lib/foo.py")) == 1
        assert len(hits('"segment reader"')) == 1
        assert hits('"reader segment"') == []
        assert len(hits("reader segment")) == 1
        assert hits("segment -slow") == []
        assert len(hits("zurich")) == 1
        assert hits("segm") == []
        assert len(hits("You help")) == 0, "system prompts are not what people look for"
        assert [hit.role for hit in search(reader.connection, "segment", view)] == ["assistant"]
        session = reader.session_row("s-2@alice")
        assert [hit.exchange for hit in search(reader.connection, "nothing", view, session=session)] == [2]
        assert search(reader.connection, "segment", view, session=session) == []

    @pytest.mark.parametrize("query", ["", "  ", "-", "-word", "***", '"', "( OR )".replace("OR", "")])
    def test_a_search_for_nothing_says_so(self, query: str) -> None:
        with pytest.raises(ValueError, match="no word"):
            parse(query)

    @pytest.mark.parametrize("query", ["a OR b", "NEAR(a b)", "x AND", "text: y", "^z", 'say "open', "a + b", "{a}"])
    def test_no_query_is_taken_for_a_language(self, store: Store, query: str) -> None:
        store.add(entry(1, "hello"))
        assert search(store.reader().connection, query, view) == []

    def test_a_snippet_marks_the_words(self) -> None:
        snippet, marks = snippet_of("x " * 100 + "the parse_name function" + " y" * 100, parse("parse_name"))
        assert snippet.startswith("… ")
        assert [snippet[start:end] for start, end in marks] == ["parse_name"]

    def test_sums_by_everything(self, store: Store) -> None:
        priced = Priced(Usage("claude-x", 100, 50, 0, 0, 20), 3000)
        store.add(entry(1, "hello", usage=(priced,), cost=3000, first_byte=0.5), entry(2, "other", session="s-2"))
        for by in MEASURES:
            found = stats(store.reader().connection, Filter(), by, store.layout)
            assert sum(int(str(row["exchanges"])) for row in found.rows) == 2, by
            assert sum(int(str(row["cost"])) for row in found.rows) == 3000, by
        (alice,) = stats(store.reader().connection, Filter(), "caller", store.layout).rows
        assert (alice["tokens_in"], alice["cached"], alice["first_byte"]) == (150, 50, 0.5)


class TestErasing:
    def test_takes_what_nobody_else_uses(self, store: Store) -> None:
        store.add(
            entry(1, "shared words", reply="hi"),
            entry(2, "shared words", "hi", "secret canary", reply="canary answer"),
            entry(3, "shared words", session="s-2"),
        )
        with store.writer.transaction():
            assert store.eraser.forget([key(2), key(99)], 5.0) == 1
        store.eraser.scrub()
        assert sorted(str(turn.facts["name"]) for turn in store.turns()) == ["exchange-1", "exchange-3"]
        assert search(store.reader().connection, "canary", view) == []
        assert len(search(store.reader().connection, "shared", view)) == 1
        store.writer.connection.execute("INSERT INTO words (words) VALUES ('integrity-check')")

    def test_leaves_nothing_in_the_files(self, store: Store) -> None:
        store.add(entry(1, "kept words"), entry(2, "canary" * 20, reply="canaryreply", session="s-2"))
        with store.writer.transaction():
            store.eraser.forget([key(2)], 5.0)
        store.eraser.scrub()
        for path in store.layout.home.iterdir():
            assert b"canary" not in path.read_bytes(), path
        assert b"kept words" in store.layout.store.read_bytes()

    def test_of_everything_leaves_nothing(self, store: Store) -> None:
        store.add(entry(1, "a", reply="b"), entry(2, "a", "b", "c", reply="d"), entry(3, "x", session="s-2"))
        with store.writer.transaction():
            store.eraser.forget([key(2), key(1), key(3)], 5.0)
        for table in ("exchange", "node", "message", "part", "block", "session", "conversation", "usage"):
            assert store.count(table) == 0, table

    def test_is_for_good(self, store: Store) -> None:
        store.add(entry(1, "a"))
        with store.writer.transaction():
            store.eraser.forget([key(1)], 5.0)
        store.add(entry(1, "a"))
        assert store.count("exchange") == 0

    def test_a_dropped_exchange_may_come_again(self, store: Store) -> None:
        store.add(entry(1, "a"))
        with store.writer.transaction():
            assert store.eraser.drop([1, 7]) == 1
        store.add(entry(1, "a"))
        assert store.count("exchange") == 1


class TestFile:
    def test_is_for_its_owner_alone(self, store: Store) -> None:
        store.add(entry(1, "a"))
        for path in store.layout.home.iterdir():
            assert path.stat().st_mode & 0o077 == 0, path

    def test_a_reader_cannot_write(self, store: Store) -> None:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            store.reader().connection.execute("DELETE FROM exchange")

    def test_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="nothing has been recorded"):
            open_reader(tmp_path / "no.db")

    def test_a_newer_one_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "dewey.db"
        open_writer(path).execute(f"PRAGMA user_version = {newest() + 1}").connection.close()
        for open_it in (open_writer, open_reader):
            with pytest.raises(StoreError, match="written by a newer one"):
                open_it(path)

    def test_one_of_another_program_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "dewey.db"
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 1")
        db.close()
        with pytest.raises(StoreError, match="another program"):
            open_writer(path)

    def test_no_database_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "dewey.db"
        path.write_bytes(b"this is no database" * 100)
        for open_it in (open_writer, open_reader):
            with pytest.raises(StoreError, match="rebuild"):
                open_it(path)

    def test_an_older_one_is_brought_up_to_date_in_place(self, tmp_path: Path) -> None:
        path = tmp_path / "dewey.db"
        db = sqlite3.connect(path, isolation_level=None)
        for number, _ in migrations():
            migrate(db, number)
            assert version_of(db) == number
        db.close()
        open_writer(path).close()
        open_reader(path).close()

    def test_an_empty_one_tells_a_reader_what_to_do(self, tmp_path: Path) -> None:
        path = tmp_path / "dewey.db"
        sqlite3.connect(path).close()
        path.touch()
        with pytest.raises(StoreError, match="older version"):
            open_reader(path)

    def test_blocks_are_packed(self, store: Store) -> None:
        store.add(entry(1, "many words " * 1000))
        row = store.writer.connection.execute(
            "SELECT size, codec, length(data) FROM block ORDER BY size DESC"
        ).fetchone()
        assert row[0] == len(to_json({"type": "text", "text": "many words " * 1000}))
        assert row[1] == 1
        assert row[2] < 200

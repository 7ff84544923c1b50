"""Linking: what a turn is to the turns before it, told by hashes alone."""

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.dewey.linking import TWIN_SECONDS, Asked, Known, Link, Relation, link, shared

SYSTEM = b"system and tools"


def chain(*messages: str) -> tuple[bytes, ...]:
    """A hash for each message, over all up to it."""
    hashes: list[bytes] = []
    for message in messages:
        hashes.append(hashlib.sha256((hashes[-1] if hashes else b"") + message.encode()).digest())
    return tuple(hashes)


def ask(*messages: str, model: str = "m", **more: object) -> Asked:
    same = hashlib.sha256(repr((messages, model, more.get("instructions", SYSTEM))).encode()).digest()
    return Asked(chain(*messages), same, **{"instructions": SYSTEM, "stream": True, **more})  # type: ignore[arg-type]


class Session:
    """Turns of one session, linked as they come; ``add`` gives the verdict on one."""

    def __init__(self) -> None:
        self.known: list[Known] = []

    def add(self, asked: Asked, messages: Sequence[str], reply: str = "", whole: bool = True) -> Link:
        verdict = link(asked, self.known)
        name = f"x{len(self.known)}"
        answered = chain(*messages, reply)[-1] if reply else b""
        conversation = verdict.conversation or f"c{len(self.known)}"
        self.known.append(Known(name, conversation, asked, answered, whole and bool(reply)))
        return verdict

    def turn(self, *messages: str, reply: str = "", whole: bool = True, **more: object) -> Link:
        return self.add(ask(*messages, **more), messages, reply, whole)  # type: ignore[arg-type]


@pytest.fixture
def session() -> Session:
    """A conversation of two turns."""
    session = Session()
    assert session.turn("hi", reply="hello") == Link(Relation.FIRST)
    assert session.turn("hi", "hello", "go on", reply="done") == Link(Relation.APPENDED, "c0", "x0", 1, True)
    return session


def test_a_turn_is_appended_to_the_turn_before_it(session: Session) -> None:
    verdict = session.turn("hi", "hello", "go on", "done", "and now?")
    assert verdict == Link(Relation.APPENDED, "c0", "x1", 3, True)


def test_a_reply_that_the_agent_trimmed_is_still_the_same_conversation(session: Session) -> None:
    verdict = session.turn("hi", "hello", "go on", "done, without its thinking", "and now?")
    assert verdict == Link(Relation.APPENDED, "c0", "x1", 3, False)


def test_a_failed_request_that_comes_again_is_a_retry(session: Session) -> None:
    messages = ("hi", "hello", "go on", "done", "more")
    session.turn(*messages)
    assert session.turn(*messages, reply="yes") == Link(Relation.RETRY, "c0", "x2", 5)
    assert session.turn(*messages).relation is Relation.REPEATED


def test_the_unstreamed_twin_of_a_broken_stream_is_told_from_a_retry(session: Session) -> None:
    messages = ("hi", "hello", "go on", "done", "more")
    session.turn(*messages, reply="ye", whole=False, at=100.0)
    assert link(ask(*messages, stream=False, at=130.0), session.known).relation is Relation.TWIN
    assert link(ask(*messages, stream=True, at=130.0), session.known).relation is Relation.RETRY
    late = ask(*messages, stream=False, at=100.0 + TWIN_SECONDS + 1)
    assert link(late, session.known).relation is Relation.RETRY


def test_another_model_asked_the_same_is_a_repetition(session: Session) -> None:
    assert session.turn("hi", "hello", "go on", model="other").relation is Relation.REPEATED


def test_a_changed_last_message_is_an_edit_and_an_earlier_one_a_fork(session: Session) -> None:
    session.turn("hi", "hello", "go on", "done", "one", reply="1")
    assert session.turn("hi", "hello", "go on", "done", "two") == Link(Relation.EDITED, "c0", "x2", 4)
    assert session.turn("hi", "hello", "elsewhere", "a", "b").relation is Relation.FORK
    assert session.turn("hi", "hello", "elsewhere", "a", "b", "c", "d").relation is Relation.APPENDED


def test_a_summary_goes_on_with_the_conversation(session: Session) -> None:
    verdict = session.turn("the story so far", summary=True)
    assert verdict == Link(Relation.COMPACTION, "c0", "x1")
    assert session.turn("the story so far", "and", "on").relation is Relation.APPENDED


def test_a_sub_agent_is_told_by_its_id_or_by_its_instructions(session: Session) -> None:
    assert session.turn("search this", agent_id="a1") == Link(Relation.SUB_AGENT, after="x1")
    assert session.turn("search this", "found", "more", agent_id="a1").relation is Relation.APPENDED
    assert session.turn("plan that", instructions=b"another system").relation is Relation.SUB_AGENT
    assert session.turn("hi", "hello", "go on", "done", "next").conversation == "c0"


def test_two_agents_with_the_same_first_words_stay_apart(session: Session) -> None:
    first = session.turn("search this", agent_id="a1", reply="x")
    second = session.turn("search this", agent_id="a2", reply="y")
    assert (first.relation, second.relation) == (Relation.SUB_AGENT, Relation.SUB_AGENT)
    assert session.known[2].conversation != session.known[3].conversation


def test_a_cleared_conversation_begins_anew(session: Session) -> None:
    assert session.turn("something else entirely") == Link(Relation.FIRST)


def test_a_utility_call_belongs_to_no_conversation(session: Session) -> None:
    assert session.turn("hi", utility="title") == Link(Relation.UTILITY, after="x1")
    assert session.turn("hi", "hello", "go on", "done", "x").relation is Relation.APPENDED
    assert link(ask("hi", utility="count_tokens"), ()) == Link(Relation.UTILITY)


def test_a_turn_without_messages_is_a_first_one() -> None:
    assert link(Asked((), b"x"), ()) == Link(Relation.FIRST)


words = st.lists(st.sampled_from("abc"), max_size=6)


@given(words, words)
def test_what_two_chains_share_is_found_by_halves(one: list[str], other: list[str]) -> None:
    slow = 0
    while slow < min(len(one), len(other)) and one[slow] == other[slow]:
        slow += 1
    assert shared(chain(*one), chain(*other)) == slow


@given(st.lists(st.tuples(words.filter(bool), st.booleans(), st.sampled_from(["", "a1"])), max_size=8))
def test_every_verdict_names_what_is_known(turns: list[tuple[list[str], bool, str]]) -> None:
    session = Session()
    for messages, whole, agent_id in turns:
        verdict = session.turn(*messages, reply="r", whole=whole, agent_id=agent_id)
        names = {turn.exchange: turn for turn in session.known[:-1]}
        assert verdict.after == "" or verdict.after in names
        if verdict.conversation:
            assert verdict.conversation == names[verdict.after].conversation
        assert (verdict.relation is Relation.FIRST) == (not verdict.after)

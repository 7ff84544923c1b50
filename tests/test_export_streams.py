"""What all writers have in common: they stream, report progress, and take what was recorded as it is."""

import io
import json
import weakref
from collections.abc import Iterator

import pytest
from hypothesis import given, settings

from kgb_gateway.dewey.document import Conversation, Turn
from kgb_gateway.dewey.export import writers
from kgb_gateway.dewey.show import show
from tests.documents import any_conversations, assistant, conversation, number, text, turns, user, view

FORMATS = ["jsonl", "markdown", "html", "har", "claude", "raw"]
TURNS = 20_000


def export(name: str, *conversations: Conversation) -> bytes:
    out = io.BytesIO()
    writers(view)[name](conversations, out, None)
    return out.getvalue()


class Source:
    """Many turns, made as they are asked for; it knows how many of them somebody still holds."""

    def __init__(self) -> None:
        self.held: list[weakref.ref[Turn]] = []
        self.most = 0
        self.made = 0

    def turns(self) -> Iterator[Turn]:
        for n in range(TURNS):
            self.held = [held for held in self.held if held() is not None]
            self.most = max(self.most, len(self.held))
            yield self._make(n)

    def _make(self, n: int) -> Turn:
        self.made += 1
        link = {"relation": "appended", "after": number(n - 1)} if n else {"relation": "first"}
        turn = Turn(number(n), added=(user(text("q")),), replies=(assistant(text("a")),), **link)  # type: ignore[arg-type]
        self.held.append(weakref.ref(turn))
        return turn


class Sink(io.RawIOBase):
    """Counts, and keeps nothing."""

    def __init__(self) -> None:
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.size += len(data)  # type: ignore[arg-type]
        return len(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FORMATS)
def test_twenty_thousand_turns_are_never_held_together(name: str) -> None:
    source, sink = Source(), Sink()
    writers(view)[name]([conversation(source.turns())], sink, None)  # type: ignore[arg-type]
    assert source.made == TURNS
    assert source.most <= 1
    assert sink.size > TURNS * 10


def test_showing_holds_no_turns_either() -> None:
    source = Source()
    assert sum(1 for _ in show(conversation(source.turns()), view)) > TURNS
    assert source.most <= 1


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_read_is_written_before_more_is_read(name: str) -> None:
    out, sizes = io.BytesIO(), []

    def source() -> Iterator[Turn]:
        for turn in turns():
            sizes.append(len(out.getvalue()))
            yield turn
        sizes.append(len(out.getvalue()))

    writers(view)[name]([conversation(source())], out, None)
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("name", FORMATS)
def test_progress_is_told(name: str) -> None:
    heard: list[int] = []
    writers(view)[name]([conversation(), conversation()], io.BytesIO(), heard.append)
    assert heard == [1, 2, 3, 4]


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_twice_is_the_same(name: str) -> None:
    assert export(name, conversation()) == export(name, conversation())


@pytest.mark.parametrize("name", ["jsonl", "claude", "raw"])
@settings(max_examples=40)
@given(of=any_conversations())
def test_lines_of_json_stay_lines_of_json(name: str, of: Conversation) -> None:
    out = export(name, of).decode("utf-8")
    lines = out.splitlines()
    assert "".join(f"{line}\n" for line in lines) == out
    for line in lines:
        assert isinstance(json.loads(line, parse_constant=_refuse), dict)
        assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in line)
    if name != "claude":
        assert len(lines) == len(list(of.turns))


@settings(max_examples=40)
@given(any_conversations())
def test_an_archive_stays_json(of: Conversation) -> None:
    log = json.loads(export("har", of), parse_constant=_refuse)["log"]
    assert len(log["entries"]) == len(list(of.turns))


def _refuse(constant: str) -> None:
    raise AssertionError(constant)


def test_nothing_to_write_is_a_whole_file() -> None:
    assert json.loads(export("har"))["log"]["entries"] == []
    assert export("html").endswith(b"</html>\n")
    assert export("jsonl") == export("raw") == export("claude") == export("markdown") == b""

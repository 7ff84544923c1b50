"""A conversation on a terminal: what it says, and that nothing in it acts on the terminal."""

import re

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgb_gateway.dewey import texts
from kgb_gateway.dewey.document import Conversation, Turn
from kgb_gateway.dewey.media import Media, media
from kgb_gateway.dewey.show import Fold, Style, diff, show
from kgb_gateway.dewey.transcripts.model import Block, Kind, Message, Prompt
from tests.documents import (
    CLAUDE,
    TEXTS,
    any_conversations,
    assistant,
    call,
    conversation,
    image,
    result,
    text,
    turns,
    user,
    view,
)

PLAIN = """\
A dot
main · claude-code · /home/ada · session s1 · c1

── 1  2026-05-28 20:26:40  claude-sonnet-4-5  in 12.3k (cached 11.9k) out 456  $0.0123  2.1 s ──────
system: system prompt, 16 characters, 1 tool
user:
    What is in this picture?
  [image: image/png, 70 B]
assistant:
  thinking: Let me see. A dot.
    A dot.
  call Bash t1
    {"command": "ls"}

── 2  2026-05-28 20:26:50  claude-sonnet-4-5  in 12.3k (cached 11.9k) out ~456  ~$2.50  1 min 15 s ─
[partial] [caller_left] [estimated] [transformed]
! gap: 100 bytes of the response are missing
  result t1
    file 0
    file 1
    file 2
    … 37 more lines
assistant:
    There are
[cut off here]"""

SGR = re.compile(r"\x1b\[[0-9;]*m")


def shown(of: Conversation, style: Style | None = None, **fold: object) -> str:
    return "\n".join(show(of, view, style, Fold(**fold)))  # type: ignore[arg-type]


def one(turn: Turn, style: Style | None = None, **fold: object) -> str:
    return shown(conversation([turn]), style, **fold)


def test_a_conversation_as_it_is_read() -> None:
    assert shown(conversation(), lines=3) == PLAIN


def test_colour_changes_nothing_but_the_colour() -> None:
    coloured = shown(conversation(), Style(colour=True), lines=3)
    assert coloured != PLAIN
    assert SGR.sub("", coloured) == PLAIN


def test_thinking_is_shown_whole_when_asked_for() -> None:
    assert "    Let me see.\n    A dot." in shown(conversation(), thinking=True)


def test_nothing_is_folded_when_all_is_asked_for() -> None:
    whole = shown(conversation(), whole=True)
    assert "file 39" in whole
    assert "more lines" not in whole


def test_system_prompt_and_tools_are_shown_when_asked_for_and_once() -> None:
    whole = shown(conversation(), system=True)
    assert whole.count("You are careful.") == 1
    assert '"input_schema"' in whole


@pytest.mark.parametrize("role", ["system", "developer"])
def test_what_the_agent_tells_the_model_at_length_is_folded(role: str) -> None:
    told = Message(role, (text("\n".join(f"rule {n}" for n in range(20))),))
    asked = user(text("\n".join(f"line {n}" for n in range(20))))
    turn = attrs.evolve(turns()[0], added=(told, asked))
    folded = one(turn)
    assert "rule 11" in folded
    assert "rule 12" not in folded
    assert "8 more lines" in folded
    assert "line 19" in folded
    assert "rule 19" in one(turn, system=True)
    assert "rule 19" in one(turn, whole=True)


def test_ascii_only_where_the_terminal_shows_no_more() -> None:
    assert shown(conversation(), Style(unicode=False)).isascii()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": 429, "outcome": "completed"}, "[status 429]"),
        ({"status": 0, "outcome": "timed_out"}, "[no response] [timed_out]"),
        ({"relation": "retry", "after": "12345678-9"}, "[retry of 12345678]"),
        ({"error": {"type": "overloaded_error"}}, 'error: {"type":"overloaded_error"}'),
        ({"stop_reason": "max_tokens"}, "stopped: max_tokens"),
        ({"source": "har"}, "[imported from har]"),
    ],
)
def test_what_is_out_of_the_ordinary_is_marked(change: dict[str, object], said: str) -> None:
    assert said in one(attrs.evolve(turns()[0], **change))  # type: ignore[arg-type]
    assert said not in one(turns()[0])


def test_a_result_that_failed_says_so_and_names_its_images() -> None:
    content = [{"type": "text", "text": "no"}, dict(image("AAAA").value)]
    turn = Turn("x", dialect=CLAUDE, added=(user(result("t", content, is_error=True)),))
    assert "  result (error) t\n    no\n  [image: image/png, 3 B]" in one(turn)


def test_an_exchange_of_no_known_dialect_shows_its_json() -> None:
    assert '"text":"hi"' in one(Turn("x", added=(user(text("hi")),)))


def test_the_result_of_a_tool_in_its_own_role_is_folded() -> None:
    said = Message("tool", (text("\n".join(map(str, range(50)))),), {"tool_call_id": "t"})
    assert "47 more lines" in one(Turn("x", dialect=CLAUDE, added=(said,)), lines=3)


def test_turns_are_asked_for_one_by_one() -> None:
    asked = []

    def source() -> object:
        for turn in turns():
            asked.append(turn.exchange)
            yield turn

    lines = show(conversation(source()), view)  # type: ignore[arg-type]
    for line in lines:
        if line.startswith("── 1"):
            break
    assert len(asked) == 1


def test_escape_sequences_become_visible() -> None:
    hostile = "\x1b]0;owned\x07 \x1b[2J \x9b31m \u202e \r up"
    out = one(
        Turn("x", dialect=CLAUDE, model=hostile, notes=(hostile,), added=(user(text(hostile)),)), Style(colour=False)
    )
    assert "\x1b" not in out
    assert "^[]0;owned^G ^[[2J <U+009B>31m <U+202E> ^M up" in out


@settings(max_examples=60)
@given(any_conversations(), st.booleans(), st.booleans(), st.integers(2, 120))
def test_nothing_recorded_acts_on_the_terminal(of: Conversation, colour: bool, whole: bool, width: int) -> None:
    for line in show(of, view, Style(colour=colour, width=width), Fold(whole=whole, system=True, thinking=whole)):
        assert "\n" not in line
        bare = SGR.sub("", line) if colour else line
        assert texts.visible(bare) == bare, ascii(bare)
        bare.encode()


@settings(max_examples=60)
@given(TEXTS, st.integers(2, 60))
def test_wrapped_lines_fit_and_lose_nothing_but_space(recorded: str, width: int) -> None:
    lines = list(texts.wrap(recorded, width))
    assert all(texts.cells(line) <= width for line in lines)
    whole = "".join(texts.visible(line.removesuffix("\r")) for line in recorded.split("\n"))
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", whole)


@settings(max_examples=60)
@given(TEXTS, st.integers(2, 60), st.integers(1, 5))
def test_folding_is_the_beginning_of_wrapping(recorded: str, width: int, most: int) -> None:
    shown_lines, rest = texts.fold(recorded, width, most)
    whole = list(texts.wrap(recorded, width))
    assert shown_lines == whole[:most]
    assert bool(rest) == (len(whole) > most)


def test_a_line_of_megabytes_is_folded_without_being_wrapped() -> None:
    """Ten million columns: what is not shown must not be cut into lines. Counted by what is asked of the text."""
    lines, rest = texts.fold("x" * 10_000_000, 80, 3)
    assert (len(lines), rest) == (3, 1)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/webp;base64,AAAA"}}, "image/webp, 3 B"),
        ({"type": "input_image", "image_url": "https://x/y.png"}, "media, https://x/y.png"),
        ({"inlineData": {"mimeType": "audio/wav", "data": "AAAAAA=="}}, "audio/wav, 4 B"),
        ({"fileData": {"mimeType": "video/mp4", "fileUri": "gs://b/f"}}, "video/mp4, gs://b/f"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}, "mp3, 3 B"),
        ({"type": "image", "source": {"type": "file", "file_id": "file_1"}}, "media, file_1"),
        ({"type": "text", "text": "data:image/png;base64,AAAA"}, ""),
    ],
)
def test_media_are_found_in_every_dialect(value: dict[str, object], said: str) -> None:
    assert [str(found) for found in media(value)] == ([said] if said else [])


def test_media_in_a_nest_without_end_are_not_looked_for() -> None:
    value: object = {"mimeType": "image/png", "data": "AAAA"}
    for _ in range(5000):
        value = [value]
    assert list(media(value)) == []
    assert Media("image/png", "AA==").size == 1


def prompt(*messages: Message, **more: object) -> Prompt:
    return Prompt(CLAUDE, "m", system=(text("Be\nbrief."),), messages=messages, **more)  # type: ignore[arg-type]


def test_a_diff_shows_what_was_asked_otherwise() -> None:
    before = prompt(user(text("hello\nthere")), params={"max_tokens": 1})
    after = prompt(user(text("hello\n\x1bhere")), assistant(call("Bash", "t", command="ls")), params={"max_tokens": 2})
    lines = list(diff(before, after, view, ("one", "two")))
    assert lines[:2] == ["--- one", "+++ two"]
    assert '-      "max_tokens": 1' in lines
    assert "-    there" in lines
    assert "+    ^[here" in lines
    assert '+        "command": "ls"' in lines
    assert "     hello" in lines
    assert not [line for line in lines if "brief" in line and line[0] in "+-"]


def test_equal_requests_have_no_diff() -> None:
    assert not list(diff(prompt(user(text("a"))), prompt(user(text("a"))), view, ("a", "b")))


def test_json_is_written_whatever_was_recorded() -> None:
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    for value in (float("inf"), float("nan"), 10**5000, deep, {"a": b"x"}):
        assert texts.json_text({"value": value}).startswith('{"value":')


def test_blocks_nobody_knows_are_shown_with_their_json() -> None:
    block = Block(Kind.OTHER, {"type": "novelty", "secret_of": [1]})
    assert '"secret_of":[1]' in one(Turn("x", dialect=CLAUDE, replies=(assistant(block),)))

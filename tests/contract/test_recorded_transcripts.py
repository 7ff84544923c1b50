"""Recorded replies of real providers, read: text, tool calls, stop reason and usage as a second, simple reading has them.

The recordings stand beside the project, not in it. The official SDKs' own accumulators are asked for a third opinion.
"""

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kgb_gateway.dewey.transcripts.model import Block, Dialect, Kind, Reply
from kgb_gateway.dewey.transcripts.view import view

from .oracles import ORACLES, by_path, parsed
from .recordings import MISSING, REPLIES, STREAMS, Recording, load, name_of

pytestmark = pytest.mark.skipif(not REPLIES, reason=MISSING)

EVENTFUL = [path for path in REPLIES if path.suffix == ".txt"]
TWINS = [path for path in STREAMS if path.with_name(path.name.replace(".chunks.txt", ".json")).exists()]

each_stream = pytest.mark.parametrize("path", EVENTFUL, ids=name_of)
each_reply = pytest.mark.parametrize("path", REPLIES, ids=name_of)


def blocks(reply: Reply, kind: Kind) -> list[Block]:
    return [block for message in reply.messages for block in message.blocks if block.kind is kind]


def words(reply: Reply, kind: Kind) -> str:
    return "".join(view(reply.dialect, block).text for block in blocks(reply, kind))


def fails(recording: Recording) -> bool:
    """Whether a recording is of an error, judged by its own words."""
    if recording.events:
        return any(isinstance(event, dict) and event.get("type") == "error" for event in recording.events)
    body = json.loads(recording.wire)
    return bool(body.get("error"))


@each_reply
def test_a_recording_is_a_whole_reply_or_an_error(path: Path) -> None:
    recording = load(path)
    reply = recording.read()
    if fails(recording):
        assert reply.error
        assert not reply.complete
        assert isinstance(reply.error, dict)
        assert reply.error["message"]
    else:
        assert reply.error is None
        assert reply.complete
        assert reply.stop_reason
        assert reply.usage
        assert reply.messages
        assert reply.model


@each_stream
def test_a_stream_says_what_a_simple_reading_says(path: Path) -> None:
    recording = load(path)
    reply, said = recording.read(), ORACLES[recording.dialect](recording.events)
    assert words(reply, Kind.TEXT) == said.text
    assert words(reply, Kind.THINKING).replace("\n", "") == said.thinking.replace("\n", "")
    assert reply.stop_reason == said.stop
    assert reply.usage == said.usage
    check_calls(recording.dialect, reply, said.calls)


def check_calls(dialect: Dialect, reply: Reply, wanted: list[tuple[str, Any]]) -> None:
    found = [view(dialect, block) for block in blocks(reply, Kind.TOOL_CALL)]
    if dialect is Dialect.OPENAI_RESPONSES:
        inputs = [parsed(seen.text.split("\n")[0]) for seen in found]
        assert [call for _, call in wanted if call not in inputs] == []
        return
    assert [seen.name for seen in found] == [name for name, _ in wanted]
    for seen, (_, call) in zip(found, wanted, strict=True):
        given = parsed(seen.text) if seen.text else None
        if dialect is Dialect.GEMINI and isinstance(call, dict) and any(key.startswith("$") for key in call):
            given = by_path(given, call)
        assert given == call


# Nothing is dropped.

FRAMING = frozenset(
    {"type", "object", "event_type", "obfuscation", "item_id", "jsonPath", "finish_reason", "interaction_id"}
)
"""Members whose texts name events and places: they go, the rest of a stream must be found in the reply."""
FRAGMENTS = frozenset({"partial_json", "arguments", "stringValue"})
"""Pieces of JSON, which is read when it is whole; checked by the tool calls above."""
SUPERSEDED = ("response.created", "response.in_progress", "response.output_item.added")
"""Events whose every word is said again, as it is in the end, by a later one."""
PASSING = ("in_progress", "incomplete", "searching", "queued")
"""States that are over when the reply is whole."""


def leaves(value: object, leave: frozenset[str] = frozenset()) -> Iterator[str]:
    """The texts in a JSON value, but for those of members that ``leave`` names."""
    if isinstance(value, Mapping):
        for key, member in value.items():
            if key not in leave:
                yield from leaves(member, leave)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from leaves(member, leave)
    elif isinstance(value, str):
        yield value


def held(reply: Reply) -> str:
    """Every text in a reply."""
    parts: list[str] = [reply.id, reply.model, reply.stop_reason]
    for message in reply.messages:
        parts += [message.role, *leaves(message.extra)]
        parts += [text for block in message.blocks for text in leaves(block.value)]
    parts += [*leaves(reply.rest), *leaves(reply.usage or {}), *leaves(reply.error), *leaves(reply.unknown)]
    return "\0".join(parts)


@each_stream
def test_nothing_that_a_stream_says_is_dropped(path: Path) -> None:
    recording = load(path)
    found = held(recording.read())
    events = [event for event in recording.events if isinstance(event, dict) and event.get("type") not in SUPERSEDED]
    lost = {text for text in leaves(events, FRAMING | FRAGMENTS) if text not in found and text not in PASSING}
    if recording.dialect is Dialect.ANTHROPIC_MESSAGES:
        lost -= {"tool_use"}  # stop reasons of earlier messages stand in rest["earlier"]
    if recording.dialect is Dialect.OPENAI_RESPONSES:
        # The terminal event has it encrypted once more, and counts.
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        lost -= {item.get("encrypted_content") for item in done}
    assert lost == set()


@each_stream
def test_no_event_of_today_is_unknown(path: Path) -> None:
    recording = load(path)
    broken = [event for event in recording.read().unknown if not (isinstance(event, dict) and "data" in event)]
    assert broken == []


# The streamed and the unstreamed twin.


@pytest.mark.parametrize("path", TWINS, ids=name_of)
def test_twins_have_one_shape(path: Path) -> None:
    """They are two answers to one question, so words differ, and now and then the number of calls; the shape does not."""
    streamed, whole = load(path).read(), load(path.with_name(path.name.replace(".chunks.txt", ".json"))).read()
    assert streamed.dialect == whole.dialect
    if fails(load(path)):
        assert whole.error
        return
    told, other = by_type(streamed), by_type(whole)
    for kind in told.keys() & other.keys():
        surplus = told[kind] - other[kind]
        assert not {name for name in surplus if name not in LATER.get(streamed.dialect, ())}, kind
    assert set(streamed.rest) - {"earlier", "obfuscation"} <= set(whole.rest) | NEWER
    assert {message.role for message in streamed.messages} & {message.role for message in whole.messages}


LATER = {
    Dialect.ANTHROPIC_MESSAGES: ("citations", "caller"),
    Dialect.GEMINI: ("thoughtSignature",),
    Dialect.OPENAI_RESPONSES: ("summary", "encrypted_content", "phase", "logprobs", "error", "approval_request_id"),
    Dialect.GEMINI_INTERACTIONS: ("signature", "annotations"),
    Dialect.OPENAI_CHAT: ("type",),
}
"""Members that depend on what was answered, or on the day of the recording."""

NEWER = {
    "stop_details",
    "stop_sequence",
    "container",
    "context_management",
    "promptFeedback",
    "createTime",
    "choices",
    "candidates",
}


def by_type(reply: Reply) -> dict[tuple[str, object], set[str]]:
    """The members of the blocks of each kind and type."""
    found: dict[tuple[str, object], set[str]] = {}
    for message in reply.messages:
        for block in message.blocks:
            found.setdefault((block.kind, block.value.get("type")), set()).update(block.value)
    return found


# Any chunking.


@each_stream
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_chunking_gives_the_same_reply(path: Path, data: st.DataObject) -> None:
    newline = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    recording = load(path, newline)
    size = len(recording.wire)
    cuts = sorted(data.draw(st.sets(st.integers(0, size), max_size=40)))
    edges = [0, *cuts, size]
    pieces = [recording.wire[start:end] for start, end in itertools.pairwise(edges)]
    assert recording.read(pieces) == load(path).read()


@each_stream
def test_byte_by_byte(path: Path) -> None:
    recording = load(path, "\r\n")
    assert recording.read([recording.wire[at : at + 1] for at in range(len(recording.wire))]) == load(path).read()


@each_stream
def test_a_stream_that_is_cut_is_a_partial_reply(path: Path) -> None:
    recording = load(path)
    whole = words(recording.read(), Kind.TEXT)
    for share in range(1, 10):
        cut = recording.read([recording.wire[: len(recording.wire) * share // 10]], whole=False)
        assert whole.startswith(words(cut, Kind.TEXT)) or recording.dialect is Dialect.GEMINI_INTERACTIONS
    assert not recording.read([recording.wire[: len(recording.wire) // 2]], whole=False).messages or not cut.error


# The official accumulators.


def transport(recording: Recording) -> httpx2.MockTransport:
    """The recording as the SDKs ask for it: with the events' names, and the end."""
    named = [(event.get("type", ""), event) for event in recording.events if isinstance(event, dict)]
    wire = "".join(
        f"event: {name}\ndata: {json.dumps(event)}\n\n" if name else f"data: {json.dumps(event)}\n\n"
        for name, event in named
    )
    if recording.dialect is Dialect.OPENAI_CHAT:
        wire += "data: [DONE]\n\n"
    head = {"content-type": "text/event-stream"}
    return httpx2.MockTransport(lambda _: httpx2.Response(200, content=wire.encode(), headers=head))


def single(path: Path, start: str) -> bool:
    """Whether a recording holds one reply; the accumulators take no second one."""
    starts = [event for event in load(path).events if isinstance(event, dict) and event.get("type") == start]
    return len(starts) == 1


def kept(value: Any, other: Any) -> None:
    """``value``, as an SDK has it, is what we have: nothing more, and where it tells less (null, [], "") we may tell more."""
    if isinstance(value, dict):
        assert isinstance(other, dict)
        for name, member in value.items():
            if member not in (None, [], "", {}) and not name.startswith(("parsed", "__")):
                assert name in other
                kept(member, other[name])
    elif isinstance(value, list):
        assert len(value) == len(other)
        for one, two in zip(value, other, strict=True):
            kept(one, two)
    else:
        assert value == other


ANTHROPIC = [path for path in EVENTFUL if "anthropic" in path.parent.name and single(path, "message_start")]
CHAT = [path for path in STREAMS if load(path).dialect is Dialect.OPENAI_CHAT]
RESPONSES = [
    path for path in STREAMS if load(path).dialect is Dialect.OPENAI_RESPONSES and single(path, "response.completed")
]


@pytest.mark.parametrize("path", ANTHROPIC, ids=name_of)
def test_anthropics_own_accumulator_agrees(path: Path) -> None:
    recording = load(path)
    with anthropic.Anthropic(
        api_key="key", base_url="http://provider", http_client=httpx2.Client(transport=transport(recording))
    ) as client:
        with client.messages.stream(model="m", max_tokens=1, messages=[{"role": "user", "content": "hello"}]) as stream:
            theirs = stream.get_final_message().to_dict(mode="json", warnings=False)
    ours = recording.read()
    content = [dict(block.value) for block in ours.messages[0].blocks]
    for mine, its in zip(content, theirs["content"], strict=True):  # type: ignore[call-overload]
        if isinstance(mine.get("input"), str):
            del its["input"]  # cut in the middle: the SDK guesses, we keep the text
        if mine["type"] == "compaction":
            its["content"] = its["encrypted_content"] = None  # this accumulator does not know its deltas
    kept(theirs["content"], content)
    assert (theirs["id"], theirs["stop_reason"]) == (ours.id, ours.stop_reason)
    kept(theirs["usage"], dict(ours.usage or {}))


@pytest.mark.parametrize("path", CHAT, ids=name_of)
def test_openais_own_accumulator_of_chat_agrees(path: Path) -> None:
    recording = load(path)
    with openai.OpenAI(
        api_key="key", base_url="http://provider", http_client=httpx2.Client(transport=transport(recording))
    ) as client:
        with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "hello"}]) as stream:
            try:
                for _ in stream:
                    pass
                theirs: Any = stream.get_final_completion().to_dict(mode="json", warnings=False)
            except openai.LengthFinishReasonError as error:
                theirs = error.completion.to_dict(mode="json", warnings=False)
            except (AssertionError, RuntimeError, TypeError) as error:
                pytest.skip(f"the SDK does not take this stream: {error!r}")
    ours = recording.read()
    message = theirs["choices"][0]["message"]
    assert words(ours, Kind.TEXT) == (message.get("content") or "")
    assert words(ours, Kind.THINKING) == (message.get("reasoning_content") or "")
    calls = [block.value for block in blocks(ours, Kind.TOOL_CALL)]
    for call in message.get("tool_calls") or ():
        call.pop("index", None)
    kept(message.get("tool_calls") or [], [dict(call) for call in calls])
    assert (theirs["id"], theirs["choices"][0]["finish_reason"]) == (ours.id, ours.stop_reason)
    kept(theirs.get("usage"), ours.usage)


@pytest.mark.parametrize("path", RESPONSES, ids=name_of)
def test_openais_own_accumulator_of_responses_agrees(path: Path) -> None:
    recording = load(path)
    with openai.OpenAI(
        api_key="key", base_url="http://provider", http_client=httpx2.Client(transport=transport(recording))
    ) as client:
        with client.responses.stream(model="m", input="hello") as stream:
            try:
                theirs: Any = stream.get_final_response().to_dict(mode="json", warnings=False)
            except (RuntimeError, TypeError) as error:
                pytest.skip(f"the SDK does not take this stream: {error!r}")
    ours = recording.read()
    items = []
    for message in ours.messages:
        if message.extra.get("type") == "message":
            items.append(
                {**message.extra, "role": message.role, "content": [dict(each.value) for each in message.blocks]}
            )
        else:
            items.append(dict(message.blocks[0].value))
    kept(theirs["output"] or items, items)  # one server's last event lists no output at all
    assert (theirs["id"], theirs["status"]) == (ours.id, ours.stop_reason)
    kept(theirs["usage"], ours.usage)

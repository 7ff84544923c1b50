"""Conversations for the tests of what shows, exports and imports them, and strategies that make hostile ones."""

import json
from collections.abc import Iterable, Mapping

from hypothesis import strategies as st

from kgb_gateway.dewey.document import Conversation, Turn
from kgb_gateway.dewey.transcripts.model import Block, Dialect, Json, Kind, Message, View

CLAUDE = Dialect.ANTHROPIC_MESSAGES
CHAT = Dialect.OPENAI_CHAT


def view(dialect: Dialect, block: Block) -> View:
    """What stands in for ``transcripts.view.view``: enough of two dialects."""
    value = block.value
    if block.kind is Kind.TOOL_CALL and dialect is CHAT:
        function = value["function"]
        assert isinstance(function, Mapping)
        return View(block.kind, str(function["arguments"]), str(function["name"]), str(value["id"]))
    if block.kind is Kind.TOOL_CALL:
        return View(block.kind, json.dumps(value.get("input")), str(value.get("name", "")), str(value.get("id", "")))
    if block.kind is Kind.TOOL_RESULT:
        content = value.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        text = "\n".join(str(part["text"]) for part in parts if "text" in part)
        return View(block.kind, text, "", str(value.get("tool_use_id", "")))
    return View(block.kind, str(value.get("thinking", value.get("text", ""))))


def text(value: str) -> Block:
    return Block(Kind.TEXT, {"type": "text", "text": value})


def thinking(value: str) -> Block:
    return Block(Kind.THINKING, {"type": "thinking", "thinking": value, "signature": "c2ln"})


def call(name: str, id: str, **given: Json) -> Block:  # noqa: A002
    return Block(Kind.TOOL_CALL, {"type": "tool_use", "id": id, "name": name, "input": given})


def result(id: str, content: Json, **more: Json) -> Block:  # noqa: A002
    return Block(Kind.TOOL_RESULT, {"type": "tool_result", "tool_use_id": id, "content": content, **more})


def image(data: str, kind: str = "image/png") -> Block:
    source: Json = {"type": "base64", "media_type": kind, "data": data}
    return Block(Kind.IMAGE, {"type": "image", "source": source})


def user(*blocks: Block) -> Message:
    return Message("user", blocks)


def assistant(*blocks: Block) -> Message:
    return Message("assistant", blocks)


def number(n: int) -> str:
    return f"00000000-0000-4000-8000-{n:012d}"


USAGE: Mapping[str, Json] = {
    "model": "claude-sonnet-4-5",
    "uncached": 400,
    "cache_read": 11_900,
    "cache_write_5m": 0,
    "cache_write_1h": 0,
    "output": 456,
    "thinking": 20,
    "server_tools": {},
}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def turns() -> list[Turn]:
    """Two turns, the second cut off."""
    one = Turn(
        number(1),
        at=1_780_000_000.5,
        duration=2.125,
        first_byte=0.5,
        caller="ada",
        upstream="https://api.anthropic.com",
        method="POST",
        target="/v1/messages?beta=true",
        dialect=CLAUDE,
        model="claude-sonnet-4-5",
        status=200,
        outcome="completed",
        conversation="c1",
        session="s1",
        relation="first",
        system=(text("You are careful."),),
        tools=({"name": "Bash", "input_schema": {"type": "object"}},),
        params={"max_tokens": 100},
        added=(user(text("What is in this picture?"), image(PNG)),),
        replies=(assistant(thinking("Let me see.\nA dot."), text("A dot."), call("Bash", "t1", command="ls")),),
        reply_id="msg_1",
        stop_reason="tool_use",
        reported={"input_tokens": 400, "cache_read_input_tokens": 11_900, "output_tokens": 456},
        usage=(USAGE,),
        cost_micro_usd=12_345,
        price_version="2026-11-01",
        request_size=17,
        response_size=3,
        request_sha256="aa" * 32,
        response_sha256="bb" * 32,
        raw_kept=True,
        request_headers=(("Content-Type", "application/json"), ("x-api-key", "[REDACTED]")),
        response_headers=(("content-type", "text/event-stream"),),
        request_body=b'{"model":"\xc3\xa9"}\n ',
        response_body=b"\xff\x00\x01",
    )
    two = Turn(
        number(2),
        at=1_780_000_010.0,
        duration=75.0,
        dialect=CLAUDE,
        model="claude-sonnet-4-5",
        method="POST",
        target="/v1/messages",
        status=200,
        outcome="caller_left",
        conversation="c1",
        session="s1",
        relation="appended",
        after=number(1),
        shared=1,
        replied=True,
        system=one.system,
        tools=one.tools,
        added=(user(result("t1", "\n".join(f"file {i}" for i in range(40)))),),
        replies=(assistant(text("There are")),),
        partial=True,
        usage=(USAGE,),
        cost_micro_usd=2_500_000,
        estimated=True,
        transformed=True,
        notes=("gap: 100 bytes of the response are missing",),
    )
    return [one, two]


def conversation(found: Iterable[Turn] | None = None) -> Conversation:
    return Conversation("c1", "s1", "claude-code", "main", "A dot", "/home/ada", turns() if found is None else found)


# Strategies.

NASTY = st.sampled_from(
    [
        "\x1b]0;owned\x07", "\x1b[2J", "\x9b31m", "\x00", "\x08\x08", "\r", "\r\n", "\u202e", "\u2066", "\u200f", "\u2028", "\u2029",
        "\x85", "\ud800", "\udfff", "\ufeff", "\U000e0041", "</pre><script>alert(1)</script>", "<!--", "-->", "]]>", "&amp;", '"', "'",
        "```", "````", "~~~", "> ", "# ", "![x](http://evil)", "[x](javascript:1)", "<img src=x>", "\t", "\n", "\n\n", "    ",
        "x" * 5000, "界" * 300, "e\u0301" * 50, "a\u200db", "\\", "</details>", "|", "{", "\x7f",
    ]
)  # fmt: skip


def _joined(parts: list[str]) -> str:
    """What JSON can hold: a pair of surrogates is one character there."""
    return str(json.loads(json.dumps("".join(parts))))


TEXTS = st.lists(st.one_of(NASTY, st.text(max_size=20)), max_size=6).map(_joined)
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False), TEXTS
)
VALUES: st.SearchStrategy[Json] = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=3)


def blocks() -> st.SearchStrategy[Block]:
    return st.one_of(
        st.builds(text, TEXTS),
        st.builds(thinking, TEXTS),
        st.builds(lambda name, id, value: call(name, id, given=value), TEXTS, TEXTS, VALUES),  # noqa: A006
        st.builds(result, TEXTS, TEXTS),
        st.builds(image, TEXTS, TEXTS),
        st.builds(lambda name, value: Block(Kind.OTHER, {"type": name, "more": value}), TEXTS, VALUES),
    )


MESSAGES = st.builds(
    Message,
    st.one_of(TEXTS, st.sampled_from(["user", "assistant", "tool"])),
    st.lists(blocks(), max_size=3).map(tuple),
    OBJECTS,
)
_NUMBERS = st.floats(min_value=0, max_value=1e10)
_HEADERS = st.lists(st.tuples(TEXTS, TEXTS), max_size=2).map(tuple)
_BODIES = st.one_of(st.none(), st.binary(max_size=30), st.just("é".encode()))


def any_turns() -> st.SearchStrategy[Turn]:
    return st.builds(
        Turn,
        exchange=st.uuids().map(str),
        at=st.one_of(_NUMBERS, st.sampled_from([0.0, -1e18, 1e18])),
        duration=st.one_of(st.none(), _NUMBERS),
        first_byte=st.one_of(st.none(), _NUMBERS),
        caller=TEXTS,
        upstream=TEXTS,
        method=TEXTS,
        target=TEXTS,
        dialect=st.sampled_from([None, CLAUDE]),
        model=TEXTS,
        status=st.sampled_from([0, 200, 429]),
        outcome=TEXTS,
        source=TEXTS,
        session=TEXTS,
        agent_id=TEXTS,
        project=TEXTS,
        relation=st.one_of(TEXTS, st.sampled_from(["appended", "fork", "retry", "compaction"])),
        after=TEXTS,
        shared=st.integers(0, 5),
        replied=st.booleans(),
        system=st.lists(blocks(), max_size=1).map(tuple),
        tools=st.lists(VALUES, max_size=1).map(tuple),
        params=OBJECTS,
        added=st.lists(MESSAGES, max_size=2).map(tuple),
        replies=st.lists(MESSAGES, max_size=2).map(tuple),
        reply_id=TEXTS,
        stop_reason=TEXTS,
        partial=st.booleans(),
        error=VALUES,
        reported=st.one_of(st.none(), OBJECTS),
        usage=st.lists(OBJECTS, max_size=1).map(tuple),
        cost_micro_usd=st.one_of(st.none(), st.integers(0, 10**9)),
        estimated=st.booleans(),
        notes=st.lists(TEXTS, max_size=1).map(tuple),
        facts=OBJECTS,
        request_headers=_HEADERS,
        response_headers=_HEADERS,
        request_body=_BODIES,
        response_body=_BODIES,
    )


def any_conversations() -> st.SearchStrategy[Conversation]:
    found = st.lists(any_turns(), max_size=2)
    return st.builds(Conversation, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, TEXTS, found)

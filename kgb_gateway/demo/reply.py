"""What the demo understands of a request and what it says to it, in no dialect.

Pure. The dialect modules read an ``Ask`` out of a body and write a ``Reply`` into events or one document.
"""

import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

import attrs

from kgb_gateway.demo.sample import Tool, pick_tool, sample, wishes_tool

MIN_THINKING_LIMIT = 64
"""A request that allows fewer output tokens than this gets no thinking."""

ECHOED_WORDS = 12
ECHOED_CHARACTERS = 160
FRAGMENT = 9
"""Characters of tool input in one event."""

_PIECE = re.compile(r"\s*\S+")


class BadRequest(Exception):
    """The body cannot be answered; the message says what is wrong with it, ``param`` where."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


@attrs.frozen
class Event:
    """One server-sent event. ``name`` "" writes no ``event:`` line; a ``paced`` one is preceded by a pause."""

    name: str
    data: str
    paced: bool = False

    def encode(self) -> bytes:
        """The event on the wire, blank line included."""
        head = f"event: {self.name}\n" if self.name else ""
        return f"{head}data: {self.data}\n\n".encode()


@attrs.frozen
class Ask:
    """A request, as far as the demo understands it.

    ``said``: the user's last words. ``result``: what the last message brought back from a tool, None when it brought
    nothing. ``limit``: output tokens allowed, 0 for any number. ``forced``: True when some tool must be called, or
    that tool's name. ``schema``: what the text must parse as. ``raw``: the body itself, for what is echoed.
    """

    raw: Mapping[str, Any]
    model: str
    said: str
    size: int
    messages: int
    streams: bool
    thinks: bool
    result: str | None = None
    limit: int = 0
    tools: tuple[Tool, ...] = ()
    forced: bool | str = False
    schema: Mapping[str, Any] | None = None

    @property
    def input_tokens(self) -> int:
        """A rough count of the input, four bytes a token."""
        return max(1, self.size // 4)


@attrs.frozen
class Call:
    """A tool call: ``arguments`` is JSON text."""

    name: str
    arguments: str

    @property
    def fragments(self) -> list[str]:
        """The arguments in the portions in which they are streamed."""
        return [self.arguments[i : i + FRAGMENT] for i in range(0, len(self.arguments), FRAGMENT)]


@attrs.frozen
class Reply:
    """What to answer. ``cut``: the text ends because the limit was reached."""

    thinking: str
    text: str
    call: Call | None = None
    cut: bool = False

    @property
    def thinking_tokens(self) -> int:
        """Words of thinking, which the demo counts as tokens."""
        return len(pieces(self.thinking))

    @property
    def output_tokens(self) -> int:
        """Everything that was written, thinking included."""
        call = len(self.call.fragments) if self.call else 0
        return max(1, self.thinking_tokens + len(pieces(self.text)) + call)


def pieces(text: str) -> list[str]:
    """``text`` in words, each with the white space before it; joined they are ``text`` (but for trailing blanks)."""
    return _PIECE.findall(text)


def parse_body(body: bytes) -> dict[str, Any]:
    """The body as a JSON object, or BadRequest."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The request body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadRequest("The request body must be a JSON object.")
    return document


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; anything else counts as empty, so that odd bodies are answered too."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def require(document: Mapping[str, Any], name: str, kind: type) -> Any:
    """A field that must be there, or BadRequest naming it."""
    value = document.get(name)
    if not isinstance(value, kind):
        problem = "Field required" if name not in document else f"Input should be a valid {kind.__name__}"
        raise BadRequest(f"{name}: {problem}", name)
    return value


def limit_of(document: Mapping[str, Any], *names: str) -> int:
    """The first of the fields ``names`` that holds a positive integer, else 0."""
    values = (document.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)


def new_id(prefix: str) -> str:
    """An identifier in the providers' manner."""
    return f"{prefix}{uuid.uuid4().hex[:24]}"


def compact(document: Any) -> str:
    """JSON text as providers send it: no blanks, UTF-8 unescaped."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def reply_to(ask: Ask) -> Reply:
    """The demo's answer. A tool is called only when one was offered and asked for, and never twice in a row."""
    if ask.schema is not None:
        return Reply("", compact(sample(ask.schema, ask.said)))
    call = _call(ask)
    thinking = _thinking(ask, call) if ask.thinks and not 0 < ask.limit < MIN_THINKING_LIMIT else ""
    words = pieces(_text(ask, call))
    if 0 < ask.limit < len(words):
        return Reply(thinking, "".join(words[: ask.limit]), None, cut=True)
    return Reply(thinking, "".join(words), call)


def _call(ask: Ask) -> Call | None:
    if ask.result is not None or not (ask.forced or wishes_tool(ask.said)):
        return None
    tool = pick_tool(ask.tools, ask.said, ask.forced if isinstance(ask.forced, str) else "")
    if tool is None and ask.forced and ask.tools:
        tool = ask.tools[0]
    return Call(tool.name, compact(sample(tool.schema, ask.said))) if tool else None


def _thinking(ask: Ask, call: Call | None) -> str:
    plan = f"I shall call {call.name} once" if call else "No tool is needed"
    return f"The caller sent {ask.size} bytes. {plan}, and I must say that I am only a demo."


def _text(ask: Ask, call: Call | None) -> str:
    who = "This is kgb's built-in demo provider, not a model; it needs no key and no network."
    if call is not None:
        return f"{who} You asked for a tool, so here is a call of {call.name}."
    if ask.result is not None:
        return (
            f"{who} The tool answered with {len(ask.result)} characters, and that is all the demo does with them. Done."
        )
    count = "1 message" if ask.messages == 1 else f"{ask.messages} messages"
    return (
        f"{who} It received {ask.size} bytes with {count}, ending in “{_echo(ask.said)}”. "
        "Each of these words is an event of its own, so you can watch them arrive one by one. "
        "Start the gateway without the demo to talk to a real model."
    )


def _echo(said: str) -> str:
    words = said.split()
    echo = " ".join(words[-ECHOED_WORDS:])[-ECHOED_CHARACTERS:]
    return f"… {echo}" if len(echo) < len(" ".join(words)) else echo

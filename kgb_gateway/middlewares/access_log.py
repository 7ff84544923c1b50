"""access_log: one JSON line for every exchange that ended.

Owns what such a line says. Nothing secret stands in it (no query, no credential, no body), and nothing in it can be
forged: a value is cut at a cap, and whatever is no printable ASCII is escaped. A line is made when the exchange has
ended, a few microseconds after its last byte has left, and written by the log writer's thread.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import ClassVar
from urllib.parse import unquote

import attrs
from aiohttp import web

from fiedler_proxy.config import setting
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.exchange import Exchange, Observer
from fiedler_proxy.headers import REDACTED, RawHeaders, Shape
from fiedler_proxy.lifecycle import EXCHANGE
from fiedler_proxy.server import Handler
from kgb_gateway.log_writer import LogWriter

PATH_CAP = 512
"""Characters of a path that are kept."""

VALUE_CAP = 128
"""Characters of any other value that are kept."""

FACTS_CAP = 16
"""Facts of an exchange that are kept."""

UPSTREAM_ID_HEADERS = frozenset((b"request-id", b"x-request-id", b"x-amzn-requestid", b"apim-request-id"))
"""Response headers in which providers name the request: Anthropic; OpenAI and others; Bedrock; Azure."""

SESSION_HEADERS = frozenset((b"x-claude-code-session-id", b"session-id", b"x-session-id"))
"""Request headers in which agents name their session: Claude Code; Codex; opencode. The caller's word, no proof."""

# Keys that a caller put into the path by mistake: the gateway's own, Anthropic's and OpenAI's, Google's.
_KEYS = re.compile(r"kgb_[0-9a-z]{10}_\w*|sk-[\w-]{16,}|AIza[\w-]{16,}")

_Scalar = str | int | float | bool | None

_quote = json.encoder.encode_basestring_ascii
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class _Recorder(Observer):
    __slots__ = ("_put",)

    def __init__(self, put: Callable[[str], None]) -> None:
        self._put = put

    def closed(self, exchange: Exchange) -> None:
        self._put(line_of(exchange))


def _writer(link: "AccessLog") -> LogWriter:
    if link.max_pending < 1:
        raise SettingsError([f"links.access_log.max_pending is {link.max_pending}; it must be at least 1"])
    return LogWriter(link.path, note_of, link.max_pending)


@web.middleware
@attrs.frozen
class AccessLog:
    """``path``: the file, or "-" for standard output; ``max_pending``: lines that may wait to be written, those beyond
    are dropped and counted in a line of their own.
    """

    path: str = setting("-", path=True)
    max_pending: int = 10_000
    _log: LogWriter = attrs.field(init=False, repr=False, default=attrs.Factory(_writer, takes_self=True))
    _recorder: Observer = attrs.field(
        init=False, repr=False, default=attrs.Factory(lambda self: _Recorder(self._log.put), takes_self=True)
    )

    outer: ClassVar[bool] = True

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.enter(request, request[EXCHANGE])
        return await handler(request)

    def enter(self, request: web.Request, exchange: Exchange) -> None:
        """``links.Entering``."""
        exchange.observe(self._recorder)

    async def context(self, app: web.Application) -> AsyncIterator[None]:
        """The writer runs as long as the application; its end waits no longer than ``log_writer.STOP_SECONDS``."""
        try:
            self._log.start()
        except OSError as error:
            reason = f"links.access_log.path: {self.path} cannot be opened for writing: {error.strerror}"
            raise SettingsError([reason]) from None
        yield
        await asyncio.to_thread(self._log.stop)


def _first(headers: RawHeaders, shape: Shape, names: frozenset[bytes]) -> bytes:
    """The value of the first of ``headers`` called one of ``names``, cut; else empty."""
    places = shape.places(names)
    return headers[places[0]][1][:VALUE_CAP] if places else b""


def _facts(facts: dict[str, object]) -> dict[str, _Scalar]:
    return {key[:VALUE_CAP]: _scalar(facts[key]) for key in list(facts)[:FACTS_CAP]}


def _scalar(value: object) -> _Scalar:
    """What is small and fit for JSON of ``value``."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value.bit_length() <= 64:
        return value
    if isinstance(value, float) and value - value == 0:
        return value
    if isinstance(value, (bytes, bytearray)):
        return value[:VALUE_CAP].decode("latin-1")
    if isinstance(value, str):
        return value[:VALUE_CAP]
    return str(value)[:VALUE_CAP]


def line_of(exchange: Exchange) -> str:
    """The JSON line of a closed ``exchange``, without its end: ASCII, no control character.

    Bounded in time and size: it is made on the event loop, when the last byte has left.
    """
    started, ended, first_byte = exchange.started, exchange.ended, exchange.first_byte
    upstream = exchange.upstream
    what = _what(
        exchange.method[:VALUE_CAP],
        exchange.path[:PATH_CAP],
        exchange.status,
        "" if exchange.outcome is None else str(exchange.outcome),
        exchange.error_code[:VALUE_CAP],
    )
    who = _who(
        exchange.caller[:VALUE_CAP],
        exchange.route[:VALUE_CAP],
        exchange.slot[:VALUE_CAP],
        "" if upstream is None else upstream.name[:VALUE_CAP],
        exchange.remote[:VALUE_CAP],
    )
    ttfb = "null" if first_byte is None else f"{(first_byte - started) * 1000:.3f}"
    duration = 0.0 if ended is None else (ended - started) * 1000
    upstream_id = _first(exchange.response_headers, exchange.response_shape, UPSTREAM_ID_HEADERS)
    session = _first(exchange.request_headers, exchange.request_shape, SESSION_HEADERS)
    facts = exchange.facts
    more = _more(exchange.id, upstream_id, session, facts) if upstream_id or session or facts else _NOTHING_MORE
    return (
        f'{{"time":"{_rfc3339(exchange.started_at)}","id":{_quote(exchange.id[:VALUE_CAP])},{what},'
        f'"bytes_in":{exchange.request_size},"bytes_out":{exchange.response_size},"ttfb_ms":{ttfb},'
        f'"duration_ms":{duration:.3f},{who},{more}}}'
    )


@lru_cache(1024)
def _what(method: str, path: str, status: int, outcome: str, error: str) -> str:
    """Remembered, like ``_who``: most exchanges of a minute are alike in this, and quoting is most of what a line costs."""
    return _clean(
        lambda quote: (
            f'"method":{quote(method)},"path":{quote(path)},"status":{status},"outcome":"{outcome}",'
            f'"error":{quote(error)}'
        )
    )


@lru_cache(1024)
def _who(caller: str, route: str, slot: str, upstream: str, remote: str) -> str:
    return _clean(
        lambda quote: (
            f'"caller":{quote(caller)},"route":{quote(route)},"slot":{quote(slot)},'
            f'"upstream":{quote(upstream)},"remote":{quote(remote)}'
        )
    )


def _more(own_id: str, upstream_id: bytes, session: bytes, facts: dict[str, object]) -> str:
    if upstream_id == own_id.encode("utf-8", "backslashreplace"):
        upstream_id = b""  # the gateway's own errors name its own id where an SDK looks for one

    def said(quote: Callable[[str], str]) -> str:
        return (
            f'"upstream_request_id":{quote(upstream_id.decode("latin-1"))},"session":{quote(session.decode("latin-1"))},'
            f'"facts":{_render_facts(_facts(facts), quote) if facts else "{}"}'
        )

    return _clean(said)


def _clean(render: Callable[[Callable[[str], str]], str]) -> str:
    """What ``render`` makes of a function that quotes, without anything that has the form of a key."""
    text = render(_quote)
    if _may_hold_a_key(text):
        text = render(_quote_redacted)
    return text.replace("\x7f", "\\u007f")


_NOTHING_MORE = '"upstream_request_id":"","session":"","facts":{}'


def _render_facts(facts: dict[str, _Scalar], quote: Callable[[str], str]) -> str:
    pairs = (
        f"{quote(key)}:{quote(value) if isinstance(value, str) else _encode(value)}" for key, value in facts.items()
    )
    return "{" + ",".join(pairs) + "}"


def _quote_redacted(text: str) -> str:
    return _quote(_redact(text))


def _may_hold_a_key(line: str) -> bool:
    """Whether a closer look is due: one of the marks of ``_KEYS``, or a percent sign that could hide one."""
    return "kgb_" in line or "sk-" in line or "AIza" in line or "%" in line


def note_of(missing: int) -> str:
    """The line that stands for ``missing`` dropped ones."""
    return _encode({"time": _rfc3339(datetime.now(UTC).timestamp()), "dropped": missing})


def _rfc3339(seconds: float) -> str:
    """RFC 3339 in UTC, to the millisecond."""
    whole = int(seconds)
    return f"{_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@lru_cache(8)
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _redact(text: str) -> str:
    """``text`` without what has the form of a key, percent-encoded or not."""
    text = _KEYS.sub(REDACTED, text)
    if "%" in text and _KEYS.search(unquote(text)):
        return REDACTED
    return text

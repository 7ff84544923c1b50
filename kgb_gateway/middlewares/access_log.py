"""access_log: one JSON line for every exchange that ended.

Owns what such a line says. Nothing secret stands in it (no query, no credential, no body), and nothing in it can be
forged: a value is cut at a cap, and whatever is no printable ASCII is escaped. A line is written by the log writer's
thread; the exchange pays for a small tuple.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import ClassVar, NamedTuple
from urllib.parse import unquote

import attrs
from aiohttp import web

from fiedler_proxy.config import setting
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.exchange import Exchange, Observer, RawHeaders
from fiedler_proxy.headers import KINDS_CAP, REDACTED
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


class Entry(NamedTuple):
    """What is kept of an exchange between its end and its line; every text is cut already."""

    started_at: float
    id: str
    method: str
    path: str
    status: int
    outcome: str
    error: str
    bytes_in: int
    bytes_out: int
    ttfb: float | None
    duration: float
    caller: str
    route: str
    slot: str
    upstream: str
    remote: str
    upstream_id: bytes
    session: bytes
    facts: dict[str, _Scalar]


class _Recorder(Observer):
    __slots__ = ("_put",)

    def __init__(self, put: Callable[[Entry], None]) -> None:
        self._put = put

    def closed(self, exchange: Exchange) -> None:
        self._put(entry_of(exchange))


def _writer(link: "AccessLog") -> LogWriter[Entry]:
    if link.max_pending < 1:
        raise SettingsError([f"links.access_log.max_pending is {link.max_pending}; it must be at least 1"])
    return LogWriter(link.path, line_of, note_of, link.max_pending)


@web.middleware
@attrs.frozen
class AccessLog:
    """``path``: the file, or "-" for standard output; ``max_pending``: lines that may wait to be written, those beyond
    are dropped and counted in a line of their own.
    """

    path: str = setting("-", path=True)
    max_pending: int = 10_000
    _log: LogWriter[Entry] = attrs.field(init=False, repr=False, default=attrs.Factory(_writer, takes_self=True))
    _recorder: Observer = attrs.field(
        init=False, repr=False, default=attrs.Factory(lambda self: _Recorder(self._log.put), takes_self=True)
    )

    outer: ClassVar[bool] = True

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request[EXCHANGE].observe(self._recorder)
        return await handler(request)

    async def context(self, app: web.Application) -> AsyncIterator[None]:
        """The writer runs as long as the application; its end waits no longer than ``log_writer.STOP_SECONDS``."""
        try:
            self._log.start()
        except OSError as error:
            reason = f"links.access_log.path: {self.path} cannot be opened for writing: {error.strerror}"
            raise SettingsError([reason]) from None
        yield
        await asyncio.to_thread(self._log.stop)


def entry_of(exchange: Exchange) -> Entry:
    """What is to be logged of a closed ``exchange``. Bounded in time and size: it runs on the event loop."""
    ended = exchange.started if exchange.ended is None else exchange.ended
    first_byte = exchange.first_byte
    upstream_id = _UPSTREAM_ID.first(exchange.response_headers)
    return Entry(
        exchange.started_at,
        exchange.id[:VALUE_CAP],
        exchange.method[:VALUE_CAP],
        exchange.path[:PATH_CAP],
        exchange.status,
        "" if exchange.outcome is None else exchange.outcome.value,
        exchange.error_code[:VALUE_CAP],
        exchange.request_size,
        exchange.response_size,
        None if first_byte is None else first_byte - exchange.started,
        ended - exchange.started,
        exchange.caller[:VALUE_CAP],
        exchange.route[:VALUE_CAP],
        exchange.slot[:VALUE_CAP],
        "" if exchange.upstream is None else exchange.upstream.name[:VALUE_CAP],
        exchange.remote[:VALUE_CAP],
        # The gateway's own errors name its own id where an SDK looks for one.
        b"" if upstream_id and upstream_id == exchange.id.encode() else upstream_id,
        _SESSION.first(exchange.request_headers),
        _facts(exchange.facts) if exchange.facts else _NO_FACTS,
    )


class _Names:
    """A set of header names that knows how each was spelled: a look-up for a header, and no copy of its name."""

    __slots__ = ("_known", "_names")

    def __init__(self, names: frozenset[bytes]) -> None:
        self._names = names
        self._known: dict[bytes, bool] = {}

    def learn(self, name: bytes) -> bool:
        if len(self._known) >= KINDS_CAP:
            self._known.clear()
        known = name.lower() in self._names
        if len(name) <= 64:
            self._known[name] = known
        return known

    def first(self, headers: RawHeaders) -> bytes:
        """The value of the first of ``headers`` whose name is in the set, cut; else empty."""
        known = self._known
        for name, value in headers:
            wanted = known.get(name)
            if wanted is None:
                wanted = self.learn(name)
            if wanted:
                return value[:VALUE_CAP]
        return b""


_UPSTREAM_ID = _Names(UPSTREAM_ID_HEADERS)
_SESSION = _Names(SESSION_HEADERS)
_NO_FACTS: dict[str, _Scalar] = {}


def _facts(facts: dict[str, object]) -> dict[str, _Scalar]:
    return {key[:VALUE_CAP]: _scalar(facts[key]) for key in list(facts)[:FACTS_CAP]}


def _scalar(value: object) -> _Scalar:
    """A copy that nobody changes later, small and fit for JSON."""
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


def line_of(entry: Entry) -> str:
    """The JSON line of ``entry``, without its end: ASCII, no control character."""
    line = _render(entry, _quote)
    if _may_hold_a_key(line):
        line = _render(entry, _quote_redacted)
    return line.replace("\x7f", "\\u007f")


def _render(entry: Entry, quote: Callable[[str], str]) -> str:
    """Written out field by field: this is half of what a line costs, and a line is written for every exchange."""
    ttfb = "null" if entry.ttfb is None else f"{entry.ttfb * 1000:.3f}"
    upstream_id = quote(entry.upstream_id.decode("latin-1")) if entry.upstream_id else '""'
    session = quote(entry.session.decode("latin-1")) if entry.session else '""'
    facts = _render_facts(entry.facts, quote) if entry.facts else "{}"
    return (
        f'{{"time":"{_rfc3339(entry.started_at)}","id":{_quote(entry.id)},"method":{quote(entry.method)},'
        f'"path":{quote(entry.path)},"status":{entry.status},"outcome":"{entry.outcome}","error":{quote(entry.error)},'
        f'"bytes_in":{entry.bytes_in},"bytes_out":{entry.bytes_out},"ttfb_ms":{ttfb},'
        f'"duration_ms":{entry.duration * 1000:.3f},"caller":{quote(entry.caller)},"route":{quote(entry.route)},'
        f'"slot":{quote(entry.slot)},"upstream":{quote(entry.upstream)},"remote":{quote(entry.remote)},'
        f'"upstream_request_id":{upstream_id},"session":{session},"facts":{facts}}}'
    )


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

"""One exchange: one request and its one response, first header to last byte.

Owns the facts of an exchange and the order in which observers hear of it. It does no I/O, knows no server and no
event loop: the relay and the edge tell it what happened, and it is the place where links and observers meet.

The law of this module: an exchange is closed exactly once, and an observer can slow or break nothing.
"""

import enum
import logging
import re
import time
import traceback
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Protocol

import attrs

from fiedler_proxy.errors import Dialect
from fiedler_proxy.headers import HOP_BY_HOP, RawHeaders, Shape, is_valid_value, shape_of
from fiedler_proxy.kept import Kept
from fiedler_proxy.upstream import Upstream

OBSERVER_SLOW_SECONDS = 0.1
"""A single call above this counts as a strike against the observer."""

OBSERVER_STRIKES = 3
"""An observer with this many strikes in one exchange is detached; fewer may be a garbage collection."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FRAMING = HOP_BY_HOP | {b"content-length"}

_log = logging.getLogger("kgb.exchange")

_PLAIN_NAMES: set[str] = set()
"""Names of response headers that were found to be valid ones."""

_PLAIN_NAMES_CAP = 256


class Outcome(enum.StrEnum):
    """How an exchange ended (DESIGN.md, "Words")."""

    COMPLETED = "completed"
    REFUSED = "refused"
    CALLER_LEFT = "caller_left"
    UPSTREAM_BROKE = "upstream_broke"
    TIMED_OUT = "timed_out"
    GATEWAY_STOPPED = "gateway_stopped"
    GATEWAY_FAULT = "gateway_fault"


SHADOW_OF, PREFLIGHT = "shadow_of", "preflight"
"""Facts of the gateway's own exchanges: the id of the one it is a copy of, or the name of the preflight."""


class Direction(enum.StrEnum):
    """Which way the bytes of a tunnel (an accepted upgrade) went."""

    TO_UPSTREAM = "to_upstream"
    TO_CALLER = "to_caller"


class Observer:
    """A synchronous listener on one exchange; override what you need.

    A method must be quick (microseconds; it runs between a byte's arrival and its leaving), must not block, and can
    change nothing. At its first exception, or when it is found slow, an observer is detached and a report is logged;
    the exchange goes on.
    """

    __slots__ = ()

    def request_head(self, exchange: "Exchange") -> None:
        """The request is about to go upstream: ``target`` and ``upstream`` are final."""

    def request_start(self, exchange: "Exchange", data: bytes) -> None:
        """The head, and all of a body that came with it. For an observer that takes both in one go; the others hear ``request_head``
        and ``request_bytes``."""
        self.request_head(exchange)
        self.request_bytes(exchange, data)

    def request_bytes(self, exchange: "Exchange", data: bytes) -> None:
        """Body bytes of the request, in order, without transfer framing; before they go upstream."""

    def response_head(self, exchange: "Exchange") -> None:
        """``exchange.status`` and ``exchange.response_headers`` are set; before the head goes to the caller."""

    def response_start(self, exchange: "Exchange", data: bytes) -> None:
        """The head, and the first bytes of the body, which came with it. For an observer that takes both in one go; the others
        hear ``response_head`` and ``response_bytes``."""
        self.response_head(exchange)
        self.response_bytes(exchange, data)

    def response_bytes(self, exchange: "Exchange", data: bytes) -> None:
        """Body bytes of the response, in order, without transfer framing; before they go to the caller."""

    def tunnel_bytes(self, exchange: "Exchange", direction: Direction, data: bytes) -> None:
        """Raw bytes of an accepted upgrade, in order within their direction; before they go on."""

    def closed(self, exchange: "Exchange") -> None:
        """Exactly once, last: ``exchange.outcome`` is set."""


_EVENTS = (
    "request_head",
    "request_bytes",
    "response_head",
    "response_bytes",
    "tunnel_bytes",
    "closed",
    "response_start",
    "request_start",
)
_EVENT_NAMES = frozenset(_EVENTS)
_START = _EVENTS.index("response_start")
_STARTING = {_EVENTS.index("response_head"), _EVENTS.index("response_bytes")}
_REQUEST_START = _EVENTS.index("request_start")
_REQUEST_STARTING = {_EVENTS.index("request_head"), _EVENTS.index("request_bytes")}
_NOBODY: tuple[tuple[Observer, ...], ...] = ((),) * len(_EVENTS)

_HEARD: dict[type[Observer], tuple[int, ...]] = {}


def _events_of(observer: Observer) -> tuple[int, ...]:
    """Which events (by index) ``observer`` listens to: what its class does not override costs nothing."""
    kind = type(observer)
    events = _HEARD.get(kind)
    if events is None:
        heard = {i for i, name in enumerate(_EVENTS) if getattr(kind, name, None) is not getattr(Observer, name)}
        if heard & _STARTING:
            heard.add(_START)
        if heard & _REQUEST_STARTING:
            heard.add(_REQUEST_START)
        events = _HEARD[kind] = tuple(sorted(heard))
    if kind.__dictoffset__ and not _EVENT_NAMES.isdisjoint(observer.__dict__):
        return tuple(range(len(_EVENTS)))  # methods of its own: hear everything
    return events


class Transform(Protocol):
    """Changes the body of a response on its way to the caller: a declared power (``transforms = True``)."""

    def feed(self, data: bytes) -> bytes:
        """What goes on in place of ``data``; may be empty while something is held back."""

    def end(self) -> bytes:
        """What is still held back at the end of the body."""


@attrs.frozen
class Hold:
    """Somebody who lets a request go on only when they agree. ``wait`` raises an ExchangeError to refuse; ``limit``: bytes of a
    body that may be held back in memory."""

    wait: Callable[[], Awaitable[None]]
    limit: int


@attrs.define(eq=False)
class Exchange:
    """The facts of one exchange, for links, observers and the record.

    ``method``, ``target`` and ``request_headers`` are what goes upstream: a link may change them before it calls the
    next one, which is a declared power (``transforms``) unless it only takes away a route prefix or a credential.
    ``request_body`` replaces the caller's body where a link transformed it; ``kept`` is what was read of it, for those who may want it
    again, ``replay`` the whole of one that was small and is sent already; ``plan`` asks several upstreams in turn, where a route says so. ``hop_lines`` are header lines for the upstream alone, which
    no observer sees: a credential of the gateway's own. ``dialect`` is that of the provider
    that a route leads to, for errors of callers who give no sign of theirs. ``trusted``: the gateway asks itself, for a caller whose key it has seen. ``ending`` is how the exchange will end if
    nothing breaks any more; ``outcome`` how it did.
    Sizes are body bytes without transfer framing. ``started``, ``first_byte`` and ``ended`` are seconds of the
    monotonic clock, ``started_at`` is seconds since the epoch.
    """

    method: str
    target: str
    version: tuple[int, int] = (1, 1)
    request_headers: RawHeaders = ()
    remote: str = ""
    id: str = ""
    path: str = ""
    caller: str = ""
    route: str = ""
    dialect: Dialect | None = None
    slot: str = ""
    upstream: Upstream | None = None
    attempts: int = 0
    transformed: bool = False
    may_transform: bool = False
    local: bool = False
    trusted: bool = False
    tunnelled: bool = False
    facts: dict[str, object] = attrs.field(factory=dict)
    status: int = 0
    reason: str = ""
    response_headers: RawHeaders = ()
    added_headers: dict[str, str] = attrs.field(factory=dict)
    head_sent: bool = False
    ending: Outcome | None = None
    outcome: Outcome | None = None
    error_code: str = ""
    request_size: int = 0
    response_size: int = 0
    started_at: float = attrs.field(factory=time.time)
    started: float = attrs.field(factory=time.monotonic)
    first_byte: float | None = None
    ended: float | None = None
    request_body: bytes | None = None
    held_body: bytes | None = None
    kept: Kept | None = None
    replay: bytes | None = None
    plan: Any = None
    hop_lines: tuple[bytes, ...] = ()
    holds: tuple[Hold, ...] = ()
    transforms: "tuple[Transform, ...]" = ()
    _shaped: RawHeaders | None = None
    _shape: Shape | None = None
    _answer: RawHeaders | None = None
    _answer_shape: Shape | None = None
    _hear: tuple[tuple[Observer, ...], ...] = _NOBODY
    _strikes: dict[int, int] | None = None
    _abort: "Callable[[Outcome], None] | None" = None

    def observe(self, observer: Observer) -> None:
        """Attach ``observer``; it hears what happens from now on, in the order of attachment."""
        events = _events_of(observer)
        if len(events) == len(_EVENTS):
            self._hear = tuple([(*there, observer) for there in self._hear])
            return
        hear = [*self._hear]
        for event in events:
            hear[event] += (observer,)
        self._hear = tuple(hear)

    @property
    def request_shape(self) -> Shape:
        """The shape of ``request_headers`` as they are now."""
        shape = self._shape
        if shape is None or self._shaped is not self.request_headers:
            self._shaped = self.request_headers
            shape = self._shape = shape_of(self.request_headers)
        return shape

    @property
    def response_shape(self) -> Shape:
        """The shape of ``response_headers`` as they are now."""
        if self._answer_shape is None or self._answer is not self.response_headers:
            self._answer, self._answer_shape = self.response_headers, shape_of(self.response_headers)
        return self._answer_shape

    def answered(self, status: int, reason: str, headers: RawHeaders, shape: Shape) -> None:
        """The answer's head goes to the caller; ``shape`` is that of ``headers``."""
        self.status, self.reason, self.response_headers = status, reason, headers
        self._answer, self._answer_shape = headers, shape

    def drop_request_header(self, place: int) -> None:
        """Take away the request header at ``place``."""
        shape = self.request_shape.without(place)
        headers = self.request_headers
        self.request_headers = self._shaped = headers[:place] + headers[place + 1 :]
        self._shape = shape

    def find(self, name: bytes) -> bytes | None:
        """The value of the first request header called ``name`` (given in lower case), or None."""
        for key, value in self.request_headers:
            if key.lower() == name:
                return value
        return None

    def remove_request_headers(self, unwanted: Callable[[bytes, bytes], bool]) -> int:
        """Take away every request header for which ``unwanted(name, value)``; returns how many went."""
        kept = tuple(pair for pair in self.request_headers if not unwanted(*pair))
        gone = len(self.request_headers) - len(kept)
        if gone:
            self.request_headers = kept
        return gone

    def add_response_header(self, name: str, value: str) -> None:
        """Send ``name: value`` to the caller, in place of any header of that name from upstream.

        Raises RuntimeError once the head has left, ValueError for a name or value no header may have, and for the
        headers of this hop and its framing.
        """
        if self.head_sent:
            raise RuntimeError(f"response header {name!r} added after the head had left")
        if not self.added_headers and name in _PLAIN_NAMES and value.isascii() and value.isprintable():
            self.added_headers[name] = value
            return
        try:
            bad = _TOKEN.fullmatch(name) is None or not is_valid_value(value.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:
            bad = True
        if bad:
            raise ValueError(f"not a header: {name!r}")
        lower = name.lower()
        if lower.encode() in _FRAMING:
            raise ValueError(f"the header {name!r} belongs to the connection, not to the response")
        for known in [known for known in self.added_headers if known.lower() == lower]:
            del self.added_headers[known]
        if len(_PLAIN_NAMES) < _PLAIN_NAMES_CAP:
            _PLAIN_NAMES.add(name)
        self.added_headers[name] = value

    def hold(self, wait: Callable[[], Awaitable[None]], limit: int) -> None:
        """Take the whole request in (up to ``limit`` bytes, else 413) and tell it before any of it goes upstream, then ``wait``."""
        self.holds = (*self.holds, Hold(wait, limit))

    def replace_request_body(self, body: bytes) -> None:
        """Send ``body`` upstream instead of the caller's; the exchange is marked as transformed."""
        self._transform()
        self.request_body = body

    def transform_response(self, transform: Transform) -> None:
        """Pass the response body through ``transform``; the last one added is the last to change it.

        RuntimeError where no link of the chain declares ``transforms``, or once the head has left.
        """
        if self.head_sent:
            raise RuntimeError("a response cannot be transformed after its head has left")
        self._transform()
        self.transforms = (*self.transforms, transform)

    def _transform(self) -> None:
        if not self.may_transform:
            raise RuntimeError("only a link that declares transforms = True may change bytes")
        self.transformed = True

    # What happened: told by the edge and the relay alone.

    # What every exchange has is told in place, without ``_call``: two calls less an event, as much as the copy into the journal.

    def tell_request_head(self) -> None:
        for observer in self._hear[0]:
            begun = perf_counter()
            try:
                observer.request_head(self)
            except Exception as error:
                self._failed(observer, "request_head", error)
            else:
                if perf_counter() - begun > OBSERVER_SLOW_SECONDS:
                    self._strike(observer, "request_head")

    def tell_request_start(self, data: bytes) -> None:
        """``tell_request_head`` and the one ``tell_request_bytes`` in one."""
        self.request_size += len(data)
        for observer in self._hear[_REQUEST_START]:
            begun = perf_counter()
            try:
                observer.request_start(self, data)
            except Exception as error:
                self._failed(observer, "request_start", error)
            else:
                if perf_counter() - begun > OBSERVER_SLOW_SECONDS:
                    self._strike(observer, "request_start")

    def tell_request_bytes(self, data: bytes) -> None:
        self.request_size += len(data)
        for observer in self._hear[1]:
            self._call(observer, "request_bytes", observer.request_bytes, data)

    def tell_response_head(self) -> None:
        for observer in self._hear[2]:
            self._call(observer, "response_head", observer.response_head)

    def tell_response_start(self, data: bytes) -> None:
        """``tell_response_head`` and the first ``tell_response_bytes`` in one."""
        self.first_byte = time.monotonic()
        self.response_size += len(data)
        for observer in self._hear[_START]:
            begun = perf_counter()
            try:
                observer.response_start(self, data)
            except Exception as error:
                self._failed(observer, "response_start", error)
            else:
                if perf_counter() - begun > OBSERVER_SLOW_SECONDS:
                    self._strike(observer, "response_start")

    def tell_response_bytes(self, data: bytes) -> None:
        if self.first_byte is None:
            self.first_byte = time.monotonic()
        self.response_size += len(data)
        for observer in self._hear[3]:
            begun = perf_counter()
            try:
                observer.response_bytes(self, data)
            except Exception as error:
                self._failed(observer, "response_bytes", error)
            else:
                if perf_counter() - begun > OBSERVER_SLOW_SECONDS:
                    self._strike(observer, "response_bytes")

    def tell_tunnel_bytes(self, direction: Direction, data: bytes) -> None:
        if direction is Direction.TO_CALLER:
            self.response_size += len(data)
        else:
            self.request_size += len(data)
        for observer in self._hear[4]:
            self._call(observer, "tunnel_bytes", observer.tunnel_bytes, direction, data)

    def close(self, outcome: Outcome) -> None:
        """End the exchange; the first call decides, later ones change nothing (law 4)."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        self.ended = time.monotonic()
        self._abort = None
        for observer in self._hear[5]:
            begun = perf_counter()
            try:
                observer.closed(self)
            except Exception as error:
                self._failed(observer, "closed", error)
            else:
                if perf_counter() - begun > OBSERVER_SLOW_SECONDS:
                    self._strike(observer, "closed")
        self._hear = _NOBODY

    @property
    def closed(self) -> bool:
        """Whether the exchange has ended."""
        return self.outcome is not None

    def on_abort(self, abort: "Callable[[Outcome], None] | None") -> None:
        """Say how a running exchange is ended from outside (drain, kill); None takes it back."""
        self._abort = abort

    def abort(self, outcome: Outcome) -> bool:
        """End a running exchange from outside; its caller's connection is cut. False when nobody has said how."""
        if self._abort is None or self.outcome is not None:
            return False
        self._abort(outcome)
        return True

    def _call(self, observer: Observer, event: str, method: Callable[..., None], *args: object) -> None:
        begun = perf_counter()
        try:
            method(self, *args)
        except Exception as error:
            self._failed(observer, event, error)
        else:
            if perf_counter() - begun > OBSERVER_SLOW_SECONDS:
                self._strike(observer, event)

    def _failed(self, observer: Observer, event: str, error: Exception) -> None:
        # Without the exception's message: it may quote what passed.
        where = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        self._detach(observer, f"{type(error).__name__} in {event}", where)

    def _strike(self, observer: Observer, where: str) -> None:
        strikes = self._strikes = self._strikes or {}
        key = id(observer)  # an observer need not be hashable
        strikes[key] = strikes.get(key, 0) + 1
        if strikes[key] >= OBSERVER_STRIKES:
            self._detach(observer, f"slow in {where}")

    def _detach(self, observer: Observer, why: str, trace: str = "") -> None:
        # New tuples: the one being walked must stay as it is.
        self._hear = tuple(tuple(other for other in there if other is not observer) for there in self._hear)
        name = type(observer).__name__
        reports = self.facts.setdefault("detached", [])
        if isinstance(reports, list):
            reports.append(f"{name}: {why}")
        _log.error("observer %s of exchange %s detached: %s%s", name, self.id, why, f"\n{trace}" if trace else "")

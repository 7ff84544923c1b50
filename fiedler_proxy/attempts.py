"""Attempts: one exchange that may go to several upstreams, asked in turn until one of them serves it.

Owns the rules of failover. Another upstream is asked only as long as the caller has seen nothing, after a failure that the route names, with a
request that is still at hand whole; a request that may have been processed is sent again only where the route says so. When all
fail, the caller gets what the last upstream that answered has said.
"""

import logging
import math
import time
from collections.abc import Awaitable, Iterable, Sequence
from typing import ClassVar

from aiohttp import web

from fiedler_proxy.answer import Answer, TurnedAway
from fiedler_proxy.body_peek import peek, tell_kept
from fiedler_proxy.errors import ExchangeError, Fault, body_too_large
from fiedler_proxy.exchange import Exchange, Outcome
from fiedler_proxy.flow import Flow
from fiedler_proxy.gate import Gate
from fiedler_proxy.headers import RawHeaders
from fiedler_proxy.key_source import Key
from fiedler_proxy.lifecycle import ResponseCut
from fiedler_proxy.model_name import SCAN_CAP
from fiedler_proxy.provider import CALLER_CREDENTIALS, Place, without_parameter
from fiedler_proxy.relay import Relay
from fiedler_proxy.route import BY_STATUS, Retry
from fiedler_proxy.signer import OF_A_SIGNATURE, SIGNED_BY_CALLER
from fiedler_proxy.targets import Live, attempts_of
from fiedler_proxy.way import Way
from fiedler_proxy.wire import ResponseHead, Sink, UpstreamConnection

ATTEMPTS_MOST = 8

_SIGNED = CALLER_CREDENTIALS | OF_A_SIGNATURE

SESSIONS = (b"x-claude-code-session-id", b"session-id", b"session_id", b"x-session-id", b"x-session-affinity")
"""Headers that name the session of a caller (CONTRACTS section 1): for affinity, never for authorisation. The surest first."""

_SESSIONS = frozenset(SESSIONS)

_QUERY_KEYS = ("key", "api_key", "api-key")

_log = logging.getLogger("kgb.route")


class Attempts:
    """The plan of one exchange: ``lives`` in the order in which they are asked, by the rules of ``way`` (a relay.Plan and a flow.Judge)."""

    # One is made for every request of such a route: what most of them never set stands here.
    cap: ClassVar[int] = SCAN_CAP
    began: bool = False
    _last: bool = False
    _live: Live | None = None
    _key: Key | None = None
    _begun: float = 0.0
    _target: str = ""
    _headers: RawHeaders = ()
    _aside: Answer | None = None
    _aside_of: Live | None = None

    def __init__(self, way: Way, lives: tuple[Live, ...]) -> None:
        self.way = way
        self.lives = lives

    def ready(self, exchange: Exchange) -> bool:
        """``relay.Plan``: nothing but a header has to be done before the first attempt."""
        self._target, self._headers = exchange.target, exchange.request_headers
        if self.way.signs or self.way.many_keys or self.lives[0].signer is not None:
            return False
        try:
            self._start(exchange, self.lives[0], last=len(self.lives) == 1)
        except LookupError:
            return False
        return True

    def begin(self, relay: Relay, request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse]:
        """``relay.Plan``."""
        if self.ready(exchange):
            return relay.once(request, exchange, self, self)
        return self._ask(relay, request, exchange, 0)

    async def _ask(self, relay: Relay, request: web.Request, exchange: Exchange, done: int) -> web.StreamResponse:
        """Ask one after the other, all but the first ``done``."""
        if self.way.signs and not done:
            await _take_whole(request, exchange)
        turns: Sequence[Live] = self.lives[:ATTEMPTS_MOST]
        if self.way.many_keys:
            turns = list(attempts_of(self.lives, time.monotonic(), ATTEMPTS_MOST))
        for number, live in enumerate(turns[done:], done + 1):
            last = number == len(turns)
            exchange.target, exchange.request_headers, exchange.hop_lines = self._target, self._headers, ()
            try:
                self._start(exchange, live, last=last)
                if live.signer is not None:
                    exchange.hop_lines = await live.signer.lines(exchange, live.target, exchange.request_body or b"")
            except LookupError as error:
                self._let_go()
                if last and self._aside is None:
                    raise _no_key(live, error) from None
                self._note(exchange, live, f"no key: {error.args[0]}")
                continue
            except BaseException:  # the caller left while credentials were fetched
                self._let_go()
                raise
            try:
                response = await relay.once(request, exchange, self)
            except BaseException as error:
                if not self._may_go_on(exchange, error):
                    raise
            else:
                self.served(exchange)
                return response
        assert self._aside is not None
        assert self._aside_of is not None
        exchange.upstream = self._aside_of.target.upstream
        return await relay.play(request, exchange, self._aside)

    def _start(self, exchange: Exchange, live: Live, *, last: bool) -> None:
        """Everything is ready for an attempt at ``live``. LookupError when there is no key for it."""
        self._begun = now = time.monotonic()
        self._key = self.aim(exchange, live, now)
        self._live, self._last, self.began = live, last, False
        if live.breaker.opened:
            live.breaker.take(now)
        live.running += 1

    def served(self, exchange: Exchange) -> None:
        """``relay.Plan``: what the attempt teaches is told to whom it was made at."""
        live, self._live = self._live, None
        assert live is not None
        live.running -= 1
        first, status = exchange.first_byte, exchange.status
        after = _retry_after(exchange.response_headers) if status >= 400 else None
        live.tell(status, None if first is None else first - self._begun, self._key, after, self._begun)

    async def go_on(
        self, relay: Relay, request: web.Request, exchange: Exchange, error: BaseException
    ) -> web.StreamResponse:
        """``relay.Plan``."""
        if not self._may_go_on(exchange, error):
            raise error
        return await self._ask(relay, request, exchange, 1)

    def _may_go_on(self, exchange: Exchange, error: BaseException) -> bool:
        """What a failed attempt teaches is told; whether another one may be made, or the answer that was put aside be given."""
        live = self._live
        assert live is not None
        if isinstance(error, TurnedAway):
            head = error.answer.head
            self._over(live)
            live.tell(head.status, None, self._key, _retry_after(head.headers), time.monotonic())
            if not error.answer.broken:
                self._aside, self._aside_of = error.answer, live
            self._note(exchange, live, str(head.status))
            return True
        if _by_upstream(error):
            self._over(live)
            live.tell_failure(time.monotonic())
        else:
            self._let_go()
        if not isinstance(error, ExchangeError) or not self._goes_on(exchange, error):
            return False
        if self._last and self._aside is None:
            return False
        self._note(exchange, live, error.code)
        return True

    def _over(self, live: Live) -> None:
        self._live = None
        live.running -= 1

    def _let_go(self) -> None:
        """The attempt ended by nobody's fault who was asked: it teaches nothing."""
        live, self._live = self._live, None
        if live is not None:
            live.running -= 1
            live.breaker.given_up()

    def aim(self, exchange: Exchange, live: Live, now: float) -> Key | None:
        """Make the exchange one for ``live``, but for a signature. LookupError when there is no key for it."""
        provider = live.target.provider
        affinity = session_of(exchange) if self.way.decision.route.affinity and live.many_keys else ""
        key = live.credential(affinity, now) if live.keys is not None else None
        exchange.upstream = live.target.upstream
        if provider.cut:
            exchange.target = exchange.target.removeprefix(provider.cut)
        if key is not None:
            exchange.hop_lines = (key.line[1],)
        if provider.fiedler:
            exchange.hop_lines += (b"x-kgb-request-id: " + exchange.id.encode(),)
            if exchange.caller:
                exchange.hop_lines += (b"x-kgb-caller: " + exchange.caller.encode("ascii", "replace"),)
        elif key is not None or live.signer is not None or provider.place is Place.NONE:
            drop = CALLER_CREDENTIALS if live.signer is None else _SIGNED
            for place in reversed(exchange.request_shape.places(drop)):
                exchange.drop_request_header(place)
            if "?" in exchange.target:
                exchange.target = without_parameter(exchange.target, _QUERY_KEYS)
        elif provider.aws and (exchange.find(b"authorization") or b"").startswith(SIGNED_BY_CALLER):
            raise _signed_for_us(live)
        return key

    def takes(self, flow: Flow, connection: UpstreamConnection, head: ResponseHead) -> Sink | None:
        """``flow.Judge``: an answer that means that the next one is asked is put aside."""
        kind = None if self._last else BY_STATUS.get(head.status)
        if kind is None or kind not in self.way.decision.route.retry:
            return None
        live = self._live
        if kind is Retry.UNAUTHORIZED and (live is None or (live.keys is None and live.signer is None)):
            return None  # the caller's own credential is the caller's own affair
        return Gate(flow, connection, head) if _at_hand(flow.exchange) else None

    def _goes_on(self, exchange: Exchange, error: ExchangeError) -> bool:
        if exchange.head_sent:
            return False
        kind = Retry.TIMEOUT if error.code == "first_byte_timeout" else Retry.BROKEN
        if not self.began:
            kind = Retry.CONNECT
        if error.fault is not Fault.UPSTREAM and not error.code.startswith("upstream_queue"):
            return False
        return kind in self.way.decision.route.retry and _at_hand(exchange)

    def _note(self, exchange: Exchange, live: Live, why: str) -> None:
        """Every attempt that came to nothing is a fact of the exchange, and so of its record."""
        exchange.facts[f"attempt_{sum(name.startswith('attempt_') for name in exchange.facts) + 1}"] = (
            f"{live.name}: {why}"
        )
        _log.info("exchange %s: %s: %s; asking the next one", exchange.id, live.name, why)


async def _take_whole(request: web.Request, exchange: Exchange) -> None:
    """A signature is of the whole body, and who asks for one wants its length."""
    if exchange.request_body is not None:
        return
    if exchange.kept is None:
        await peek(request, exchange)
    assert exchange.kept is not None
    if not exchange.kept.whole:
        raise body_too_large(SCAN_CAP)
    tell_kept(exchange)
    if exchange.kept.size:
        exchange.request_body = exchange.kept.body()


def _signed_for_us(live: Live) -> ExchangeError:
    return ExchangeError(
        "signed_by_caller",
        f"The request is signed for this gateway, and {live.name} would refuse it: the signature holds the host.",
        status=400,
        hint="let the gateway sign ([providers.bedrock]), or send a bearer key",
        retry=False,
    )


def _by_upstream(error: BaseException) -> bool:
    """Whether it was the upstream that failed, before its answer or in the midst of it."""
    if isinstance(error, ResponseCut):
        return error.outcome in (Outcome.UPSTREAM_BROKE, Outcome.TIMED_OUT)
    return isinstance(error, ExchangeError) and error.fault is Fault.UPSTREAM


def session_of(exchange: Exchange) -> str:
    """The session that the caller names, "" for none."""
    shape, headers = exchange.request_shape, exchange.request_headers
    places = shape.places(_SESSIONS)
    if not places:
        return ""
    place = min(places, key=lambda each: SESSIONS.index(shape.lower[each])) if len(places) > 1 else places[0]
    return headers[place][1].decode("latin-1")


def _at_hand(exchange: Exchange) -> bool:
    """Whether the request can be sent once more."""
    return exchange.kept is None or not exchange.kept.lost or exchange.request_body is not None


def _retry_after(headers: RawHeaders | Iterable[tuple[bytes, bytes]]) -> float | None:
    """Seconds of a Retry-After (RFC 9110 section 10.2.3); a date is not read, since clocks differ."""
    for name, value in headers:
        if name.lower() == b"retry-after":
            try:
                seconds = float(value)
            except ValueError:
                return None
            return seconds if math.isfinite(seconds) and seconds >= 0 else None
    return None


def _no_key(live: Live, error: LookupError) -> ExchangeError:
    return ExchangeError(
        "no_provider_key",
        f"The gateway has no key for {live.name}: {error.args[0]}.",
        status=503,
        fault=Fault.GATEWAY,
        hint="see [providers] in its configuration",
        retry=False,
    )

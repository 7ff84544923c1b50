"""Attempts: one exchange that may go to several upstreams, asked in turn until one of them serves it.

Owns the rules of failover. Another upstream is asked only as long as the caller has seen nothing, after a failure that the route names, with a
request that is still at hand whole; a request that may have been processed is sent again only where the route says so. When all
fail, the caller gets what the last upstream that answered has said.
"""

import logging
import math
import time
from collections.abc import Iterable

import attrs
from aiohttp import web

from fiedler_proxy.body_peek import peek, tell_kept
from fiedler_proxy.errors import ExchangeError, Fault, body_too_large
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.flow import Answer, Flow, TurnedAway
from fiedler_proxy.gate import Gate
from fiedler_proxy.headers import RawHeaders
from fiedler_proxy.kept import Kept
from fiedler_proxy.key_source import Key
from fiedler_proxy.model_name import SCAN_CAP
from fiedler_proxy.provider import CALLER_CREDENTIALS, Place, without_parameter
from fiedler_proxy.relay import Relay
from fiedler_proxy.route import BY_STATUS, Retry, Route
from fiedler_proxy.signer import OF_A_SIGNATURE, SIGNED_BY_CALLER
from fiedler_proxy.targets import Live, attempts_of
from fiedler_proxy.wire import ResponseHead, Sink, UpstreamConnection

ATTEMPTS_MOST = 8

_SIGNED = CALLER_CREDENTIALS | OF_A_SIGNATURE

SESSIONS = (b"x-claude-code-session-id", b"session-id", b"session_id", b"x-session-id", b"x-session-affinity")
"""Headers that name the session of a caller (CONTRACTS section 1): for affinity, never for authorisation. The surest first."""

_SESSIONS = frozenset(SESSIONS)

_QUERY_KEYS = ("key", "api_key", "api-key")

_log = logging.getLogger("kgb.route")


@attrs.define(eq=False)
class Attempts:
    """The plan of one exchange: ``lives`` in the order in which they are asked, by the rules of ``route`` (a relay.Plan and a flow.Judge). ``many_keys``:
    one of them has several, and is asked with each; ``signs``: one of them signs the body, which is taken in first."""

    route: Route
    lives: tuple[Live, ...]
    many_keys: bool = False
    signs: bool = False
    began: bool = False
    _last: bool = False
    _central: bool = False
    _aside: Answer | None = None
    _aside_of: Live | None = None

    async def serve(self, relay: Relay, request: web.Request, exchange: Exchange) -> web.StreamResponse:
        """``relay.Plan``."""
        target, headers = exchange.target, exchange.request_headers
        turns = (
            list(attempts_of(self.lives, time.monotonic(), ATTEMPTS_MOST))
            if self.many_keys
            else self.lives[:ATTEMPTS_MOST]
        )
        if self.signs:
            await _take_whole(request, exchange)
        elif len(turns) > 1 and exchange.kept is None:
            exchange.kept = Kept(SCAN_CAP)
        for number, live in enumerate(turns, 1):
            self._last = number == len(turns)
            if number > 1:
                exchange.target, exchange.request_headers, exchange.hop_lines = target, headers, ()
            begun = time.monotonic()
            try:
                key = self.aim(exchange, live, begun)
                if live.signer is not None:
                    exchange.hop_lines = await live.signer.lines(exchange, live.target, exchange.request_body or b"")
            except LookupError as error:
                if self._last and self._aside is None:
                    raise _no_key(live, error) from None
                self._note(exchange, live, f"no key: {error.args[0]}")
                continue
            self._central = key is not None or live.signer is not None
            self.began = told = False
            live.breaker.take(begun)
            live.running += 1
            try:
                response = await relay.once(request, exchange, self)
                first = exchange.first_byte
                after = _retry_after(exchange.response_headers) if exchange.status >= 400 else None
                live.tell(exchange.status, None if first is None else first - begun, key, after, begun)
                told = True
                return response
            except TurnedAway as turned:
                head = turned.answer.head
                live.tell(head.status, None, key, _retry_after(head.headers), time.monotonic())
                told = True
                if not turned.answer.broken:
                    self._aside, self._aside_of = turned.answer, live
                self._note(exchange, live, str(head.status))
            except ExchangeError as error:
                if error.fault is Fault.UPSTREAM:
                    live.tell_failure(time.monotonic())
                    told = True
                if not self._goes_on(exchange, error) or (self._last and self._aside is None):
                    raise
                self._note(exchange, live, error.code)
            finally:
                live.running -= 1
                if not told:
                    live.breaker.given_up()
        assert self._aside is not None
        assert self._aside_of is not None
        exchange.upstream = self._aside_of.target.upstream
        return await relay.play(request, exchange, self._aside)

    def aim(self, exchange: Exchange, live: Live, now: float) -> Key | None:
        """Make the exchange one for ``live``, but for a signature. LookupError when there is no key for it."""
        provider = live.target.provider
        affinity = session_of(exchange) if self.route.affinity and live.many_keys else ""
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
        if kind is None or kind not in self.route.retry:
            return None
        if kind is Retry.UNAUTHORIZED and not self._central:
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
        return kind in self.route.retry and _at_hand(exchange)

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

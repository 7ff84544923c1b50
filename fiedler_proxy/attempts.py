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
from fiedler_proxy.provider import Place, header_for, without_credentials, without_parameter
from fiedler_proxy.relay import Relay
from fiedler_proxy.route import BY_STATUS, Retry, Route
from fiedler_proxy.signer import SIGNED_BY_CALLER, without_signature
from fiedler_proxy.targets import Live, attempts_of
from fiedler_proxy.wire import UpstreamConnection

ATTEMPTS_MOST = 8

_QUERY_KEYS = ("key", "api_key", "api-key")

_log = logging.getLogger("kgb.route")


@attrs.define(eq=False)
class Attempts:
    """The plan of one exchange: ``lives`` in the order in which they are asked, by the rules of ``route``."""

    route: Route
    lives: tuple[Live, ...]
    affinity: str = ""
    _aside: Answer | None = None
    _aside_of: Live | None = None
    _sent: bool = False

    async def serve(self, relay: Relay, request: web.Request, exchange: Exchange) -> web.StreamResponse:
        """``relay.Plan``."""
        target, headers = exchange.target, exchange.request_headers
        turns = list(attempts_of(self.lives, time.monotonic(), ATTEMPTS_MOST))
        if any(live.signer is not None and live.signer.needs_body for live in turns):
            await _take_whole(request, exchange)
        elif len(turns) > 1 and exchange.kept is None:
            exchange.kept = Kept(SCAN_CAP)
        for number, live in enumerate(turns, 1):
            last = number == len(turns)
            try:
                key = await self.aim(exchange, live, target, headers)
            except LookupError as error:
                if last and self._aside is None:
                    raise _no_key(live, error) from None
                self._note(exchange, live, f"no key: {error.args[0]}")
                continue
            try:
                return await self._ask(relay, request, exchange, live, key, last=last)
            except TurnedAway as turned:
                if not turned.answer.broken:
                    self._aside, self._aside_of = turned.answer, live
                self._note(exchange, live, str(turned.answer.head.status))
            except ExchangeError as error:
                if not self._goes_on(exchange, live, error):
                    raise
                if last and self._aside is None:
                    raise
                self._note(exchange, live, error.code)
        assert self._aside is not None
        assert self._aside_of is not None
        exchange.upstream = self._aside_of.target.upstream
        return await relay.play(request, exchange, self._aside)

    async def aim(self, exchange: Exchange, live: Live, target: str, headers: RawHeaders) -> Key | None:
        """Make the exchange one for ``live``. LookupError when there is no key for it."""
        provider = live.target.provider
        affinity = self.affinity if self.route.affinity else ""
        key, secret = live.credential(affinity, time.monotonic())
        exchange.upstream = live.target.upstream
        exchange.target = target.removeprefix(provider.cut) if provider.cut else target
        exchange.request_headers, exchange.hop_lines = headers, ()
        if key is not None:
            name, value = header_for(provider.place, secret)
            exchange.hop_lines = (name + b": " + value,)
        if provider.fiedler:
            exchange.hop_lines += (b"x-kgb-request-id: " + exchange.id.encode(),)
            if exchange.caller:
                exchange.hop_lines += (b"x-kgb-caller: " + exchange.caller.encode("ascii", "replace"),)
        elif key is not None or live.signer is not None or provider.place is Place.NONE:
            exchange.request_headers = without_credentials(headers)
            exchange.target = without_parameter(exchange.target, _QUERY_KEYS)
        elif provider.aws and (exchange.find(b"authorization") or b"").startswith(SIGNED_BY_CALLER):
            raise _signed_for_us(live)
        if live.signer is not None:
            exchange.request_headers = without_signature(exchange.request_headers)
            exchange.hop_lines = await live.signer.lines(exchange, live.target, exchange.request_body or b"")
        return key

    async def _ask(
        self, relay: Relay, request: web.Request, exchange: Exchange, live: Live, key: Key | None, *, last: bool
    ) -> web.StreamResponse:
        """One attempt; what it teaches is told to ``live``."""
        begun = time.monotonic()
        live.breaker.take(begun)
        live.running += 1
        central = key is not None or live.signer is not None

        def judge(flow: Flow, connection: UpstreamConnection) -> Gate:
            self._sent = True
            return Gate(
                flow, connection, lambda status: not last and self._turns_away(exchange, status, central=central)
            )

        told = self._sent = False
        try:
            response = await relay.once(request, exchange, judge)
            first = exchange.first_byte
            wait = None if first is None else first - begun
            live.tell(exchange.status, wait, key, _retry_after(exchange.response_headers), time.monotonic())
            told = True
            return response
        except TurnedAway as turned:
            head = turned.answer.head
            live.tell(head.status, None, key, _retry_after(head.headers), time.monotonic())
            told = True
            raise
        except ExchangeError as error:
            if error.fault is Fault.UPSTREAM:
                live.tell_failure(time.monotonic())
                told = True
            raise
        finally:
            live.running -= 1
            if not told:
                live.breaker.given_up()

    def _turns_away(self, exchange: Exchange, status: int, *, central: bool) -> bool:
        """Whether an answer of ``status`` means that the next one is asked."""
        kind = BY_STATUS.get(status)
        if kind is None or kind not in self.route.retry or not _at_hand(exchange):
            return False
        return central or kind is not Retry.UNAUTHORIZED  # the caller's own credential is the caller's own affair

    def _goes_on(self, exchange: Exchange, live: Live, error: ExchangeError) -> bool:
        if exchange.head_sent:
            return False
        kind = Retry.TIMEOUT if error.code == "first_byte_timeout" else Retry.BROKEN
        if not self._sent:
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

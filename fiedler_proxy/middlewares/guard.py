"""The guard: whether a request may use this listener, decided before any other link that could act on it.

Refuses what is ambiguous on the wire (RFC 9112), what a web page must not be able to do, and a gateway that talks to
itself. Adds nothing to a request. The decisions are ``fiedler_proxy.guard`` and ``fiedler_proxy.target``.
"""

from typing import ClassVar

import attrs
from aiohttp import web

from fiedler_proxy.errors import ExchangeError, Fault
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.guard import fetch_site_allowed, host_allowed, host_of, origin_allowed
from fiedler_proxy.lifecycle import EXCHANGE, GATEWAY
from fiedler_proxy.server import Handler, OwnResponse
from fiedler_proxy.target import TargetError, parse_target, path_of

_KNOWN_HOSTS = 256
"""Host headers whose verdict is remembered."""


@web.middleware
@attrs.frozen
class Guard:
    """``hosts``: names besides IP addresses and localhost under which the gateway may be called (``*``: any,
    ``*.example.org``: all below). ``origins``: web pages that may call it, as ``scheme://host[:port]`` (``*``: any).
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    _verdicts: dict[bytes, bool] = attrs.field(init=False, factory=dict, eq=False, repr=False)

    shipped: ClassVar[bool] = True

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        authority = check_message(exchange)
        origin, site, codings = b"", b"", 0
        for name, value in exchange.request_headers:
            lower = name.lower()
            if lower == b"host":
                authority = value if authority is None else authority
            elif lower == b"origin":
                origin = value
            elif lower == b"sec-fetch-site":
                site = value
            elif lower == b"transfer-encoding":
                codings += 1
                check_coding(exchange, value, codings)
        if authority is not None and not self._verdicts.get(authority):
            self._check_host(authority)
        if origin or site:
            preflight = self._check_page(exchange, authority or b"", origin, site)
            if preflight is not None:
                return preflight
        check_loop(request)
        return await handler(request)

    def _check_host(self, authority: bytes) -> None:
        text = authority.decode("latin-1")
        if host_of(text) is None:
            raise ExchangeError("bad_host", "The Host header is malformed.", status=400, retry=False)
        if not host_allowed(text, self.hosts):
            raise ExchangeError(
                "host_not_allowed",
                "This gateway does not answer under the name in the Host header.",
                status=403,
                hint="list it in allowed_hosts if it is meant to",
                retry=False,
            )
        if len(self._verdicts) >= _KNOWN_HOSTS:
            self._verdicts.clear()
        self._verdicts[authority] = True

    def _check_page(self, exchange: Exchange, authority: bytes, origin: bytes, site: bytes) -> OwnResponse | None:
        page = origin.decode("latin-1")
        listed = bool(origin) and ("*" in self.origins or page in self.origins)
        if listed:
            exchange.add_response_header("Access-Control-Allow-Origin", page)
            return _preflight(exchange)
        foreign = bool(origin) and not origin_allowed(page, authority.decode("latin-1"), ())
        if foreign or not fetch_site_allowed(site.decode("latin-1").strip().lower()):
            raise ExchangeError(
                "origin_not_allowed",
                "A web page of another origin may not use this gateway.",
                status=403,
                hint="list the page's origin in allowed_origins if it is meant to",
                retry=False,
            )
        return None


def check_message(exchange: Exchange) -> bytes | None:
    """Refuse a request line that no two parties would read alike; the authority an absolute-form target names."""
    if exchange.version not in ((1, 0), (1, 1)):
        raise ExchangeError("bad_version", "Only HTTP/1.0 and HTTP/1.1 are spoken here.", status=400, retry=False)
    if exchange.method == "CONNECT":
        raise ExchangeError("connect_refused", "This is a gateway, not a tunnel.", status=501, retry=False)
    try:
        target = parse_target(exchange.method, exchange.target)
    except TargetError as error:
        raise ExchangeError("bad_target", f"The request is malformed: {error}.", status=400, retry=False) from None
    if target.authority is None:
        return None
    exchange.target = target.sent
    exchange.path = path_of(target.sent)
    return target.authority.encode("latin-1")


def check_coding(exchange: Exchange, value: bytes, count: int) -> None:
    """RFC 9112 section 6.1: chunked alone is understood, and only HTTP/1.1 may use it."""
    if exchange.version < (1, 1):
        raise ExchangeError("bad_framing", "Transfer-Encoding in an HTTP/1.0 request.", status=400, retry=False)
    codings = [coding.strip().lower() for coding in value.split(b",")]
    if codings == [b"chunked"] and count == 1:
        return
    if codings[-1] != b"chunked" or codings.count(b"chunked") > 1 or count > 1:
        raise ExchangeError("bad_framing", "Transfer-Encoding does not end in one chunked.", status=400, retry=False)
    raise ExchangeError("unknown_coding", "Only the chunked transfer coding is understood.", status=501, retry=False)


def check_loop(request: web.Request) -> None:
    """508 when the request came over one of this gateway's own connections (no header is needed to know that)."""
    local = request.app[GATEWAY].local
    if local and request.transport is not None and request.protocol.peername in local:
        raise ExchangeError(
            "loop",
            "This gateway's upstream is the gateway itself.",
            status=508,
            fault=Fault.GATEWAY,
            hint="set upstream to the provider's base URL",
            retry=False,
        )


def _preflight(exchange: Exchange) -> OwnResponse | None:
    """A listed page's CORS preflight (WHATWG Fetch): it carries no credential, so it is answered here."""
    wanted = exchange.find(b"access-control-request-method")
    if exchange.method != "OPTIONS" or wanted is None:
        return None
    exchange.local = True
    asked = exchange.find(b"access-control-request-headers") or b"*"
    headers = {
        "Access-Control-Allow-Methods": wanted.decode("latin-1"),
        "Access-Control-Allow-Headers": asked.decode("latin-1"),
        "Access-Control-Max-Age": "600",
        "Vary": "Origin",
    }
    return OwnResponse(status=204, headers=headers)

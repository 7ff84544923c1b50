"""The guard: whether a request may use this listener, decided before any other link that could act on it.

Refuses what is ambiguous on the wire (RFC 9112), what a web page must not be able to do, and a gateway that talks to
itself. Adds nothing to a request. The decisions are ``fiedler_proxy.guard`` and ``fiedler_proxy.target``.
"""

import os
from collections.abc import Awaitable
from typing import ClassVar

import attrs
from aiohttp import hdrs, web
from multidict import istr

from fiedler_proxy.errors import ExchangeError, Fault
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.guard import fetch_site_allowed, host_allowed, host_of, origin_allowed
from fiedler_proxy.lifecycle import EXCHANGE, GATEWAY, Gateway
from fiedler_proxy.server import Handler, OwnResponse
from fiedler_proxy.target import TargetError, is_plain, parse_target, path_of

_KNOWN_HOSTS = 256
"""Host headers that are remembered as allowed."""

_MAPPED = "::ffff:"

_VERSIONS = ((1, 1), (1, 0))

_FETCH_SITE = istr("Sec-Fetch-Site")


@web.middleware
@attrs.frozen
class Guard:
    """``hosts``: names besides IP addresses and localhost under which the gateway may be called (``*``: any,
    ``*.example.org``: all below). ``origins``: web pages that may call it, as ``scheme://host[:port]`` (``*``: any).
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    _known: set[str] = attrs.field(init=False, factory=set, eq=False, repr=False)

    shipped: ClassVar[bool] = True

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await (self.enter(request, request[EXCHANGE]) or handler(request))

    def enter(self, request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse] | None:
        """``links.Entering``."""
        headers = request.headers
        authority = check_message(exchange) or headers.get(hdrs.HOST)
        if hdrs.TRANSFER_ENCODING in headers:
            check_coding(exchange, headers.getall(hdrs.TRANSFER_ENCODING))
        if authority is not None and authority not in self._known:
            self._check_host(authority)
        if hdrs.ORIGIN in headers or _FETCH_SITE in headers:
            page, site = headers.getall(hdrs.ORIGIN, [""]), headers.get(_FETCH_SITE, "")
            preflight = self._check_page(exchange, authority or "", page, site)
            if preflight is not None:
                return _already(preflight)
        check_loop(request)
        return None

    def _check_host(self, authority: str) -> None:
        if host_of(authority) is None:
            raise ExchangeError("bad_host", "The Host header is malformed.", status=400, retry=False)
        if not host_allowed(authority, self.hosts):
            raise ExchangeError(
                "host_not_allowed",
                "This gateway does not answer under the name in the Host header.",
                status=403,
                hint="list it in allowed_hosts if it is meant to",
                retry=False,
            )
        if len(self._known) >= _KNOWN_HOSTS:
            self._known.clear()
        self._known.add(authority)

    def _check_page(self, exchange: Exchange, authority: str, pages: list[str], site: str) -> OwnResponse | None:
        page = pages[0] if len(pages) == 1 else "several"
        listed = bool(page) and ("*" in self.origins or page in self.origins)
        if listed:
            exchange.add_response_header("Access-Control-Allow-Origin", page)
            return _preflight(exchange)
        foreign = bool(page) and not origin_allowed(page, authority, ())
        if foreign or not fetch_site_allowed(site.strip().lower()):
            raise ExchangeError(
                "origin_not_allowed",
                "A web page of another origin may not use this gateway.",
                status=403,
                hint="list the page's origin in allowed_origins if it is meant to",
                retry=False,
            )
        return None


def check_message(exchange: Exchange) -> str | None:
    """Refuse a request line that no two parties would read alike; the authority an absolute-form target names."""
    if exchange.version not in _VERSIONS:
        raise ExchangeError("bad_version", "Only HTTP/1.0 and HTTP/1.1 are spoken here.", status=400, retry=False)
    if exchange.method == "CONNECT":
        raise ExchangeError("connect_refused", "This is a gateway, not a tunnel.", status=501, retry=False)
    if is_plain(exchange.target):
        return None
    try:
        target = parse_target(exchange.method, exchange.target)
    except TargetError as error:
        raise ExchangeError("bad_target", f"The request is malformed: {error}.", status=400, retry=False) from None
    if target.authority is None:
        return None
    exchange.target = target.sent
    exchange.path = path_of(target.sent)
    return target.authority


def check_coding(exchange: Exchange, values: list[str]) -> None:
    """RFC 9112 section 6.1: chunked alone is understood, and only HTTP/1.1 may use it."""
    if exchange.version < (1, 1):
        raise ExchangeError("bad_framing", "Transfer-Encoding in an HTTP/1.0 request.", status=400, retry=False)
    codings = [coding.strip().lower() for value in values for coding in value.split(",")]
    if codings == ["chunked"]:
        return
    if codings[-1] != "chunked" or codings.count("chunked") > 1 or len(values) > 1:
        raise ExchangeError("bad_framing", "Transfer-Encoding does not end in one chunked.", status=400, retry=False)
    raise ExchangeError("unknown_coding", "Only the chunked transfer coding is understood.", status=501, retry=False)


def check_loop(request: web.Request) -> None:
    """508 when the request came over one of this gateway's own connections: no header is needed to know that."""
    gateway, protocol = request.app[GATEWAY], request.protocol
    if is_own(gateway, protocol.peername, protocol.sockname):
        raise ExchangeError(
            "loop",
            "This gateway's upstream is the gateway itself.",
            status=508,
            fault=Fault.GATEWAY,
            hint="set upstream to the provider's base URL",
            retry=False,
        )


def is_own(gateway: Gateway, peer: object, name: object) -> bool:
    """Whether a connection that was accepted from ``peer`` at ``name`` is one that ``gateway`` itself opened.

    Both ends are compared: the port of an outgoing connection that was just reset may be a caller's already. The ends
    of a Unix socket are all alike: there, who is served at the path of the upstream's socket can only loop.
    """
    if isinstance(name, str):
        path = os.path.abspath(name)
        return bool(name) and any(upstream.unix == path for upstream in gateway.upstreams)
    local = gateway.local
    if isinstance(peer, tuple) and peer[0].startswith(_MAPPED):
        peer, name = _unmapped(peer), _unmapped(name)
    return peer in local and local[peer] == name


def _unmapped(address: object) -> object:
    """The IPv4 address and port of a connection that was accepted on a socket of both families (RFC 4291 2.5.5.2)."""
    return (address[0].removeprefix(_MAPPED), address[1]) if isinstance(address, tuple) else address


async def _already(response: OwnResponse) -> OwnResponse:
    return response


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

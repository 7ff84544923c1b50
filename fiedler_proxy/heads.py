"""Message heads as they go on the wire, in both directions: law 1's short list of changes, in one place.

Pure. What changes: hop-by-hop headers end here, Host names the upstream, the framing header is this hop's, the
gateway's own headers are added or taken away, Via and Forwarded stand only where configured. Everything else keeps its
bytes, order, case and number.
"""

import re

import attrs

from fiedler_proxy.exchange import Exchange
from fiedler_proxy.framing import ChunkedDecoder, Decoder, NoBody, UntilClose
from fiedler_proxy.headers import (
    CODING,
    EXPECT,
    HOP_BY_HOP,
    HOST,
    KINDS,
    LENGTH,
    OWN,
    UPGRADE,
    RawHeaders,
    connection_options,
    end_to_end,
    kind_of,
    nominated,
    serialize,
)
from fiedler_proxy.upstream import Upstream

CHUNKED = (b"Transfer-Encoding", b"chunked")

_OF_THE_WHOLE_BODY = frozenset((b"content-length", b"content-md5", b"content-digest", b"repr-digest", b"etag"))
"""Response headers that are no longer true once a link changes the body."""

_HOST = re.compile(rb"[A-Za-z0-9.:\[\]-]+")


@attrs.frozen
class Announcements:
    """What the gateway says of itself, off by default: ``via`` is the pseudonym for Via (RFC 9110 section 7.6.3),
    ``forwarded`` whether Forwarded (RFC 7239) names the caller's address and Host."""

    via: str = ""
    forwarded: bool = False


@attrs.frozen
class RequestHead:
    """A request head for the upstream, and how its body is framed: ``length`` bytes, ``chunked``, or none (0)."""

    raw: bytes
    length: int
    chunked: bool
    upgrade: bool
    expect: bool


def request_head(exchange: Exchange, upstream: Upstream, say: Announcements) -> RequestHead:
    """The head of ``exchange``'s request for ``upstream``. ValueError when a header would break out of its line."""
    headers, body, modern = exchange.request_headers, exchange.request_body, exchange.version >= (1, 1)
    kinds, kept = KINDS, []
    length, chunked, expect, upgrade, host = 0, False, False, b"", False
    for pair in end_to_end(headers):
        kind = kinds.get(pair[0])
        if kind is None:
            kind = kind_of(pair[0])
        if kind == HOST:
            host = True
            pair = (pair[0], upstream.host_header)
        elif kind == LENGTH:
            length = int(pair[1])
            if body is not None:
                continue
        elif kind == EXPECT:
            expect = modern and body is None and pair[1].lower() == b"100-continue"
            if body is not None:
                continue
        elif kind == OWN:
            continue
        kept.append(pair)
    for name, value in headers:
        kind = kinds.get(name)
        if kind is None:
            kind = kind_of(name)
        if kind == CODING:
            chunked = body is None
        elif kind == UPGRADE and modern and value.lower() == b"websocket" and b"upgrade" in connection_options(headers):
            upgrade = value  # RFC 9110 section 7.8: HTTP/1.0 knows no upgrade
    if not host and not modern:
        kept.insert(0, (b"Host", upstream.host_header))
    if upgrade:
        kept += [(b"Connection", b"Upgrade"), (b"Upgrade", upgrade)]
    if body is not None:
        length = len(body)
        kept.append((b"Content-Length", b"%d" % length))
    elif chunked:
        kept.append(CHUNKED)
    if say.via or say.forwarded:
        kept += _announced(exchange, say)
    start = f"{exchange.method} {upstream.target(exchange.target)} HTTP/1.1".encode("ascii")
    return RequestHead(serialize(start, kept), length, chunked, bool(upgrade), expect)


def _announced(exchange: Exchange, say: Announcements) -> list[tuple[bytes, bytes]]:
    added: list[tuple[bytes, bytes]] = []
    if say.via:
        added.append((b"Via", f"{exchange.version[0]}.{exchange.version[1]} {say.via}".encode()))
    if say.forwarded:
        address = f'"[{exchange.remote}]"' if ":" in exchange.remote else exchange.remote or "unknown"
        host = exchange.find(b"host")
        value = f"for={address}".encode() + (b';host="' + host + b'"' if host and _HOST.fullmatch(host) else b"")
        added.append((b"Forwarded", value))
    return added


@attrs.frozen
class CallerFraming:
    """How a response is framed towards the caller: ``chunked``; or ``until_close``, where only the end of the
    connection ends the body (an HTTP/1.0 caller of a body without length)."""

    chunked: bool
    until_close: bool


def caller_framing(version: tuple[int, int], decoder: Decoder, transformed: bool = False) -> CallerFraming:
    """The framing for a caller of HTTP ``version``, given how the upstream framed the body.

    Where a link changes the body, its length is no longer known.
    """
    unknown = isinstance(decoder, (ChunkedDecoder, UntilClose)) or (transformed and not isinstance(decoder, NoBody))
    return CallerFraming(chunked=unknown and version >= (1, 1), until_close=unknown and version < (1, 1))


def relayed_headers(exchange: Exchange, headers: RawHeaders, say: Announcements) -> RawHeaders:
    """The end-to-end headers of a response, with the gateway's own in place of namesakes from upstream."""
    added = exchange.added_headers
    drop = frozenset([name.lower().encode() for name in added])
    if exchange.transforms:
        drop = drop | _OF_THE_WHOLE_BODY
    kept = end_to_end(headers, drop)
    for name, value in added.items():
        kept.append((name.encode(), value.encode("utf-8", "surrogateescape")))
    if say.via:
        kept.append((b"Via", f"1.1 {say.via}".encode()))
    return tuple(kept)


def response_head(
    version: tuple[int, int],
    status: int,
    reason: bytes,
    headers: RawHeaders,
    framing: CallerFraming,
    keep_alive: bool,
) -> bytes:
    """A response head for a caller of HTTP ``version``. ValueError when a header would break out of its line."""
    lines = list(headers)
    if framing.chunked:
        lines.append(CHUNKED)
    if not keep_alive and version >= (1, 1):
        lines.append((b"Connection", b"close"))
    elif keep_alive and version < (1, 1):
        lines.append((b"Connection", b"keep-alive"))
    return serialize(b"HTTP/%d.%d %d %b" % (*version, status, reason), lines)


def interim_head(status: int, reason: bytes, headers: RawHeaders) -> bytes:
    """A 1xx head; ``headers`` end-to-end ones only."""
    return serialize(b"HTTP/1.1 %d %b" % (status, reason), end_to_end(headers))


def switching_head(reason: bytes, headers: RawHeaders) -> bytes:
    """The upstream's 101: Connection and Upgrade belong to this hop and to the next alike."""
    drop = (HOP_BY_HOP | nominated(headers)) - {b"upgrade"}
    kept = [pair for pair in headers if pair[0].lower() not in drop]
    return serialize(b"HTTP/1.1 101 %b" % reason, [*kept, (b"Connection", b"Upgrade")])


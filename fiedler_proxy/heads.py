"""Message heads as they go on the wire, in both directions: law 1's short list of changes, in one place.

Pure. What changes: hop-by-hop headers end here, Host names the upstream, the framing header is this hop's, the
gateway's own headers are added or taken away, Via and Forwarded stand only where configured. Everything else keeps its
bytes, order, case and number.
"""

import re
from functools import lru_cache

import attrs

from fiedler_proxy.exchange import Exchange
from fiedler_proxy.framing import ChunkedDecoder, Decoder, NoBody, UntilClose
from fiedler_proxy.headers import (
    CODING,
    CONNECTION,
    EXPECT,
    HOST,
    LENGTH,
    NEVER_NOMINATED,
    PLAIN_CONNECTIONS,
    UPGRADE,
    RawHeaders,
    Shape,
    connection_options,
    end_to_end,
    head_of,
    kind_of,
    serialize,
    shape_of,
)
from fiedler_proxy.upstream import Upstream

CHUNKED = b"Transfer-Encoding: chunked"

_OF_THE_WHOLE_BODY = frozenset((b"content-length", b"content-md5", b"content-digest", b"repr-digest", b"etag"))
"""Response headers that are no longer true once a link changes the body."""

_HOST = re.compile(rb"[A-Za-z0-9.:\[\]-]+")


@attrs.frozen
class Announcements:
    """What the gateway says of itself, off by default: ``via`` is the pseudonym for Via (RFC 9110 section 7.6.3),
    ``forwarded`` whether Forwarded (RFC 7239) names the caller's address and Host."""

    via: str = ""
    forwarded: bool = False


@attrs.define
class RequestHead:
    """A request head for the upstream, and how its body is framed: ``length`` bytes, ``chunked``, or none (0)."""

    raw: bytes
    length: int
    chunked: bool
    upgrade: bool
    expect: bool


def request_head(exchange: Exchange, upstream: Upstream, say: Announcements) -> RequestHead:
    """The head of ``exchange``'s request for ``upstream``. ValueError when a header would break out of its line."""
    headers, shape, body = exchange.request_headers, exchange.request_shape, exchange.request_body
    modern = exchange.version >= (1, 1)
    start = f"{exchange.method} {upstream.target(exchange.target)} HTTP/1.1".encode("ascii")
    lines = [start, *shape.lines(headers)]
    length, chunked, expect, upgrade, host, options = 0, False, False, b"", False, frozenset[bytes]()
    for place, kind in shape.special:
        value = headers[place][1]
        place += 1
        if kind == HOST:
            host = True
            lines[place] = shape.names[place - 1] + b": " + upstream.host_header
            continue
        if kind == LENGTH:
            length = int(value)
            if body is None:
                continue
        elif kind == EXPECT and body is None:
            expect = modern and value.lower() == b"100-continue"
            continue
        elif kind == CODING:
            chunked = body is None
        elif kind == UPGRADE:
            upgrade = upgrade or value
        elif kind == CONNECTION and value not in PLAIN_CONNECTIONS:
            options = connection_options(headers)
        del lines[place]
    if not host and not modern:
        lines.insert(1, b"Host: " + upstream.host_header)
    if options:
        lines = _without(lines, options - NEVER_NOMINATED)
    # RFC 9110 section 7.8: HTTP/1.0 knows no upgrade.
    upgrading = modern and b"upgrade" in options and upgrade.lower() == b"websocket"
    if upgrading:
        lines += [b"Connection: Upgrade", b"Upgrade: " + upgrade]
    if body is not None:
        length = len(body)
        lines.append(b"Content-Length: %d" % length)
    elif chunked:
        lines.append(CHUNKED)
    if say.via or say.forwarded:
        lines += _announced(exchange, say)
    if exchange.hop_lines:
        lines += exchange.hop_lines
    return RequestHead(head_of(lines), length, chunked, upgrading, expect)


def _without(lines: list[bytes], names: frozenset[bytes]) -> list[bytes]:
    """``lines``, the first aside, without the headers called ``names`` (lower case)."""
    return lines[:1] + [line for line in lines[1:] if line.partition(b":")[0].lower() not in names]


def _announced(exchange: Exchange, say: Announcements) -> list[bytes]:
    added: list[bytes] = []
    if say.via:
        added.append(f"Via: {exchange.version[0]}.{exchange.version[1]} {say.via}".encode())
    if say.forwarded:
        address = f'"[{exchange.remote}]"' if ":" in exchange.remote else exchange.remote or "unknown"
        host = exchange.find(b"host")
        value = f"Forwarded: for={address}".encode() + (
            b';host="' + host + b'"' if host and _HOST.fullmatch(host) else b""
        )
        added.append(value)
    return added


@attrs.frozen
class CallerFraming:
    """How a response is framed towards the caller: ``chunked``; or ``until_close``, where only the end of the
    connection ends the body (an HTTP/1.0 caller of a body without length)."""

    chunked: bool
    until_close: bool


_AS_IT_CAME = CallerFraming(chunked=False, until_close=False)
_IN_CHUNKS = CallerFraming(chunked=True, until_close=False)
_UNTIL_CLOSE = CallerFraming(chunked=False, until_close=True)


def caller_framing(version: tuple[int, int], decoder: Decoder, transformed: bool = False) -> CallerFraming:
    """The framing for a caller of HTTP ``version``, given how the upstream framed the body.

    Where a link changes the body, its length is no longer known.
    """
    unknown = isinstance(decoder, (ChunkedDecoder, UntilClose)) or (transformed and not isinstance(decoder, NoBody))
    if not unknown:
        return _AS_IT_CAME
    return _IN_CHUNKS if version >= (1, 1) else _UNTIL_CLOSE


def relayed_headers(
    exchange: Exchange, headers: RawHeaders, say: Announcements, shape: Shape | None = None
) -> RawHeaders:
    """The end-to-end headers of a response, with the gateway's own in place of namesakes from upstream."""
    added = exchange.added_headers
    ours = _lower(tuple(added))
    if exchange.transforms:
        ours |= _OF_THE_WHOLE_BODY
    kept = end_to_end(headers, ours, shape)
    kept += tuple([(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in added.items()])
    if say.via:
        kept += ((b"Via", f"1.1 {say.via}".encode()),)
    return kept


@lru_cache(64)
def _lower(names: tuple[str, ...]) -> frozenset[bytes]:
    return frozenset([name.lower().encode() for name in names])


def response_head(
    version: tuple[int, int],
    status: int,
    reason: str,
    headers: RawHeaders,
    framing: CallerFraming,
    keep_alive: bool,
    shape: Shape | None = None,
) -> bytes:
    """A response head for a caller of HTTP ``version``. ValueError when a header would break out of its line. ``shape``: of ``headers``, where
    it is known."""
    modern = version >= (1, 1)
    lines = [_status_line(modern, status, reason), *(shape or shape_of(headers)).lines(headers)]
    if framing.chunked:
        lines.append(CHUNKED)
    if not keep_alive and modern:
        lines.append(b"Connection: close")
    elif keep_alive and not modern:
        lines.append(b"Connection: keep-alive")
    return head_of(lines)


def _status_line(modern: bool, status: int, reason: str) -> bytes:
    return f"HTTP/1.{modern:d} {status} {reason}".encode("utf-8", "surrogateescape")


def interim_head(status: int, reason: str, headers: RawHeaders) -> bytes:
    """A 1xx head; ``headers`` end-to-end ones only."""
    return serialize(_status_line(True, status, reason), end_to_end(headers))


def switching_headers(relayed: RawHeaders, headers: RawHeaders) -> RawHeaders:
    """``relayed`` with the Upgrade of the upstream's 101: it belongs to this hop and to the next alike."""
    return (*relayed, *(pair for pair in headers if kind_of(pair[0]) == UPGRADE))


def switching_head(reason: str, headers: RawHeaders) -> bytes:
    """The 101 for the caller; ``headers`` as ``switching_headers`` gives them."""
    return serialize(_status_line(True, 101, reason), headers, b"Connection: Upgrade")

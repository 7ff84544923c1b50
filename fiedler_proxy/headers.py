"""Which headers end at this hop, which hold credentials: the only lists of their kind.

Pure functions over raw header pairs, as received: order, case, duplicates and bytes that are not UTF-8 are kept.
"""

import re
from collections.abc import Set

RawHeaders = tuple[tuple[bytes, bytes], ...]

HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade",
     b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info")
)  # fmt: skip
"""RFC 9110 section 7.6.1, and the proxy credentials of section 11.7 that belong to one hop."""

NEVER_NOMINATED = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"x-goog-api-key", b"cookie",
     b"content-type", b"content-encoding", b"anthropic-version", b"anthropic-beta", b"expect", b"x-kgb-key")
)  # fmt: skip
"""What a Connection header cannot take away: framing, host, credentials, and what gives the body its meaning."""

CREDENTIALS = frozenset(
    (b"authorization", b"proxy-authorization", b"x-api-key", b"x-goog-api-key", b"api-key", b"x-kgb-key",
     b"x-fiedler-key", b"cookie", b"set-cookie", b"x-amz-security-token", b"x-goog-iam-authorization-token")
)  # fmt: skip
"""Headers whose values never reach a log, the record or an error."""

REDACTED = "[REDACTED]"

GATEWAY_REQUEST_HEADERS = frozenset((b"x-kgb-key", b"x-kgb-request-id"))
"""Request headers of the gateway's own, which end here."""

KEEP, HOST, LENGTH, EXPECT, OWN = 0, 1, 2, 3, 4
HOP, CODING, UPGRADE, CONNECTION = -1, -2, -3, -4
"""What a header is to a hop (``kind_of``): below zero it ends here in either direction; OWN ends here in requests."""

KINDS_CAP = 2048
"""Header names, as spelled, whose kind is remembered; beyond it the memory starts anew."""

KINDS: dict[bytes, int] = {}
"""Kinds of the names seen so far: heads are read several thousand times a second, and mostly the same names."""

_SPECIAL = {
    b"host": HOST, b"content-length": LENGTH, b"expect": EXPECT, b"transfer-encoding": CODING, b"upgrade": UPGRADE,
    b"connection": CONNECTION,
}  # fmt: skip

PLAIN_CONNECTIONS = frozenset((b"keep-alive", b"Keep-Alive", b"close", b"Close"))
"""Connection headers that nominate nothing, as they are usually spelled."""

_FORBIDDEN = re.compile(rb"[\r\n\0]")


def kind_of(name: bytes) -> int:
    """What the header ``name`` (any case) is to this hop; hot callers look into ``KINDS`` first."""
    kind = KINDS.get(name)
    if kind is not None:
        return kind
    lower = name.lower()
    kind = _SPECIAL.get(lower, HOP if lower in HOP_BY_HOP else OWN if lower in GATEWAY_REQUEST_HEADERS else KEEP)
    if len(KINDS) >= KINDS_CAP:
        KINDS.clear()
    if len(name) <= 64:
        KINDS[name] = kind
    return kind


def nominated(headers: RawHeaders) -> frozenset[bytes]:
    """Header names (lower case) that a Connection header of ``headers`` declares hop-by-hop."""
    return connection_options(headers) - NEVER_NOMINATED


def connection_options(headers: RawHeaders) -> frozenset[bytes]:
    """Every option of the Connection headers, lower case."""
    return frozenset(
        option.strip().lower() for name, value in headers if kind_of(name) == CONNECTION for option in value.split(b",")
    )


def end_to_end(headers: RawHeaders, also: Set[bytes] = frozenset()) -> list[tuple[bytes, bytes]]:
    """``headers`` without those of this hop and without those named in ``also`` (lower case), order kept."""
    kinds = KINDS
    options = False
    kept = []
    for pair in headers:
        kind = kinds.get(pair[0])
        if kind is None:
            kind = kind_of(pair[0])
        if kind >= 0:
            kept.append(pair)
        elif kind == CONNECTION and pair[1] not in PLAIN_CONNECTIONS:
            options = True
    drop: Set[bytes] = also | nominated(headers) if options else also
    return [pair for pair in kept if pair[0].lower() not in drop] if drop else kept


def head_of(lines: list[bytes]) -> bytes:
    """A message head, ready for the wire. ValueError when a line would break out of its place."""
    lines += (b"", b"")
    head = b"\r\n".join(lines)
    ends = len(lines) - 1
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
        raise ValueError("a header holds CR, LF or NUL")
    return head


def serialize(start_line: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """``head_of`` a start line and header pairs."""
    return head_of([start_line, *[name + b": " + value for name, value in headers]])


def redacted(headers: RawHeaders, also: frozenset[bytes] = frozenset()) -> list[tuple[str, str]]:
    """``headers`` as text for people, credentials replaced by ``[REDACTED]``."""
    secret = CREDENTIALS | also
    return [
        (name.decode("latin-1"), REDACTED if name.lower() in secret else value.decode("latin-1"))
        for name, value in headers
    ]


def is_valid_value(value: bytes) -> bool:
    """Whether ``value`` may stand in a header line (RFC 9110 section 5.5: no CR, LF, NUL)."""
    return _FORBIDDEN.search(value) is None

"""Which headers end at this hop, which hold credentials: the only lists of their kind.

Pure functions over raw header pairs, as received: order, case, duplicates and bytes that are not UTF-8 are kept.
"""

import re

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

_FORBIDDEN = re.compile(rb"[\r\n\0]")


def nominated(headers: RawHeaders) -> frozenset[bytes]:
    """Header names (lower case) that a Connection header of ``headers`` declares hop-by-hop."""
    names = [
        option.strip().lower()
        for name, value in headers
        if len(name) == 10 and name.lower() == b"connection"
        for option in value.split(b",")
    ]
    if not names:
        return frozenset()
    return frozenset(names) - NEVER_NOMINATED


def connection_options(headers: RawHeaders) -> frozenset[bytes]:
    """Every option of the Connection headers, lower case."""
    return frozenset(
        option.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for option in value.split(b",")
    )


def end_to_end(headers: RawHeaders, also: frozenset[bytes] = frozenset()) -> list[tuple[bytes, bytes]]:
    """``headers`` without those of this hop and without those named in ``also`` (lower case), order kept."""
    drop = HOP_BY_HOP | nominated(headers) | also
    return [pair for pair in headers if pair[0].lower() not in drop]


def serialize(start_line: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
    """A message head, ready for the wire. ValueError when a value would break out of its line."""
    lines = [start_line]
    lines += [name + b": " + value for name, value in headers]
    head = b"\r\n".join(lines)
    if head.count(b"\n") != len(headers) or head.count(b"\r") != len(headers) or b"\0" in head:
        raise ValueError("a header holds CR, LF or NUL")
    return head + b"\r\n\r\n"


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

"""Which headers end at this hop, which hold credentials: the only lists of their kind.

Pure functions over raw header pairs, as received: order, case, duplicates and bytes that are not UTF-8 are kept.
"""

import re
from operator import add, itemgetter

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

GATEWAY_REQUEST_HEADERS = frozenset((b"x-kgb-key", b"x-kgb-request-id", b"x-kgb-caller", b"x-fiedler-key"))
"""Request headers of the gateway's own, which end here."""

KEEP, HOST, LENGTH, EXPECT, OWN = 0, 1, 2, 3, 4
HOP, CODING, UPGRADE, CONNECTION = -1, -2, -3, -4
"""What a header is to a hop (``kind_of``): below zero it ends here in either direction; OWN ends here in requests."""

_SPECIAL = {
    b"host": HOST, b"content-length": LENGTH, b"expect": EXPECT, b"transfer-encoding": CODING, b"upgrade": UPGRADE,
    b"connection": CONNECTION,
}  # fmt: skip

PLAIN_CONNECTIONS = frozenset((b"keep-alive", b"Keep-Alive", b"close", b"Close"))
"""Connection headers that nominate nothing, as they are usually spelled."""

_FORBIDDEN = re.compile(rb"[\r\n\0]")


def kind_of(name: bytes) -> int:
    """What the header ``name`` (any case) is to this hop."""
    lower = name.lower()
    return _SPECIAL.get(lower, HOP if lower in HOP_BY_HOP else OWN if lower in GATEWAY_REQUEST_HEADERS else KEEP)


def nominated(headers: RawHeaders) -> frozenset[bytes]:
    """Header names (lower case) that a Connection header of ``headers`` declares hop-by-hop."""
    return connection_options(headers) - NEVER_NOMINATED


def connection_options(headers: RawHeaders) -> frozenset[bytes]:
    """Every option of the Connection headers, lower case."""
    return frozenset(
        option.strip().lower() for name, value in headers if kind_of(name) == CONNECTION for option in value.split(b",")
    )


def end_to_end(headers: RawHeaders, also: frozenset[bytes] = frozenset(), shape: "Shape | None" = None) -> RawHeaders:
    """``headers`` (of ``shape``) without those of this hop and without those named in ``also`` (lower case; a
    constant), order kept."""
    shape = shape_of(headers) if shape is None else shape
    gone = shape.gone(also)
    if not gone:
        return headers
    kept, options = list(headers), False
    for place in gone:
        name, value = kept.pop(place)
        if value not in PLAIN_CONNECTIONS and kind_of(name) == CONNECTION:
            options = True
    if options and (drop := nominated(headers)):
        kept = [pair for pair in kept if pair[0].lower() not in drop]
    return tuple(kept)


SHAPES_CAP = 512
"""Shapes that are remembered; beyond it the memory starts anew."""

_SHAPE_NAMES = 64
_SHAPE_BYTES = 2048
_PLACES_CAP = 32

_name = itemgetter(0)
_value = itemgetter(1)


class Shape:
    """What the names of a message's headers say, worked out once for all messages that have the same names.

    A client sends the same names, spelled and in order alike, with nearly every request, and so does an upstream. So what
    the names alone decide is looked up, and only values are looked at for each message. ``special``: place and kind
    (``kind_of``) of every header that is not just kept, the last first.
    """

    __slots__ = ("_gone", "_places", "_without", "lower", "names", "prefixes", "special")

    def __init__(self, names: tuple[bytes, ...]) -> None:
        self.names = names
        self.lower = tuple([name.lower() for name in names])
        self.prefixes = tuple([name + b": " for name in names])
        kinds = [(place, kind_of(name)) for place, name in enumerate(names)]
        self.special = tuple([(place, kind) for place, kind in reversed(kinds) if kind != KEEP])
        self._gone: dict[frozenset[bytes], tuple[int, ...]] = {}
        self._places: dict[frozenset[bytes], tuple[int, ...]] = {}
        self._without: dict[int, Shape] = {}

    def places(self, names: frozenset[bytes]) -> tuple[int, ...]:
        """Where headers called one of ``names`` (lower case; a constant, since the answer is kept) stand."""
        places = self._places.get(names)
        if places is None:
            if len(self._places) >= _PLACES_CAP:
                self._places.clear()
            places = self._places[names] = tuple([i for i, name in enumerate(self.lower) if name in names])
        return places

    def gone(self, also: frozenset[bytes]) -> tuple[int, ...]:
        """Where headers stand that end here in either direction, or are called one of ``also``; the last first."""
        gone = self._gone.get(also)
        if gone is None:
            if len(self._gone) >= _PLACES_CAP:
                self._gone.clear()
            ends = {place for place, kind in self.special if kind < 0}
            gone = self._gone[also] = tuple(sorted(ends | set(self.places(also)), reverse=True))
        return gone

    def lines(self, headers: RawHeaders) -> "map[bytes]":
        """The header lines of ``headers``, without their ends."""
        return map(add, self.prefixes, map(_value, headers))

    def without(self, place: int) -> "Shape":
        """The shape of the same headers without the one at ``place``."""
        shape = self._without.get(place)
        if shape is None:
            shape = self._without[place] = Shape(self.names[:place] + self.names[place + 1 :])
        return shape


_SHAPES: dict[tuple[bytes, ...], Shape] = {}


def shape_of(headers: RawHeaders) -> Shape:
    """The shape of ``headers``."""
    names = tuple(map(_name, headers))
    shape = _SHAPES.get(names)
    if shape is None:
        shape = Shape(names)
        if len(names) <= _SHAPE_NAMES and sum(map(len, names)) <= _SHAPE_BYTES:
            if len(_SHAPES) >= SHAPES_CAP:
                _SHAPES.clear()
            _SHAPES[names] = shape
    return shape


def values_of(headers: RawHeaders) -> "map[bytes]":
    """The values of ``headers``, in order."""
    return map(_value, headers)


def head_of(lines: list[bytes]) -> bytes:
    """A message head, ready for the wire. ValueError when a line would break out of its place."""
    lines += (b"", b"")
    head = b"\r\n".join(lines)
    ends = len(lines) - 1
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
        raise ValueError("a header holds CR, LF or NUL")
    return head


def serialize(start_line: bytes, headers: RawHeaders, *more: bytes) -> bytes:
    """``head_of`` a start line, header pairs, and ``more`` lines behind them."""
    return head_of([start_line, *shape_of(headers).lines(headers), *more])


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

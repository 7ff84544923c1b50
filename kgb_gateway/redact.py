"""What the journal says of a message's head: everything but its credentials.

Pure. Owns which query parameters hold credentials; the list of headers is ``fiedler_proxy.headers.CREDENTIALS``. In place of a
credential stands ``[REDACTED]``, and beside the head a keyed fingerprint, by which equal ones can be told equal and from which
nothing can be told without the key.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from urllib.parse import unquote_plus

import attrs

from fiedler_proxy.headers import CREDENTIALS, REDACTED, RawHeaders, Shape, shape_of

FINGERPRINT_BYTES = 9

_PRINTS_CAP = 256
_TARGET_CAP = 256

_quote = json.encoder.encode_basestring_ascii

QUERY_CREDENTIALS = frozenset(
    ("key", "api_key", "apikey", "api-key", "access_token", "token", "auth", "authorization", "password", "secret",
     "sig", "signature", "x-amz-signature", "x-amz-credential", "x-amz-security-token", "x-goog-signature",
     "x-goog-credential", "code", "client_secret", "refresh_token", "id_token")
)  # fmt: skip
"""Query parameters (lower case) whose values never reach the record: Google's ``key``, signatures of signed URLs, tokens."""

_PARAMETER = re.compile(r"([^=&;]*)=([^&;]*)")
_OWN_KEY = re.compile(r"kgb(?:_|%5[fF])[0-9a-z]{10}(?:_|%5[fF])[\w%]*")
"""A key of the gateway's own, wherever somebody put it."""

_OWN_KEY_BYTES = re.compile(_OWN_KEY.pattern.encode())
_REDACTED = REDACTED.encode()
_PROTOCOL = b"sec-websocket-protocol"
_KEY_PROTOCOL = re.compile(rb"(?i)((?:api-?key|bearer|authorization|token)[^\s,.]*\.)[^\s,]+")
"""Browsers can give a WebSocket no header: they send a key as a subprotocol (OpenAI: ``openai-insecure-api-key.KEY``)."""

_NO_PRINTS: Mapping[str, str] = {}
_USERINFO = re.compile(r"(?i)\A([a-z][a-z0-9+.-]*://)[^/?#@]*@")


@attrs.frozen
class Redactor:
    """``secret`` keys the fingerprints; ``headers`` and ``parameters`` (lower case) are secret besides the usual ones."""

    secret: bytes = attrs.field(repr=False)
    headers: Collection[bytes] = ()
    parameters: Collection[str] = ()
    _names: frozenset[bytes] = attrs.field(init=False, eq=False, repr=False)
    _prints: dict[bytes, str] = attrs.field(init=False, eq=False, repr=False, factory=dict)

    _targets: dict[str, str] = attrs.field(init=False, eq=False, repr=False, factory=dict)

    @_names.default
    def _all_names(self) -> frozenset[bytes]:
        return CREDENTIALS | {_PROTOCOL} | frozenset(self.headers)

    def fingerprint(self, value: bytes) -> str:
        """Hexadecimal digits that are the same for the same ``value`` and this ``secret``."""
        found = self._prints.get(value)
        if found is None:
            if len(self._prints) >= _PRINTS_CAP:
                self._prints.clear()
            found = hashlib.blake2b(value, key=self.secret, digest_size=FINGERPRINT_BYTES).hexdigest()
            self._prints[value] = found
        return found

    def head(self, headers: RawHeaders, shape: Shape | None = None) -> tuple[bytes, Mapping[str, str]]:
        """``headers`` (of ``shape``) as lines like on the wire, every byte of them as it came but for credentials; and the
        fingerprints of those by header name (lower case)."""
        if shape is None:
            shape = shape_of(headers)
        places = shape.places(self._names)
        if places:
            block, prints = self._without_credentials(headers, shape, places)
        else:
            block, prints = b"\r\n".join(shape.lines(headers)), _NO_PRINTS
        # To look for one byte costs a tenth of looking for three.
        if (b"_" in block or b"%" in block) and b"kgb" in block:
            block = _OWN_KEY_BYTES.sub(_REDACTED, block)
        return block, prints

    def _without_credentials(
        self, headers: RawHeaders, shape: Shape, places: tuple[int, ...]
    ) -> tuple[bytes, Mapping[str, str]]:
        lines = list(shape.lines(headers))
        prints: dict[str, str] = {}
        for place in places:
            value = headers[place][1]
            if shape.lower[place] == _PROTOCOL:
                lines[place] = shape.prefixes[place] + _KEY_PROTOCOL.sub(rb"\1" + _REDACTED, value)
                continue
            lines[place] = shape.prefixes[place] + _REDACTED
            prints[shape.lower[place].decode("latin-1")] = self.fingerprint(_bare(value))
        return b"\r\n".join(lines), prints

    def target(self, target: str) -> str:
        """``target`` without the values of secret parameters and without user information; every other byte stays."""
        if "kgb" in target or "@" in target:
            target = _OWN_KEY.sub(REDACTED, _USERINFO.sub(r"\1", target))
        path, mark, query = target.partition("?")
        return path + mark + _PARAMETER.sub(self._parameter, query) if mark else target

    def quoted_target(self, target: str) -> str:
        """``target`` as a JSON string. Remembered: agents ask at few places; one with a query is a place of its own."""
        found = self._targets.get(target)
        if found is None:
            found = _quote(self.target(target))
            if len(target) <= _TARGET_CAP and "?" not in target:
                if len(self._targets) >= _PRINTS_CAP:
                    self._targets.clear()
                self._targets[target] = found
        return found

    def _parameter(self, match: re.Match[str]) -> str:
        name = _decoded(match[1]).lower()
        secret = name in QUERY_CREDENTIALS or name in self.parameters
        return f"{match[1]}={REDACTED}" if secret and match[2] else match[0]


def _bare(value: bytes) -> bytes:
    """``value`` without its scheme: the same key has one fingerprint in ``Authorization`` and in ``x-api-key``."""
    return value[7:].strip() if value[:7].lower() == b"bearer " else value.strip()


def _decoded(name: str) -> str:
    """``name`` with percent-encoding taken off: ``%6bey`` is ``key`` to the provider."""
    return unquote_plus(name)

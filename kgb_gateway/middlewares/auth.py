"""auth: who is asking, told by a key of this gateway; and no such key ever leaves it.

Owns where a key may stand in a request, what its lack or fault is answered, and its removal. Which keys there are is
the keyring's matter; a provider's credential is none of auth's.
"""

import base64
import binascii
import re
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote_to_bytes

import attrs
from aiohttp import web

from fiedler_proxy.config import setting
from fiedler_proxy.errors import ExchangeError, SettingsError
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.headers import RawHeaders, Shape, values_of
from fiedler_proxy.lifecycle import EXCHANGE
from fiedler_proxy.server import Handler
from kgb_gateway.caller import ANONYMOUS, Caller
from kgb_gateway.keyring import Keyring, State, Verdict
from kgb_gateway.keys_file import KeysFileError

CALLER: web.RequestKey[Caller] = web.RequestKey("caller", Caller)
"""``request[CALLER]``: who asks, once ``auth`` has let the request pass; ``ANONYMOUS`` where no key was needed."""

OWN_HEADER = b"x-kgb-key"
"""The gateway's own header: what stands here is a key of ours or wrong."""

KEY_HEADERS = (OWN_HEADER, b"authorization", b"x-api-key", b"x-goog-api-key")
"""Where a key may stand, the first that bears one decides. All but the first may hold a provider's instead."""

_KEY_HEADERS = frozenset(KEY_HEADERS)
_OWN_HEADERS = frozenset((OWN_HEADER,))
_MARK = b"kgb_"
_MARK_TEXT = _MARK.decode()
_BEARER = re.compile(rb"(?i)\Abearer[ \t]+")
_MODES = ("auto", "always", "never")
_HOW = "send one in x-kgb-key, Authorization: Bearer, x-api-key or x-goog-api-key; `kgb keys create NAME` makes one"
_SOURCE = "take the provider's credential out of x-kgb-key, or ask whoever runs this gateway for a key"


def _open_keyring(link: "Auth") -> Keyring:
    if link.required not in _MODES:
        raise SettingsError([f"links.auth.required is {link.required!r}; it must be one of {', '.join(_MODES)}"])
    if link.required == "always" and not link.keys_file:
        raise SettingsError(['links.auth.required is "always", but links.auth.keys_file names no file'])
    keyring = Keyring(Path(link.keys_file).expanduser() if link.keys_file else None)
    try:
        keyring.load()
    except KeysFileError as error:
        raise SettingsError([f"links.auth.keys_file: {error}"]) from None
    return keyring


@web.middleware
@attrs.frozen
class Auth:
    """``keys_file``: the file that ``kgb keys`` writes. ``required``: ``auto`` asks for a key from the moment the file
    exists, ``always`` from the start, ``never`` asks nobody but still refuses a key that is shown and not valid.
    """

    keys_file: str = setting("", path=True)
    required: str = "auto"
    _keyring: Keyring = attrs.field(init=False, repr=False, default=attrs.Factory(_open_keyring, takes_self=True))

    outer: ClassVar[bool] = False

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.enter(request, request[EXCHANGE])
        return await handler(request)

    def enter(self, request: web.Request, exchange: Exchange) -> None:
        """``links.Entering``."""
        if exchange.trusted:
            return
        self._keyring.refresh_if_due()
        headers, shape = exchange.request_headers, exchange.request_shape
        places = shape.places(_KEY_HEADERS)
        marks = b"\n".join(values_of(headers)).count(_MARK)
        caller = self._only_key(exchange, headers, shape, places) if marks == 1 else None
        if caller is None:
            caller = self._weighed(exchange, headers, shape, places, marks)
        exchange.caller = caller.name
        if caller.scopes and not caller.may_ask(exchange.path):
            raise _out_of_scope(caller)
        request[CALLER] = caller

    @property
    def requires_key(self) -> bool:
        """Whether a request without a key is refused, as things stand."""
        return self.required == "always" or (self.required == "auto" and self._keyring.state is not State.ABSENT)

    def _only_key(
        self, exchange: Exchange, headers: RawHeaders, shape: Shape, places: tuple[int, ...]
    ) -> Caller | None:
        """Who shows a valid key in the gateway's own header, where nothing else needs a look; None says no more."""
        own = shape.places(_OWN_HEADERS)
        if len(own) != 1 or "%" in exchange.target or _MARK_TEXT in exchange.target:
            return None
        verdict, caller = self._keyring.check(headers[own[0]][1])
        if verdict is not Verdict.VALID:
            return None
        for place in places:
            if place != own[0] and self._leaks(headers[place][1]):
                return None
        exchange.drop_request_header(own[0])
        return caller

    def _weighed(
        self, exchange: Exchange, headers: RawHeaders, shape: Shape, places: tuple[int, ...], marks: int
    ) -> Caller:
        """Who asks, all things considered; raises the refusal. No key of ours is left in the request."""
        shown, leaks = self._shown(headers, shape, places)
        if marks > sum([headers[place][1].count(_MARK) for place in places]):
            self._look_elsewhere(exchange, leaks)
        self._check_target(exchange)
        caller = self._caller(exchange, shown)
        if leaks:
            self._remove(exchange, leaks)
        return caller

    def _caller(self, exchange: Exchange, shown: dict[bytes, list[bytes]]) -> Caller:
        """Who shows a valid key, or ANONYMOUS where none is needed; raises the refusal."""
        own = shown.get(OWN_HEADER)
        if own is not None and len(own) > 1:
            raise _refusal("invalid_key", "x-kgb-key stands more than once in the request.", "send it once")
        for name in KEY_HEADERS:
            if name not in shown:
                continue
            for value in shown[name]:
                verdict, caller = self._keyring.check(value if value.startswith(b"kgb_") else _bare(value))
                if verdict is Verdict.VALID and caller is not None:
                    return caller
                if verdict is not Verdict.FOREIGN or name == OWN_HEADER:
                    raise self._bad_key(exchange, name, verdict, caller)
        if self.requires_key:
            raise self._no_key()
        return ANONYMOUS

    def _bad_key(self, exchange: Exchange, name: bytes, verdict: Verdict, caller: Caller | None) -> ExchangeError:
        where = name.decode()
        if caller is not None:
            # It was this caller's once: the log may say so, although nobody is let in by it.
            exchange.facts["key"] = caller.key_id
        if verdict is Verdict.EXPIRED:
            return _refusal("expired_key", f"The key in {where} has expired or was rotated.", "ask for a new key")
        if verdict is Verdict.REVOKED:
            return _refusal("revoked_key", f"The key in {where} has been revoked.", "ask for a new key")
        if self._keyring.state in (State.GONE, State.UNUSABLE):
            return self._no_key()
        if self._keyring.state is State.ABSENT:
            hint = "this gateway has no keys: leave x-kgb-key out, or make a key with `kgb keys create NAME`"
            return _refusal("invalid_key", f"The key in {where} is not valid.", hint)
        return _refusal("invalid_key", f"The key in {where} is not valid.", _SOURCE if name == OWN_HEADER else _HOW)

    def _no_key(self) -> ExchangeError:
        if self._keyring.state in (State.GONE, State.UNUSABLE):
            hint = "whoever runs it finds the reason in its log"
            return _refusal("keys_unavailable", "This gateway cannot read its keys and accepts none.", hint)
        return _refusal("missing_key", "This gateway asks for a key.", _HOW)

    def _check_target(self, exchange: Exchange) -> None:
        """Refuse a target that holds one of our keys: it would reach the provider, and every log on the way."""
        target = exchange.target
        if "kgb_" not in target and "%" not in target:
            return
        path, _, query = target.partition("?")
        for where, part in (("query", query), ("path", path)):
            if self._keyring.holds_key(unquote_to_bytes(part)):
                message = f"A key of this gateway stands in the {where} of the URL."
                raise _refusal(f"key_in_{where}", message, f"{_HOW}; rotate this one, since URLs end up in logs")

    def _leaks(self, value: bytes) -> bool:
        if b"kgb_" in value and self._keyring.holds_key(value):
            return True
        return value[:6].lower() == b"basic " and self._keyring.holds_key(_basic(value))

    def _shown(
        self, headers: RawHeaders, shape: Shape, places: tuple[int, ...]
    ) -> tuple[dict[bytes, list[bytes]], list[bytes]]:
        """The values that may be keys, by header; those that hold a key of ours."""
        shown: dict[bytes, list[bytes]] = {}
        leaks: list[bytes] = []
        for place in places:
            name, value = shape.lower[place], headers[place][1]
            if name in shown:
                shown[name].append(value)
            else:
                shown[name] = [value]
            if name == OWN_HEADER or self._leaks(value):
                leaks.append(value)
        return shown, leaks

    def _look_elsewhere(self, exchange: Exchange, leaks: list[bytes]) -> None:
        """A key of ours in a header that has no business with keys: it goes before anything else happens.

        The headers that may bear a key stay until the caller is known: they tell in which dialect a refusal is written,
        and whatever records a refused exchange redacts them.
        """
        headers, shape = exchange.request_headers, exchange.request_shape
        held = [value for _, value in headers if _MARK in value and self._keyring.holds_key(value)]
        if held:
            leaks += held
            exchange.request_headers = tuple(
                [
                    pair
                    for pair, name in zip(headers, shape.lower, strict=True)
                    if pair[1] not in leaks or name in _KEY_HEADERS
                ]
            )

    def _remove(self, exchange: Exchange, leaks: list[bytes]) -> None:
        headers, places = exchange.request_headers, exchange.request_shape.places(_KEY_HEADERS)
        if len(places) == 1 and headers[places[0]][1] == leaks[0] and len(leaks) == 1:
            exchange.drop_request_header(places[0])
        else:
            exchange.request_headers = tuple([pair for pair in headers if pair[1] not in leaks])


def _bare(value: bytes) -> bytes:
    """``value`` without the scheme ``Bearer`` (RFC 6750 section 2.1; RFC 9110 section 11.1: in any case)."""
    return _BEARER.sub(b"", value.strip(b" \t"))


def _basic(value: bytes) -> bytes:
    """What ``Basic`` credentials (RFC 7617) say: a key in a base URL's user information arrives like this."""
    if value[:6].lower() != b"basic ":
        return b""
    try:
        return base64.b64decode(value[6:].strip() + b"==")
    except (binascii.Error, ValueError):
        return b""


def _refusal(code: str, message: str, hint: str) -> ExchangeError:
    headers = (("WWW-Authenticate", "Bearer"),)
    return ExchangeError(code, message, status=401, hint=hint, retry=False, headers=headers)


def _out_of_scope(caller: Caller) -> ExchangeError:
    return ExchangeError(
        "out_of_scope",
        f"The key {caller.name!r} is not meant for this path.",
        status=403,
        hint=f"its scopes are: {' '.join(caller.scopes)}",
        retry=False,
    )

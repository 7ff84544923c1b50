"""fiedler_key: who may use a Fiedler that is a server of its own, and what its gateways in front tell it.

A KGB on another host shows the key that both know, and sends the id and the caller of the exchange, so that both hops speak of one thing.
"""

import hmac
import os
import re
import time
from pathlib import Path
from typing import ClassVar

import attrs
from aiohttp import web

from fiedler_proxy.config import setting
from fiedler_proxy.errors import ExchangeError
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.headers import RawHeaders
from fiedler_proxy.key_source import KeyRing, wrong_source
from fiedler_proxy.lifecycle import EXCHANGE
from fiedler_proxy.server import Handler

KEY, REQUEST_ID, CALLER = b"x-fiedler-key", b"x-kgb-request-id", b"x-kgb-caller"

_TOLD = frozenset((KEY, REQUEST_ID, CALLER))
_ID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _keys_wrong(values: tuple[str, ...]) -> str:
    return next(filter(None, map(wrong_source, values)), "")


@web.middleware
@attrs.frozen
class FiedlerKey:
    """``keys``: where the keys are read (``env:NAME``, ``file:/path``, ``credential:NAME``), any of which is good, so that one can be
    rotated; none asks for no key. ``base``: what files are relative to."""

    keys: tuple[str, ...] = setting((), check=_keys_wrong, secret=False)
    base: str = setting("", path=True)
    _ring: KeyRing = attrs.field(init=False, eq=False, repr=False)

    shipped: ClassVar[bool] = True

    @_ring.default
    def _read(self) -> KeyRing:
        return KeyRing.of(self.keys, Path(self.base or "."), os.environ)

    @property
    def requires_key(self) -> bool:
        """Whether a request without a key is refused."""
        return bool(self.keys)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.enter(request, request[EXCHANGE])
        return await handler(request)

    def enter(self, request: web.Request, exchange: Exchange) -> None:
        """``links.Entering``."""
        told = exchange.request_shape.places(_TOLD)
        if not told and not self.keys:
            return
        headers = exchange.request_headers
        if self.keys and not exchange.trusted and not self._good(headers):
            raise _refused(any(name.lower() == KEY for name, _ in headers))
        if told:
            self._take(exchange, headers)

    def _good(self, headers: RawHeaders) -> bool:
        shown = [value for name, value in headers if name.lower() == KEY]
        if len(shown) != 1:
            return False
        good, now = False, time.monotonic()
        for key in self._ring.keys:
            try:
                good |= hmac.compare_digest(key.read(now).encode(), shown[0])
            except LookupError:
                continue
        return good

    def _take(self, exchange: Exchange, headers: RawHeaders) -> None:
        for name, value in headers:
            if name.lower() == REQUEST_ID and _ID.fullmatch(value):
                exchange.id = value.decode()
            elif name.lower() == CALLER and self.keys:  # without a key, whoever asks is who they say to be: nobody
                exchange.caller = value.decode("latin-1")
        exchange.remove_request_headers(lambda name, _: name.lower() in _TOLD)


def _refused(shown: bool) -> ExchangeError:
    what = "The x-fiedler-key is not valid." if shown else "This Fiedler asks its gateways for a key."
    hint = "the gateway in front reads it from [providers.fiedler] keys, this one from [links.fiedler_key] keys"
    return ExchangeError("bad_fiedler_key", what, status=401, hint=hint, retry=False)

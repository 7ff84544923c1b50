"""The inner door: how the gateway asks itself, through its whole chain, for a preflight or a copy of a request.

Owns a Unix socket in a directory of its owner alone, and a token made anew with each process. A request that comes through it with the token is
trusted: it names its slot and the caller it stands for, and no key is asked of it. Everything else about it is as with any other.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import aiohttp
import attrs
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from fiedler_proxy.exchange import Exchange
from fiedler_proxy.headers import HOP_BY_HOP, RawHeaders
from fiedler_proxy.sockets import private_socket, short_name

HEADER = b"x-kgb-inner"

BODY_CAP = 1024 * 1024
"""Bytes of an answer that are kept to be compared; the rest is read and let go."""

SECONDS = 900.0

_OURS = frozenset((b"host", b"content-length", b"expect", b"x-kgb-key", HEADER)) | HOP_BY_HOP

_SLOT, _CALLER, _FACTS = "slot", "caller", "facts"


@attrs.frozen
class Reply:
    """What came back. ``first_byte`` and ``seconds`` since it was sent; ``pieces``: reads in which the body came."""

    status: int
    headers: RawHeaders
    body: bytes
    size: int
    pieces: int
    first_byte: float
    seconds: float

    def header(self, name: str) -> str:
        """The first header called ``name``, "" for none."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == wanted), "")


def adopt(exchange: Exchange, token: bytes) -> None:
    """Take from ``exchange`` what the inner door wrote, where it did: from whoever does not know ``token``, the header alone."""
    value = exchange.find(HEADER)
    if value is None:
        return
    exchange.remove_request_headers(lambda name, _: name.lower() == HEADER)
    shown, _, said = value.partition(b" ")
    if not secrets.compare_digest(shown, token):
        return
    told = json.loads(said)
    exchange.trusted = True
    exchange.slot, exchange.caller = told[_SLOT], told[_CALLER]
    exchange.facts.update(told[_FACTS])


@attrs.define(eq=False)
class InnerDoor:
    """Open from ``open`` to ``close``. ``token`` is what ``adopt`` must be given."""

    token: bytes = attrs.field(factory=lambda: secrets.token_hex(16).encode(), repr=False)
    _opened: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack)
    _session: aiohttp.ClientSession | None = None

    async def open(self, runner: web.AppRunner, path: Path) -> None:
        """Listen at ``path``. OSError when that cannot be."""
        await web.SockSite(runner, private_socket(path)).start()
        self._opened.callback(path.unlink, missing_ok=True)
        short = self._opened.enter_context(short_name(path))
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(short, limit=0, force_close=True),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=SECONDS),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Stop; the listener goes with its runner."""
        if self._session is not None:
            await self._session.close()
        self._opened.close()

    async def ask(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[bytes, bytes]],
        body: bytes,
        *,
        slot: str,
        caller: str = "",
        facts: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request through the chain, bound to ``slot``. aiohttp.ClientError, OSError or TimeoutError when no answer
        comes."""
        if self._session is None:
            raise ConnectionError("the inner door is not open")
        told = json.dumps({_SLOT: slot, _CALLER: caller, _FACTS: dict(facts or {})})
        sent: CIMultiDict[str] = CIMultiDict({"Host": "localhost", HEADER.decode(): f"{self.token.decode()} {told}"})
        for name, value in headers:
            if name.lower() not in _OURS:
                sent.add(name.decode("latin-1"), value.decode("utf-8", "surrogateescape"))
        begun = time.monotonic()
        url = URL(f"http://localhost{target}", encoded=True)
        async with self._session.request(
            method, url, headers=sent, data=body or None, allow_redirects=False
        ) as response:
            kept, size, pieces, first = bytearray(), 0, 0, 0.0
            async for data in response.content.iter_any():
                first = first or time.monotonic() - begun
                size, pieces = size + len(data), pieces + 1
                kept += data[: BODY_CAP - len(kept)]
            seconds = time.monotonic() - begun
            return Reply(response.status, response.raw_headers, bytes(kept), size, pieces, first or seconds, seconds)

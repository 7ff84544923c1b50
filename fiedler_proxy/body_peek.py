"""A look into a request body before it goes upstream: for the model it names, or to be signed.

Owns that what was read is kept, and is told to observers as if it had gone by.
"""

import asyncio
import sys
import zlib

from aiohttp import web

from fiedler_proxy.errors import ExchangeError, malformed_body
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.kept import Kept
from fiedler_proxy.model_name import SCAN_CAP
from fiedler_proxy.server import CONTINUE, caller_connection, read_body

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def decoded(exchange: Exchange, body: bytes) -> bytes:
    """``body`` without gzip or zstd, for a look into it; one in another coding is not looked into."""
    coding = (exchange.find(b"content-encoding") or b"").strip().lower()
    try:
        if coding == b"gzip":
            return zlib.decompressobj(31).decompress(body, SCAN_CAP)
        if coding == b"zstd":  # Codex's
            return zstd.ZstdDecompressor().decompress(body, SCAN_CAP)
    except (zlib.error, zstd.ZstdError, EOFError):
        return b""
    return b"" if coding not in (b"", b"identity") else body


async def peek(request: web.Request, exchange: Exchange) -> bytes:
    """Read the body, up to SCAN_CAP; what was read is in ``exchange.kept``. ExchangeError for a body that is broken or does not come."""
    kept = exchange.kept = Kept(SCAN_CAP)
    whole = read_body(request)
    if whole is not None:
        kept.put(whole)
        kept.whole = True
        return whole
    transport = caller_connection(request).transport
    if (exchange.find(b"expect") or b"").lower() == b"100-continue" and transport is not None:
        transport.write(CONTINUE)
    assert exchange.upstream is not None
    idle = exchange.upstream.timeouts.idle or None
    try:
        while kept.size < SCAN_CAP:
            async with asyncio.timeout(idle):
                data = await request.content.readany()
            if not data:
                kept.whole = True
                break
            kept.put(data)
    except TimeoutError:
        raise ExchangeError("request_timeout", f"After {idle:g} s the request body stalled.", status=408) from None
    except web.RequestPayloadError:
        raise malformed_body() from None
    return kept.body()


def tell_kept(exchange: Exchange) -> None:
    """Tell observers of the request, and of what was read of its body; the rest they hear as it goes by. Who holds a request back tells it, and
    a body that is replaced is told as it is sent."""
    kept = exchange.kept
    if kept is not None and not kept.told and not exchange.holds and exchange.request_body is None:
        exchange.tell_request_head()
        if kept.size:
            exchange.tell_request_bytes(kept.body())
        kept.told = True

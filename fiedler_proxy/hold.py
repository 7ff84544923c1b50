"""A request that is held back: taken in whole, told to the observers, and sent on only when those who asked for it agree.

Owns what law 2 calls the price of ``strict``: no early upload, and memory for the body, up to the least of the limits that were asked
for. Nothing has gone upstream yet, so that a refusal is the gateway's own clean answer.
"""

from aiohttp import web

from fiedler_proxy.errors import body_too_large, malformed_body
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.heads import RequestHead
from fiedler_proxy.server import CONTINUE, caller_connection, read_body


async def take_in(request: web.Request, exchange: Exchange, head: RequestHead) -> None:
    """Take the request in, and wait for everybody who holds it. ExchangeError when the body is too long or broken, or when one of
    them refuses."""
    limit = min(hold.limit for hold in exchange.holds)
    if head.length > limit:
        raise body_too_large(limit)
    body, kept = exchange.request_body, exchange.kept
    begun = kept.body() if kept is not None else b""
    if body is None and kept is not None and kept.whole:
        body = begun
    if body is None and not begun:
        body = read_body(request)
    if body is None and (head.length or head.chunked):
        transport = caller_connection(request).transport
        if head.expect and transport is not None:
            transport.write(CONTINUE)
        body = await _read(request, begun, limit)
    exchange.held_body = body or b""
    exchange.tell_request_head()
    if body:
        exchange.tell_request_bytes(body)
    for hold in exchange.holds:
        await hold.wait()


async def _read(request: web.Request, begun: bytes, limit: int) -> bytes:
    pieces = [begun] if begun else []
    size = len(begun)
    try:
        while data := await request.content.readany():
            size += len(data)
            if size > limit:
                raise body_too_large(limit)
            pieces.append(data)
    except web.RequestPayloadError:
        raise malformed_body() from None
    return b"".join(pieces)

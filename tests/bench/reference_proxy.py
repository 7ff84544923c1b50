"""The yardstick: the shortest honest aiohttp proxy. Frozen: a change here voids every ratio that was ever printed.

It owns nothing but itself and must not import the packages that are measured against it.
"""

import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

try:
    import uvloop
except ImportError:
    uvloop = None  # type: ignore[assignment]

SESSION = web.AppKey("SESSION", aiohttp.ClientSession)
UPSTREAM = web.AppKey("UPSTREAM", str)
HOP_BY_HOP = ("connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection")


async def relay(request: web.Request) -> web.StreamResponse:
    headers = CIMultiDict(request.headers)
    for name in (*HOP_BY_HOP, "host"):
        headers.popall(name, None)
    async with request.app[SESSION].request(
        request.method,
        URL(request.app[UPSTREAM] + request.raw_path, encoded=True),
        headers=headers,
        data=request.content if request.can_read_body else None,
        allow_redirects=False,
    ) as answer:
        headers = CIMultiDict(answer.headers)
        for name in HOP_BY_HOP:
            headers.popall(name, None)
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
        await response.prepare(request)
        async for data in answer.content.iter_any():
            await response.write(data)
        await response.write_eof()
        return response


async def session(app: web.Application) -> AsyncIterator[None]:
    app[SESSION] = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
    )
    yield
    await app[SESSION].close()


def main() -> None:
    app = web.Application(client_max_size=0)
    app[UPSTREAM] = f"http://127.0.0.1:{sys.argv[2]}"
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", relay)
    loop = uvloop.new_event_loop() if uvloop else None
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=lambda *_: None, loop=loop)


if __name__ == "__main__":
    main()

"""Health, liveness and readiness, answered here and truthfully.

``health`` asks whether the upstream can be reached, by connecting to it; ``live`` says that the loop turns; ``ready``
says whether new work is taken. The answers are local: no key is needed and nothing goes upstream.
"""

import asyncio
import json
from collections.abc import Awaitable
from typing import ClassVar

import attrs
from aiohttp import web

from fiedler_proxy.errors import ExchangeError
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.lifecycle import EXCHANGE, GATEWAY, Gateway
from fiedler_proxy.server import Handler, OwnResponse

PROBE_SECONDS = 3.0
"""Longest wait for the upstream; what takes longer is reported as unreachable."""

PROBE_KEPT = 5.0
"""Seconds a finding is used again, so that probes of a load balancer cost the upstream nothing."""


@attrs.define
class _Finding:
    at: float = -PROBE_KEPT
    code: str = ""
    lock: asyncio.Lock = attrs.field(factory=asyncio.Lock)


@web.middleware
@attrs.frozen
class Health:
    """``health``, ``live``, ``ready``: the paths that are answered here ("" for none). ``gateway``: the name that the
    health answer gives."""

    health: str = "/health"
    live: str = "/healthz"
    ready: str = "/readyz"
    gateway: str = "kgb_gateway"
    _finding: _Finding = attrs.field(init=False, factory=_Finding, eq=False, repr=False)

    shipped: ClassVar[bool] = True

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await (self.enter(request, request[EXCHANGE]) or handler(request))

    def enter(self, request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse] | None:
        """``links.Entering``."""
        if exchange.path not in (self.health, self.live, self.ready) or exchange.method not in ("GET", "HEAD"):
            return None
        return self._answer(request, exchange)

    async def _answer(self, request: web.Request, exchange: Exchange) -> web.StreamResponse:
        exchange.local = True
        exchange.route = "local"
        gateway = request.app[GATEWAY]
        if exchange.path == self.live:
            return _json(200, {"status": "alive"})
        if exchange.path == self.ready:
            return _json(503 if gateway.draining else 200, {"status": "draining" if gateway.draining else "ready"})
        return await self._health(gateway)

    async def _health(self, gateway: Gateway) -> OwnResponse:
        code = await self._reach(gateway)
        status = "draining" if gateway.draining else "unhealthy" if code else "healthy"
        document = {
            "status": status,
            "gateway": self.gateway,
            "upstream": gateway.upstream.url,
            "upstream_reachable": not code,
            "live_exchanges": len(gateway.live) - 1,
        }
        if code:
            document["upstream_error"] = code
        return _json(200 if status == "healthy" else 503, document)

    async def _reach(self, gateway: Gateway) -> str:
        """The error code of connecting to the upstream, "" when it can be reached."""
        finding, loop = self._finding, asyncio.get_running_loop()
        async with finding.lock:
            if loop.time() - finding.at < PROBE_KEPT:
                return finding.code
            try:
                async with asyncio.timeout(PROBE_SECONDS):
                    await gateway.pool(gateway.upstream).probe()
                finding.code = ""
            except TimeoutError:
                finding.code = "connect_timeout"
            except ExchangeError as error:
                finding.code = error.code
            finding.at = loop.time()
            return finding.code


def _json(status: int, document: dict[str, object]) -> OwnResponse:
    return OwnResponse(status=status, body=json.dumps(document).encode(), content_type="application/json")

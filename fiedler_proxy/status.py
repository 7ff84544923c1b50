"""What a running gateway says of itself: to ``kgb status``, over the control socket.

Owns the shape of the answer. Nothing in it is a credential: keys are called by the name of their source.
"""

import os
import time

from aiohttp import web

from fiedler_proxy.exchange import Exchange
from fiedler_proxy.lifecycle import EDGE, GATEWAY
from fiedler_proxy.router import ROUTER, Router
from fiedler_proxy.targets import Live


def status_of(app: web.Application) -> dict[str, object]:
    """All of it, ready for JSON. Times are seconds, sizes bytes."""
    gateway = app[GATEWAY]
    now = time.monotonic()
    said: dict[str, object] = {
        "program": gateway.name,
        "pid": os.getpid(),
        "upstream": gateway.upstream.url,
        "draining": gateway.draining,
        "exchanges": [
            exchange_of(exchange, now)
            for exchange in sorted(gateway.live, key=lambda exchange: exchange.started)
        ],
        "connections": [
            {"upstream": pool.upstream.name, "url": pool.upstream.url, "open": pool.open, "idle": pool.idle,
             "waiting": pool.waiting, "refused": pool.refused}
            for pool in gateway.pools
        ],
    }  # fmt: skip
    router = app.get(ROUTER)
    if router is not None:
        said["slots"] = slots_of(router)
        said["upstreams"] = [
            live_of(live, now) for live in router.lives.values() if live.answered or live.failed or live.running
        ]
    for link in app[EDGE].links:
        tell = getattr(link, "status", None)
        if tell is not None:
            said.update(tell())
    return said


def exchange_of(exchange: Exchange, now: float) -> dict[str, object]:
    """A live exchange."""
    return {
        "id": exchange.id,
        "age": round(now - exchange.started, 3),
        "method": exchange.method,
        "path": exchange.path,
        "caller": exchange.caller,
        "slot": exchange.slot,
        "route": exchange.route,
        "upstream": exchange.upstream.name if exchange.upstream is not None else "",
        "attempts": exchange.attempts,
        "status": exchange.status,
        "sent": exchange.request_size,
        "received": exchange.response_size,
    }


def slots_of(router: Router) -> dict[str, object]:
    """The choice, and what there is to choose from."""
    choice = router.choice
    return {
        "active": choice.active,
        "previous": choice.previous,
        "canary": choice.canary,
        "share": choice.share,
        "known": list(router.slots),
    }


def live_of(live: Live, now: float) -> dict[str, object]:
    """How an upstream is doing."""
    said: dict[str, object] = {
        "name": live.name,
        "url": live.target.upstream.url,
        "breaker": str(live.breaker.state(now)),
        "running": live.running,
        "answered": live.answered,
        "failed": live.failed,
        "first_byte": round(live.latency, 4),
    }
    if live.keys is not None:
        said["keys"] = [
            {"source": key.source, "rests": round(max(0.0, key.rests_until - now), 1)} for key in live.keys.keys
        ]
    return said


def found(app: web.Application, identity: str) -> Exchange | None:
    """The live exchange whose id begins with ``identity``; ValueError when several do."""
    hits = [exchange for exchange in app[GATEWAY].live if exchange.id.startswith(identity)]
    if len(hits) > 1:
        raise ValueError(f"{len(hits)} live exchanges have an id that begins with {identity!r}")
    return hits[0] if hits else None

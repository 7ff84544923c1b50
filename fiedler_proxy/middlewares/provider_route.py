"""provider_route: which upstream serves a request. For now there is one, and the origin's path prefix for it."""

from typing import ClassVar

import attrs
from aiohttp import web

from fiedler_proxy.config import setting
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.lifecycle import EXCHANGE
from fiedler_proxy.server import Handler


def _prefixes_wrong(values: tuple[str, ...]) -> str:
    for value in values:
        if not value.startswith("/") or value.endswith("/") or "?" in value or "#" in value:
            return f"{value!r} is no prefix; write it with a slash before it and none behind, like '/anthropic-proxy'"
    return ""


@web.middleware
@attrs.frozen
class ProviderRoute:
    """``prefixes``: path prefixes below which the upstream's own paths stand 1:1; they are taken off the target."""

    prefixes: tuple[str, ...] = setting(("/anthropic-proxy",), check=_prefixes_wrong)

    after: ClassVar[tuple[str, ...]] = ("auth",)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.enter(request, request[EXCHANGE])
        return await handler(request)

    def enter(self, request: web.Request, exchange: Exchange) -> None:
        """``lifecycle.Entering``."""
        exchange.route = "default"
        for prefix in self.prefixes:
            rest = exchange.target.removeprefix(prefix)
            if rest != exchange.target and rest[:1] in ("", "/", "?"):
                exchange.target = rest if rest[:1] == "/" else "/" + rest
                exchange.route = prefix.strip("/")
                break

"""provider_route: which slot, route and upstream serve a request."""

from typing import ClassVar

import attrs
from aiohttp import web

from fiedler_proxy.config import setting
from fiedler_proxy.exchange import Exchange
from fiedler_proxy.lifecycle import EXCHANGE
from fiedler_proxy.router import ROUTER, straight
from fiedler_proxy.server import Handler


def _prefixes_wrong(values: tuple[str, ...]) -> str:
    for value in values:
        if not value.startswith("/") or value.endswith("/") or "?" in value or "#" in value:
            return f"{value!r} is no prefix; write it with a slash before it and none behind, like '/anthropic-proxy'"
    return ""


@web.middleware
@attrs.frozen
class ProviderRoute:
    """``prefixes``: path prefixes below which the upstream's own paths stand 1:1; they are taken off the target before anything is decided.
    ``merge_models``: whether who asks for the list of models gets those of every provider of the slot, in one."""

    prefixes: tuple[str, ...] = setting(("/anthropic-proxy",), check=_prefixes_wrong)
    merge_models: bool = False

    after: ClassVar[tuple[str, ...]] = ("auth",)

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.enter(request, request[EXCHANGE])
        return await handler(request)

    def enter(self, request: web.Request, exchange: Exchange) -> None:
        """``links.Entering``."""
        router = request.app.get(ROUTER)
        if router is None:
            straight(exchange, self.prefixes)
        else:
            router.place(exchange, self.prefixes, merge_models=self.merge_models)

"""A gateway with its control open, as ``kgb serve`` has it: for tests of slots, reloads and what else is done to a running one."""

import contextlib
from collections.abc import AsyncIterator, Mapping

import attrs
from aiohttp import web

from fiedler_proxy.control import Control
from fiedler_proxy.operating import control_of
from fiedler_proxy.router import ROUTER, Router
from kgb_gateway.app import create_app, load
from kgb_gateway.compose import compose_chain


@attrs.frozen
class Controlled:
    """Where it is, and what it is made of."""

    app: web.Application
    control: Control
    host: str
    port: int

    @property
    def router(self) -> Router:
        return self.app[ROUTER]


@contextlib.asynccontextmanager
async def controlled(flags: Mapping[str, object]) -> AsyncIterator[Controlled]:
    """The gateway of ``flags``, which a reload reads again."""
    settings = load(flags)
    app = create_app(settings)
    runner = web.AppRunner(app, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        control = control_of(app, settings, lambda: load(flags), compose_chain)
        await control.start(runner)
        try:
            yield Controlled(app, control, host, port)
        finally:
            await control.stop()
    finally:
        await runner.cleanup()

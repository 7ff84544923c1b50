"""Serving an application in a test exactly as in production: through AppRunner, never through TestServer, which would
force handler cancellation on and so hide what AppRunner leaves off.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import attrs
from aiohttp import web


@attrs.frozen
class Address:
    """Where an application listens; as text ``host:port``."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://{self}"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@contextlib.asynccontextmanager
async def start_app(app: web.Application, **options: object) -> AsyncIterator[Address]:
    """Serve ``app`` on a free port of 127.0.0.1 while the context is open.

    ``options`` go to AppRunner; by default handlers are cancelled when their caller leaves, bodies stay compressed as
    they came, nothing is logged and shutdown waits a second.
    """
    defaults: dict[str, Any] = {
        "handler_cancellation": True,
        "auto_decompress": False,
        "access_log": None,
        "shutdown_timeout": 1.0,
    }
    runner = web.AppRunner(app, **{**defaults, **options})
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield Address(host, port)
    finally:
        await runner.cleanup()

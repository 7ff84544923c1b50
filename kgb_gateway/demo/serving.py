"""Serves the demo provider where only this user can reach it."""

import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web

from kgb_gateway.demo.provider import DEFAULT_PACE, create_demo_app

STOP_SECONDS = 1.0
"""How long a running demo stream may go on when the provider stops."""


@contextlib.asynccontextmanager
async def demo_upstream(pace: float = DEFAULT_PACE) -> AsyncIterator[str]:
    """Run the provider and yield the base URL to use as an upstream.

    That is ``unix:/path/to/socket`` in a temporary directory of mode 0700, or ``http://127.0.0.1:port`` where the
    system has no Unix sockets or allows no path that long. ``pace``: seconds before each word.
    """
    runner = web.AppRunner(
        create_demo_app(pace),
        access_log=None,
        handle_signals=False,
        shutdown_timeout=STOP_SECONDS,
        keepalive_timeout=75,
    )
    # mkdtemp makes the directory 0700.
    with tempfile.TemporaryDirectory(prefix="kgb-demo-") as directory:
        await runner.setup()
        try:
            yield await _listen(runner, Path(directory, "provider.sock"))
        finally:
            await runner.cleanup()


async def _listen(runner: web.AppRunner, path: Path) -> str:
    if hasattr(socket, "AF_UNIX"):
        with contextlib.suppress(OSError):
            await web.UnixSite(runner, path).start()
            return f"unix:{path}"
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"

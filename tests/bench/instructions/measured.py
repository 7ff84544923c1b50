"""The process that is counted: ``kgb serve`` with the yardstick beside it on the same loop.

``python -m tests.bench.instructions.measured YARDSTICK_PORT UPSTREAM_PORT serve ...``. SIGUSR1 marks the end of a piece of work: it
calls a function of the C library that nobody else calls, at whose entry the counter writes down what it has counted, and says so in a
line on standard output.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from fiedler_proxy.settings import Settings
from kgb_gateway import log_writer
from kgb_gateway.__main__ import main
from kgb_gateway.commands import serve
from tests.bench.instructions import yardstick

MARK = "ctermid"

SLOWNESS = 50
"""How much longer everything takes under the counter. What other threads do a few times a second waits as much longer, so that it is done
as often for a request as in service, and not more often where the machine is busy."""


def _mark() -> None:
    os.ctermid()
    os.write(1, b"marked\n")


def with_yardstick(
    create: Callable[[Settings], web.Application], port: int, upstream: int
) -> Callable[[Settings], web.Application]:
    """``create``, and what it made has the yardstick beside it and can be told to mark."""

    async def beside(_app: web.Application) -> AsyncIterator[None]:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _mark)
        server = await yardstick.serve(port, upstream)
        yield
        server.close()

    def created(settings: Settings) -> web.Application:
        app = create(settings)
        app.cleanup_ctx.append(beside)
        return app

    return created


if __name__ == "__main__":
    made = with_yardstick(serve.create_with_librarian, int(sys.argv[1]), int(sys.argv[2]))
    log_writer.LINGER *= SLOWNESS
    serve.create_with_librarian = made  # type: ignore[assignment]
    sys.exit(main(sys.argv[3:]))

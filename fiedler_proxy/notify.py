"""What a service manager is told (sd_notify(3)): ready, stopping, still alive.

Owns the socket's protocol and nothing of when to say what. Without ``NOTIFY_SOCKET`` everything here is silent, and
no fault of it is one of the gateway.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Mapping

import attrs

SEND_SECONDS = 1.0
"""Longest wait for a service manager that does not read."""

_log = logging.getLogger("kgb.notify")


@attrs.frozen
class Notifier:
    """``address``: the socket, "" for nobody; ``watchdog``: seconds between two signs of life, 0 for none."""

    address: str = ""
    watchdog: float = 0.0

    def send(self, *lines: str, wait: float = SEND_SECONDS) -> None:
        """Send assignments such as ``READY=1``, waiting up to ``wait`` seconds for room."""
        if not self.address:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines).encode("utf-8", "replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(wait)
                sock.sendto(message, self.address)
        except OSError as error:
            _log.warning("the service manager could not be told: %s", error.strerror or type(error).__name__)

    @contextlib.asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Give signs of life from the event loop while the context is open: a loop that hangs gives none."""
        if not self.address or not self.watchdog:
            yield
            return
        pinging = asyncio.create_task(self._ping())
        try:
            yield
        finally:
            pinging.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pinging

    async def _ping(self) -> None:
        while True:
            self.send("WATCHDOG=1", wait=0)
            await asyncio.sleep(self.watchdog)


def notifier(environ: Mapping[str, str]) -> Notifier:
    """The service manager of ``environ``; signs of life come twice as often as it asks (sd_watchdog_enabled(3))."""
    named = environ.get("NOTIFY_SOCKET", "")
    if named[:1] not in ("/", "@") or not hasattr(socket, "AF_UNIX"):
        return Notifier()
    # A name that begins with @ is in the abstract namespace, where it begins with NUL (unix(7)).
    address = "\0" + named[1:] if named.startswith("@") else named
    asked = environ.get("WATCHDOG_USEC", "")
    for_us = environ.get("WATCHDOG_PID") in (None, "", str(os.getpid()))
    interval = int(asked) / 2e6 if for_us and asked.isascii() and asked.isdigit() else 0.0
    return Notifier(address, interval)

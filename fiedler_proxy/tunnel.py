"""A tunnel: the raw bytes of an accepted upgrade on their way from the caller to the upstream.

Owns that direction, its pace and its end; the other one is the relay's, as that of any response. It looks into no byte.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web

from fiedler_proxy.exchange import Direction, Exchange
from fiedler_proxy.server import UpgradedReader, caller_connection, tunnel_caller
from fiedler_proxy.sockets import caller_has_left
from fiedler_proxy.upload import LEFT_CHECK
from fiedler_proxy.wire import UpstreamConnection


class Tunnel:
    """The caller's side of one tunnel. ``left`` is called when the caller is found gone while nobody reads it."""

    __slots__ = ("_caller", "_connection", "_exchange", "_left", "_loop", "_request", "_stopped", "_timer")

    def __init__(
        self, request: web.Request, exchange: Exchange, connection: UpstreamConnection, left: Callable[[], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._request = request
        self._exchange = exchange
        self._connection = connection
        self._caller = caller_connection(request)
        self._left = left
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    def open(self) -> None:
        """The 101 is on its way to the caller: from now on its bytes are no HTTP. Those that came already go first."""
        self._exchange.tunnelled = True
        tunnel_caller(self._request, UpgradedReader(self._from_caller, self.stop))

    def writable(self) -> None:
        """The upstream takes bytes again."""
        transport = self._caller.transport
        if transport is not None and not transport.is_closing():
            transport.resume_reading()

    def stop(self) -> None:
        """No byte moves after this."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _from_caller(self, data: bytes) -> None:
        if self._stopped:
            return
        self._exchange.tell_tunnel_bytes(Direction.TO_UPSTREAM, data)
        self._connection.write(data)
        transport = self._caller.transport
        if self._connection.writing_paused and transport is not None:
            transport.pause_reading()
            if self._timer is None:
                self._timer = self._loop.call_later(LEFT_CHECK, self._look_after_caller)

    def _look_after_caller(self) -> None:
        """While its connection is not read, the loop would not hear of a caller's end."""
        self._timer = None
        if not self._connection.writing_paused:
            return
        if caller_has_left(self._request):
            self._left()
            return
        self._timer = self._loop.call_later(LEFT_CHECK, self._look_after_caller)

"""An upstream on a raw socket that does what a script says, bad manners included.

Owns the listening socket and one task per accepted connection. It must leave neither behind.
"""

import asyncio
import contextlib
import socket
import ssl as tls
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

from fiedler_proxy.testing.connection import ReceivedRequest, UpstreamConnection
from fiedler_proxy.testing.messages import Headers
from fiedler_proxy.testing.peer import Peer, PeerLeft
from fiedler_proxy.testing.rendezvous import GUARD, Signal
from fiedler_proxy.testing.steps import Step

Script = Callable[[UpstreamConnection], Awaitable[None]]
RequestHandler = Callable[[ReceivedRequest, UpstreamConnection], Awaitable[None]]

LAST_TURNS = 10
"""Turns of the loop a script gets at the end: one that was just woken may finish, and its failure is not lost."""


def serve_forever(handle: RequestHandler) -> Script:
    """A script that calls ``handle(request, conn)`` for every request of a connection until it is closed. A decorator::

    @serve_forever
    async def echo(request, conn):
        await conn.send_response(200, body=await request.body())
    """

    async def script(conn: UpstreamConnection) -> None:
        while not conn.peer.closed_here:
            await handle(await conn.request(), conn)

    return script


def respond(status: int = 200, headers: Headers = (), body: bytes = b"", *, chunked: bool = False) -> Script:
    """A script that reads every request whole and answers each with this response."""
    fixed = tuple(headers)

    async def handle(request: ReceivedRequest, conn: UpstreamConnection) -> None:
        await request.body()
        await conn.send_response(status, fixed, body, chunked=chunked)

    return serve_forever(handle)


def in_turn(*scripts: Script | Sequence[Step]) -> Script:
    """The first script for the first connection, and so on; the last one for every further connection."""

    async def script(conn: UpstreamConnection) -> None:
        await _as_script(scripts[min(conn.number, len(scripts) - 1)])(conn)

    return script


def _as_script(script: Script | Sequence[Step]) -> Script:
    if callable(script):
        return script
    steps = tuple(script)

    async def run(conn: UpstreamConnection) -> None:
        for step in steps:
            await step.run(conn)

    return run


class ScriptedUpstream:
    """A raw HTTP/1.1 server for tests; an async context manager that listens while it is open.

    ``script``: an async function of the connection, a list of steps, or nothing for ``respond()``. It runs once for
    each accepted connection, which is closed (FIN) when it ends. ``unix``: listen at this path instead of on
    ``host``:``port`` (0: any free port). ``ssl``: speak TLS. ``receive_buffer``: SO_RCVBUF in bytes of the accepted
    connections. ``guard``: seconds after which a wait for the gateway is given up with TimeoutError.

    At exit, connections are reset, scripts cancelled, and what a script raised is raised (several as an
    ExceptionGroup), unless ``ignore_errors``. A script that ends because the gateway left (PeerLeft) has not failed.
    """

    def __init__(
        self,
        script: Script | Sequence[Step] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        unix: str | None = None,
        ssl: tls.SSLContext | None = None,
        receive_buffer: int | None = None,
        ignore_errors: bool = False,
        guard: float = GUARD,
    ) -> None:
        self.connections: list[UpstreamConnection] = []
        self.requests: list[ReceivedRequest] = []
        self.failures: list[Exception] = []
        self.host = host
        self.port = port
        self._script = _as_script(respond() if script is None else script)
        self._unix = unix
        self._ssl = ssl
        self._receive_buffer = receive_buffer
        self._ignore_errors = ignore_errors
        self._guard = guard
        self._signal = Signal()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The base URL as the gateway's configuration takes it: http://, https:// or unix:/path."""
        if self._unix:
            return f"unix:{self._unix}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._ssl else 'http'}://{host}:{self.port}"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        sock = self._listening_socket()
        if self._unix:
            self._server = await loop.create_unix_server(self._accept, sock=sock, ssl=self._ssl)
        else:
            self._server = await loop.create_server(self._accept, sock=sock, ssl=self._ssl)
            self.port = sock.getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        if not self.failures or self._ignore_errors:
            return
        if error is not None:
            error.add_note(f"scripts of {self.url} failed too: {self.failures!r}")
        elif len(self.failures) == 1:
            raise self.failures[0]
        else:
            raise ExceptionGroup("scripts failed", self.failures)

    async def stop(self) -> None:
        """Stop listening, cancel the scripts and reset every connection; tests use it to take an upstream away."""
        if self._server is not None:
            self._server.close()
        for _ in range(LAST_TURNS):
            await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for conn in self.connections:
            conn.abort()
            await conn.peer.lost()
        if self._server is not None:
            await self._server.wait_closed()

    async def wait_for_connections(self, count: int) -> list[UpstreamConnection]:
        """Wait until ``count`` connections were accepted; returns all of them."""
        await self._wait_for(self.connections, count, "connections")
        return self.connections

    async def wait_for_requests(self, count: int) -> list[ReceivedRequest]:
        """Wait until scripts have read the heads of ``count`` requests; returns all of them."""
        await self._wait_for(self.requests, count, "requests")
        return self.requests

    async def _wait_for(self, seen: Sequence[object], count: int, what: str) -> None:
        def settled() -> bool:
            return len(seen) >= count or bool(self.failures and not self._ignore_errors)

        await self._signal.until(settled, lambda: f"{count} {what}; there were {len(seen)}", self._guard)
        if len(seen) < count:
            raise AssertionError(f"a script failed before {count} {what} came: {self.failures!r}")

    def _listening_socket(self) -> socket.socket:
        family = socket.AF_UNIX if self._unix else socket.AF_INET6 if ":" in self.host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if self._receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
            if not self._unix:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(self._unix or (self.host, self.port))
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock

    def _accept(self) -> asyncio.Protocol:
        return _AcceptedPeer(self._guard, self._start)

    def _start(self, peer: Peer) -> None:
        conn = UpstreamConnection(peer, len(self.connections), self._record)
        self.connections.append(conn)
        task = asyncio.get_running_loop().create_task(self._run(conn))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._signal.notify()

    async def _run(self, conn: UpstreamConnection) -> None:
        try:
            with contextlib.suppress(PeerLeft):
                await self._script(conn)
        except Exception as error:
            self.failures.append(error)
            self._signal.notify()
        conn.close()

    def _record(self, request: ReceivedRequest) -> None:
        self.requests.append(request)
        self._signal.notify()


class _AcceptedPeer(Peer):
    """A peer that tells its server as soon as the connection (with TLS: the handshake) stands."""

    def __init__(self, guard: float, started: Callable[[Peer], None]) -> None:
        super().__init__(guard)
        self._started = started

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._started(self)

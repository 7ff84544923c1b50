"""Upstream connections: dialled, limited, kept alive and lent.

Owns how a connection comes to be (names, happy eyeballs, TLS, Unix sockets) and how many there are. A connection is
lent only when it is clean; waiting for one is bounded and counted. Every failure to connect leaves as an
ExchangeError; this is the one place where the exceptions of dialling are translated.
"""

import asyncio
import collections
import socket
import ssl

import aiohappyeyeballs

from fiedler_proxy.errors import ExchangeError, Fault, SettingsError
from fiedler_proxy.upstream import Upstream
from fiedler_proxy.wire import State, UpstreamConnection

HAPPY_EYEBALLS_DELAY = 0.25
"""Seconds before the next address is tried beside the first (RFC 8305 section 5)."""

RETRY_AFTER = "1"
"""Seconds a caller is told to wait when the queue of an upstream is full."""


def tls_context(upstream: Upstream) -> ssl.SSLContext | None:
    """The TLS context for ``upstream``, None without TLS. SettingsError when its CA file cannot be read."""
    if not upstream.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=upstream.ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            [f"upstream {upstream.name}: ca_file {upstream.ca_file!r} cannot be used: {error}"]
        ) from None
    context.set_alpn_protocols(["http/1.1"])
    return context


class Pool:
    """The connections to one upstream.

    ``open`` counts connections that exist or are being dialled; ``waiting`` exchanges wait for one; ``refused``
    counts those that were turned away. ``local`` is where the pools of a gateway note the addresses of both
    ends, so that a request that comes from one of them is known to be a loop.
    """

    def __init__(self, upstream: Upstream, local: dict[object, object] | None = None) -> None:
        self.upstream = upstream
        self.open = 0
        self.refused = 0
        self.dialled = 0
        self._tls = tls_context(upstream)
        self._local: dict[object, object] = local if local is not None else {}
        self._idle: list[UpstreamConnection] = []
        self._queue: collections.deque[asyncio.Future[None]] = collections.deque()
        self._turns = 0  # waiters that were woken and have not run yet: nobody may overtake them
        self._connections: set[UpstreamConnection] = set()
        self._reaper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Exchanges in the queue."""
        return len(self._queue)

    @property
    def idle(self) -> int:
        """Connections kept for the next exchange."""
        return len(self._idle)

    def take(self) -> UpstreamConnection | None:
        """A clean idle connection, newest first, or None: also where others were there before. Never waits."""
        if self._queue or self._turns or not self._idle:
            return None
        return self._take()

    def _take(self) -> UpstreamConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_clean():
                return connection
            connection.abort()
        return None

    async def acquire(self) -> UpstreamConnection:
        """A connection for one exchange; ExchangeError when none can be had.

        First come, first served. A cancelled wait leaves nothing behind.
        """
        connection = self.take()
        if connection is None and (self._queue or self._turns or self.open >= self.upstream.limits.connections):
            connection = await self._wait()
        return connection or await self._dial()

    async def probe(self) -> None:
        """Show that a connection can be had: dial one, and keep it where there is room. ExchangeError when not."""
        connection = self.take() or await self._dial()
        if self.open > self.upstream.limits.connections:
            connection.close()
        else:
            self.freed(connection)

    def freed(self, connection: UpstreamConnection) -> None:
        """An exchange ended and its connection may serve another (called by the connection)."""
        if self._closed or len(self._idle) >= self.upstream.limits.idle:
            connection.close()
            return
        self._idle.append(connection)
        self._wake()
        if self._reaper is None:
            loop = asyncio.get_running_loop()
            self._reaper = loop.call_later(self.upstream.limits.keepalive, self._reap)

    def gone(self, connection: UpstreamConnection) -> None:
        """A connection was lost (called by the connection); one whose dialling failed was never counted here."""
        if connection not in self._connections:
            return
        self.open -= 1
        self._connections.discard(connection)
        if connection.local is not None and self._local.get(connection.local) is connection.remote:
            del self._local[connection.local]
        if connection in self._idle:
            self._idle.remove(connection)
        self._wake()

    def close(self) -> None:
        """Drop the idle connections; lent ones end with their exchange."""
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        while self._idle:
            self._idle.pop().close()

    def _reap(self) -> None:
        loop = asyncio.get_running_loop()
        limit = loop.time() - self.upstream.limits.keepalive
        stale = [connection for connection in self._idle if connection.idle_since <= limit]
        self._idle = [connection for connection in self._idle if connection.idle_since > limit]
        for connection in stale:
            connection.close()
        self._reaper = None
        if self._idle:
            self._reaper = loop.call_at(self._idle[0].idle_since + self.upstream.limits.keepalive, self._reap)

    def _wake(self) -> None:
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                self._turns += 1
                waiter.set_result(None)
                return

    async def _wait(self) -> UpstreamConnection | None:
        """Wait in the queue: an idle connection, or None when there is room to dial one."""
        limits = self.upstream.limits
        if len(self._queue) >= limits.queue:
            self.refused += 1
            raise self._busy("upstream_queue_full", f"{len(self._queue)} requests already wait for a connection")
        try:
            async with asyncio.timeout(limits.queue_timeout or None):
                await self._turn()
                while (connection := self._take()) is None and self.open >= limits.connections:
                    await self._turn(again=True)  # what came free broke before its turn
        except TimeoutError:
            self.refused += 1
            raise self._busy(
                "upstream_queue_timeout", f"no connection came free in {limits.queue_timeout:g} s"
            ) from None
        if self._idle or self.open + (connection is None) < limits.connections:
            self._wake()
        return connection

    async def _turn(self, *, again: bool = False) -> None:
        waiter = asyncio.get_running_loop().create_future()
        if again:
            self._queue.appendleft(waiter)
        else:
            self._queue.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._turns -= 1
                self._wake()  # the turn that was ours goes to the next one
            elif waiter in self._queue:
                self._queue.remove(waiter)
            raise
        self._turns -= 1

    def _busy(self, code: str, why: str) -> ExchangeError:
        return ExchangeError(
            code,
            f"The upstream {self.upstream.name} has its {self.upstream.limits.connections} connections in use; {why}.",
            status=503,
            fault=Fault.GATEWAY,
            hint="try again shortly, or raise limits.connections",
            headers=(("Retry-After", RETRY_AFTER),),
        )

    async def _dial(self) -> UpstreamConnection:
        upstream = self.upstream
        self.open += 1
        self.dialled += 1
        try:
            async with asyncio.timeout(upstream.timeouts.connect or None):
                connection = await self._connect(asyncio.get_running_loop())
        except BaseException as error:
            self.open -= 1
            self._wake()
            if isinstance(error, (OSError, ssl.SSLError, TimeoutError, UnicodeError)):
                raise connect_error(error, upstream) from error
            raise
        self._connections.add(connection)
        if connection.local is not None:
            self._local[connection.local] = connection.remote
        if connection.state is State.CLOSED:  # closed by the peer before anybody could use it
            self.gone(connection)
            raise connect_error(ConnectionResetError(), upstream)
        return connection

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> UpstreamConnection:
        upstream = self.upstream
        connection = UpstreamConnection(loop, self)
        if upstream.unix:
            await loop.create_unix_connection(lambda: connection, upstream.unix)
            return connection
        infos = await _resolve(loop, upstream.host, upstream.port)
        sock = await aiohappyeyeballs.start_connection(
            infos, happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY, interleave=1, loop=loop
        )
        try:
            await loop.create_connection(
                lambda: connection, sock=sock, ssl=self._tls, server_hostname=self._server_name() if self._tls else None
            )
        except BaseException:
            sock.close()
            raise
        return connection

    def _server_name(self) -> str:
        return self.upstream.server_name or self.upstream.host


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[aiohappyeyeballs.AddrInfoType]:
    infos = await loop.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=0 if _is_local(host) else socket.AI_ADDRCONFIG
    )
    if not infos:
        raise socket.gaierror(socket.EAI_NODATA, "the name has no address")
    return list(infos)


def _is_local(host: str) -> bool:
    """Whether AI_ADDRCONFIG would hide addresses of ``host``: it takes no notice of the loopback interface."""
    return ":" in host or host.replace(".", "").isdigit() or host == "localhost" or host.endswith(".localhost")


def connect_error(error: BaseException, upstream: Upstream) -> ExchangeError:
    """What a caller is told of a failed dial; the text names the upstream, never a credential."""
    code, status, why, hint, retry = _diagnose(error)
    return ExchangeError(
        code,
        f"The upstream {upstream.name} ({upstream.where}) {why}.",
        status=status,
        fault=Fault.UPSTREAM,
        hint=hint,
        retry=retry,
    )


Diagnosis = tuple[str, int, str, str, bool | None]


def _diagnose(error: BaseException) -> Diagnosis:
    if isinstance(error, ssl.SSLCertVerificationError):
        why = f"failed the TLS certificate check: {error.verify_message}"
        return "upstream_tls", 502, why, "check the URL, or give its CA as ca_file", False
    if isinstance(error, (ssl.SSLError, ssl.CertificateError)):
        why = f"failed the TLS handshake: {error.reason or 'protocol error'}"
        return "upstream_tls", 502, why, "check the URL", False
    if isinstance(error, TimeoutError):
        return "connect_timeout", 504, "did not accept a connection in time", "check the network", None
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return "upstream_unresolvable", 502, "has a name that does not resolve", "check the URL and the DNS", None
    if isinstance(error, ConnectionRefusedError):
        return "upstream_refused", 502, "refused the connection", "check that it runs and the port is right", None
    if isinstance(error, ConnectionError):
        return "upstream_reset", 502, "closed the connection at once", "check the URL", None
    if isinstance(error, FileNotFoundError):
        return "upstream_refused", 502, "has no socket at that path", "check that it runs", None
    return "upstream_unreachable", 502, "cannot be reached", "check the network", None

"""A server from its start to its end: the loop, the listener, what is said, signals and draining.

Owns the order of these steps, and that everything started is stopped. It knows no setting's origin and composes no
chain.
"""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import attrs
from aiohttp import web

from fiedler_proxy.control import Control
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.lifecycle import GATEWAY, Gateway
from fiedler_proxy.notify import Notifier, notifier
from fiedler_proxy.operating import Compose, Load, control_of
from fiedler_proxy.server import c_parser_in_use
from fiedler_proxy.settings import Settings
from fiedler_proxy.upstream import Upstream, parse_upstream

try:
    import resource
except ImportError:  # no Unix
    resource = None  # type: ignore[assignment]
try:
    import uvloop
except ImportError:  # the extra "speed" is not installed
    uvloop = None  # type: ignore[assignment]

COLLECT_AFTER = (20_000, 50, 100)
"""Thresholds of the garbage collector (see ``gc.set_threshold``) while serving."""

SWITCH_SECONDS = 0.0005
"""The longest that another thread (the journal's, the access log's) keeps the interpreter while the loop wants it. Python's own 5 ms
are a stall of every stream."""

BACKLOG = 1024
"""Connections that may wait to be accepted."""

SHUTDOWN_SECONDS = 1.0
"""How long a connection may linger after its exchange has ended, when everything stops."""

STOP_MARGIN = 15.0
"""Seconds beyond the drain within which a service manager may count on our end."""

NO_C_PARSER = (
    "aiohttp's C parser is not in use, and without it requests are parsed less strictly: unset AIOHTTP_NO_EXTENSIONS, "
    "or install a wheel of aiohttp for this Python"
)

NO_UVLOOP = "uvloop is 'always', but it is not installed: pip install 'kgb-gateway[speed]', or set it to 'auto'"

CreateApp = Callable[[Settings], web.Application]
UpstreamContext = Callable[[], AbstractAsyncContextManager[str]]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]

_log = logging.getLogger("kgb.serving")


@attrs.frozen
class Again:
    """How a configuration is read once more, for a reload: ``load`` it, and ``compose`` its chain."""

    load: Load
    compose: Compose


def run(
    settings: Settings,
    create_app: CreateApp,
    *,
    upstream_context: UpstreamContext | None = None,
    again: Again | None = None,
) -> int:
    """Serve until a signal ends it; 0 then. SettingsError when it cannot start. With ``again`` SIGHUP reloads.

    ``upstream_context`` provides the base URL of an upstream for as long as the server runs, in place of the one in
    ``settings``.
    """
    if not c_parser_in_use():
        raise SettingsError([NO_C_PARSER])
    raise_open_files()
    with asyncio.Runner(loop_factory=loop_factory(settings.document.uvloop)) as runner:
        runner.run(_run(settings, create_app, upstream_context, again))
    return 0


def loop_factory(choice: str) -> LoopFactory:
    """The event loop for the setting ``uvloop``: "auto" takes it when it is installed. SettingsError when it must be
    there and is not.
    """
    if choice == "never" or (choice == "auto" and uvloop is None):
        return asyncio.new_event_loop
    if uvloop is None:
        raise SettingsError([NO_UVLOOP])
    return uvloop.new_event_loop


def raise_open_files() -> None:
    """Allow as many open files as the system lets us: every exchange needs two."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65536)
    if soft not in (wanted, resource.RLIM_INFINITY):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _run(
    settings: Settings, create_app: CreateApp, upstream_context: UpstreamContext | None, again: Again | None
) -> None:
    asyncio.get_running_loop().set_exception_handler(report_loop_fault)
    signals, manager = Signals(), notifier(os.environ)
    async with manager.alive(), contextlib.AsyncExitStack() as stack:
        if upstream_context is not None:
            url, before = await stack.enter_async_context(upstream_context()), settings.upstream
            upstream = parse_upstream(url, "demo", timeouts=before.timeouts, limits=before.limits)
            settings = attrs.evolve(settings, upstream=upstream)
            if again is not None:
                again = attrs.evolve(again, load=_with_upstream(again.load, upstream))
        await _serve(settings, create_app(settings), signals, manager, again)


def _with_upstream(load: Load, upstream: Upstream) -> Load:
    return lambda: attrs.evolve(load(), upstream=upstream)


async def _serve(
    settings: Settings, app: web.Application, signals: "Signals", manager: Notifier, again: Again | None = None
) -> None:
    control = control_of(app, settings, *((again.load, again.compose) if again is not None else ()))
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=SHUTDOWN_SECONDS)
    try:
        await runner.setup()
        await listen(runner, settings)
        at = urls(runner, settings)
        await control.start(runner)
        signals.on_hangup(partial(_reload, control))
        tune_the_interpreter()
        announce(settings, at)
        manager.send("READY=1", f"STATUS=serving {settings.upstream.url}")
        await signals.first.wait()
        await stop(runner, app[GATEWAY], settings.document.timeouts.drain, signals, manager)
    finally:
        await control.stop()
        await runner.cleanup()


def tune_the_interpreter() -> None:
    """What was made for the start stays; the collector need not walk it again, nor come after every few requests. The loop gets the
    interpreter soon when it wants it.

    Measured: 8 % of the processor time of a small request. An exchange leaves few cycles behind, and the start a hundred objects: to look for
    them first would take as long as a tenth of the start.
    """
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    sys.setswitchinterval(SWITCH_SECONDS)


@attrs.define
class Signals:
    """SIGTERM and SIGINT: ``first`` is set at the first, ``second`` at the second."""

    first: asyncio.Event = attrs.field(factory=asyncio.Event)
    second: asyncio.Event = attrs.field(factory=asyncio.Event)

    def __attrs_post_init__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            # Where the loop cannot (Windows), Ctrl-C stays a KeyboardInterrupt.
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, self._came)

    def on_hangup(self, reload: Callable[[], None]) -> None:
        """Call ``reload`` on SIGHUP, which would else end the process."""
        with contextlib.suppress(NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)

    def _came(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


def _reload(control: Control) -> None:
    """SIGHUP. What is wrong with the new configuration is said in the log, and the old one stays in force."""
    if control.reload is None:
        return
    try:
        done = control.reload(False)
    except SettingsError as error:
        _log.error("not reloaded, and nothing has changed: %s", "; ".join(error.faults))
        return
    _log.info("reloaded: %s", "; ".join(done.changes) or "nothing is different")
    if done.restart:
        _log.warning("only a restart brings into force: %s", ", ".join(done.restart))


async def listen(runner: web.AppRunner, settings: Settings) -> None:
    """Open the listener. SettingsError when its address is taken or none of this machine's."""
    host, port = settings.host.strip("[]"), settings.port
    shared = settings.document.reuse_port or None  # None: what the system does where nobody asks
    site = web.TCPSite(runner, host, port, ssl_context=settings.ssl_context(), backlog=BACKLOG, reuse_port=shared)
    try:
        await site.start()
    except (OSError, UnicodeError) as error:
        raise SettingsError([_why_not(error, host, port, shared=bool(shared))]) from None


def _why_not(error: OSError | UnicodeError, host: str, port: int, *, shared: bool = False) -> str:
    if isinstance(error, UnicodeError):
        return f"{host} is no name that a host can have: choose another with --host"
    if error.errno == errno.EADDRINUSE and shared:
        return f"port {port} of {host} is taken by one that does not share it: start every instance with --reuse-port, as the same user"
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken: stop what listens there, or choose another with --port"
    # asyncio of Python 3.13 gives no number where none of a host's addresses is ours.
    if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, None):
        return f"{host} is no address of this machine: choose another with --host"
    if error.errno == errno.EACCES:
        return f"port {port} of {host} is not ours to open: choose one above 1023 with --port"
    return f"cannot listen on port {port} of {host}: {error.strerror or error}"


def urls(runner: web.AppRunner, settings: Settings) -> tuple[str, ...]:
    """Where the listener can be reached; the port is the one that was opened."""
    scheme = "https" if settings.document.tls.cert else "http"
    pairs = [(f"[{host}]" if ":" in host else host, port) for host, port, *_ in runner.addresses]
    return tuple(f"{scheme}://{host}:{port}" for host, port in pairs)


def announce(settings: Settings, at: tuple[str, ...]) -> None:
    """Say on standard error what serves where, and what was odd about the settings."""
    for warning in settings.warnings:
        say(f"{settings.program}: warning: {warning}")
    chain = " > ".join((*settings.document.chain, "relay"))
    line = (
        f"listening on {' and '.join(at)}, upstream {settings.upstream.url}, chain {chain}, {_access_lines(settings)}"
    )
    say(f"{settings.program}: {line}")


def _access_lines(settings: Settings) -> str:
    if "access_log" not in settings.document.chain:
        return "no access log"
    table = settings.document.links.get("access_log")
    path = table.get("path", "-") if isinstance(table, dict) else "-"
    return f"access lines to {'standard output' if path == '-' else path}"


def say(text: str) -> None:
    """A line on standard error; one that is closed is no fault."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


async def stop(runner: web.AppRunner, gateway: Gateway, limit: float, signals: Signals, manager: Notifier) -> None:
    """Take no new work, let open exchanges finish for up to ``limit`` seconds, or until a second signal."""
    gateway.draining = True
    live = len(gateway.live)
    margin = int((limit + STOP_MARGIN) * 1e6)
    manager.send("STOPPING=1", f"STATUS=draining, {live} open exchanges", f"EXTEND_TIMEOUT_USEC={margin}")
    for site in runner.sites:
        await site.stop()
    await close_idle(runner, gateway)
    if live:
        _log.info("stopping: %d open exchanges have %g s to finish, a second signal ends them at once", live, limit)
    cut = await _finish(gateway, limit, signals)
    if cut:
        _log.warning("stopped: %d exchanges were cut", cut)
    else:
        _log.info("stopped: every exchange had finished")


async def close_idle(runner: web.AppRunner, gateway: Gateway) -> None:
    """Close the connections on which nothing is being asked. The others learn it from ``Connection: close`` in their
    next answer.
    """
    for _ in range(2):
        await asyncio.sleep(0)  # what has just been read becomes an exchange first, at the end of its turn
    busy = {request.protocol for request in gateway.live.values()}
    for connection in runner.server.connections if runner.server is not None else ():
        if connection not in busy:
            connection.force_close()


async def _finish(gateway: Gateway, limit: float, signals: Signals) -> int:
    draining = asyncio.create_task(gateway.drain(limit))
    impatient = asyncio.create_task(signals.second.wait())
    try:
        await asyncio.wait((draining, impatient), return_when=asyncio.FIRST_COMPLETED)
        return draining.result() if draining.done() else await gateway.stop()
    finally:
        for task in (draining, impatient):
            task.cancel()
        await asyncio.gather(draining, impatient, return_exceptions=True)


def report_loop_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what nobody awaited, without its message: that may quote what passed."""
    error = context.get("exception")
    if isinstance(error, (ConnectionError, TimeoutError)):
        _log.debug("%s: %s", context.get("message"), type(error).__name__)
        return
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip() if isinstance(error, BaseException) else ""
    _log.error("%s: %s\n%s", context.get("message"), type(error).__name__, frames)

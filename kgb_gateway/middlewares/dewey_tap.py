"""dewey_tap: everything that passes, into the journal.

Owns what is recorded of an exchange, and for whom; how it comes to disk is the journal's matter. Nothing waits for it: a frame is
a copy into memory of the kernel's, made before the byte leaves (law 3), and what does not fit is a gap.
"""

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Awaitable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import attrs
from aiohttp import web

from fiedler_proxy.config import setting
from fiedler_proxy.errors import ExchangeError, Fault, SettingsError
from fiedler_proxy.exchange import Direction, Exchange, Observer
from fiedler_proxy.lifecycle import EXCHANGE
from fiedler_proxy.server import Handler
from kgb_gateway.journal import Journal, JournalOptions
from kgb_gateway.record import NO_EXCHANGE, STARTED, Kind
from kgb_gateway.redact import Redactor
from kgb_gateway.said import end_of, request_head, response_head
from kgb_gateway.said import key_of as key_of  # noqa: PLC0414 - who reads frames in tests takes it from here
from kgb_gateway.secret import private_directory, secret_of
from kgb_gateway.tail import LEAST, Tail, TailError, tail_path

SPOOL = "spool"

ADOPTION_SECONDS = 3.0
"""How long a start waits for its tail: a command may be taking to disk what a dead gateway left in it."""


class Record(enum.StrEnum):
    """How much of an exchange is recorded."""

    OFF = "off"
    METADATA = "metadata"
    """Heads, sizes, times, outcome; no bodies."""
    FULL = "full"


class Librarian(enum.StrEnum):
    """Who takes the spool into the store."""

    OWN = "own"
    """A companion of ``kgb serve``, started and ended with it."""
    EXTERNAL = "external"
    """``kgb dewey serve`` as a service of its own, or nobody: commands read the spool when they need it."""


class _Tap(Observer):
    """The observer of one exchange."""

    # One is made for every exchange: what most of them never set stands here.
    _told = False
    _off = False
    _full = False
    _missed = False
    _lost = False
    _loses = False
    _up = 0
    _down = 0

    def __init__(self, link: "DeweyTap", journal: Journal, exchange: Exchange) -> None:
        self._link = link
        self._journal = journal
        self._key = key_of(exchange.id)

    def request_head(self, exchange: Exchange) -> None:
        self._begin(exchange, bodies=True)

    def request_start(self, exchange: Exchange, data: bytes) -> None:
        self._told = True
        link = self._link
        record = link.record_of(exchange)
        if record is not Record.FULL or exchange.local:
            self._begin(exchange, bodies=True)
            return
        whole = self._journal.request(self._key, request_head(exchange, link.redactor, record), data)
        if whole:
            self._full = True
        else:
            self._missed = True
            self._full, self._lost = whole is not None, whole is None
            self._loses = self._lost
        self._up = len(data)

    def response_start(self, exchange: Exchange, data: bytes) -> None:
        if self._full:
            self._journal.response(self._key, response_head(exchange, self._link.redactor), data)
            self._down = len(data)
        else:
            self.response_head(exchange)
            self.response_bytes(exchange, data)

    def request_bytes(self, exchange: Exchange, data: bytes) -> None:
        if self._full:
            self._missed |= not self._journal.body(Kind.REQUEST_BYTES, self._key, self._up, data)
            self._up += len(data)
        elif self._loses:
            self._journal.lose(len(data), 0)

    def response_head(self, exchange: Exchange) -> None:
        if not self._told:
            self._begin(exchange, bodies=False)  # an answer of the gateway's own: nothing went upstream
        if not self._off and not self._lost:
            self._journal.head(self._key, response_head(exchange, self._link.redactor))

    def response_bytes(self, exchange: Exchange, data: bytes) -> None:
        if self._full:
            self._journal.body(Kind.RESPONSE_BYTES, self._key, self._down, data)
            self._down += len(data)
        elif self._loses:
            self._journal.lose(0, len(data))

    def tunnel_bytes(self, exchange: Exchange, direction: Direction, data: bytes) -> None:
        if not self._full:
            if self._loses:
                self._journal.lose(*((len(data), 0) if direction is Direction.TO_UPSTREAM else (0, len(data))))
            return
        if direction is Direction.TO_UPSTREAM:
            self._journal.body(Kind.TO_UPSTREAM, self._key, self._up, data)
            self._up += len(data)
        else:
            self._journal.body(Kind.TO_CALLER, self._key, self._down, data)
            self._down += len(data)

    def closed(self, exchange: Exchange) -> None:
        if not self._told:
            self._begin(exchange, bodies=False)
        if not self._off and not self._lost:
            self._journal.end(self._key, end_of(exchange))

    def _begin(self, exchange: Exchange, *, bodies: bool) -> None:
        """Only now are caller and route known: the tap stands before the links that find them out."""
        self._told = True
        record = self._link.record_of(exchange)
        self._off = record is Record.OFF or exchange.local
        self._full = record is Record.FULL and bodies and not self._off
        if not self._off and not self._journal.begin(self._key, request_head(exchange, self._link.redactor, record)):
            self._missed = self._lost = True
            self._full, self._loses = False, self._full

    async def durable(self) -> None:
        """Wait until all that is on record of the exchange by now outlives a power cut. ExchangeError (503) when it does not."""
        if self._off:
            return
        if self._missed:
            raise _not_durable("the journal is full")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str] = loop.create_future()

        def told(why: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_set, done, why)

        self._journal.when_synced(told)
        try:
            why = await asyncio.wait_for(done, self._link.strict_seconds)
        except TimeoutError:
            why = f"the disk did not sync within {self._link.strict_seconds:g} s"
        if why:
            raise _not_durable(why)


def _open_nothing() -> list[Journal]:
    return []


def _sink_wrong(sink: str) -> str:
    known = not sink or sink.startswith(("dewey+ws://", "dewey+wss://"))
    return "" if known else f"must be dewey+ws://HOST:PORT, not {sink!r}"


def _modes_wrong(modes: Mapping[str, str]) -> str:
    for name, mode in modes.items():
        if mode not in list(Record):
            return f"{name!r} must be one of off, metadata, full, not {mode!r}"
    return ""


@web.middleware
@attrs.frozen
class DeweyTap:
    """``data_dir``: where the spool is. ``instance``: the name of this gateway among those that share it.
    ``record``: off, metadata or full; ``callers`` and ``routes`` say otherwise for some by name, the stricter one counts.
    ``secret_headers``, ``secret_parameters``: what holds a credential besides the usual. ``tail_size``: bytes that may wait for
    the disk. ``segment_size`` (bytes), ``segment_seconds``: when a segment is finished. ``sync_seconds``: longest time until
    what passed outlives a power cut. ``watermark``: bytes that stay free on the disk. ``cap``: most bytes of the spool, 0 for
    none. ``fail_closed``: refuse requests while nothing can be recorded. ``strict``: a request goes upstream only when all of it is
    on disk and synced, within ``strict_seconds``; its body may have ``strict_body`` bytes. ``librarian``: own or external. ``sink``: an
    existing Dewey that gets every conversation too. ``raw_days`` and
    ``raw_size`` (bytes): how long packed segments are kept; what was read out of them stays in the store. 0: no bound.
    """

    data_dir: str = setting("", path=True)
    instance: str = "default"
    record: Record = Record.FULL
    callers: Mapping[str, str] = setting(attrs.Factory(dict), check=_modes_wrong)
    routes: Mapping[str, str] = setting(attrs.Factory(dict), check=_modes_wrong)
    secret_headers: tuple[str, ...] = ()
    secret_parameters: tuple[str, ...] = ()
    tail_size: int = JournalOptions().tail_size
    segment_size: int = JournalOptions().segment_size
    segment_seconds: float = JournalOptions().segment_seconds
    sync_seconds: float = JournalOptions().sync_seconds
    watermark: int = JournalOptions().watermark
    cap: int = JournalOptions().cap
    fail_closed: bool = False
    strict: bool = False
    strict_seconds: float = 5.0
    strict_body: int = 32 * 1024 * 1024
    librarian: Librarian = Librarian.OWN
    sink: str = setting("", check=_sink_wrong)
    raw_days: float = 90.0
    raw_size: int = 20 * 1024**3
    _journals: list[Journal] = attrs.field(init=False, repr=False, factory=_open_nothing, eq=False)
    _redactors: list[Redactor] = attrs.field(init=False, repr=False, factory=list, eq=False)

    outer: ClassVar[bool] = True

    def __attrs_post_init__(self) -> None:
        if self.tail_size < LEAST:
            raise SettingsError([f"links.dewey_tap.tail_size is {self.tail_size}; it must be at least {LEAST}"])

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.enter(request, request[EXCHANGE])
        return await handler(request)

    def enter(self, request: web.Request, exchange: Exchange) -> Awaitable[web.StreamResponse] | None:
        """``links.Entering``."""
        if self._journals:
            tap = _Tap(self, self._journals[0], exchange)
            exchange.observe(tap)
            if self.strict:
                exchange.hold(tap.durable, self.strict_body)
            if self.fail_closed and self._journals[0].failing:
                raise _not_recording()
        return None

    @property
    def journal(self) -> Journal | None:
        """The running journal."""
        return self._journals[0] if self._journals else None

    @property
    def redactor(self) -> Redactor:
        """What takes credentials out; there is one as soon as the journal is open."""
        return self._redactors[0]

    async def context(self, app: web.Application) -> AsyncIterator[None]:
        """The journal is open as long as the application; SettingsError when it cannot be opened."""
        journal = await asyncio.to_thread(self._open)
        self._journals.append(journal)
        yield
        self._journals.clear()
        journal.tell_lost()
        await asyncio.to_thread(journal.stop)

    def _open(self) -> Journal:
        home = Path(self.data_dir or ".").expanduser().resolve()
        options = JournalOptions(
            self.tail_size, self.segment_size, self.segment_seconds, self.sync_seconds, self.watermark, self.cap
        )
        try:
            spool, secret = private_directory(home / SPOOL), secret_of(home)
            tail = Tail.open(tail_path(home, self.instance), self.tail_size, wait=ADOPTION_SECONDS)
            journal = Journal(spool, self.instance, tail, options, version("kgb-gateway"))
            journal.start()
            journal.append(Kind.NOTE, NO_EXCHANGE, STARTED)
        except (OSError, TailError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise SettingsError([f"links.dewey_tap: nothing can be recorded in {home}: {why}"]) from None
        names = tuple(name.lower().encode("latin-1") for name in self.secret_headers)
        self._redactors[:] = [Redactor(secret, names, tuple(name.lower() for name in self.secret_parameters))]
        return journal

    def status(self) -> dict[str, object]:
        """What ``kgb status`` shows of the record."""
        journal = self.journal
        if journal is None:
            return {}
        counters = journal.counters
        return {
            "journal": {
                "failing": journal.failing,
                "waiting": journal.lag,
                "spool": journal.spool_size,
                "gaps": counters.gaps,
                "gap_bytes": counters.gap_bytes,
                "lost": counters.lost,
                "lost_bytes": counters.lost_bytes,
                "failures": counters.failures,
            }
        }

    def record_of(self, exchange: Exchange) -> Record:
        """How much of ``exchange`` is recorded: what its caller's or its route's name says, else the default."""
        if not self.callers and not self.routes:
            return self.record
        said = [
            modes[name]
            for modes, name in ((self.callers, exchange.caller), (self.routes, exchange.route))
            if name in modes
        ]
        return min((Record(mode) for mode in said), key=list(Record).index, default=self.record)


def _set(future: "asyncio.Future[str]", why: str) -> None:
    if not future.done():
        future.set_result(why)


def _not_durable(why: str) -> ExchangeError:
    return ExchangeError(
        "not_durable",
        f"The request could not be put on disk, and the gateway is told to forward only what is there: {why}.",
        status=503,
        fault=Fault.GATEWAY,
        hint="nothing was sent upstream; links.dewey_tap.strict is what tells it so",
        headers=(("Retry-After", "5"),),
    )


def _not_recording() -> ExchangeError:
    return ExchangeError(
        "not_recording",
        "The gateway cannot record, and is told to refuse what it cannot record.",
        status=503,
        fault=Fault.GATEWAY,
        hint="its log says why; links.dewey_tap.fail_closed is what tells it so",
        headers=(("Retry-After", "5"),),
    )

"""What is made to grow: each family's servers, loads and limits. It owns the definitions and starts nothing.

A further point is one more entry of a table here.
"""

import sys
from collections.abc import Callable, Iterable, Mapping

import attrs

from tests.bench.figures import Scenario
from tests.bench.growth.figures import Family, Figure, Limit, Load, Stand
from tests.bench.growth.links import names
from tests.bench.growth.spool import fill
from tests.bench.servers import SERVERS, Command, Place, gateway

KGB, OFF, NGINX, DIRECT = "kgb", "kgb-off", "nginx", "direct"
ALONE = "kgb, no librarian"
"""It records, and nobody reads that beside it: what the librarian costs on a core that the two share is told apart."""
LOG = """[links.access_log]
path = "{directory}/access.log"
"""
_TAP = "[links.dewey_tap]\n"

Make = Callable[[Place], Command]
USUAL: Mapping[str, Make | None] = {name: SERVERS[name] for name in (NGINX, KGB, OFF)} | {DIRECT: None}


def usual(*links: str, tap: str = "") -> Make:
    """The usual chain with recording on and ``links`` behind it. ``tap``: TOML for the tap."""
    return gateway("request_id", "access_log", "dewey_tap", "auth", *links, "fiedler", more=LOG + _TAP + tap)


def through(*words: str) -> Callable[[Make], Make]:
    """The same server, started by a module of the bench: ``words`` stand for ``-m kgb_gateway``; in them ``{directory}`` is its own."""

    def wrap(make: Make) -> Make:
        def command(place: Place) -> Command:
            plain = make(place)
            more = [word.format(directory=place.directory) for word in words]
            return Command((sys.executable, "-m", *more, *plain.argv[3:]), plain.headers)

        return command

    return wrap


def scenario(name: str, seconds: tuple[float, float], wrk: bool = False, **spec: object) -> Scenario:
    return Scenario(name, {"body": 300, **spec}, seconds, (), wrk=wrk)


def _json(seconds: float) -> Scenario:
    return scenario("json_64", (seconds, 1.0), wrk=True, mode="closed", target="/json", connections=64)


def _one(seconds: float) -> Scenario:
    return scenario("json_1", (seconds, 0.5), mode="latency", target="/json")


CPU = Figure("cpu", "CPU a request", "us", "cpu")
P99 = Figure("p99", "small JSON, one connection: p99", "ms", "p99")
P50 = Figure("p50", "small JSON, one connection: p50", "ms", "p50")
EVENT_P99 = Figure("event_p99", "200 streams, delay of an event: p99", "ms", "p99")
LIBRARIAN = Figure("librarian", "its librarian, beside: share of a core", "%", "librarian_share")
HELD = Figure("memory", "memory", "MB", "held")
RATE = Figure("rate", "small JSON, 64 connections", "requests/s", "rate")
GAPS = Figure("gaps", "not on record, told as gaps", "bytes", "gaps")
UNTOLD = Figure("untold", "not on record, and not told", "bytes", "untold")
LOST = Figure("lost", "exchanges without an end, or lost", "exchanges", "lost")
ON_RECORD = (GAPS, UNTOLD, LOST)


def untold(series: str, xs: Iterable[float]) -> tuple[Limit, ...]:
    """The record may lack what it says it lacks, and nothing else."""
    return tuple(Limit(figure, series, x, x, 0.0, exact=True) for figure in ("untold", "lost") for x in xs)


# Streams.

STREAMS = (1, 10, 100, 1000, 5000)
PACE = 200
"""Milliseconds between two events of a stream: 5,000 of them leave the processor room for nothing but them, and that is all."""


def _streams() -> Family:
    def load(count: int) -> Load:
        seconds = (2.5 if count >= 100 else 4.0, 0.6)
        warm = 1.0 if count >= 1000 else 0.4
        one = scenario(
            f"{count}", seconds, mode="watched", target=f"/stream?gap={PACE}&stamp=1", connections=count, warm=warm
        )
        figures = ("event_cpu", "p50", "p99", *(("memory",) if count >= 100 else ()))
        return Load(count, one, figures, quick=count in (10, 1000))

    loads = tuple(load(count) for count in STREAMS)
    figures = (
        Figure("event_cpu", "CPU an event", "us", "cpu"),
        Figure("p50", "delay of an event: p50", "ms", "p50"),
        Figure("p99", "delay of an event: p99", "ms", "p99"),
        Figure("memory", "memory a stream", "KB", "stream_memory"),
    )
    limits = tuple(
        limit
        for name in (KGB, OFF)
        for limit in (
            Limit("memory", name, 5000, 1000, 1.2),
            Limit("event_cpu", name, 5000, 1000, 1.2),
            Limit("p99", name, 1000, 100, 2.0, 0.5),
            Limit("p99", name, 5000, 1000, 2.0, 3.0),
        )
    )
    stands = tuple(Stand((name,), make, loads, quick=name != OFF) for name, make in USUAL.items())
    title = f"Streams that are open at once, an event each {PACE} ms"
    return Family("streams", title, "streams", figures, stands, limits)


# Request bodies.

BODIES = {1_000: 2, 10_000: 2, 100_000: 2, 1_000_000: 10, 10_000_000: 100, 30_000_000: 300}
"""Bytes of a body, and milliseconds between two requests: no more than 100 MB/s, which a disk can follow."""


def _bodies() -> Family:
    labels = {1e3: "1 KB", 1e4: "10 KB", 1e5: "100 KB", 1e6: "1 MB", 1e7: "10 MB", 3e7: "30 MB"}
    loads = tuple(
        Load(
            size,
            scenario(f"{size}", (2.0, 0.7), mode="whole", target="/json", body=size, gap=gap),
            ("cpu", "p50", "p99", "peak", *(("cpu_mb",) if size >= 100_000 else ())),
            quick=size in (1_000, 30_000_000),
        )
        for size, gap in BODIES.items()
    )
    figures = (
        CPU,
        Figure("cpu_mb", "CPU a MB", "us", "cpu_mb"),
        Figure("p50", "the whole exchange: p50", "ms", "p50"),
        Figure("p99", "the whole exchange: p99", "ms", "p99"),
        Figure("peak", "memory at its peak", "MB", "peak"),
        *ON_RECORD,
    )
    limits = tuple(
        limit
        for name in (KGB, OFF)
        for limit in (Limit("cpu_mb", name, 3e7, 1e6, 1.3), Limit("peak", name, 3e7, 1e6, 1.0, 4.0))
    )
    stands = (
        *(
            Stand((name,), make, loads, recorded=3e7 if name == KGB else None, quick=name in (KGB, DIRECT))
            for name, make in USUAL.items()
        ),
        Stand((ALONE,), usual(tap='librarian = "external"\n'), loads, quick=False),
    )
    title = "Request bodies, one connection, at most 100 MB/s"
    return Family("bodies", title, "body", figures, stands, (*limits, *untold(KGB, (3e7,))), labels)


# Links.

LINKS = (0, 1, 5, 10, 20, 40)
ENTER, AROUND = "links that enter", "ordinary middlewares"


def _chain() -> Family:
    def stand(series: tuple[str, ...], kind: str, count: int) -> Stand:
        loads = (Load(count, _one(1.5), ("p50", "p99")), Load(count, _json(2.0), ("cpu",)))
        return Stand(series, usual(*names(kind, count)), loads, quick=count in (0, 40))

    stands = (
        stand((ENTER, AROUND), "enter", 0),
        *(stand((ENTER,), "enter", count) for count in LINKS[1:]),
        *(stand((AROUND,), "around", count) for count in LINKS[1:]),
    )
    limits = (
        Limit("cpu", ENTER, 40, 0, 1.0, 40 * 0.5),
        Limit("cpu", AROUND, 40, 1, 1.0, 39 * 1.0),
        Limit("p99", ENTER, 40, 0, 1.5, 0.1),
        Limit("p99", AROUND, 40, 1, 1.5, 0.2),
    )
    title = "Links of one's own in the chain, beside the five usual ones"
    return Family("chain", title, "links", (CPU, P50, P99), stands, limits)


# Disks.

EVENTS = scenario("paced_200", (2.5, 0.6), mode="paced", target="/stream?gap=20&stamp=1", connections=200)


def _slow(rate: float, pause: float, tap: str = "") -> Make:
    return through("tests.bench.slow_disk", str(rate), str(pause))(usual(tap=tap))


def _on_disk(x: float, series: str, make: Make, *, quick: bool = True, recorded: bool = True) -> Stand:
    loads = (
        Load(x, _one(2.0), ("p50", "p99")),
        Load(x, EVENTS, ("event_p99",), quick=False),
        Load(x, _json(2.0), ("cpu",)),
    )
    return Stand((series,), make, loads, recorded=x if recorded else None, quick=quick)


def _disk() -> Family:
    pauses = (0, 10, 100, 1000)
    stands = (
        _on_disk(0, OFF, SERVERS[OFF], quick=False, recorded=False),
        *(_on_disk(pause, KGB, _slow(0, pause / 1000), quick=pause in (0, 100)) for pause in pauses),
    )
    limits = tuple(
        limit
        for pause in pauses[1:]
        for limit in (Limit("p99", KGB, pause, 0, 1.25, 0.2), Limit("event_p99", KGB, pause, 0, 1.25, 0.3))
    )
    figures = (P50, P99, EVENT_P99, CPU, *ON_RECORD)
    title = "A disk whose syncs take so long"
    return Family("disk", title, "ms a sync", figures, stands, (*limits, *untold(KGB, pauses)))


def _narrow() -> Family:
    rates = (1, 5, 50)
    tap = "tail_size = 8388608\n"  # the ring is full soon, and empty before the process ends
    stands = tuple(_on_disk(rate, KGB, _slow(rate * 1e6, 0.0, tap), quick=rate != 5) for rate in rates)
    limits = tuple(
        limit
        for rate in rates[:-1]
        for limit in (Limit("p99", KGB, rate, 50, 1.25, 0.2), Limit("event_p99", KGB, rate, 50, 1.25, 0.3))
    )
    figures = (P50, P99, EVENT_P99, CPU, *ON_RECORD)
    title = "A disk that takes so many MB a second, 8 MB of memory before it"
    return Family("narrow", title, "MB/s", figures, stands, (*limits, *untold(KGB, rates)))


# Spools.

SPOOLS = (0, 1, 10, 100)
"""GB (10^9 bytes) of segments that nobody has packed."""


def _filled(size: int) -> Make:
    make = through("tests.bench.growth.spool", "{directory}")(usual(tap="cap = 0\n"))

    def command(place: Place) -> Command:
        fill(place.directory, size)
        return make(place)

    return command


def _spool() -> Family:
    def stand(size: int) -> Stand:
        loads = (
            Load(size, scenario("start", (0.0, 0.0), mode="start"), ("start", "memory")),
            Load(size, _one(2.0), ("p50", "p99", "librarian")),
            Load(size, _json(2.0), ("cpu",)),
        )
        return Stand((KGB,), _filled(size * 10**9), loads, quick=size in (0, 100))

    figures = (Figure("start", "start to first answer", "s", "start"), HELD, P50, P99, CPU, LIBRARIAN)
    limits = (
        Limit("start", KGB, 100, 0, 2.0, 1.0),
        Limit("start", KGB, 100, 1, 1.2, 0.2),
        Limit("memory", KGB, 100, 0, 1.1, 2.0),
        Limit("cpu", KGB, 100, 0, 1.1),
        Limit("p99", KGB, 100, 0, 1.25, 0.2),
    )
    title = "A spool of so many GB (simulated: segments of full size, payloads of zeros)"
    return Family("spool", title, "GB", figures, tuple(stand(size) for size in SPOOLS), limits)


# Instances.


def _instances() -> Family:
    off = gateway("request_id", "access_log", "auth", "fiedler", more=LOG)
    events = attrs.evolve(EVENTS, spec={**EVENTS.spec, "mode": "watched"})

    def stand(series: str, make: Make, count: int) -> Stand:
        each = attrs.evolve(_json(3.0), spec={**_json(3.0).spec, "connections": 64 * count})
        loads = (
            Load(count, events, ("event_cpu", "memory")),
            Load(count, _json(3.0), ("cpu", "rate")),
            Load(count, each, ("cpu_each", "rate_each"), quick=False),
        )
        wrapped = through("tests.bench.growth.instances", str(count))(make)
        return Stand((series,), wrapped, loads, instances=count, quick=series == KGB)

    stands = tuple(stand(name, make, count) for name, make in ((KGB, usual()), (OFF, off)) for count in (1, 2))
    limits = tuple(Limit(figure, name, 2, 1, 1.1) for name in (KGB, OFF) for figure in ("cpu", "cpu_each"))
    figures = (
        Figure("cpu", "CPU a request, 64 connections", "us", "cpu"),
        Figure("cpu_each", "CPU a request, 64 connections an instance", "us", "cpu"),
        Figure("event_cpu", "200 streams: CPU an event", "us", "cpu"),
        RATE,
        Figure("rate_each", "small JSON, 64 connections an instance", "requests/s", "rate"),
        HELD,
    )
    title = "Instances on one port, one spool and one core"
    return Family("instances", title, "instances", figures, stands, limits, rounds=2)


FAMILIES = {each.name: each for each in (_streams(), _bodies(), _chain(), _disk(), _narrow(), _spool(), _instances())}

"""What is measured: scenarios (one load run each) and the rows of the table that are read off their results.

It owns the definitions and the targets, and starts nothing. A further figure is one more Scenario here.
"""

import attrs

Result = dict[str, float]
MEGABYTES_10 = 10_000_000


@attrs.frozen
class Row:
    """One line of the table: ``key`` of the results, more or less being better.

    ``added``: the key of direct in the same round is subtracted. ``bound``: a note is made when load and upstream alone could not
    do twice the value. ``alone``: direct has no such figure.
    """

    name: str
    title: str
    unit: str
    key: str
    more: bool
    added: bool = False
    bound: bool = False
    alone: bool = False

    def value(self, result: Result, direct: Result) -> float:
        """The figure of one measurement; ``direct`` is that of the same round."""
        return result[self.key] - (direct[self.key] if self.added else 0.0)

    def capacity(self, direct: Result) -> float:
        """What load and upstream alone could do, given the share of their core that they used."""
        return direct[self.key] / direct.get("generator", 1.0)


@attrs.frozen
class Scenario:
    """One load run: its spec (tests.bench.load), seconds in a full and in a quick run, and its rows.

    ``fresh``: every round gets a server of its own. ``wrk``: wrk makes the load when it is there.
    """

    name: str
    spec: dict[str, object]
    seconds: tuple[float, float]
    rows: tuple[Row, ...]
    fresh: bool = False
    wrk: bool = False
    default: bool = True


SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "json_64",
        {"mode": "closed", "target": "/json", "connections": 64, "body": 300},
        (3.0, 1.0),
        (
            Row("json_64", "small JSON, 64 connections", "requests/s", "rate", more=True, bound=True),
            Row("json_64_cpu", "small JSON, 64 connections: CPU", "us/request", "cpu", more=False, alone=True),
        ),
        wrk=True,
    ),
    Scenario(
        "json_1",
        {"mode": "latency", "target": "/json", "body": 300},
        (2.0, 0.7),
        (Row("json_1", "small JSON, one connection, added p50", "ms", "p50", more=False, added=True),),
    ),
    Scenario(
        "first_byte",
        {"mode": "latency", "target": "/stream?count=2&gap=2", "body": 300},
        (3.0, 1.0),
        (
            Row("first_byte_p50", "first byte of a stream, added p50", "ms", "p50", more=False, added=True),
            Row("first_byte_p99", "first byte of a stream, added p99", "ms", "p99", more=False, added=True),
        ),
    ),
    Scenario(
        "streams_200",
        {"mode": "streams", "target": "/stream?gap=20", "connections": 200, "body": 300},
        (4.0, 1.5),
        (Row("event_cpu", "200 streams, an event each 20 ms: CPU", "us/event", "cpu", more=False, alone=True),),
    ),
    Scenario(
        "streams_1000",
        {"mode": "streams", "target": "/stream?gap=20", "connections": 1000, "body": 300},
        (4.0, 1.5),
        (
            Row("events_1000", "1,000 streams, 50,000 events/s offered", "events/s", "rate", more=True, bound=True),
            Row("event_cpu_1000", "1,000 streams, an event each 20 ms: CPU", "us/event", "cpu", more=False, alone=True),
        ),
    ),
    Scenario(
        "paced_1000",
        {"mode": "paced", "target": "/stream?gap=1000&stamp=1", "connections": 1000, "body": 300},
        (4.0, 2.0),
        (Row("event_p99_1000", "1,000 streams, an event a second: delay, p99", "ms", "p99", more=False),),
    ),
    Scenario(
        "paced_5000",
        {"mode": "paced", "target": "/stream?gap=1000&stamp=1", "connections": 5000, "body": 300},
        (4.0, 2.0),
        (Row("event_p99_5000", "5,000 streams, an event a second: delay, p99", "ms", "p99", more=False),),
    ),
    Scenario(
        "memory",
        {"mode": "streams", "target": "/stream?gap=500", "connections": 1000, "body": 300, "warm": 1.0},
        (0.5, 0.2),
        (Row("memory_1000", "memory per 1,000 open streams", "MB", "memory", more=False, alone=True),),
        fresh=True,
    ),
    Scenario(
        "up",
        {"mode": "bulk", "target": "/json", "body": MEGABYTES_10},
        (2.0, 0.7),
        (Row("up", "10 MB up", "MB/s", "rate", more=True, bound=True),),
        fresh=True,
    ),
    Scenario(
        "down",
        {"mode": "bulk", "target": f"/bytes?size={MEGABYTES_10}"},
        (2.0, 0.7),
        (Row("down", "10 MB down", "MB/s", "rate", more=True, bound=True),),
        fresh=True,
    ),
    Scenario(
        "agent",
        {"mode": "closed", "target": "/stream?count=10&gap=1", "connections": 64, "body": 1_000_000},
        (3.0, 1.0),
        (Row("agent", "1 MB agent body, 10 events back", "requests/s", "rate", more=True, bound=True),),
        fresh=True,
    ),
    Scenario(
        "start",
        {"mode": "start"},
        (0.0, 0.0),
        (Row("start", "start to first answer", "s", "start", more=False, alone=True),),
        fresh=True,
        default=False,
    ),
)


@attrs.frozen
class Target:
    """``row`` of the gateway must be at least (more) or at most (less) ``factor`` times that of ``against``."""

    row: str
    against: str
    factor: float


TOLERANCE = 0.03
"""Two medians closer than this are equal: "not behind" cannot be told more finely in a few rounds."""

NOT_BEHIND = (
    "json_64_cpu",
    "json_1",
    "first_byte_p99",
    "event_cpu",
    "events_1000",
    "event_cpu_1000",
    "memory_1000",
    "up",
    "down",
    "agent",
)

TARGETS: tuple[Target, ...] = (
    Target("json_64", "reference", 2.0),
    Target("first_byte_p50", "reference", 0.5),
    *(Target(name, "reference", 1.0) for name in NOT_BEHIND),
)


@attrs.frozen
class Bound:
    """What ``row`` of the gateway must reach and is to reach, as a ratio to ``against``: a server, or the gateway's own row ``of``."""

    row: str
    against: str
    must: float
    goal: float
    of: str = ""


RECORDING = "kgb-off"
"""The gateway that does not record: what recording costs is told against it."""

BOUNDS: tuple[Bound, ...] = (
    Bound("json_64", "nginx", 0.20, 0.35),
    Bound("json_1", "nginx", 4.5, 3.0),
    Bound("first_byte_p50", "nginx", 5.0, 3.0),
    Bound("event_cpu", "nginx", 1.6, 1.3),
    Bound("events_1000", "nginx", 0.80, 0.95),
    Bound("memory_1000", "nginx", 1.6, 1.2),
    Bound("up", "nginx", 0.6, 0.9),
    Bound("down", "nginx", 0.8, 1.2),
    Bound("agent", "nginx", 0.35, 0.6),
    Bound("event_p99_5000", "kgb", 2.0, 2.0, of="event_p99_1000"),
    Bound("start", "reference", 1.5, 1.0),
    *(Bound(name, RECORDING, 0.90, 0.90) for name in ("json_64", "events_1000")),
    *(Bound(name, RECORDING, 1.10, 1.10) for name in ("json_1", "first_byte_p50", "event_cpu", "memory_1000")),
    *(Bound(name, RECORDING, 0.75, 0.75) for name in ("up", "down", "agent")),
)
"""With recording on: against nginx in the same minute, and against the same without recording."""


def reached(row: Row, value: float, other: float, factor: float) -> bool:
    """Whether a value meets its target; equal factors get TOLERANCE."""
    slack = TOLERANCE if factor == 1.0 else 0.0
    return value >= factor * other * (1 - slack) if row.more else value <= factor * other * (1 + slack)

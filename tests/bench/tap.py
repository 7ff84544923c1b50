"""What recording costs: ``python -m tests.bench.tap [--quick] [--rounds N] [--check] [--json FILE]``.

The gateway with the tap against the same without, in one run. A figure counts only when everything that was relayed is on record:
no gap, and as many body bytes journalled as relayed. It owns this comparison; the load is the bench's.
"""

import contextlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from tests.bench import servers
from tests.bench.__main__ import machine
from tests.bench.comparison import arguments_of, conclude
from tests.bench.dewey.figures import NONE_AT_ALL, Bound, Figure
from tests.bench.dewey.sessions import record, unseen
from tests.bench.figures import SCENARIOS, Row, Scenario
from tests.bench.recorded import Recorded
from tests.bench.runner import Bench, Options
from tests.bench.servers import Command, Place, gateway

WATCHED = """[links.access_log]
path = "{directory}/access.log"
[links.Stalls]
path = "{directory}/stalls.json"
"""

PACED = Scenario(
    "paced_200",
    {"mode": "paced", "target": "/stream?gap=20&stamp=1", "connections": 200, "body": 300},
    (6.0, 1.5),
    (
        Row("event_p50", "200 paced streams, delay of an event, added p50", "ms", "p50", more=False, added=True),
        Row("event_p99", "200 paced streams, delay of an event, added p99", "ms", "p99", more=False, added=True),
    ),
)

OFF, ON = "kgb-off", "kgb"
BUSY, SLOW, SYNC = "tap-busy", "tap-slow", "tap-sync"
"""Its librarian has a lot to take in; its disk takes 5 MB a second; each of its syncs takes a second."""
BACKLOG = 200
"""Bodies of up to 1 MB that wait for the librarian."""


def slow(rate: float, pause: float) -> Callable[[Place], Command]:
    """The gateway on a slow disk."""

    def command(place: Place) -> Command:
        usual = watched("dewey_tap")(place)
        argv = (sys.executable, "-m", "tests.bench.slow_disk", str(rate), str(pause), *usual.argv[3:])
        return Command(argv, usual.headers)

    return command


def watched(*tap: str) -> Callable[[Place], Command]:
    return gateway("request_id", "access_log", *tap, "tests.bench.stalls:Stalls", "auth", more=WATCHED)


def busy(place: Place) -> Command:
    """The gateway whose librarian has a lot to take in."""
    record(place.directory, unseen(BACKLOG), "before")
    return watched("dewey_tap")(place)


PACED_SERVERS: dict[str, Callable[[Place], Command]] = {
    "off": watched(),
    "tap": watched("dewey_tap"),
    BUSY: busy,
    SLOW: slow(5e6, 0.0),
    SYNC: slow(0.0, 1.0),
}


@contextlib.contextmanager
def _known(more: dict[str, Callable[[Place], Command]]) -> Iterator[None]:
    """Further servers, as long as they are needed."""
    before = dict(servers.SERVERS)
    servers.SERVERS.update(more)
    try:
        yield
    finally:
        servers.SERVERS.clear()
        servers.SERVERS.update(before)


def run(scenarios: tuple[Scenario, ...], names: tuple[str, ...], options: Options) -> Bench:
    """One run of the bench; its servers have ended and their directories are there."""
    options.directory.mkdir()
    bench = Bench(attrs.evolve(options, scenarios=scenarios, servers=names))
    bench.run()
    return bench


def homes(directory: Path) -> Iterator[tuple[str, Path]]:
    """Name and data directory of each server that ran."""
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            yield path.name.partition("-")[2], path


def on_record(directory: Path) -> Iterator[Figure]:
    """For each tap, what is missing."""
    for name, home in homes(directory):
        if (home / "spool").is_dir():
            found = Recorded.of(home)
            note = f"{found.journalled:,} bytes journalled, {found.relayed:,} relayed, {found.unended} exchanges without an end"
            yield Figure(f"missing {name}", f"{name}: bytes not on record", "bytes", found.missing, NONE_AT_ALL, note)


def _ratio(bench: Bench, row: str, title: str, unit: str, bound: Bound) -> Figure:
    on, off = bench.cells[row, ON].median, bench.cells[row, OFF].median
    return Figure(row, f"{title}, tap on against off", "ratio", on / off, bound, f"{on:,.0f} against {off:,.0f} {unit}")


def throughput(options: Options) -> Iterator[Figure]:
    """Requests and events a second, on against off."""
    wanted = tuple(one for one in SCENARIOS if one.name in ("json_64", "streams_200", "streams_1000"))
    bench = run(wanted, (OFF, ON), options)
    yield _ratio(bench, "json_64", "small JSON, 64 connections", "requests/s", Bound(0.85, most=False))
    yield _ratio(bench, "events_1000", "1,000 streams, 50,000 events/s offered", "events/s", Bound(0.90, most=False))
    for row in ("json_64_cpu", "event_cpu", "event_cpu_1000"):
        title = next(each.title for one in wanted for each in one.rows if each.name == row)
        on, off = bench.cells[row, ON].median, bench.cells[row, OFF].median
        yield Figure(row, f"{title}, tap on against off", "ratio", on / off, None, f"{on:,.1f} against {off:,.1f} us")
    yield from on_record(options.directory)


def paced(options: Options) -> Iterator[Figure]:
    """How late events are at 200 streams, and how late the loop is, whatever the disk and the librarian do. Each server is alone."""
    options.directory.mkdir()
    delays: dict[tuple[str, str], list[float]] = {}
    stalls: dict[str, list[dict[str, float]]] = {}
    missing: list[Figure] = []
    for at in range(options.rounds):
        for number, (name, command) in enumerate(PACED_SERVERS.items()):
            place = attrs.evolve(options, rounds=1, directory=options.directory / f"{at}-{number}")
            with _known({name: command}):
                bench = run((PACED,), (name,), place)
            for row in PACED.rows:
                delays.setdefault((row.name, name), []).append(bench.cells[row.name, name].median)
            ((_, home),) = homes(place.directory)
            stalls.setdefault(name, []).append(json.loads((home / "stalls.json").read_text(encoding="utf-8")))
            missing += on_record(place.directory)
    for row in PACED.rows:
        for name in PACED_SERVERS:
            value = statistics.median(delays[row.name, name])
            bound = Bound(1.0) if row.name == "event_p99" and name != "off" else None
            yield Figure(f"{row.name} {name}", f"{row.title}: {name}", "ms", value, bound)
    for name, told in stalls.items():
        late, looks = sum(each["late"] for each in told), sum(each["looks"] for each in told)
        bound = Bound(5.0) if name in (SLOW, SYNC) else None
        note = f"{late} of {looks:,} looks above 5 ms in {len(told)} rounds"
        title = "200 paced streams, longest stall of the loop"
        worst = max(each["worst"] for each in told)
        yield Figure(f"stall {name}", f"{title}: {name}", "ms", worst, bound, note)
        changing = max(each["changing"] for each in told)
        yield Figure(f"changing {name}", f"{title} while all begin or end at once: {name}", "ms", changing)
    yield from missing


def main() -> int:
    arguments = arguments_of("tests.bench.tap", __doc__, rounds=3)
    about = machine()
    with tempfile.TemporaryDirectory(
        prefix="bench-tap-", dir=Path.cwd()
    ) as directory:  # a disk, where /tmp may be memory
        options = Options(
            scenarios=(),
            servers=(),
            rounds=arguments.rounds or (1 if arguments.quick else 3),
            quick=arguments.quick,
            repeats=0 if arguments.quick else 2,
            use_wrk=bool(shutil.which("wrk")),
            directory=Path(directory),
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        figures = [
            *throughput(attrs.evolve(options, directory=Path(directory) / "throughput")),
            *paced(attrs.evolve(options, directory=Path(directory) / "paced")),
        ]
    return conclude(figures, about, arguments)


if __name__ == "__main__":
    sys.exit(main())

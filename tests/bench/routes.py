"""What routing costs: ``python -m tests.bench.routes [--quick] [--rounds N] [--check] [--json FILE]``.

The same chain with Fiedler's routes at its end against without, in one run: a slot of two upstreams with breakers, a key of the gateway's
own, and session affinity; and the same with a canary that is watched. It owns this comparison; the load is the bench's.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench import servers
from tests.bench.__main__ import machine
from tests.bench.comparison import arguments_of, conclude
from tests.bench.dewey.figures import Bound, Figure
from tests.bench.figures import SCENARIOS
from tests.bench.runner import Bench, Options
from tests.bench.servers import Command, Place, gateway

OFF, ON, BLUE, CANARY = "kgb", "routes", "blue", "canary"

_LINKS = ("request_id", "access_log", "auth")

_LOG = """[links.access_log]
path = "{directory}/access.log"
"""

_ROUTES = """[providers.p]
url = "http://127.0.0.1:{upstream}"
keys = ["file:provider.key"]
[providers.q]
url = "http://127.0.0.1:9"
keys = ["file:provider.key"]
[[slots.s]]
name = "never"
prefix = "/never"
upstreams = ["q"]
[[slots.s]]
name = "all"
upstreams = ["p", "q"]
[[slots.t]]
name = "all"
upstreams = ["p", "q"]
"""


def routes(canary: str = "") -> Callable[[Place], Command]:
    """The gateway with routes, and a canary of one session in twenty where there is to be one."""

    def command(place: Place) -> Command:
        place.write("provider.key", "a-key-of-the-gateways-own")
        choice = {"active": "s", "canary": canary, "share": 0.05 if canary else 0.0, "log": [], "environments": {}}
        place.write("slots-kgb.json", json.dumps(choice))
        more = _LOG + _ROUTES.replace("{upstream}", str(place.upstream))
        return gateway(*_LINKS, "fiedler", more=more)(place)

    return command


SERVERS: dict[str, Callable[[Place], Command]] = {
    OFF: gateway(*_LINKS, more=_LOG),
    BLUE: gateway(*_LINKS, "fiedler", more=_LOG),
    ON: routes(),
    CANARY: routes("t"),
}

WANTED = (
    ("json_64", "small JSON, 64 connections: requests/s", Bound(0.95, most=False)),
    ("json_64_cpu", "small JSON, 64 connections: CPU a request", Bound(1.05)),
    ("event_cpu", "200 streams: CPU an event", Bound(1.05)),
)


def figures(options: Options) -> list[Figure]:
    """Each row, with routes against without."""
    servers.SERVERS.update(SERVERS)
    bench = Bench(options)
    bench.run()
    told = []
    for row, title, bound in WANTED:
        off = bench.cells[row, OFF].median
        for name in (BLUE, ON, CANARY):
            on = bench.cells[row, name].median
            judged = bound if name == ON else None
            told.append(
                Figure(
                    f"{row} {name}",
                    f"{title}, {name} against none",
                    "ratio",
                    on / off,
                    judged,
                    f"{on:,.1f} against {off:,.1f}",
                )
            )
    return told


def main() -> int:
    arguments = arguments_of("tests.bench.routes", __doc__, rounds=5)
    about = machine()
    with tempfile.TemporaryDirectory(prefix="bench-routes-") as directory:
        options = Options(
            scenarios=tuple(one for one in SCENARIOS if one.name in ("json_64", "streams_200")),
            servers=(OFF, BLUE, ON, CANARY),
            rounds=arguments.rounds or (1 if arguments.quick else 5),
            quick=arguments.quick,
            repeats=0 if arguments.quick else 2,
            use_wrk=bool(shutil.which("wrk")),
            directory=Path(directory),
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        found = figures(options)
    return conclude(found, about, arguments)


if __name__ == "__main__":
    sys.exit(main())

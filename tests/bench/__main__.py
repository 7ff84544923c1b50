"""The one command: ``python -m tests.bench [--quick] [--only NAME] [--peers] [--rounds N] [--json FILE] [--plots DIR] [--check]``.

``--from FILE`` tells again, and together, what earlier runs measured.
"""

import argparse
import importlib.metadata
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.figures import SCENARIOS, Row, Scenario
from tests.bench.peers import PEERS, version
from tests.bench.report import Cells, bounds, document, misses, restored, table
from tests.bench.runner import Bench, Options
from tests.bench.servers import SERVERS, USUAL, StartError, cores

GATEWAY = "kgb"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    found.add_argument("--quick", action="store_true", help="one short round: says that it works, not how fast")
    found.add_argument(
        "--only", action="append", metavar="NAME", help=f"scenarios: {', '.join(one.name for one in SCENARIOS)}"
    )
    found.add_argument(
        "--servers", metavar="NAMES", help=f"comma-separated, of {', '.join(SERVERS)} ({','.join(USUAL)})"
    )
    found.add_argument("--peers", action="store_true", help=f"and those that others made: {', '.join(PEERS)}")
    found.add_argument("--rounds", type=int, metavar="N", help="rounds, interleaved over the servers (5; 1 when quick)")
    found.add_argument(
        "--repeats", type=int, default=2, metavar="N", help="further tries of a disturbed measurement (2)"
    )
    found.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    found.add_argument("--plots", type=Path, metavar="DIR", help="draw it, as SVG (needs the extra bench)")
    found.add_argument(
        "--from",
        action="append",
        type=Path,
        metavar="FILE",
        dest="told",
        help="measure nothing: tell what earlier runs wrote",
    )
    found.add_argument("--no-wrk", action="store_true", help="make all load with the bench's own generator")
    found.add_argument("--check", action="store_true", help="exit status 1 when a target is missed")
    return found


def chosen(names: list[str] | None) -> tuple[Scenario, ...]:
    """The scenarios of these names (of these rows); all that run by default without names."""
    if not names:
        return tuple(one for one in SCENARIOS if one.default)
    known = {one.name: one for one in SCENARIOS}
    known.update((row.name, one) for one in SCENARIOS for row in one.rows)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"--only {unknown[0]}: no such figure; there are {', '.join(sorted(known))}")
    wanted = {known[name].name for name in names}
    return tuple(one for one in SCENARIOS if one.name in wanted)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def compared(names: str | None, peers: bool) -> tuple[str, ...]:
    """The servers of these names, the usual ones without; SystemExit where there is none of a name."""
    servers = tuple(names.split(",")) if names else USUAL
    if unknown := [name for name in servers if name not in SERVERS]:
        raise SystemExit(f"--servers {unknown[0]}: no such server; there are {', '.join(SERVERS)}")
    return (*servers, *(name for name in PEERS if peers and name not in servers))


def machine(servers: Sequence[str] = ()) -> dict[str, str]:
    """What the figures depend on, in words; also the peers among ``servers``."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    nginx = shutil.which("nginx")
    text = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=False).stderr if nginx else ""
    proxy_core, load_core = cores()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": model[1] if model else platform.processor(),
        "cores": f"proxy on {min(proxy_core)}, load and upstream on {min(load_core)}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("aiohttp", "uvloop")},
        "nginx": text.rpartition("/")[2].strip() or "absent",
        **{name: version(name) for name in servers if name in PEERS},
        "load": "wrk for requests/s of json_64, else tests.bench.load" if shutil.which("wrk") else "tests.bench.load",
    }


def main() -> int:
    arguments = parser().parse_args()
    scenarios, servers = chosen(arguments.only), compared(arguments.servers, arguments.peers)
    if arguments.plots:
        from tests.bench.plots import drawing

        drawing()  # what is missing for plots is said before anything is measured
    if arguments.told:
        return again(scenarios if arguments.only else SCENARIOS, arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped on the way out
    about = machine(servers)
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    # On a disk, where /tmp may be memory: the gateway records.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as directory:
        options = Options(
            scenarios=scenarios,
            servers=servers,
            rounds=arguments.rounds or (1 if arguments.quick else 5),
            quick=arguments.quick,
            repeats=0 if arguments.quick else arguments.repeats,
            use_wrk=bool(shutil.which("wrk")) and not arguments.no_wrk,
            directory=Path(directory),
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        bench, interrupted = Bench(options), False
        try:
            bench.run()
        except StartError as error:
            raise SystemExit(f"the bench cannot run: {error}") from None
        except KeyboardInterrupt:
            print("interrupted: what was measured until then")
            arguments.check, interrupted = False, True
    about |= {f"record of {name}, but for bulk": str(found) for name, found in bench.recorded.items()}
    print("\n".join(f"record of {name}, but for bulk: {found}" for name, found in bench.recorded.items()))
    return show(rows_of(scenarios), bench.cells, about, bench.skipped, arguments) or (130 if interrupted else 0)


def rows_of(scenarios: Sequence[Scenario]) -> list[Row]:
    return [row for one in scenarios for row in one.rows]


def again(scenarios: Sequence[Scenario], arguments: argparse.Namespace) -> int:
    """Tell what the files hold as one run: the rounds of all of them. About the machine says the last one."""
    cells: Cells = {}
    skipped: dict[str, str] = {}
    for path in arguments.told:
        told = json.loads(path.read_text(encoding="utf-8"))
        restored(told, cells)
        skipped |= told["skipped"]
    measured = {name for _row, name in cells}
    rows = [row for row in rows_of(scenarios) if any((row.name, name) in cells for name in measured)]
    skipped = {name: reason for name, reason in skipped.items() if name not in measured}
    return show(rows, cells, told["machine"], skipped, arguments)


def show(
    rows: Sequence[Row],
    cells: Cells,
    about: Mapping[str, str],
    skipped: Mapping[str, str],
    arguments: argparse.Namespace,
) -> int:
    """Print, write, draw, judge; the exit status."""
    measured = {name for _row, name in cells}
    names = [name for name in ("direct", *SERVERS) if name in measured]
    print(table(rows, names, cells))
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    told = document(rows, names, cells, about, skipped)
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if arguments.plots:
        from tests.bench.plots import draw

        print("\n".join(str(path) for path in draw(told, arguments.plots)))
    ratios, behind = bounds(rows, cells, GATEWAY)
    print(f"\n{ratios}")
    missed = [*misses(rows, cells, GATEWAY), *behind] if arguments.check else []
    for line in missed:
        print(f"MISSED {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

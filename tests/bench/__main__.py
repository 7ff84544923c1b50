"""The one command: ``python -m tests.bench [--quick] [--only NAME] [--json FILE] [--rounds N] [--check]``."""

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
from pathlib import Path

from tests.bench.figures import SCENARIOS, Row, Scenario
from tests.bench.report import bounds, document, misses, table
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
    found.add_argument("--rounds", type=int, metavar="N", help="rounds, interleaved over the servers (5; 1 when quick)")
    found.add_argument(
        "--repeats", type=int, default=2, metavar="N", help="further tries of a disturbed measurement (2)"
    )
    found.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
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


def machine() -> dict[str, str]:
    """What the figures depend on, in words."""
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
        "load": "wrk for requests/s of json_64, else tests.bench.load" if shutil.which("wrk") else "tests.bench.load",
    }


def main() -> int:
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped on the way out
    servers = tuple(arguments.servers.split(",")) if arguments.servers else USUAL
    if unknown := [name for name in servers if name not in SERVERS]:
        raise SystemExit(f"--servers {unknown[0]}: no such server; there are {', '.join(SERVERS)}")
    about = machine()
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    # On a disk, where /tmp may be memory: the gateway records.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=Path.cwd()) as directory:
        options = Options(
            scenarios=chosen(arguments.only),
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
    rows = [row for one in options.scenarios for row in one.rows]
    return show(bench, rows, about, arguments) or (130 if interrupted else 0)


def show(bench: Bench, rows: list[Row], about: dict[str, str], arguments: argparse.Namespace) -> int:
    """Print, write, judge; the exit status."""
    print(table(rows, bench.names, bench.cells))
    for name, reason in bench.skipped.items():
        print(f"skipped {name}: {reason}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps(document(rows, bench.names, bench.cells, about), indent=1) + "\n", encoding="utf-8"
        )
    told, behind = bounds(rows, bench.cells, GATEWAY)
    print(f"\n{told}")
    missed = [*misses(rows, bench.cells, GATEWAY), *behind] if arguments.check else []
    for line in missed:
        print(f"MISSED {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

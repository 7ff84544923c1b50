"""Cost as work grows: ``python -m tests.bench.growth [--quick] [--only NAME] [--rounds N] [--json FILE] [--plots DIR] [--check]``.

It owns the command line. ``--from FILE`` tells again, and together, what earlier runs measured.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.__main__ import machine
from tests.bench.growth.families import FAMILIES
from tests.bench.growth.figures import Family, Points, document, restored, table, verdicts
from tests.bench.growth.run import Growth
from tests.bench.runner import Options
from tests.bench.servers import StartError

ROUNDS = 2


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__)
    found.add_argument("--quick", action="store_true", help="one short round of few points: says that it works")
    found.add_argument("--only", action="append", metavar="NAME", help=f"families: {', '.join(FAMILIES)}")
    found.add_argument(
        "--rounds", type=int, metavar="N", help=f"rounds, each with new servers ({ROUNDS}; 1 when quick)"
    )
    found.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    found.add_argument("--plots", type=Path, metavar="DIR", help="draw it, an SVG a family (needs the extra bench)")
    found.add_argument(
        "--from",
        action="append",
        type=Path,
        metavar="FILE",
        dest="told",
        help="measure nothing: tell what earlier runs wrote",
    )
    found.add_argument("--check", action="store_true", help="exit status 1 when a limit is missed")
    return found


def chosen(names: Sequence[str] | None) -> tuple[Family, ...]:
    """The families of these names, all without; SystemExit where there is none of a name."""
    for name in names or ():
        if name not in FAMILIES:
            raise SystemExit(f"--only {name}: no such family; there are {', '.join(FAMILIES)}")
    return tuple(family for family in FAMILIES.values() if not names or family.name in names)


def main() -> int:
    arguments = parser().parse_args()
    families = chosen(arguments.only)
    if arguments.plots:
        from tests.bench.plots import drawing

        drawing()  # what is missing for plots is said before anything is measured
    if arguments.told:
        return again(families, arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped on the way out
    about = machine()
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    # On a disk, where /tmp may be memory: the gateway records.
    with tempfile.TemporaryDirectory(prefix="bench-growth-", dir=Path.cwd()) as directory:
        options = Options(
            scenarios=(),
            servers=(),
            rounds=arguments.rounds or (1 if arguments.quick else ROUNDS),
            quick=arguments.quick,
            repeats=0 if arguments.quick else 1,
            use_wrk=bool(shutil.which("wrk")),
            directory=Path(directory),
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        growth, interrupted = Growth(families, options), False
        try:
            growth.run()
        except StartError as error:
            raise SystemExit(f"the bench cannot run: {error}") from None
        except KeyboardInterrupt:
            print("interrupted: what was measured until then")
            arguments.check, interrupted = False, True
    return show(families, growth.points, about, arguments) or (130 if interrupted else 0)


def again(families: Sequence[Family], arguments: argparse.Namespace) -> int:
    """Tell what the files hold as one run: the rounds of all of them. About the machine says the last one."""
    told = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.told]
    found: dict[str, Points] = {family.name: {} for family in families}
    for each in told:
        for name in set(found) & set(each["families"]):
            restored(each["families"][name], found[name])
    there = [family for family in families if found[family.name]]
    return show(there, found, told[-1]["machine"], arguments)


def show(
    families: Sequence[Family],
    found: Mapping[str, Points],
    about: Mapping[str, str],
    arguments: argparse.Namespace,
) -> int:
    """Print, write, draw, judge; the exit status. A quick run is judged only by what depends on no speed."""
    told = {"machine": dict(about), "families": {each.name: document(each, found[each.name]) for each in families}}
    if arguments.json:
        arguments.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if arguments.plots:
        from tests.bench.plots import draw

        draw(told, arguments.plots)
    missed = 0
    for family in families:
        print(f"\n{table(family, found[family.name])}")
        for verdict in verdicts(family, found[family.name]):
            judged = verdict.limit.exact or not arguments.quick
            missed += judged and not verdict.met
            print(f"{'holds ' if verdict.met else 'MISSED' if judged else 'not judged'} {verdict.text}")
    return 1 if arguments.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a request, an event and a megabyte cost in instructions: ``python -m tests.bench.instructions [--check | --update] [--keep DIR]``.

Exit status: 0 all is well, 1 a figure is more than 10 % above the kept one, 2 wrong arguments, 3 nothing can be counted or judged here.
"""

import argparse
import importlib.metadata
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.bench.instructions.counting import Counting, NotHere, valgrind
from tests.bench.instructions.kept import FILE, Count, Kept, frozen, optional, verdicts
from tests.bench.instructions.works import WORKS
from tests.bench.load import LoadError
from tests.bench.servers import StartError

ABOVE, NOT_HERE = 1, 3


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.bench.instructions", description=__doc__)
    either = found.add_mutually_exclusive_group()
    either.add_argument(
        "--check", action="store_true", help="exit status 1 when a figure is too far above the kept one"
    )
    either.add_argument("--update", action="store_true", help="keep what was counted")
    found.add_argument("--keep", type=Path, metavar="DIR", help="leave callgrind's files there, for callgrind_annotate")
    found.add_argument("--file", type=Path, default=FILE, metavar="FILE", help="the kept figures (beside this module)")
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def here(counts: Mapping[str, Count]) -> Kept:
    """What was counted, as it would be kept."""
    said = subprocess.run([valgrind(), "--version"], capture_output=True, text=True, check=False).stdout.strip()
    versions = {"python": platform.python_version(), "valgrind": said.removeprefix("valgrind-")}
    return Kept(
        counts, frozen(), optional(), versions | {name: _version(name) for name in ("aiohttp", "uvloop", "isal")}
    )


def read(path: Path) -> Kept:
    """The kept figures; NotHere when what is counted here cannot be judged by them."""
    try:
        kept = Kept.of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotHere(f"no figures are kept in {path}: {error}") from None
    if why := kept.unlike(here({})):
        raise NotHere(why)
    return kept


def conclude(arguments: argparse.Namespace, counts: Mapping[str, Count], kept: Kept | None) -> int:
    """Print, keep, judge; the exit status."""
    found = list(verdicts({work.name: (work.title, work.unit) for work in WORKS}, counts, kept))
    for each in found:
        print(each.line)
    if arguments.update:
        arguments.file.write_text(here(counts).text(), encoding="utf-8")
        print(f"kept in {arguments.file}")
        return 0
    for each in found:
        if each.advice:
            print(each.advice)
    return ABOVE if arguments.check and any(each.fails for each in found) else 0


def main() -> int:
    arguments = parser().parse_args()
    began = time.monotonic()
    try:
        valgrind()
        kept = read(arguments.file) if arguments.check else None
        if arguments.keep is not None:
            arguments.keep.mkdir(parents=True, exist_ok=True)
        # On a disk, where /tmp may be memory: the gateway records.
        with tempfile.TemporaryDirectory(prefix="bench-instructions-", dir=Path.cwd()) as directory:
            counting = Counting(Path(directory), lambda text: print(text, file=sys.stderr, flush=True), arguments.keep)
            counts = counting.run(WORKS)
    except NotHere as error:
        print(f"nothing can be judged: {error}")
        return NOT_HERE
    except (StartError, LoadError) as error:
        raise SystemExit(f"nothing was counted: {error}") from None
    print(f"counted in {time.monotonic() - began:.0f} s")
    return conclude(arguments, counts, kept)


if __name__ == "__main__":
    sys.exit(main())

"""The one command: ``python -m tests.bench.dewey [--quick] [--only NAME] [--json FILE] [--check] [--keep DIR]``."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.__main__ import machine
from tests.bench.dewey import memory, million, storage
from tests.bench.dewey.figures import FULL, QUICK, Figure, Sizes, document, misses, table

Part = Callable[[Path, Sizes, Callable[[str], None]], list[Figure]]

PARTS: dict[str, Part] = {
    "session": storage.session,
    "ingest": storage.ingest,
    "memory": memory.memory,
    "million": million.million,
}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.bench.dewey", description=__doc__)
    found.add_argument(
        "--quick", action="store_true", help="little of everything: says that it works, not how fast or how small"
    )
    found.add_argument("--only", action="append", choices=PARTS, metavar="NAME", help=f"of {', '.join(PARTS)}")
    found.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    found.add_argument(
        "--check", action="store_true", help="exit status 1 when a bound is missed; of a quick run only the exact ones"
    )
    found.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="make the large store in DIR and leave it there; use the one that is there",
    )
    return found


def main(argv: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    """The exit status. ``sizes``: other ones than those of ``--quick`` or of a full run."""
    arguments = parser().parse_args(argv)
    sizes = sizes or (QUICK if arguments.quick else FULL)
    about = {name: value for name, value in machine().items() if name in ("time", "processor", "kernel", "python")}
    print("\n".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="bench-dewey-") as directory:
        for name in arguments.only or PARTS:
            kept = arguments.keep if name == "million" and arguments.keep else Path(directory) / name
            kept.mkdir(parents=True, exist_ok=True)
            began = time.monotonic()
            figures += PARTS[name](kept, sizes, _say)
            _say(f"{name}: {time.monotonic() - began:.0f} s")
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(document(figures, about, sizes), indent=1) + "\n", encoding="utf-8")
    missed = misses(figures, quick=arguments.quick) if arguments.check else []
    for line in missed:
        print(f"MISSED {line}")
    return 1 if missed else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

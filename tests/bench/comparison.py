"""A bench that compares servers in one run: its command line, and how it ends."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.dewey.figures import NONE_AT_ALL, Figure, table


def arguments_of(module: str, about: str | None, rounds: int) -> argparse.Namespace:
    """The command line of a bench that compares servers; ``rounds``: how many there are unless it says so."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument("--quick", action="store_true", help="one short round: says that it works, not how fast")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"rounds, interleaved ({rounds}; 1 when quick)")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a bound is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    return parser.parse_args()


def conclude(figures: Sequence[Figure], about: Mapping[str, str], arguments: argparse.Namespace) -> int:
    """Print, write, judge; the exit status. A quick run judges only what may not be at all."""
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    print(table(figures))
    if arguments.json:
        told = {
            each.name: {"unit": each.unit, "measured": each.value, "wanted": str(each.bound or "")} for each in figures
        }
        arguments.json.write_text(json.dumps({"machine": about, "figures": told}, indent=1) + "\n", encoding="utf-8")
    missed = [each for each in figures if each.bound is not None and not each.bound.met(each.value)]
    judged = [each for each in missed if each.bound is NONE_AT_ALL or not arguments.quick] if arguments.check else []
    for each in judged:
        print(f"MISSED {each.name}: {each.value:.3g} {each.unit}, wanted {each.bound}")
    return 1 if judged else 0

"""``kgb slot compare``: copies that a shadow got, beside what the callers got."""

import argparse
import json
import sqlite3
import sys
import time

import attrs

from fiedler_proxy.serving import say
from kgb_gateway.commands.control.common import line, table
from kgb_gateway.commands.dewey.common import moment, opened
from kgb_gateway.dewey.librarian import Busy
from kgb_gateway.dewey.shadows import Pair, Side, Summary, pairs, summary
from kgb_gateway.dewey.store.database import StoreError
from kgb_gateway.dewey.transcripts.view import view

EXIT = "exit status: 0 compared, 1 there is nothing to compare, or the store cannot be read, 2 a wrong command line"


def add_parser(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``compare``."""
    about = "compare what a shadow answered with what the callers got"
    parser = actions.add_parser("compare", help=about, description=about.capitalize(), epilog=EXIT)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--data-dir", metavar="DIR", help="the gateway's data directory")
    where.add_argument("--config", metavar="FILE", help="the gateway's configuration, which names it")
    parser.add_argument("--slot", default="", help="only copies of this slot")
    parser.add_argument("--since", default="7d", metavar="WHEN", help="7d, 12h, ... ago, or an ISO date (%(default)s)")
    parser.add_argument(
        "--limit", type=int, default=100, metavar="N", help="most copies, the newest first (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """0, or 1 when nothing was copied."""
    try:
        since = moment(args.since, time.time())
    except ValueError as error:
        args.parser.error(str(error))
    try:
        with opened(args) as store:
            found = list(pairs(store, view, since, args.slot, args.limit))
    except (StoreError, Busy, sqlite3.Error) as error:
        say(f"kgb slot compare: {error}")
        return 1
    told = summary(found)
    if args.json:
        json.dump(
            {"summary": attrs.asdict(told), "pairs": [attrs.asdict(pair) for pair in found]}, sys.stdout, indent=1
        )
        line()
    elif found:
        _show(found, told)
    if not found:
        say("kgb slot compare: no copies are on record: [shadow] says which slot gets them, and dewey_tap must record")
    return 0 if found else 1


def _show(found: list[Pair], told: Summary) -> None:
    rows = [("COPY", "SLOT", "STATUS", "STOP REASON", "TOKENS OUT", "FIRST BYTE", "DURATION", "LIKENESS")]
    for pair in found:
        one, other = pair.original, pair.copy
        rows.append(
            (other.exchange, other.slot, _both(one.status, other.status), _both(one.stop_reason, other.stop_reason),
             _both(one.tokens[1], other.tokens[1]), _times(one, other, "first_byte"), _times(one, other, "duration"),
             "-" if pair.likeness is None else f"{pair.likeness:.2f}")
        )  # fmt: skip
    table(rows)
    line()
    line(f"{told.pairs} copies: same status {told.same_status:.0%}, same stop reason {told.same_stop_reason:.0%}")
    ratios = (
        ("first byte", told.first_byte_ratio),
        ("duration", told.duration_ratio),
        ("tokens out", told.output_ratio),
    )
    line("copy to original, medians: " + ", ".join(f"{name} {_ratio(value)}" for name, value in ratios))
    line(f"likeness of what they say, median: {_ratio(told.likeness)}")


def _both(one: object, other: object) -> str:
    return str(one or "-") if one == other else f"{one or '-'} -> {other or '-'}"


def _times(one: Side, other: Side, name: str) -> str:
    mine, theirs = (getattr(side, name) for side in (one, other))
    return " -> ".join("-" if value is None else f"{value:.2f} s" for value in (mine, theirs))


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

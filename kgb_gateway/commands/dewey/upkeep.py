"""``kgb dewey verify``, ``prune``, ``pin``, ``forget`` and ``rebuild``: what keeps the record sound, small and lawful."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import attrs

from kgb_gateway.commands.dewey.common import (
    add_command,
    carry_out,
    home_of,
    moment,
    opened,
    prices_of,
    retention_of,
    session_of,
)
from kgb_gateway.dewey.aside import set_aside
from kgb_gateway.dewey.librarian import Librarian, Retention, lock
from kgb_gateway.dewey.notes import write_forget, write_pin
from kgb_gateway.dewey.reading import Reading
from kgb_gateway.dewey.rebuild import rebuild
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.reader import StoreReader
from kgb_gateway.dewey.store.stats import on_disk
from kgb_gateway.dewey.verify import verify

LET_GO_SECONDS = 1.0
"""How long a librarian that steps aside takes to let go of its place."""

SHOWN = 20
"""Faults that are printed; ``--json`` has them all."""


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the five."""
    add_command(commands, "verify", "derive every hash and body again, and compare", _verify)
    parser = add_command(commands, "prune", "let go of what is old, or too much", _prune)
    parser.add_argument("--older-than", metavar="WHEN", help="sessions whose last turn is older: 90d, or a date")
    parser.add_argument(
        "--max-bytes", type=_size, metavar="N", help="the oldest sessions until so much is left: 5G, 500M"
    )
    parser.add_argument("--raw", action="store_true", help="only the raw bytes; what was said stays")
    parser.add_argument("--dry-run", action="store_true", help="say what would go")
    parser = add_command(commands, "pin", "keep a session from every prune", _pin)
    parser.add_argument("id", metavar="ID", help="of the session, or of anything in it")
    parser.add_argument("--off", action="store_true", help="no longer")
    parser = add_command(commands, "forget", "erase a session, or all of a caller, for good", _forget)
    parser.add_argument("id", nargs="?", default="", metavar="ID", help="of the session, or of anything in it")
    parser.add_argument("--caller", default="", metavar="NAME", help="everything that this caller ever sent")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_command(commands, "rebuild", "make the store anew out of the segments", _rebuild)


def _verify(args: argparse.Namespace) -> int:
    home = home_of(args)
    with opened(args) as store:
        report = verify(Layout(home), store, Reading(prices_of(home)), progress_on(sys.stderr.isatty(), "looked at"))
        problems = [dict(row) for row in store.connection.execute("SELECT * FROM problem ORDER BY id")]
    if args.json:
        told = [{**row, "exchange": row["exchange"].hex() if row["exchange"] else None} for row in problems]
        print(json.dumps({**attrs.asdict(report), "set_aside": told}, indent=2))
        return 0 if report.sound else 1
    print(
        f"{report.exchanges} exchanges in the store, {report.raw} of them in segments that are kept, {report.open} open"
    )
    print(f"{report.messages} messages and {report.nodes} places in conversations have the hashes they are found by")
    if report.transformed:
        print(f"{report.transformed} exchanges were changed by a link on their way to the caller, and are marked so")
    for row in problems[:SHOWN]:
        print(f"set aside: {row['segment']} at {row['place']}: {row['why']}")
    for fault in report.faults[:SHOWN]:
        print(f"WRONG: {fault}")
    hidden = max(0, len(problems) - SHOWN) + max(0, len(report.faults) - SHOWN)
    if hidden:
        print(f"and {hidden} more: --json")
    print("sound" if report.sound else f"{len(report.faults)} faults; `kgb dewey rebuild` makes the store anew")
    return 0 if report.sound else 1


def progress_on(shown: bool, what: str) -> Callable[[int], None]:
    """Tells on standard error, in place, how far something is."""

    def tell(done: int) -> None:
        if shown:
            print(f"\r{done} {what}", end="", file=sys.stderr, flush=True)

    return tell


def _prune(args: argparse.Namespace) -> int:
    if args.older_than is None and args.max_bytes is None:
        raise ValueError("say what may go: --older-than 90d, --max-bytes 5G, or both")
    home, retention = home_of(args), retention_of(args)
    if args.raw:
        return _prune_raw(args)
    before = moment(args.older_than, time.time()) if args.older_than is not None else None
    with opened(args) as store:
        keys = _too_old(store, before) if before is not None else []
        if args.max_bytes is not None:
            keys += [key for key in _too_much(store, args.max_bytes) if key not in keys]
        uuids = [uuid for key in keys for uuid in store.uuids(session=key)]
        if before is not None:
            loose = store.connection.execute("SELECT uuid FROM exchange WHERE session IS NULL AND at < ?", (before,))
            uuids += [row[0] for row in loose]
    if uuids and not args.dry_run:
        note = write_forget(Layout(home).spool, version("kgb-gateway"), uuids)
        carry_out(home, note, retention)
    told = {"sessions": keys, "exchanges": len(uuids), "done": bool(uuids) and not args.dry_run}
    word = "would go" if args.dry_run else "are gone"
    print(json.dumps(told) if args.json else f"{len(keys)} sessions, {len(uuids)} exchanges {word}")
    return 0


def _prune_raw(args: argparse.Namespace) -> int:
    """The librarian's own tidying, with bounds of this moment."""
    home = home_of(args)
    days = 0.0
    if args.older_than is not None:
        days = max(1e-9, (time.time() - moment(args.older_than, time.time())) / 86400)
    bounds = Retention(days, args.max_bytes or 0)
    with set_aside(home), lock(home, LET_GO_SECONDS):
        librarian = Librarian(home, prices_of(home), retention_of(args))
        try:
            librarian.finish()
            gone = librarian.tidy(bounds, dry_run=args.dry_run)
        finally:
            librarian.close()
    names = [str(name) for name in gone]
    word = "would go" if args.dry_run else "are gone"
    print(json.dumps({"segments": names}) if args.json else f"{len(names)} packed segments {word}")
    return 0


def _too_old(store: StoreReader, before: float) -> list[str]:
    rows = store.connection.execute(
        "SELECT key FROM session WHERE last_at < ? AND NOT pinned ORDER BY last_at", (before,)
    )
    return [row[0] for row in rows]


def _too_much(store: StoreReader, most: int) -> list[str]:
    """The oldest sessions that must go until about ``most`` bytes are left: each weighs what it carried."""
    rows = store.connection.execute(
        "SELECT session.key, session.pinned, total(request_size + response_size) AS carried FROM exchange "
        "JOIN session ON session.id = exchange.session GROUP BY session.id ORDER BY session.last_at"
    ).fetchall()
    size, carried = on_disk(store.connection, store.layout), sum(row["carried"] for row in rows)
    gone = []
    for row in rows:
        if size <= most:
            break
        if not row["pinned"]:
            gone.append(row["key"])
            size -= round(size * row["carried"] / carried) if carried else 0
            carried -= row["carried"]
    return gone


def _pin(args: argparse.Namespace) -> int:
    home = home_of(args)
    with opened(args) as store:
        key = session_of(store, args.id)
    carry_out(home, write_pin(Layout(home).spool, version("kgb-gateway"), key, pinned=not args.off), retention_of(args))
    told = {"session": key, "pinned": not args.off}
    print(
        json.dumps(told) if args.json else f"session {key} is {'no longer ' if args.off else ''}kept from every prune"
    )
    return 0


def _forget(args: argparse.Namespace) -> int:
    if bool(args.id) == bool(args.caller):
        raise ValueError("say either the id of a session or --caller NAME")
    home = home_of(args)
    with opened(args) as store:
        key = session_of(store, args.id) if args.id else ""
        uuids = store.uuids(session=key, caller=args.caller)
    what = f"session {key}" if key else f"everything of caller {args.caller!r}"
    if not uuids:
        raise ValueError(f"there is nothing on record of {what}")
    if not args.yes and not _agreed(f"Erase {what}, {len(uuids)} exchanges, for good?"):
        print("nothing was erased", file=sys.stderr)
        return 1
    carry_out(home, write_forget(Layout(home).spool, version("kgb-gateway"), uuids), retention_of(args))
    print(json.dumps({"exchanges": len(uuids)}) if args.json else f"{what}: {len(uuids)} exchanges are erased")
    return 0


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ValueError("nobody is there to be asked: say --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _rebuild(args: argparse.Namespace) -> int:
    home = home_of(args)
    layout = Layout(home)
    with set_aside(home), lock(home, LET_GO_SECONDS):
        done = rebuild(layout, Reading(prices_of(home)), progress_on(sys.stderr.isatty(), "exchanges read"))
    if args.json:
        print(json.dumps(attrs.asdict(done)))
    else:
        print(f"{done.read} exchanges are read from segments, {done.carried} carried over whose segments have expired")
    return 0


def _size(text: str) -> int:
    """Bytes of ``5G``, ``500M``, ``20k``."""
    units = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    try:
        return int(float(number) * unit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for example 5G or 500M") from None

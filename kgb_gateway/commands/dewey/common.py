"""What the commands of ``kgb dewey`` share: where the data is, how the store is opened, how times and amounts are written.

Owns the rule that a command sees everything that was recorded: where no librarian is at work, it does the librarian's work first.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from fiedler_proxy.config import Faults
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.settings import read
from kgb_gateway.dewey.adoption import adopt
from kgb_gateway.dewey.librarian import Busy, Librarian, Retention, lock
from kgb_gateway.dewey.prices import Later, Prices, Pricing
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.database import StoreError, open_reader
from kgb_gateway.dewey.store.reader import Filter, StoreReader
from kgb_gateway.segments import Name
from kgb_gateway.settings import KGB, sink_in, tap_table

WAIT_SECONDS = 30.0
"""How long a command waits for the librarian at work to do what it was told."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    text: str,
    act: Callable[[argparse.Namespace], int],
    *,
    json: bool = True,
) -> argparse.ArgumentParser:
    """A subcommand with the options that all have."""
    parser = commands.add_parser(name, help=text, description=text)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--data-dir", type=Path, metavar="DIR", help="the gateway's data directory")
    where.add_argument("--config", type=Path, metavar="FILE", help="the gateway's configuration, which names it")
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(act=act)
    return parser


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Options that say which exchanges are meant."""
    add = parser.add_argument
    add("--since", metavar="WHEN", help="7d, 12h, ... ago, or an ISO date or time")
    add("--until", metavar="WHEN", help="the same; what came later is left out")
    for name in ("caller", "agent", "model", "project"):
        add(f"--{name}", default="", metavar="NAME", help=f"only this {name}; * and ? stand for any text and character")
    add("--outcome", default="", metavar="O", help="completed, caller_left, upstream_broke, ...")
    add("--session", default="", metavar="ID", help="only this session")
    add("--min-cost", type=float, metavar="USD", help="sessions that cost at least so much")


def filter_of(args: argparse.Namespace, store: StoreReader) -> Filter:
    """The filter that the options say. ValueError for a time that is none, or a session that is not there."""
    now = time.time()
    session = ""
    if args.session:
        session = session_of(store, args.session)
    return Filter(
        since=None if args.since is None else moment(args.since, now),
        until=None if args.until is None else moment(args.until, now),
        caller=args.caller,
        agent=args.agent,
        model=args.model,
        project=args.project,
        outcome=args.outcome,
        session=session,
        costs=None if args.min_cost is None else round(args.min_cost * 1e6),
    )


def session_of(store: StoreReader, text: str) -> str:
    """The key of the session that ``text`` (an id of a session, conversation or exchange) belongs to. ValueError for none."""
    found = store.find(text)
    if found is None:
        raise ValueError(f"nothing on record has the id {text!r}")
    key = store.session_key(*found)
    if key is None:
        raise ValueError(f"{text!r} belongs to no session")
    return key


def moment(text: str, now: float) -> float:
    """Seconds since the epoch of ``7d`` (ago), or of an ISO date or time (local unless it names its zone)."""
    if text[:-1].isdecimal() and text[-1:] in _UNITS:
        return now - int(text[:-1]) * _UNITS[text[-1]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise ValueError(f"{text!r} is no time; write for example 7d, 12h, 2026-11-23, 2026-11-23T14:00") from None


def home_of(args: argparse.Namespace) -> Path:
    """The data directory that is named, or the one that ``kgb serve`` uses with the same configuration and environment."""
    given = {"config": args.config, "data_dir": args.data_dir}
    flags = {key: str(value) for key, value in given.items() if value is not None}
    faults = Faults()
    draft = read(KGB, flags, os.environ, faults)
    if not draft.complete:
        raise SettingsError(faults.found)
    table = tap_table(draft.settings)
    named = table.get("data_dir")
    home = draft.settings.data_dir
    if isinstance(named, str) and named and args.data_dir is None:
        home = draft.settings.base_dir / Path(named).expanduser()
    return home.absolute()


def retention_of(args: argparse.Namespace) -> Retention:
    """How long raw segments are kept, from the same configuration."""
    flags = {} if args.config is None else {"config": str(args.config)}
    faults = Faults()
    draft = read(KGB, flags, os.environ, faults)
    table = tap_table(draft.settings) if draft.complete else {}
    days, size = table.get("raw_days"), table.get("raw_size")
    usual = Retention()
    return Retention(
        float(days) if isinstance(days, int | float) else usual.raw_days,
        size if isinstance(size, int) else usual.raw_size,
    )


def sink_of(args: argparse.Namespace) -> str:
    """The existing Dewey that the same configuration names, "" for none."""
    flags = {} if args.config is None else {"config": str(args.config)}
    faults = Faults()
    draft = read(KGB, flags, os.environ, faults)
    return sink_in(draft.settings) if draft.complete else ""


def prices_of(home: Path) -> Prices:
    """The shipped table of prices, and ``prices.json`` of the data directory over it. ValueError says what is wrong in that."""
    text = (resources.files("kgb_gateway.dewey") / "prices.json").read_text(encoding="utf-8")
    own = home / "prices.json"
    return Prices.parse(text, own.read_text(encoding="utf-8") if own.exists() else "")


def _prices_at_need(home: Path) -> Pricing:
    """The same, where there may be nothing to price. A table of one's own is read at once: what is wrong in it is to be told."""
    return prices_of(home) if (home / "prices.json").exists() else Later(lambda: prices_of(home))


@contextlib.contextmanager
def opened(args: argparse.Namespace) -> Iterator[StoreReader]:
    """The store, with everything in it that has been recorded by now."""
    home = home_of(args)
    catch_up(home, retention_of(args))
    with StoreReader(Layout(home)) as store:
        yield store


def catch_up(home: Path, retention: Retention) -> None:
    """Do the librarian's work where nobody does it. A store that cannot be written is read as it stands."""
    layout = Layout(home)
    if not layout.store.exists() and not layout.spool.exists():
        return
    try:
        with lock(home):
            adopt(home, layout.spool, version("kgb-gateway"))
            librarian = Librarian(home, _prices_at_need(home), retention)
            try:
                librarian.finish()
            finally:
                librarian.close()
    except Busy:
        return
    except OSError as error:
        print(f"kgb dewey: what is new is not taken in: {error}", file=sys.stderr)


def carry_out(home: Path, note: Name, retention: Retention) -> None:
    """Have what ``note`` says done: by the librarian at work, or here. StoreError when that one does not get to it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not _is_done(home, note):
        catch_up(home, retention)
        if _is_done(home, note):
            return
        if time.monotonic() > deadline:
            raise StoreError("the librarian at work has not got to it yet; it will, nothing more needs to be done")
        time.sleep(0.05)


def _is_done(home: Path, note: Name) -> bool:
    try:
        db = open_reader(Layout(home).store)
    except StoreError:
        return False
    with contextlib.closing(db):
        asked = "SELECT EXISTS (SELECT 1 FROM position WHERE instance = ?) AND NOT EXISTS (SELECT 1 FROM erasure WHERE NOT scrubbed)"
        return bool(db.execute(asked, (note.instance,)).fetchone()[0])


def when(at: float) -> str:
    """A moment, in local time."""
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def dollars(micro: int | None, *, estimated: bool = False) -> str:
    """An amount of millionths of a dollar; "" where none is known."""
    if micro is None:
        return ""
    return f"{'~' if estimated else ''}${micro / 1e6:,.4f}" if micro < 1_000_000 else f"${micro / 1e6:,.2f}"


def tokens(number: int | None) -> str:
    """A number of tokens, shortened: 950, 12.3k, 4.5M."""
    value = float(number or 0)
    for unit in ("", "k", "M"):
        if value < 1000:
            return f"{value:.0f}" if not unit else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f}G"

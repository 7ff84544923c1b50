"""Sessions on disk and taken in: how small everything is, whether all of it is still there, and how fast the librarian is."""

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import attrs

from kgb_gateway.dewey.librarian import Librarian, lock
from kgb_gateway.dewey.raw import bodies, every
from kgb_gateway.dewey.spool import SPOOL, Layout
from kgb_gateway.dewey.store.reader import StoreReader
from kgb_gateway.dewey.verify import verify
from kgb_gateway.journal import JournalOptions
from kgb_gateway.segments import segments_in
from tests.bench.dewey.figures import NONE_AT_ALL, Bound, Figure, Sizes
from tests.bench.dewey.sessions import Session, interleaved, record, unseen
from tests.bench.dewey.texts import Prose
from tests.bench.servers import ROOT
from tests.spools import Exchange, prices, reading

SEAL_SECONDS = 60.0
"""How long the librarian may take to pack what is finished; a segment must be quiet for two seconds first."""


def size_of(home: Path) -> int:
    """Bytes of everything in a data directory, as they are accounted or as they are long, whichever is more."""
    found = [path.stat() for path in home.rglob("*") if path.is_file()]
    return sum(max(status.st_size, status.st_blocks * 512) for status in found)


def put_away(home: Path) -> None:
    """Have the librarian take in everything, seal it and checkpoint. TimeoutError when segments stay in the spool."""
    with lock(home):
        librarian = Librarian(home, prices())
        try:
            deadline = time.monotonic() + SEAL_SECONDS
            librarian.finish()
            while segments_in(librarian.layout.spool):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"segments stay in the spool: {segments_in(librarian.layout.spool)}")
                time.sleep(0.1)
                librarian.finish()
        finally:
            librarian.close()


def faults_of(home: Path, exchanges: int) -> list[str]:
    """What ``kgb dewey verify`` finds wrong, and what it did not look at."""
    with StoreReader(Layout(home)) as store:
        report = verify(store.layout, store, reading(), lambda _: None)
    missing = {"in the store": report.exchanges, "in segments": report.raw}
    found = [
        f"{number} of {exchanges} exchanges are {where}" for where, number in missing.items() if number != exchanges
    ]
    if report.problems or report.open:
        found.append(f"{report.problems} set aside, {report.open} open")
    return report.faults + found


def differing(home: Path, sent: Iterable[Exchange]) -> int:
    """Bodies that the segments do not give back as they were sent and received."""
    wrong = 0
    for gathered, exchange in itertools.zip_longest(every(Layout(home)), sent):
        if gathered is None or exchange is None:
            wrong += 2
            continue
        kept = bodies(gathered)
        wrong += (kept.request != exchange.body) + (kept.response != b"".join(exchange.reply))
    return wrong


@attrs.frozen
class _Kept:
    """One session put away: bytes on disk, bytes of its last body, faults, bodies that differ."""

    size: int
    last: int
    total: int
    faults: list[str]
    differing: int


def _kept(home: Path, turns: int, options: JournalOptions | None = None) -> _Kept:
    def again() -> Iterator[Exchange]:
        return Session(1, Prose()).exchanges(turns)

    total = record(home, again(), options=options)
    put_away(home)
    last = max(len(exchange.body) for exchange in again())
    kept = _Kept(size_of(home), last, total, faults_of(home, turns), differing(home, again()))
    shutil.rmtree(home)
    return kept


def session(directory: Path, sizes: Sizes, say: Callable[[str], None]) -> list[Figure]:
    """An agent session: its bytes on disk, with everything kept."""
    turns, found = sizes.turns, dict[str, _Kept]()
    say(f"a session of {turns} turns, and one of {2 * turns}")
    found["once"] = _kept(directory / "once", turns)
    found["twice"] = _kept(directory / "twice", 2 * turns)
    quarter = JournalOptions(segment_size=found["once"].total // 4)
    found["quarters"] = _kept(directory / "quarters", turns, quarter)
    for name, kept in found.items():
        for fault in kept.faults:
            say(f"{name}: {fault}")
    once, twice, quarters = found.values()
    passed = f"{once.total / 1e6:,.0f} MB passed, the last body {once.last / 1e6:.2f} MB"
    return [
        Figure("session", f"a session of {turns} turns, on disk", "MB", once.size / 1e6, Bound(3), passed),
        Figure(
            "session_twice",
            f"{2 * turns} turns against {turns}, on disk",
            "times",
            twice.size / once.size,
            Bound(2.2),
            f"{twice.size / 1e6:.2f} MB of {twice.total / 1e6:,.0f} MB",
        ),
        Figure(
            "session_segments",
            f"{turns} turns over some five segments, on disk",
            "MB",
            quarters.size / 1e6,
            note="each segment is packed by itself",
        ),
        Figure(
            "session_faults",
            "faults that verify finds",
            "faults",
            sum(len(each.faults) for each in found.values()),
            NONE_AT_ALL,
        ),
        Figure(
            "session_bodies",
            "bodies not rebuilt byte for byte",
            "bodies",
            sum(each.differing for each in found.values()),
            NONE_AT_ALL,
        ),
    ]


def ingest(directory: Path, sizes: Sizes, say: Callable[[str], None]) -> list[Figure]:
    """The librarian's speed, of the bytes of bodies."""
    say(f"{sizes.unseen} bodies never seen")
    fresh = _rounds(directory / "unseen", unseen(sizes.unseen, sizes.turns // 2), sizes.rounds)
    say(f"{sizes.sessions} sessions of {sizes.turns} turns")
    grown = _rounds(directory / "appended", interleaved(sizes.sessions, sizes.turns), sizes.rounds)
    return [
        _speed("ingest_unseen", "bodies never seen, taken in", fresh, "ingest", Bound(15, most=False)),
        _speed("ingest_appended", "turns that append to known ones, taken in", grown, "ingest", Bound(100, most=False)),
        _speed("seal_unseen", "bodies never seen, packed", fresh, "seal"),
        _speed("seal_appended", "turns that append to known ones, packed", grown, "seal"),
    ]


@attrs.frozen
class _Round:
    """One spool taken in and sealed: seconds of either."""

    total: int
    ingest: float
    seal: float


def _speed(name: str, title: str, rounds: list[_Round], what: str, bound: Bound | None = None) -> Figure:
    """The median over the rounds."""
    speeds = [each.total / 1e6 / (each.ingest if what == "ingest" else each.seal) for each in rounds]
    note = f"{rounds[0].total / 1e6:,.0f} MB; {min(speeds):.0f} .. {max(speeds):.0f}"
    return Figure(name, title, "MB/s", statistics.median(speeds), bound, note)


def _rounds(home: Path, exchanges: Iterator[Exchange], rounds: int) -> list[_Round]:
    """Some rounds with the same spool, each into a store that is new, by a librarian in a process that is new."""
    total = record(home, exchanges)
    found = []
    for number in range(rounds):
        copy = home.with_name(f"{home.name}-{number}")
        shutil.copytree(home / SPOOL, copy / SPOOL, copy_function=os.link)  # they are on disk already
        argv = (sys.executable, "-m", "tests.bench.dewey.taking", str(copy), str(total))
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the librarian failed: {done.stderr[-2000:]}")
        found.append(_Round(total, **json.loads(done.stdout)))
        shutil.rmtree(copy)
    shutil.rmtree(home)
    return found

"""``kgb dewey list``, ``search`` and ``stats``: what there is, where words are, and what it came to."""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping

from kgb_gateway.commands.dewey.common import (
    add_command,
    add_filters,
    dollars,
    filter_of,
    opened,
    session_of,
    tokens,
    when,
)
from kgb_gateway.dewey.store.search import Hit, search
from kgb_gateway.dewey.store.stats import MEASURES, Stats, stats
from kgb_gateway.dewey.tables import Column, bars, table
from kgb_gateway.dewey.texts import visible
from kgb_gateway.dewey.transcripts.view import view

Row = Mapping[str, object]


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the three."""
    parser = add_command(commands, "list", "sessions and conversations, newest first", _list)
    add_filters(parser)
    parser.add_argument("--exchanges", action="store_true", help="single exchanges instead of sessions")
    parser.add_argument("-n", "--limit", type=int, default=30, metavar="N", help="at most so many; default: 30")
    parser = add_command(commands, "search", "messages that hold words", _search)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="WORD",
        help='all must be there; "a phrase", prefix*, -without; identifiers as they are',
    )
    parser.add_argument("--session", default="", metavar="ID", help="only in this session")
    parser.add_argument("-n", "--limit", type=int, default=20, metavar="N", help="at most so many; default: 20")
    parser = add_command(commands, "stats", "tokens, cost, latency, storage", _stats)
    add_filters(parser)
    parser.add_argument("--by", choices=MEASURES, default="day", help="what a line is for; default: day")
    parser.add_argument("--plot", choices=("cost", "tokens", "exchanges", "latency"), help="draw this as bars")


def signs() -> bool:
    """Whether standard output can show more than ASCII."""
    return (sys.stdout.encoding or "").lower().startswith("utf")


def _list(args: argparse.Namespace) -> int:
    with opened(args) as store:
        wanted = filter_of(args, store)
        if args.exchanges:
            rows = [_exchange(row) for row in store.exchanges(wanted, args.limit)]
            columns: tuple[str, ...] = (
                "id",
                "at",
                "caller",
                "model",
                "status",
                "outcome",
                "relation",
                "in",
                "out",
                "cost",
                "target",
            )
        else:
            rows = [_session(row) for row in store.sessions(wanted, args.limit)]
            columns = ("id", "last", "agent", "caller", "model", "turns", "in", "out", "cost", "what")
        if args.json:
            print(json.dumps([{k: v for k, v in row.items() if k not in _SHORT} for row in rows], indent=2))
            return 0
    if not rows:
        print("nothing on record", file=sys.stderr)
        return 0
    _print_table(rows, columns)
    return 0


_NUMBERS = ("turns", "in", "out", "cost", "status", "exchanges", "cached", "first byte", "p95", "failed")
_GROWING = ("what", "target", "model")
_SHORT = ("last", "model", "in", "out", "what", "id_short")


def _session(row: Row) -> dict[str, object]:
    """A session as the table shows it, and as JSON tells it."""
    estimated = bool(row["estimated"])
    cost = row["cost"]
    key = str(row["key"])
    return {
        **row,
        "id": key,
        "id_short": key if len(key) <= 24 else key[:13],
        "last": when(float(str(row["last_at"]))),
        "model": _models(str(row["models"] or "")),
        "in": tokens(_whole(row["tokens_in"])),
        "out": tokens(_whole(row["tokens_out"])),
        "cost_usd": None if cost is None else _whole(cost) / 1e6,
        "cost": dollars(_whole(cost) if cost is not None else None, estimated=estimated),
        "what": " ".join(filter(None, (str(row["project"]).rpartition("/")[2], str(row["title"])))),
    }


def _exchange(row: Row) -> dict[str, object]:
    cost = row["cost"]
    told = (
        *("name", "caller", "model", "status", "outcome", "relation", "target", "route", "slot", "upstream", "method"),
        *(
            "duration",
            "first_byte",
            "stop_reason",
            "surface",
            "dialect",
            "agent",
            "project",
            "unreadable",
            "error_code",
        ),
        *("request_size", "response_size", "tokens_in", "tokens_out", "instance", "segment"),
    )
    return {
        **{name: row[name] for name in told},
        "session": row["session_key"],
        "partial": bool(row["partial"]),
        "estimated": bool(row["estimated"]),
        "id": row["name"],
        "id_short": str(row["name"])[:18],
        "last": when(float(str(row["at"]))),
        "at": row["at"],
        "in": tokens(_whole(row["tokens_in"])),
        "out": tokens(_whole(row["tokens_out"])),
        "cost_usd": None if cost is None else _whole(cost) / 1e6,
        "cost": dollars(_whole(cost) if cost is not None else None, estimated=bool(row["estimated"])),
    }


def _print_table(rows: list[dict[str, object]], columns: tuple[str, ...]) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    shown = {"id": "id_short", "at": "last"}
    cells = [[str(row[shown.get(name, name)]) for name in columns] for row in rows]
    _lines(cells, columns, width)


def _lines(cells: list[list[str]], columns: tuple[str, ...], width: int) -> None:
    titles = [Column(name, right=name in _NUMBERS, grows=name in _GROWING) for name in columns]
    for line in table(cells, titles, width, unicode=signs()):
        print(line)


def _models(models: str) -> str:
    names = [name for name in models.split(",") if name]
    return names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "") if names else ""


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _search(args: argparse.Namespace) -> int:
    # The shell has taken the quotes of a phrase away: an argument of several words was one.
    query = " ".join(f'"{word}"' if " " in word and '"' not in word else word for word in args.words)
    with opened(args) as store:
        session = store.session_row(session_of(store, args.session)) if args.session else None
        hits = search(store.connection, query, view, args.limit, session=session)
        names = store.named([hit.exchange for hit in hits])
        found = [(hit, names[hit.exchange]) for hit in hits]
    if args.json:
        told = [
            {
                "exchange": turn["uuid"],
                "session": turn["session"],
                "conversation": turn["conversation"],
                "at": turn["at"],
                "role": hit.role,
                "kind": hit.kind,
                "snippet": hit.snippet,
                "marks": hit.marks,
            }
            for hit, turn in found
        ]
        print(json.dumps(told, indent=2))
        return 0 if found else 1
    colour = sys.stdout.isatty()
    for hit, turn in found:
        name = turn["conversation"] or str(turn["uuid"])[:12]
        print(f"{name}  {when(float(str(turn['at'])))}  {turn['model']}  {hit.role}")
        print(f"    {_marked(hit, colour=colour)}")
    if not found:
        print("no message holds that", file=sys.stderr)
    return 0 if found else 1


def _marked(hit: Hit, *, colour: bool) -> str:
    if not colour:
        return visible(hit.snippet)
    text, at = "", 0
    for start, end in hit.marks:
        text += visible(hit.snippet[at:start]) + "\x1b[1;33m" + visible(hit.snippet[start:end]) + "\x1b[0m"
        at = end
    return text + visible(hit.snippet[at:])


def _stats(args: argparse.Namespace) -> int:
    with opened(args) as store:
        found = stats(store.connection, filter_of(args, store), args.by, store.layout)
    if args.json:
        print(json.dumps(found.as_json(), indent=2))
        return 0
    rows = found.rows
    columns = (args.by, "exchanges", "in", "cached", "out", "cost", "first byte", "p95", "failed")
    cells = [
        [
            str(row["name"]),
            str(row["exchanges"]),
            tokens(_whole(row["tokens_in"])),
            f"{100 * _whole(row['cached']) // max(1, _whole(row['tokens_in']))} %",
            tokens(_whole(row["tokens_out"])),
            dollars(_whole(row["cost"]), estimated=bool(row["estimated"])),
            _seconds(row["first_byte"]),
            _seconds(row["p95"]),
            str(row["failed"]),
        ]
        for row in rows
    ]
    width = shutil.get_terminal_size().columns
    _lines(cells, columns, width)
    if args.plot:
        _plot(args.plot, rows, width)
    _print_storage(found)
    return 0


def _plot(what: str, rows: list[dict[str, object]], width: int) -> None:
    key = {"cost": "cost", "tokens": "tokens_out", "exchanges": "exchanges", "latency": "first_byte"}[what]
    scale = 1e-6 if what == "cost" else 1.0
    values = [float(str(row[key] or 0)) * scale for row in rows]
    print()
    for line in bars([str(row["name"]) for row in rows], values, width, unicode=signs()):
        print(line)


def _print_storage(found: Stats) -> None:
    s = found.storage
    print()
    print(f"bodies that passed   {s['bodies']:>15,} bytes")
    print(f"said, once each      {s['blocks']:>15,} bytes ({s['ratio']} times less)")
    print(f"store                {s['store']:>15,} bytes on disk")
    print(f"raw, packed          {s['archive']:>15,} bytes on disk")
    print(f"raw, as written      {s['spool']:>15,} bytes on disk")
    print(f"not yet taken in     {s['lag']:>15,} bytes")
    print(f"set aside            {s['problems']:>15,} problems (kgb dewey verify)")


def _seconds(value: object) -> str:
    return f"{value:.2f} s" if isinstance(value, float) else ""

"""``kgb status``: what the running gateways are doing."""

import argparse
from typing import Any

from fiedler_proxy.serving import say
from kgb_gateway.commands.control.common import EXIT, NOBODY, add_place, line, table, told
from kgb_gateway.commands.control.words import percent
from kgb_gateway.dewey.texts import size


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``status``."""
    parser = subparsers.add_parser(
        "status",
        help="show what the running gateways are doing",
        description="Shows live exchanges, slots, upstreams with their breakers, and the record, of every instance.",
        epilog=EXIT,
    )
    add_place(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0, or 3 when none is running."""
    heard, code = told(args, "GET", "/status")
    if args.json:
        return code
    for place, each in enumerate(heard):
        if place:
            line()
        _show(dict(each.answer))
    return code


def _show(said: dict[str, Any]) -> None:
    draining = ", draining" if said["draining"] else ""
    line(f"{said['program']} {said['instance']}, process {said['pid']}{draining}: {said['upstream']}")
    slots = said.get("slots")
    if slots:
        canary = f", canary {slots['canary']} {percent(slots['share'])}" if slots["canary"] else ""
        line(f"slot {slots['active']}{canary}")
    for name, measure in (said.get("guard") or {}).items():
        line(f"canary so far: {measure['bad']} of {measure['seen']} {name}")
    journal = said.get("journal")
    if journal:
        behind = f"{size(journal['waiting'])} wait for the disk, {size(journal['spool'])} in the spool"
        lost = f", {journal['lost']} exchanges lost" if journal["lost"] else ""
        line(f"record: {journal['failing'] or 'sound'}, {behind}, {journal['gaps']} gaps{lost}")
    shadow = said.get("shadow")
    if shadow:
        line(
            f"shadow {shadow['slot']}: {shadow['sent']} copies sent, {shadow['dropped']} not made, {shadow['failed']} failed; "
            f"left this hour: {shadow['requests_left']} requests, {shadow['tokens_left']} tokens"
        )
    if said.get("upstreams"):
        line()
        _upstreams(said["upstreams"])
    if said["connections"]:
        line()
        table([("CONNECTIONS TO", "OPEN", "IDLE", "WAITING", "REFUSED"), *map(_pool, said["connections"])])
    line()
    if said["exchanges"]:
        _exchanges(said["exchanges"])
    else:
        line("no live exchanges")


def _upstreams(upstreams: list[dict[str, Any]]) -> None:
    rows = [("UPSTREAM", "BREAKER", "RUNNING", "ANSWERED", "FAILED", "FIRST BYTE", "KEYS AT REST")]
    for each in upstreams:
        resting = [f"{key['source']} {key['rests']:.0f} s" for key in each.get("keys", ()) if key["rests"]]
        counts = (str(each["running"]), str(each["answered"]), str(each["failed"]))
        rows.append((each["name"], each["breaker"], *counts, f"{each['first_byte']:.2f} s", ", ".join(resting) or "-"))
    table(rows)


def _pool(pool: dict[str, Any]) -> tuple[str, ...]:
    return (pool["url"], *(str(pool[name]) for name in ("open", "idle", "waiting", "refused")))


def _exchanges(exchanges: list[dict[str, Any]]) -> None:
    rows = [("EXCHANGE", "AGE", "SENT", "RECEIVED", "CALLER", "SLOT", "ROUTE", "UPSTREAM", "REQUEST")]
    rows += [
        (each["id"], f"{each['age']:.1f} s", size(each["sent"]), size(each["received"]), each["caller"] or "-",
         each["slot"] or "-", each["route"] or "-", each["upstream"] or "-", f"{each['method']} {each['path']}")
        for each in exchanges
    ]  # fmt: skip
    table(rows)


def add_exchanges_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``exchanges``."""
    parser = subparsers.add_parser(
        "exchanges",
        help="end a live exchange",
        description="Acts on a live exchange of a running gateway.",
        epilog=EXIT,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    kill = actions.add_parser("kill", help="cut one: its caller's connection is closed, never completed", epilog=EXIT)
    kill.add_argument("id", metavar="ID", help="the id, or its beginning, as `kgb status` shows it")
    add_place(kill)
    kill.set_defaults(run=run_kill)


def run_kill(args: argparse.Namespace) -> int:
    """0 when one instance had it."""
    heard, code = told(args, "POST", "/kill", {"id": args.id}, refusals=False)
    for each in heard:
        if not args.json:
            line(f"{each.instance.name}: {each.answer['killed']} was cut")
    if heard or code == NOBODY:
        return 0 if heard else code
    say(f"kgb exchanges: no live exchange has an id that begins with {args.id!r}")
    return 1


def add_drain_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``drain``."""
    parser = subparsers.add_parser(
        "drain",
        help="let a gateway finish what runs, and end",
        description="Tells gateways to take no new work, to let open streams finish, and to end.",
        epilog=EXIT,
    )
    add_place(parser)
    parser.set_defaults(run=run_drain)


def run_drain(args: argparse.Namespace) -> int:
    """0 when all were told."""
    heard, code = told(args, "POST", "/drain", {})
    for each in heard:
        if not args.json:
            line(f"{each.instance.name}: draining, {each.answer['exchanges']} open exchanges")
    return code

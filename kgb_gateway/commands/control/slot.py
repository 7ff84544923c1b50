"""``kgb slot``: which slot is active, changed under running agents."""

import argparse
import datetime as dt
import getpass
import uuid
from typing import Any

from kgb_gateway.commands.control import compare
from kgb_gateway.commands.control.common import EXIT, add_place, line, table, told
from kgb_gateway.commands.control.words import percent, share_of


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``slot``."""
    parser = subparsers.add_parser(
        "slot",
        help="show and change the slot that serves",
        description="A slot is a complete table of routes. New exchanges go to the active one; running ones stay where they are.",
        epilog=EXIT,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _action(actions, "show", "the active slot, the canary, and all there are", run_show)
    use = _action(actions, "use", "make a slot the active one", run_use)
    use.add_argument("slot", metavar="SLOT")
    canary = _action(actions, "canary", "give a share of the sessions to a slot", run_canary)
    canary.add_argument("slot", metavar="SLOT")
    canary.add_argument("share", type=_share, metavar="SHARE", help="like 5%%")
    for each in (use, canary):
        each.add_argument("--force", action="store_true", help="also where it fails its preflight")
    back = _action(actions, "rollback", "end the canary, or go back to the slot before", run_rollback)
    back.add_argument("--why", default="", metavar="TEXT", help="for the history")
    _action(actions, "history", "who changed what, when and why", run_history)
    probe = _action(actions, "preflight", "ask a slot what is configured to be asked, and compare", run_preflight)
    probe.add_argument("slot", metavar="SLOT")
    compare.add_parser(actions)


def _action(actions: Any, name: str, about: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=about, description=about.capitalize(), epilog=EXIT)
    add_place(parser)
    parser.add_argument("--fiedler", action="store_true", help="of Fiedlers that run as servers of their own")
    parser.set_defaults(run=run)
    return parser


def _share(text: str) -> float:
    try:
        return share_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _choose(args: argparse.Namespace, said: dict[str, object]) -> int:
    """One change for all instances: its id tells them that it is one."""
    said = {**said, "by": getpass.getuser(), "id": uuid.uuid4().hex}
    heard, code = told(args, "POST", "/slots", said, slots=True)
    if not args.json:
        for each in heard:
            line(f"{each.instance.name}: {_slots(dict(each.answer))}")
    return code


def run_use(args: argparse.Namespace) -> int:
    """0 when every instance has taken it."""
    return _choose(args, {"action": "use", "slot": args.slot, "force": args.force})


def run_canary(args: argparse.Namespace) -> int:
    """0 when every instance has taken it."""
    return _choose(args, {"action": "canary", "slot": args.slot, "share": args.share, "force": args.force})


def run_rollback(args: argparse.Namespace) -> int:
    """0 when every instance has gone back."""
    return _choose(args, {"action": "rollback", "why": args.why})


def run_show(args: argparse.Namespace) -> int:
    """0, or 3 when none is running."""
    heard, code = told(args, "GET", "/slots", slots=True)
    if not args.json:
        for each in heard:
            said: dict[str, Any] = dict(each.answer)
            line(f"{each.instance.name}: {_slots(said)}; there are {', '.join(said['known'])}")
    return code


def run_history(args: argparse.Namespace) -> int:
    """0, or 3 when none is running."""
    heard, code = told(args, "GET", "/slots", slots=True)
    if args.json or not heard:
        return code
    rows = [("WHEN", "WHAT", "SLOT", "BY", "WHY")]
    changes = {(change["at"], change["action"]): change for each in heard for change in _log(dict(each.answer))}
    for _, change in sorted(changes.items()):
        at = dt.datetime.fromtimestamp(change["at"]).astimezone().isoformat(" ", "seconds")
        rows.append((at, change["action"], change["slot"], change["by"], change["why"]))
    if len(rows) == 1:
        line("nobody has changed it yet")
    else:
        table(rows)
    return code


def run_preflight(args: argparse.Namespace) -> int:
    """0 when the slot answers like the active one, 1 when it does not."""
    heard, code = told(args, "POST", "/preflight", {"slot": args.slot}, slots=True)
    for each in heard:
        said: dict[str, Any] = dict(each.answer)
        for finding in said["findings"]:
            code = code or int(bool(finding["differences"]))
            if not args.json:
                what = "; ".join(finding["differences"]) or f"like {said['active']}, status {finding['status']}"
                line(f"{each.instance.name}: {finding['probe']}: {what}")
    return code


def _log(said: dict[str, Any]) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = said["log"]
    return log


def _slots(said: dict[str, Any]) -> str:
    canary = f", {said['canary']} gets {percent(said['share'])} of the sessions" if said["canary"] else ""
    return f"{said['active']} is active{canary}"

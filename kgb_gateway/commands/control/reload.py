"""``kgb reload``: the configuration, read again by running gateways."""

import argparse
from typing import Any

from kgb_gateway.commands.control.common import EXIT, add_place, line, told


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``reload``."""
    parser = subparsers.add_parser(
        "reload",
        help="have running gateways read their configuration again",
        description="The new configuration is checked whole and put in force at once for what comes from then on; a bad one changes nothing.",
        epilog=EXIT,
    )
    add_place(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 when every instance has taken it."""
    heard, code = told(args, "POST", "/reload", {"dry_run": args.dry_run})
    if args.json:
        return code
    for each in heard:
        said: dict[str, Any] = dict(each.answer)
        line(f"{each.instance.name}: {_what(said)}")
        for change in said["changes"]:
            line(f"  {change}")
        if said["restart"]:
            line(f"  only a restart brings into force: {', '.join(said['restart'])}")
    return code


def _what(said: dict[str, Any]) -> str:
    if not said["changes"]:
        return "nothing is different"
    return "this would change" if said["dry_run"] else "in force"

"""``kgb route explain``: which route would serve a request, and why."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from fiedler_proxy.app import choice_file
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.explain import explained
from fiedler_proxy.options import add_options, flags_of
from fiedler_proxy.router import Router
from kgb_gateway.app import load
from kgb_gateway.commands.control.common import line
from kgb_gateway.compose import compose_chain

_EPILOG = """\
  kgb route explain POST /v1/messages --model claude-opus-4-1 -H 'anthropic-version: 2023-06-01'
exit status: 0 explained, 1 the configuration is at fault, 2 a wrong command line"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``route``."""
    parser = subparsers.add_parser("route", help="explain where a request would go", description="Asks the routes.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    explain = actions.add_parser(
        "explain",
        help="which slot, route, provider and credential would serve a request, and why",
        description="Nothing is sent. The configuration is read as `kgb serve` would, the chosen slot as it is kept.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("method", metavar="METHOD")
    explain.add_argument("target", metavar="PATH")
    explain.add_argument("-H", "--header", action="append", default=[], metavar="'NAME: VALUE'", help="more than once")
    body = explain.add_mutually_exclusive_group()
    body.add_argument("--body", metavar="FILE", help="the body; - is standard input")
    body.add_argument("--model", metavar="NAME", help="a body that names this model")
    explain.add_argument("--caller", default="", metavar="NAME", help="as whom")
    explain.add_argument("--session", default="", metavar="ID", help="in which session, for a canary")
    explain.add_argument("--slot", default="", metavar="SLOT", help="in this slot, active or not")
    explain.add_argument("--json", action="store_true", help="print it as JSON")
    add_options(explain)
    explain.set_defaults(run=run, parser=explain)


def run(args: argparse.Namespace) -> int:
    """0; SettingsError for a configuration at fault."""
    settings = load(flags_of(args), os.environ)
    tables = settings.tables
    assert tables is not None
    router = Router(tables, choice_file(settings), settings.document.slot)
    link = compose_chain(settings).find("provider_route")
    if link is None:
        raise SettingsError(["chain: without 'fiedler' there are no routes: everything goes to [upstream]"])
    try:
        said: dict[str, Any] = explained(router, _asked(args, link.prefixes))
    except ValueError as error:
        args.parser.error(str(error))
    if args.json:
        json.dump(said, sys.stdout, indent=1)
        line()
    else:
        _show(said)
    return 0


def _asked(args: argparse.Namespace, prefixes: tuple[str, ...]) -> dict[str, object]:
    headers = []
    for header in args.header:
        name, colon, value = header.partition(":")
        if not colon:
            args.parser.error(f"{header!r} is no header: write it like 'anthropic-version: 2023-06-01'")
        headers.append((name.strip(), value.strip()))
    body = json.dumps({"model": args.model}) if args.model else ""
    if args.body:
        try:
            data = sys.stdin.buffer.read() if args.body == "-" else Path(args.body).read_bytes()
        except OSError as error:
            args.parser.error(f"{args.body} cannot be read: {error.strerror}")
        body = data.decode("utf-8", "surrogateescape")
    return {
        "method": args.method, "target": args.target, "headers": headers, "body": body, "caller": args.caller,
        "session": args.session, "slot": args.slot, "prefixes": list(prefixes),
    }  # fmt: skip


def _show(said: dict[str, Any]) -> None:
    line(f"slot      {said['slot']}: {said['slot_why']}")
    for each in said["passed"]:
        line(f"not       {each['route']}: {each['why']}")
    line(f"route     {said['route']}: {said['route_why']}")
    if said.get("model"):
        alias = f", sent as {said['sent_as']}: the exchange is transformed" if said["transformed"] else ""
        line(f"model     {said['model']}{alias}")
    for place, each in enumerate(said["upstreams"]):
        line(f"{'upstream ' if not place else 'then     '} {each['provider']}: {each['url']}")
        line(f"          credential: {each['credential']}")
        if not each.get("serves", True):
            line(f"          note: {each['provider']} is not known to serve this path")
    if len(said["upstreams"]) > 1:
        line(f"retry     after {', '.join(said['retry'])}; the first is chosen {said['pick']}")

"""``kgb chain``: the chain as it was composed, each link with its settings and powers."""

import argparse
import json
import os
from collections.abc import Iterable

import attrs

from fiedler_proxy.chain import Row
from fiedler_proxy.options import add_options, flags_of, tell_warnings
from kgb_gateway.app import load
from kgb_gateway.compose import compose_chain


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``chain``."""
    parser = subparsers.add_parser(
        "chain",
        help="print the chain of links that a request passes",
        description="Prints the composed chain, outermost link first: where each comes from, why it is there, its settings "
        "and the powers it declares. Behind the last link stands the relay.",
    )
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 and the chain; SettingsError with every fault."""
    settings = load(flags_of(args), os.environ)
    rows = compose_chain(settings).describe()
    tell_warnings("kgb chain", settings)
    if args.json:
        print(json.dumps([attrs.asdict(row) for row in rows], indent=1, default=str))
    else:
        print("\n".join(lines(rows)))
    return 0


def lines(rows: Iterable[Row]) -> Iterable[str]:
    """The rows for people."""
    for row in rows:
        powers = f" [{', '.join(row.powers)}]" if row.powers else ""
        yield f"{row.position:2}  {row.name}{powers}"
        yield f"      {row.source}; {row.why}"
        for key, value in row.settings.items():
            yield f"      {key} = {json.dumps(value, default=str)}"

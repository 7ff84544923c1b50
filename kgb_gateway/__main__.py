"""The command ``kgb``: one module a subcommand, below ``kgb_gateway.commands``."""

import argparse
import sys
from collections.abc import Sequence

from fiedler_proxy.errors import SettingsError
from fiedler_proxy.options import INTERRUPTED, tell_faults
from kgb_gateway.commands import chain, check, compare, demo, keys, serve, version
from kgb_gateway.commands.control import reload, route, slot, status
from kgb_gateway.commands.dewey import command as dewey

PARSERS = (
    serve.add_parser, status.add_parser, slot.add_parser, route.add_parser, reload.add_parser, status.add_drain_parser,
    status.add_exchanges_parser, dewey.add_parser, check.add_parser, chain.add_parser, keys.add_parser, demo.add_parser,
    compare.add_parser, version.add_parser,
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="kgb", description="A gateway between coding agents and model APIs: every byte passes, at once."
    )
    parser.add_argument("--version", action="version", version=version.one_line())
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add_parser in PARSERS:
        add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
    except SettingsError as error:
        return tell_faults(f"kgb {args.command}", error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())

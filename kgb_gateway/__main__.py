"""The command ``kgb``: one module a subcommand, below ``kgb_gateway.commands``."""

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from fiedler_proxy.errors import SettingsError
from fiedler_proxy.options import INTERRUPTED, tell_faults

_HERE = "kgb_gateway.commands"

COMMANDS = {
    "serve": f"{_HERE}.serve:add_parser",
    "status": f"{_HERE}.control.status:add_parser",
    "slot": f"{_HERE}.control.slot:add_parser",
    "route": f"{_HERE}.control.route:add_parser",
    "reload": f"{_HERE}.control.reload:add_parser",
    "drain": f"{_HERE}.control.status:add_drain_parser",
    "exchanges": f"{_HERE}.control.status:add_exchanges_parser",
    "dewey": f"{_HERE}.dewey.command:add_parser",
    "check": f"{_HERE}.check:add_parser",
    "chain": f"{_HERE}.chain:add_parser",
    "keys": f"{_HERE}.keys:add_parser",
    "demo": f"{_HERE}.demo:add_parser",
    "compare": f"{_HERE}.compare:add_parser",
    "version": f"{_HERE}.version:add_parser",
}
"""What adds each command, in the order of the help. Only the one that is asked for is imported: all of them together take as long as the start of
the gateway."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="kgb", description="A gateway between coding agents and model APIs: every byte passes, at once."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    first = next(iter(sys.argv[1:] if argv is None else argv), "")
    gc.disable()  # imports make much, and leave nothing to collect
    for name in [first] if first in COMMANDS else COMMANDS:
        _adder(name)(subparsers)
    gc.enable()
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args)
    except SettingsError as error:
        return tell_faults(f"kgb {args.command}", error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


class _Version(argparse.Action):
    """argparse's own would want the version of every start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        print(import_module(f"{_HERE}.version").one_line())
        parser.exit()


def __getattr__(name: str) -> Any:
    if name == "PARSERS":
        return tuple(map(_adder, COMMANDS))
    raise AttributeError(name)


def _adder(name: str) -> Callable[[Any], None]:
    module, _, attribute = COMMANDS[name].partition(":")
    add_parser: Callable[[Any], None] = getattr(import_module(module), attribute)
    return add_parser


if __name__ == "__main__":
    sys.exit(main())

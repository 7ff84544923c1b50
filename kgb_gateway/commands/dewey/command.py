"""``kgb dewey``: the command and its subcommands, and how their errors are told."""

import argparse
import sqlite3
import sys

from kgb_gateway.commands.dewey import export, follow, listing, serve, show, upkeep
from kgb_gateway.dewey.librarian import Busy
from kgb_gateway.dewey.store.database import StoreError

GROUPS = (listing, show, follow, export, upkeep, serve)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``dewey`` and its commands."""
    parser = subparsers.add_parser(
        "dewey",
        help="conversations on record: list, show, search, export, ...",
        description="Finds again what passed the gateway. Works with the gateway running or not.",
    )
    commands = parser.add_subparsers(dest="dewey_command", required=True, metavar="COMMAND")
    for group in GROUPS:
        group.add_parsers(commands)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code: 0 done, 1 not possible as things stand or nothing found, 2 asked for in wrong words."""
    try:
        code: int = args.act(args)
    except (StoreError, Busy) as error:
        print(f"kgb dewey {args.dewey_command}: {error}", file=sys.stderr)
        return 1
    except sqlite3.Error as error:
        print(f"kgb dewey {args.dewey_command}: the store cannot be read: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"kgb dewey {args.dewey_command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read this has seen enough. Nothing must be written at the interpreter's end either.
        sys.stdout = None
        return 0
    return code

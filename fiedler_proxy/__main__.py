"""The command ``fiedler``: Fiedler alone, as its own server."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

from fiedler_proxy.app import compose_chain, create_app, load
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.logs import logging_to_stderr
from fiedler_proxy.options import INTERRUPTED, add_log_level, add_options, flags_of, tell_faults
from fiedler_proxy.serving import Again, run

COMMAND = "fiedler serve"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own); returns the exit code."""
    parser = argparse.ArgumentParser(prog="fiedler", description="Provider routing, as a server of its own.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = "serve every path 1:1, also below /anthropic-proxy/, until SIGTERM"
    serving = commands.add_parser("serve", help=about, description=about.capitalize())
    add_options(serving)
    add_log_level(serving)
    args = parser.parse_args(argv)
    try:
        with logging_to_stderr(args.log_level):
            flags = flags_of(args)
            again = Again(partial(load, flags, os.environ), compose_chain)
            return run(load(flags, os.environ), create_app, again=again)
    except SettingsError as error:
        return tell_faults(COMMAND, error)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())

"""The command ``fiedler``: Fiedler alone, as its own server."""

import argparse
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Sequence

from aiohttp import web

from fiedler_proxy.app import build_app, compose_chain, load
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.options import (
    INTERRUPTED,
    add_log_level,
    add_options,
    flags_of,
    tell_faults,
    tell_start,
    tell_warnings,
)
from fiedler_proxy.serving import run, set_up_logging

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
        return _serve(args)
    except SettingsError as error:
        return tell_faults(COMMAND, error)
    except KeyboardInterrupt:
        return INTERRUPTED


def _serve(args: argparse.Namespace) -> int:
    set_up_logging(args.log_level)
    settings = load(flags_of(args), os.environ)
    tell_warnings(COMMAND, settings)
    chain = compose_chain(settings)

    @contextlib.asynccontextmanager
    async def open_app() -> AsyncIterator[web.Application]:
        yield build_app(settings, chain)

    return run(settings, open_app, lambda urls: tell_start(COMMAND, urls, settings.upstream.url, chain))


if __name__ == "__main__":
    sys.exit(main())

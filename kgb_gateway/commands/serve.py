"""``kgb serve``: the gateway, until a signal ends it."""

import argparse
import os
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path

from aiohttp import web

from fiedler_proxy.logs import logging_to_stderr
from fiedler_proxy.options import add_log_level, add_options, flags_of
from fiedler_proxy.serving import Again
from fiedler_proxy.serving import run as run_server
from fiedler_proxy.settings import Settings
from kgb_gateway.app import create_app, load
from kgb_gateway.companion import Companion, command_of
from kgb_gateway.compose import compose_chain
from kgb_gateway.demo import demo_upstream
from kgb_gateway.settings import records, sink_in, tap_table

FIEDLER = "fiedler"
GREEN = "green"

_DEMO_PLACE = "unix:/demo"  # stands for the provider's address until it runs

_EPILOG = """\
Then point an agent at it:
  ANTHROPIC_BASE_URL=http://127.0.0.1:8089 claude
SIGTERM or Ctrl-C lets open streams finish first; a second one stops at once.
exit status: 0 stopped as asked, 1 it cannot start as configured"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``serve``."""
    parser = subparsers.add_parser(
        "serve",
        help="run the gateway",
        description="Runs the gateway in front of one API, or of Fiedler in the same process.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument("--demo", action="store_true", help="answer from a built-in scripted provider: no key needed")
    parser.add_argument(
        "--fiedler", action="store_true", help="begin with the slot green: Fiedler's routes, in this process"
    )
    add_log_level(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """0 after a drain; SettingsError when the gateway cannot start."""
    flags = flags_of(args)
    if args.demo:
        if "upstream" in flags:
            args.parser.error("--demo brings its own upstream: leave --upstream out")
        flags["upstream"] = _DEMO_PLACE
    with logging_to_stderr(args.log_level):
        settings = load_with(flags, os.environ, fiedler=args.fiedler)
        again = Again(partial(load_with, flags, os.environ, fiedler=args.fiedler), compose_chain)
        context = demo_upstream if args.demo else None
        return run_server(settings, create_with_librarian, upstream_context=context, again=again)


def create_with_librarian(settings: Settings) -> web.Application:
    """The gateway with the librarian as its companion, where it records and nobody else is the librarian."""
    app = create_app(settings)
    table = tap_table(settings)
    if records(settings) and table.get("librarian", "own") == "own":
        home = table.get("data_dir")
        path = settings.base_dir / Path(home).expanduser() if isinstance(home, str) and home else settings.data_dir
        more = [f"--{name.replace('_', '-')}={table[name]}" for name in ("raw_days", "raw_size") if name in table]
        sink = sink_in(settings)
        command = command_of(str(path.absolute()), *more, *([f"--sink={sink}"] if sink else []))
        app.cleanup_ctx.append(partial(_companion, Companion(command)))
    return app


async def _companion(companion: Companion, _: web.Application) -> AsyncIterator[None]:
    companion.start()
    yield
    await companion.stop()


def load_with(flags: Mapping[str, object], environ: Mapping[str, str], *, fiedler: bool) -> Settings:
    """The settings; with ``fiedler`` its name stands at the end of the chain, whoever configured that, and green is where it begins."""
    if not fiedler:
        return load(flags, environ)
    flags = {**flags, "slot": GREEN}
    settings = load(flags, environ)
    names = settings.document.chain
    return settings if FIEDLER in names else load({**flags, "chain": (*names, FIEDLER)}, environ)

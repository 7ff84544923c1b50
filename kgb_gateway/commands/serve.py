"""``kgb serve``: the gateway, until a signal ends it."""

import argparse
import contextlib
import os
from collections.abc import AsyncIterator, Mapping

import attrs
from aiohttp import web

from fiedler_proxy.app import build_app
from fiedler_proxy.options import add_log_level, add_options, flags_of, tell_start, tell_warnings
from fiedler_proxy.serving import run as run_server
from fiedler_proxy.serving import set_up_logging
from fiedler_proxy.settings import Settings
from fiedler_proxy.upstream import parse_upstream
from kgb_gateway.app import load
from kgb_gateway.compose import compose_chain
from kgb_gateway.demo import demo_upstream

COMMAND = "kgb serve"
FIEDLER = "fiedler"

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
    parser.add_argument("--fiedler", action="store_true", help="put Fiedler behind the chain, in this process")
    add_log_level(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """0 after a drain; SettingsError when the gateway cannot start."""
    flags = flags_of(args)
    if args.demo:
        if "upstream" in flags:
            args.parser.error("--demo brings its own upstream: leave --upstream out")
        flags["upstream"] = _DEMO_PLACE
    set_up_logging(args.log_level)
    settings = _load(flags, os.environ, fiedler=args.fiedler)
    tell_warnings(COMMAND, settings)
    chain = compose_chain(settings)

    @contextlib.asynccontextmanager
    async def open_app() -> AsyncIterator[web.Application]:
        if not args.demo:
            yield build_app(settings, chain)
            return
        async with demo_upstream() as url:
            yield build_app(_in_front_of(settings, url), chain)

    upstream = "the built-in demo provider" if args.demo else settings.upstream.url
    return run_server(settings, open_app, lambda urls: tell_start(COMMAND, urls, upstream, chain))


def _load(flags: Mapping[str, object], environ: Mapping[str, str], *, fiedler: bool) -> Settings:
    settings = load(flags, environ)
    names = settings.document.chain
    if not fiedler or FIEDLER in names:
        return settings
    return load({**flags, "chain": (*names, FIEDLER)}, environ)


def _in_front_of(settings: Settings, url: str) -> Settings:
    before = settings.upstream
    return attrs.evolve(settings, upstream=parse_upstream(url, "demo", timeouts=before.timeouts, limits=before.limits))

"""``kgb check``: is the configuration good, and what does it come to?"""

import argparse
import os

from fiedler_proxy.app import build_app
from fiedler_proxy.effective import effective
from fiedler_proxy.options import add_options, flags_of, tell_warnings
from kgb_gateway.app import load
from kgb_gateway.compose import compose_chain


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``check``."""
    parser = subparsers.add_parser(
        "check",
        help="check the configuration and print what is in force",
        description="Checks settings and chain without starting anything, and prints the effective configuration as TOML, "
        "each value with where it comes from, credentials redacted.",
        epilog="exit status: 0 the gateway can start with it, 1 it cannot",
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """0 and the effective configuration; SettingsError with every fault."""
    settings = load(flags_of(args), os.environ)
    chain = compose_chain(settings)
    build_app(settings, chain)
    settings.ssl_context()
    tell_warnings("kgb check", settings)
    print(effective(settings, chain), end="")
    return 0

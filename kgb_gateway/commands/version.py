"""``kgb version``: what runs here, for a report of a fault."""

import argparse
import importlib.metadata
import platform

from fiedler_proxy.server import c_parser_in_use

_MISSING = "not installed"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``version``."""
    parser = subparsers.add_parser(
        "version",
        help="print the versions of the gateway and of what it stands on",
        description="Prints the versions of the gateway, Python, aiohttp and uvloop, and which parser aiohttp uses.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Always 0."""
    parser = "C parser" if c_parser_in_use() else "Python parser: the gateway will not start"
    print(one_line())
    print(f"python {platform.python_version()} ({platform.python_implementation()}, {platform.system()})")
    print(f"aiohttp {_version('aiohttp')} ({parser})")
    print(f"uvloop {_version('uvloop')}")
    return 0


def one_line() -> str:
    """``kgb-gateway 1.2.3``."""
    return f"kgb-gateway {_version('kgb-gateway')}"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return _MISSING

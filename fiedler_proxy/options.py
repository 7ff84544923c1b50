"""Settings as options of a command, and what every command that reads them says.

Owns the words on the command line and on standard error, none of the settings' meaning.
"""

import argparse
from collections.abc import Mapping

from fiedler_proxy.errors import SettingsError
from fiedler_proxy.logs import LEVELS
from fiedler_proxy.serving import say
from fiedler_proxy.settings import Settings

INTERRUPTED = 130
"""The exit code after Ctrl-C before anything ran that could be drained."""

_KEYS = ("config", "host", "port", "upstream", "data_dir", "instance", "chain", "uvloop", "reuse_port")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that set something; what is not given on the command line is left to environment and file."""
    add = parser.add_argument
    add("--config", metavar="FILE", help="read settings from this TOML file")
    add("--host", metavar="ADDRESS", help="listen on this address")
    add("--port", type=int, metavar="N", help="listen on this port; 0 takes a free one and says which")
    add("--upstream", metavar="URL", help="the API to stand in front of: http(s)://host[:port][/base] or unix:/path")
    add("--data-dir", metavar="DIR", help="where the server keeps what it keeps")
    add("--reuse-port", action="store_const", const=True, help="share the port with other instances that say so too")
    add("--instance", metavar="NAME", help="the name of this process among several on one host")
    add("--chain", type=_names, metavar="A,B,...", help="the links that a request passes, outermost first")
    add("--no-uvloop", dest="uvloop", action="store_const", const="never", help="use asyncio's own event loop")


def add_log_level(parser: argparse.ArgumentParser) -> None:
    """``--log-level``, for commands that go on running."""
    parser.add_argument(
        "--log-level", choices=LEVELS, default="info", help="least level of what goes to standard error (%(default)s)"
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def flags_of(args: argparse.Namespace) -> dict[str, object]:
    """The settings that the command line gives."""
    given: Mapping[str, object] = vars(args)
    return {key: given[key] for key in _KEYS if given.get(key) is not None}


def tell_faults(command: str, error: SettingsError) -> int:
    """Say every fault, each on a line; returns the exit code."""
    count = "1 fault" if len(error.faults) == 1 else f"{len(error.faults)} faults"
    say(f"{command}: cannot start as configured, {count}:")
    for fault in error.faults:
        say(f"  {_on_one_line(fault)}")
    return 1


def tell_warnings(command: str, settings: Settings) -> None:
    """Say what was ignored."""
    for warning in settings.warnings:
        say(f"{command}: warning: {_on_one_line(warning)}")


def _on_one_line(text: str) -> str:
    """What a file or a variable holds must neither draw on the terminal nor look like another fault."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

"""What the commands that speak to running gateways have in common: which of them, and how answers are told.

Owns no meaning of any command.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fiedler_proxy.config import Faults
from fiedler_proxy.control import runtime_dirs
from fiedler_proxy.errors import SettingsError
from fiedler_proxy.serving import say
from fiedler_proxy.settings import FIEDLER, read
from kgb_gateway.control_client import Nobody, Said, ask_all
from kgb_gateway.settings import KGB

NOT_DONE = 1
NOBODY = 3
"""Exit codes: an instance would not do it; none is running."""

EXIT = "exit status: 0 done, 1 refused by an instance, 2 a wrong command line, 3 no gateway is running"


def add_place(parser: argparse.ArgumentParser) -> None:
    """The options that say which gateways are meant."""
    parser.add_argument("--config", metavar="FILE", help="the configuration of the gateway, for its runtime_dir")
    parser.add_argument("--data-dir", metavar="DIR", help="where the gateway keeps what it keeps")
    parser.add_argument("--instance", metavar="NAME", default="", help="only this one; all by default")
    parser.add_argument("--json", action="store_true", help="print what the instances answer, as JSON")


def directories_of(args: argparse.Namespace) -> tuple[Path, ...]:
    """Where the sockets of the gateways are that ``args`` mean. SettingsError for a configuration that cannot be read."""
    flags = {key: value for key, value in (("config", args.config), ("data_dir", args.data_dir)) if value}
    faults = Faults()
    draft = read(KGB, flags, os.environ, faults)
    if faults.found and args.config and not draft.complete:
        raise SettingsError(faults.found)
    return runtime_dirs(draft.settings.document.runtime_dir, draft.settings.data_dir, os.environ)


def told(
    args: argparse.Namespace,
    method: str,
    path: str,
    said: Mapping[str, object] | None = None,
    *,
    slots: bool = False,
    refusals: bool = True,
) -> tuple[list[Said], int]:
    """Ask, and say what was refused (with ``refusals``). ``slots``: of KGB's gateways alone, unless ``--fiedler`` means Fiedler's."""
    program = ""
    if slots:
        program = FIEDLER.name if args.fiedler else KGB.name
    try:
        heard = ask_all(directories_of(args), args.instance, method, path, said, program)
    except Nobody as error:
        say(f"kgb {args.command}: {error}")
        return [], NOBODY
    for each in heard:
        if each.error and refusals:
            say(f"kgb {args.command}: {each.instance.name}: {each.error}")
    if args.json:
        show = {f"{each.instance.name}.{each.instance.pid}": each.answer for each in heard}
        json.dump(show, sys.stdout, indent=1)
        sys.stdout.write("\n")
    return [each for each in heard if not each.error], NOT_DONE if any(each.error for each in heard) else 0


def line(text: str = "") -> None:
    """A line on standard output, without what would draw on a terminal."""
    sys.stdout.write("".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in text) + "\n")


def table(rows: Sequence[tuple[str, ...]]) -> None:
    """Rows, the first one the heading, in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

"""``kgb dewey serve``: the librarian as a process of its own."""

import argparse
import asyncio
import os
import signal
import sys

from fiedler_proxy.logs import logging_to_stderr
from fiedler_proxy.options import add_log_level
from kgb_gateway.commands.dewey.common import add_command, home_of, prices_of, retention_of, sink_of
from kgb_gateway.dewey.librarian import Retention
from kgb_gateway.dewey.serving import Process, calm_collector, stop_with_parent

IDLE = 19
"""Niceness of a librarian that a gateway started: it works when nobody else wants to."""


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``serve``."""
    parser = add_command(commands, "serve", "run the librarian, until a signal ends it", _serve, json=False)
    parser.add_argument("--idle", action="store_true", help="work only when nobody else wants the processor")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input ends")
    parser.add_argument(
        "--sink", default="", metavar="URL", help="deliver to an existing Dewey too: dewey+ws://HOST:9020"
    )
    parser.add_argument(
        "--raw-days", type=float, metavar="N", help="days for which packed segments are kept; 0: for ever"
    )
    parser.add_argument("--raw-size", type=int, metavar="BYTES", help="most bytes of packed segments; 0: no bound")
    add_log_level(parser)


def _serve(args: argparse.Namespace) -> int:
    home = home_of(args)
    if args.idle:
        os.nice(IDLE)
        if sys.platform == "linux":
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with logging_to_stderr(args.log_level):
        told = retention_of(args)
        retention = Retention(
            told.raw_days if args.raw_days is None else args.raw_days,
            told.raw_size if args.raw_size is None else args.raw_size,
        )
        process = Process(home, prices_of(home), retention, args.sink or sink_of(args))
        if args.with_parent:
            stop_with_parent(process)
        calm_collector()
        asyncio.run(_run(process))
    return 0


async def _run(process: Process) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop)
    await process.run()

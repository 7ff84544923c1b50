"""``kgb dewey tail``: live exchanges as they stream."""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector
from aiohttp_sse_client.client import EventSource

from kgb_gateway.commands.dewey.common import add_command, dollars, home_of, tokens, when
from kgb_gateway.dewey.feed import SOCKET
from kgb_gateway.dewey.store.database import StoreError
from kgb_gateway.dewey.texts import visible

RETRY = timedelta(milliseconds=500)
TRIES = 20
"""How often the feed is asked again before ``tail`` gives up."""


def add_parsers(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``tail``."""
    parser = add_command(commands, "tail", "follow live exchanges as they stream, until Ctrl-C", _tail)
    parser.add_argument("--caller", default="", metavar="NAME", help="only this caller's")
    parser.add_argument("-n", "--exchanges", type=int, default=0, metavar="N", help="stop after so many have ended")


def _tail(args: argparse.Namespace) -> int:
    home = home_of(args)
    if not (home / SOCKET).exists():
        raise StoreError(f"no librarian is at work in {home}: start the gateway (kgb serve), or kgb dewey serve")
    try:
        asyncio.run(_follow(home, args))
    except ClientError as error:
        raise StoreError(f"the librarian's feed has ended: {error}") from None
    return 0


async def _follow(home: Path, args: argparse.Namespace) -> None:
    printer = _Printer(args.caller, as_json=args.json)
    session = ClientSession(connector=UnixConnector(str(home / SOCKET)), timeout=ClientTimeout(total=None))
    async with session:
        source = EventSource("http://dewey/events", session=session, reconnection_time=RETRY, max_connect_retry=TRIES)
        async with source:
            async for event in source:
                printer.take(event.type, json.loads(event.data))
                if args.exchanges and printer.ended >= args.exchanges:
                    return


class _Printer:
    """Prints events. Text of one exchange goes on on its line; another one begins a line of its own."""

    def __init__(self, caller: str, *, as_json: bool) -> None:
        self.ended = 0
        self._caller = caller
        self._as_json = as_json
        self._shown: set[str] = set()
        self._current = ""

    def take(self, event: str, said: Mapping[str, object]) -> None:
        name = str(said.get("id", ""))
        if event == "began" and (not self._caller or said.get("caller") == self._caller):
            self._shown.add(name)
        if event != "missed" and name not in self._shown and event != "stored":
            return
        if event == "ended":
            self.ended += 1
        if self._as_json:
            print(json.dumps({"event": event, **said}), flush=True)
        else:
            self._print(event, name, said)

    def _print(self, event: str, name: str, said: Mapping[str, object]) -> None:
        label = name[:13]
        if event == "text":
            if self._current != name:
                self._line(f"{label} > ")
            self._current = name
            sys.stdout.write("\n".join(map(visible, str(said.get("text", "")).split("\n"))))
        elif event == "began":
            at = float(str(said.get("at") or 0))
            self._line(
                f"{label} {when(at)} {said.get('caller') or '-'} {visible(str(said.get('method')))} "
                f"{visible(str(said.get('target')))}\n"
            )
        elif event == "answered":
            self._line(f"{label} {said.get('status')}\n")
        elif event == "ended":
            self._line(f"{label} {said.get('outcome')} after {float(str(said.get('duration') or 0)):.1f} s\n")
        elif event == "stored":
            cost = said.get("cost")
            self._line(
                f"{label} in the store: {said.get('relation')} of {visible(str(said.get('session')))[:24]}, "
                f"{tokens(int(str(said.get('input') or 0)))} in, {tokens(int(str(said.get('output') or 0)))} out "
                f"{dollars(cost if isinstance(cost, int) else None, estimated=bool(said.get('estimated')))}\n"
            )
        elif event == "missed":
            self._line("(some events are gone: they were too long ago)\n")
        sys.stdout.flush()

    def _line(self, text: str) -> None:
        if self._current:
            sys.stdout.write("\n")
        self._current = ""
        sys.stdout.write(text)

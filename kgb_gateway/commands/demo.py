"""``kgb demo``: a gateway in front of the built-in demo provider, one request through it, every event with its time."""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
from aiohttp import web

from fiedler_proxy.errors import SettingsError
from fiedler_proxy.upstream import parse_upstream
from kgb_gateway.app import create_app, load
from kgb_gateway.commands.dewey.common import catch_up
from kgb_gateway.commands.dewey.show import terminal
from kgb_gateway.compare.parse import Arrival
from kgb_gateway.compare.report import tolerant
from kgb_gateway.compare.requests import Request
from kgb_gateway.compare.wire import Answer, WireError, ask
from kgb_gateway.demo import demo_upstream
from kgb_gateway.demo.provider import DEFAULT_PACE
from kgb_gateway.demo.show import HEADING, EventReader, ShownEvent, paint
from kgb_gateway.dewey.librarian import Retention
from kgb_gateway.dewey.show import Fold, show
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.dewey.store.database import StoreError
from kgb_gateway.dewey.store.reader import StoreReader
from kgb_gateway.dewey.transcripts.view import view

TIMEOUT = 600.0
"""Seconds the whole answer may take."""

PROMPT = "Please use a tool to find out about the weather in Oslo."

_LOG = "access.log"

_WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}

_NEXT = """\
Go on with:
  kgb serve --demo    the same gateway to try an agent or SDK on, no key needed
  kgb serve           the gateway in front of https://api.anthropic.com
                      then: ANTHROPIC_BASE_URL=http://127.0.0.1:8089 claude
  kgb dewey list      what passed, on record"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``demo``."""
    parser = subparsers.add_parser(
        "demo",
        help="show a stream passing through the gateway, without key or network",
        description="Starts a gateway in front of a built-in scripted provider, sends one streaming request through it "
        "and shows each event as it arrives. Needs no key and no network; nothing keeps running afterwards.",
    )
    parser.add_argument(
        "--pace", type=_pace, default=DEFAULT_PACE, metavar="S", help="seconds between two words (%(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print each event, then the summary, as a line of JSON")
    parser.set_defaults(run=run)


def _pace(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 10")
    return value


def run(args: argparse.Namespace) -> int:
    """0 when the whole stream passed, else 1 with a message."""
    tolerant(sys.stdout)
    try:
        return asyncio.run(_demo(args.pace, _AsJson() if args.json else _AsText(_wants_colour())))
    except BrokenPipeError:
        # Whoever read this has seen enough. What is still buffered must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (SettingsError, StoreError, WireError, OSError) as error:
        print(f"kgb demo: the gateway could not be shown: {error}", file=sys.stderr)
        return 1


def _wants_colour() -> bool:
    """On a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextlib.asynccontextmanager
async def _gateway(upstream: str, data_dir: Path) -> AsyncIterator[str]:
    """The gateway as ``kgb serve`` composes it, on a free port of this machine; yields its base URL.

    It reads nobody's configuration, keys or environment, and logs to ``data_dir``.
    """
    flags = {"upstream": upstream, "port": 0, "data_dir": str(data_dir), "links.access_log.path": str(data_dir / _LOG)}
    app = create_app(load(flags))
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def _request() -> Request:
    body = {
        "model": "kgb-demo",
        "max_tokens": 1024,
        "messages": [{"role": "user", "content": PROMPT}],
        "tools": [_WEATHER],
        "stream": True,
    }
    headers = (("Content-Type", "application/json"), ("anthropic-version", "2023-06-01"), ("User-Agent", "kgb-demo"))
    return Request("demo", "POST", "/v1/messages?beta=true", headers, json.dumps(body).encode())


async def _demo(pace: float, out: "_AsText | _AsJson") -> int:
    reader = EventReader()
    with tempfile.TemporaryDirectory(prefix="kgb-demo-") as directory:
        data_dir = Path(directory)
        async with demo_upstream(pace) as provider, _gateway(provider, data_dir) as url:
            out.begin(url)
            answer = await _show(url, reader, out)
        fault = _fault(answer, reader.events)
        out.end(Summary(answer, len(reader.events), _last_line(data_dir / _LOG), fault))
        if not fault:
            out.recorded(data_dir)
    return 1 if fault else 0


def _recorded(data_dir: Path, colour: bool) -> Iterator[str]:
    """What ``kgb dewey show last`` says of it, read out of the journal by the librarian's own way."""
    catch_up(data_dir, Retention())
    with StoreReader(Layout(data_dir)) as store:
        found = store.find("last")
        conversation = store.conversation_of(found[1]) if found is not None and found[0] == "conversation" else None
        if conversation is None:
            raise StoreError("the conversation is not on record")
        yield from show(conversation, view, terminal(colour), Fold())


async def _show(url: str, reader: EventReader, out: "_AsText | _AsJson") -> Answer:
    """Send the request and show each event as it arrives. Printing must not delay the clock, so it has its own turn."""
    arrivals: asyncio.Queue[Arrival | None] = asyncio.Queue()
    asking = asyncio.create_task(ask(parse_upstream(url), _request(), timeout=TIMEOUT, on_arrival=arrivals.put_nowait))
    asking.add_done_callback(lambda _: arrivals.put_nowait(None))
    try:
        while (arrival := await arrivals.get()) is not None:
            for event in reader.feed(arrival):
                out.event(event)
    except BaseException:
        asking.cancel()
        raise
    return await asking


def _last_line(log: Path) -> str:
    """What the gateway noted of the request."""
    try:
        return log.read_text().strip().rpartition("\n")[2]
    except OSError:
        return ""


def _fault(answer: Answer, events: list[ShownEvent]) -> str:
    """What kept the stream from being whole, "" for nothing."""
    if not answer.status:
        return f"the gateway gave no answer: {answer.end}"
    if answer.status != 200:
        return f"the gateway answered {answer.status} {answer.reason}: {answer.body[:500].decode('utf-8', 'replace')}"
    if not answer.complete:
        return f"the stream broke off: {answer.end}"
    if not events or events[-1].name != "message_stop":
        return "the stream ended without message_stop"
    return ""


@attrs.frozen
class Summary:
    """How it went. ``logged``: the gateway's access log of the request; ``fault``: what went wrong, "" for nothing."""

    answer: Answer
    events: int
    logged: str
    fault: str

    @property
    def request_id(self) -> str:
        """The gateway's id of the request."""
        return (self.answer.header(b"x-kgb-request-id") or b"").decode("latin-1")

    def text(self) -> str:
        """In words."""
        answer = self.answer
        return (
            f"{answer.status} {answer.reason}, request {self.request_id}: {len(answer.body)} bytes in {self.events} events; "
            f"first byte after {answer.first_byte * 1000:.1f} ms, all after {answer.ended:.2f} s."
        )

    def document(self) -> dict[str, Any]:
        """For machines; times in milliseconds."""
        return {
            "status": self.answer.status,
            "request_id": self.request_id,
            "bytes": len(self.answer.body),
            "events": self.events,
            "first_byte_ms": round(self.answer.first_byte * 1000, 3),
            "total_ms": round(self.answer.ended * 1000, 3),
            "access_log": json.loads(self.logged) if self.logged else None,
            "error": self.fault or None,
        }


@attrs.frozen
class _AsText:
    colour: bool

    def begin(self, url: str) -> None:
        print(f"POST {url}/v1/messages, through kgb to its built-in demo provider (no model):\n")
        print(paint(HEADING, "1", self.colour), flush=True)

    def event(self, event: ShownEvent) -> None:
        print(event.line(colour=self.colour), flush=True)

    def end(self, summary: Summary) -> None:
        if summary.fault:
            print(f"\nkgb demo: {summary.fault}", file=sys.stderr)
            return
        print(f"\n{summary.text()}")
        if summary.logged:
            print(f"\nThe gateway's access log:\n  {summary.logged}")

    def recorded(self, data_dir: Path) -> None:
        print("\nAnd on record (kgb dewey show last):\n")
        for line in _recorded(data_dir, self.colour):
            print(line)
        print(f"\n{_NEXT}")


@attrs.frozen
class _AsJson:
    def begin(self, url: str) -> None:
        print(json.dumps({"gateway": url}), flush=True)

    def event(self, event: ShownEvent) -> None:
        print(json.dumps(event.document()), flush=True)

    def recorded(self, data_dir: Path) -> None:
        """Nothing: the summary is what a machine reads last; ``kgb dewey show --json`` is there for the record."""

    def end(self, summary: Summary) -> None:
        print(json.dumps({"summary": summary.document()}), flush=True)
        if summary.fault:
            print(f"kgb demo: {summary.fault}", file=sys.stderr)

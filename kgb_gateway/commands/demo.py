"""``kgb demo``: a gateway in front of the built-in demo provider, one request through it, every event with its time."""

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator

import attrs
from aiohttp import web

from fiedler_proxy.errors import SettingsError
from fiedler_proxy.lifecycle import Gateway, create_application
from fiedler_proxy.relay import Relay
from fiedler_proxy.upstream import parse_upstream
from kgb_gateway.compare.parse import Arrival
from kgb_gateway.compare.report import tolerant
from kgb_gateway.compare.requests import Request
from kgb_gateway.compare.wire import Answer, WireError, ask
from kgb_gateway.demo import demo_upstream
from kgb_gateway.demo.provider import DEFAULT_PACE
from kgb_gateway.demo.show import HEADING, EventReader, ShownEvent, paint
from kgb_gateway.middlewares.request_id import RequestId

TIMEOUT = 600.0
"""Seconds the whole answer may take."""

PROMPT = "Please use a tool to find out about the weather in Oslo."

_WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}

_NEXT = """\
Go on with:
  kgb serve --demo    the same gateway to try an agent or SDK on, no key needed
  kgb serve           the gateway in front of https://api.anthropic.com
                      then: ANTHROPIC_BASE_URL=http://127.0.0.1:8089 claude"""


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
    except (SettingsError, WireError, OSError) as error:
        print(f"kgb demo: the gateway could not be shown: {error}", file=sys.stderr)
        return 1


def _wants_colour() -> bool:
    """On a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


@contextlib.asynccontextmanager
async def _gateway(upstream: str) -> AsyncIterator[str]:
    gateway = Gateway(parse_upstream(upstream))
    runner = web.AppRunner(create_application(gateway, [RequestId()], Relay(gateway)), shutdown_timeout=1)
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
    async with demo_upstream(pace) as provider, _gateway(provider) as url:
        out.begin(url)
        arrivals: asyncio.Queue[Arrival | None] = asyncio.Queue()
        asking = asyncio.create_task(
            ask(parse_upstream(url), _request(), timeout=TIMEOUT, on_arrival=arrivals.put_nowait)
        )
        asking.add_done_callback(lambda _: arrivals.put_nowait(None))
        try:
            while (arrival := await arrivals.get()) is not None:
                for event in reader.feed(arrival):
                    out.event(event)
        except BaseException:
            asking.cancel()
            raise
        answer = await asking
    fault = _fault(answer, reader.events)
    out.end(answer, len(reader.events), fault)
    return 1 if fault else 0


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
class _AsText:
    colour: bool

    def begin(self, url: str) -> None:
        print(f"POST {url}/v1/messages, through kgb to its built-in demo provider (no model):\n")
        print(paint(HEADING, "1", self.colour), flush=True)

    def event(self, event: ShownEvent) -> None:
        print(event.line(colour=self.colour), flush=True)

    def end(self, answer: Answer, events: int, fault: str) -> None:
        if fault:
            print(f"\nkgb demo: {fault}", file=sys.stderr)
            return
        print(
            f"\n{answer.status} {answer.reason}, request {_request_id(answer)}: {len(answer.body)} bytes in {events} events; "
            f"first byte after {answer.first_byte * 1000:.1f} ms, all after {answer.ended:.2f} s.\n\n{_NEXT}"
        )


@attrs.frozen
class _AsJson:
    def begin(self, url: str) -> None:
        print(json.dumps({"gateway": url}), flush=True)

    def event(self, event: ShownEvent) -> None:
        print(json.dumps(event.document()), flush=True)

    def end(self, answer: Answer, events: int, fault: str) -> None:
        summary = {
            "status": answer.status,
            "request_id": _request_id(answer),
            "bytes": len(answer.body),
            "events": events,
            "first_byte_ms": round(answer.first_byte * 1000, 3),
            "total_ms": round(answer.ended * 1000, 3),
            "error": fault or None,
        }
        print(json.dumps({"summary": summary}), flush=True)
        if fault:
            print(f"kgb demo: {fault}", file=sys.stderr)


def _request_id(answer: Answer) -> str:
    """The gateway's id of the request, or the provider's."""
    value = answer.header(b"x-kgb-request-id") or answer.header(b"request-id") or b"(none)"
    return value.decode("latin-1")

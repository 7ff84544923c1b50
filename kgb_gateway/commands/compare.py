"""``kgb compare``: the same requests direct and through a gateway, and whether the answers agree."""

import argparse
import asyncio
import json
import os
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path

from fiedler_proxy.upstream import Upstream, parse_upstream
from kgb_gateway.compare import report
from kgb_gateway.compare.requests import (
    Headers,
    Request,
    RequestError,
    Secrets,
    builtin,
    parse_header,
    read_request,
    with_keys,
)
from kgb_gateway.compare.run import Comparison, Side, compare
from kgb_gateway.compare.wire import WireError

AGREED, DIFFERENT, FAILED = 0, 1, 2

_DESCRIPTION = """\
Sends the same requests to an API directly and through a gateway, and says whether
status, headers, bytes and pacing of the answers agree. Values that vary between two
direct answers too are told apart; everything else must be the same."""

_EPILOG = """\
Keys come from the environment and are never printed:
  kgb compare --direct https://api.anthropic.com --via http://127.0.0.1:8089 --key-env ANTHROPIC_API_KEY
  kgb compare --direct ... --via ... --header 'x-api-key: $MY_KEY' --via-header 'x-kgb-key: $KGB_KEY'
A request file holds 'POST /v1/messages', header lines, an empty line and the body.
exit status: 0 the answers agree, 1 they differ, 2 nothing could be compared"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds ``compare``."""
    parser = subparsers.add_parser(
        "compare",
        help="send the same requests directly and through a gateway, and compare the answers",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--direct", required=True, type=_url, metavar="URL", help="the API itself")
    add("--via", required=True, type=_url, metavar="URL", help="the gateway in front of it")
    add("--request", action="extend", nargs="+", type=Path, default=[], metavar="FILE", help="requests to send instead of the built-in ones")  # fmt: skip
    add("--header", action="append", default=[], metavar="'NAME: VALUE'", help="send this header both ways; $NAME is taken from the environment")  # fmt: skip
    add("--via-header", action="append", default=[], metavar="'NAME: VALUE'", help="send this header to the gateway only")  # fmt: skip
    add("--key-env", action="extend", nargs="+", default=[], metavar="NAME", help="send the key in this environment variable")  # fmt: skip
    add("--model", default="claude-haiku-4-5", help="model of the built-in Anthropic requests (%(default)s)")
    add("--openai-model", default="gpt-5-mini", help="model of the built-in OpenAI requests (%(default)s)")
    add("--repeat", type=_count, default=1, metavar="N", help="ask each request at least N times (%(default)s)")
    add("--timeout", type=_seconds, default=120.0, metavar="S", help="seconds an answer may take (%(default)g)")
    add("--ca-file", metavar="FILE", help="verify TLS against this certificate authority")
    add("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def _url(text: str) -> Upstream:
    try:
        return parse_upstream(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 1000")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def run(args: argparse.Namespace) -> int:
    """0 when all answers agree, 1 when one differs, 2 when nothing could be compared."""
    secrets = Secrets(os.environ)
    report.tolerant(sys.stdout)
    try:
        requests = _requests(args, secrets)
        via_headers = tuple(parse_header(text, secrets, "--via-header") for text in args.via_header)
        direct, via = Side(args.direct, _tls(args)), Side(args.via, _tls(args), via_headers)
        return asyncio.run(_compare(args, direct, via, requests, secrets))
    except (RequestError, WireError) as error:
        print(f"kgb compare: {secrets.mask(str(error))}", file=sys.stderr)
        return FAILED


def _requests(args: argparse.Namespace, secrets: Secrets) -> list[Request]:
    requests = [read_request(path, secrets) for path in args.request] or builtin(args.model, args.openai_model)
    headers: Headers = tuple(parse_header(text, secrets) for text in args.header)
    requests = [request.with_headers(headers, replace=True) for request in requests]
    return with_keys(requests, args.key_env, secrets)


def _tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    if args.ca_file is None:
        return None
    try:
        return ssl.create_default_context(cafile=args.ca_file)
    except OSError as error:
        raise RequestError(f"--ca-file {args.ca_file}: {error.strerror or error}") from None


async def _compare(args: argparse.Namespace, direct: Side, via: Side, requests: list[Request], secrets: Secrets) -> int:
    comparisons: list[Comparison] = []
    if not args.json:
        print(f"direct  {direct.upstream.url}\nvia     {via.upstream.url}")
    async for comparison in compare(direct, via, requests, repeat=args.repeat, timeout=args.timeout):
        comparisons.append(comparison)
        if not args.json:
            print(f"\n{secrets.mask(report.text(comparison))}", flush=True)
    if args.json:
        print(json.dumps(_masked(report.document(comparisons), secrets), indent=2))
    else:
        print(f"\n{report.summary(comparisons)}")
    return AGREED if all(comparison.agrees for comparison in comparisons) else DIFFERENT


def _masked(value: object, secrets: Secrets) -> object:
    """``value`` with secrets taken out of every text in it."""
    if isinstance(value, str):
        return secrets.mask(value)
    if isinstance(value, Mapping):
        return {key: _masked(inner, secrets) for key, inner in value.items()}
    return [_masked(inner, secrets) for inner in value] if isinstance(value, list) else value

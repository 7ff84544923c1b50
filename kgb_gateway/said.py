"""What the frames of an exchange say.

Pure. A head is a line of JSON and the headers like on the wire, without credentials; an end is JSON. It is said for every exchange while
it passes, so what exchanges have in common is remembered, and the rest put together with as few calls as it takes.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache

from fiedler_proxy.exchange import Exchange
from kgb_gateway.redact import Redactor

_TRUTH = ("false", "true")

_quote = json.encoder.encode_basestring_ascii


def request_head(exchange: Exchange, redactor: Redactor, record: str) -> bytes:
    """What the first frame of ``exchange`` says; ``record``: how much of it is recorded."""
    lines, prints = redactor.head(exchange.request_headers, exchange.request_shape)
    said = (
        f'{{"id":{_quote(exchange.id)},"at":{_seconds(exchange.started_at)},"target":{redactor.quoted_target(exchange.target)},'
        f"{_how(record, exchange.version, exchange.method, exchange.remote)},{who_of(exchange)},"
        f'"fingerprints":{_pairs(prints) if prints else "{}"}}}\n'
    )
    return said.encode("ascii") + lines


def response_head(exchange: Exchange, redactor: Redactor) -> bytes:
    """What is said of the answer's head."""
    lines, prints = redactor.head(exchange.response_headers, exchange.response_shape)
    said = _answer(exchange.status, exchange.reason)
    return (said + lines) if not prints else said[:-4] + _pairs(prints).encode("ascii") + b"}\n" + lines


def _seconds(value: float) -> str:
    """``value``, to the microsecond, as a JSON number: a third of the time that ``repr`` takes."""
    return f"{int(value * 1e6)}e-6"


def who_of(exchange: Exchange) -> str:
    """Members of a JSON object: who asked, and where the exchange went."""
    upstream = exchange.upstream.name if exchange.upstream is not None else ""
    return _who(exchange.caller, exchange.route, exchange.slot, upstream)


@lru_cache(1024)
def _answer(status: int, reason: str) -> bytes:
    """The line before a response's headers, with no fingerprints: its last four bytes are ``{}}`` and the end of the line."""
    return f'{{"status":{status},"reason":{_quote(reason)},"fingerprints":{{}}}}\n'.encode("ascii")


@lru_cache(1024)
def _how(record: str, version: tuple[int, int], method: str, remote: str) -> str:
    return (
        f'"record":"{record}","version":[{version[0]},{version[1]}],"method":{_quote(method)},"remote":{_quote(remote)}'
    )


@lru_cache(1024)
def _who(caller: str, route: str, slot: str, upstream: str) -> str:
    return f'"caller":{_quote(caller)},"route":{_quote(route)},"slot":{_quote(slot)},"upstream":{_quote(upstream)}'


def end_of(exchange: Exchange) -> bytes:
    """What the last frame of a closed ``exchange`` says, as JSON. Times are seconds since its beginning."""
    first, ended, started = exchange.first_byte, exchange.ended, exchange.started
    facts = "{}"
    if exchange.facts:
        facts = _pairs({str(name)[:128]: str(value)[:512] for name, value in list(exchange.facts.items())[:32]})
    return (
        f'{{"outcome":"{exchange.outcome}","error":{_quote(exchange.error_code)},"status":{exchange.status},'
        f'"request_size":{exchange.request_size},"response_size":{exchange.response_size},'
        f'"first_byte":{"null" if first is None else _seconds(first - started)},'
        f'"duration":{"null" if ended is None else _seconds(ended - started)},{who_of(exchange)},'
        f'"attempts":{exchange.attempts},"transformed":{_TRUTH[exchange.transformed]},'
        f'"tunnelled":{_TRUTH[exchange.tunnelled]},"facts":{facts}}}'
    ).encode("ascii")


def key_of(exchange_id: str) -> bytes:
    """The 16 bytes under which an exchange is recorded: its UUID, or a hash of what a link put in its place."""
    digits = exchange_id.replace("-", "")
    try:
        if len(digits) == 32:
            return bytes.fromhex(digits)
    except ValueError:
        pass
    return hashlib.blake2b(exchange_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _pairs(said: Mapping[str, str]) -> str:
    """A JSON object of texts: a third of the time that ``json.dumps`` takes."""
    return "{" + ", ".join([f"{_quote(name)}: {_quote(text)}" for name, text in said.items()]) + "}"

"""HAR 1.2 (HTTP Archive): for tools that show HTTP. Bodies as they passed; ``imports.read_har`` reads it again.

What HAR has no member for stands under ``_kgb``, as the format allows.
"""

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO
from urllib.parse import parse_qsl

from kgb_gateway.dewey.document import Conversation, Headers, Turn
from kgb_gateway.dewey.texts import json_text, timestamp
from kgb_gateway.dewey.transcripts.model import Json

_HEAD = b'{"log":{"version":"1.2","creator":{"name":"kgb","version":"1"},"entries":['
_FOOT = b"\n]}}\n"


def write(conversations: Iterable[Conversation], out: BinaryIO, progress: Callable[[int], None] | None = None) -> None:
    """Write one archive with all exchanges to ``out``. It is valid JSON once this returns, not before."""
    out.write(_HEAD)
    written = 0
    for conversation in conversations:
        for turn in conversation.turns:
            out.write((b",\n" if written else b"\n") + json_text(entry(turn)).encode("utf-8"))
            written += 1
            if progress is not None:
                progress(written)
    out.write(_FOOT)


def entry(turn: Turn) -> dict[str, Json]:
    """One exchange as an entry of the archive."""
    duration = turn.duration or 0.0
    wait = min(turn.first_byte if turn.first_byte is not None else duration, duration)
    timings: dict[str, Json] = {"send": 0, "wait": _milliseconds(wait), "receive": _milliseconds(duration - wait)}
    return {
        "startedDateTime": timestamp(turn.at),
        "time": _milliseconds(duration),
        "request": _request(turn),
        "response": _response(turn),
        "cache": {},
        "timings": timings,
        "comment": "; ".join(turn.notes),
        "_kgb": _own(turn),
    }


def _request(turn: Turn) -> dict[str, Json]:
    query = turn.target.partition("?")[2].partition("#")[0]
    request: dict[str, Json] = {
        "method": turn.method,
        "url": _url(turn),
        "httpVersion": "HTTP/1.1",
        "cookies": [],
        "headers": _headers(turn.request_headers),
        "queryString": [{"name": name, "value": value} for name, value in _pairs(query)],
        "headersSize": -1,
        "bodySize": turn.request_size,
    }
    if turn.request_body is not None:
        # The format has base64 for responses only; the underscore marks what it does not know.
        request["postData"] = {
            "mimeType": _type(turn.request_headers),
            "params": [],
            **_text(turn.request_body, "_encoding"),
        }
    return request


def _response(turn: Turn) -> dict[str, Json]:
    content: dict[str, Json] = {"size": turn.response_size, "mimeType": _type(turn.response_headers)}
    if turn.response_body is not None:
        content |= _text(turn.response_body, "encoding")
    else:
        content["comment"] = "the body is not kept"
    return {
        "status": turn.status,
        "statusText": "",
        "httpVersion": "HTTP/1.1",
        "cookies": [],
        "headers": _headers(turn.response_headers),
        "content": content,
        "redirectURL": _first(turn.response_headers, "location"),
        "headersSize": -1,
        "bodySize": turn.response_size,
    }


def _own(turn: Turn) -> Mapping[str, Json]:
    facts: dict[str, Json] = {
        "exchange": turn.exchange,
        "target": turn.target,
        "upstream": turn.upstream,
        "outcome": turn.outcome,
        "caller": turn.caller,
        "session": turn.session,
        "conversation": turn.conversation,
        "model": turn.model,
        "partial": turn.partial,
        "transformed": turn.transformed,
        "request_sha256": turn.request_sha256,
        "response_sha256": turn.response_sha256,
    }
    return {name: value for name, value in facts.items() if value or name == "exchange"}


def _url(turn: Turn) -> str:
    """HAR wants an absolute URL; where only the upstream's name is known, it stands in the reserved domain of RFC 2606."""
    if "://" in turn.target.partition("?")[0]:
        return turn.target
    name = "".join(char if char.isascii() and char.isalnum() else "-" for char in turn.upstream) or "unknown"
    base = turn.upstream.rstrip("/") if "://" in turn.upstream else f"http://{name}.invalid"
    return base + (turn.target if turn.target.startswith("/") else f"/{turn.target}")


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, errors="replace")
    except ValueError:
        return []


def _text(body: bytes, encoding: str) -> dict[str, Json]:
    try:
        return {"text": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"text": base64.b64encode(body).decode("ascii"), encoding: "base64"}


def _headers(headers: Headers) -> list[Json]:
    return [{"name": name, "value": value} for name, value in headers]


def _first(headers: Headers, wanted: str) -> str:
    return next((value for name, value in headers if name.lower() == wanted), "")


def _type(headers: Headers) -> str:
    return _first(headers, "content-type") or "application/octet-stream"


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3) if 0 <= seconds < 1e12 else 0.0

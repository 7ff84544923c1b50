"""HAR 1.2 (HTTP Archive), as browsers, proxies and our own export write it: the exchanges with model APIs in it.

Pure. Owns which request targets are those of a model API. What comes out has its bodies and no messages yet: reading those is
the same work as for what the gateway recorded, and done by the same code.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from urllib.parse import urlsplit

from fiedler_proxy.headers import CREDENTIALS, REDACTED
from kgb_gateway.dewey.document import Headers, Turn
from kgb_gateway.dewey.transcripts.model import Dialect, Json
from kgb_gateway.redact import Redactor

from .lines import Fault, OnFault, parse, stable_id
from .pieces import EndsEarly, entries

_PATHS = (
    (re.compile(r"/v\d+/messages/?$|/model/[^/]+/invoke(?:-with-response-stream)?$|:(?:stream)?rawPredict$", re.IGNORECASE),
     Dialect.ANTHROPIC_MESSAGES),
    (re.compile(r"/chat/completions/?$"), Dialect.OPENAI_CHAT),
    (re.compile(r"/responses/?$"), Dialect.OPENAI_RESPONSES),
    (re.compile(r"(?<!/chat)/completions/?$"), Dialect.OPENAI_COMPLETIONS),
    (re.compile(r":(?:stream)?generateContent$", re.IGNORECASE), Dialect.GEMINI),
    (re.compile(r"/v\d[\w.]*/interactions/?$"), Dialect.GEMINI_INTERACTIONS),
)  # fmt: skip
"""Paths by their end: what stands before it differs by provider and gateway."""


_REDACTOR = Redactor(b"")
"""For targets only: a browser's archive holds credentials in the clear, and none comes out of here."""


def dialect_of(target: str) -> Dialect | None:
    """The dialect that is spoken at a request target, by its path; None for everything that is no model API."""
    path = target.partition("?")[0]
    return next((dialect for pattern, dialect in _PATHS if pattern.search(path)), None)


def read_har(pieces: Iterable[str | bytes], on_fault: OnFault) -> Iterator[Turn]:
    """The exchanges of an archive, those with model APIs and all of our own. ``pieces``: its text, cut anywhere; one entry is held at a time.

    Turns carry their bodies in ``request_body`` and ``response_body``. ``facts["encoded"]`` is True where the response is still under
    its Content-Encoding (ours are; browsers write decoded text, and keep the header). Faults count entries, from 1.
    """
    number = 0
    try:
        for number, text in enumerate(entries(pieces), 1):
            try:
                turn = _turn(parse(text))
            except ValueError as fault:
                on_fault(Fault(number, str(fault)))
                continue
            if turn is not None:
                yield turn
    except UnicodeDecodeError:
        on_fault(Fault(number + 1, "not UTF-8: nothing is read from here on"))
    except EndsEarly as fault:
        on_fault(Fault(number + 1, str(fault)))


def _turn(entry: Json) -> Turn | None:
    request, response = _member(entry, "request"), _member(entry, "response")
    own = _member(entry, "_kgb", {})
    url = request.get("url")
    if not isinstance(url, str):
        raise ValueError("request.url is missing")
    upstream, target = _split(url)
    target, upstream = _text(own.get("target")) or target, _text(own.get("upstream")) or upstream
    dialect = dialect_of(target)
    if dialect is None and not own:
        return None
    body, answer = _request_body(request), _response_body(response)
    at = _when(entry)
    time = _milliseconds(_value(entry, "time"))
    timings = _member(entry, "timings", {})
    waits = [_milliseconds(timings.get(name)) for name in ("blocked", "dns", "connect", "send", "wait")]
    wait = waits[-1] if own else sum(found or 0.0 for found in waits) if waits[-1] is not None else None
    method, status = _text(request.get("method")), _status(response.get("status"))
    digest = hashlib.sha256(body or b"").hexdigest()
    started = _text(_value(entry, "startedDateTime"))
    return Turn(
        _text(own.get("exchange")) or stable_id("har", started, method, url, digest),
        at=at,
        duration=time,
        first_byte=wait if status else None,
        upstream=upstream,
        method=method,
        target=target,
        dialect=dialect,
        status=status,
        outcome=_text(own.get("outcome")) or ("completed" if status else "interrupted"),
        caller=_text(own.get("caller")),
        session=_text(own.get("session")),
        source="har",
        request_size=len(body or b""),
        response_size=len(answer or b""),
        request_sha256=digest if body is not None else "",
        response_sha256=hashlib.sha256(answer).hexdigest() if answer is not None else "",
        raw_kept=body is not None or answer is not None,
        request_headers=_headers(request),
        response_headers=_headers(response),
        request_body=body,
        response_body=answer,
        facts={"encoded": bool(own)},
    )


def _value(entry: Json, name: str) -> Json:
    return entry.get(name) if isinstance(entry, Mapping) else None


def _member(entry: Json, name: str, default: Mapping[str, Json] | None = None) -> Mapping[str, Json]:
    value = _value(entry, name)
    if isinstance(value, Mapping):
        return value
    if default is None:
        raise ValueError(f"{name} is missing")
    return default


def _text(value: Json) -> str:
    return value if isinstance(value, str) else ""


def _status(value: Json) -> int:
    return value if type(value) is int and 0 < value < 1000 else 0


def _milliseconds(value: Json) -> float | None:
    """Seconds; None for what is unknown, -1 in HAR."""
    if type(value) not in (int, float) or not 0 <= value < 1e15:  # type: ignore[operator]
        return None
    return value / 1000  # type: ignore[operator]


def _when(entry: Json) -> float:
    try:
        found = datetime.fromisoformat(_text(_value(entry, "startedDateTime")))
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError("startedDateTime is no point in time") from None


def _split(url: str) -> tuple[str, str]:
    """Origin and request target, without user and password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("request.url is no URL") from None
    origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else ""
    return origin, _REDACTOR.target((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


def _headers(message: Mapping[str, Json]) -> Headers:
    pairs: list[tuple[str, str]] = []
    headers = message.get("headers")
    for header in headers if isinstance(headers, list) else ():
        name, value = _text(_value(header, "name")), _text(_value(header, "value"))
        if name:
            pairs.append((name, REDACTED if name.lower().encode("utf-8", "replace") in CREDENTIALS else value))
    return tuple(pairs)


def _request_body(request: Mapping[str, Json]) -> bytes | None:
    data = request.get("postData")
    return _content(data, "_encoding") if isinstance(data, Mapping) else None


def _response_body(response: Mapping[str, Json]) -> bytes | None:
    content = response.get("content")
    return _content(content, "encoding") if isinstance(content, Mapping) else None


def _content(content: Mapping[str, Json], encoding: str) -> bytes | None:
    text = content.get("text")
    if not isinstance(text, str):
        return None
    named = content.get(encoding, content.get("encoding"))
    if named == "base64":
        try:
            return base64.b64decode(text)
        except (binascii.Error, ValueError):
            raise ValueError("a body is not the base64 that it claims to be") from None
    if named:
        raise ValueError(f"a body is in an unknown encoding, {str(named)[:40]!r}")
    return text.encode("utf-8", "surrogatepass")

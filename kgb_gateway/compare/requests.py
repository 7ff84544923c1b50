"""What is asked: the built-in requests, requests from files, headers and keys from the environment.

Pure but for reading the files it is told to read. It owns the secrets: values from the environment go into requests
and never into a message.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from fiedler_proxy.headers import CREDENTIALS, REDACTED

Headers = tuple[tuple[str, str], ...]

MIN_SECRET = 4
"""Shorter values are not masked: they would blot out half the report."""

PROMPT = "Count from one to twenty in words, separated by single blanks. Write nothing else."

KEY_HEADERS: Mapping[str, tuple[str, str, str]] = {
    "ANTHROPIC_API_KEY": ("anthropic", "x-api-key", ""),
    "ANTHROPIC_AUTH_TOKEN": ("anthropic", "Authorization", "Bearer "),
    "OPENAI_API_KEY": ("openai", "Authorization", "Bearer "),
    "GEMINI_API_KEY": ("gemini", "x-goog-api-key", ""),
}
"""Well-known key variables: for which dialect's requests, in which header, with which prefix."""

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST_LINE = re.compile(r"([A-Za-z-]+) (\S+)(?: HTTP/1\.1)?")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_FRAMING = ("host", "content-length", "transfer-encoding", "connection")


class RequestError(ValueError):
    """A header, key or request file cannot be used; the message says which, why, and what to write instead."""


@attrs.frozen
class Request:
    """One request to send both ways. ``dialect`` decides which keys it gets: its own vendor's (anthropic, openai), any (""), no
    vendor's (none)."""

    name: str
    method: str
    target: str
    headers: Headers = ()
    body: bytes = b""
    dialect: str = ""

    def with_headers(self, extra: Iterable[tuple[str, str]], *, replace: bool) -> "Request":
        """The request with ``extra`` headers; they replace those of the same name, or else give way to them."""
        extra = tuple(extra)
        given = {name.lower() for name, _ in (extra if replace else self.headers)}
        if replace:
            kept = tuple(pair for pair in self.headers if pair[0].lower() not in given)
            return attrs.evolve(self, headers=kept + extra)
        return attrs.evolve(self, headers=self.headers + tuple(pair for pair in extra if pair[0].lower() not in given))


@attrs.frozen
class Secrets:
    """Reads the environment, and remembers what it read so that it can be masked."""

    environ: Mapping[str, str]
    values: set[str] = attrs.field(factory=set)

    def expand(self, text: str, where: str) -> str:
        """``text`` with ``$NAME`` and ``${NAME}`` replaced; RequestError for a variable that is not set."""

        def value(match: re.Match[str]) -> str:
            return self.take(match[1] or match[2], where)

        return _VARIABLE.sub(value, text)

    def take(self, name: str, where: str) -> str:
        """The value of one variable; RequestError when it is not set or empty."""
        value = self.environ.get(name, "").strip()
        if not value:
            raise RequestError(f"{where}: the environment variable {name} is not set; export {name}=... first")
        self.values.add(value)
        return value

    def mask(self, text: str) -> str:
        """``text`` without any of the values read so far."""
        for value in sorted(self.values, key=len, reverse=True):
            if len(value) >= MIN_SECRET:
                text = text.replace(value, REDACTED)
        return text


def parse_header(text: str, secrets: Secrets, where: str = "--header") -> tuple[str, str]:
    """``Name: value`` with variables expanded. A credential written out is refused: it would show in the process list."""
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not _TOKEN.fullmatch(name):
        raise RequestError(f"{where}: a header is written 'Name: value'")
    if name.lower() in _FRAMING:
        raise RequestError(f"{where}: {name} is set by kgb compare itself; leave it out")
    if name.lower().encode() in CREDENTIALS and value and not _VARIABLE.search(value):
        raise RequestError(f"{where}: {name} holds a credential; take it from the environment: '{name}: $VARIABLE'")
    value = secrets.expand(value, where)
    if any((ord(c) < 32 and c != "\t") or ord(c) > 255 or ord(c) == 127 for c in value):
        raise RequestError(f"{where}: the value of {name} holds a character that no header may have")
    return name, value


def with_keys(requests: Iterable[Request], names: Iterable[str], secrets: Secrets) -> list[Request]:
    """``requests`` with the keys of the environment variables ``names``, where they hold no credential of their own.

    A well-known name goes to its own dialect's requests in its own header; any other as a bearer token to all.
    """
    result = list(requests)
    for name in names:
        dialect, header, prefix = KEY_HEADERS.get(name, ("", "Authorization", "Bearer "))
        pair = parse_header(f"{header}: {prefix}${{{name}}}", secrets, f"--key-env {name}")
        result = [
            one.with_headers([pair], replace=False) if dialect in ("", one.dialect) or not one.dialect else one
            for one in result
        ]
    return result


def read_request(path: Path, secrets: Secrets) -> Request:
    """A request from a file: ``METHOD /target``, header lines, an empty line, the body as it is.

    Host and Content-Length are set by the client, so lines that give them are passed over. RequestError says what is
    wrong where.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RequestError(f"--request {path}: {error.strerror or error}") from None
    head, *rest = _HEAD_END.split(raw, maxsplit=1)
    lines = head.decode("latin-1").splitlines()
    match = _REQUEST_LINE.fullmatch(lines[0].strip()) if lines else None
    if match is None or not (match[2].startswith("/") or match[2] == "*"):
        raise RequestError(f"--request {path}: the first line must be METHOD /path, for example: POST /v1/messages")
    headers = [
        parse_header(line, secrets, f"--request {path}, line {number}")
        for number, line in enumerate(lines[1:], 2)
        if line.strip() and line.partition(":")[0].strip().lower() not in _FRAMING
    ]
    dialect = "anthropic" if any(name.lower() == "anthropic-version" for name, _ in headers) else ""
    return Request(f"{match[1]} {match[2]} ({path.name})", match[1], match[2], tuple(headers), b"".join(rest), dialect)


_AGENT = ("User-Agent", "kgb-compare")
_JSON = ("Content-Type", "application/json")
_VERSION = ("anthropic-version", "2023-06-01")


def builtin(model: str = "claude-haiku-4-5", openai_model: str = "gpt-5-mini") -> list[Request]:
    """What is asked when no file is given: what agents do at start, a turn in each dialect, and errors."""
    unknown = "/v1/kgb-compare/no%2Fsuch%3Apath//x?a=%20b&c"
    return [
        Request("HEAD /", "HEAD", "/", (_AGENT,), dialect="none"),
        _anthropic("models", "GET", "/v1/models?limit=3"),
        _anthropic("message", "POST", "/v1/messages", _message(model)),
        _anthropic("message stream", "POST", "/v1/messages?beta=true", _message(model) | {"stream": True}),
        _anthropic("count tokens", "POST", "/v1/messages/count_tokens", _counted(model)),
        _anthropic("invalid body", "POST", "/v1/messages", b'{"model": '),
        _openai("unknown path", "GET", unknown),
        _openai("chat", "POST", "/v1/chat/completions", _chat(openai_model)),
        _openai("chat stream", "POST", "/v1/chat/completions", _chat(openai_model) | {"stream": True}),
        _openai("responses stream", "POST", "/v1/responses", _responses(openai_model) | {"stream": True}),
    ]


def _anthropic(name: str, method: str, target: str, document: object = None) -> Request:
    return _request(name, method, target, document, "anthropic", (_AGENT, _VERSION))


def _openai(name: str, method: str, target: str, document: object = None) -> Request:
    return _request(name, method, target, document, "openai", (_AGENT,))


def _request(name: str, method: str, target: str, document: object, dialect: str, headers: Headers) -> Request:
    if document is None:
        body = b""
    else:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        headers = (*headers, _JSON)
    return Request(f"{method} {target} ({name})", method, target, headers, body, dialect)


def _counted(model: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}]}


def _message(model: str) -> dict[str, object]:
    return {"model": model, "max_tokens": 200, "messages": [{"role": "user", "content": PROMPT}]}


def _chat(model: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}]}


def _responses(model: str) -> dict[str, object]:
    return {"model": model, "input": PROMPT, "store": False}

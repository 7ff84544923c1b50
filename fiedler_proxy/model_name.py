"""The model that a request names: found without parsing the body, changed without touching any other byte.

Pure. A body is scanned token by token, so that a 30 MB one costs no tree of objects, and what comes back is a place in it.
"""

import json
import re

import attrs

SCAN_CAP = 32 * 1024 * 1024
"""Bytes of a body that are held to look for its model, and to be sent again: a longer one is routed without its model, and once."""

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]:,]|[^\s"{}\[\]:,]++', re.DOTALL)
_OPEN, _CLOSE = frozenset((b"{", b"[")), frozenset((b"}", b"]"))
_KEY = b'"model"'
_PATH = re.compile(r"/models/([^/:?]+)(?::\w+)?(?:\?|$)|/model/([^/?]+)/(?:invoke|converse)")


class AmbiguousModel(ValueError):
    """A body names its model twice, and who reads it next may take the other one."""


@attrs.frozen
class Named:
    """A model and where its JSON string stands in the body: ``start`` to ``end``, quotes included."""

    name: str
    start: int
    end: int


def model_in(body: bytes) -> Named | None:
    """What the top-level member ``model`` of a JSON object says. None where there is none, or the body is no such object.
    AmbiguousModel when there are two."""
    spelled, escaped = body.count(_KEY), b"\\u006" in body  # each letter of the word can be written so
    if not spelled and not escaped:
        return None
    once = spelled == 1 and not escaped
    found: Named | None = None
    depth, at_key, wanted = 0, False, False
    for match in _TOKEN.finditer(body):
        token = match[0]
        if token in _OPEN:
            depth += 1
            if depth == 1 and token != b"{":
                return None
            at_key = depth == 1
            wanted = False
        elif token in _CLOSE:
            depth -= 1
            if depth <= 0:
                break
        elif depth == 1:
            if token == b",":
                at_key = True
            elif token == b":":
                continue
            elif at_key:
                at_key, wanted = False, _is_key(token)
            elif wanted:
                wanted = False
                if found is not None:
                    raise AmbiguousModel("the body has two members called model")
                found = _named(match)
                if once:
                    break  # most clients name it first: what comes behind need not be looked at
    return found


def _is_key(token: bytes) -> bool:
    return token == _KEY or (b"\\" in token and _text(token) == "model")


def _named(match: "re.Match[bytes]") -> Named | None:
    name = _text(match[0])
    return Named(name, match.start(), match.end()) if name is not None else None


def _text(token: bytes) -> str | None:
    try:
        value = json.loads(token)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def model_in_path(path: str) -> str:
    """The model that a path names (Gemini, Vertex AI, Bedrock), "" for none."""
    match = _PATH.search(path)
    return (match[1] or match[2]) if match else ""


def with_model(body: bytes, named: Named, model: str) -> bytes:
    """``body`` with ``model`` in the place of the one it names; every other byte stays."""
    return body[: named.start] + json.dumps(model, ensure_ascii=False).encode() + body[named.end :]

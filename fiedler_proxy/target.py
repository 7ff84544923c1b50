"""What a request target may be, and what of it goes upstream (RFC 9112 section 3.2).

Pure. The target is never normalised, decoded or re-quoted: what the caller wrote is what the upstream reads. The
upstream's host never comes from here.
"""

import re

import attrs

_ABSOLUTE = re.compile(r"(?i:https?)://([^/?#]*)(.*)", re.DOTALL)
_BAD = re.compile(r"[^\x21-\x7e]|#")


class TargetError(ValueError):
    """The request target is none that RFC 9112 allows for an origin server; the message says why."""


@attrs.frozen
class Target:
    """``sent``: origin-form (or ``*``), raw; ``authority``: host and port an absolute-form target named, else None."""

    sent: str
    authority: str | None = None


def is_plain(raw: str) -> bool:
    """Whether ``raw`` is what nearly every request has: origin-form, with nothing in it to object to."""
    return raw[:1] == "/" and _BAD.search(raw) is None


def parse_target(method: str, raw: str) -> Target:
    """Check ``raw`` as the server received it; TargetError for what must be answered 400.

    Bytes >= 0x80 and ``#`` are refused rather than encoded: no two parties would agree on what they mean.
    """
    if _BAD.search(raw):
        raise TargetError("the request target holds '#', a space, a control character or a byte >= 0x80")
    if raw.startswith("/"):
        return Target(raw)
    if raw == "*":
        if method == "OPTIONS":
            return Target(raw)
        raise TargetError("the target * belongs to OPTIONS alone")
    match = _ABSOLUTE.fullmatch(raw)
    if match is None:
        raise TargetError("the request target begins with neither / nor http(s)://")
    authority, rest = match.groups()
    if not authority or "@" in authority:
        raise TargetError("the absolute-form target names no host, or carries user information")
    return Target(_origin_form(method, rest), authority)


def _origin_form(method: str, rest: str) -> str:
    """RFC 9112 section 3.2.1 and 3.2.4: an empty path is ``/``, or ``*`` for OPTIONS."""
    if rest.startswith("/"):
        return rest
    if not rest and method == "OPTIONS":
        return "*"
    return "/" + rest


def path_of(target: str) -> str:
    """``target`` without its query: what may be logged."""
    return target.partition("?")[0]

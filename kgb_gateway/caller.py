"""Who is asking, and what that one may ask for: the caller of an exchange and the scopes of its key.

Pure. Knows neither tokens nor files.
"""

import re
from collections.abc import Iterable
from urllib.parse import unquote

import attrs

_PATH_SCOPE = re.compile(r"path:(/[!-~]*)")
_DECODINGS = 3
"""How many layers of percent-encoding are looked through; one server decodes one, a lax one two."""


@attrs.frozen
class Caller:
    """``name`` and ``key_id`` of the key that was shown, or "" for both where none was asked for.

    ``scopes``: what the key may be used for; none means everything.
    """

    name: str = ""
    key_id: str = ""
    scopes: tuple[str, ...] = ()

    def may_ask(self, path: str) -> bool:
        """Whether the scopes cover ``path`` (raw, without query)."""
        return not self.scopes or any(covers(scope, path) for scope in self.scopes)


ANONYMOUS = Caller()
"""A caller who needed no key and showed none."""


def check_scopes(words: Iterable[str]) -> tuple[str, ...]:
    """``words`` without repetition, in order. ValueError names the first that is no scope.

    There is one kind so far: ``path:/v1/messages`` covers that path and everything below it. It reads the path and
    nothing else of a request, because everything else that tells one API from another is the caller's own word.
    """
    scopes = tuple(dict.fromkeys(words))
    for word in scopes:
        match = _PATH_SCOPE.fullmatch(word)
        if match is None:
            raise ValueError(f"unknown scope {word!r}; write path:/PREFIX, for example path:/v1/messages")
        if not _is_plain(match[1]) or any(mark in match[1] for mark in "?#%"):
            raise ValueError(f"the scope {word!r} must be a plain path: no dot segments, no ?, # or %")
    return scopes


def covers(scope: str, path: str) -> bool:
    """Whether one scope covers ``path``: the same path, or one that goes on after a ``/`` or ``:``.

    (``:`` begins a method in Google's APIs: ``/v1beta/models/gemini-2.5-pro:generateContent``.) A path that a server
    could read as leading somewhere else is covered by nothing.
    """
    prefix = scope.removeprefix("path:").rstrip("/")
    if not path.startswith(prefix) or not _is_plain(path):
        return False
    return path[len(prefix) : len(prefix) + 1] in ("", "/", ":")


def _is_plain(path: str) -> bool:
    """Whether no segment is ``.`` or ``..``, however it is written (RFC 3986 section 6.2.2: %2e, encoded slashes)."""
    for _ in range(_DECODINGS):
        segments = path.replace("\\", "/").split("/")
        if any(segment.partition(";")[0] in (".", "..") for segment in segments):
            return False
        decoded = unquote(path)
        if decoded == path:
            return True
        path = decoded
    return False

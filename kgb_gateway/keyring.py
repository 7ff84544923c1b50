"""The keys in force: which token is whose, now.

Owns the running gateway's view of the keys file: it follows every change at once, and no damage to the file ever lets
more callers in than before. It never writes the file and never logs a token.

Nothing is cached by token: one keyed hash takes about a microsecond, and so no token stays in memory for longer than its request.
"""

import enum
import hmac
import logging
import os
import time
from pathlib import Path

from kgb_gateway.caller import Caller
from kgb_gateway.keys_file import (
    REFRESH_SECONDS,
    TOKEN,
    TOKEN_MARK,
    Document,
    Key,
    KeysFileError,
    Signature,
    read_keys_file,
    signature_of,
)

_NO_DIGEST = bytes(32)  # no keyed hash anybody could find

_NOBODY: tuple[None, None] = (None, None)

_log = logging.getLogger("kgb.keys")


class State(enum.StrEnum):
    """What is known of the keys file.

    ``absent``: there never was one since the start. ``in_force``: its keys decide (those of its last good version,
    while it is damaged). ``gone``: it was there and is no more. ``unusable``: it is there, and was never good.
    """

    ABSENT = "absent"
    IN_FORCE = "in_force"
    GONE = "gone"
    UNUSABLE = "unusable"


class Verdict(enum.StrEnum):
    """What a value is. ``foreign``: no token of ours. ``wrong``: it bears the id of one of our keys, and is not it."""

    VALID = "valid"
    FOREIGN = "foreign"
    WRONG = "wrong"
    REVOKED = "revoked"
    EXPIRED = "expired"


class Keyring:
    """The keys of one file. Call ``refresh_if_due`` once for each request, then ``check`` and ``holds_key``."""

    def __init__(self, path: Path | None) -> None:
        """``path`` None: there is no file and never will be."""
        self.path = path
        self._file = str(path)  # a Path makes its text anew for every look
        self.state = State.ABSENT
        self._document = Document(b"\0" * 32)
        self._keys: dict[bytes, tuple[Key, Caller]] = {}
        self._seen: Signature | str | None = None
        self._due = 0.0

    def load(self) -> None:
        """Read the file for the first time. KeysFileError when it is there and cannot be trusted."""
        if self.path is None:
            return
        try:
            self._adopt(*read_keys_file(self.path))
        except FileNotFoundError:
            self.state = State.ABSENT

    def refresh_if_due(self) -> None:
        """``refresh``, unless that was less than REFRESH_SECONDS ago."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + REFRESH_SECONDS
            self.refresh()

    def refresh(self) -> None:
        """Follow the file: one ``stat``, and a read when anything about it has changed. Never raises."""
        if self.path is None:
            return
        try:
            seen: Signature | str = signature_of(os.stat(self._file))
        except FileNotFoundError:
            if self.state is not State.ABSENT and self.state is not State.GONE:
                self._lose()
            return
        except OSError as error:
            seen = error.strerror or "error"
        if seen != self._seen:
            self._reload(self.path, seen)

    def _reload(self, path: Path, seen: Signature | str) -> None:
        try:
            self._adopt(*read_keys_file(path))
            _log.info("%d keys of %s are in force", len(self._keys), path)
        except FileNotFoundError:
            # It went between the two looks; the next request sees that for itself.
            return
        except KeysFileError as error:
            self._seen = seen
            if self.state is State.IN_FORCE:
                _log.error("%s; the keys it held before stay in force", error)
            else:
                self.state = State.UNUSABLE
                _log.error("%s; until then no key is accepted", error)

    def _adopt(self, document: Document, seen: Signature) -> None:
        self._document = document
        self._keys = {key.id.encode(): (key, Caller(key.name, key.id, key.scopes)) for key in document.keys}
        self._seen = seen
        self.state = State.IN_FORCE

    def _lose(self) -> None:
        # The keys stay known, so that their tokens are still recognised and never sent to a provider.
        self.state = State.GONE
        self._seen = None
        _log.error("the keys file %s is gone; no key is accepted until it is back", self.path)

    def check(self, value: bytes) -> tuple[Verdict, Caller | None]:
        """What ``value`` (a token, no scheme before it) is; the caller unless it is foreign or wrong.

        Whatever has the form of a token costs one keyed hash and one comparison in constant time, its id known or not.
        """
        mark = TOKEN_MARK.match(value)
        if mark is None:
            return Verdict.FOREIGN, None
        key, caller = self._keys.get(mark[1], _NOBODY)
        digest = self._document.digest(value) if TOKEN.fullmatch(value) else _NO_DIGEST
        if key is None or caller is None:
            hmac.compare_digest(_NO_DIGEST, digest)
            return Verdict.WRONG if self._knows(mark[1]) else Verdict.FOREIGN, None
        matching = None
        for entry in key.hashes:
            if hmac.compare_digest(entry.digest, digest):
                matching = matching or entry
        if matching is None or self.state is not State.IN_FORCE:
            return Verdict.WRONG, None
        if key.revoked is not None:
            return Verdict.REVOKED, caller
        now = time.time()
        if _past(matching.until, now) or _past(key.expires, now):
            return Verdict.EXPIRED, caller
        return Verdict.VALID, caller

    def holds_key(self, data: bytes) -> bool:
        """Whether the token of one of our keys, revoked or damaged ones included, stands anywhere in ``data``."""
        return any(self._knows(match[1]) for match in TOKEN_MARK.finditer(data))

    def _knows(self, key_id: bytes) -> bool:
        # While the file cannot be read, every token may be one of ours.
        return key_id in self._keys or self.state is State.UNUSABLE


def _past(moment: float | None, now: float) -> bool:
    return moment is not None and moment <= now

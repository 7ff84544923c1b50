"""Keys of providers: read from where they are kept, in turn, with those at rest that were turned away.

Owns no key for longer than it must: a file is read again when it has changed, so that a key is rotated without a restart.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import attrs

from fiedler_proxy.slot_choice import fraction

LOOK_SECONDS = 1.0
"""How often a file is looked at."""

SIGNER_KINDS = ("aws", "google")
"""Sources that a vendor's library reads: a profile, or its defaults."""

KINDS = ("env", "file", "credential", *SIGNER_KINDS)

COOL_SECONDS = 30.0
"""How long a key rests after a 429 that names no time."""

UNAUTHORIZED_SECONDS = 300.0
"""How long a key rests that was refused (401, 403) or is not paid for (402)."""

COOL_MOST = 3600.0


def wrong_source(text: str) -> str:
    """What is wrong with the name of a source, "" for nothing. A key itself in its place is not repeated."""
    kind, colon, name = text.partition(":")
    if not colon or kind not in KINDS or not name:
        return "names no source of a key: write env:NAME, file:/path or credential:NAME; a key itself does not belong into the configuration"
    return ""


@attrs.define(eq=False)
class Key:
    """One key, by the name of its source; ``rests_until`` in seconds of the monotonic clock. ``line``: what it says, and the header line that
    was made of it."""

    source: str
    environ: Mapping[str, str]
    base: Path
    rests_until: float = 0.0
    line: tuple[str, bytes] = attrs.field(default=("", b""), repr=False)
    _secret: str = attrs.field(default="", repr=False)
    _seen: tuple[int, int, int] | None = None
    _looked: float = 0.0

    def read(self, now: float) -> str:
        """The key. LookupError, which names the source and never the key, when there is none."""
        kind, _, name = self.source.partition(":")
        if kind == "env":
            secret = self.environ.get(name, "").strip()
            if not secret:
                raise LookupError(f"{self.source}: the variable is not set")
            return secret
        if not self._looked or now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look(self._path(kind, name))
        if not self._secret:
            raise LookupError(f"{self.source}: nothing is in it")
        return self._secret

    def _path(self, kind: str, name: str) -> Path:
        if kind == "credential":  # systemd.exec(5), LoadCredential=
            directory = self.environ.get("CREDENTIALS_DIRECTORY", "")
            if not directory:
                raise LookupError(f"{self.source}: systemd gave no credentials (CREDENTIALS_DIRECTORY is not set)")
            return Path(directory) / name
        return self.base / Path(name).expanduser()

    def _look(self, path: Path) -> None:
        try:
            status = path.stat()
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen != self._seen:
                self._secret, self._seen = path.read_text(encoding="utf-8").strip(), seen
        except (OSError, UnicodeDecodeError) as error:
            if not self._secret:  # one that is being replaced may be gone for a moment
                why = error.strerror if isinstance(error, OSError) else "it is no text"
                raise LookupError(f"{self.source}: {path} cannot be read: {why}") from None


@attrs.define(eq=False)
class KeyRing:
    """The keys of one provider, taken in turn; a session keeps to the same one, whose prompt cache is warm."""

    keys: tuple[Key, ...]
    _turn: int = 0
    _all_rested: float = 0.0

    @classmethod
    def of(cls, sources: tuple[str, ...], base: Path, environ: Mapping[str, str] = os.environ) -> "KeyRing":
        """The ring of ``sources``; files are relative to ``base``."""
        return cls(tuple(Key(source, environ, base) for source in sources))

    def take(self, affinity: str = "", now: float | None = None) -> Key | None:
        """The key for one request; None when all of them rest."""
        now = time.monotonic() if now is None else now
        count = len(self.keys)
        if count == 1:
            return self.keys[0] if self.keys[0].rests_until <= now else None
        if affinity:
            start = int(fraction(affinity) * count)
        else:
            start = self._turn
            self._turn = (self._turn + 1) % count
        for step in range(count):
            key = self.keys[(start + step) % count]
            if key.rests_until <= now:
                return key
        return None

    def answered(self, key: Key, status: int, retry_after: float | None, now: float) -> None:
        """Let a key rest that was turned away: by Retry-After, else by a time of our own."""
        if status == 429:
            key.rests_until = now + min(COOL_MOST, retry_after if retry_after is not None else COOL_SECONDS)
        elif status in (401, 402, 403):
            key.rests_until = now + UNAUTHORIZED_SECONDS
        self._all_rested = max(self._all_rested, key.rests_until)

    def rested(self, now: float) -> bool:
        """Whether none of them rests."""
        return self._all_rested <= now

    def soonest(self, now: float) -> float:
        """Seconds until the first key may be used again."""
        return max(0.0, min(key.rests_until for key in self.keys) - now)

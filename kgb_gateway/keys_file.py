"""The keys file: what it says, its form on disk, and reading it.

Owns the JSON document. It holds keyed hashes (BLAKE2b keyed with a random secret of the file's own, RFC 7693), never a token. A
fast hash is the right one here: a token is 256 random bits, which nobody finds by trying. Changes are keys_edit's
matter, and which keys a running gateway accepts is the keyring's.
"""

import hashlib
import json
import os
import re
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from kgb_gateway.caller import check_scopes

FILE_CAP = 16 * 1024 * 1024
"""Bytes beyond which a keys file is taken for something else."""

_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")

TOKEN = re.compile(rb"kgb_([0-9a-z]{10})_([0-9A-Za-z]{43})")
"""A whole token: ``kgb_<id>_<secret>``."""

TOKEN_MARK = re.compile(rb"(?=kgb_([0-9a-z]{10})_)")
"""How every token begins, whole, damaged or cut short. A lookahead: two marks may overlap."""

REFRESH_SECONDS = 0.002
"""How old a gateway's last look at the file may be: whatever changes the file returns later than that."""

Signature = tuple[int, int, int, int]
"""Inode, mtime, ctime (ns) and size: what changes whenever the file, its content or its permissions do."""


class _Malformed(Exception):
    """Why a document is none; quotes nothing that could be secret."""


class KeysFileError(Exception):
    """The keys file, or what is asked of it, is at fault; the message says what to do and holds no secret."""


@attrs.frozen
class Hash:
    """One secret of a key; ``until`` (seconds since the epoch) is set on one that a rotation has replaced."""

    digest: bytes
    until: float | None = None


@attrs.frozen
class Key:
    """A key; times are seconds since the epoch. The first of ``hashes`` is the current one.

    A revoked key stays in the file, so that a gateway goes on recognising its token as one of its own.
    """

    id: str
    name: str
    created: float
    hashes: tuple[Hash, ...]
    scopes: tuple[str, ...] = ()
    expires: float | None = None
    revoked: float | None = None

    def state(self, now: float) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


@attrs.frozen
class Document:
    """What a keys file says."""

    secret: bytes
    keys: tuple[Key, ...] = ()

    def digest(self, token: bytes) -> bytes:
        """The keyed hash of a whole token, id included."""
        return hashlib.blake2b(token, key=self.secret, digest_size=32).digest()


def signature_of(status: os.stat_result) -> Signature:
    """See Signature."""
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def read_keys_file(path: Path) -> tuple[Document, Signature]:
    """The document at ``path``. FileNotFoundError when there is none, KeysFileError when it cannot be trusted.

    A file that others may read or write is refused: whoever changes it lets himself in.
    """
    try:
        data, status = _read(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise KeysFileError(f"the keys file {path} cannot be read: {error.strerror}") from None
    try:
        return _parse(data), signature_of(status)
    except _Malformed as error:
        why = str(error)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        why = "it is not the JSON that `kgb keys` writes"
    raise KeysFileError(f"the keys file {path} is damaged: {why}; restore it from a copy")


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    # Non-blocking: a named pipe at this path must not hold up the loop.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        _check_status(path, status)
        with open(fd, "rb", closefd=False) as file:
            return file.read(), status
    finally:
        os.close(fd)


def _check_status(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeysFileError(f"the keys file {path} is no regular file")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise KeysFileError(f"the keys file {path} is open to others (mode {mode:04o}); run: chmod 600 {path}")
    if status.st_size > FILE_CAP:
        raise KeysFileError(f"the keys file {path} is larger than {FILE_CAP} bytes; it cannot be one")


def _parse(data: bytes) -> Document:
    raw = json.loads(data)
    if raw["version"] != _VERSION:
        raise _Malformed("it has a version that this kgb does not know")
    secret = bytes.fromhex(raw["secret"])
    if len(secret) < 32:
        raise _Malformed("its secret is too short")
    keys = tuple(_parse_key(entry) for entry in raw["keys"])
    if len({key.id for key in keys}) < len(keys):
        raise _Malformed("two keys have the same id")
    return Document(secret, keys)


def _parse_key(raw: dict[str, Any]) -> Key:
    key_id, name, hashes, scopes = raw["id"], raw["name"], raw["hashes"], raw["scopes"]
    if not re.fullmatch(r"[0-9a-z]{10}", key_id) or not NAME.fullmatch(name):
        raise _Malformed("a key's id or name is malformed")
    if not isinstance(scopes, list) or not isinstance(hashes, list):
        raise TypeError
    parsed = tuple(Hash(bytes.fromhex(entry["hash"]), _seconds(entry["until"])) for entry in hashes)
    try:
        check_scopes(scopes)
    except ValueError as error:
        raise _Malformed(str(error)) from None
    created = _seconds(raw["created"])
    if created is None or not all(len(entry.digest) == 32 for entry in parsed):
        raise _Malformed(f"the key {key_id} is malformed")
    return Key(key_id, name, created, parsed, tuple(scopes), _seconds(raw["expires"]), _seconds(raw["revoked"]))


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise TypeError
    return moment.timestamp()


def timestamp(seconds: float | None) -> str | None:
    """RFC 3339 in UTC, to the second; None stays None."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def serialize(document: Document) -> bytes:
    """``document`` as it stands on disk."""
    keys = [
        {
            "id": key.id,
            "name": key.name,
            "scopes": list(key.scopes),
            "created": timestamp(key.created),
            "expires": timestamp(key.expires),
            "revoked": timestamp(key.revoked),
            "hashes": [{"hash": entry.digest.hex(), "until": timestamp(entry.until)} for entry in key.hashes],
        }
        for key in document.keys
    ]
    raw = {"version": _VERSION, "secret": document.secret.hex(), "keys": keys}
    return json.dumps(raw, indent=1).encode() + b"\n"

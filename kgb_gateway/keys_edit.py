"""Changes of the keys file: each whole or not at all, one at a time.

Owns the locked read, change, write, rename. A gateway that reads meanwhile sees the old file or the new one.
"""

import contextlib
import fcntl
import os
import secrets
import string
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import attrs

from kgb_gateway.caller import check_scopes
from kgb_gateway.keys_file import (
    NAME,
    REFRESH_SECONDS,
    TOKEN_MARK,
    Document,
    Hash,
    Key,
    KeysFileError,
    read_keys_file,
    serialize,
)

LOCK_SECONDS = 10.0
"""How long an edit waits for another one to finish."""

PAST_HASHES = 8
"""Replaced secrets that a key remembers: a caller who shows one is told that it was rotated."""

_ID_LENGTH = 10
_SECRET_LENGTH = 43  # of 62 letters: 256 bits
_ID_LETTERS = string.digits + string.ascii_lowercase
_SECRET_LETTERS = string.digits + string.ascii_letters

_T = TypeVar("_T")


def create_key(path: Path, name: str, *, scopes: tuple[str, ...] = (), expires: float | None = None) -> tuple[Key, str]:
    """Add a key and return it with its token, which is shown nowhere again.

    ``expires``: seconds since the epoch. ValueError for a name or scope that cannot be one, KeysFileError when a key
    of that name is in use.
    """
    check_name(name)
    scopes = check_scopes(scopes)

    def add(document: Document) -> tuple[Document, tuple[Key, str]]:
        if any(key.name == name and key.revoked is None for key in document.keys):
            raise KeysFileError(f"there is a key named {name!r} already; rotate or revoke it, or take another name")
        if any(key.id == name for key in document.keys):
            raise KeysFileError(f"{name!r} is the id of a key; take another name")
        taken = {key.id for key in document.keys} | {key.name for key in document.keys}
        key_id = _fresh_id(taken)
        token = _new_token(key_id)
        key = Key(key_id, name, time.time(), (Hash(document.digest(token.encode())),), scopes, expires)
        return attrs.evolve(document, keys=(*document.keys, key)), (key, token)

    return _edit(path, add, may_create=True)


def rotate_key(path: Path, name_or_id: str, *, grace: float = 0.0) -> tuple[Key, str]:
    """Give a key a new secret and return it with its token; older ones are good for at most ``grace`` more seconds."""

    def rotate(document: Document) -> tuple[Document, tuple[Key, str]]:
        old, now = find_key(document, name_or_id), time.time()
        if (state := old.state(now)) != "active":
            raise KeysFileError(f"the key {old.name!r} is {state}; revoke it and create a new one")
        token = _new_token(old.id)
        end = now + grace
        past = (
            attrs.evolve(entry, until=end if entry.until is None else min(entry.until, end)) for entry in old.hashes
        )
        key = attrs.evolve(old, hashes=(Hash(document.digest(token.encode())), *past)[: PAST_HASHES + 1])
        return _replace(document, key), (key, token)

    return _edit(path, rotate)


def revoke_key(path: Path, name_or_id: str) -> Key:
    """Take a key out of force, at once and for good; revoking it again changes nothing."""

    def revoke(document: Document) -> tuple[Document, Key]:
        old = find_key(document, name_or_id)
        key = old if old.revoked is not None else attrs.evolve(old, revoked=time.time())
        return _replace(document, key), key

    return _edit(path, revoke)


def find_key(document: Document, name_or_id: str) -> Key:
    """A key by its id, or by name among those that are not revoked. KeysFileError when there is none."""
    for key in document.keys:
        if key.id == name_or_id or (key.name == name_or_id and key.revoked is None):
            return key
    if any(key.name == name_or_id for key in document.keys):
        raise KeysFileError(f"the key {name_or_id!r} is revoked; name it by its id")
    # Somebody may have pasted a token.
    shown = "of that token" if TOKEN_MARK.search(name_or_id.encode(errors="replace")) else repr(name_or_id[:80])
    raise KeysFileError(f"there is no key {shown}; `kgb keys list` shows what there is")


def check_name(name: str) -> None:
    """ValueError unless ``name`` may name a key. A pasted token is refused without an echo."""
    if TOKEN_MARK.search(name.encode(errors="replace")):
        raise ValueError("a token is no name; give the key a name of its own")
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} cannot name a key: a letter or digit, then letters, digits or . _ @ + -, at most 64 in all"
        )


def _replace(document: Document, key: Key) -> Document:
    return attrs.evolve(document, keys=tuple(key if other.id == key.id else other for other in document.keys))


def _fresh_id(taken: set[str]) -> str:
    while (key_id := _letters(_ID_LETTERS, _ID_LENGTH)) in taken:
        pass
    return key_id


def _letters(alphabet: str, count: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(count))


def _new_token(key_id: str) -> str:
    return f"kgb_{key_id}_{_letters(_SECRET_LETTERS, _SECRET_LENGTH)}"


def _edit(path: Path, change: Callable[[Document], tuple[Document, _T]], *, may_create: bool = False) -> _T:
    # A rename would put a file in the place of a symbolic link.
    path = Path(os.path.realpath(path))
    try:
        if may_create:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path):
            try:
                document, _ = read_keys_file(path)
            except FileNotFoundError:
                if not may_create:
                    raise KeysFileError(f"there is no keys file {path}; `kgb keys create NAME` makes one") from None
                document = Document(secrets.token_bytes(32))
            changed, result = change(document)
            _write(path, serialize(changed))
            return result
    except OSError as error:
        raise KeysFileError(f"the keys file {path} cannot be changed: {error.strerror or error}") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold ``<path>.lock``; it stays on disk, because removing a lock file lets two holders in."""
    if not path.parent.is_dir():
        raise KeysFileError(f"there is no directory {path.parent}")
    fd = _open_lock(path)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _try_lock(fd):
            if time.monotonic() >= deadline:
                raise KeysFileError(f"another command has held {path}.lock for {LOCK_SECONDS:g} s; try again")
            time.sleep(0.02)
        yield
    finally:
        os.close(fd)


def _open_lock(path: Path) -> int:
    lock, flags = path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    with contextlib.suppress(FileExistsError):
        fd = os.open(lock, flags | os.O_CREAT | os.O_EXCL, 0o600)
        _keep_owner(path, fd)
        return fd
    return os.open(lock, flags)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    """Replace ``path`` by a file of ``data``, mode 0600, durable before anybody can see it."""
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "wb") as file:
            _keep_owner(path, fd)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    time.sleep(2 * REFRESH_SECONDS)  # no gateway's last look at the file is older: the change is in force on return


def _keep_owner(path: Path, fd: int) -> None:
    """Root edits for the service's user: the file stays that user's, and a new one belongs to the directory's."""
    if os.geteuid() != 0:
        return
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        os.fchown(fd, status.st_uid, status.st_gid)
        return
    status = path.parent.stat()
    os.fchown(fd, status.st_uid, status.st_gid)

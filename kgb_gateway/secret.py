"""Files for their owner alone, and the key of the fingerprints that stand in the place of credentials.

Owns how both are made; what is fingerprinted is ``redact``'s matter.
"""

import os
import stat
from pathlib import Path

SECRET = "fingerprint.key"
SIZE = 32


def private(path: str, flags: int) -> int:
    """An ``opener`` for ``open``: what is made is 0600."""
    return os.open(path, flags, 0o600)


def private_directory(path: Path) -> Path:
    """A directory for its owner alone."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(0o700)
    return path


def secret_of(home: Path) -> bytes:
    """The key of the data directory ``home``, made at the first call. OSError when it is damaged or cannot be made."""
    path = private_directory(home) / SECRET
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        secret = path.read_bytes()
        if len(secret) != SIZE:
            raise OSError(0, f"{path} is damaged; take it away, and fingerprints begin anew") from None
        return secret
    with open(fd, "wb") as file:
        secret = os.urandom(SIZE)
        file.write(secret)
    return secret

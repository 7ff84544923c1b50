"""The calls on a disk that may fail or hang.

Owns the seam at which tests make them do so, and how a name is made to outlive a power cut.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path
from typing import Protocol

BLOCK = 4096
"""Bytes at whose multiples a file takes what is written past the system's cache."""

DIRECT_LEAST = 256 * 1024
"""Bytes from which on it is worth it. What is written through the cache is copied once more, and then written by the kernel, on whatever core:
a MB costs 220 to 490 us of processor that way, 45 past it."""

STRETCH = 1024 * 1024
"""Most bytes that one call writes through the cache: a kernel that interrupts no system call does nothing else meanwhile."""

_DIRECT = getattr(os, "O_DIRECT", 0)


class Files(Protocol):
    """The calls on a disk that may fail or hang: the seam at which tests make them do so."""

    def writev(self, fd: int, buffers: list[memoryview]) -> int:
        """``os.writev``."""

    def sync(self, fd: int) -> None:
        """``os.fdatasync``."""

    def free(self, path: Path) -> int:
        """Bytes that this user may still write to the disk of ``path``."""


class Disk:
    """The real calls. Much that is alone in ``buffers``, and as many whole blocks, is written past the system's cache, where the file
    system does that: it must begin at a block in memory and in the file."""

    direct = bool(_DIRECT)

    def writev(self, fd: int, buffers: list[memoryview]) -> int:
        if len(buffers) != 1 or len(buffers[0]) < DIRECT_LEAST:
            return os.writev(fd, buffers)
        if self.direct and not len(buffers[0]) % BLOCK:
            with contextlib.suppress(BlockingIOError):
                return self._past_the_cache(fd, buffers[0])
        return os.writev(fd, [buffers[0][:STRETCH]])

    def _past_the_cache(self, fd: int, buffer: memoryview) -> int:
        """BlockingIOError where that cannot be done."""
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | _DIRECT)
            try:
                return os.write(fd, buffer)
            finally:
                fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            # This file system has no such writes, or they begin at other places than blocks of the ring do.
            self.direct = False
            raise BlockingIOError from None

    def sync(self, fd: int) -> None:
        os.fdatasync(fd) if hasattr(os, "fdatasync") else os.fsync(fd)

    def free(self, path: Path) -> int:
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize


def sync_directory(path: Path) -> None:
    """Names in the directory ``path`` outlive a power cut from now on."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

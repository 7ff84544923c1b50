"""The calls on a disk that may fail or hang.

Owns the seam at which tests make them do so, and how a name is made to outlive a power cut.
"""

import os
from pathlib import Path
from typing import Protocol


class Files(Protocol):
    """The calls on a disk that may fail or hang: the seam at which tests make them do so."""

    def writev(self, fd: int, buffers: list[memoryview]) -> int:
        """``os.writev``."""

    def sync(self, fd: int) -> None:
        """``os.fdatasync``."""

    def free(self, path: Path) -> int:
        """Bytes that this user may still write to the disk of ``path``."""


class Disk:
    """The real calls."""

    def writev(self, fd: int, buffers: list[memoryview]) -> int:
        return os.writev(fd, buffers)

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

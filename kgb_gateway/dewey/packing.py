"""How bytes are kept small: one codec, Zstandard (RFC 8878), for the store and for archives.

Owns the choice of the library: Python's own from 3.14 on, its backport before.
"""

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["PLAIN", "ZSTD", "pack", "unpack", "zstd"]

PLAIN, ZSTD = 0, 1
"""Codecs."""

LEVEL = 3
_PACKER = zstd.ZstdCompressor(LEVEL)
"""One for all: to make one costs as much as to pack a block. Each call is a frame of its own, and it has a lock of its own."""

SMALL = 96
"""Bytes below which it is not worth the header."""


def pack(data: bytes) -> tuple[int, bytes]:
    """The codec and the bytes to keep for ``data``: whichever is shorter."""
    if len(data) < SMALL:
        return PLAIN, data
    packed = _PACKER.compress(data, zstd.ZstdCompressor.FLUSH_FRAME)
    return (ZSTD, packed) if len(packed) < len(data) else (PLAIN, data)


def unpack(codec: int, data: bytes) -> bytes:
    """The opposite of ``pack``."""
    return zstd.decompress(data) if codec == ZSTD else data

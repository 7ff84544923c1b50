"""The archive: finished segments, packed, and taken out again.

Owns the packed form: one Zstandard frame (RFC 8878) over the whole segment with a window so long that the bodies of a session,
which repeat each other, are kept once. A segment is given up only when its packed form has been read back and is the same.
"""

import contextlib
import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Collection, Iterator
from pathlib import Path

from kgb_gateway.dewey.packing import zstd
from kgb_gateway.disk import sync_directory
from kgb_gateway.record import NO_EXCHANGE, Kind, header_of
from kgb_gateway.segments import Name, SegmentReader, parse_name

SUFFIX = ".zst"
WINDOW_LOG = 26
"""Binary logarithm of the window (64 MB): how far back a body may lie that this one repeats."""

CHUNK = 1024 * 1024

KEPT = 2
"""Segments that stay unpacked, in files without a name: disk space of as many segments."""


def archived_in(archive: Path, instance: str = "") -> list[Name]:
    """The segments in ``archive``, in order; of one instance where it is given."""
    try:
        entries = [entry.removesuffix(SUFFIX) for entry in os.listdir(archive) if entry.endswith(SUFFIX)]
    except FileNotFoundError:
        return []
    names = [name for entry in entries if (name := parse_name(entry)) is not None]
    return sorted(name for name in names if not instance or name.instance == instance)


def path_of(archive: Path, name: Name) -> Path:
    """Where the packed form of ``name`` is."""
    return archive / f"{name}{SUFFIX}"


def seal(spool: Path, archive: Path, name: Name) -> int:
    """Pack the finished segment ``name`` and take it out of ``spool``; bytes of the packed form. OSError leaves both as they were."""
    archive.mkdir(mode=0o700, parents=True, exist_ok=True)
    source = spool / str(name)
    with source.open("rb") as file:
        size = _pack(_chunks(file.fileno()), path_of(archive, name), file.fileno())
    source.unlink()
    return size


def open_archived(archive: Path, name: Name) -> int:
    """A file descriptor of the segment as it was, in a file that has no name. FileNotFoundError when it is not there."""
    with path_of(archive, name).open("rb") as packed, tempfile.TemporaryFile(dir=archive) as plain:
        for data in _unpacked(packed.fileno()):
            plain.write(data)
        plain.flush()
        return os.dup(plain.fileno())


class Unpacked:
    """Packed segments that stay unpacked for a while, the latest KEPT: whoever asks for exchange after exchange asks for the same
    few segments."""

    def __init__(self) -> None:
        self._fds: OrderedDict[tuple[str, int, int], int] = OrderedDict()

    def open(self, archive: Path, name: Name) -> int:
        """``open_archived``, most often without unpacking."""
        status = path_of(archive, name).stat()
        key = (str(name), status.st_mtime_ns, status.st_size)
        fd = self._fds.pop(key, None)
        if fd is None:
            fd = open_archived(archive, name)
        self._fds[key] = fd
        while len(self._fds) > KEPT:
            os.close(self._fds.popitem(last=False)[1])
        return os.dup(fd)

    def __del__(self) -> None:
        for fd in self._fds.values():
            os.close(fd)


def scrub(fd: int, keys: Collection[bytes], path: Path) -> int:
    """Overwrite every frame of the exchanges ``keys`` in the segment ``fd``, in place; how many. Their numbers stay, so that
    nothing seems to be missing; what they said does not."""
    done = 0
    reader = SegmentReader(path, fd=os.dup(fd))
    with reader:
        for frame in reader.frames():
            if frame.exchange in keys:
                empty = bytes(len(frame.payload))
                head = header_of(frame.sequence, Kind.NOTE, NO_EXCHANGE, frame.wall, 0, empty, reader.salt)
                os.pwrite(fd, head + empty, reader.offset - frame.size)
                done += 1
    os.fsync(fd)
    return done


def scrub_archived(archive: Path, name: Name, keys: Collection[bytes]) -> int:
    """``scrub`` for a packed segment: a new one takes its place."""
    fd = open_archived(archive, name)
    try:
        done = scrub(fd, keys, path_of(archive, name))
        if done:
            _pack(_chunks(fd), path_of(archive, name), fd)
    finally:
        os.close(fd)
    return done


def _pack(data: Iterator[bytes], target: Path, source: int) -> int:
    """Write ``data`` packed to ``target``, once it has been read back and is what ``source`` holds."""
    names = zstd.CompressionParameter
    parameters = {
        int(names.compression_level): 3,
        int(names.window_log): WINDOW_LOG,
        int(names.enable_long_distance_matching): 1,
        int(names.checksum_flag): 1,
    }
    temporary = target.with_name(target.name + ".new")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            packer = zstd.ZstdCompressor(options=parameters)
            for piece in data:
                file.write(packer.compress(piece))
            file.write(packer.flush())
            file.flush()
            os.fsync(file.fileno())
            if _hash(_unpacked(file.fileno())) != _hash(_chunks(source)):
                raise OSError(0, f"{temporary} does not read back as it was written")
            size = file.tell()
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(target.parent)
    return size


def _chunks(fd: int) -> Iterator[bytes]:
    at = 0
    while data := os.pread(fd, CHUNK, at):
        yield data
        at += len(data)


def _unpacked(fd: int) -> Iterator[bytes]:
    options = {int(zstd.DecompressionParameter.window_log_max): WINDOW_LOG + 1}
    unpacker = zstd.ZstdDecompressor(options=options)
    for data in _chunks(fd):
        yield unpacker.decompress(data)
    if not unpacker.eof:
        raise OSError(0, "a packed segment ends early")


def _hash(pieces: Iterator[bytes]) -> bytes:
    state = hashlib.sha256()
    for piece in pieces:
        state.update(piece)
    return state.digest()

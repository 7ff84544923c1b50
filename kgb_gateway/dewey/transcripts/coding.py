"""Content codings (RFC 9110, 8.4) undone on our own copy: gzip, deflate, br, zstd, and lists of them.

Pure. Input may come in any pieces and may end anywhere: what could be decoded is given, and ``whole`` tells whether that was all.
No body grows beyond ``MOST`` bytes. Owns no HTTP.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import brotli

from .model import NotReadable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MOST = 512 * 1024 * 1024
"""Bytes that one body may have when decoded: a small body can claim to be terabytes."""

MOST_CODINGS = 8
"""Codings on one body."""

_PIECE = 1 << 20
"""Bytes of output at a time, so that a bomb is noticed before it is unpacked."""

_SLICE = 1 << 13
"""Bytes of input at a time: damage costs what the slice around it would have given."""


class _Coding(Protocol):
    """One coding. ``feed`` gives output piece by piece; ValueError for damage. ``whole``: the coded stream has ended."""

    whole: bool

    def feed(self, data: bytes) -> Iterator[bytes]: ...


class _Inflater(Protocol):
    """What ``zlib.decompressobj`` gives."""

    @property
    def eof(self) -> bool: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes: ...


class _Zlib:
    """gzip with any number of members, and what HTTP calls deflate: in zlib's wrapping or, as some send it, without."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._head = b""
        self._state: _Inflater | None = None
        self._ended = False
        self.whole = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data and not self._ended:
            if self._state is None:
                self._head += data
                data = b""
                if not self._begin():
                    return
                data, self._head = self._head, b""
            assert self._state is not None
            yield self._state.decompress(data, _PIECE)
            while self._state.unconsumed_tail:
                yield self._state.decompress(self._state.unconsumed_tail, _PIECE)
            data = b""
            if self._state.eof:
                data, self._state, self.whole = self._state.unused_data, None, True
                self._ended = not self._gzip

    def _begin(self) -> bool:
        """Start on what ``_head`` begins; False while that cannot be told, or where it is padding behind the last member."""
        head = self._head
        if self.whole and not b"\x1f\x8b".startswith(head[:2]) and not head.startswith(b"\x1f\x8b"):
            self._ended = True
            return False
        if len(head) < 2:
            return False
        if self._gzip:
            self._state = zlib.decompressobj(31)
        else:
            wrapped = head[0] & 0x0F == 8 and (head[0] << 8 | head[1]) % 31 == 0
            self._state = zlib.decompressobj(15 if wrapped else -15)
        self.whole = False
        return True


class _Brotli:
    def __init__(self) -> None:
        self._state = brotli.Decompressor()
        self.whole = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self.whole:
            return
        yield self._state.process(data, output_buffer_limit=_PIECE)
        while not self._state.can_accept_more_data():
            yield self._state.process(b"", output_buffer_limit=_PIECE)
        self.whole = self._state.is_finished()


class _Zstd:
    """Any number of frames."""

    def __init__(self) -> None:
        self._state = zstd.ZstdDecompressor()
        self.whole = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._state.eof:
                self._state = zstd.ZstdDecompressor()
            self.whole = False
            yield self._state.decompress(data, _PIECE)
            while not self._state.needs_input and not self._state.eof:
                yield self._state.decompress(b"", _PIECE)
            data = self._state.unused_data if self._state.eof else b""
            self.whole = self._state.eof


_CODINGS: dict[str, Callable[[], _Coding]] = {
    "gzip": lambda: _Zlib(gzip=True),
    "x-gzip": lambda: _Zlib(gzip=True),
    "deflate": lambda: _Zlib(gzip=False),
    "br": _Brotli,
    "zstd": _Zstd,
}


class Decoder:
    """Undoes ``codings``, the value of Content-Encoding ("" for none). NotReadable: a coding nobody knows.

    ``fault``: what is wrong with the coded bytes, "" for nothing so far; behind a fault nothing more is decoded.
    """

    def __init__(self, codings: str = "") -> None:
        names = [name for each in codings.split(",") if (name := each.strip().lower()) not in ("", "identity")]
        unknown = [name for name in names if name not in _CODINGS]
        if unknown or len(names) > MOST_CODINGS:
            raise NotReadable(f"the body is coded as {codings[:100]!r}, which is unknown here")
        self._chain = [_CODINGS[name]() for name in reversed(names)]
        self._given = 0
        self._seen = False
        self.fault = ""

    @property
    def whole(self) -> bool:
        """Whether the bytes so far end where their coding ends. Without a coding any end is as good; so is no byte."""
        return not self.fault and (not self._seen or all(coding.whole for coding in self._chain))

    def feed(self, data: bytes) -> bytes:
        """What ``data`` adds. NotReadable: the body is larger than ``MOST``."""
        if not self._chain:
            return data
        self._seen = self._seen or bool(data)
        pieces = []
        for at in range(0, len(data), _SLICE):
            if self.fault:
                break
            try:
                for piece in self._through(data[at : at + _SLICE], 0):
                    self._given += len(piece)
                    if self._given > MOST:
                        raise NotReadable(f"the body is more than {MOST} bytes when decoded")
                    pieces.append(piece)
            except (zlib.error, brotli.error, zstd.ZstdError, EOFError) as error:
                self.fault = f"the coded body is damaged: {str(error)[:200]}"
        return b"".join(pieces)

    def _through(self, data: bytes, stage: int) -> Iterator[bytes]:
        if stage == len(self._chain):
            yield data
            return
        for piece in self._chain[stage].feed(data):
            if piece:
                yield from self._through(piece, stage + 1)


def decoded(codings: str, data: bytes) -> bytes:
    """``data``, a whole body, with ``codings`` undone. NotReadable: it is damaged, cut short or too large."""
    decoder = Decoder(codings)
    found = decoder.feed(data)
    if not decoder.whole:
        raise NotReadable(decoder.fault or "the coded body ends too early")
    return found

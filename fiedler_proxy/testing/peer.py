"""One end of a raw connection: bytes in, bytes out, and how it ended.

Owns the transport, the unread bytes and the difference between FIN and RST. Knows nothing of HTTP. The socket is read
only a little ahead of what was asked for, so that whoever does not read exerts real backpressure.
"""

import asyncio
import os
import socket
import struct
from typing import cast

from fiedler_proxy.testing.rendezvous import GUARD, Signal

READ_AHEAD = 64 * 1024
"""Unread bytes at which reading pauses until somebody asks for more."""


class PeerLeft(Exception):
    """The other side has gone: by RST where ``reset`` is True, else by FIN."""

    def __init__(self, reset: bool) -> None:
        super().__init__("the other side reset the connection" if reset else "the connection is closed")
        self.reset = reset


class Peer(asyncio.Protocol):
    """A connection as its user sees it. ``unread``: bytes that arrived and were not taken yet."""

    def __init__(self, guard: float | None = GUARD) -> None:
        self.unread = bytearray()
        self.guard = guard
        self.received_size = 0
        self.ended = False
        self.reset = False
        self.closed_here = False
        self._lost = False
        self._stopped = False
        self._patient = False
        self._paused = False
        self._writable = True
        self._signal = Signal()
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._tls = False

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._socket = transport.get_extra_info("socket")
        self._tls = transport.get_extra_info("sslcontext") is not None
        # Plain transports pause above the mark, asyncio's TLS at it: 0 would pause an empty one for ever.
        self._transport.set_write_buffer_limits(high=1 if self._tls else 0, low=0)
        if self._socket is not None and self._socket.family != socket.AF_UNIX:
            # asyncio does so itself only for sockets whose protocol number was given.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._signal.notify()

    def data_received(self, data: bytes) -> None:
        self.unread += data
        self.received_size += len(data)
        if len(self.unread) > READ_AHEAD and not self._patient:
            self._pause()
        self._signal.notify()

    def eof_received(self) -> bool:
        self.ended = True
        self._signal.notify()
        # asyncio cannot keep a half-closed TLS connection open, and complains when it is asked to.
        return not self._tls

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended:
            # A broken pipe means that a FIN came before: the kernel says "reset" only where there was none.
            self.reset = exc is not None and not isinstance(exc, BrokenPipeError)
            if exc is not None:
                self._rescue()
        self.ended = self._lost = True
        self._signal.notify()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._signal.notify()

    # What the user does.

    @property
    def transport(self) -> asyncio.Transport:
        """The transport; RuntimeError before the connection stands."""
        if self._transport is None:
            raise RuntimeError("the connection does not stand yet")
        return self._transport

    async def send(self, data: bytes) -> None:
        """Write ``data`` and wait until the kernel has taken it; PeerLeft where the connection is gone."""
        self._check_open()
        self.transport.write(data)
        await self._signal.until(lambda: self._writable or self._lost, lambda: "the other side to read", self.guard)
        self._check_open()

    async def fill(self, guard: float | None = None) -> bool:
        """Wait for more bytes in ``unread``; False when the connection ended instead."""
        size = len(self.unread)
        if not self.ended:
            if self._stopped:
                raise RuntimeError("reading was stopped: call resume_reading() first")
            self._resume()
        waiting = self.guard if guard is None else guard
        await self._signal.until(lambda: len(self.unread) > size or self.ended, self._describe, waiting or None)
        return len(self.unread) > size

    def take(self, size: int | None = None) -> bytes:
        """Up to ``size`` of the unread bytes, all of them for None."""
        data = bytes(self.unread if size is None else self.unread[:size])
        del self.unread[: len(data)]
        if self._paused and len(self.unread) <= READ_AHEAD and not self._stopped:
            self._resume()
        return data

    async def gone(self, guard: float | None = None) -> bool:
        """Wait until the other side is gone, reading on without a cap; True for RST, False for FIN."""
        self._patient = True
        if not self._stopped:
            self._resume()
        waiting = self.guard if guard is None else guard
        await self._signal.until(lambda: self.ended, lambda: "the other side to leave", waiting or None)
        return self.reset

    def stop_reading(self) -> None:
        """Read no more from the socket: its buffers fill, and the other side feels it. Hides FIN and RST too."""
        self._stopped = True
        self._pause()

    def resume_reading(self) -> None:
        """Take ``stop_reading`` back."""
        self._stopped = False
        self._resume()

    def close(self) -> None:
        """Close after what was written has left: FIN (the kernel makes it RST where unread bytes are waiting)."""
        self.closed_here = True
        self.transport.close()

    def half_close(self) -> None:
        """FIN, and go on reading. PeerLeft where there is no connection any more, which the kernel may know first."""
        self._check_open()
        try:
            self.transport.write_eof()
        except OSError:
            raise PeerLeft(self.reset) from None

    def abort(self) -> None:
        """RST at once; what was written and has not left is lost. A Unix socket knows no RST: it just closes."""
        self.closed_here = True
        if self._lost:
            return
        if self._socket is not None and self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def dispose(self) -> None:
        """Close at the end of a test and wait for it: nothing that was left unsent may keep the loop busy."""
        if not self._lost:
            self.closed_here = True
            if self._tls or self.transport.get_write_buffer_size():
                self.transport.abort()
            self.transport.close()
        await self.lost()

    async def lost(self) -> None:
        """Wait until the transport is gone on this side."""
        await self._signal.until(lambda: self._lost, lambda: "the transport to close", self.guard)

    # Inner workings.

    def _check_open(self) -> None:
        if self._lost or self.transport.is_closing():
            raise PeerLeft(self.reset)

    def _describe(self) -> str:
        return f"more bytes; unread: {bytes(self.unread[-200:])!r}"

    def _pause(self) -> None:
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def _rescue(self) -> None:
        """Read what the kernel still holds: a failed write ends a transport before its last bytes were read."""
        if self._socket is None or self._tls:
            return
        try:
            while data := os.read(self._socket.fileno(), READ_AHEAD):
                self.unread += data
                self.received_size += len(data)
        except OSError:
            return

"""What the kernel knows of a caller's connection, and how to end one so that it shows.

Owns the calls on sockets below the transports of asyncio: whether a caller has left although its connection is not
being read, and the reset that tells an HTTP/1.0 caller that its answer is not whole.
"""

import asyncio
import contextlib
import fcntl
import select
import socket
import struct
import termios
from typing import Any

from aiohttp import web

RESET_WAIT = 2.0
"""Seconds that bytes already written may take to reach a caller before its connection is reset."""


async def reset_after_delivery(transport: asyncio.Transport) -> None:
    """Deliver what was written, then reset the connection (RST).

    For a body that only the end of the connection ends (HTTP/1.0): an orderly close would look like its end.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + RESET_WAIT
    sock = transport.get_extra_info("socket")
    while not transport.is_closing() and _undelivered(transport, sock) and loop.time() < deadline:
        await asyncio.sleep(0.005)
    with contextlib.suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _undelivered(transport: asyncio.Transport, sock: Any) -> bool:
    if transport.get_write_buffer_size():
        return True
    try:
        queued = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (OSError, AttributeError):
        return False
    return bool(struct.unpack("i", queued)[0])


def caller_has_left(request: web.Request) -> bool:
    """Whether the kernel knows that the caller closed its side, although its connection is not being read."""
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.fileno() < 0:
        return True
    if not hasattr(select, "POLLRDHUP"):
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))

"""What the kernel knows of a caller's connection, how to end one so that it shows, and listeners for their owner alone.

Owns the calls on sockets below the transports of asyncio: whether a caller has left although its connection is not
being read, the reset that tells an HTTP/1.0 caller that its answer is not whole, and Unix sockets that nobody else can open.
"""

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import stat
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

PATH_MOST = 100
"""Bytes of the path of a Unix socket, which the system bounds (unix(7): 108)."""

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


def private_socket(path: Path) -> socket.socket:
    """A listener at ``path`` that only its owner can open, whatever the directory allows; its neighbours of the same suffix that belong to
    processes which were killed are swept away. OSError when there can be none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for other in path.parent.glob(f"*{path.suffix}"):
        _forget_if_dead(other)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o177)
    try:
        with short_name(path) as short:
            listener.bind(short)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


@contextlib.contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name of ``path`` that fits into an address."""
    if len(os.fsencode(path)) <= PATH_MOST:
        yield str(path)
        return
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def _forget_if_dead(path: Path) -> None:
    """Take away the socket of a process that was killed."""
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe,
        short_name(path) as short,
    ):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        try:
            probe.connect(short)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)

"""Asking the librarian at work to step aside for a moment, over its socket.

Owns the one request by which a command gets the librarian's place: it is answered when the store is closed, and the librarian stands
by until the place is free again.
"""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from kgb_gateway.dewey.feed import SOCKET

WAIT_SECONDS = 60.0
"""How long the librarian may take to finish what it is writing."""

_REQUEST = b"POST /aside HTTP/1.1\r\nHost: dewey\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@contextlib.contextmanager
def set_aside(home: Path) -> Iterator[None]:
    """While the context is open no librarian of ``home`` is at work, as far as one could be asked."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(WAIT_SECONDS)
        with contextlib.suppress(OSError):
            asked.connect(str(home / SOCKET))
            asked.sendall(_REQUEST)
            while asked.recv(4096):
                pass
        yield

"""Several instances on one port: ``python -m tests.bench.growth.instances N COMMAND ...``.

Starts ``kgb COMMAND ... --reuse-port --instance NAME`` N times and ends them when it is ended. It owns these children and nothing else.
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

STOP_SECONDS = 6.0
"""How long all of them together may take to end: less than the bench gives the process that started them."""
LISTEN = "0A"
"""How the kernel writes the state of a listening socket."""


def listeners(port: int, tables: Sequence[str] = ("/proc/net/tcp",)) -> int:
    """How many sockets listen on ``port``: as many as there are instances that take connections."""
    rows = [line.split() for path in tables for line in Path(path).read_text(encoding="utf-8").splitlines()[1:]]
    return sum(row[3] == LISTEN and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def await_listeners(port: int, count: int, seconds: float = 15.0) -> bool:
    """Whether ``count`` instances listen before the time is over."""
    deadline = time.monotonic() + seconds
    while listeners(port) < count:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def main(argv: Sequence[str]) -> int:
    """Exit status 0 when it was told to end, 1 when an instance ended by itself."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kgb = (sys.executable, "-m", "kgb_gateway", *argv[1:], "--reuse-port")
    children: list[subprocess.Popen[bytes]] = []
    status = 0
    try:
        children += [subprocess.Popen((*kgb, "--instance", f"i{at}")) for at in range(int(argv[0]))]
        while all(child.poll() is None for child in children):
            time.sleep(0.5)
        status = 1
    except KeyboardInterrupt:
        pass
    for child in children:
        child.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - time.monotonic()))
        child.kill()
        child.wait()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``kgb`` on a disk as slow as asked: ``python -m tests.bench.slow_disk RATE PAUSE COMMAND ...``.

RATE: bytes a second that the journal's disk takes (0: as many as it does). PAUSE: seconds that each of its syncs takes at least.
"""

import os
import sys
import time

from kgb_gateway.__main__ import main
from kgb_gateway.disk import Disk


def slow_down(rate: float, pause: float) -> None:
    """Make every write and sync of this process's journal wait, as a slow device makes a thread wait: without the GIL."""
    sync = Disk.sync

    def writev(self: Disk, fd: int, buffers: list[memoryview]) -> int:
        size = os.writev(fd, [buffers[0][: max(1, int(rate / 20))]] if rate else buffers)
        if rate:
            time.sleep(size / rate)
        return size

    def synced(self: Disk, fd: int) -> None:
        sync(self, fd)
        time.sleep(pause)

    Disk.writev, Disk.sync = writev, synced  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_down(float(sys.argv[1]), float(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))

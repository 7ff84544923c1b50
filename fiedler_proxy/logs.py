"""The gateway's own log on standard error.

Owns how a line looks and the thread that writes it: a standard error that nobody reads must not make the loop wait,
nor keep the process from ending. What does not fit is dropped and counted.
"""

import contextlib
import logging
import os
import queue
import re
import threading
from collections.abc import Iterator

LEVELS = ("debug", "info", "warning", "error")

PENDING = 1000
"""Lines that may wait to be written."""

STOP_SECONDS = 2.0
"""How long the end of the process waits for what is still pending."""

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class StderrHandler(logging.Handler):
    """Writes ``LEVEL name: message`` to the descriptor ``fd`` from a thread of its own."""

    def __init__(self, fd: int = 2, pending: int = PENDING) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
        self.dropped = 0
        self._fd = fd
        self._lines: queue.Queue[str | None] = queue.Queue(pending)
        self._thread = threading.Thread(target=self._write, name="kgb-stderr", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line; never waits."""
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1
        except Exception:
            self.handleError(record)

    def stop(self) -> None:
        """Write what is pending, for up to ``STOP_SECONDS``."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=STOP_SECONDS)
        self._thread.join(STOP_SECONDS)

    def _write(self) -> None:
        told = 0
        while (line := self._lines.get()) is not None:
            self._put(line)
            if self.dropped > told:
                self._put(f"WARNING kgb.log: {self.dropped - told} lines of this log are missing")
                told = self.dropped

    def _put(self, line: str) -> None:
        # Whoever reads this may have a terminal; a line that continues must not look like one of its own.
        text = _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", line).replace("\n", "\n  ") + "\n"
        data = text.encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._fd, data) :]


@contextlib.contextmanager
def logging_to_stderr(level: str) -> Iterator[None]:
    """While the context is open, the ``kgb.*`` loggers write to standard error what is of ``level`` or above."""
    logger = logging.getLogger("kgb")
    before = logger.level, logger.propagate
    handler = StderrHandler()
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
        handler.stop()

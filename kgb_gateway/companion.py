"""The librarian as the gateway's companion: started with it, watched, and ended with it.

Owns one child process. It may crash, be killed or be upgraded at any time: the gateway relays and records on, and starts it again.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds before a companion that ended is started again; each time twice as long, until it has lived for LONGEST_PAUSE."""

STOP_SECONDS = 5.0
"""How long it may take to finish what it is writing, when the gateway ends."""

_log = logging.getLogger("kgb.dewey")


def command_of(home: str, *more: str) -> list[str]:
    """How the librarian of the data directory ``home`` is started as a companion. ``more``: further options of ``kgb dewey serve``."""
    command = [sys.executable, "-m", "kgb_gateway", "dewey", "serve", "--data-dir", home, "--idle", "--with-parent"]
    return [*command, *more]


class Companion:
    """Keeps ``command`` running. Its standard input is a pipe whose end it sees when this process is gone, however that went."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start(self) -> None:
        """Begin to keep it running."""
        self._task = asyncio.get_running_loop().create_task(self._watch(), name="kgb-companion")

    async def stop(self) -> None:
        """End it: first asked by the end of its standard input, then by signals."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        for act in (process.terminate, process.kill):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
                return
            with contextlib.suppress(ProcessLookupError):
                act()
        await process.wait()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while True:
            began = loop.time()
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
                )
            except OSError as error:
                why = error.strerror or str(error)
            else:
                self.starts += 1
                why = f"it ended with {await self._process.wait()}"
            lived = loop.time() - began
            pause = FIRST_PAUSE if lived >= LONGEST_PAUSE else min(2 * pause, LONGEST_PAUSE)
            _log.warning("the librarian: %s; it is started again in %.0f s, and reads what it has missed", why, pause)
            await asyncio.sleep(pause)

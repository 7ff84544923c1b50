"""The count: one process under ``valgrind --tool=callgrind``, and what it counted of each piece of work.

Owns the counted process from its start to its end. It judges nothing.
"""

import contextlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from kgb_gateway.middlewares.dewey_tap import DeweyTap
from tests.bench.instructions.kept import Count
from tests.bench.instructions.measured import MARK, SLOWNESS
from tests.bench.instructions.wires import Ends
from tests.bench.instructions.works import Work
from tests.bench.servers import Place, StartError, cores, free_port, gateway, spawn, stop
from tests.bench.upstream import listen

START_SECONDS = 150.0
SETTLE_SECONDS = 0.2
"""Before a mark, so that what is left to do when an answer has arrived is counted with it."""

WINDOWS = 5
"""How often each piece of work is counted, gateway and yardstick in turn."""

CHAIN = ("request_id", "access_log", "dewey_tap", "auth", "fiedler")

ENVIRONMENT = (
    "PYTHONHASHSEED=0",  # sets of names are walked in the same order each time
    "GLIBC_TUNABLES=glibc.cpu.hwcaps=-ERMS,-FSRM",  # a copy by `rep movsb` is as many instructions as bytes, where a processor has it
)

# Without a librarian: it is another process, and would only take time.
_MORE = f"""
[links.access_log]
path = "{{directory}}/access.log"
[links.dewey_tap]
librarian = "external"
sync_seconds = {DeweyTap().sync_seconds * SLOWNESS}
"""

_TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)


class NotHere(Exception):
    """Nothing can be counted or judged on this machine; the text says why."""


def valgrind() -> str:
    """Where it is; NotHere when it is not."""
    found = shutil.which("valgrind")
    if found is None:
        raise NotHere("valgrind is not on PATH (apt-get install valgrind)")
    return found


def totals(text: str) -> int:
    """How many instructions a file of callgrind's tells of."""
    found = _TOTALS.search(text)
    if found is None:
        raise StartError("callgrind wrote a file without totals")
    return int(found[1])


def annotatable(text: str) -> str:
    """The same for ``callgrind_annotate``, which takes what a call that began earlier has cost for its caller's own."""
    return text.replace("\ncalls=0 ", "\ncalls=1 ")


class Counted:
    """The counted process: the gateway on ``place.port``, the yardstick on ``yardstick``."""

    def __init__(self, place: Place, yardstick: int, chain: Sequence[str]) -> None:
        self._out = place.directory / "counted"
        self._log = place.directory / "output.log"
        usual = gateway(*chain, more=_MORE)(place)
        self.headers = usual.headers
        module = (sys.executable, "-m", "tests.bench.instructions.measured", str(yardstick), str(place.upstream))
        callgrind = (valgrind(), "--tool=callgrind", f"--dump-before={MARK}", f"--callgrind-out-file={self._out}")
        argv = ("env", *ENVIRONMENT, *callgrind, *module, *usual.argv[3:])
        self._child = spawn(argv, cores()[0], self._log, subprocess.PIPE)
        self._marks = 0

    def await_start(self, ports: Sequence[int]) -> None:
        """Until all ``ports`` are listened to."""
        deadline = time.monotonic() + START_SECONDS
        for port in ports:
            while True:
                if self._child.poll() is not None or time.monotonic() > deadline:
                    raise StartError(f"it did not start under valgrind: {self.said()}")
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.1)

    def said(self) -> str:
        """The end of what it printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]

    def mark(self) -> Path:
        """End a piece of work; the file that tells what has been counted since the last one ended."""
        time.sleep(SETTLE_SECONDS)
        self._child.send_signal(signal.SIGUSR1)
        assert self._child.stdout is not None
        if self._child.stdout.readline() != "marked\n":
            raise StartError(f"it ended while it was counted: {self.said()}")
        self._marks += 1
        return self._out.with_name(f"{self._out.name}.{self._marks}")

    def stop(self) -> None:
        stop(self._child)


@attrs.frozen
class Counting:
    """One run; ``keep`` gets callgrind's files of the gateway's share."""

    directory: Path
    say: Callable[[str], None]
    keep: Path | None = None
    windows: int = WINDOWS
    chain: Sequence[str] = CHAIN

    def run(self, works: Sequence[Work]) -> dict[str, Count]:
        with listen() as listener:
            listener.settimeout(START_SECONDS)
            place = Place(self.directory, free_port(), listener.getsockname()[1])
            beside = free_port()
            counted = Counted(place, beside, self.chain)
            try:
                self.say("starting under valgrind, which takes half a minute")
                counted.await_start((place.port, beside))
                with self._ends(place.port, listener, counted) as ours, self._ends(beside, listener, counted) as its:
                    return {work.name: self._count(counted, work, ours, its) for work in works}
            finally:
                counted.stop()

    @contextlib.contextmanager
    def _ends(self, port: int, listener: socket.socket, counted: Counted) -> Iterator[Ends]:
        ends = Ends(port, listener, counted.headers)
        try:
            ends.request(1)  # its connection upstream is made before the next one's
            yield ends
        except (OSError, StartError) as error:
            raise StartError(f"{error}: {counted.said()}") from error
        finally:
            ends.close()

    def _count(self, counted: Counted, work: Work, ours: Ends, its: Ends) -> Count:
        self.say(f"counting: {work.title}")
        found: dict[Ends, list[float]] = {ours: [], its: []}
        everything = work.warm + self.windows * work.count
        with work.within(ours, everything), work.within(its, everything):
            for ends in found:
                work.do(ends, work.warm)
            counted.mark()
            for window in range(self.windows):
                for ends, counts in found.items():
                    work.do(ends, work.count)
                    text = counted.mark().read_text(encoding="utf-8")
                    counts.append(totals(text) / work.count)
                    if self.keep is not None and ends is ours:
                        told = self.keep / f"{work.name}.{window + 1}.callgrind"
                        told.write_text(annotatable(text), encoding="utf-8")
        # What the gateway's threads do now and then may fall into a window of the yardstick, which has none.
        return Count(statistics.median(found[ours]), min(found[its]))

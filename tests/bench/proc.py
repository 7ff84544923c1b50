"""What the kernel says about processes and cores: CPU time, memory, waiting, steal. Reads /proc and nothing else.

It owns the judgement whether a stretch of time was quiet enough to be believed. Linux only.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

TICKS = os.sysconf("SC_CLK_TCK")
STEAL_LIMIT = 0.01
FOREIGN_LIMIT = 0.10
WAIT_LIMIT = 0.05


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _stat(pid: int) -> tuple[int, float]:
    """Parent pid and CPU seconds (own and those of reaped children) of one process; (0, 0.0) when it is gone."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 15:
        return 0, 0.0
    return int(fields[1]), sum(int(ticks) for ticks in fields[11:15]) / TICKS


def pids() -> list[int]:
    """All processes of this machine that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def tree(root: int) -> list[int]:
    """A process and all its descendants, the root first."""
    parents = {pid: _stat(pid)[0] for pid in pids()}
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


LIBRARIAN = "\0dewey\0serve\0"
"""What stands in the arguments of the process that takes in what a gateway recorded, at idle priority, behind its back."""


def librarians(processes: list[int]) -> list[int]:
    """Those of the processes that are a gateway's librarian: what they use is told by itself, as nobody's request waits for them."""
    return [pid for pid in processes if LIBRARIAN in _read(f"/proc/{pid}/cmdline")]


@contextlib.contextmanager
def paused(processes: list[int]) -> Iterator[None]:
    """These stand still meanwhile."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


IDLE_SHARE, LOOK_SECONDS = 0.03, 0.3


def settle(processes: list[int], seconds: float) -> bool:
    """Wait until these have hardly anything to do, for up to ``seconds``; whether they have."""
    deadline = time.monotonic() + seconds
    while processes and time.monotonic() < deadline:
        before = Usage.of(processes)
        time.sleep(LOOK_SECONDS)
        if Usage.of(processes).since(before) < IDLE_SHARE * LOOK_SECONDS:
            return True
    return not processes


def serving(root: int) -> list[int]:
    """A server and its descendants but for its librarian: what stands between caller and upstream."""
    found = tree(root)
    beside = librarians(found)
    return [pid for pid in found if pid not in beside]


def threads(processes: list[int]) -> dict[tuple[int, str], tuple[float, float]]:
    """(pid, thread id) -> (seconds on a processor, seconds on a run queue) of the living threads; empty without schedstat."""
    found: dict[tuple[int, str], tuple[float, float]] = {}
    for pid in processes:
        try:
            names = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for name in names:
            numbers = _read(f"/proc/{pid}/task/{name}/schedstat").split()
            if len(numbers) == 3:
                found[pid, name] = int(numbers[0]) / 1e9, int(numbers[1]) / 1e9
    return found


def kept_waiting(
    before: dict[tuple[int, str], tuple[float, float]], after: dict[tuple[int, str], tuple[float, float]]
) -> float:
    """Seconds that the busiest thread waited for a processor, beyond what its own siblings can have used meanwhile."""
    spent = [(ran - before[key][0], waited - before[key][1]) for key, (ran, waited) in after.items() if key in before]
    if not spent:
        return 0.0
    busiest, waited = max(spent)
    return max(0.0, waited - (sum(ran for ran, _ in spent) - busiest))


@attrs.frozen
class Usage:
    """CPU seconds of some processes up to now, from two clocks of the kernel."""

    ticked: float  # 10 ms steps, includes ended threads and reaped children
    exact: float  # nanoseconds, living threads only

    @classmethod
    def of(cls, processes: list[int]) -> "Usage":
        """Sum over the processes; each clock alone may lag, never lead."""
        ticked = sum(_stat(pid)[1] for pid in processes)
        return cls(ticked, sum(ran for ran, _waited in threads(processes).values()))

    def since(self, earlier: "Usage") -> float:
        """CPU seconds between two readings: the larger clock, because each one can only miss time."""
        return max(self.ticked - earlier.ticked, self.exact - earlier.exact)


def memory(processes: list[int]) -> int:
    """Proportional set size in bytes (RSS where the kernel does not tell), summed."""
    total = 0
    for pid in processes:
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
                break
        else:
            pages = _read(f"/proc/{pid}/statm").split()
            total += int(pages[1]) * os.sysconf("SC_PAGESIZE") if len(pages) > 1 else 0
    return total


@attrs.frozen
class Quiet:
    """Verdict on one stretch: shares of one core that went elsewhere."""

    steal: float
    foreign: float
    waited: float
    load: float

    @property
    def disturbed(self) -> bool:
        return self.steal > STEAL_LIMIT or self.foreign > FOREIGN_LIMIT or self.waited > WAIT_LIMIT

    def __str__(self) -> str:
        shares = {"steal": self.steal, "foreign": self.foreign, "waited": self.waited}
        return f"{', '.join(f'{name} {share:.1%}' for name, share in shares.items())}, load {self.load:.1f}"

    @property
    def badness(self) -> float:
        """For choosing the least disturbed of several tries."""
        return self.steal / STEAL_LIMIT + self.foreign / FOREIGN_LIMIT + self.waited / WAIT_LIMIT


class Watch:
    """Started before a measurement and ended after it; ``ours`` are the roots that may use the machine.

    Foreign time counts processes that lived at both readings, and what new ones used; kernel threads and this process are ours.
    """

    def __init__(self, ours: list[int], proxy: int | None) -> None:
        self._ours = ours
        self.proxy = tree(proxy) if proxy else []
        self.beside = librarians(self.proxy)
        self.serving = [pid for pid in self.proxy if pid not in self.beside]
        self._started = time.monotonic()
        self._steal = self._stolen()
        self._threads = threads(self.proxy)
        self._foreign = self._others()

    @staticmethod
    def _stolen() -> float:
        fields = _read("/proc/stat").partition("\n")[0].split()
        return int(fields[8]) / TICKS if len(fields) > 8 else 0.0

    def _others(self) -> dict[int, float]:
        parents: dict[int, int] = {}
        used: dict[int, float] = {}
        for pid in pids():
            parents[pid], used[pid] = _stat(pid)
        mine = {os.getpid(), 2, *self._ours}
        grew = True
        while grew:
            new = {pid for pid, parent in parents.items() if parent in mine and pid not in mine}
            mine |= new
            grew = bool(new)
        return {pid: seconds for pid, seconds in used.items() if pid not in mine}

    def verdict(self) -> Quiet:
        """Shares since the start."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        foreign = sum(max(0.0, used - self._foreign.get(pid, 0.0)) for pid, used in self._others().items())
        return Quiet(
            steal=(self._stolen() - self._steal) / seconds,
            foreign=foreign / seconds,
            waited=kept_waiting(self._threads, threads(self.proxy)) / seconds,
            load=os.getloadavg()[0],
        )

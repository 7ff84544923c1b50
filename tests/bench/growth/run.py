"""Runs families: one server at a time, each round anew, so that no other one is in its way and what it holds is its own.

It owns the order of the run. Processes, loads and the judgement of what was disturbed are the bench's.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from kgb_gateway.tail import tails_of
from tests.bench import proc, servers
from tests.bench.figures import Result, Scenario
from tests.bench.growth.audit import Audit
from tests.bench.growth.figures import Family, Load, Points, Stand
from tests.bench.growth.instances import await_listeners
from tests.bench.report import Cell, number
from tests.bench.runner import Bench, Options, RunError, _call
from tests.bench.servers import FarEnd, Missing, Server, StartError, cores

DIRECT = "direct"
CALM_SECONDS = 2.0
"""How long a load waits at most until the librarian has taken in what was before."""
LOOK_SECONDS = 0.1
WARM = Scenario("warm", {"mode": "closed", "target": "/json", "connections": 64, "body": 300}, (0.3, 0.3), ())


class Growth(Bench):
    """One run of some families. ``points`` of each fill as it goes."""

    def __init__(self, families: Sequence[Family], options: Options) -> None:
        super().__init__(options)
        self.families = tuple(families)
        self.points: dict[str, Points] = {family.name: {} for family in families}
        self._base = 0.0

    def run(self) -> None:
        """Everything, then everything started is stopped, whatever happened."""
        before = os.sched_getaffinity(0)
        with contextlib.ExitStack() as stack:
            stack.callback(os.sched_setaffinity, 0, before)
            os.sched_setaffinity(0, cores()[1])
            self._far = FarEnd(self.options.directory)
            stack.callback(self._far.stop)
            stack.callback(self._stop)
            self.running[DIRECT] = Server(DIRECT, self.options.directory, self.far.port)
            for family in self.families:
                self._family(family)

    def _family(self, family: Family) -> None:
        stands = [stand for stand in family.stands if stand.quick or not self.options.quick]
        rounds = self.options.rounds * (1 if self.options.quick else family.rounds)
        for at in range(rounds):
            by = at % len(stands)
            for stand in stands[by:] + stands[:by]:
                self._stand(family, stand)
                self.options.say(f"{family.name}, round {at + 1} of {rounds}: {self._told(family, stand)}")

    def _told(self, family: Family, stand: Stand) -> str:
        """The latest values of a stand, for whoever waits."""
        points, series = self.points[family.name], stand.series[0]
        xs = {load.x for load in stand.loads}
        cells = {key: cell for key, cell in points.items() if key[1] == series and key[2] in xs}
        return f"{series}: " + ", ".join(
            f"{figure} {number(cell.values[-1]) if cell.values else '-'} at {family.label(x)}"
            for (figure, _series, x), cell in cells.items()
        )

    def _stand(self, family: Family, stand: Stand) -> None:
        """One server from its start to its end. What fails is a note at its points."""
        try:
            with self._standing(family, stand) as name:
                for load in stand.loads:
                    if self.options.quick and not load.quick:
                        continue
                    try:
                        self._load_it(family, stand, load, name)
                    except RunError as error:
                        self._note(family, stand, [load], f"failed: {error}")
        except (Missing, StartError, RunError) as error:
            self._note(family, stand, stand.loads, f"failed: {error}")

    @contextlib.contextmanager
    def _standing(self, family: Family, stand: Stand) -> Iterator[str]:
        """The name of the running server. What its spool says is entered when it has ended."""
        if stand.command is None:
            self._base = 0.0
            yield DIRECT
            return
        name = family.name
        with mock.patch.dict(servers.SERVERS, {name: stand.command}):
            server = self._server(name)
        home = self.options.directory / f"{self._made}-{name}"
        self.running[name] = server
        try:
            if stand.instances > 1 and not await_listeners(server.port, stand.instances):
                raise RunError(f"{stand.instances} instances do not listen")
            self._warm(server)
            yield name
        finally:
            server.stop()
            del self.running[name]
        if stand.recorded is not None:
            self._on_record(family, stand, stand.recorded, home)
        for tail in tails_of(home.resolve()).values():  # of a gateway that had to be killed; nobody comes back for it
            tail.unlink(missing_ok=True)
        shutil.rmtree(home)

    def _warm(self, server: Server) -> None:
        """Load it a little: what is made for the first time counts nowhere."""
        spec = {**WARM.spec, "seconds": 0.3, "port": server.port, "headers": server.headers}
        self._load(spec)
        self._base = proc.memory(self._serving(server)) / 1e6

    def _calm(self, name: str) -> None:
        """Let the librarian take in what the load before has left, for a while: it is idle when nobody else is busy, and warms nobody's cache."""
        root = self.running[name].root
        beside = proc.librarians(proc.tree(root)) if root else []
        deadline = time.monotonic() + (0.0 if self.options.quick else CALM_SECONDS)
        while beside and time.monotonic() < deadline:
            used = proc.Usage.of(beside)
            time.sleep(LOOK_SECONDS)
            if proc.Usage.of(beside).since(used) < LOOK_SECONDS / 5:
                return

    def _serving(self, server: Server) -> list[int]:
        return proc.serving(server.root) if server.root else []

    def _load(self, spec: dict[str, object]) -> Result:
        result: Result = json.loads(_call((sys.executable, "-m", "tests.bench.growth.load", json.dumps(spec))))
        return result

    def _load_it(self, family: Family, stand: Stand, load: Load, name: str) -> None:
        result, verdict, tries = self._believed(load.scenario, name)
        for figure in load.figures:
            key = family.figure(figure).key
            if key not in result or (name == DIRECT and key not in ("p50", "p99", "rate")):
                continue
            for series in stand.series:
                cell = self._cell(family, figure, series, load.x)
                cell.enter(result[key], str(verdict) if verdict.disturbed else "")
                cell.repeated += tries - 1

    def _measure(self, scenario: Scenario, name: str) -> tuple[Result, proc.Quiet]:
        """The bench's, and what the server holds: at its peak (``peak``) and in the end (``held``), MB."""
        serving = self._serving(self.running[name])
        self._calm(name)
        self._base = min(self._base, proc.memory(serving) / 1e6)  # what the warming took is given back in a while
        forget_peaks(serving)
        result, verdict = super()._measure(scenario, name)
        result = {"held": proc.memory(serving) / 1e6, "peak": peak(serving), **result}
        result["librarian_share"] = result.get("librarian", 0.0) * 100
        if "streams" in result:
            result["stream_memory"] = (result["held"] - self._base) / result["streams"] * 1000
        if result.get("sent") and "cpu" in result:
            result["cpu_mb"] = result["cpu"] * result["total"] / result["sent"]
        return result, verdict

    def _on_record(self, family: Family, stand: Stand, x: float, home: Path) -> None:
        """Body bytes that were relayed are journalled, or in a gap; every exchange that began has an end."""
        found = Audit.of(home)
        told = (("gaps", found.gaps), ("untold", found.untold), ("lost", found.unended + found.unknown))
        for series in stand.series:
            for figure, value in told:
                self._cell(family, figure, series, x).enter(float(value), "")
            if found.faults or not found.journalled:
                note = f"failed: {found.journalled} bytes are on record, with {found.faults} faults"
                self._cell(family, "untold", series, x).note(note)

    def _cell(self, family: Family, figure: str, series: str, x: float) -> Cell:
        return self.points[family.name].setdefault((figure, series, x), Cell())

    def _note(self, family: Family, stand: Stand, loads: Sequence[Load], text: str) -> None:
        for load in loads:
            for series in stand.series:
                self._cell(family, load.figures[0], series, load.x).note(text)


def forget_peaks(processes: Sequence[int]) -> None:
    """From now on the kernel notes anew how much each of them held at most."""
    for pid in processes:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="utf-8")


def peak(processes: Sequence[int]) -> float:
    """MB (10^6 bytes) that each of them held at most, summed; pages that they share count for each."""
    total = 0
    for pid in processes:
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return total * 1024 / 1e6

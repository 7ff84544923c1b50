"""Runs the scenarios: rounds interleaved over the servers, disturbed rounds repeated a bounded number of times.

It owns the order of the run and every process of it. What is measured stands in figures.py, how it is shown in report.py.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from tests.bench import proc
from tests.bench.figures import Result, Row, Scenario
from tests.bench.load import TIMEOUT, request
from tests.bench.peers import PEERS
from tests.bench.recorded import Recorded
from tests.bench.report import Cell, Cells, number
from tests.bench.servers import ROOT, FarEnd, Missing, Server, StartError, cores

LOAD_SECONDS = 120.0
SPOOL = "spool"
SETTLE_SECONDS = 40.0
"""How long a librarian may take for what an earlier load has left it, a flood of requests perhaps that no agent makes."""

LEFT_OPEN = "it kept streams open upstream after their callers had left, and was started anew"
REPEAT_SECONDS = 240.0
"""What a whole run may spend on repeating disturbed measurements: on a busy machine it must end all the same."""


class RunError(Exception):
    """One measurement failed; the text says on which server and how."""


@attrs.frozen
class Options:
    """What the command line asked for. ``repeats``: further tries of a disturbed measurement."""

    scenarios: tuple[Scenario, ...]
    servers: tuple[str, ...]
    rounds: int
    quick: bool
    repeats: int
    use_wrk: bool
    directory: Path
    say: Callable[[str], None] = print


def _call(argv: Sequence[str]) -> str:
    """Output of a child on the load core; RunError with its complaint when it fails."""
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RunError(f"no end within {LOAD_SECONDS:g} s") from None
    if done.returncode:
        raise RunError(done.stderr.strip()[-500:] or f"exit status {done.returncode}")
    return done.stdout


def wrk(spec: dict[str, object], directory: Path) -> Result:
    """The ``closed`` load made by wrk, which costs less CPU a request than any Python."""
    head, _, body = request(spec).partition(b"\r\n\r\n")
    pairs = [line.split(": ", 1) for line in head.decode().split("\r\n")[1:]]
    method, target, _version = head.decode().partition("\r")[0].split(" ")
    lines = [f"wrk.method = '{method}'", f"wrk.body = io.open('{directory}/wrk.body'):read('*a')"]
    lines += [f"wrk.headers['{name}'] = '{value}'" for name, value in pairs if name not in ("Content-Length", "Host")]
    (directory / "wrk.body").write_bytes(body)
    script = directory / "wrk.lua"
    script.write_text("\n".join(lines), encoding="utf-8")
    url = f"http://127.0.0.1:{spec['port']}{target}"
    shape = (
        "-t1",
        f"-c{spec['connections']}",
        f"-d{max(1, round(float(str(spec['seconds']))))}s",
        f"--timeout={TIMEOUT}s",
    )
    text = _call(("wrk", *shape, "-s", str(script), url))
    odd = re.search(r"Non-2xx.*|Socket errors.*", text)
    if odd:
        raise RunError(odd[0])
    rate = re.search(r"Requests/sec: *([\d.]+)", text)
    total = re.search(r"(\d+) requests in", text)
    if rate is None or total is None:
        raise RunError(f"wrk said {text[-300:]}")
    return {"rate": float(rate[1]), "total": float(total[1])}


class Bench:
    """One run. ``cells`` fills as it goes."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.cells: Cells = {}
        self.skipped: dict[str, str] = {}
        self.running: dict[str, Server] = {}
        self.recorded: dict[str, Recorded] = {}
        self._far: FarEnd | None = None
        self._made = 0
        self._repeating = 0.0

    @property
    def far(self) -> FarEnd:
        assert self._far is not None
        return self._far

    @property
    def names(self) -> tuple[str, ...]:
        return ("direct", *(name for name in self.options.servers if name not in self.skipped))

    def run(self) -> None:
        """Everything, then everything started is stopped, whatever happened."""
        before = os.sched_getaffinity(0)
        _proxy_core, load_core = cores()
        with contextlib.ExitStack() as stack:
            stack.callback(os.sched_setaffinity, 0, before)
            os.sched_setaffinity(0, load_core)
            self._far = FarEnd(self.options.directory)
            stack.callback(self._far.stop)
            stack.callback(self._stop)
            for name in ("direct", *self.options.servers):
                try:
                    self.running[name] = self._server(name)
                except (Missing, StartError) as reason:
                    if isinstance(reason, StartError) and name not in PEERS:
                        raise
                    self.skipped[name] = str(reason)
                    self.options.say(f"skipped {name}: {reason}")
            for scenario in self.options.scenarios:
                self._scenario(scenario)
        for name, server in self.running.items():
            if (server.directory / SPOOL).exists():
                self.recorded[name] = Recorded.of(server.directory)

    def _stop(self) -> None:
        for server in self.running.values():
            server.stop()

    def _server(self, name: str) -> Server:
        self._made += 1
        return Server(name, self.options.directory / f"{self._made}-{name}", self.far.port)

    def _anew(self, name: str) -> None:
        """A peer that failed, or that holds what nobody waits for, may be at work with it for long: the next one measured would pay."""
        self.running[name].stop()
        try:
            self.running[name] = self._server(name)
        except StartError as error:  # what is asked of it fails, and says so
            self.options.say(str(error))
        self.far.settle()

    def _scenario(self, scenario: Scenario) -> None:
        """A peer that has failed at it is not asked again."""
        failed = set[str]()
        for number_of_round in range(self.options.rounds):
            names = ("direct", *self._rotated(number_of_round))
            direct: Result = {}
            for name in names:
                if (name == "direct" and all(row.alone for row in scenario.rows)) or name in failed:
                    continue
                try:
                    result, verdict, tries = self._believed(scenario, name)
                except (RunError, StartError) as error:
                    for row in scenario.rows:
                        self.cells.setdefault((row.name, name), Cell()).note(f"failed: {error}")
                    if name in PEERS:
                        failed.add(name)
                        self._anew(name)
                    continue
                direct = result if name == "direct" else direct
                for row in scenario.rows:
                    self._enter(row, name, result, direct, verdict, tries)
            self._progress(scenario, number_of_round)

    def _rotated(self, by: int) -> tuple[str, ...]:
        """The proxies, another first each round, so that no one always follows the same neighbour."""
        names = self.names[1:]
        by %= max(1, len(names))
        return names[by:] + names[:by]

    def _progress(self, scenario: Scenario, at: int) -> None:
        parts = []
        for name in self.names:
            cell = self.cells.get((scenario.rows[0].name, name))
            if cell and cell.values:
                parts.append(f"{name} {number(cell.values[-1])}")
        self.options.say(f"{scenario.name} round {at + 1} of {self.options.rounds}: {', '.join(parts)}")

    def _believed(self, scenario: Scenario, name: str) -> tuple[Result, proc.Quiet, int]:
        """The first undisturbed measurement, or the least disturbed of the tries that are allowed."""
        tried = [self._measure(scenario, name)]
        while tried[-1][1].disturbed and len(tried) <= self.options.repeats and self._repeating < REPEAT_SECONDS:
            started = time.monotonic()
            tried.append(self._measure(scenario, name))
            self._repeating += time.monotonic() - started
        result, verdict = min(tried, key=lambda one: one[1].badness)
        return result, verdict, len(tried)

    @contextlib.contextmanager
    def _target(self, scenario: Scenario, name: str) -> Iterator[Server]:
        if not scenario.fresh:
            yield self.running[name]
            return
        server = self._server(name)
        try:
            yield server
        finally:
            server.stop()
            if (server.directory / SPOOL).exists():
                for row in scenario.rows:
                    self.cells.setdefault((row.name, name), Cell()).note(str(Recorded.of(server.directory)))
            shutil.rmtree(server.directory, ignore_errors=True)

    def _measure(self, scenario: Scenario, name: str) -> tuple[Result, proc.Quiet]:
        with self._target(scenario, name) as server, proc.paused(self._librarians(server)):
            spec: dict[str, object] = {
                **scenario.spec,
                "seconds": scenario.seconds[self.options.quick],
                "port": server.port,
                "headers": server.headers,
                "spoken": server.spoken,
                "proxy": server.root,
                "upstream": self.far.pid,
            }
            if scenario.fresh:
                self._load({**spec, "mode": "closed", "target": "/json", "connections": 64, "seconds": 0.2})
            proc.settle(proc.librarians(proc.tree(server.root)) if server.root else [], SETTLE_SECONDS)
            watch = proc.Watch(self._ours(server), server.root)
            used, beside = proc.Usage.of(watch.serving), proc.Usage.of(watch.beside)
            started = time.monotonic()
            if spec["mode"] == "start":
                result = {"start": server.start_seconds}
            elif scenario.wrk and self.options.use_wrk:
                result = wrk(spec, self.options.directory)
            else:
                result = self._load(spec)
            cpu, seconds = proc.Usage.of(watch.serving).since(used), time.monotonic() - started
            result = {"busy": cpu / seconds, "librarian": proc.Usage.of(watch.beside).since(beside) / seconds, **result}
            if result.get("total"):
                result["cpu"] = cpu / result["total"] * 1e6
            verdict = watch.verdict()
            if not self.far.settle():
                self._left_open(scenario, name)
            return result, verdict

    def _left_open(self, scenario: Scenario, name: str) -> None:
        """A fault; a peer's figures are believed all the same, since it was found after they had been measured."""
        if name not in PEERS:
            raise RunError("streams stayed open at the upstream after their callers had left")
        for row in scenario.rows:
            self.cells.setdefault((row.name, name), Cell()).note(LEFT_OPEN)
        self._anew(name)

    def _ours(self, server: Server) -> list[int]:
        """Who may use the machine. Peers that wait for their turn may not: what they do then would be in the figures of others."""
        waiting = (one for one in self.running.values() if one.name not in PEERS)
        return [self.far.pid, *(one.root for one in (*waiting, server) if one.root)]

    def _librarians(self, server: Server) -> list[int]:
        """Those of other servers: what they have left to do is not this one's burden."""
        others = [one.root for one in self.running.values() if one.root and one is not server]
        return proc.librarians([pid for root in others for pid in proc.tree(root)])

    def _load(self, spec: dict[str, object]) -> Result:
        result: Result = json.loads(_call((sys.executable, "-m", "tests.bench.load", json.dumps(spec))))
        return result

    def _enter(self, row: Row, name: str, result: Result, direct: Result, verdict: proc.Quiet, tries: int) -> None:
        if name == "direct" and row.alone:
            return
        cell = self.cells.setdefault((row.name, name), Cell())
        if name == "direct":
            if row.added:
                cell.note("the whole time")
        elif row.added and not direct:
            cell.note("failed: direct was not measured")
            return
        value = row.value(result, {row.key: 0.0} if name == "direct" else direct)
        cell.enter(value, str(verdict) if verdict.disturbed else "")
        cell.repeated += tries - 1
        if name != "direct":
            cell.busy.append(result.get("busy", 0.0))
            cell.beside.append(result.get("librarian", 0.0))
        elif row.bound:
            cell.capacity.append(row.capacity(result))

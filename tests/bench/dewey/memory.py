"""The gateway's memory while its librarian works through a backlog.

A real ``kgb serve --demo`` with the librarian that it starts; callers that go on sending bodies of an agent; and, all at once, the
spool of another gateway beside its own.
"""

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import attrs

from kgb_gateway.dewey.feed import SOCKET
from kgb_gateway.dewey.spool import SPOOL
from kgb_gateway.segments import segments_in
from tests.bench import proc, servers
from tests.bench.dewey.figures import NONE_AT_ALL, Bound, Figure, Sizes
from tests.bench.dewey.sessions import Session, interleaved, record
from tests.bench.dewey.texts import Prose

CALLERS = 8
LIMIT_SECONDS = 300.0
"""How long the librarian may take for the backlog."""

START_SECONDS = 20.0
LOOK_SECONDS = 0.05

GROWTH = 10.0
"""Megabytes by which the gateway may grow."""


def resident(pid: int) -> float:
    """Megabytes of a process that are in memory, what it shares included; 0.0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def lag(home: Path) -> int:
    """Bytes that the librarian says it is behind; -1 when it does not answer."""
    connection = http.client.HTTPConnection("dewey", timeout=5)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(5)
        connection.sock.connect(str(home / SOCKET))
        connection.request("GET", "/status")
        return int(json.loads(connection.getresponse().read()).get("lag_bytes", -1))
    except (OSError, ValueError, http.client.HTTPException):
        return -1
    finally:
        connection.close()


class Callers:
    """Threads that ask the gateway for one stream after the other with an agent's bodies, until they are stopped."""

    def __init__(self, port: int, turns: int) -> None:
        self._port = port
        self._bodies = cycle([exchange.body for exchange in Session(9, Prose(9)).exchanges(turns)])
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self.done = 0
        self.failed = ""
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(CALLERS)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            while not self._stopping.is_set():
                self._ask(connection)
        except (OSError, http.client.HTTPException) as error:
            self.failed = repr(error)
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            body = next(self._bodies)
        connection.request("POST", "/v1/messages", body, {"content-type": "application/json", "x-api-key": "none"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise http.client.HTTPException(f"{response.status} {answer[:200]!r}")
        with self._lock:
            self.done += 1

    def check(self) -> None:
        """RuntimeError when one was refused."""
        if self.failed:
            raise RuntimeError(f"a request failed: {self.failed}")


@contextmanager
def gateway(directory: Path) -> Iterator[tuple[int, int]]:
    """``kgb serve --demo`` with its data in ``directory``: pid and port."""
    port = servers.free_port()
    log = directory / "output.log"
    config = directory / "gateway.toml"
    config.write_text(
        f'data_dir = "{directory}"\n[links.access_log]\npath = "{directory}/access.log"\n', encoding="utf-8"
    )
    argv = ("-m", "kgb_gateway", "serve", "--demo", "--host", "127.0.0.1", "--port", str(port), "--config", str(config))
    child = servers.spawn((sys.executable, *argv), set(servers.cores()[0] | servers.cores()[1]), log)
    try:
        _listening(child, log)
        yield child.pid, port
    finally:
        servers.stop(child)


def _listening(child: "subprocess.Popen[str]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while "listening on" not in log.read_text(encoding="utf-8"):
        if child.poll() is not None or time.monotonic() > deadline:
            raise servers.StartError(f"the gateway did not start: {log.read_text(encoding='utf-8')[-2000:]}")
        time.sleep(LOOK_SECONDS)


@attrs.define
class _Seen:
    """What was seen while the librarian was behind."""

    before: float = 0.0
    most: float = 0.0
    after: float = 0.0
    librarian: float = 0.0
    lag: int = 0
    left: int = -1
    seconds: float = 0.0
    requests: int = 0

    def look(self, pid: int, home: Path) -> None:
        self.most = max(self.most, resident(pid))
        children = [resident(child) for child in proc.tree(pid)[1:]]
        self.librarian = max([self.librarian, *children])
        self.left = lag(home)
        self.lag = max(self.lag, self.left)


def memory(directory: Path, sizes: Sizes, say: Callable[[str], None]) -> list[Figure]:
    """The gateway's memory before, while and after its librarian works through a backlog."""
    home, elsewhere = directory / "home", directory / "elsewhere"
    home.mkdir(mode=0o700)
    total = record(elsewhere, interleaved(2 * sizes.sessions, sizes.turns), "other")
    say(f"a backlog of {total / 1e6:,.0f} MB")
    seen = _Seen()
    with gateway(home) as (pid, port):
        with Callers(port, sizes.turns) as callers:
            usual = 0
            while callers.done < sizes.warm or not usual:
                usual = max(usual, lag(home))
                callers.check()
                time.sleep(LOOK_SECONDS)
            seen.before, began, asked = resident(pid), time.monotonic(), callers.done
            for name in segments_in(elsewhere / SPOOL):
                (elsewhere / SPOOL / str(name)).rename(home / SPOOL / str(name))
            while (seen.lag < usual + total // 2 or seen.left > 2 * usual) and not _late(began):
                seen.look(pid, home)
                callers.check()
                time.sleep(LOOK_SECONDS)
            seen.seconds, seen.requests = time.monotonic() - began, callers.done - asked
        while seen.left and not _late(began):  # nobody asks any more
            time.sleep(LOOK_SECONDS)
            seen.left = lag(home)
        seen.after = resident(pid)
    return _figures(seen, usual, total)


def _late(began: float) -> bool:
    return time.monotonic() - began > LIMIT_SECONDS


def _figures(seen: _Seen, usual: int, total: int) -> list[Figure]:
    passed = f"{seen.requests} requests passed meanwhile"
    whole = f"before {seen.before:.1f}, at most {seen.most:.1f}, after {seen.after:.1f} MB; {passed}"
    return [
        Figure("memory_growth", "the gateway's memory while a backlog is taken in", "MB more", seen.most - seen.before,
               Bound(GROWTH), whole),
        Figure("memory_librarian", "the librarian's memory meanwhile, at most", "MB", seen.librarian),
        Figure("lag", "lag that the librarian tells, at most", "MB", seen.lag / 1e6,
               Bound(total / 2e6, most=False, exact=True), f"{usual / 1e6:.1f} before, with streams open; {total / 1e6:,.0f} MB gone after {seen.seconds:.1f} s"),
        Figure("lag_left", "lag when nobody asks any more", "bytes", seen.left, NONE_AT_ALL),
    ]  # fmt: skip

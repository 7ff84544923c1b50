"""The servers under test: a small table from a name to how it is started, and the child processes themselves.

It owns start, pinning, readiness and stop. A variant is one more line in SERVERS. It ends only what it started, by pid.
"""

import ctypes
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.bench.load import request
from tests.bench.peers import PEERS
from tests.bench.place import Command, Missing, Place, StartError
from tests.bench.upstream import listen

__all__ = ["SERVERS", "USUAL", "Command", "FarEnd", "Missing", "Place", "Server", "StartError", "cores", "gateway"]

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 8.0
_PARENT_DEATH = 1  # prctl(PR_SET_PDEATHSIG): nothing outlives a bench that was killed


@functools.cache
def cores() -> tuple[set[int], set[int]]:
    """(core of the proxy, core of load and upstream); the same one where there is no second."""
    allowed = sorted(os.sched_getaffinity(0))
    return {allowed[0]}, {allowed[min(1, len(allowed) - 1)]}


def _pinned(core: set[int]) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        os.sched_setaffinity(0, core)
        libc.prctl(_PARENT_DEATH, signal.SIGTERM)

    return prepare


def spawn(
    argv: Sequence[str],
    core: set[int],
    output: Path,
    stdout: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> "subprocess.Popen[str]":
    """A child on the given core, its output in a file, its standard input held open by this process. ``environment``: beside ours."""
    with output.open("a", encoding="utf-8") as log:
        return subprocess.Popen(
            argv,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=log if stdout is None else stdout,
            stderr=log,
            env={**os.environ, **(environment or {})},
            text=True,
            preexec_fn=_pinned(core),  # noqa: PLW1509 - this process has one thread
        )


def stop(child: "subprocess.Popen[str]") -> None:
    """SIGTERM, then SIGKILL after STOP_SECONDS, to this one child."""
    if child.stdin:
        child.stdin.close()
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    if child.stdout:
        child.stdout.close()


def free_port() -> int:
    """A port that was free a moment ago: nginx cannot be asked for port 0."""
    with listen() as sock:
        return int(sock.getsockname()[1])


NGINX_CONFIG = """
daemon off; worker_processes 1; worker_rlimit_nofile 20000; pid {directory}/nginx.pid;
error_log {directory}/error.log warn; {user}
events {{ worker_connections 19000; }}
http {{
    access_log {directory}/access.log combined;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    client_max_body_size 0; keepalive_requests 1000000000; keepalive_timeout 600s; tcp_nodelay on;
    upstream far {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://far; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
            proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s; proxy_send_timeout 600s;
        }}
    }}
}}
"""


def nginx(place: Place) -> Command:
    """Run nginx, streaming both ways, one worker, with its usual access log."""
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if not found:
        raise Missing("nginx is not on PATH")
    user = "user root;" if os.geteuid() == 0 else ""
    text = NGINX_CONFIG.format(directory=place.directory, port=place.port, upstream=place.upstream, user=user)
    return Command((found, "-p", str(place.directory), "-e", "error.log", "-c", str(place.write("nginx.conf", text))))


def reference(place: Place) -> Command:
    """The frozen shortest aiohttp proxy."""
    script = Path(__file__).with_name("reference_proxy.py")
    return Command((sys.executable, str(script), str(place.port), str(place.upstream)))


GATEWAY_CONFIG = """
upstream = "http://127.0.0.1:{upstream}"
data_dir = "{directory}"
chain = {chain}
{more}
"""


def gateway(*chain: str, more: str = "") -> Callable[[Place], Command]:
    """The gateway with these links: ``kgb serve`` with a configuration of its own, and a key when ``auth`` is there.

    ``more`` is TOML behind the flat keys; in it ``{directory}`` is the server's own directory.
    """

    def command(place: Place) -> Command:
        kgb = (sys.executable, "-m", "kgb_gateway")
        directory = place.directory
        config = GATEWAY_CONFIG.format(
            upstream=place.upstream, directory=directory, chain=list(chain), more=more.format(directory=directory)
        )
        path = place.write("gateway.toml", config)
        headers = {"x-kgb-key": _key(kgb, path)} if "auth" in chain else {}
        serve = ("serve", "--host", "127.0.0.1", "--port", str(place.port), "--config", str(path))
        return Command((*kgb, *serve), headers)

    return command


def _key(kgb: Sequence[str], config: Path) -> str:
    argv = (*kgb, "keys", "create", "bench", "--config", str(config))
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=15)
    if done.returncode:
        raise StartError(f"no key could be made: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


_LOG = """[links.access_log]
path = "{directory}/access.log"
"""

SERVERS: dict[str, Callable[[Place], Command]] = {
    "nginx": nginx,
    "reference": reference,
    "kgb": gateway("request_id", "access_log", "dewey_tap", "auth", "fiedler", more=_LOG),
    "kgb-off": gateway("request_id", "access_log", "auth", "fiedler", more=_LOG),
    "kgb-bare": gateway(),
    **PEERS,
}
"""Every proxy the bench knows, the peers (peers.py) last; ``kgb`` has the usual chain and records, ``kgb-off`` does not record; ``direct`` is always measured beside them."""

USUAL = ("nginx", "reference", "kgb", "kgb-off")
"""What is compared unless other servers are asked for."""


class Server:
    """One started server; ``root`` is its process, None for direct."""

    def __init__(self, name: str, directory: Path, upstream: int) -> None:
        self.name = name
        self.root: int | None = None
        self.headers: dict[str, str] = {}
        self.spoken = False
        self.port = upstream
        self.start_seconds = 0.0
        self.directory = directory
        self._child: subprocess.Popen[str] | None = None
        if name != "direct":
            directory.mkdir(parents=True)
            self._start(Place(directory, free_port(), upstream))

    def _start(self, place: Place) -> None:
        command = SERVERS[self.name](place)
        log = place.directory / "output.log"
        started = time.monotonic()
        self._child = spawn(command.argv, cores()[0], log, environment=command.environment)
        self.root, self.port, self.headers, self.spoken = self._child.pid, place.port, command.headers, command.spoken
        try:
            answer = self._wait(command.patience)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - started
        if not answer:
            self.stop()
            raise StartError(f"{self.name} did not answer on port {place.port}: {log.read_text()[-2000:]}")

    def _wait(self, seconds: float) -> bool:
        """True as soon as a request comes back with 200."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._child is not None and self._child.poll() is None:
            if self.get("/json").startswith(b"HTTP/1.1 200"):
                return True
            time.sleep(0.005)
        return False

    def get(self, target: str) -> bytes:
        """First bytes of the answer to one request without a body (of its own) on a fresh connection; b"" when there is none."""
        headers = {"Connection": "close", **self.headers}
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
                sock.sendall(request({"target": target, "port": self.port, "headers": headers, "spoken": self.spoken}))
                return sock.recv(65536)
        except OSError:
            return b""

    def stop(self) -> None:
        if self._child is not None:
            stop(self._child)


class FarEnd:
    """The fake upstream as a child process on the other core."""

    def __init__(self, directory: Path) -> None:
        argv = (sys.executable, "-m", "tests.bench.upstream")
        self._child = spawn(argv, cores()[1], directory / "upstream.log", subprocess.PIPE)
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            stop(self._child)
            raise StartError(f"the fake upstream did not start: {(directory / 'upstream.log').read_text()}")
        self.port = int(line)
        self.pid = self._child.pid
        self._direct = Server("direct", directory, self.port)

    def settle(self, seconds: float = 10.0) -> bool:
        """Wait until no stream is open any more."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if re.search(rb'"streams": 0\b', self._direct.get("/stats")):
                return True
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        stop(self._child)

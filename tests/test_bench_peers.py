"""The peers of the bench: found where they are installed, set up, asked in a shape that they relay, and told truthfully when they fail.

No figure is judged here, and none is needed: what takes a peer that has to be installed is marked `soak`, but for HAProxy.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import __main__ as command
from tests.bench import load, peers, place, proc, report, runner, servers, shapes, upstream
from tests.bench.figures import SCENARIOS, Row, Scenario

EACH = pytest.mark.parametrize("name", list(peers.PEERS))
TARGETS = ("/json", "/stream?count=2&gap=20", "/stream?gap=5&stamp=1", "/bytes?size=400")
SPEED = Scenario("speed", {"mode": "none"}, (0.1, 0.1), (Row("speed", "speed", "requests/s", "rate", more=True),))


@pytest.fixture
def far() -> Iterator[upstream.Upstream]:
    loop = upstream.Upstream(upstream.listen())
    thread = threading.Thread(target=loop.run)
    thread.start()
    port = loop.listener.getsockname()[1]
    yield loop
    loop.stop()
    with contextlib.suppress(OSError):  # wakes it where it still waits
        socket.create_connection(("127.0.0.1", port)).close()
    thread.join(5)
    assert not thread.is_alive()


def spec(far: upstream.Upstream, **more: object) -> dict[str, object]:
    port = far.listener.getsockname()[1]
    return {"port": port, "target": "/json", "seconds": 0.1, "upstream": os.getpid(), "spoken": True, **more}


def ask(far: upstream.Upstream, *parts: bytes) -> bytes:
    """The answer to a request sent in these parts, chunks and all."""
    with socket.create_connection(("127.0.0.1", far.listener.getsockname()[1]), timeout=5) as sock:
        for part in parts:
            sock.sendall(part)
        answer, data, done = load.Answer(), b"", False
        while not done:
            piece = sock.recv(65536)
            assert piece
            data, done = data + piece, answer.feed(piece)
        return data.partition(b"\r\n\r\n")[2]


def events(body: bytes) -> list[dict[str, object]]:
    """Those of a chunked stream."""
    return [json.loads(line.removeprefix(b"data: ")) for line in body.split(b"\n") if line.startswith(b"data: ")]


# The shape of the Messages API.


@given(st.sampled_from(TARGETS), st.integers(0, 3000), st.booleans(), st.sampled_from([None, 2]))
def test_what_is_asked_for_is_found_however_a_peer_writes_it(
    target: str, size: int, blocks: bool, indent: int | None
) -> None:
    body = shapes.asking(target, size)
    assert len(body) == max(size, len(shapes.asking(target, 0)))
    told = json.loads(body)
    assert told["stream"] is target.startswith("/stream")
    if blocks:
        told["messages"][0]["content"] = [{"type": "text", "text": told["messages"][0]["content"]}]
    again = json.dumps(dict(reversed(told.items())) | {"metadata": {"user_id": "a/json"}}, indent=indent)
    assert shapes.asked(again.encode()) == target.encode()


def test_a_body_that_asks_for_nothing_is_known() -> None:
    assert shapes.asked(b'{"model": "/json-or-so", "messages": []}') == b""


def head(length: str) -> bytes:
    return f"POST /v1/messages?beta=true HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n".encode()


BODY = shapes.asking("/bytes?size=9", 200)


@pytest.mark.parametrize(
    "parts",
    [
        (head("Content-Length: 200") + BODY,),
        (head("Content-Length: 200"), BODY[:50], BODY[50:]),
        (head("Transfer-Encoding: chunked") + b"c8\r\n" + BODY[:100], BODY[100:] + b"\r\n", b"0\r\n\r\n"),
        (head("Transfer-Encoding: chunked"), b"c8\r\n" + BODY + b"\r\n0\r\n\r\n"),
    ],
    ids=["at once", "in pieces", "chunks in pieces", "chunks at once"],
)
def test_the_upstream_reads_what_is_wanted_from_the_body(far: upstream.Upstream, parts: tuple[bytes, ...]) -> None:
    told = json.loads(ask(far, *parts))
    assert told["type"] == "message"
    assert told["content"] == [{"type": "text", "text": shapes.words(9)}]
    assert far.requests == 1


def test_a_stream_is_one_that_the_api_would_send(far: upstream.Upstream) -> None:
    body = ask(far, load.request(spec(far, target="/stream?count=3&gap=1", body=300)))
    told = events(body)
    assert [each["type"] for each in told] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert told[2]["delta"] == {"type": "text_delta", "text": "@" + "x" * 25}
    assert body.count(shapes.EVENT_MARK) == far.events == 3


@pytest.mark.parametrize("shape", [shapes.RAW, shapes.SPOKEN], ids=["raw", "spoken"])
def test_a_stamped_event_is_as_long_and_has_one_mark(shape: shapes.Shape) -> None:
    stamped = shape.stamped % 123
    assert len(stamped) == len(shape.event)
    assert stamped.count(shapes.EVENT_MARK) == 1
    assert b"@%020d" % 123 in stamped
    for other in (shape.begin, shape.end, shape.big(100)):
        assert shapes.EVENT_MARK not in other


def test_every_load_can_be_made_in_that_shape(far: upstream.Upstream) -> None:
    assert load.latency(spec(far, target="/stream?count=2&gap=1", body=300))["count"] > 0
    assert far.events == 2 * far.requests
    closed = load.closed(spec(far, connections=3, body=50_000, warm=0.0))
    assert closed["count"] == closed["total"] > 0
    assert load.bulk(spec(far, target="/bytes?size=200000"))["rate"] > 0
    streams = load.streams(spec(far, connections=5, target="/stream?gap=5", warm=0.05, body=300))
    assert 0 < streams["count"] <= far.events
    paced = load.paced(spec(far, connections=5, target="/stream?gap=5&stamp=1", warm=0.05, body=300))
    assert 0 < paced["p50"] <= paced["p99"]


def test_wrk_sends_the_same_request(far: upstream.Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def call(argv: tuple[str, ...]) -> str:
        asked.append(argv)
        return "10 requests in 1.00s\nRequests/sec: 10.00"

    monkeypatch.setattr(runner, "_call", call)
    told = spec(far, body=300, connections=8, seconds=1, headers={"x-api-key": "k"})
    assert runner.wrk(told, tmp_path) == {"rate": 10.0, "total": 10.0}
    assert asked[0][-1] == f"http://127.0.0.1:{told['port']}/v1/messages"
    assert (tmp_path / "wrk.body").read_bytes() == shapes.asking("/json", 300)
    script = (tmp_path / "wrk.lua").read_text(encoding="utf-8")
    assert "wrk.method = 'POST'" in script
    assert "wrk.headers['x-api-key'] = 'k'" in script


# Where they are, and how they are set up.


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where peers are looked for: there are none, and none on PATH."""
    monkeypatch.setattr(peers, "HOME", tmp_path / "peers")
    monkeypatch.setattr(shutil, "which", lambda *_args, **_kwargs: None)
    return tmp_path / "peers"


def installed(home: Path, name: str, text: str = "") -> Path:
    program = home / name / peers.PROGRAMS[name][0]
    program.parent.mkdir(parents=True)
    program.write_text(text, encoding="utf-8")
    program.chmod(0o755)
    return program


@EACH
def test_a_peer_that_is_absent_is_skipped_with_the_way_to_have_it(home: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(place.Missing, match=f"install_peers {name}$"):
        peers.PEERS[name](place.Place(tmp_path, 1, 2))
    assert peers.version(name) == "absent"
    assert not home.exists()


@EACH
def test_a_peer_listens_where_it_is_told_and_relays_to_the_upstream(home: Path, tmp_path: Path, name: str) -> None:
    program = installed(home, name)
    made = peers.PEERS[name](place.Place(tmp_path / "place", 45_678, 34_567))
    assert made.argv[0] == str(program)
    files = [path.read_text(encoding="utf-8") for path in (tmp_path / "place").rglob("*") if path.is_file()]
    told = "\n".join([*made.argv, *made.headers.values(), *files])
    assert "45678" in told
    assert "127.0.0.1:34567" in told
    assert made.spoken is (name not in ("haproxy", "mitmproxy"))


def test_a_peer_is_called_by_the_version_of_its_package(home: Path) -> None:
    installed(home, "haproxy", "#!/bin/sh\necho HAProxy version 2.6.12-1+deb12u4 2026/10/17")
    assert peers.version("haproxy") == "2.6.12-1+deb12u4"
    installed(home, "litellm")
    (home / "litellm/lib/python3.13/site-packages/litellm-1.2.3.dist-info").mkdir(parents=True)
    assert peers.version("litellm") == "1.2.3"
    package = home / "portkey/node_modules/@portkey-ai/gateway"
    (package / "build").mkdir(parents=True)
    (package / "package.json").write_text('{"version": "4.5.6"}', encoding="utf-8")
    (package / "build/start-server.js").touch()
    (home / "portkey/node_modules/.bin").mkdir()
    (home / "portkey/node_modules/.bin/gateway").symlink_to("../@portkey-ai/gateway/build/start-server.js")
    assert peers.version("portkey") == "4.5.6"


INSTALL = servers.ROOT / "tests" / "bench" / "install_peers"


def install(tmp_path: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """The script, with commands that say what they were called with instead of doing it; ``npm`` fails at Portkey."""
    (tmp_path / "bin").mkdir()
    for name, code in {
        "python3": 'mkdir -p "$4/bin" && ln -sf "$0" "$4/bin/pip"',
        "pip": "true",
        "npm": 'case "$*" in *portkey*) exit 1 ;; esac',
        "haproxy": "true",
    }.items():
        program = tmp_path / "bin" / name
        program.write_text(
            f'#!/bin/sh\necho "CALLED {name} $*"\n[ "$1" = install ] && [ {name} = python3 ] && exit\n{code}\n'
        )
        program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    return subprocess.run([INSTALL, *words], env=environment, capture_output=True, text=True, check=False, timeout=20)


def test_the_script_installs_each_into_a_directory_of_its_own_and_tells_what_it_could_not(tmp_path: Path) -> None:
    done = install(tmp_path, "--to", str(tmp_path / "peers"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "not installed: portkey"
    asked = [line.split() for line in done.stdout.splitlines() if line.startswith("CALLED")]
    assert [words[1] for words in asked] == ["python3", "python3", "python3", "python3", "npm", "npm"]
    for name in ("litellm", "mitmproxy", "portkey", "claude-code-router"):
        assert any(f"{tmp_path}/peers/{name}" in words for words in asked), name
    headings = [line.removeprefix("== ") for line in done.stdout.splitlines() if line.startswith("== ")]
    assert headings == list(dict.fromkeys(headings))
    assert set(headings) == set(peers.PEERS)


def test_the_script_installs_what_it_is_asked_for_and_knows_no_others(tmp_path: Path) -> None:
    done = install(tmp_path, "--to", str(tmp_path / "peers"), "mitmproxy")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "peers").iterdir()] == ["mitmproxy"]
    for words, status in ((["nonsense"], 2), (["--help"], 0), (["--nonsense"], 1)):
        done = subprocess.run([INSTALL, *words], capture_output=True, text=True, check=False, timeout=20)
        assert done.returncode == status
        assert "litellm" in done.stdout + done.stderr


# In a run.


def options(directory: Path, *names: str, rounds: int = 1) -> runner.Options:
    return runner.Options((), names, rounds, True, 0, False, directory, lambda _text: None)


def broken(_place: place.Place) -> place.Command:
    return place.Command((sys.executable, "-c", "raise SystemExit('no such thing')"))


def test_peers_are_compared_when_they_are_asked_for() -> None:
    assert not set(servers.USUAL) & set(peers.PEERS)
    assert command.compared(None, peers=True) == (*servers.USUAL, *peers.PEERS)
    assert command.compared("nginx,haproxy", peers=False) == ("nginx", "haproxy")
    assert command.compared("nginx,haproxy", peers=True).count("haproxy") == 1
    assert set(peers.PROGRAMS) == set(peers.PEERS)
    with pytest.raises(SystemExit, match="no such server"):
        command.compared("nonsense", peers=True)


def test_a_peer_that_does_not_start_is_skipped_with_what_it_said_and_no_other_server_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(servers.SERVERS, "litellm", broken)
    bench = runner.Bench(options(tmp_path / "a", "litellm"))
    (tmp_path / "a").mkdir()
    bench.run()
    assert "no such thing" in bench.skipped["litellm"]
    assert bench.names == ("direct",)
    monkeypatch.setitem(servers.SERVERS, "kgb", broken)
    (tmp_path / "b").mkdir()
    with pytest.raises(place.StartError, match="no such thing"):
        runner.Bench(options(tmp_path / "b", "kgb")).run()


@attrs.define
class Idle:
    """A server that does nothing."""

    name: str
    root: int | None = None
    stopped: int = 0

    def stop(self) -> None:
        self.stopped += 1


@attrs.define
class Open:
    """An upstream whose streams stay open or not."""

    closed: bool = True
    pid: int = 1

    def settle(self) -> bool:
        return self.closed


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runner.Bench:
    """Three rounds of servers that do nothing."""
    made = runner.Bench(options(tmp_path, "kgb", "litellm", rounds=3))
    monkeypatch.setattr(made, "_far", Open())
    monkeypatch.setattr(runner.Bench, "_server", lambda _self, name: Idle(name))
    monkeypatch.setattr(made, "running", {name: Idle(name) for name in made.names})
    return made


def test_a_peer_that_fails_is_started_anew_and_not_asked_the_same_again(
    bench: runner.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measure(_self: runner.Bench, _scenario: Scenario, name: str) -> tuple[dict[str, float], proc.Quiet]:
        asked.append(name)
        if name != "direct":
            raise runner.RunError("not a 200")
        return {"rate": 1.0}, proc.Quiet(0.0, 0.0, 0.0, 0.0)

    monkeypatch.setattr(runner.Bench, "_measure", measure)
    before = dict(bench.running)
    bench._scenario(SPEED)
    assert [asked.count(name) for name in ("direct", "kgb", "litellm")] == [3, 3, 1]
    assert before["litellm"].stopped == 1
    assert bench.running["litellm"] is not before["litellm"]
    assert bench.running["kgb"] is before["kgb"]
    assert bench.cells["speed", "litellm"].notes == ["failed: not a 200"]


def test_streams_that_stay_open_are_a_fault_but_a_peers_figures_are_kept(bench: runner.Bench) -> None:
    bench._left_open(SPEED, "litellm")
    assert bench.cells["speed", "litellm"].notes == [runner.LEFT_OPEN]
    with pytest.raises(runner.RunError, match="stayed open"):
        bench._left_open(SPEED, "kgb")


def test_what_a_waiting_peer_does_disturbs_the_others(bench: runner.Bench) -> None:
    for number, server in enumerate(bench.running.values()):
        server.root = number + 10
    assert bench._ours(bench.running["kgb"]) == [1, 10, 11, 11]
    assert bench._ours(bench.running["litellm"]) == [1, 10, 11, 12]


def test_what_several_runs_wrote_is_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row for one in SCENARIOS for row in one.rows][:2]
    paths = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "all.json"]
    cells: report.Cells = {("json_64", "kgb"): report.Cell([10.0, 12.0], quiet=[10.0, 12.0])}
    skipped = {"litellm": "absent", "haproxy": "absent"}
    command.show(rows, cells, {"kernel": "x"}, skipped, command.parser().parse_args(["--json", str(paths[0])]))
    cells = {
        ("json_64", "kgb"): report.Cell([70.0], last_disturbance="steal 9%"),
        ("json_64", "haproxy"): report.Cell([5.0], quiet=[5.0]),
    }
    command.show(rows, cells, {"kernel": "y"}, {}, command.parser().parse_args(["--json", str(paths[1])]))
    capsys.readouterr()
    words = [*(f"--from={path}" for path in paths[:2]), f"--json={paths[2]}", "--only=json_64"]
    arguments = command.parser().parse_args(words)
    assert command.again(command.chosen(arguments.only), arguments) == 0
    text = capsys.readouterr().out
    assert "1 of 3 rounds disturbed (steal 9%)" in text
    assert "skipped litellm: absent" in text
    assert "skipped haproxy" not in text
    told = json.loads(paths[2].read_text(encoding="utf-8"))
    assert told["machine"] == {"kernel": "y"}
    assert told["figures"]["json_64"]["servers"]["kgb"]["rounds"] == [10.0, 12.0, 70.0]
    assert told["figures"]["json_64"]["servers"]["kgb"]["median"] == 11.0
    assert list(told["figures"]["json_64"]["servers"]) == ["kgb", "haproxy"]


@pytest.mark.parametrize(
    "name", [name if name == "haproxy" else pytest.param(name, marks=pytest.mark.soak) for name in peers.PEERS]
)
def test_a_peer_that_is_installed_relays_answers_and_streams(tmp_path: Path, name: str) -> None:
    try:
        peers.find(name)
    except place.Missing as reason:
        pytest.skip(str(reason))
    far = servers.FarEnd(tmp_path)
    server = None
    try:
        server = servers.Server(name, tmp_path / name, far.port)
        told = {"port": server.port, "headers": server.headers, "spoken": server.spoken, "body": 300, "seconds": 0.2}
        assert load.latency({**told, "target": "/json"})["count"] > 0
        assert load.latency({**told, "target": "/stream?count=2&gap=2"})["count"] > 0
        paced = load.paced({**told, "target": "/stream?gap=20&stamp=1", "connections": 3, "warm": 0.1})
        assert paced["p50"] < 100  # events pass as they come
    finally:
        if server is not None:
            server.stop()
        far.stop()

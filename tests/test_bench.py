"""The parts of the bench work: its upstream answers, its generator counts right, its table and verdict say what was measured.

No figure is judged here: a shared machine may be as slow as it likes.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import __main__ as command
from tests.bench import load, proc, report, runner, servers, shapes, upstream
from tests.bench.figures import BOUNDS, SCENARIOS, TARGETS, Row, Scenario, reached
from tests.bench.recorded import Recorded

MORE = Row("speed", "speed", "requests/s", "rate", more=True, bound=True)
LESS = Row("delay", "delay", "ms", "p50", more=False, added=True)


@attrs.frozen
class Far:
    """A fake upstream in a thread of this process."""

    upstream: upstream.Upstream
    port: int

    def spec(self, **more: object) -> dict[str, object]:
        """A load spec for it."""
        return {"port": self.port, "target": "/json", "seconds": 0.1, "upstream": os.getpid(), **more}


@pytest.fixture
def far() -> Iterator[Far]:
    loop = upstream.Upstream(upstream.listen())
    port = loop.listener.getsockname()[1]
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield Far(loop, port)
    loop.stop()
    with contextlib.suppress(OSError):  # wakes it where it still waits
        socket.create_connection(("127.0.0.1", port)).close()
    thread.join(5)
    assert not thread.is_alive()


def ask(port: int, *parts: bytes) -> tuple[bytes, bytes]:
    """Head and body of one answer to a request sent in these parts."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        for part in parts:
            sock.sendall(part)
        answer, data = load.Answer(), b""
        while not answer.feed(piece := sock.recv(65536)):
            assert piece
            data += piece
        head, _, body = (data + piece).partition(b"\r\n\r\n")
        return head, body


@pytest.mark.parametrize(
    "parts",
    [
        (b"GET /json HTTP/1.1\r\nHost: a\r\n\r\n",),
        (b"GET /js", b"on HTTP/1.1\r\nHost: a\r\n\r", b"\n"),
        (b"POST /json HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 4\r\n\r\nab", b"cd"),
        (b"POST /json HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", b"0\r", b"\n\r\n"),
        (b"POST /json HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n",),
    ],
    ids=["no body", "head in pieces", "length", "chunks in pieces", "chunks at once"],
)
def test_upstream_answers_json_after_the_whole_request(far: Far, parts: tuple[bytes, ...]) -> None:
    head, body = ask(far.port, *parts)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == shapes.JSON_BODY
    assert json.loads(body)["type"] == "message"


def test_upstream_does_not_answer_before_the_body_has_ended(far: Far) -> None:
    with socket.create_connection(("127.0.0.1", far.port), timeout=5) as sock:
        sock.sendall(b"POST /json HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabc")
        ask(far.port, b"GET /json HTTP/1.1\r\nHost: a\r\n\r\n")
        assert far.upstream.requests == 1
        sock.sendall(b"d")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    assert far.upstream.requests == 2


def test_upstream_sends_so_many_events_and_ends_the_stream(far: Far) -> None:
    head, body = ask(far.port, b"GET /stream?count=5&gap=1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"text/event-stream" in head
    assert body == shapes.CHUNK * 5 + shapes.LAST_CHUNK
    assert json.loads(ask(far.port, b"GET /stats HTTP/1.1\r\nHost: a\r\n\r\n")[1]) == {
        "streams": 0,
        "events": 5,
        "skipped": 0,
        "requests": 2,
    }


def test_upstream_sends_big_bodies_whole(far: Far) -> None:
    _head, body = ask(far.port, b"GET /bytes?size=3000000 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert body == b"x" * 3_000_000


def test_an_event_carries_its_mark_once() -> None:
    assert len(shapes.EVENT) == 120
    assert shapes.EVENT.endswith(b"\n\n")
    for text in (shapes.CHUNK, shapes.STREAM_HEAD + shapes.CHUNK):
        assert text.count(shapes.EVENT_MARK) == 1
    assert shapes.EVENT_MARK not in shapes.JSON_ANSWER


WHOLE = [
    shapes.JSON_ANSWER,
    shapes.STREAM_HEAD + shapes.CHUNK * 3 + shapes.LAST_CHUNK,
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
]


@given(st.sampled_from(WHOLE), st.lists(st.integers(1, 700), max_size=8))
def test_the_end_of_an_answer_is_found_however_it_is_cut(whole: bytes, cuts: list[int]) -> None:
    answer = load.Answer()
    edges = [0, *sorted(cut for cut in set(cuts) if cut < len(whole)), len(whole)]
    ends = [answer.feed(whole[start:end]) for start, end in itertools.pairwise(edges)]
    assert ends == [False] * (len(ends) - 1) + [True]
    assert answer.events == whole.count(shapes.EVENT_MARK)


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"nonsense\r\n\r\n"],
    ids=["status", "no framing", "no HTTP"],
)
def test_an_answer_that_would_spoil_the_figure_stops_the_load(head: bytes) -> None:
    with pytest.raises(load.LoadError):
        load.Answer().feed(head)


@pytest.mark.parametrize("target", ["/json", "/stream?count=3&gap=1"])
def test_closed_load_counts_every_answer_once(far: Far, target: str) -> None:
    result = load.closed(far.spec(connections=5, body=100_000, warm=0.0, target=target))
    assert result["count"] == result["total"] > 0
    assert 0 <= far.upstream.requests - result["total"] <= 5
    assert result["rate"] == pytest.approx(result["count"] / 0.1)


def test_latency_load_times_the_first_byte_of_every_request(far: Far) -> None:
    result = load.latency(far.spec(target="/stream?count=2&gap=1", body=300))
    assert 0 < result["p50"] <= result["p99"]
    assert 0 < result["count"] <= far.upstream.requests
    assert far.upstream.events == 2 * far.upstream.requests


@pytest.mark.parametrize(
    "direction", [{"body": 400_000}, {"target": "/bytes?size=400000"}, {"target": "/stream?count=4&gap=1"}]
)
def test_bulk_load_reads_and_sends_whole_bodies(far: Far, direction: dict[str, object]) -> None:
    result = load.bulk(far.spec(**direction))
    assert result["rate"] > 0
    assert result["count"] == far.upstream.requests


def test_stream_load_counts_the_events_of_all_streams_and_leaves(far: Far) -> None:
    result = load.streams(far.spec(connections=20, target="/stream?gap=5", warm=0.05, proxy=os.getpid()))
    assert 0 < result["count"] <= far.upstream.events
    assert result["rate"] > 0
    assert result["p50"] <= result["p99"]
    ask(far.port, b"GET /stats HTTP/1.1\r\nHost: a\r\n\r\n")
    for _ in range(500):  # the upstream notices each caller's leaving by itself
        if not far.upstream.streams:
            break
        time.sleep(0.01)
    assert far.upstream.streams == 0


def test_streams_that_end_early_stop_the_load(far: Far) -> None:
    with pytest.raises(load.LoadError, match="2 of 2 streams broke"):
        load.streams(far.spec(connections=2, target="/bytes?size=10"))


def test_a_load_run_that_fails_says_so_and_exits_with_1(far: Far) -> None:
    spec = json.dumps(far.spec(mode="closed", connections=1, port=servers.free_port()))
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.load", spec],
        cwd=servers.ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ConnectionRefusedError")


def test_the_headers_of_a_server_are_sent(far: Far) -> None:
    text = load.request(far.spec(headers={"x-kgb-key": "k"}, body=3))
    assert text.startswith(b"POST /json HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nx-kgb-key: k\r\n" in text
    assert text.endswith(b"\r\nContent-Length: 3\r\n\r\nxxx")


def test_cpu_and_tree_of_a_child_are_seen() -> None:
    before = proc.Usage.of([os.getpid()])
    deadline = time.process_time() + 0.05
    while time.process_time() < deadline:
        pass
    assert proc.Usage.of([os.getpid()]).since(before) >= 0.04
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in proc.tree(os.getpid())
        assert proc.memory([child.pid]) > 0
        child.communicate(b"\n")
    assert child.pid not in proc.tree(os.getpid())


def test_a_servers_own_threads_do_not_disturb_it() -> None:
    before = {(1, "1"): (0.0, 0.0), (1, "2"): (0.0, 0.0)}
    assert proc.kept_waiting(before, {(1, "1"): (1.0, 0.2), (1, "2"): (0.2, 0.9)}) == pytest.approx(0.0)
    assert proc.kept_waiting(before, {(1, "1"): (1.0, 0.5), (1, "2"): (0.2, 0.9)}) == pytest.approx(0.3)
    assert proc.kept_waiting({}, before) == 0.0


@pytest.mark.parametrize(
    ("shares", "disturbed"),
    [((0.0, 0.0, 0.0), False), ((0.02, 0.0, 0.0), True), ((0.0, 0.2, 0.0), True), ((0.0, 0.0, 0.1), True)],
    ids=["quiet", "steal", "foreign", "run queue"],
)
def test_a_disturbed_stretch_is_known(shares: tuple[float, float, float], disturbed: bool) -> None:
    assert proc.Quiet(*shares, load=0.0).disturbed is disturbed


def options(directory: Path) -> runner.Options:
    return runner.Options((), (), 1, True, 2, False, directory, lambda _text: None)


@pytest.mark.parametrize(
    ("noise", "tries", "value"), [([0.0], 1, 0.0), ([0.9, 0.0], 2, 1.0), ([0.9, 0.5, 0.7], 3, 1.0)]
)
def test_disturbed_measurements_are_repeated_a_bounded_number_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: list[float], tries: int, value: float
) -> None:
    made = iter(enumerate(noise))

    def measure(_self: runner.Bench, _scenario: Scenario, _name: str) -> tuple[dict[str, float], proc.Quiet]:
        at, foreign = next(made)
        return {"rate": float(at)}, proc.Quiet(0.0, foreign, 0.0, 0.0)

    monkeypatch.setattr(runner.Bench, "_measure", measure)
    result, verdict, taken = runner.Bench(options(tmp_path))._believed(SCENARIOS[0], "direct")
    assert (result["rate"], taken) == (value, tries)
    assert verdict.disturbed is (tries == 3)


def cells() -> report.Cells:
    found: report.Cells = {}
    for name, speed, delay in (
        ("direct", 900.0, 1.0),
        ("nginx", 400.0, 2.0),
        ("reference", 100.0, 8.0),
        ("kgb", 150.0, 4.0),
    ):
        found["speed", name] = report.Cell(values=[speed], quiet=[speed])
        found["delay", name] = report.Cell(values=[delay, delay + 1, delay + 2], quiet=[delay])
    return found


def test_the_table_shows_medians_spread_and_ratios() -> None:
    lines = report.table([MORE, LESS], ["direct", "nginx", "reference", "kgb"], cells()).splitlines()
    assert lines[0].split("  ")[0] == "figure"
    kgb = [line.split() for line in lines if " kgb " in line]
    assert kgb[0][:7] == ["kgb", "150", "150", "..", "150", "0.375", "1.50"]
    assert kgb[1][:7] == ["kgb", "4.00", "4.00", "..", "6.00", "2.00", "0.500"]
    assert "2 of 3 rounds disturbed" in " ".join(kgb[1])


def test_missing_figures_stay_visible_and_are_no_numbers() -> None:
    found: report.Cells = {("speed", "kgb"): report.Cell(notes=["failed: 502"])}
    text = report.table([MORE], ["kgb"], found)
    assert "failed: 502" in text
    document = report.document([MORE], ["kgb"], found, {"kernel": "x"})
    assert json.loads(json.dumps(document, allow_nan=False))["figures"]["speed"]["servers"]["kgb"]["median"] is None


@pytest.mark.parametrize(
    ("row", "direct", "bound"),
    [(MORE, {"rate": 299.0}, True), (MORE, {"rate": 300.0}, False), (MORE, {"rate": 160.0, "generator": 0.5}, False),
     (LESS, {"rate": 1.0, "p50": 1.0}, False)],
)  # fmt: skip
def test_rows_that_the_generator_may_have_bounded_say_so(
    tmp_path: Path, row: Row, direct: dict[str, float], bound: bool
) -> None:
    bench, quiet = runner.Bench(options(tmp_path)), proc.Quiet(0.0, 0.0, 0.0, 0.0)
    bench._enter(row, "direct", direct, direct, quiet, 1)
    bench._enter(row, "kgb", {"rate": 150.0, "p50": 150.0, "busy": 0.9}, direct, quiet, 1)
    text = " ".join(report.remarks(bench.cells, row, "kgb"))
    assert ("generator-bound" in text) is bound
    assert ("90% busy" in text) is bound


def test_added_rows_subtract_direct_of_the_same_round(tmp_path: Path) -> None:
    bench, quiet = runner.Bench(options(tmp_path)), proc.Quiet(0.0, 0.0, 0.0, 0.0)
    bench._enter(LESS, "direct", {"p50": 1.0}, {"p50": 1.0}, quiet, 1)
    bench._enter(LESS, "kgb", {"p50": 3.5}, {"p50": 1.0}, quiet, 2)
    bench._enter(LESS, "nginx", {"p50": 3.5}, {}, quiet, 1)
    assert bench.cells["delay", "direct"].values == [1.0]
    assert bench.cells["delay", "kgb"].values == [2.5]
    assert bench.cells["delay", "kgb"].repeated == 1
    assert bench.cells["delay", "nginx"].values == []
    assert bench.cells["delay", "nginx"].notes == ["failed: direct was not measured"]


@pytest.mark.parametrize(
    ("row", "value", "other", "factor", "met"),
    [
        (MORE, 200.0, 100.0, 2.0, True),
        (MORE, 199.0, 100.0, 2.0, False),
        (LESS, 4.0, 8.0, 0.5, True),
        (LESS, 4.1, 8.0, 0.5, False),
        (MORE, 98.0, 100.0, 1.0, True),
        (MORE, 96.0, 100.0, 1.0, False),
        (LESS, 104.0, 100.0, 1.0, False),
    ],
)
def test_targets_are_judged_in_their_own_direction(
    row: Row, value: float, other: float, factor: float, met: bool
) -> None:
    assert reached(row, value, other, factor) is met


def test_missed_and_unmeasured_targets_are_named() -> None:
    rows = [row for one in SCENARIOS for row in one.rows]
    found: report.Cells = {}
    for row in rows:
        for name in ("reference", "kgb"):
            found[row.name, name] = report.Cell(values=[10.0], quiet=[10.0])
    del found["up", "kgb"]
    missed = report.misses(rows, found, "kgb")
    assert [line.partition(":")[0] for line in missed] == ["json_64", "first_byte_p50", "up"]
    assert "kgb 10.0 requests/s, wanted >= 2 x reference (10.0)" in missed[0]


def test_every_target_names_a_row_and_a_yardstick() -> None:
    rows = {row.name for one in SCENARIOS for row in one.rows}
    assert {target.row for target in TARGETS} <= rows
    assert {command.GATEWAY, *(target.against for target in TARGETS)} <= set(servers.USUAL) <= set(servers.SERVERS)
    assert len({one.name for one in SCENARIOS}) == len(SCENARIOS)


def test_nginx_that_is_absent_is_skipped_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_kwargs: None)
    with pytest.raises(servers.Missing, match="nginx is not on PATH"):
        servers.nginx(servers.Place(tmp_path, 1, 2))


def test_a_server_that_does_not_start_shows_what_it_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = servers.Command((sys.executable, "-c", "raise SystemExit('no such thing')"))
    monkeypatch.setitem(servers.SERVERS, "broken", lambda _place: broken)
    with pytest.raises(servers.StartError, match="no such thing"):
        servers.Server("broken", tmp_path / "broken", 1)


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "STOP_SECONDS", 0.2)
    code = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    )
    child = servers.spawn([sys.executable, "-c", code], servers.cores()[0], tmp_path / "log", subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    servers.stop(child)
    assert child.returncode == -signal.SIGKILL


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"--only nonsense: .*json_64"):
        command.chosen(["nonsense"])
    assert [one.name for one in command.chosen(["event_cpu", "json_1"])] == ["json_1", "streams_200"]
    assert "start" not in [one.name for one in command.chosen(None)]


def test_the_gateway_is_started_with_its_key_and_asks_for_it(far: Far, tmp_path: Path) -> None:
    server = servers.Server("kgb", tmp_path / "kgb", far.port)
    try:
        assert server.headers["x-kgb-key"].startswith("kgb_")
        server.headers = {}
        assert server.get("/json").startswith(b"HTTP/1.1 401")
    finally:
        server.stop()
    assert (tmp_path / "kgb" / "access.log").read_text(encoding="utf-8").count('"path":"/json"') >= 2
    assert server.root is not None
    assert server.root not in proc.pids()


def test_the_command_measures_a_real_proxy_and_stops_everything(tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    words = [
        "--quick",
        "--no-wrk",
        "--only",
        "json_64",
        "--only",
        "up",
        "--servers",
        "reference",
        "--json",
        str(output),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *words],
        cwd=servers.ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text(encoding="utf-8"))
    measured = document["figures"]["json_64"]["servers"]["reference"]
    assert measured["median"] > 0
    assert measured["vs_reference"] == 1.0
    assert document["machine"]["python"]
    assert "small JSON, 64 connections [requests/s]" in done.stdout


def test_bounds_are_ratios_in_their_own_direction_and_unmeasured_ones_are_left_out() -> None:
    rows = [row for one in SCENARIOS for row in one.rows]
    found: report.Cells = {
        ("json_64", "nginx"): report.Cell(values=[100.0]),
        ("json_64", "kgb"): report.Cell(values=[25.0]),
        ("event_cpu", "nginx"): report.Cell(values=[10.0]),
        ("event_cpu", "kgb"): report.Cell(values=[17.0]),
        ("event_p99_1000", "kgb"): report.Cell(values=[2.0]),
        ("event_p99_5000", "kgb"): report.Cell(values=[3.0]),
    }
    text, missed = report.bounds(rows, found, "kgb")
    lines = text.splitlines()[2:]
    assert [line.split()[-1] for line in lines] == ["yes", "MISSED", "goal"]
    assert missed == ["event_cpu: 1.70 of nginx, wanted <= 1.6"]


def test_every_bound_names_a_row_and_a_server() -> None:
    rows = {row.name for one in SCENARIOS for row in one.rows}
    assert {name for bound in BOUNDS for name in (bound.row, bound.of) if name} <= rows
    assert {bound.against for bound in BOUNDS} <= set(servers.USUAL)


# What is on record.


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Recorded(0, 100, 100), "on record: all of it"),
        (Recorded(25, 75, 100), "in gaps: 25.0% of 100 bytes"),
        (Recorded(20, 75, 100, 2, 1), "in gaps: 20.0% of 100 bytes, 5 bytes not told, 2 without an end, 1 faults"),
    ],
)
def test_what_is_not_on_record_is_said(found: Recorded, said: str) -> None:
    assert str(found) == said


def test_who_stands_still_goes_on_afterwards() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with proc.paused([child.pid, 2**22 + 1]):
            assert _comes(child.pid, stands=True)
        assert _comes(child.pid, stands=False)
    finally:
        child.kill()
        child.wait()


def _comes(pid: int, *, stands: bool) -> bool:
    for _ in range(1000):
        if (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T") is stands:
            return True
        time.sleep(0.01)
    return False

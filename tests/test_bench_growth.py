"""The growth bench says what it measured: its definitions hang together, tables, limits and plots tell what they were given, and what it
builds to grow (chains, spools, instances) is what the gateway takes it for.

No figure is judged here: a shared machine may be as slow as it likes.
"""

import json
import os
import re
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from xml.etree import ElementTree as ET

import attrs
import pytest

from fiedler_proxy.chain import compose
from fiedler_proxy.config import Faults
from fiedler_proxy.links import Entering
from kgb_gateway.dewey.librarian import Librarian
from kgb_gateway.dewey.spool import Layout
from kgb_gateway.journal import Journal, JournalOptions, gap_payload
from kgb_gateway.record import Frame, Kind, encode
from kgb_gateway.segments import Name, head_of, is_held
from kgb_gateway.tail import Gap, Tail, tail_path
from tests.bench import load as plain
from tests.bench import plots, runner, servers
from tests.bench.figures import Scenario
from tests.bench.growth import __main__ as command
from tests.bench.growth import audit, instances, links, run, spool
from tests.bench.growth import load as more
from tests.bench.growth.families import FAMILIES
from tests.bench.growth.figures import Family, Figure, Limit, Load, Points, Stand, document, table, verdicts
from tests.bench.report import Cell
from tests.spools import prices

MB = 1024 * 1024
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))

LOAD = Load(1, Scenario("one", {"mode": "latency"}, (0.1, 0.1), ()), ("cpu",))
FAMILY = Family(
    "made",
    "Things that grow",
    "things",
    (Figure("cpu", "CPU a thing", "us", "cpu"), Figure("p99", "delay: p99", "ms", "p99")),
    (Stand(("kgb",), None, (LOAD,)), Stand(("nginx",), None, (LOAD,))),
    (Limit("cpu", "kgb", 1000, 1, 1.2), Limit("p99", "kgb", 1000, 1, 1.0, 0.5, exact=True), Limit("cpu", "nginx", 9, 1, 1)),
    labels={1000: "many"},
)  # fmt: skip


@pytest.fixture
def points() -> Points:
    return {
        ("cpu", "kgb", 1): Cell(values=[10.0, 12.0], quiet=[10.0, 12.0]),
        ("cpu", "kgb", 1000): Cell(values=[14.0, 40.0], quiet=[14.0], last_disturbance="steal 9%"),
        ("cpu", "nginx", 1): Cell(values=[5.0], quiet=[5.0]),
        ("cpu", "nginx", 1000): Cell(notes=["failed: no nginx"]),
        ("p99", "kgb", 1): Cell(values=[1.0], quiet=[1.0]),
        ("p99", "kgb", 1000): Cell(values=[1.4], quiet=[1.4]),
    }


# Definitions.


@each_family
def test_figures_and_limits_name_what_is_measured(family: Family) -> None:
    figures = {figure.name for figure in family.figures}
    assert len(figures) == len(family.figures)
    there = set()
    for stand in family.stands:
        assert stand.loads
        for load in stand.loads:
            assert set(load.figures) <= figures
            assert load.scenario.spec["mode"] in (*more.MODES, "start")
            assert load.scenario.seconds[0] <= 5
            there |= {(figure, series, load.x) for figure in load.figures for series in stand.series}
        if stand.recorded is not None:
            there |= {(name, series, stand.recorded) for name in ("gaps", "untold", "lost") for series in stand.series}
    for limit in family.limits:
        assert {(limit.figure, limit.series, limit.x), (limit.figure, limit.series, limit.of)} <= there


@each_family
def test_a_quick_run_has_something_to_compare(family: Family) -> None:
    assert len({load.x for stand in family.stands if stand.quick for load in stand.loads if load.quick}) > 1


def test_what_the_issue_names_is_there() -> None:
    def xs(name: str) -> set[float]:
        return {load.x for stand in FAMILIES[name].stands for load in stand.loads}

    assert {1, 10, 100, 1000, 5000} <= xs("streams")
    assert {1e3, 3e7} <= xs("bodies")
    assert {0, 40} <= xs("chain")
    assert {0, 1000} <= xs("disk")
    assert {0, 100} <= xs("spool")
    assert {1, 2} == xs("instances")
    (limit,) = (each for each in FAMILIES["instances"].limits if (each.figure, each.series) == ("cpu", "kgb"))
    assert (limit.x, limit.of, limit.factor, limit.plus) == (2, 1, 1.1, 0.0)


def test_unknown_families_are_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"--only nonsense: .*streams.*instances"):
        command.chosen(["nonsense"])
    assert [family.name for family in command.chosen(["spool", "chain"])] == ["chain", "spool"]
    assert command.chosen(None) == tuple(FAMILIES.values())


# What is told.


def test_the_table_has_a_column_a_point_and_a_line_a_series(points: Points) -> None:
    title, head, _rule, kgb, nginx, p99 = table(FAMILY, points).splitlines()
    assert title == "Things that grow, by things"
    assert head.split() == ["figure", "server", "1", "many", "notes"]
    assert kgb.split()[:8] == ["CPU", "a", "thing", "[us]", "kgb", "11.0", "14.0", "1"]
    assert "1 of 4 measurements disturbed (steal 9%)" in kgb
    assert nginx.split()[:3] == ["nginx", "5.00", "-"]
    assert nginx.endswith("failed: no nginx")
    assert p99.split()[-2:] == ["1.00", "1.40"]


def test_limits_are_judged_where_both_points_were_measured(points: Points) -> None:
    found = verdicts(FAMILY, points)
    assert [(each.value, pytest.approx(each.most), each.met) for each in found] == [
        (14.0, 13.2, False),
        (1.4, 1.5, True),
    ]
    assert found[0].text == "made, CPU a thing, kgb: 14.0 us at many, wanted <= 1.2 x 11.0 at 1 = 13.2"


@pytest.mark.parametrize(
    ("check", "quick", "p99", "status"),
    [
        (True, False, 1.4, 1),
        (False, False, 1.4, 0),
        (True, True, 1.4, 0),
        (True, True, 1.6, 1),
    ],
    ids=["missed", "not asked", "a quick run judges no speed", "but what depends on none"],
)
def test_the_exit_status_says_whether_limits_hold(
    points: Points, check: bool, quick: bool, p99: float, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    points["p99", "kgb", 1000] = Cell(values=[p99], quiet=[p99])
    words = [*(["--check"] if check else []), *(["--quick"] if quick else [])]
    arguments = command.parser().parse_args(words)
    assert command.show([FAMILY], {"made": points}, {}, arguments) == status
    assert ("MISSED" in capsys.readouterr().out) is (not quick or p99 > 1.5)


def test_the_document_is_json_with_every_point(points: Points, tmp_path: Path) -> None:
    path = tmp_path / "growth.json"
    command.show([FAMILY], {"made": points}, {"kernel": "x"}, command.parser().parse_args(["--json", str(path)]))
    told = json.loads(path.read_text(encoding="utf-8"))
    assert told["machine"] == {"kernel": "x"}
    cpu = told["families"]["made"]["lines"][0]
    assert (cpu["figure"], cpu["series"], cpu["unit"]) == ("cpu", "kgb", "us")
    assert [(point["label"], point["median"]) for point in cpu["points"]] == [("1", 11.0), ("many", 14.0)]
    assert told["families"]["made"]["lines"][1]["points"][1]["median"] is None
    assert [each["met"] for each in told["families"]["made"]["limits"]] == [False, True]


def test_what_several_runs_wrote_is_told_together(
    points: Points, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "all.json"]
    for path in paths[:2]:
        command.show([FAMILY], {"made": points}, {}, command.parser().parse_args(["--json", str(path)]))
        points["cpu", "kgb", 1] = Cell(values=[70.0, 90.0], quiet=[70.0], last_disturbance="steal 9%")
    capsys.readouterr()
    words = [*(f"--from={path}" for path in paths[:2]), f"--json={paths[2]}", "--check"]
    assert command.again([FAMILY], command.parser().parse_args(words)) == 0
    assert "3 of 8 measurements disturbed (steal 9%)" in capsys.readouterr().out
    (first, *_) = json.loads(paths[2].read_text(encoding="utf-8"))["families"]["made"]["lines"][0]["points"]
    assert first["rounds"] == [10.0, 12.0, 70.0, 90.0]
    assert first["median"] == 12.0  # of the quiet ones


# Plots.


def drawn(points: Points, to: Path) -> dict[str, str]:
    told = {
        "families": {"made": document(FAMILY, points)},
        "figures": {
            "a": {
                "title": "rate <a>",
                "more_is_better": True,
                "servers": {"nginx": {"median": 10}, "kgb": {"median": 5}},
            },
            "b": {
                "title": "delay",
                "more_is_better": False,
                "servers": {"nginx": {"median": 10}, "kgb": {"median": None}},
            },
        },
    }
    return {path.name: path.read_text(encoding="utf-8") for path in plots.draw(told, to)}


def test_plots_hold_their_words_and_are_the_same_each_time(points: Points, tmp_path: Path) -> None:
    first, second = drawn(points, tmp_path / "a"), drawn(points, tmp_path / "b")
    assert first == second
    assert set(first) == {"ratios.svg", "growth-made.svg"}
    for name, text in first.items():
        root = ET.fromstring(text)
        assert root.tag.endswith("svg")
        assert len(text) < 40_000
        assert "date" not in text.lower()
        words = {"".join(node.itertext()).strip() for node in root.iter() if node.tag.endswith("}text")}
        wanted = {"rate <a>", "kgb"} if name == "ratios.svg" else {"CPU a thing, us", "many", "things", "kgb", "nginx"}
        assert wanted <= words


def test_a_rate_is_drawn_as_time_and_what_nginx_has_not_is_left_out() -> None:
    figures = {
        "a": {"title": "rate", "more_is_better": True, "servers": {"nginx": {"median": 10}, "kgb": {"median": 4}}},
        "b": {"title": "delay", "more_is_better": False, "servers": {"nginx": {"median": 10}, "kgb": {"median": 30}}},
        "c": {"title": "start", "more_is_better": False, "servers": {"kgb": {"median": 3}}},
        "d": {"title": "added", "more_is_better": False, "servers": {"nginx": {"median": -0.1}, "kgb": {"median": 3}}},
    }
    assert plots.ratios_of(figures) == {"rate": {"kgb": 2.5}, "delay": {"kgb": 3.0}}


def test_without_matplotlib_the_bench_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"pip install -e '\.\[bench\]'"):
        plots.drawing()


def test_the_pictures_of_the_docs_are_there() -> None:
    page = (servers.ROOT / "docs" / "growth.rst").read_text(encoding="utf-8")
    named = re.findall(r"^\.\. image:: (\S+)", page, re.MULTILINE)
    assert {f"images/growth-{name}.svg" for name in FAMILIES} <= set(named)
    assert all((servers.ROOT / "docs" / name).exists() for name in named)


# What is on record.


class Record:
    """A spool and an access log, written frame by frame."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "spool").mkdir()
        self.frames = 0
        self.file = (home / "spool" / str(Name("a", 1))).open("wb")
        self.file.write(head_of(Name("a", 1), "0", 1.0))
        self.log = (home / "access.log").open("w", encoding="utf-8")

    def frame(self, exchange: int, kind: Kind, payload: bytes) -> None:
        self.frames += 1
        self.file.write(encode(Frame(self.frames, kind, exchange.to_bytes(16, "big"), 0, 0, payload)))

    def exchange(self, exchange: int, *, asked: int, gap: int, size: int, end: bool = True) -> None:
        """``asked`` bytes of a body on record, ``gap`` in a gap, of ``size`` in all."""
        self.frame(exchange, Kind.REQUEST_HEAD, b"{}")
        self.frame(exchange, Kind.REQUEST_BYTES, bytes(asked))
        if gap:
            key = exchange.to_bytes(16, "big")
            self.frame(exchange, Kind.GAP, gap_payload(Gap(key, Kind.REQUEST_BYTES, asked, gap)))
        if end:
            self.frame(exchange, Kind.END, json.dumps({"request_size": size, "response_size": 0}).encode())
        self.line(exchange)

    def line(self, exchange: int) -> None:
        self.log.write(json.dumps({"id": str(uuid.UUID(int=exchange))}) + "\n")

    def audit(self) -> audit.Audit:
        self.log.write('{"dropped": 3}\n')
        self.file.close()
        self.log.close()
        return audit.Audit.of(self.home)


def test_a_whole_record_lacks_nothing(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.exchange(1, asked=100, gap=0, size=100)
    record.exchange(2, asked=60, gap=40, size=100)
    found = record.audit()
    assert found == audit.Audit(exchanges=2, journalled=160, gaps=40, untold=0, unended=0, unknown=0, faults=0)


def test_what_is_missing_without_a_word_is_told(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.exchange(1, asked=70, gap=20, size=100)  # too little ...
    record.exchange(2, asked=110, gap=0, size=100)  # ... and too much do not make up for each other
    record.exchange(3, asked=10, gap=0, size=10, end=False)
    record.line(4)
    found = record.audit()
    assert (found.untold, found.unended, found.unknown, found.exchanges) == (20, 1, 1, 4)


# What is made to grow.


@pytest.mark.parametrize(("kind", "enters"), [("enter", True), ("around", False)])
def test_a_chain_takes_forty_links_of_a_kind(kind: str, enters: bool) -> None:
    faults = Faults()
    chain = compose(links.names(kind, links.MOST), {}, faults, always=())
    assert not faults.found
    assert len(chain.links) == len({id(link) for link in chain.links}) == links.MOST
    assert {isinstance(link, Entering) for link in chain.links} == {enters}


def test_a_spool_looks_as_large_as_it_says_and_takes_no_disk(tmp_path: Path) -> None:
    count = spool.fill(tmp_path, 40 * MB, segment_size=4 * MB)
    sizes = [path.stat() for path in (tmp_path / "spool").iterdir()]
    assert count == len(sizes) == 10
    assert sum(each.st_size for each in sizes) == pytest.approx(40 * MB, rel=0.05)
    assert sum(each.st_blocks * 512 for each in sizes) < MB


def test_a_journal_and_a_librarian_take_such_a_spool_for_real(tmp_path: Path) -> None:
    spool.fill(tmp_path, 12 * MB, segment_size=4 * MB)
    tail = Tail.open(tail_path(tmp_path, spool.INSTANCE), 2 * MB)
    journal = Journal(tmp_path / "spool", spool.INSTANCE, tail, JournalOptions(), "0")
    journal.start()
    assert journal.sequence == 2 + 4 * MB // (256 * 1024 + 60)
    journal.stop()
    fd = spool.hold(tmp_path)
    assert fd is not None
    try:
        librarian = Librarian(tmp_path, prices())
        assert [is_held(tmp_path / "spool" / str(name)) for name in Layout(tmp_path).segments()] == [True, False, False]
        librarian.step()
        assert librarian.sealable() == []
        assert librarian.ingest.totals.problems == 0
        librarian.close()
    finally:
        os.close(fd)
    assert spool.hold(tmp_path / "nowhere") is None


def test_an_empty_spool_has_nothing_to_hold(tmp_path: Path) -> None:
    assert spool.fill(tmp_path, 0) == 0
    assert spool.hold(tmp_path) is None
    assert Layout(tmp_path).store.exists()


def test_those_who_listen_are_counted() -> None:
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        two.bind(("127.0.0.1", port))
        one.listen()
        assert instances.listeners(port) == 1
        assert not instances.await_listeners(port, 2, seconds=0.05)
        two.listen()
        assert instances.await_listeners(port, 2, seconds=5)


# Loads.


@pytest.fixture
def far(tmp_path: Path) -> "servers.FarEnd":
    return servers.FarEnd(tmp_path)


def test_the_loads_of_growth_tell_what_they_promise(far: "servers.FarEnd") -> None:
    try:
        spec = {"port": far.port, "seconds": 0.2, "body": 100_000, "target": "/json", "gap": 10}
        whole = more.whole(spec)
        assert 0 < whole["p50"] <= whole["p99"]
        assert whole["count"] + 1 == whole["total"] <= 22  # no more than the gap lets through
        assert whole["sent"] == pytest.approx(whole["total"] / 10)
        spec = {**spec, "target": "/stream?gap=5&stamp=1", "connections": 5, "warm": 0.1, "proxy": far.pid}
        watched = more.watched(spec)
        assert watched["streams"] == 5
        assert watched["count"] > 5
        assert watched["cpu"] > 0
        assert watched["held"] > 0
        assert 0 < watched["p50"] <= watched["p99"]
        with pytest.raises(plain.LoadError, match="streams broke"):
            more.watched({**spec, "target": "/bytes?size=10"})
    finally:
        far.stop()


def test_a_peak_is_seen_after_it_is_over_and_forgotten_on_demand() -> None:
    code = "input(); bytearray(10**8); print('done', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"done\n"
        assert run.peak([child.pid]) > 100
        run.forget_peaks([child.pid])
        assert run.peak([child.pid]) < 100
        child.communicate(b"\n")
    assert run.peak([child.pid]) == 0


def test_what_fails_is_a_note_at_its_points(tmp_path: Path) -> None:
    def broken(_place: servers.Place) -> servers.Command:
        return servers.Command((sys.executable, "-c", "raise SystemExit('no such thing')"))

    family = attrs.evolve(FAMILY, stands=(Stand(("kgb",), broken, (LOAD,)),))
    growth = run.Growth([family], runner.Options((), (), 1, True, 0, False, tmp_path, lambda _text: None))
    growth.run()
    assert growth.running == {run.DIRECT: growth.running[run.DIRECT]}
    (cell,) = growth.points["made"].values()
    assert cell.values == []
    assert "no such thing" in cell.notes[0]
    assert "no such thing" in table(family, growth.points["made"])


def test_the_command_measures_what_is_on_record_and_draws_it(tmp_path: Path) -> None:
    output = tmp_path / "growth.json"
    words = ["--quick", "--only", "disk", "--json", str(output), "--plots", str(tmp_path), "--check"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.growth", *words],
        cwd=servers.ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(output.read_text(encoding="utf-8"))["families"]["disk"]
    values = {(line["figure"], point["x"]): point["median"] for line in told["lines"] for point in line["points"]}
    assert values["p99", 0] > 0
    assert values["untold", 100] == values["lost", 100] == 0
    assert (tmp_path / "growth-disk.svg").exists()

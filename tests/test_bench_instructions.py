"""The count of instructions: what is judged, what is said, what passes while it is counted; and, marked soak, that a slower gateway fails.

But for that nothing is counted here.
"""

import ast
import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import pytest
from aiohttp import web

from fiedler_proxy.exchange import Exchange
from fiedler_proxy.server import Handler
from tests.bench.instructions import __main__ as command
from tests.bench.instructions import counting, kept, yardstick
from tests.bench.instructions.kept import Count, Kept, Verdict, verdicts
from tests.bench.instructions.wires import EVENT, MEGABYTE, PIECE, Ends
from tests.bench.instructions.works import WORKS, Work
from tests.bench.load import LoadError
from tests.bench.servers import ROOT, StartError
from tests.bench.upstream import listen

BEFORE = Count(gateway=200.0, yardstick=100.0)


def verdict(gateway: float, yardstick_count: float = 100.0, before: Count | None = BEFORE) -> Verdict:
    return Verdict("a thing", "a piece", Count(gateway, yardstick_count), before)


@pytest.fixture
def file() -> Kept:
    return Kept(
        figures={"request": BEFORE},
        frozen=kept.frozen(),
        optional=kept.optional(),
        counted={"python": "3.11.7", "valgrind": "3.19.0"},
    )


# The judgement.


@pytest.mark.parametrize(
    ("gateway", "yardstick_count", "above", "stale"),
    [
        (200.0, 100.0, False, False),
        (219.0, 100.0, False, False),
        (221.0, 100.0, True, False),
        (181.0, 100.0, False, False),
        (179.0, 100.0, False, True),
        (260.0, 130.0, False, False),
        (200.0, 80.0, True, False),
    ],
    ids=[
        "the same",
        "9 % more",
        "11 % more",
        "9 % less",
        "11 % less",
        "another Python",
        "the same of a shorter measure",
    ],
)
def test_a_tenth_more_than_the_kept_ratio_fails(
    gateway: float, yardstick_count: float, above: bool, stale: bool
) -> None:
    found = verdict(gateway, yardstick_count)
    assert (found.above, found.fails, found.stale) == (above, above, stale)
    assert found.advice.split(" ")[0] == ("ABOVE" if above else "UPDATE" if stale else "")


def test_the_message_says_what_how_much_and_what_to_do() -> None:
    found = verdict(250.0)
    for part in ("a thing", "250 instructions a piece", "2.500 times", "kept 2.000 (200)", "+25.0%"):
        assert part in found.line
    for part in ("ABOVE a thing", "25.0% more", "10%", "--keep DIR", "callgrind_annotate", "--update"):
        assert part in found.advice


def test_a_gain_is_to_be_kept_and_is_no_failure() -> None:
    found = verdict(150.0)
    assert "25.0% less than kept" in found.advice
    assert "--update" in found.advice
    assert not found.fails


def test_a_figure_that_is_not_on_file_fails() -> None:
    found = verdict(150.0, before=None)
    assert found.fails
    assert "none is kept" in found.line
    assert "none is kept" in found.advice


def test_each_figure_is_judged_by_its_own(file: Kept) -> None:
    titles = {"request": ("one", "a request"), "event": ("other", "an event")}
    counts = {"request": Count(230.0, 100.0), "event": BEFORE}
    assert [(each.title, each.kept, each.above) for each in verdicts(titles, counts, file)] == [
        ("one", BEFORE, True),
        ("other", None, False),
    ]


# The file.


def test_what_is_kept_is_read_again(file: Kept) -> None:
    assert Kept.of(file.text()) == file
    assert json.loads(file.text())["figures"]["request"]["ratio"] == 2.0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"figures": {"request": {"gateway": 1}}}'])
def test_what_is_no_such_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a file of kept figures|Expecting value"):
        Kept.of(text)


def test_figures_of_another_yardstick_are_not_compared(file: Kept) -> None:
    assert not file.unlike(file)
    assert "yardstick.py or wires.py is not what it was" in attrs.evolve(file, frozen="other").unlike(file)


@pytest.mark.parametrize(("there", "words"), [(True, "with isal, .* without"), (False, "without isal, .* with")])
def test_figures_with_and_without_a_compiled_package_are_not_compared(file: Kept, there: bool, words: str) -> None:
    before, now = (attrs.evolve(file, optional={"isal": each}) for each in (there, not there))
    with pytest.raises(AssertionError, match=words):
        assert not before.unlike(now)


def test_the_figures_on_file_are_of_this_yardstick_and_of_all_works() -> None:
    found = Kept.of(kept.FILE.read_text(encoding="utf-8"))
    assert found.frozen == kept.frozen(), "yardstick.py or wires.py has changed: see FROZEN"
    assert list(found.figures) == [work.name for work in WORKS]
    assert set(found.optional) == set(kept.OPTIONAL)
    assert all(each.ratio > 1 for each in found.figures.values())


# The command.


def concluded(words: list[str], gateway: float, file: Kept | None) -> int:
    counts = {work.name: Count(gateway, 100.0) for work in WORKS}
    if file is not None:
        file = attrs.evolve(file, figures=dict.fromkeys(counts, BEFORE))
    return command.conclude(command.parser().parse_args(words), counts, file)


@pytest.mark.parametrize(
    ("words", "gateway", "status"),
    [(["--check"], 230.0, 1), (["--check"], 210.0, 0), (["--check"], 100.0, 0), ([], 230.0, 0)],
    ids=["above", "within", "below", "not asked"],
)
def test_the_exit_status_says_whether_the_gain_is_kept(
    file: Kept, words: list[str], gateway: float, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert concluded(words, gateway, file) == status
    assert ("ABOVE" in capsys.readouterr().out) is (gateway > 220)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="the file tells valgrind's version")
def test_update_writes_what_check_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "kept.json"
    assert concluded(["--update", "--file", str(path)], 250.0, None) == 0
    found = command.read(path)
    assert {name: each.ratio for name, each in found.figures.items()} == {work.name: 2.5 for work in WORKS}
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize("text", [None, "{}"], ids=["no file", "no such file"])
def test_without_figures_nothing_is_judged(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "kept.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(counting.NotHere, match=r"no figures are kept in .*kept\.json"):
        command.read(path)


def test_without_valgrind_it_says_so_with_a_status_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.instructions", "--check"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (command.NOT_HERE, "")
    assert "valgrind is not on PATH (apt-get install valgrind)" in done.stdout


def test_ci_has_the_step_and_what_it_needs() -> None:
    assert "-m tests.bench.instructions --check" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "missing+=(valgrind)" in (ROOT / ".ci" / "common").read_text(encoding="utf-8")


# Callgrind's files.


def test_totals_are_read() -> None:
    assert counting.totals("events: Ir\nsummary: 5\n\nfn=(1)\n1 7\ntotals: 12\n") == 12
    with pytest.raises(StartError, match="without totals"):
        counting.totals("events: Ir\n")


def test_a_call_that_began_earlier_is_a_call_to_callgrind_annotate() -> None:
    text = "cfn=(2) a\ncalls=0 3\n4 100\ncfn=(3) b\ncalls=2 3\n4 50\n"
    assert counting.annotatable(text) == text.replace("calls=0", "calls=1")


# What passes while it is counted.


@attrs.frozen
class Standing:
    """The yardstick in a thread of this process, and the listener of its upstream. ``stop``: it has done all it has to when it returns."""

    port: int
    listener: socket.socket
    stop: Callable[[], None]


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standing]:
    nears: list[yardstick.Near] = []
    real = yardstick.Near

    def near(upstream: int, ring: yardstick.Ring) -> yardstick.Near:
        nears.append(real(upstream, ring))
        return nears[-1]

    monkeypatch.setattr(yardstick, "Near", near)
    with listen() as listener, listen() as reserved:
        listener.settimeout(5)
        port = reserved.getsockname()[1]
        reserved.close()
        loop, up = asyncio.new_event_loop(), threading.Event()

        async def serve() -> None:
            server = await yardstick.serve(port, listener.getsockname()[1])
            loop.call_soon(up.set)
            async with server:
                await stop.wait()
                for each in nears:  # before the server ends: since Python 3.12 it waits for them
                    for transport in (each.transport, each.far.transport):
                        if transport is not None:
                            transport.abort()
            await asyncio.sleep(0)  # a transport is closed at the end of its turn

        stop = asyncio.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        assert up.wait(5)

        def end() -> None:
            if thread.is_alive():
                loop.call_soon_threadsafe(stop.set)
                thread.join(5)
                loop.close()

        yield Standing(port, listener, end)
        end()


@pytest.fixture
def frames(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Kind and size of everything that the yardstick puts on record."""
    found: list[tuple[int, int]] = []
    append = yardstick.Ring.append

    def noted(self: yardstick.Ring, kind: int, key: bytes, data: bytes) -> None:
        found.append((kind, len(data)))
        append(self, kind, key, data)

    monkeypatch.setattr(yardstick.Ring, "append", noted)
    return found


@pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
def test_each_work_passes_the_yardstick_and_is_on_its_record(
    work: Work, standing: Standing, frames: list[tuple[int, int]]
) -> None:
    ends = Ends(standing.port, standing.listener, {"x-kgb-key": "some"})
    ends.request(1)
    with work.within(ends, 2):
        work.do(ends, 2)
    ends.request(1)  # an exchange of its own follows
    standing.stop()
    ends.close()
    request = [1, 2, 3, 4, 5]
    kinds = [kind for kind, _ in frames]
    if work.name == "request":
        assert kinds == request * 4
    elif work.name == "event":
        assert kinds == [*request, 1, 2, 3, 4, 4, 4, 5, *request]
        assert [size for _, size in frames[8:11]] == [len(EVENT)] * 3
    else:
        assert kinds.count(5) == 3
        assert {size for kind, size in frames[6:-8] if kind == 2} == {PIECE}
        assert sum(size for _, size in frames) > 2 * MEGABYTE


def test_a_proxy_that_goes_away_is_told(standing: Standing) -> None:
    ends = Ends(standing.port, standing.listener, {})
    ends.request(1)
    standing.stop()
    with pytest.raises((LoadError, OSError)):
        ends.request(1)
    ends.close()


def test_the_yardstick_knows_nothing_but_the_standard_library() -> None:
    tree = ast.parse(Path(yardstick.__file__).read_text(encoding="utf-8"))
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert named
    assert {name.split(".")[0] for name in named} <= sys.stdlib_module_names


# It can fail.


@web.middleware
@attrs.frozen
class Slower:
    """A link that costs about a seventh of a small request."""

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        return await handler(request)

    def enter(self, _request: web.Request, _exchange: Exchange) -> Awaitable[web.StreamResponse] | None:
        for number in range(110):
            str(number)
        return None


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not on PATH")
def test_a_gateway_that_costs_a_seventh_more_fails(tmp_path: Path) -> None:
    (work,) = (each for each in WORKS if each.name == "request")
    counts: list[Count] = []
    for name, more in (("before", ()), ("after", ("tests.test_bench_instructions:Slower",))):
        (tmp_path / name).mkdir()
        chain = (*counting.CHAIN[:-1], *more, counting.CHAIN[-1])
        run = counting.Counting(tmp_path / name, lambda _text: None, windows=2, chain=chain)
        counts.append(run.run([work])[work.name])
    before, after = counts
    assert Verdict(work.title, work.unit, after, before).above, (before, after)
    assert not Verdict(work.title, work.unit, before, before).fails
    assert after.yardstick == pytest.approx(before.yardstick, rel=0.02)

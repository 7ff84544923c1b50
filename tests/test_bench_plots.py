"""The pictures of ratios show what was measured: costs, bounds as costs, and what failed.

The pictures of growth are in test_bench_growth.py.
"""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.bench import __main__ as command
from tests.bench import plots
from tests.bench.figures import BOUNDS, SCENARIOS
from tests.bench.peers import PEERS
from tests.bench.report import Cell, Cells, document

OWN, RECORDING, THEIRS = plots.VIEWS


def told(*medians: tuple[str, str, float | None]) -> dict[str, Any]:
    """A document of these: row, server, median (none: it failed)."""
    cells: Cells = {}
    for row, name, value in medians:
        cells[row, name] = Cell(notes=["failed: not a 200"]) if value is None else Cell([value], quiet=[value])
    names = list(dict.fromkeys(name for _row, name, _value in medians))
    return document([row for one in SCENARIOS for row in one.rows], names, cells, {})


MEASURED = told(
    ("json_64", "nginx", 100.0),
    ("json_64", "reference", 10.0),
    ("json_64", "kgb", 25.0),
    ("json_64", "kgb-off", 30.0),
    ("json_64", "haproxy", 125.0),
    ("json_64", "litellm", None),
    ("event_cpu", "nginx", 10.0),
    ("event_cpu", "kgb", 15.0),
    ("event_cpu", "litellm", 80.0),
    ("start", "kgb", 1.0),
)


def test_bars_are_costs_and_so_are_their_bounds() -> None:
    rate, cpu = OWN.bars(MEASURED["figures"])
    assert rate.costs == {"reference": 10.0, "kgb": 4.0, "kgb-off": pytest.approx(100 / 30)}
    assert (rate.must, rate.goal) == (5.0, pytest.approx(1 / 0.35))
    assert (cpu.costs, cpu.must, cpu.goal) == ({"kgb": 1.5}, 1.6, 1.3)
    (recording,) = RECORDING.bars(MEASURED["figures"])
    assert recording.costs == {"kgb": pytest.approx(1.2)}
    assert (recording.must, recording.goal) == (pytest.approx(1 / 0.9), None)  # one mark where both are the same


def test_peers_stand_beside_the_gateway_and_say_where_they_failed() -> None:
    rate, cpu = THEIRS.bars(MEASURED["figures"])
    assert (rate.costs, rate.failed) == ({"kgb": 4.0, "haproxy": 0.8}, ["litellm"])
    assert (cpu.costs, cpu.failed) == ({"kgb": 1.5, "litellm": 8.0}, [])
    assert (rate.must, rate.goal) == (None, None)
    alone = told(("json_64", "nginx", 100.0), ("json_64", "kgb", 25.0))
    assert THEIRS.bars(alone["figures"]) == []
    assert RECORDING.bars(alone["figures"]) == []
    assert {name for view in plots.VIEWS for name in view.servers} == {"reference", "kgb", "kgb-off", *PEERS}


def test_every_bound_but_those_against_another_row_is_in_a_picture() -> None:
    drawn = [bound for view in plots.VIEWS for bound in view.bounds]
    assert [bound for bound in BOUNDS if bound not in drawn and not bound.of] == [
        bound for bound in BOUNDS if bound.row == "start"
    ]
    assert len({bound.row for bound in OWN.bounds}) == len(OWN.bounds)


def test_one_command_draws_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(MEASURED), encoding="utf-8")
    pictures = []
    for to in (tmp_path / "one", tmp_path / "two"):
        arguments = command.parser().parse_args([f"--from={path}", f"--plots={to}"])
        assert command.again(SCENARIOS, arguments) == 0
        pictures.append({each.name: each.read_text(encoding="utf-8") for each in to.iterdir()})
    assert pictures[0] == pictures[1]
    assert set(pictures[0]) == {"ratios.svg", "recording.svg", "peers.svg"}
    assert str(tmp_path / "two" / "peers.svg") in capsys.readouterr().out
    wanted = {
        "ratios.svg": {"small JSON, 64 connections", "reference", "4", "must", "goal"},
        "recording.svg": {"1.2", "must"},
        "peers.svg": {"litellm", "failed", "0.8", "8", "haproxy"},
    }
    for name, text in pictures[0].items():
        words = {"".join(node.itertext()).strip() for node in ET.fromstring(text).iter() if node.tag.endswith("}text")}
        assert wanted[name] <= words, name
        assert ("goal" in words) is (name == "ratios.svg")

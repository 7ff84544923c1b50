"""What growth is told in: families of loads, the points that they measure, limits on how points may grow, and the table.

Pure: it measures nothing and starts nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from tests.bench.figures import Scenario
from tests.bench.report import Cell, columns, number
from tests.bench.servers import Command, Place


@attrs.frozen
class Figure:
    """One thing that is measured at every point: ``key`` of a result. ``title`` and ``unit`` for people."""

    name: str
    title: str
    unit: str
    key: str


@attrs.frozen
class Load:
    """One load run on a server that stands: at the point ``x``; ``figures`` (their names) are read off it. ``quick``: it is part of a
    quick run."""

    x: float
    scenario: Scenario
    figures: tuple[str, ...]
    quick: bool = True


@attrs.frozen
class Stand:
    """One server, started anew every round, and what it is loaded with, in order.

    ``series``: the lines that its points belong to. ``command``: None for no gateway at all. ``instances``: processes that
    must listen before anything counts. ``recorded``: what its spool says in the end are points at this x. ``quick``: it is part of a
    quick run.
    """

    series: tuple[str, ...]
    command: Callable[[Place], Command] | None
    loads: tuple[Load, ...]
    instances: int = 1
    recorded: float | None = None
    quick: bool = True


@attrs.frozen
class Limit:
    """The ``figure`` of ``series`` at ``x`` may be at most ``factor`` times that at ``of``, plus ``plus`` (in its unit).

    ``exact``: it depends on no speed, so that a quick run is judged by it too.
    """

    figure: str
    series: str
    x: float
    of: float
    factor: float
    plus: float = 0.0
    exact: bool = False


@attrs.frozen
class Family:
    """What grows (``x``), what is measured as it does, and what must hold.

    ``labels``: how a point on the x axis is called where its number is not what people say. ``rounds``: as many for each
    round asked for.
    """

    name: str
    title: str
    x: str
    figures: tuple[Figure, ...]
    stands: tuple[Stand, ...]
    limits: tuple[Limit, ...] = ()
    labels: Mapping[float, str] = attrs.Factory(dict)
    rounds: int = 1

    def figure(self, name: str) -> Figure:
        return next(each for each in self.figures if each.name == name)

    def label(self, x: float) -> str:
        """How people call this point."""
        return self.labels.get(x, f"{x:,g}")


Points = dict[tuple[str, str, float], Cell]
"""(figure name, series, x) -> values, one a round."""


def lines_of(family: Family, points: Points) -> list[tuple[Figure, str]]:
    """Figure and series of every line that has a point, in order."""
    series = list(dict.fromkeys(name for stand in family.stands for name in stand.series))
    there = {(figure, name) for figure, name, _x in points}
    return [(figure, name) for figure in family.figures for name in series if (figure.name, name) in there]


def xs_of(points: Points) -> list[float]:
    """All points of the x axis, in order."""
    return sorted({x for _figure, _series, x in points})


def table(family: Family, points: Points) -> str:
    """One line a figure and series, one column a point: medians; then what was odd."""
    xs = xs_of(points)
    lines: list[Sequence[str]] = [("figure", "server", *(family.label(x) for x in xs), "notes")]
    last = ""
    for figure, series in lines_of(family, points):
        cells = [points.get((figure.name, series, x), Cell()) for x in xs]
        title = f"{figure.title} [{figure.unit}]"
        shown = "" if title == last else title
        lines.append((shown, series, *(number(cell.median) for cell in cells), "; ".join(remarks(cells))))
        last = title
    return f"{family.title}, by {family.x}\n{columns(lines)}"


def remarks(cells: Sequence[Cell]) -> list[str]:
    """What was odd about the points of a line."""
    found = list(dict.fromkeys(note for cell in cells for note in cell.notes))
    values, disturbed = sum(len(cell.values) for cell in cells), sum(cell.disturbed for cell in cells)
    if disturbed:
        last = next(cell.last_disturbance for cell in reversed(cells) if cell.disturbed)
        found.append(f"{disturbed} of {values} measurements disturbed ({last})")
    return found


@attrs.frozen
class Verdict:
    """Whether a limit holds: ``value`` of it, and the ``most`` that it may be."""

    limit: Limit
    text: str
    value: float
    most: float

    @property
    def met(self) -> bool:
        return self.value <= self.most


def verdicts(family: Family, points: Points) -> list[Verdict]:
    """Of every limit both points of which were measured: a run may be of a few."""
    found = []
    for limit in family.limits:
        value, of = (points.get((limit.figure, limit.series, x), Cell()).median for x in (limit.x, limit.of))
        if not math.isnan(value + of):
            most = limit.factor * of + limit.plus
            found.append(Verdict(limit, _text(family, limit, value, of, most), value, most))
    return found


def _text(family: Family, limit: Limit, value: float, of: float, most: float) -> str:
    figure = family.figure(limit.figure)
    plus = f" + {limit.plus:g}" if limit.plus else ""
    wanted = f"<= {limit.factor:g} x {number(of)} at {family.label(limit.of)}{plus} = {number(most)}"
    wanted = wanted if limit.factor else f"<= {most:g}"
    return (
        f"{family.name}, {figure.title}, {limit.series}: {number(value)} {figure.unit} at {family.label(limit.x)}, "
        f"wanted {wanted}"
    )


def document(family: Family, points: Points) -> dict[str, Any]:
    """The same as JSON: {"title", "x", "lines": [{"figure", "title", "unit", "series", "points": [...]}], "limits": [...]}."""
    lines = [
        {
            "figure": figure.name,
            "title": figure.title,
            "unit": figure.unit,
            "series": series,
            "points": [_point(family, points[figure.name, series, x], x) for x in xs_of(points)
                       if (figure.name, series, x) in points],
        }
        for figure, series in lines_of(family, points)
    ]  # fmt: skip
    judged = [
        {"text": each.text, "value": each.value, "most": each.most, "met": each.met}
        for each in verdicts(family, points)
    ]
    return {"title": family.title, "x": family.x, "lines": lines, "limits": judged}


def _point(family: Family, cell: Cell, x: float) -> dict[str, Any]:
    return {
        "x": x,
        "label": family.label(x),
        "median": cell.median if cell.values else None,
        "rounds": cell.values,
        "quiet": cell.quiet,
        "disturbance": cell.last_disturbance,
        "notes": cell.notes,
    }


def restored(told: Mapping[str, Any], points: Points) -> None:
    """Add to ``points`` what a family's document tells, as if it had been measured now."""
    for line in told["lines"]:
        for point in line["points"]:
            cell = points.setdefault((line["figure"], line["series"], point["x"]), Cell())
            cell.values += point["rounds"]
            cell.quiet += point["quiet"]
            cell.last_disturbance = point["disturbance"] or cell.last_disturbance
            for note in point["notes"]:
                cell.note(note)

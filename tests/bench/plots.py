"""Plots of what the benches measured: ``python -m tests.bench.plots JSON... [--to DIR]``.

Each JSON is what ``python -m tests.bench --json`` or ``python -m tests.bench.growth --json`` wrote; of two that tell of the same, the
later one counts. It owns how figures look, as SVG that is the same for the same figures, and measures nothing.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

from tests.bench.figures import BOUNDS, RECORDING, Bound
from tests.bench.peers import PEERS

TO = Path("docs/images")
GATEWAY, YARDSTICK = "kgb", "nginx"
_LONG = re.compile(r"(\d\.\d\d)\d+")
"""Numbers with more digits than a screen has points for."""
WIDTH, HEIGHT = 8.0, 2.4
"""Inches: of a picture, and of a row of plots in it."""

KNOWN = {"kgb": "#1f5fa8", "kgb-off": "#7fb2e5", "nginx": "#3c8f4d", "reference": "#d9722b", "direct": "#8a8a8a"}
"""The same server has the same colour everywhere."""
COLOURS = ("#b0413e", "#8d5bb0", "#c9a227", "#4aa3a2", "#d9722b")
"""Of those that have none."""
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
FINE = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
"""Of ratios; where all of them are near to one."""
MUST, GOAL = "#8c1c13", "#222222"
DOTTED = (0, (1, 1))
STYLE: dict[Any, object] = {  # of Any: matplotlib has a type of all its names
    "svg.hashsalt": "kgb-gateway",  # ids are the same each time
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial"],
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def drawing() -> Any:
    """matplotlib, set up; SystemExit with what to install where it is not there."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise SystemExit("plots need matplotlib, which is in the extra bench: pip install -e '.[bench]'") from None
    mpl.use("svg")
    mpl.rcParams.update(STYLE)
    return mpl


def draw(told: Mapping[str, Any], to: Path) -> list[Path]:
    """The pictures of one document, in the directory ``to``: those of ratios that it has figures for, or one for each family."""
    drawing()
    to.mkdir(parents=True, exist_ok=True)
    bars = {view: view.bars(told.get("figures", {})) for view in VIEWS}
    found = [_save(_bars(view, each), to / f"{view.name}.svg") for view, each in bars.items() if each]
    for name, family in told.get("families", {}).items():
        if family["lines"]:
            found.append(_save(_lines(family), to / f"growth-{name}.svg"))
    return found


def _save(figure: "Figure", path: Path) -> Path:
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    lines = path.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line.strip() for line in lines)  # indented, it is half as large again
    path.write_text(_LONG.sub(r"\1", text) + "\n", encoding="utf-8")
    return path


# Ratios.


def _cost(value: float, base: float, more: bool) -> float:
    """A ratio as a cost: of a rate, how much longer each takes."""
    return base / value if more else value / base


def ratios_of(figures: Mapping[str, Any], yardstick: str = YARDSTICK) -> dict[str, dict[str, float]]:
    """Title of a figure -> server -> its cost as a ratio to that of the yardstick."""
    found: dict[str, dict[str, float]] = {}
    for figure in figures.values():
        medians = {name: each.get("median") for name, each in figure["servers"].items() if name != "direct"}
        base = medians.pop(yardstick, None)
        known = {name: float(value) for name, value in medians.items() if value and value > 0}
        if base and base > 0 and known:
            more = figure["more_is_better"]
            found[figure["title"]] = {name: _cost(value, base, more) for name, value in known.items()}
    return found


@attrs.frozen
class Bars:
    """One figure of a view: ``costs`` of servers, those that ``failed``, and what must and is to be reached, as costs."""

    title: str
    costs: Mapping[str, float]
    failed: Sequence[str] = ()
    must: float | None = None
    goal: float | None = None


@attrs.frozen(eq=False)
class View:
    """One picture of ratios: ``servers`` against ``yardstick``, with ``bounds`` marked; drawn where one of ``needs`` was measured."""

    name: str
    yardstick: str
    servers: Sequence[str]
    needs: Sequence[str]
    bounds: Sequence[Bound] = ()

    def bars(self, figures: Mapping[str, Any]) -> list[Bars]:
        """What there is to draw, in the order of the figures; nothing where none of ``needs`` was measured."""
        costs, found = ratios_of(figures, self.yardstick), []
        wanted = {bound.row: bound for bound in self.bounds}
        for row, figure in figures.items():
            shown = {name: cost for name, cost in costs.get(figure["title"], {}).items() if name in self.servers}
            servers = figure["servers"]
            failed = [name for name in self.servers if name in servers and servers[name].get("median") is None]
            if shown:
                bound, more = wanted.get(row), figure["more_is_better"]
                marks = [1 / each if more else each for each in (bound.must, bound.goal)] if bound else [None, None]
                must, goal = marks if marks[0] != marks[1] else (marks[0], None)
                found.append(Bars(figure["title"], shown, failed, must, goal))
        return found if any(name in self.needs for each in found for name in (*each.costs, *each.failed)) else []


OWN = ("reference", GATEWAY, RECORDING)
VIEWS = (
    View("ratios", YARDSTICK, OWN, OWN, [bound for bound in BOUNDS if bound.against == YARDSTICK]),
    View("recording", RECORDING, (GATEWAY,), (GATEWAY,), [bound for bound in BOUNDS if bound.against == RECORDING]),
    View("peers", YARDSTICK, (GATEWAY, *PEERS), tuple(PEERS)),
)


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each."""
    free = [name for name in names if name not in KNOWN]
    return {**KNOWN, **{name: COLOURS[at % len(COLOURS)] for at, name in enumerate(free)}}


def _bars(view: View, figures: Sequence[Bars]) -> "Figure":
    from matplotlib.figure import Figure

    there = {name for each in figures for name in (*each.costs, *each.failed)}
    servers = [name for name in view.servers if name in there]
    colours, thick = colours_of(servers), 0.8 / len(servers)
    picture = Figure(figsize=(WIDTH, 0.8 + len(figures) * (0.2 + 0.13 * len(servers))), layout="constrained")
    axes = picture.subplots()
    for number, server in enumerate(servers):
        at = [place + (number - (len(servers) - 1) / 2) * thick for place in range(len(figures))]
        costs = [each.costs.get(server, math.nan) for each in figures]
        widths = [cost - 1 for cost in costs]
        axes.barh(at, widths, thick * 0.9, left=1.0, label=server, color=colours[server])
        for place, cost, each in zip(at, costs, figures, strict=True):
            told = "failed" if server in each.failed else "" if math.isnan(cost) else f"{cost:.3g}"
            beyond = 1.0 if math.isnan(cost) else max(cost, 1.0)
            axes.annotate(told, (beyond, place), (2, 0), textcoords="offset points", va="center", fontsize=5.5)
    for place, each in enumerate(figures):
        for mark, colour, style in ((each.must, MUST, "solid"), (each.goal, GOAL, DOTTED)):
            if mark is not None:
                axes.vlines(mark, place - 0.46, place + 0.46, color=colour, linestyle=style, linewidth=1.1)
    _scale(view, axes, figures)
    handles = [*axes.get_legend_handles_labels()[0], *_marks(figures)]
    picture.legend(handles=handles, loc="outside upper center", ncols=min(6, len(handles)))
    return picture


def _marks(figures: Sequence[Bars]) -> list[Any]:
    """What the legend says of those that are there."""
    from matplotlib.lines import Line2D

    found = []
    if any(each.must for each in figures):
        found.append(Line2D([], [], color=MUST, linewidth=1.1, label="must"))
    if any(each.goal for each in figures):
        found.append(Line2D([], [], color=GOAL, linewidth=1.1, linestyle=DOTTED, label="goal"))
    return found


def _scale(view: View, axes: "Axes", figures: Sequence[Bars]) -> None:
    """The axes of ratios: a figure a line, costs as multiples of the yardstick."""
    axes.axvline(1.0, color="#333333", linewidth=0.8)
    axes.set_xscale("log")
    values = [value for each in figures for value in (*each.costs.values(), each.must, each.goal, 1.0) if value]
    low, high = min(values), max(values)
    axes.set_xlim(low / 1.05 if low < 1 else 0.97, high * (high / min(low, 1.0)) ** 0.06)  # room for the last number
    axes.set_xticks([at for at in (FINE if high / low < 2 else TICKS) if low / 1.05 <= at <= high * 1.05])
    _plain(axes.xaxis)
    axes.set_yticks(range(len(figures)), [each.title for each in figures])
    axes.set_ylim(len(figures) - 0.45, -0.55)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"times what {view.yardstick} takes (rates as time for each; further left is better)")


# Lines.


def _lines(family: Mapping[str, Any]) -> "Figure":
    """A plot for each figure, a line for each series."""
    from matplotlib.figure import Figure

    drawn = [line for line in family["lines"] if _is_line(line)]
    titles = list(dict.fromkeys(f"{line['title']}, {line['unit']}" for line in drawn))
    series = list(dict.fromkeys(line["series"] for line in family["lines"]))
    colours = colours_of(series)
    rows = max(1, math.ceil(len(titles) / 2))
    picture = Figure(figsize=(WIDTH, 0.5 + HEIGHT * rows), layout="constrained")
    plots = picture.subplots(rows, 2, squeeze=False).flat
    for axes, title in zip(plots, titles, strict=False):
        lines = [line for line in family["lines"] if f"{line['title']}, {line['unit']}" == title]
        _plot(axes, title, family["x"], lines, colours)
    for axes in picture.axes[len(titles) :]:
        axes.set_visible(False)
    handles = [_handle(name, colour) for name, colour in colours.items() if name in series]
    picture.legend(handles=handles, loc="outside upper center", ncols=len(series))
    return picture


def _is_line(line: Mapping[str, Any]) -> bool:
    """Whether there is something to see: not a single point, and not nothing but zeros."""
    return len(line["points"]) > 1 and any(point["median"] for point in line["points"])


def _handle(name: str, colour: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker="o", markersize=3, linewidth=1.4, label=name)


def _plot(axes: "Axes", title: str, x: str, lines: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    points = [point for line in lines for point in line["points"] if point["median"] is not None]
    labels = {point["x"]: point["label"] for point in points}
    # As far apart as neighbours are in order: 0 has a place on it, and what is told are these points.
    places = {at: place for place, at in enumerate(sorted(labels))}
    for line in lines:
        known = [point for point in line["points"] if point["median"] is not None]
        axes.plot(
            [places[point["x"]] for point in known],
            [point["median"] for point in known],
            color=colours[line["series"]],
            marker="o",
            markersize=3,
            linewidth=1.4,
        )
    axes.set_title(title)
    axes.set_xticks(list(places.values()), [labels[at] for at in places])
    axes.set_xlabel(x)
    values = [point["median"] for point in points]
    if values and min(values) > 0 and max(values) / min(values) > 20:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, max([*values, 0.0]) * 1.12 or 1.0)
    _plain(axes.yaxis)


def _plain(axis: "Axis") -> None:
    """Numbers as people write them, not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _at: f"{value:,.10g}"))


def main() -> int:
    """Draw what the files tell, and say what was drawn."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.plots", description=__doc__)
    parser.add_argument("json", nargs="+", type=Path, metavar="JSON", help="what a bench wrote")
    parser.add_argument("--to", type=Path, default=TO, metavar="DIR", help=f"where the SVG go ({TO})")
    arguments = parser.parse_args()
    for path in arguments.json:
        for picture in draw(json.loads(path.read_text(encoding="utf-8")), arguments.to):
            print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())

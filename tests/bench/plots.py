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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

TO = Path("docs/images")
YARDSTICK = "nginx"
_LONG = re.compile(r"(\d\.\d\d)\d+")
"""Numbers with more digits than a screen has points for."""
WIDTH, HEIGHT = 8.0, 2.4
"""Inches: of a picture, and of a row of plots in it."""

KNOWN = {"kgb": "#1f5fa8", "kgb-off": "#7fb2e5", "nginx": "#3c8f4d", "reference": "#d9722b", "direct": "#8a8a8a"}
"""The same server has the same colour everywhere."""
COLOURS = ("#b0413e", "#8d5bb0", "#c9a227", "#4aa3a2", "#d9722b")
"""Of those that have none."""
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0, 100.0)
"""Of ratios."""
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
    """The pictures of one document, in the directory ``to``: one of all ratios, or one for each family."""
    drawing()
    to.mkdir(parents=True, exist_ok=True)
    found = []
    if ratios := ratios_of(told.get("figures", {})):
        found.append(_save(_bars(ratios), to / "ratios.svg"))
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


def ratios_of(figures: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Title of a figure -> server -> its cost as a ratio to that of nginx: of a rate, how much longer each takes."""
    found: dict[str, dict[str, float]] = {}
    for figure in figures.values():
        medians = {name: each.get("median") for name, each in figure["servers"].items() if name != "direct"}
        base = medians.pop(YARDSTICK, None)
        known = {name: float(value) for name, value in medians.items() if value and value > 0}
        if base and base > 0 and known:
            more = figure.get("more", False)
            found[figure["title"]] = {name: base / value if more else value / base for name, value in known.items()}
    return found


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """A colour for each."""
    free = [name for name in names if name not in KNOWN]
    return {**KNOWN, **{name: COLOURS[at % len(COLOURS)] for at, name in enumerate(free)}}


def _bars(ratios: Mapping[str, Mapping[str, float]]) -> "Figure":
    from matplotlib.figure import Figure

    servers = list(dict.fromkeys(name for each in ratios.values() for name in each))
    colours, thick = colours_of(servers), 0.8 / len(servers)
    figure = Figure(figsize=(WIDTH, 0.6 + len(ratios) * (0.2 + 0.13 * len(servers))), layout="constrained")
    axes = figure.subplots()
    for number, server in enumerate(servers):
        places = [at + (number - (len(servers) - 1) / 2) * thick for at in range(len(ratios))]
        widths = [each.get(server, math.nan) - 1 for each in ratios.values()]
        axes.barh(places, widths, thick * 0.9, left=1.0, label=server, color=colours[server])
    axes.axvline(1.0, color="#333333", linewidth=0.8)
    axes.set_xscale("log")
    values = [value for each in ratios.values() for value in (*each.values(), 1.0)]
    axes.set_xticks([at for at in TICKS if min(values) / 1.5 <= at <= max(values) * 1.5])
    _plain(axes.xaxis)
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("times what nginx takes (rates as time for each; further left is better)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(servers))
    return figure


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

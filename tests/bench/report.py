"""Medians, ratios, the text table, the JSON document and the verdict on the targets. Pure: it measures nothing."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from tests.bench.figures import BOUNDS, TARGETS, Row, reached

YARDSTICKS = ("nginx", "reference")


@attrs.define
class Cell:
    """One row of one server: a value a round, and what was odd. The median leaves disturbed rounds out while quiet ones exist."""

    values: list[float] = attrs.Factory(list)
    notes: list[str] = attrs.Factory(list)
    repeated: int = 0
    quiet: list[float] = attrs.Factory(list)
    last_disturbance: str = ""
    busy: list[float] = attrs.Factory(list)  # share of its core that the server used, a round
    beside: list[float] = attrs.Factory(list)  # share of a core that its librarian used, a round
    capacity: list[float] = attrs.Factory(list)  # of direct: what load and upstream alone could have done, a round

    @property
    def median(self) -> float:
        return statistics.median(self.quiet or self.values) if self.values else float("nan")

    @property
    def disturbed(self) -> int:
        return len(self.values) - len(self.quiet)

    def enter(self, value: float, disturbance: str) -> None:
        """A round's value; ``disturbance`` is "" for a quiet one."""
        self.values.append(value)
        if disturbance:
            self.last_disturbance = disturbance
        else:
            self.quiet.append(value)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


Cells = dict[tuple[str, str], Cell]
"""(row name, server name) -> cell."""


def number(value: float) -> str:
    """Three figures, thousands separated."""
    if math.isnan(value):
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def ratio(cells: Cells, row: Row, server: str, yardstick: str) -> float:
    """Median over median; nan where one is missing or the yardstick is not positive."""
    other = cells.get((row.name, yardstick), Cell()).median
    return cells[row.name, server].median / other if other > 0 else float("nan")


def remarks(cells: Cells, row: Row, server: str) -> list[str]:
    """The notes of a cell, and in words what is counted."""
    cell, direct = cells[row.name, server], cells.get((row.name, "direct"))
    found = list(cell.notes)
    capacity = statistics.median(direct.capacity) if direct is not None and direct.capacity else float("inf")
    if server != "direct" and cell.values and capacity < 2 * cell.median:
        busy = f" (proxy {statistics.median(cell.busy):.0%} busy)" if cell.busy else ""
        found.append(f"generator-bound: direct could not do twice this{busy}")
    if cell.beside and statistics.median(cell.beside) >= 0.01:
        found.append(f"its librarian, not counted: {statistics.median(cell.beside):.0%} of a core")
    if cell.disturbed:
        found.append(f"{cell.disturbed} of {len(cell.values)} rounds disturbed ({cell.last_disturbance})")
    return found


def table(rows: Sequence[Row], servers: Sequence[str], cells: Cells) -> str:
    """One block a row: the servers with median, spread, ratios and notes."""
    lines: list[Sequence[str]] = [("figure", "server", "median", "min .. max", "vs nginx", "vs reference", "notes")]
    for row in rows:
        title = f"{row.title} [{row.unit}]"
        for server in servers:
            cell = cells.get((row.name, server))
            if cell is None:
                continue
            spread = f"{number(min(cell.values))} .. {number(max(cell.values))}" if cell.values else "-"
            ratios = [number(ratio(cells, row, server, yardstick)) for yardstick in YARDSTICKS]
            lines.append((title, server, number(cell.median), spread, *ratios, "; ".join(remarks(cells, row, server))))
            title = ""
    return columns(lines)


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Aligned text: first two and last column to the left, numbers to the right; a rule below the head."""
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    left = (0, 1, len(widths) - 1)

    def render(line: Sequence[str]) -> str:
        texts = (
            f"{text:<{w}}" if at in left else f"{text:>{w}}"
            for at, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(texts).rstrip()

    rendered = [render(line) for line in lines]
    return "\n".join([rendered[0], "-" * len(rendered[0]), *rendered[1:]])


def document(
    rows: Sequence[Row],
    servers: Sequence[str],
    cells: Cells,
    machine: Mapping[str, Any],
    skipped: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The same as JSON: {"machine": ..., "figures": {row: {"title", "unit", "more_is_better", "servers": {name: ...}}}, "skipped": ...}."""
    figures: dict[str, Any] = {}
    for row in rows:
        measured = {name: cells[row.name, name] for name in servers if (row.name, name) in cells}
        figures[row.name] = {
            "title": row.title,
            "unit": row.unit,
            "more_is_better": row.more,
            "servers": {
                name: {
                    "median": _finite(cell.median),
                    "rounds": cell.values,
                    "repeated": cell.repeated,
                    "disturbed": cell.disturbed,
                    "notes": remarks(cells, row, name),
                    "cell": attrs.asdict(cell),
                    **{f"vs_{other}": _finite(ratio(cells, row, name, other)) for other in YARDSTICKS},
                }
                for name, cell in measured.items()
            },
        }
    return {"machine": dict(machine), "figures": figures, "skipped": dict(skipped or {})}


def restored(told: Mapping[str, Any], cells: Cells) -> None:
    """Add to ``cells`` what a document tells, as if its rounds had been measured now."""
    for row, figure in told["figures"].items():
        for name, each in figure["servers"].items():
            cell, more = cells.setdefault((row, name), Cell()), Cell(**each["cell"])
            for values, further in (
                (cell.values, more.values),
                (cell.quiet, more.quiet),
                (cell.busy, more.busy),
                (cell.beside, more.beside),
                (cell.capacity, more.capacity),
            ):
                values += further
            cell.repeated += more.repeated
            cell.last_disturbance = more.last_disturbance or cell.last_disturbance
            for note in more.notes:
                cell.note(note)


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


def bounds(rows: Sequence[Row], cells: Cells, server: str) -> tuple[str, list[str]]:
    """The ratios that ``server`` is to reach, as a table; and a sentence for each that it misses. One that was not measured is no miss
    here: a run may be of a few figures."""
    known = {row.name: row for row in rows}
    lines: list[Sequence[str]] = [("figure", "against", "measured", "must", "goal", "")]
    missed: list[str] = []
    for bound in BOUNDS:
        row, of = known.get(bound.row), known.get(bound.of or bound.row)
        if row is None or of is None:
            continue
        value = cells.get((row.name, server), Cell()).median / cells.get((of.name, bound.against), Cell()).median
        if math.isnan(value):
            continue
        sign = ">=" if row.more else "<="
        met, whole = _keeps(row, value, bound.must), _keeps(row, value, bound.goal)
        against = f"{bound.against} {bound.of}".rstrip()
        verdict = "goal" if whole else "yes" if met else "MISSED"
        lines.append((row.title, against, number(value), f"{sign} {bound.must:g}", f"{sign} {bound.goal:g}", verdict))
        if not met:
            missed.append(f"{row.name}: {number(value)} of {against}, wanted {sign} {bound.must:g}")
    return columns(lines), missed


def _keeps(row: Row, value: float, bound: float) -> bool:
    return value >= bound if row.more else value <= bound


def misses(rows: Sequence[Row], cells: Cells, server: str) -> list[str]:
    """One sentence for every target that ``server`` misses or that was not measured."""
    known = {row.name: row for row in rows}
    found: list[str] = []
    for target in TARGETS:
        row = known.get(target.row)
        if row is None:
            continue
        value, other = (cells.get((row.name, name), Cell()).median for name in (server, target.against))
        if math.isnan(value + other):
            found.append(f"{row.name}: not measured for {server} and {target.against}")
        elif not reached(row, value, other, target.factor):
            sign = ">=" if row.more else "<="
            found.append(
                f"{row.name}: {server} {number(value)} {row.unit}, wanted {sign} {target.factor:g} x {target.against} ({number(other)})"
            )
    return found

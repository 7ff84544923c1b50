"""Medians, ratios, the text table, the JSON document and the verdict on the targets. Pure: it measures nothing."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from tests.bench.figures import TARGETS, Row, reached

YARDSTICKS = ("nginx", "reference")


@attrs.define
class Cell:
    """One row of one server: a value a round, and what was odd. The median leaves disturbed rounds out while quiet ones exist."""

    values: list[float] = attrs.Factory(list)
    notes: list[str] = attrs.Factory(list)
    repeated: int = 0
    quiet: list[float] = attrs.Factory(list)
    last_disturbance: str = ""
    bound: list[float] = attrs.Factory(
        list
    )  # rounds in which direct was below twice the value: the busy share of the proxy

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

    def remarks(self) -> list[str]:
        """The notes, and in words what is counted."""
        found = list(self.notes)
        if self.bound:
            found.append(
                f"generator-bound: direct is below twice this (proxy {statistics.median(self.bound):.0%} busy)"
            )
        if self.disturbed:
            found.append(f"{self.disturbed} of {len(self.values)} rounds disturbed ({self.last_disturbance})")
        return found


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
            lines.append((title, server, number(cell.median), spread, *ratios, "; ".join(cell.remarks())))
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


def document(rows: Sequence[Row], servers: Sequence[str], cells: Cells, machine: Mapping[str, Any]) -> dict[str, Any]:
    """The same as JSON: {"machine": ..., "figures": {row: {"title", "unit", "more", "servers": {name: ...}}}}."""
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
                    "notes": cell.remarks(),
                    **{f"vs_{other}": _finite(ratio(cells, row, name, other)) for other in YARDSTICKS},
                }
                for name, cell in measured.items()
            },
        }
    return {"machine": dict(machine), "figures": figures}


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value


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

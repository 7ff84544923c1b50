"""Tables and plots for a terminal: lists, statistics.

Pure: lines, nothing printed. Widths are columns as a terminal counts them; cells are recorded text and made visible like any other.
"""

import math
from collections.abc import Iterator, Sequence

import attrs

from .texts import cells, count, cut, one_line, pad

_BARS = " ▏▎▍▌▋▊▉█"
_SPARKS = "▁▂▃▄▅▆▇█"
_ASCII_SPARKS = "_.-=+*#@"


@attrs.frozen
class Column:
    """``title``; ``right``: numbers stand on the right; ``least``: columns below which it is not cut; ``grows``: it is the one that is
    cut when the table is too wide."""

    title: str
    right: bool = False
    least: int = 6
    grows: bool = False


def table(
    rows: Sequence[Sequence[object]], columns: Sequence[Column], width: int, unicode: bool = True
) -> Iterator[str]:
    """Rows under their titles, at most ``width`` columns wide unless the ``least`` of all columns are wider. None is shown as nothing.

    The widest column that ``grows`` is cut first, then whichever is widest.
    """
    shown = [["" if value is None else one_line(str(value), 400) for value in row] for row in rows]
    for row in shown:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} for {len(columns)} columns")
    widths = [max([cells(column.title), *(cells(row[place]) for row in shown)]) for place, column in enumerate(columns)]
    _fit(widths, columns, width - 2 * (len(columns) - 1))
    mark = "…" if unicode else "~"

    def line(texts: Sequence[str]) -> str:
        parts = [
            pad(cut(text, wide, mark), wide, column.right)
            for text, wide, column in zip(texts, widths, columns, strict=True)
        ]
        return "  ".join(parts).rstrip()

    yield line([column.title for column in columns])
    yield "  ".join(("─" if unicode else "-") * wide for wide in widths)
    for row in shown:
        yield line(row)


def _fit(widths: list[int], columns: Sequence[Column], room: int) -> None:
    """Cut ``widths`` until they fit."""
    for candidates in ([i for i, column in enumerate(columns) if column.grows], list(range(len(columns)))):
        while sum(widths) > room:
            over = [i for i in candidates if widths[i] > columns[i].least]
            if not over:
                break
            widths[max(over, key=lambda i: widths[i])] -= 1


def bars(labels: Sequence[str], values: Sequence[float], width: int = 60, unicode: bool = True) -> Iterator[str]:
    """A bar for each value, as long as its share of the largest; negative ones and what is no number have none."""
    names = [one_line(label, 40) for label in labels]
    numbers = [count(value) if math.isfinite(value) else "?" for value in values]
    wide = max(map(cells, names), default=0)
    digits = max(map(len, numbers), default=0)
    room = max(width - wide - digits - 4, 4)
    most = max((value for value in values if math.isfinite(value)), default=0)
    for name, number, value in zip(names, numbers, values, strict=True):
        share = value / most if most > 0 and math.isfinite(value) and value > 0 else 0.0
        bar = _bar(share, room) if unicode else "#" * max(round(share * room), int(share > 0))
        yield f"{pad(name, wide)}  {number.rjust(digits)}  {bar}".rstrip()


def _bar(share: float, room: int) -> str:
    eighths = max(round(share * room * 8), int(share > 0))
    return "█" * (eighths // 8) + (_BARS[eighths % 8] if eighths % 8 else "")


def spark(values: Sequence[float], unicode: bool = True) -> str:
    """One sign a value, the height its share between 0 (or the least, if below) and the largest; a space for what is no number."""
    signs = _SPARKS if unicode else _ASCII_SPARKS
    known = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *known]), max([0.0, *known])
    span = high - low

    def sign(value: float) -> str:
        if not math.isfinite(value):
            return " "
        share = (value / span - low / span) if span > 0 else 0.0
        return signs[min(max(int(share * len(signs)), 0), len(signs) - 1)]

    return "".join(map(sign, values))

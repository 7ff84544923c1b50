"""Recorded text made fit to be shown: nothing in it may act on a terminal, a page or a line.

Pure. What was recorded is the word of models, tools and strangers: it may hold escape sequences that retitle a terminal or rewrite what
stands above, marks that turn the direction of text, characters nobody sees, and surrogates that no encoding takes. Here all of
these become visible. Also owns how wide a text is on a terminal, and how numbers and JSON are written.
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, tzinfo

from .transcripts.model import Json

TAB = 4
"""Columns from one tab stop to the next."""

DEPTH = 100
"""JSON nested deeper than this is cut where it cannot be written otherwise."""

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e0fff]"
)
"""Control characters but tab and newline; marks of direction; what is invisible or may hide text; lone surrogates. The joiners
U+200C and U+200D stay: whole scripts need them."""

_UNSAFE_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def visible(text: str) -> str:
    """``text`` with tabs, newlines and nothing else that is not seen: the rest as ``^[`` or ``<U+202E>``."""
    return _UNSEEN.sub(_named, text)


def _named(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20 or code == 0x7F:
        return "^" + chr(code ^ 0x40)
    return f"<U+{code:04X}>"


def one_line(text: str, width: int = 0) -> str:
    """``text`` visible and on one line, spaces run together, cut to ``width`` columns (0: not at all)."""
    if width:
        text = text[: width * 8]
    line = visible(" ".join(text.split()))
    return cut(line, width) if width else line


# Width.


def cells(text: str) -> int:
    """How many columns a terminal gives ``text`` (UAX #11: wide and full-width characters take two; marks none)."""
    if text.isascii():
        return len(text)
    return sum(map(_cell, text))


def _cell(char: str) -> int:
    if char < "\u0300":
        return 1
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def _fit(text: str, start: int, width: int) -> int:
    """Where the longest piece of ``text`` from ``start`` that is at most ``width`` columns wide ends."""
    end, used = start, 0
    while end < len(text):
        used += _cell(text[end])
        if used > width:
            break
        end += 1
    return end


def cut(text: str, width: int, mark: str = "…") -> str:
    """``text`` in at most ``width`` columns; ``mark`` says that some of it is missing."""
    if _fit(text, 0, width) == len(text):
        return text
    mark = mark if cells(mark) <= width else ""
    return text[: _fit(text, 0, width - cells(mark))] + mark


def pad(text: str, width: int, right: bool = False) -> str:
    """``text`` filled up with spaces to ``width`` columns, on the left if ``right``."""
    space = " " * (width - cells(text))
    return space + text if right else text + space


def wrap_line(line: str, width: int) -> Iterator[str]:
    """One visible ``line`` in pieces of at most ``width`` columns (at least 2), cut at a space where there is one."""
    width = max(width, 2)
    line = line.expandtabs(TAB) if "\t" in line else line
    ascii_only = line.isascii()
    start = 0
    while True:
        end = min(start + width, len(line)) if ascii_only else _fit(line, start, width)
        if end >= len(line):
            yield line[start:]
            return
        space = line.rfind(" ", start + 1, end + 1)
        if space > start and line[start:space].strip(" "):
            yield line[start:space]
            start = space + 1
        else:
            yield line[start:end]
            start = end


def wrap(text: str, width: int) -> Iterator[str]:
    """``text`` as visible lines of at most ``width`` columns, made as they are asked for."""
    for line in text.split("\n"):
        yield from wrap_line(visible(line.removesuffix("\r")), width)


def fold(text: str, width: int, most: int) -> tuple[list[str], int]:
    """The first ``most`` lines of ``wrap(text, width)``, and how many lines of ``text`` are not or not wholly among them.

    What is not shown is counted only, so that a tool's output of megabytes costs little.
    """
    shown: list[str] = []
    start = 0
    while start <= len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if len(shown) == most:
            return shown, 1 + text.count("\n", start)
        for piece in wrap_line(visible(text[start:end].removesuffix("\r")), width):
            if len(shown) == most:
                return shown, 1 + text.count("\n", end)
            shown.append(piece)
        start = end + 1
    return shown, 0


# JSON.


def json_text(value: Json, indent: int | None = None, sort: bool = False) -> str:
    """``value`` as JSON that every reader takes, whatever was recorded: one line unless ``indent``.

    Characters that break lines or terminals, and surrogates, are escaped. What JSON has no word for (NaN, infinity) becomes a text, and so do
    integers and nesting beyond what Python writes.
    """
    separators = (",", ":") if indent is None else (",", ": ")

    def dumps(found: Json) -> str:
        return json.dumps(
            found, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators, sort_keys=sort
        )

    try:
        text = dumps(value)
    except (ValueError, RecursionError, TypeError):
        text = dumps(_tame(value, DEPTH))
    return _UNSAFE_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _tame(value: Json, depth: int) -> Json:
    if isinstance(value, Mapping | list | tuple) and not depth:
        return "[nested too deeply to be written]"
    if isinstance(value, Mapping):
        return {str(name): _tame(member, depth - 1) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_tame(member, depth - 1) for member in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 10_000:
        return hex(value)
    if value is None or isinstance(value, str | int):
        return value
    return repr(value)


# Numbers.


def things(number: int, name: str) -> str:
    """``1 tool``, ``2 tools``."""
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def count(value: float) -> str:
    """A number of things in a few digits: ``999``, ``12.3k``, ``4.1M``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"


def size(value: int) -> str:
    """A number of bytes: ``999 B``, ``12.3 kB``."""
    return f"{count(value)} B" if value < 1000 else f"{count(value)[:-1]} {count(value)[-1]}B"


def money(micro_usd: int) -> str:
    """Millionths of a dollar as dollars: two digits behind the point, more where that would hide the amount."""
    dollars = micro_usd / 1e6
    return f"${dollars:.2f}" if abs(dollars) >= 1 or not micro_usd else f"${dollars:.4f}"


def seconds(value: float) -> str:
    """A duration: ``45 ms``, ``2.1 s``, ``3 min 05 s``."""
    if not math.isfinite(value):
        return "?"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value) // 60} min {int(value) % 60:02d} s"


def moment(at: float, zone: tzinfo = UTC) -> datetime | None:
    """``at`` (seconds since the epoch) in ``zone``; None if no calendar has it."""
    try:
        return datetime.fromtimestamp(at, zone)
    except (ValueError, OverflowError, OSError):
        return None


def timestamp(at: float) -> str:
    """``at`` as RFC 3339 in UTC with milliseconds: what JSON formats want. The epoch's begin for what no calendar has."""
    found = moment(at) or datetime.fromtimestamp(0, UTC)
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")

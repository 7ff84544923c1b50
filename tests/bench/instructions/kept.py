"""What is on file, and the judgement of what was counted against it. Pure but for reading and writing the file.

A figure is a ratio: instructions of the gateway to those of the yardstick, counted in one process. Python's version and the way it was
built change both alike (by a quarter; the ratio by 2 %), so one figure stands for all of them.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

HERE = Path(__file__).parent
FILE = HERE / "kept.json"
TOLERANCE = 0.10
FROZEN = ("yardstick.py", "wires.py")
"""What a figure is told against: another text of these is another measure."""
OPTIONAL = ("uvloop", "isal")
"""Compiled packages that the gateway takes where they are installed, and that change what it costs."""
COMMAND = "python -m tests.bench.instructions"


@attrs.frozen
class Count:
    """Instructions of one piece of work."""

    gateway: float
    yardstick: float

    @property
    def ratio(self) -> float:
        return self.gateway / self.yardstick


def frozen() -> str:
    """A fingerprint of what figures are told against."""
    return hashlib.sha256(b"\0".join((HERE / name).read_bytes() for name in FROZEN)).hexdigest()[:16]


def optional() -> dict[str, bool]:
    """Which of the optional packages are here."""
    return {name: importlib.util.find_spec(name) is not None for name in OPTIONAL}


@attrs.frozen
class Kept:
    """The file: figures, what they are told against, which optional packages were there, and the versions of everything."""

    figures: Mapping[str, Count]
    frozen: str
    optional: Mapping[str, bool]
    counted: Mapping[str, str]

    def text(self) -> str:
        figures = {
            name: {"ratio": round(each.ratio, 4), "gateway": round(each.gateway), "yardstick": round(each.yardstick)}
            for name, each in self.figures.items()
        }
        told: dict[str, Any] = {"about": f"instructions; {COMMAND} --update writes this file", "figures": figures}
        told |= {"frozen": self.frozen, "optional": dict(self.optional), "counted": dict(self.counted)}
        return json.dumps(told, indent=2) + "\n"

    @classmethod
    def of(cls, text: str) -> "Kept":
        """ValueError when it is no such file."""
        try:
            told = json.loads(text)
            figures = {
                name: Count(float(each["gateway"]), float(each["yardstick"])) for name, each in told["figures"].items()
            }
            return cls(figures, told["frozen"], told["optional"], told["counted"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a file of kept figures: {error!r}") from error

    def unlike(self, here: "Kept") -> str:
        """Why figures of ``here`` cannot be told against these; empty when they can."""
        if self.frozen != here.frozen:
            names = " or ".join(FROZEN)
            return f"{names} is not what it was when the figures were kept, so no ratio can be compared: {COMMAND} --update on a commit whose cost is known to be right"
        for name, there in self.optional.items():
            if here.optional.get(name, False) != there:
                was, now = ("with", "without") if there else ("without", "with")
                return f"the figures were kept {was} {name}, and here the gateway runs {now} it"
        return ""


@attrs.frozen
class Verdict:
    """One figure: ``more`` is how much above the kept one it is (0.1: 10 %)."""

    title: str
    unit: str
    count: Count
    kept: Count | None

    @property
    def more(self) -> float:
        return self.count.ratio / self.kept.ratio - 1 if self.kept is not None else 0.0

    @property
    def above(self) -> bool:
        return self.more > TOLERANCE

    @property
    def fails(self) -> bool:
        """A figure that is not on file is one that nobody watches."""
        return self.above or self.kept is None

    @property
    def stale(self) -> bool:
        """Whether the kept figure is no use: missing, or so high that a change could cost a lot before it failed."""
        return self.kept is None or self.more < -TOLERANCE

    @property
    def line(self) -> str:
        counted = f"{self.count.gateway:,.0f} instructions {self.unit}, {self.count.ratio:.3f} times the yardstick's {self.count.yardstick:,.0f}"
        if self.kept is None:
            return f"{self.title}: {counted}; none is kept"
        return f"{self.title}: {counted}; kept {self.kept.ratio:.3f} ({self.kept.gateway:,.0f}): {self.more:+.1%}"

    @property
    def advice(self) -> str:
        """What to do about it; empty when nothing is to be done."""
        if self.above:
            return (
                f"ABOVE {self.title}: {self.more:.1%} more than kept, at most {TOLERANCE:.0%} is let through. Where it goes: {COMMAND} --keep DIR "
                "here and on the commit before, then callgrind_annotate on each file of DIR. If the change is worth it: --update, and say so "
                "in the commit"
            )
        if self.stale:
            why = "none is kept" if self.kept is None else f"{-self.more:.1%} less than kept"
            return f"UPDATE {self.title}: {why}: {COMMAND} --update, so that the gain is kept"
        return ""


def verdicts(
    titles: Mapping[str, tuple[str, str]], counts: Mapping[str, Count], kept: Kept | None
) -> Iterator[Verdict]:
    """One for each figure that was counted; ``titles``: name to title and unit."""
    for name, count in counts.items():
        yield Verdict(*titles[name], count, kept.figures.get(name) if kept is not None else None)

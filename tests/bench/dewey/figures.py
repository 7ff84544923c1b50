"""Figures of Dewey: what is measured, what is wanted, and the verdict. Pure: it measures nothing."""

from collections.abc import Mapping, Sequence

import attrs

from tests.bench.report import columns, number


@attrs.frozen
class Bound:
    """What is wanted of a figure. ``most``: the value may be at most this, else it must be at least this. ``exact``: it depends on no
    size and no speed, so that a quick run judges it too."""

    value: float
    most: bool = True
    exact: bool = False

    def __str__(self) -> str:
        return f"{'<=' if self.most else '>='} {self.value:,g}"

    def met(self, value: float) -> bool:
        return value <= self.value if self.most else value >= self.value


NONE_AT_ALL = Bound(0, exact=True)


@attrs.frozen
class Figure:
    """One line of the table; without a bound it only says what the others depend on."""

    name: str
    title: str
    unit: str
    value: float
    bound: Bound | None = None
    note: str = ""


@attrs.frozen
class Sizes:
    """How much is measured. ``turns``: of an agent session; ``unseen``: bodies never seen; ``sessions``: of ``turns`` each, whose
    turns append; ``rounds``: of an ingest; ``warm``: requests before memory is watched; ``messages``: in the large store;
    ``shown``: turns of the conversation in it; ``queries``: of each kind.
    """

    turns: int
    unseen: int
    sessions: int
    rounds: int
    warm: int
    messages: int
    shown: int
    queries: int


FULL = Sizes(turns=200, unseen=64, sessions=2, rounds=3, warm=100, messages=1_000_000, shown=400, queries=100)
QUICK = Sizes(turns=40, unseen=8, sessions=1, rounds=1, warm=20, messages=50_000, shown=100, queries=20)


def table(figures: Sequence[Figure]) -> str:
    """Aligned text: figure, measured, wanted, note."""
    lines = [("figure", "unit", "measured", "wanted", "note")]
    for each in figures:
        wanted = str(each.bound) if each.bound is not None else ""
        lines.append((each.title, each.unit, number(each.value), wanted, each.note))
    return columns(lines)


def misses(figures: Sequence[Figure], *, quick: bool) -> list[str]:
    """One sentence for every bound that is missed; of a quick run only those that depend on no size and no speed."""
    return [
        f"{each.name}: {number(each.value)} {each.unit}, wanted {each.bound}"
        for each in figures
        if each.bound is not None and (each.bound.exact or not quick) and not each.bound.met(each.value)
    ]


def document(figures: Sequence[Figure], machine: Mapping[str, str], sizes: Sizes) -> dict[str, object]:
    """The same as JSON: {"machine": ..., "sizes": ..., "figures": {name: {"title", "unit", "measured", "wanted", "note"}}}."""
    told = {
        each.name: {
            "title": each.title,
            "unit": each.unit,
            "measured": each.value,
            "wanted": str(each.bound) if each.bound is not None else None,
            "note": each.note,
        }
        for each in figures
    }
    return {"machine": dict(machine), "sizes": attrs.asdict(sizes), "figures": told}

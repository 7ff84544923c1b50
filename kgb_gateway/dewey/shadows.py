"""Copies of exchanges and their originals, side by side: how a slot would have answered.

Owns what is compared. Both stand in the record; what one of them lacks, since it is not recorded in full, is compared no further.
"""

import difflib
import statistics
from collections.abc import Iterable, Iterator

import attrs

from fiedler_proxy.exchange import SHADOW_OF
from kgb_gateway.dewey.document import Turn, Viewer
from kgb_gateway.dewey.store.reader import StoreReader

WORDS_MOST = 2000
"""Words of a reply that are compared: the time that takes grows with their square."""

_FIND = (
    "SELECT copy.id, original.id FROM exchange AS copy "
    f"JOIN exchange AS original ON original.name = json_extract(CAST(copy.facts AS TEXT), '$.{SHADOW_OF}') "
    f"WHERE copy.at >= ? AND CAST(copy.facts AS TEXT) LIKE '%\"{SHADOW_OF}\"%' AND (? = '' OR copy.slot = ?) "
    "AND original.at >= ? - 86400 ORDER BY copy.at DESC LIMIT ?"
)


@attrs.frozen
class Side:
    """One of the two. Times in seconds; ``tokens`` in and out."""

    exchange: str
    slot: str
    model: str
    status: int
    outcome: str
    stop_reason: str
    first_byte: float | None
    duration: float | None
    tokens: tuple[int, int]


@attrs.frozen
class Pair:
    """A copy beside its original. ``likeness``: of what both replies say, 1 for the same words, None where there is nothing to compare."""

    original: Side
    copy: Side
    likeness: float | None

    @property
    def same(self) -> bool:
        """Whether both ended alike."""
        return (self.original.status, self.original.stop_reason) == (self.copy.status, self.copy.stop_reason)


@attrs.frozen
class Summary:
    """Of many pairs. Shares of 1; ratios of the copy's to the original's, medians; None where no pair tells."""

    pairs: int
    same_status: float
    same_stop_reason: float
    first_byte_ratio: float | None
    duration_ratio: float | None
    output_ratio: float | None
    likeness: float | None


def pairs(store: StoreReader, view: Viewer, since: float, slot: str = "", limit: int = 100) -> Iterator[Pair]:
    """The copies since ``since`` (seconds since the epoch), the newest first."""
    for copy, original in store.connection.execute(_FIND, (since, slot, slot, since, limit)).fetchall():
        yield _pair(store.turn(copy), store.turn(original), view)


def _pair(copy: Turn, original: Turn, view: Viewer) -> Pair:
    texts = [_said(turn, view) for turn in (original, copy)]
    return Pair(_side(original), _side(copy), likeness(*texts) if all(texts) else None)


def _side(turn: Turn) -> Side:
    spent = [0, 0]
    for usage in turn.usage:
        for name in ("uncached", "cache_read", "cache_write_5m", "cache_write_1h"):
            spent[0] += _count(usage.get(name))
        spent[1] += _count(usage.get("output"))
    return Side(
        turn.exchange, turn.slot, turn.model, turn.status, turn.outcome, turn.stop_reason, turn.first_byte, turn.duration,
        (spent[0], spent[1]),
    )  # fmt: skip


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _said(turn: Turn, view: Viewer) -> str:
    if turn.dialect is None:
        return ""
    return "\n".join(view(turn.dialect, block).text for message in turn.replies for block in message.blocks)


def likeness(one: str, other: str) -> float:
    """How much of two texts is the same, from 0 to 1, word by word (Ratcliff and Obershelp)."""
    mine, others = (text.split()[:WORDS_MOST] for text in (one, other))
    return difflib.SequenceMatcher(None, mine, others, autojunk=False).ratio()


def summary(found: Iterable[Pair]) -> Summary:
    """What ``found`` says as a whole."""
    every = list(found)
    count = max(1, len(every))
    return Summary(
        len(every),
        sum(pair.original.status == pair.copy.status for pair in every) / count,
        sum(pair.original.stop_reason == pair.copy.stop_reason for pair in every) / count,
        _median((pair.copy.first_byte, pair.original.first_byte) for pair in every),
        _median((pair.copy.duration, pair.original.duration) for pair in every),
        _median((pair.copy.tokens[1], pair.original.tokens[1]) for pair in every),
        _middle([pair.likeness for pair in every if pair.likeness is not None]),
    )


def _median(sides: Iterable[tuple[float | None, float | None]]) -> float | None:
    return _middle([mine / other for mine, other in sides if mine is not None and other])


def _middle(values: list[float]) -> float | None:
    return statistics.median(values) if values else None

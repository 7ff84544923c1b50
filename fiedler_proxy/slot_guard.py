"""The guard of a canary: whether the candidate does worse than the active slot, told as soon as numbers allow, and seldom wrongly.

Pure. Three measures, each a count of bad exchanges: those that failed, those that broke after they had begun, and those that were slower to
their first byte than nine of ten of the active slot. Each is tested again and again as numbers grow, at levels so small that all looks together
are wrong in less than one run of a thousand: a group-sequential test with a fixed spending of error (Lan and DeMets, Biometrika 1983). The
chance of a count is the binomial's, at the active slot's own rate.
"""

from collections import deque
from math import exp, inf, lgamma, log, log1p

import attrs

EARLY = 50
"""Requests of the candidate within which a slot that fails one time in five is to be found out."""

EARLY_LEVEL = 9e-4
FIRST_LEVEL = 4e-5
"""Chance of a wrong alarm that a look may cost: between 20 and EARLY requests, and before."""

LATE_LEVEL = 3e-5
"""The same for a look behind EARLY requests, and less in proportion behind more."""

OTHER_LEVEL = 1e-5
"""The same for each early look at the other two measures."""

GROWTH = 1.25
"""How much more there is to see at each later look."""

BASE_RATE, BASE_WEIGHT = 0.01, 100
"""What is taken for the active slot's rate of failure as long as it is not known: so many per request, for as much as so many requests. It
is never taken for less."""

SLOW_RATE = 0.2
"""How many may be slower than nine of ten of the active slot, before it is odd: twice what is expected, since times drift."""

ACTIVE_LEAST = 50
"""First bytes of the active slot that are needed to say what is slow."""

REMEMBERED = 500

TURNED_AWAY = frozenset((401, 402, 403, 407, 408, 429))
"""Answers beside 5xx that count as failures: another slot, with other credentials, might not have given them."""


def tail(n: int, k: int, p: float) -> float:
    """The chance of ``k`` or more of ``n``, each with chance ``p``."""
    if k <= 0:
        return 1.0
    if k > n or p <= 0:
        return 0.0
    if p >= 1:
        return 1.0
    term = exp(lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p))
    total, ratio = 0.0, p / (1 - p)
    for i in range(k, n + 1):
        total += term
        term *= (n - i) / (i + 1) * ratio
        if term < total * 1e-12:
            break
    return min(1.0, total)


@attrs.define
class Measure:
    """A count of bad ones, and when to look at it next."""

    name: str
    early: bool = False
    seen: int = 0
    bad: int = 0
    _next: float = 0.0

    def note(self, bad: bool, rate: float, least: int) -> str:
        """One more, against ``rate`` of the active slot; why the candidate is worse, "" for no such finding."""
        self.seen += 1
        self.bad += bad
        level = self._level() if self.seen >= least else 0.0
        if not bad or not level or tail(self.seen, self.bad, rate) >= level:
            return ""
        return f"{self.bad} of {self.seen} {self.name}, against {rate:.1%} of the active slot"

    def _level(self) -> float:
        if self.seen <= EARLY:
            if not self.early:
                return OTHER_LEVEL
            return EARLY_LEVEL if self.seen >= EARLY * 0.4 else FIRST_LEVEL
        if self.seen < self._next:
            return 0.0
        if self.bad:
            self._next = self.seen * GROWTH
        return (LATE_LEVEL if self.early else OTHER_LEVEL) * EARLY / self.seen


@attrs.define
class Rate:
    """The active slot's own."""

    seen: int = 0
    bad: int = 0

    @property
    def value(self) -> float:
        """Bad ones per request, no less than BASE_RATE."""
        return max(BASE_RATE, (self.bad + BASE_RATE * BASE_WEIGHT) / (self.seen + BASE_WEIGHT))


@attrs.define
class Guard:
    """Watches one canary from its beginning. ``least``: requests of it before it is judged."""

    least: int = 5
    failures: Measure = attrs.field(factory=lambda: Measure("requests failed", early=True))
    breaks: Measure = attrs.field(factory=lambda: Measure("answers broke off"))
    slow: Measure = attrs.field(factory=lambda: Measure("were slower than nine of ten"))
    active_failures: Rate = attrs.field(factory=Rate)
    active_breaks: Rate = attrs.field(factory=Rate)
    _times: deque[float] = attrs.field(factory=lambda: deque(maxlen=REMEMBERED))
    _slow_from: float = inf
    _until_sorted: int = ACTIVE_LEAST

    def active(self, *, failed: bool, broke: bool, first_byte: float | None) -> None:
        """An exchange of the active slot has ended; ``first_byte``: seconds, None where there was none."""
        for rate, bad in ((self.active_failures, failed), (self.active_breaks, broke)):
            rate.seen += 1
            rate.bad += bad
        if first_byte is None or failed:
            return
        self._times.append(first_byte)
        self._until_sorted -= 1
        if self._until_sorted <= 0:
            self._until_sorted = 25
            self._slow_from = sorted(self._times)[int(len(self._times) * 0.9)]

    def candidate(self, *, failed: bool, broke: bool, first_byte: float | None) -> str:
        """An exchange of the canary has ended; why it is to be taken back, "" for no reason."""
        return (
            self.failures.note(failed, self.active_failures.value, self.least)
            or self.breaks.note(broke, self.active_breaks.value, self.least)
            or self._late(failed, first_byte)
        )

    def _late(self, failed: bool, first_byte: float | None) -> str:
        if failed or first_byte is None or self._slow_from == inf:
            return ""
        return self.slow.note(first_byte > self._slow_from, SLOW_RATE, self.least)

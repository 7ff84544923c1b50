"""Targets in use: a provider's upstream with its keys, its breaker and how it has been doing.

Owns what is learnt of an upstream while it serves, and in which order several of them are asked.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter

import attrs

from fiedler_proxy import key_source
from fiedler_proxy.breaker import Breaker
from fiedler_proxy.key_source import Key, KeyRing
from fiedler_proxy.provider import Place, Target, header_for
from fiedler_proxy.route import Pick, Route
from fiedler_proxy.signer import Signer

SMOOTHING = 0.2
"""How much the latest time to first byte counts in the average."""

TROUBLE = frozenset((500, 502, 503, 504, 529))
"""Answers that say that the upstream, not the request, is at fault."""


@attrs.define(eq=False)
class Live:
    """A target as it is doing. ``latency``: seconds to the first byte, averaged; ``running``: exchanges on it now;
    ``troubled``: it has to be asked whether it is ready."""

    target: Target
    keys: KeyRing | None = None
    signer: Signer | None = None
    breaker: Breaker = attrs.field(factory=Breaker)
    running: int = 0
    troubled: bool = False
    latency: float = 0.0
    answered: int = 0
    failed: int = 0
    _fresh: Key | None = None
    _fresh_until: float = 0.0

    @property
    def name(self) -> str:
        """What routes call it."""
        return self.target.name

    def ready(self, now: float) -> bool:
        """Whether its breaker, and one of its keys, would let a request pass."""
        if not self.breaker.opened and (self.keys is None or self.keys.rested(now)):
            self.troubled = False
            return True
        return self.breaker.allows(now) and (self.keys is None or self.keys.soonest(now) <= 0)

    def tell(
        self, status: int, first_byte: float | None, key: Key | None, retry_after: float | None, now: float
    ) -> None:
        """It answered with ``status``, after ``first_byte`` seconds."""
        self.answered += 1
        if status >= 400 and key is not None and self.keys is not None:
            self.keys.answered(key, status, retry_after, now)
            self.troubled = self.troubled or not self.keys.rested(now)
        if status in TROUBLE:
            self.failed += 1
            self.breaker.failed(now)
            self.troubled = True
            return
        if self.breaker.failures or self.breaker.opened:
            self.breaker.succeeded()
        if first_byte is not None and status < 400:
            self.latency = first_byte if not self.latency else self.latency + SMOOTHING * (first_byte - self.latency)

    def tell_failure(self, now: float) -> None:
        """It could not be reached, was silent for too long, or broke."""
        self.failed += 1
        self.breaker.failed(now)
        self.troubled = True

    @property
    def many_keys(self) -> bool:
        """Whether there is a choice of keys."""
        return self.keys is not None and len(self.keys.keys) > 1

    def credential(self, affinity: str, now: float) -> Key | None:
        """A key for one request, its ``line`` ready to be sent; None where the caller's own goes on. LookupError when there is none."""
        if self.keys is None:
            return None
        if now < self._fresh_until and (not self.troubled or self.ready(now)):
            return self._fresh
        key = self.keys.take(affinity, now)
        if key is None:
            key = min(self.keys.keys, key=lambda each: each.rests_until)
        secret = key.read(now)
        if key.line[0] != secret:
            name, value = header_for(self.target.provider.place, secret)
            key.line = secret, name + b": " + value
        if not self.many_keys:
            self._fresh, self._fresh_until = key, now + key_source.LOOK_SECONDS
        return key


def in_order(
    route: Route, lives: Sequence[Live], now: float, chance: Callable[[], float] = random.random
) -> tuple[Live, ...]:
    """``lives``, which belong to ``route`` in the order it names them, as they are to be asked. Those that are known to refuse come not at
    all, unless nobody else is there: then the first of them is tried, since what is known may be out of date."""
    ready = tuple([live for live in lives if live.ready(now)])
    if len(ready) < 2 or route.pick is Pick.ORDERED:
        return ready or (min(lives, key=lambda live: live.breaker.until),)
    if route.pick is Pick.LEAST_BUSY:
        if route.weights:
            weights = _weights(route, lives)
            first = min(ready, key=lambda live: live.running / max(1e-9, weights[live.name]))
        else:
            first = min(ready, key=_running)
    elif route.pick is Pick.FASTEST:
        first = min(ready, key=_latency)  # one that was never asked comes first, and is known then
    else:
        weights = _weights(route, lives)
        first = _weighted(ready, [weights[live.name] for live in ready], chance())
    return ready if first is ready[0] else (first, *(live for live in ready if live is not first))


_running = attrgetter("running")
_latency = attrgetter("latency")


def _weights(route: Route, lives: Sequence[Live]) -> dict[str, float]:
    return {live.name: weight for live, weight in zip(lives, route.weights or (1.0,) * len(lives), strict=False)}


def _weighted(lives: Sequence[Live], weights: Sequence[float], chance: float) -> Live:
    place = chance * sum(weights)
    for live, weight in zip(lives, weights, strict=True):
        place -= weight
        if place < 0:
            return live
    return lives[-1]


def attempts_of(lives: Sequence[Live], now: float, most: int) -> Iterator[Live]:
    """Whom to ask, in turn: one with several keys that do not rest is asked once with each, before the next one is."""
    count = 0
    for live in lives:
        times = 1
        if live.keys is not None and live.target.provider.place is not Place.NONE:
            times = max(1, sum(key.rests_until <= now for key in live.keys.keys))
        for _ in range(times):
            if count < most:
                count += 1
                yield live

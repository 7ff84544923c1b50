"""A way: a route with those behind it, and what is learnt of sessions that take it.

Owns what can be worked out once for many requests, so that none of it is worked out for each.
"""

from collections.abc import Mapping

import attrs

from fiedler_proxy.provider import Place, Target
from fiedler_proxy.route import Decision, Pick
from fiedler_proxy.targets import Live, in_order

SESSIONS_CAP = 10_000
"""Sessions of which a way remembers who served them."""


@attrs.frozen
class Way:
    """A decision with those behind its route, worked out once. ``plain``: one upstream whose requests pass as they are; ``alone``: there is no
    choice; ``ordered``: the first one is the first one as long as all are well; ``many_keys``: one of them has several; ``signs``: one of
    them signs the body; ``kept``: who served which session last."""

    decision: Decision
    lives: tuple[Live, ...]
    plain: bool
    alone: bool
    ordered: bool
    many_keys: bool
    signs: bool
    kept: dict[str, Live]

    def sticky_order(self, session: str, now: float) -> tuple[Live, ...]:
        """Whom to ask, in turn: who served ``session`` before comes first as long as it is well, since its prompt cache is warm."""
        ordered = in_order(self.decision.route, self.lives, now)
        if not session:
            return ordered
        first = self.kept.get(session)
        if first is None or first not in ordered:
            first = self.kept[session] = ordered[0]
            if len(self.kept) > SESSIONS_CAP:
                del self.kept[next(iter(self.kept))]
        return ordered if first is ordered[0] else (first, *(live for live in ordered if live is not first))

    @classmethod
    def of(cls, decision: Decision, known: Mapping[str, Live], kept: dict[str, Live]) -> "Way":
        """The way of ``decision``."""
        route = decision.route
        lives = tuple(known[name] for name in route.targets)
        alone = len(lives) == 1
        plain = alone and lives[0].keys is None and not _changes(lives[0].target)
        signs = any(live.signer is not None and live.signer.needs_body for live in lives)
        many = any(live.many_keys for live in lives)
        return cls(decision, lives, plain, alone, route.pick is Pick.ORDERED, many, signs, kept)


def _changes(target: Target) -> bool:
    """Whether a request has to be changed for ``target``, be it by a header."""
    provider = target.provider
    return provider.fiedler or bool(provider.cut) or provider.aws or provider.place in (Place.NONE, Place.GOOGLE)

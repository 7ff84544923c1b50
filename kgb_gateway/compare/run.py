"""Asks both ways in turn, as often as the evidence needs, and collects the verdicts.

Owns the order of the questions: every answer through the gateway stands between two direct ones, so that whatever
grows (dates, counters) and is the same before and after must be the same in between.
"""

import ssl
from collections.abc import AsyncIterator, Iterable

import attrs

from fiedler_proxy.upstream import Upstream
from kgb_gateway.compare.judge import Aspect, Verdict, judge
from kgb_gateway.compare.requests import Request
from kgb_gateway.compare.wire import Answer, WireError, ask

EXTRA_ROUNDS = 2
"""Further rounds asked before a difference is reported, so that no chance agreement of two answers accuses a gateway."""


@attrs.frozen
class Side:
    """One way to ask: where, with which TLS context, and with which headers of its own (the gateway's key)."""

    upstream: Upstream
    tls: ssl.SSLContext | None = None
    headers: tuple[tuple[str, str], ...] = ()

    async def ask(self, request: Request, timeout: float) -> Answer:
        """One answer; WireError when no connection comes about."""
        return await ask(self.upstream, request.with_headers(self.headers, replace=True), timeout=timeout, tls=self.tls)


@attrs.frozen
class Comparison:
    """One request, how it was answered both ways, and the verdicts."""

    request: Request
    directs: tuple[Answer, ...]
    vias: tuple[Answer, ...]
    aspects: tuple[Aspect, ...]

    @property
    def agrees(self) -> bool:
        """Whether no aspect differs."""
        return all(aspect.verdict is not Verdict.DIFFERS for aspect in self.aspects)


async def compare(
    direct: Side, via: Side, requests: Iterable[Request], *, repeat: int = 1, timeout: float = 120.0
) -> AsyncIterator[Comparison]:
    """Compare the answers to each of ``requests``, one after the other.

    ``repeat``: how often at least each is asked through the gateway. ``timeout``: seconds an answer may take.
    WireError when one side cannot be reached or the direct one gives no answer: then there is nothing to compare.
    """
    for request in requests:
        directs, vias = [await _direct(direct, request, timeout)], []
        aspects: tuple[Aspect, ...] = ()
        for number in range(repeat + EXTRA_ROUNDS):
            vias.append(await via.ask(request, timeout))
            directs.append(await _direct(direct, request, timeout))
            aspects = judge(directs, vias)
            differs = any(aspect.verdict is Verdict.DIFFERS for aspect in aspects)
            if number + 1 >= repeat and not (differs and _worth_asking_again(aspects, vias)):
                break
        yield Comparison(request, tuple(directs), tuple(vias), aspects)


def _worth_asking_again(aspects: tuple[Aspect, ...], vias: list[Answer]) -> bool:
    """Whether chance may be behind a difference. A hanging answer is not asked for again: it costs a timeout each."""
    return all(one.complete for one in vias) and aspects[0].verdict is not Verdict.DIFFERS


async def _direct(direct: Side, request: Request, timeout: float) -> Answer:
    answer = await direct.ask(request, timeout)
    if not answer.status:
        raise WireError(f"{direct.upstream.where} gave no answer to {request.name}: {answer.end}")
    return answer

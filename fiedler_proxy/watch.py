"""The watch over a canary: every exchange that ends is told to the guard, and its verdict takes the canary back.

Owns that a guard sees one canary from its beginning, and that a verdict is in force at once and kept on disk after.
"""

import asyncio
import logging
from collections.abc import Callable

import attrs

from fiedler_proxy.exchange import Exchange, Observer, Outcome
from fiedler_proxy.router import Router
from fiedler_proxy.slot_choice import Choice
from fiedler_proxy.slot_guard import TURNED_AWAY, Guard

BY = "guard"

_NOBODYS_FAULT = frozenset((Outcome.CALLER_LEFT, Outcome.GATEWAY_STOPPED))

_log = logging.getLogger("kgb.slot")


@attrs.define(eq=False)
class CanaryWatch:
    """Watches the canary of ``router``, whenever there is one. ``least``: see ``Guard``; ``of``: the slots that ``guard`` compares."""

    router: Router
    least: int
    guard: Guard | None = None
    of: tuple[str, str] = ("", "")
    _keeping: set["asyncio.Task[None]"] = attrs.field(factory=set)

    def __call__(self, exchange: Exchange) -> None:
        """``router.Watcher``."""
        choice = self.router.choice
        if not choice.share or exchange.trusted:
            return
        if self.guard is None or self.of != (choice.active, choice.canary):
            self.guard, self.of = Guard(self.least), (choice.active, choice.canary)
        exchange.observe(_Told(self, self.guard))

    def ended(self, exchange: Exchange, guard: Guard) -> None:
        """One exchange of the canary, or of the active slot, has ended."""
        if guard is not self.guard or exchange.outcome in _NOBODYS_FAULT or exchange.outcome is None:
            return
        active, canary = self.of
        failed, broke = failed_and_broke(exchange)
        wait = None if exchange.first_byte is None else exchange.first_byte - exchange.started
        if exchange.slot == active:
            guard.active(failed=failed, broke=broke, first_byte=wait)
        elif exchange.slot == canary:
            why = guard.candidate(failed=failed, broke=broke, first_byte=wait)
            if why:
                self._take_back(canary, why)

    def _take_back(self, canary: str, why: str) -> None:
        self.guard = None

        def back(choice: Choice) -> Choice:
            return choice.rolled_back(BY, why) if choice.canary == canary else choice

        _log.warning("the canary %s is taken back: %s", canary, why)
        self.router.put(back(self.router.choice))
        task = asyncio.get_running_loop().create_task(self._keep(back))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _keep(self, back: Callable[[Choice], Choice]) -> None:
        try:
            await self.router.change(back)
        except (OSError, ValueError) as error:
            _log.error("it is taken back until a restart, and could not be kept: %s", type(error).__name__)


class _Told(Observer):
    __slots__ = ("_guard", "_watch")

    def __init__(self, watch: CanaryWatch, guard: Guard) -> None:
        self._watch, self._guard = watch, guard

    def closed(self, exchange: Exchange) -> None:
        self._watch.ended(exchange, self._guard)


def failed_and_broke(exchange: Exchange) -> tuple[bool, bool]:
    """Whether the upstream failed ``exchange`` before it began to answer, and whether it broke off after."""
    trouble = exchange.outcome in (Outcome.UPSTREAM_BROKE, Outcome.TIMED_OUT)
    began = exchange.response_size > 0 and exchange.status < 400
    failed = exchange.status >= 500 or exchange.status in TURNED_AWAY or (trouble and not began)
    return failed, trouble and began

"""Shadows: copies of a share of the requests, sent through another slot when the caller has got their answer. Nobody gets theirs.

Owns what is copied, and the budget of an hour. A copy goes through the whole chain, so it is recorded as any exchange is, with the id of the
one it is a copy of; what differs is read out of the record (``kgb slot compare``). The caller never waits for it, and nothing of it can fail him.
"""

import asyncio
import collections
import logging
import re
import time
from collections.abc import Callable

import aiohttp
import attrs

from fiedler_proxy.exchange import SHADOW_OF, Exchange, Observer, Outcome
from fiedler_proxy.headers import RawHeaders
from fiedler_proxy.inner import InnerDoor, Reply
from fiedler_proxy.router import Router
from fiedler_proxy.slot_choice import fraction

HOUR = 3600.0

WAITING_MOST = 32
"""Copies that wait to be sent; those beyond are not made."""

_USED = re.compile(
    rb'"(?:input_tokens|output_tokens|prompt_tokens|completion_tokens|cache_read_input_tokens|cache_creation_input_tokens'
    rb'|promptTokenCount|candidatesTokenCount)"\s*:\s*(\d{1,9})'
)
_BYTES_A_TOKEN = 4

_log = logging.getLogger("kgb.slot")


@attrs.define
class Budget:
    """What may be spent within an hour: ``requests``, ``tokens``. Times are of the monotonic clock. ``spent``: when, and how many tokens."""

    requests: int
    tokens: int
    spent: collections.deque[list[float]] = attrs.field(factory=collections.deque)

    def take(self, now: float) -> bool:
        """Whether one more may be sent; it counts from now on."""
        while self.spent and self.spent[0][0] <= now - HOUR:
            self.spent.popleft()
        if len(self.spent) >= self.requests or sum(tokens for _, tokens in self.spent) >= self.tokens:
            return False
        self.spent.append([now, 0])
        return True

    def used(self, tokens: int) -> None:
        """The copy that was taken last has cost ``tokens``."""
        if self.spent:
            self.spent[-1][1] += tokens

    def take_over(self, other: "Budget") -> None:
        """What ``other`` has spent counts here."""
        self.spent = other.spent

    def left(self, now: float) -> tuple[int, int]:
        """Requests and tokens that are left."""
        recent = [tokens for at, tokens in self.spent if at > now - HOUR]
        return max(0, self.requests - len(recent)), max(0, self.tokens - int(sum(recent)))


def tokens_of(sent: bytes, reply: Reply) -> int:
    """Tokens that an exchange cost, as its answer tells, whatever the dialect: a stream tells some of them more than once, and each name
    counts with its largest number. Where it tells nothing, four bytes are one."""
    most: dict[bytes, int] = {}
    for match in _USED.finditer(reply.body):
        name = match[0].partition(b":")[0]
        most[name] = max(most.get(name, 0), int(match[1]))
    return sum(most.values()) or (len(sent) + reply.size) // _BYTES_A_TOKEN


@attrs.frozen
class Copy:
    """A request as the caller sent it, without the gateway's own key."""

    id: str
    method: str
    target: str
    headers: RawHeaders
    body: bytes
    caller: str


@attrs.define(eq=False)
class Shadow:
    """Copies ``share`` of the requests to ``slot``. ``body_cap``: bytes of a body above which there is no copy."""

    router: Router
    door: InnerDoor
    slot: str
    share: float
    budget: Budget
    body_cap: int
    sent: int = 0
    dropped: int = 0
    failed: int = 0
    _waiting: asyncio.Queue[Copy] = attrs.field(factory=lambda: asyncio.Queue(WAITING_MOST))
    _task: "asyncio.Task[None] | None" = None
    clock: Callable[[], float] = time.monotonic

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.get_running_loop().create_task(self._send_all(), name="kgb-shadow")

    def end(self) -> None:
        """Send no more; what waits is let go."""
        if self._task is not None:
            self._task.cancel()

    def __call__(self, exchange: Exchange) -> None:
        """``router.Watcher``."""
        if exchange.trusted or exchange.slot == self.slot or exchange.method not in ("POST", "GET"):
            return
        if fraction(exchange.id) < self.share:
            exchange.observe(_Copying(self, exchange))

    def offer(self, copy: Copy) -> None:
        """Send ``copy`` when its turn comes, if the budget allows."""
        if self._waiting.full() or not self.budget.take(self.clock()):
            self.dropped += 1
            return
        self._waiting.put_nowait(copy)

    async def _send_all(self) -> None:
        while True:
            copy = await self._waiting.get()
            try:
                reply = await self.door.ask(
                    copy.method, copy.target, copy.headers, copy.body, slot=self.slot, caller=copy.caller,
                    facts={SHADOW_OF: copy.id},
                )  # fmt: skip
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self.failed += 1
                _log.info("the copy of %s came to nothing: %s", copy.id, type(error).__name__)
            else:
                self.sent += 1
                self.budget.used(tokens_of(copy.body, reply))
            finally:
                self._waiting.task_done()

    async def idle(self) -> None:
        """Wait until every copy has been sent."""
        await self._waiting.join()


class _Copying(Observer):
    """Keeps what the caller sends, as the caller sent it: routes change the exchange, not this."""

    __slots__ = ("_caller", "_headers", "_pieces", "_shadow", "_size", "_target")

    def __init__(self, shadow: Shadow, exchange: Exchange) -> None:
        self._shadow = shadow
        self._target, self._headers, self._caller = exchange.target, exchange.request_headers, exchange.caller
        self._pieces: list[bytes] = []
        self._size = 0

    def request_bytes(self, exchange: Exchange, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._shadow.body_cap:
            self._pieces.append(data)
        else:
            self._pieces.clear()

    def closed(self, exchange: Exchange) -> None:
        if exchange.outcome is not Outcome.COMPLETED or self._size > self._shadow.body_cap or exchange.tunnelled:
            return
        body = b"".join(self._pieces)
        if exchange.transformed:
            return  # its body is no longer what the caller sent
        self._shadow.offer(Copy(exchange.id, exchange.method, self._target, self._headers, body, self._caller))

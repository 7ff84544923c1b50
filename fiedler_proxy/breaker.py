"""A circuit breaker: an upstream that keeps failing is left alone for a while, then tried by one request.

Pure: whoever uses it tells the time. Its states are those of Nygard's "Release It!": closed, open, half-open.
"""

import enum

import attrs

FAILURES = 5
"""In a row, after which it opens."""

OPEN_SECONDS = 10.0
"""How long it stays open the first time; twice as long each further time, up to OPEN_MOST."""

OPEN_MOST = 120.0


class State(enum.StrEnum):
    """What a breaker lets through: everything, nothing, or one probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@attrs.define
class Breaker:
    """Of one upstream. Times are seconds of one monotonic clock."""

    failures: int = 0
    opened: int = 0
    until: float = 0.0
    probing: bool = False

    def state(self, now: float) -> State:
        """Where it stands."""
        if not self.opened:
            return State.CLOSED
        return State.OPEN if now < self.until else State.HALF_OPEN

    def allows(self, now: float) -> bool:
        """Whether a request may pass. One that passes a half-open breaker must be told of with ``take``."""
        state = self.state(now)
        return state is State.CLOSED or (state is State.HALF_OPEN and not self.probing)

    def take(self, now: float) -> None:
        """A request is on its way."""
        if self.opened and now >= self.until:
            self.probing = True

    def succeeded(self) -> None:
        """It was answered."""
        self.failures = self.opened = 0
        self.probing = False

    def failed(self, now: float) -> None:
        """It could not be reached, or answered that it is in trouble."""
        self.failures += 1
        if self.probing or (not self.opened and self.failures >= FAILURES):
            self.until = now + min(OPEN_MOST, OPEN_SECONDS * 2**self.opened)
            self.opened += 1
            self.probing = False

    def given_up(self) -> None:
        """The request ended without an answer and by nobody's fault of its own: the caller left."""
        self.probing = False

"""An answer that was put aside, since another upstream is asked."""

import attrs

from fiedler_proxy.wire import ResponseHead


@attrs.define
class Answer:
    """An upstream's answer that was put aside: small, and whole unless it is ``broken``."""

    head: ResponseHead
    body: list[bytes] = attrs.field(factory=list)
    size: int = 0
    broken: bool = False


class TurnedAway(Exception):
    """An upstream answered so that another one is to be asked; ``answer`` is what it said."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.head.status)
        self.answer = answer

"""The gate: between a connection and its flow until the head of the answer tells whether the caller is to get it.

Owns that an answer that is put aside is whole and small: a longer one goes to the caller after all.
"""

from collections.abc import Callable

from fiedler_proxy.flow import Answer, Flow, TurnedAway
from fiedler_proxy.wire import ResponseHead, UpstreamConnection, WireError

ASIDE_CAP = 256 * 1024
"""Bytes of an answer that are put aside while another upstream is asked; a longer one goes to the caller."""


class Gate:
    """Stands between a connection and its flow until the head of the answer is there (a wire.Sink)."""

    __slots__ = ("_answer", "_cap", "_connection", "_flow", "_turns_away")

    def __init__(
        self, flow: Flow, connection: UpstreamConnection, turns_away: Callable[[int], bool], cap: int = ASIDE_CAP
    ) -> None:
        self._flow = flow
        self._connection = connection
        self._turns_away = turns_away
        self._cap = cap
        self._answer: Answer | None = None

    def on_interim(self, head: ResponseHead) -> None:
        self._flow.on_interim(head)

    def on_head(self, head: ResponseHead) -> None:
        if self._turns_away(head.status):
            self._answer = Answer(head)
            return
        self._connection.hand_over(self._flow)
        self._flow.on_head(head)

    def on_body(self, data: bytes) -> None:
        answer = self._answer
        assert answer is not None
        answer.body.append(data)
        answer.size += len(data)
        if answer.size > self._cap:
            self._answer = None
            self._connection.hand_over(self._flow)
            self._flow.on_head(answer.head)
            for piece in answer.body:
                self._flow.on_body(piece)

    def on_end(self) -> None:
        assert self._answer is not None
        self._flow.turned_away(self._answer)

    def on_broken(self, error: WireError) -> None:
        if self._answer is None:
            self._flow.on_broken(error)
        else:  # its head has said enough, and nobody shall get half of it
            self._answer.broken = True
            self._flow.fail(TurnedAway(self._answer))

    def on_turn(self) -> None:
        self._flow.on_turn()

    def on_writable(self) -> None:
        self._flow.on_writable()

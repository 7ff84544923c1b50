"""The gate: takes an answer that the caller is not to get, and keeps it until it is whole.

Owns that what is put aside is small: a longer answer goes to the caller after all.
"""

from fiedler_proxy.answer import Answer, TurnedAway
from fiedler_proxy.flow import Flow
from fiedler_proxy.wire import ResponseHead, UpstreamConnection, WireError

ASIDE_CAP = 256 * 1024
"""Bytes of an answer that are put aside while another upstream is asked; a longer one goes to the caller."""


class Gate:
    """Takes the answer that begins with ``head`` in the place of ``flow`` (a wire.Sink). ``cap``: bytes of it, at most."""

    __slots__ = ("_answer", "_cap", "_connection", "_flow")

    def __init__(self, flow: Flow, connection: UpstreamConnection, head: ResponseHead, cap: int = ASIDE_CAP) -> None:
        self._flow = flow
        self._connection = connection
        self._cap = cap
        self._answer: Answer | None = Answer(head)

    def on_interim(self, head: ResponseHead) -> None:
        self._flow.on_interim(head)

    def on_head(self, head: ResponseHead) -> None:
        raise AssertionError("the head has come before")

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

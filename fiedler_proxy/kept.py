"""What was read of a request body and may be wanted again: by whoever looks for its model, and by the next upstream.

Pure. Bounded: above ``cap`` it is let go as soon as it has been sent, and the request can be sent once only.
"""

import attrs


@attrs.define(eq=False)
class Kept:
    """The beginning of a body. ``whole``: all of it is here; ``told``: observers have heard of the request and of what is here;
    ``lost``: it was longer than ``cap`` bytes and is here no more."""

    cap: int
    pieces: list[bytes] = attrs.field(factory=list)
    size: int = 0
    whole: bool = False
    told: bool = False
    lost: bool = False

    def put(self, data: bytes) -> None:
        """Keep what comes next; ``spent`` lets go of it."""
        if not self.lost:
            self.size += len(data)
            self.pieces.append(data)

    def spent(self) -> None:
        """What is here was sent: it is kept only as long as it may be sent again."""
        if self.size > self.cap:
            self.lost = True
            self.pieces.clear()

    def body(self) -> bytes:
        """Everything that is kept."""
        if len(self.pieces) > 1:
            self.pieces[:] = [b"".join(self.pieces)]
        return self.pieces[0] if self.pieces else b""

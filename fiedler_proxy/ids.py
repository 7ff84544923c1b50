"""Exchange ids: UUIDv7 (RFC 9562 section 5.7), which Python's own library lacks before 3.14.

Owns the one generator of the process. An id says when its exchange began and sorts by it; it is no secret and grants
nothing.
"""

import os
import struct
import threading
import time

_TAIL_BITS = 62
"""rand_b; rand_a (12 bits) stands before it, and both count as one number."""

_TAIL_LIMIT = 1 << _TAIL_BITS
_VARIANT = 0b10 << _TAIL_BITS
_BLOCK = 128


class _Generator:
    """Strictly rising ids, from any thread.

    RFC 9562 section 6.2, method 2: within one millisecond, or while the clock stands still or runs backwards, the
    random part grows by a random step. Its highest bit starts as 0, which leaves room for 2**41 steps.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: list[int] = []
        self._millis = 0
        self._high = 0  # rand_a
        self._tail = 0  # rand_b
        self._head = ""  # the text of everything before rand_b

    def next(self) -> str:
        millis = time.time_ns() // 1_000_000
        with self._lock:
            steps = self._steps
            if len(steps) < 3:
                # 32 random bits each; one system call serves many ids.
                steps += struct.unpack(f"{_BLOCK}I", os.urandom(4 * _BLOCK))
            if millis > self._millis:
                self._begin(millis, steps.pop() & 0x7FF, (steps.pop() << 32 | steps.pop()) % _TAIL_LIMIT)
            else:
                self._tail += 1 + steps.pop()
                if self._tail >= _TAIL_LIMIT:
                    self._carry()
            tail = f"{_VARIANT | self._tail:x}"
            return f"{self._head}{tail[:4]}-{tail[4:]}"

    def _begin(self, millis: int, high: int, tail: int) -> None:
        self._millis, self._high, self._tail = millis, high, tail
        stamp = f"{millis:012x}"
        self._head = f"{stamp[:8]}-{stamp[8:]}-7{high:03x}-"

    def _carry(self) -> None:
        """Section 6.2, "Counter Rollover Handling": the timestamp may run ahead of the clock."""
        high = self._high + 1
        self._begin(self._millis + (high >> 12), high & (0xFFF if high < 0x1000 else 0x7FF), self._tail % _TAIL_LIMIT)


_generator = _Generator()


def new_id() -> str:
    """A UUIDv7 in canonical form: 36 characters, lower case; greater than every earlier one of this process."""
    return _generator.next()

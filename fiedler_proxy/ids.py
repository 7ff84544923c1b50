"""Exchange ids: UUIDv7 (RFC 9562 section 5.7), which Python's own library lacks before 3.14.

Owns the one generator of the process. An id says when its exchange began and sorts by it; it is no secret and grants
nothing.
"""

import os
import struct
import threading
import time

_RANDOM_BITS = 74
"""rand_a (12) and rand_b (62), taken as one number."""

_RANDOM_LIMIT = 1 << _RANDOM_BITS
_SEED_MASK = (1 << (_RANDOM_BITS - 1)) - 1
_TAIL_MASK = (1 << 62) - 1
_BLOCK = 128
_VERSION = 7 << 76
_VARIANT = 0b10 << 62


class _Generator:
    """Strictly rising ids, from any thread.

    RFC 9562 section 6.2, method 2: within one millisecond, or while the clock stands still or runs backwards, the
    random part grows by a random step. Its highest bit starts as 0, which leaves room for 2**41 steps.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: list[int] = []
        self._millis = 0
        self._random = 0

    def next(self) -> int:
        millis = time.time_ns() // 1_000_000
        with self._lock:
            steps = self._steps
            if len(steps) < 3:
                # 32 random bits each; one system call serves many ids.
                steps += struct.unpack(f"{_BLOCK}I", os.urandom(4 * _BLOCK))
            if millis > self._millis:
                self._millis = millis
                self._random = (steps.pop() << 64 | steps.pop() << 32 | steps.pop()) & _SEED_MASK
            else:
                self._random += 1 + steps.pop()
                if self._random >= _RANDOM_LIMIT:
                    # Section 6.2, "Counter Rollover Handling": the timestamp may run ahead of the clock.
                    self._millis += 1
                    self._random &= _SEED_MASK
            random = self._random
            return self._millis << 80 | _VERSION | (random >> 62) << 64 | _VARIANT | (random & _TAIL_MASK)


_generator = _Generator()


def new_id() -> str:
    """A UUIDv7 in canonical form: 36 characters, lower case; greater than every earlier one of this process."""
    text = f"{_generator.next():032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

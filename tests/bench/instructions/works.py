"""What is counted: a few pieces of work, how each is begun and ended, and how many are counted at a time."""

import contextlib
from collections.abc import Callable

import attrs

from tests.bench.instructions.wires import Ends


@attrs.frozen
class Work:
    """What is counted: ``do`` so many, within ``within`` (told how many there will be in all); ``warm`` of them come before, and ``count``
    are counted at a time."""

    name: str
    title: str
    unit: str
    do: Callable[[Ends, int], None]
    within: Callable[[Ends, int], contextlib.AbstractContextManager[None]]
    warm: int
    count: int


WORKS = (
    Work("request", "small JSON, kept alive", "a request", Ends.request, Ends.nothing, 200, 150),
    Work("event", "an event of a stream", "an event", Ends.event, Ends.stream, 150, 300),
    Work("megabyte", "a request body, 32 KiB at a time", "a MB", Ends.megabyte, Ends.upload, 4, 8),
)

"""Raw: the bytes of an exchange as they passed, out of the segments again.

Owns the way back from an exchange's place to its frames. Nothing is derived: what is given is what was received.
"""

from collections.abc import Iterable, Iterator

import attrs

from kgb_gateway.dewey.entry import Position
from kgb_gateway.dewey.exchanges import Collector, Gathered
from kgb_gateway.dewey.spool import InstanceReader, Layout
from kgb_gateway.record import Kind


@attrs.frozen
class Raw:
    """The bodies of one exchange."""

    request: bytes
    response: bytes


def raw_of(layout: Layout, instance: str, segment: str, place: int, key: bytes) -> Gathered | None:
    """The exchange ``key`` whose first frame is at ``place``; None where its segment is no longer kept."""
    if not layout.has(segment):
        return None
    reader, collector = InstanceReader(layout, Position(instance, segment, place)), Collector(instance)
    for found in reader.frames():
        if found.frame.exchange != key and any(found.frame.exchange):
            continue
        for gathered in collector.feed(found):
            return gathered
    return next(iter(collector.close_all()), None)


def bodies(gathered: Gathered) -> Raw:
    """Its request and its response; those of a tunnel are what went to the upstream and to the caller."""
    request = gathered.body(Kind.REQUEST_BYTES).read() or gathered.body(Kind.TO_UPSTREAM).read()
    response = gathered.body(Kind.RESPONSE_BYTES).read() or gathered.body(Kind.TO_CALLER).read()
    return Raw(request, response)


def every(layout: Layout, wanted: Iterable[bytes] | None = None) -> Iterator[Gathered]:
    """Every exchange in the segments, or those ``wanted``, in the order in which they ended; open ones too, last."""
    keys = None if wanted is None else set(wanted)
    for instance in layout.instances():
        reader, collector = InstanceReader(layout, Position(instance)), Collector(instance)
        for found in reader.frames():
            if keys is None or found.frame.exchange in keys or not any(found.frame.exchange):
                yield from collector.feed(found)
        yield from collector.close_all()

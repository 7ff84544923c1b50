"""Verdicts: do the answers through the gateway agree with the direct ones?

Pure. What may differ is decided by evidence: a value counts as varying when direct answers differ in it among
themselves. What a gateway may change is DESIGN's short list: framing, version, letter case of header names, hop-by-hop
headers and headers under its own names.
"""

import enum
import itertools
import re
import statistics
from collections.abc import Iterable, Sequence

import attrs

from fiedler_proxy.headers import CREDENTIALS, REDACTED, end_to_end
from kgb_gateway.compare.bodies import compare_bodies, decoded
from kgb_gateway.compare.wire import Answer

OWN_PREFIXES = (b"x-kgb-", b"x-fiedler-")
OWN_NAMES = (b"via",)
"""Headers under these names are the gateway's own and may be added (Via: RFC 9110 section 7.6.3)."""

VARYING = re.compile(
    rb"date|age|expires|set-cookie|(x-)?request-id|cf-ray|server-timing|.*(ratelimit|-time|-ms|trace).*"
)
"""Names whose values may differ even where two direct answers happened to agree; their presence is compared."""

STREAM_ARRIVALS = 3
STREAM_SECONDS = 0.05
"""An answer that arrives directly in at least so many portions, spread over so long, is a stream."""

KEPT_SHARE = 0.5
"""A stream that arrives in less than this share of its portions, or of its time, was held back."""

LATE_SECONDS = 0.15
LATE_FACTOR = 1.5
"""The first byte is late beyond the slowest direct one times the factor, plus these seconds and two connection set-ups."""


class Verdict(enum.StrEnum):
    """OK: agrees. VARIES: the direct answers differ among themselves, so nothing can be said. DIFFERS: does not agree."""

    OK = "OK"
    VARIES = "VARIES"
    DIFFERS = "DIFFERS"


@attrs.frozen
class Aspect:
    """One verdict with its reasons, for people."""

    name: str
    verdict: Verdict
    notes: tuple[str, ...] = ()


def judge(directs: Sequence[Answer], vias: Sequence[Answer]) -> tuple[Aspect, ...]:
    """Status, headers, bytes and pacing of one request asked several times both ways (two direct ones at least)."""
    return (_status(directs, vias), _headers(directs, vias), _bytes(directs, vias), _pacing(directs, vias))


def _status(directs: Sequence[Answer], vias: Sequence[Answer]) -> Aspect:
    direct, via = _unique(_line(one) for one in directs), _unique(_line(one) for one in vias)
    if len({one.status for one in directs}) > 1:
        return Aspect("status", Verdict.VARIES, (f"direct: {', '.join(direct)}; via: {', '.join(via)}",))
    if {one.status for one in vias} != {directs[0].status}:
        return Aspect("status", Verdict.DIFFERS, (f"{direct[0]} became {', '.join(via)}",))
    notes = [direct[0]]
    if set(via) - set(direct):
        notes.append(f"reason phrase via: {', '.join(via)}")
    return Aspect("status", Verdict.OK, tuple(notes))


def _line(answer: Answer) -> str:
    return f"{answer.status} {answer.reason}".strip() if answer.status else f"no answer ({answer.end})"


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


Grouped = dict[bytes, tuple[bytes, ...]]


def _group(answer: Answer) -> Grouped:
    """End-to-end headers by lower-case name, values in order. Content-Length is framing."""
    grouped: Grouped = {}
    for name, value in end_to_end(answer.headers, frozenset((b"content-length",))):
        grouped[name.lower()] = (*grouped.get(name.lower(), ()), value)
    return grouped


def _headers(directs: Sequence[Answer], vias: Sequence[Answer]) -> Aspect:
    left, right = [_group(one) for one in directs], [_group(one) for one in vias]
    equal, varying, own, faults = 0, [], [], []
    for name in dict.fromkeys(name for group in [*left, *right] for name in group):
        text = name.decode("latin-1")
        if (name.startswith(OWN_PREFIXES) or name in OWN_NAMES) and not any(name in group for group in left):
            own.append(text)
            continue
        fault, varies = _header(name, [g.get(name) for g in left], [g.get(name) for g in right])
        if fault:
            faults.append(f"{text}: {fault}")
        varying += [text] * varies
        equal += not fault and not varies
    faults += _order(left, right) + _lengths(directs, vias)
    notes = [f"{equal} equal"]
    notes += [f"vary: {', '.join(varying)}"] * bool(varying) + [f"added by the gateway: {', '.join(own)}"] * bool(own)
    notes += _allowed(directs[0], vias[0])
    return Aspect("headers", Verdict.DIFFERS if faults else Verdict.OK, tuple(faults + notes))


def _header(
    name: bytes, direct: list[tuple[bytes, ...] | None], via: list[tuple[bytes, ...] | None]
) -> tuple[str, bool]:
    """What is wrong with one header ("" for nothing), and whether its values vary."""
    if all(one is None for one in direct):
        return f"added: {_shown(name, next(one for one in via if one is not None))}", False
    if any(one is None for one in direct):
        return "", True
    if any(one is None for one in via):
        return "missing via", False
    counts, others = {len(one or ()) for one in direct}, {len(one or ()) for one in via}
    if len(counts) == 1 and others != counts:
        return f"{counts.pop()} times direct, {' or '.join(map(str, sorted(others)))} times via", False
    if len(set(direct)) > 1:
        return "", True
    changed = next((one for one in via if one != direct[0]), None)
    if changed is None:
        return "", False
    if VARYING.fullmatch(name):
        return "", True
    return f"{_shown(name, direct[0])} became {_shown(name, changed)}", False


def _shown(name: bytes, values: tuple[bytes, ...] | None) -> str:
    if name in CREDENTIALS:
        return REDACTED
    return repr(b", ".join(values or ()).decode("latin-1"))


def _order(left: list[Grouped], right: list[Grouped]) -> list[str]:
    """The order of the names that every answer has; groups keep the order of first appearance."""
    common = set.intersection(*(set(group) for group in [*left, *right]))
    orders = [[name for name in group if name in common] for group in left]
    if any(order != orders[0] for order in orders):
        return []
    for group in right:
        order = [name for name in group if name in common]
        if order != orders[0]:
            moved = next(a for a, b in zip(orders[0], order, strict=True) if a != b)
            return [f"order differs, first at {moved.decode('latin-1')}"]
    return []


def _lengths(directs: Sequence[Answer], vias: Sequence[Answer]) -> list[str]:
    """A Content-Length without a body (HEAD, 304) is a statement about the resource, not framing."""
    said = {one.header(b"content-length") for one in directs}
    heard = {one.header(b"content-length") for one in vias} - {None}
    if any(one.framing != "none" for one in [*directs, *vias]) or len(said) > 1 or None in said or heard <= said:
        return []
    return [f"content-length: {said} became {heard}"]


def _allowed(direct: Answer, via: Answer) -> list[str]:
    notes = []
    if direct.framing != via.framing and via.framing:
        notes.append(f"framing: {direct.framing} became {via.framing} (allowed)")
    if direct.version != via.version and via.version:
        notes.append(f"version: HTTP/{direct.version} became HTTP/{via.version} (allowed)")
    cased = {name for name, _ in direct.headers}
    folded = {name.lower() for name in cased}
    changed = sorted({name for name, _ in via.headers if name not in cased and name.lower() in folded})
    if changed:
        notes.append(f"letter case: {b', '.join(changed).decode('latin-1')} (allowed)")
    return notes


def _bytes(directs: Sequence[Answer], vias: Sequence[Answer]) -> Aspect:
    if not all(one.complete for one in directs):
        broken = next(one.end for one in directs if not one.complete)
        return Aspect("bytes", Verdict.VARIES, (f"a direct answer was not complete: {broken}",))
    for one in vias:
        if not one.complete:
            return Aspect(
                "bytes", Verdict.DIFFERS, (f"not complete via: {one.end}; {len(one.body)} bytes had arrived",)
            )
    if len({one.status for one in directs}) > 1:
        return Aspect("bytes", Verdict.VARIES, ("the direct statuses differ",))
    events = (directs[0].header(b"content-type") or b"").startswith(b"text/event-stream")
    finding = compare_bodies([_plain(one) for one in directs], [_plain(one) for one in vias], events=events)
    verdict = {True: Verdict.OK, False: Verdict.DIFFERS, None: Verdict.VARIES}[finding.agrees]
    return Aspect("bytes", verdict, (finding.note,))


def _plain(answer: Answer) -> bytes:
    return decoded(answer.body, answer.header(b"content-encoding") or b"")


@attrs.frozen
class Flow:
    """How an answer arrived: portions, seconds to the first byte, seconds from first to last portion, median gap."""

    portions: float
    first_byte: float
    spread: float
    gap: float

    def __str__(self) -> str:
        text = f"{self.portions:g} arrival{'s' * (self.portions != 1)}, first byte {self.first_byte * 1000:.1f} ms"
        return text + (f", median gap {self.gap * 1000:.1f} ms" if self.portions > 1 else "")


def flow(answers: Sequence[Answer]) -> Flow:
    """The medians over ``answers``."""
    single = [_flow(one) for one in answers]
    return Flow(*(statistics.median(values) for values in zip(*(attrs.astuple(one) for one in single), strict=True)))


def _flow(answer: Answer) -> Flow:
    times = [arrival.at for arrival in answer.arrivals]
    gaps = [later - sooner for sooner, later in itertools.pairwise(times)]
    spread = times[-1] - times[0] if times else 0.0
    return Flow(len(times), answer.first_byte, spread, statistics.median(gaps) if gaps else 0.0)


def _pacing(directs: Sequence[Answer], vias: Sequence[Answer]) -> Aspect:
    direct, via = flow(directs), flow(vias)
    notes = (f"direct: {direct}", f"via: {via}")
    if {one.status for one in directs} != {one.status for one in vias}:
        return Aspect("pacing", Verdict.VARIES, ("the statuses differ", *notes))
    least = min(_flow(one).portions for one in directs)
    spread = min(_flow(one).spread for one in directs)
    faults = []
    if least >= STREAM_ARRIVALS and spread >= STREAM_SECONDS:
        if via.portions < KEPT_SHARE * least:
            faults.append("held back: portions that arrived one by one directly came together")
        elif via.spread < KEPT_SHARE * spread:
            faults.append("held back: the answer came in a burst")
    slowest = max(one.first_byte for one in directs)
    allowed = slowest * LATE_FACTOR + LATE_SECONDS + 2 * max(one.connected for one in directs)
    if via.first_byte > allowed:
        faults.append(f"the first byte is late: more than {allowed * 1000:.0f} ms")
    return Aspect("pacing", Verdict.DIFFERS if faults else Verdict.OK, (*faults, *notes))

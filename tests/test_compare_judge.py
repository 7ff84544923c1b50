"""The verdicts of ``kgb compare``: what a gateway may change, what it may not, and what nobody can tell."""

import gzip
import itertools
import json
from collections.abc import Iterable

import attrs
import pytest

from kgb_gateway.compare.bodies import compare_bodies, decoded
from kgb_gateway.compare.judge import Aspect, Verdict, judge
from kgb_gateway.compare.parse import COMPLETE, Arrival, RawHeaders
from kgb_gateway.compare.wire import Answer

JSON = (b"Content-Type", b"application/json")
SSE = (b"Content-Type", b"text/event-stream")


def answer(
    body: bytes | Iterable[bytes] = b"{}",
    headers: RawHeaders = (JSON,),
    *,
    status: int = 200,
    gap: float = 0.1,
    start: float = 0.05,
    **more: object,
) -> Answer:
    """An answer whose portions arrive ``gap`` seconds apart."""
    parts = [body] if isinstance(body, bytes) else list(body)
    arrivals = tuple(Arrival(start + number * gap, part) for number, part in enumerate(parts))
    whole = Answer(
        status,
        "OK",
        "1.1",
        headers,
        b"".join(parts),
        arrivals,
        0.01,
        start,
        start + gap * len(parts),
        "length",
        0,
        COMPLETE,
    )
    return attrs.evolve(whole, **more)  # type: ignore[arg-type]


def aspect(name: str, directs: list[Answer], vias: list[Answer]) -> Aspect:
    return next(one for one in judge(directs, vias) if one.name == name)


def verdict(name: str, directs: list[Answer], vias: list[Answer]) -> Verdict:
    return aspect(name, directs, vias).verdict


def test_equal_answers_agree() -> None:
    aspects = judge([answer()] * 2, [answer()])
    assert [one.name for one in aspects] == ["status", "headers", "bytes", "pacing"]
    assert {one.verdict for one in aspects} == {Verdict.OK}


class TestStatus:
    def test_changed(self) -> None:
        found = aspect("status", [answer(status=429)] * 2, [answer(status=502)])
        assert found.verdict is Verdict.DIFFERS
        assert found.notes == ("429 OK became 502 OK",)

    def test_no_answer(self) -> None:
        found = aspect("status", [answer()] * 2, [answer(status=0, reason="", end="cut before the head")])
        assert found.verdict is Verdict.DIFFERS
        assert "no answer (cut before the head)" in found.notes[0]

    def test_direct_answers_vary(self) -> None:
        assert verdict("status", [answer(), answer(status=529)], [answer()]) is Verdict.VARIES

    def test_reason_alone_is_noted(self) -> None:
        found = aspect("status", [answer()] * 2, [answer(reason="Fine")])
        assert found.verdict is Verdict.OK
        assert "Fine" in found.notes[1]


class TestHeaders:
    def compare(self, direct: RawHeaders, via: RawHeaders, second: RawHeaders | None = None) -> Aspect:
        later = direct if second is None else second
        return aspect("headers", [answer(headers=direct), answer(headers=later)], [answer(headers=via)])

    def test_missing(self) -> None:
        found = self.compare((JSON, (b"retry-after", b"3")), (JSON,))
        assert found.verdict is Verdict.DIFFERS
        assert found.notes[0] == "retry-after: missing via"

    def test_added(self) -> None:
        found = self.compare((JSON,), (JSON, (b"Server", b"proxy")))
        assert found.verdict is Verdict.DIFFERS
        assert found.notes[0] == "server: added: 'proxy'"

    def test_changed(self) -> None:
        found = self.compare(((b"x-limit", b"4"),), ((b"x-limit", b"5"),))
        assert found.verdict is Verdict.DIFFERS
        assert found.notes[0] == "x-limit: '4' became '5'"

    def test_varies_by_evidence(self) -> None:
        found = self.compare(((b"x-left", b"4"),), ((b"x-left", b"3"),), ((b"x-left", b"2"),))
        assert found.verdict is Verdict.OK
        assert "vary: x-left" in found.notes

    def test_what_varies_must_still_be_there(self) -> None:
        assert self.compare(((b"x-left", b"4"),), (), ((b"x-left", b"2"),)).verdict is Verdict.DIFFERS

    @pytest.mark.parametrize(
        "name", [b"Date", b"x-request-id", b"request-id", b"cf-ray", b"Set-Cookie", b"x-ratelimit-reset"]
    )
    def test_known_to_vary_but_must_be_there(self, name: bytes) -> None:
        assert self.compare(((name, b"a"),), ((name, b"b"),)).verdict is Verdict.OK
        assert self.compare(((name, b"a"),), ()).verdict is Verdict.DIFFERS

    def test_present_by_chance(self) -> None:
        assert self.compare((JSON, (b"x-cache", b"hit")), (JSON,), (JSON,)).verdict is Verdict.OK

    def test_duplicates_are_counted(self) -> None:
        twice = ((b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"))
        assert self.compare(twice, twice).verdict is Verdict.OK
        assert self.compare(twice, twice[:1]).verdict is Verdict.DIFFERS
        assert self.compare(((b"x", b"1"), (b"x", b"2")), ((b"x", b"2"), (b"x", b"1"))).verdict is Verdict.DIFFERS

    def test_order(self) -> None:
        found = self.compare(((b"A", b"1"), (b"B", b"2")), ((b"B", b"2"), (b"A", b"1")))
        assert found.verdict is Verdict.DIFFERS
        assert found.notes[0] == "order differs, first at a"

    def test_order_that_varies(self) -> None:
        one, other = ((b"A", b"1"), (b"B", b"2")), ((b"B", b"2"), (b"A", b"1"))
        assert self.compare(one, other, other).verdict is Verdict.OK

    def test_what_a_gateway_may_do(self) -> None:
        direct = (
            (b"content-type", b"x/y"),
            (b"Connection", b"keep-alive, X-Hop"),
            (b"X-Hop", b"1"),
            (b"Keep-Alive", b"5"),
        )
        via = (
            (b"Content-Type", b"x/y"),
            (b"x-kgb-request-id", b"1"),
            (b"Transfer-Encoding", b"chunked"),
            (b"Via", b"1.1 kgb"),
        )
        found = self.compare(direct, via)
        assert found.verdict is Verdict.OK
        assert "added by the gateway: x-kgb-request-id, via" in found.notes
        assert "letter case: Content-Type (allowed)" in found.notes

    def test_framing_and_version_are_noted(self) -> None:
        found = aspect("headers", [answer()] * 2, [answer(framing="chunked", version="1.0")])
        assert found.verdict is Verdict.OK
        assert "framing: length became chunked (allowed)" in found.notes
        assert "version: HTTP/1.1 became HTTP/1.0 (allowed)" in found.notes

    def test_length_of_a_head_answer(self) -> None:
        def said(*length: bytes) -> Answer:
            return answer(headers=tuple((b"Content-Length", one) for one in length), framing="none")

        assert verdict("headers", [said(b"5")] * 2, [said(b"5")]) is Verdict.OK
        assert verdict("headers", [said(b"5")] * 2, [said()]) is Verdict.OK
        assert verdict("headers", [said(b"5")] * 2, [said(b"0")]) is Verdict.DIFFERS

    def test_credentials_stay_hidden(self) -> None:
        found = self.compare((), ((b"Set-Cookie", b"session=secret"),))
        assert found.verdict is Verdict.DIFFERS
        assert "secret" not in str(found)


class TestBytes:
    def test_identical(self) -> None:
        assert compare_bodies([b"abc"] * 2, [b"abc"], events=False).note == "3 bytes, identical"

    def test_one_byte(self) -> None:
        finding = compare_bodies([b'{"a": "x"}'] * 2, [b'{"a": "y"}'], events=False)
        assert finding.agrees is False
        assert "from byte 7" in finding.note

    @pytest.mark.parametrize("via", [b"", b"ab", b"abcd"])
    def test_length(self, via: bytes) -> None:
        assert compare_bodies([b"abc"] * 2, [via], events=False).agrees is False

    def document(self, identity: str, **more: object) -> bytes:
        return json.dumps({"id": identity, "n": 1.5, "ok": True, **more, "tail": [1, None, 'é\\"']}).encode()

    def test_ids_vary(self) -> None:
        finding = compare_bodies([self.document("a"), self.document("bb")], [self.document('c"c')], events=False)
        assert finding.agrees is True
        assert finding.note.endswith("id")

    def test_stable_value_changed(self) -> None:
        finding = compare_bodies(
            [self.document("a", model="m"), self.document("b", model="m")],
            [self.document("c", model="n")],
            events=False,
        )
        assert finding.agrees is False
        assert finding.note == "after model: b'\"m\"' became b'\"n\"'"

    def test_reserialised(self) -> None:
        """The same JSON value, without blanks: a parsed comparison would not see it."""
        via = json.dumps(json.loads(self.document("c")), separators=(",", ":"), ensure_ascii=False).encode()
        assert compare_bodies([self.document("a"), self.document("b")], [via], events=False).agrees is False

    def test_keys_swapped(self) -> None:
        via = b'{"n": 1.5, "id": "c"}'
        assert compare_bodies([b'{"id": "a", "n": 1.5}', b'{"id": "b", "n": 1.5}'], [via], events=False).agrees is False

    def test_field_dropped(self) -> None:
        finding = compare_bodies([b'{"id":"a","x":1}', b'{"id":"b","x":1}'], [b'{"id":"c"}'], events=False)
        assert finding.agrees is False
        assert "4 values direct, 2 via" in finding.note

    def stream(self, identity: str, words: Iterable[str], stop: str = '{"type":"stop"}') -> bytes:
        deltas = "".join(f'data: {{"type":"delta","text":"{word}"}}\n\n' for word in words)
        return (
            f'event: start\ndata: {{"id":"{identity}"}}\n\nevent: ping\ndata: {{}}\n\n{deltas}data: {stop}\n\n'.encode()
        )

    def test_model_says_more_or_less(self) -> None:
        directs = [self.stream("a", "xyz"), self.stream("b", "xy")]
        finding = compare_bodies(directs, [self.stream("c", "uvwxyz")], events=True)
        assert finding.agrees is True
        assert "3 kinds of parts" in finding.note

    @pytest.mark.parametrize(
        "damage",
        [
            lambda body: body.replace(b'data: {"type":"stop"}\n\n', b""),
            lambda body: body.replace(b'{"type":"stop"}', b'{"type": "stop"}'),
            lambda body: body.replace(b"event: start\n", b""),
            lambda body: body.replace(b"\n\n", b"\n"),
        ],
    )
    def test_damaged_stream_of_varying_length(self, damage: object) -> None:
        assert callable(damage)
        directs = [self.stream("a", "xyz"), self.stream("b", "xy")]
        assert compare_bodies(directs, [damage(self.stream("c", "uvwxyz"))], events=True).agrees is False

    def test_direct_streams_of_varying_kinds(self) -> None:
        directs = [self.stream("a", "xyz"), self.stream("b", "xy", '{"type":"stop","why":"tool"}')]
        via = self.stream("c", "u")
        assert compare_bodies(directs, [via], events=True).agrees is None
        assert compare_bodies(directs, [via.replace(b"event: start", b"event: begin")], events=True).agrees is False

    def test_compressed(self) -> None:
        packed = gzip.compress(b"hello")
        assert decoded(packed, b"gzip") == b"hello"
        assert decoded(packed, b"br") == packed
        assert decoded(b"no gzip", b"gzip") == b"no gzip"
        zipped = (JSON, (b"Content-Encoding", b"gzip"))
        directs = [answer(gzip.compress(self.document(one)), zipped) for one in ("a", "b")]
        assert verdict("bytes", directs, [answer(gzip.compress(self.document("c")), zipped)]) is Verdict.OK
        assert verdict("bytes", directs, [answer(gzip.compress(b"{}"), zipped)]) is Verdict.DIFFERS

    def test_incomplete(self) -> None:
        broken = answer(b"{", end="cut in the body: connection closed")
        found = aspect("bytes", [answer()] * 2, [broken])
        assert found.verdict is Verdict.DIFFERS
        assert "cut in the body" in found.notes[0]
        assert verdict("bytes", [answer(), broken], [answer()]) is Verdict.VARIES


class TestPacing:
    PARTS = (b"a", b"b", b"c", b"d", b"e", b"f")

    def test_as_it_came(self) -> None:
        found = aspect("pacing", [answer(self.PARTS)] * 2, [answer(self.PARTS)])
        assert found.verdict is Verdict.OK
        assert found.notes[1] == "via: 6 arrivals, first byte 50.0 ms, median gap 100.0 ms"

    def test_held_to_the_end(self) -> None:
        found = aspect("pacing", [answer(self.PARTS)] * 2, [answer(b"abcdef", start=0.06)])
        assert found.verdict is Verdict.DIFFERS
        assert "held back" in found.notes[0]

    def test_held_by_a_timer(self) -> None:
        assert verdict("pacing", [answer(self.PARTS)] * 2, [answer((b"abc", b"def"), gap=0.3)]) is Verdict.DIFFERS

    def test_burst(self) -> None:
        found = aspect("pacing", [answer(self.PARTS)] * 2, [answer(self.PARTS, gap=0.001)])
        assert found.verdict is Verdict.DIFFERS
        assert "burst" in found.notes[0]

    def test_late(self) -> None:
        found = aspect("pacing", [answer()] * 2, [answer(start=0.5)])
        assert found.verdict is Verdict.DIFFERS
        assert "late" in found.notes[0]

    def test_medians_forgive_one_slow_answer(self) -> None:
        vias = [answer(self.PARTS), answer((b"abcdef",), start=0.5), answer(self.PARTS)]
        assert verdict("pacing", [answer(self.PARTS)] * 4, vias) is Verdict.OK

    def test_short_answers_have_no_pace(self) -> None:
        """Three portions within a millisecond are one answer that the network happened to cut."""
        assert verdict("pacing", [answer((b"a", b"b", b"c"), gap=0.0005)] * 2, [answer(b"abc")]) is Verdict.OK

    def test_other_statuses_say_nothing(self) -> None:
        assert verdict("pacing", [answer(self.PARTS)] * 2, [answer(status=502)]) is Verdict.VARIES


def test_every_verdict_is_heard() -> None:
    """A via answer that is wrong only once among several is still wrong."""
    good, bad = answer(b'{"id":"a"}'), answer(b'{"id":"a"}', (JSON, (b"x-more", b"1")))
    for vias in itertools.permutations([good, good, bad]):
        assert verdict("headers", [good] * 4, list(vias)) is Verdict.DIFFERS

"""Header lists: what ends at this hop, what hides from people, and heads that nothing can break out of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiedler_proxy import headers as headers_module
from fiedler_proxy.headers import (
    CREDENTIALS,
    HOP_BY_HOP,
    KEEP,
    NEVER_NOMINATED,
    REDACTED,
    SHAPES_CAP,
    RawHeaders,
    connection_options,
    end_to_end,
    is_valid_value,
    kind_of,
    nominated,
    redacted,
    serialize,
    shape_of,
)

NAMES = st.one_of(
    st.sampled_from(sorted(HOP_BY_HOP | NEVER_NOMINATED | {b"X-A", b"x-a", b"Set-Cookie", b"anthropic-beta"})),
    st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=12).map(str.encode),
)
VALUES = st.binary(max_size=40).map(lambda value: value.translate(None, b"\r\n\0"))
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=12).map(tuple)


class TestNominated:
    def test_names_are_split_trimmed_and_lowered(self) -> None:
        headers = ((b"Connection", b"close, X-One ,\tx-two"), (b"connection", b"X-THREE"))
        assert nominated(headers) == {b"close", b"x-one", b"x-two", b"x-three"}

    def test_no_connection_header_nominates_nothing(self) -> None:
        assert nominated(((b"Host", b"x"), (b"X-Connection", b"x-one"))) == frozenset()

    @pytest.mark.parametrize("name", sorted(NEVER_NOMINATED))
    def test_framing_host_credentials_and_meaning_cannot_be_taken_away(self, name: bytes) -> None:
        assert nominated(((b"Connection", name.upper()),)) == frozenset()

    def test_credentials_that_reach_providers_are_protected(self) -> None:
        """A caller behind a proxy that nominates its key must not lose it here."""
        assert {b"authorization", b"x-api-key", b"x-goog-api-key", b"cookie", b"x-kgb-key"} <= NEVER_NOMINATED


class TestConnectionOptions:
    def test_every_option_counts(self) -> None:
        headers = ((b"Connection", b"Upgrade, Host"), (b"CONNECTION", b"keep-alive"))
        assert connection_options(headers) == {b"upgrade", b"host", b"keep-alive"}


class TestEndToEnd:
    def test_order_case_duplicates_and_odd_bytes_stay(self) -> None:
        headers: RawHeaders = (
            (b"X-B", b"caf\xe9"),
            (b"Set-Cookie", b"a=1"),
            (b"x-b", b""),
            (b"Set-Cookie", b"b=2"),
            (b"X-A", b"\x01 \xff"),
        )
        assert end_to_end(headers) == headers

    @pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
    def test_hop_by_hop_headers_end_here(self, name: bytes) -> None:
        assert end_to_end(((name.title(), b"x"), (b"Kept", b"y"))) == ((b"Kept", b"y"),)

    def test_nominated_and_named_headers_go(self) -> None:
        headers = ((b"Connection", b"x-secret"), (b"X-Secret", b"1"), (b"X-Kgb", b"2"), (b"X-Kept", b"3"))
        assert end_to_end(headers, frozenset((b"x-kgb",))) == ((b"X-Kept", b"3"),)

    @given(HEADERS)
    def test_what_stays_is_a_subsequence(self, headers: RawHeaders) -> None:
        kept = end_to_end(headers)
        rest = iter(headers)
        assert all(pair in rest for pair in kept)
        assert not {name.lower() for name, _ in kept} & HOP_BY_HOP
        gone = [pair for pair in headers if pair not in kept]
        assert {name.lower() for name, _ in gone} <= HOP_BY_HOP | nominated(headers)


class TestShape:
    @given(HEADERS)
    def test_it_says_of_names_what_a_look_at_each_would(self, headers: RawHeaders) -> None:
        shape = shape_of(headers)
        assert shape.names == tuple(name for name, _ in headers)
        assert list(shape.lines(headers)) == [name + b": " + value for name, value in headers]
        assert shape.special == tuple(
            (place, kind_of(name)) for place, (name, _) in reversed(list(enumerate(headers))) if kind_of(name) != KEEP
        )
        wanted = frozenset(name.lower() for name, _ in headers[::2])
        assert shape.places(wanted) == tuple(i for i, (name, _) in enumerate(headers) if name.lower() in wanted)

    @given(HEADERS.filter(bool), st.data())
    def test_without_one_it_is_the_shape_of_the_others(self, headers: RawHeaders, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(headers) - 1))
        rest = headers[:place] + headers[place + 1 :]
        assert shape_of(headers).without(place).names == shape_of(rest).names

    def test_spelling_is_part_of_it(self) -> None:
        assert shape_of(((b"Host", b"a"),)) is shape_of(((b"Host", b"b"),))
        assert shape_of(((b"Host", b"a"),)) is not shape_of(((b"host", b"a"),))

    def test_its_memory_is_bounded(self) -> None:
        for number in range(3 * SHAPES_CAP):
            shape_of(((b"X-%d" % number, b""),))
        assert len(headers_module._SHAPES) <= SHAPES_CAP
        many = tuple((b"X-%d" % number, b"") for number in range(200))
        assert shape_of(many) is not shape_of(many)
        long = ((b"X" * 5000, b""),)
        assert shape_of(long) is not shape_of(long)
        shape = shape_of(((b"Host", b""),))
        for number in range(200):
            shape.places(frozenset((b"%d" % number,)))
        assert len(shape._places) <= 32


class TestSerialize:
    def test_a_head_is_exactly_its_parts(self) -> None:
        head = serialize(b"GET /%2F HTTP/1.1", ((b"hOsT", b"x"), (b"A", b""), (b"B", b" caf\xe9 ")))
        assert head == b"GET /%2F HTTP/1.1\r\nhOsT: x\r\nA: \r\nB:  caf\xe9 \r\n\r\n"

    @pytest.mark.parametrize("bad", [b"a\r\nX: 1", b"a\nX: 1", b"a\r", b"\n", b"a\0b"])
    def test_nothing_breaks_out_of_its_line(self, bad: bytes) -> None:
        for head in (((b"A", bad),), ((b"A" + bad, b"v"),)):
            with pytest.raises(ValueError, match="CR, LF or NUL"):
                serialize(b"GET / HTTP/1.1", head)
        with pytest.raises(ValueError, match="CR, LF or NUL"):
            serialize(b"HTTP/1.1 200 " + bad, ())

    @given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=6))
    def test_whatever_is_serialised_has_as_many_lines_as_headers(self, pairs: list[tuple[bytes, bytes]]) -> None:
        headers = tuple(pairs)
        hostile = any(bad in name + value for name, value in headers for bad in (b"\r", b"\n", b"\0"))
        if hostile:
            with pytest.raises(ValueError, match="CR, LF or NUL"):
                serialize(b"GET / HTTP/1.1", headers)
        else:
            lines = serialize(b"GET / HTTP/1.1", headers).split(b"\r\n")
            assert lines == [b"GET / HTTP/1.1", *(name + b": " + value for name, value in headers), b"", b""]


class TestRedacted:
    @pytest.mark.parametrize("name", sorted(CREDENTIALS))
    def test_credentials_are_hidden_whatever_their_case(self, name: bytes) -> None:
        for spelled in (name, name.upper(), name.title()):
            assert redacted(((spelled, b"s3cret"),)) == [(spelled.decode(), REDACTED)]

    def test_the_rest_is_text(self) -> None:
        headers = ((b"X-A", b"caf\xe9"), (b"X-Own", b"s3cret"))
        assert redacted(headers, frozenset((b"x-own",))) == [("X-A", "caf\xe9"), ("X-Own", "[REDACTED]")]


@pytest.mark.parametrize(
    ("value", "valid"), [(b"", True), (b"a b\t\xff", True), (b"a\rb", False), (b"a\n", False), (b"\0", False)]
)
def test_which_values_may_stand_in_a_header(value: bytes, valid: bool) -> None:
    assert is_valid_value(value) is valid

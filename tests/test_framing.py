"""Body framing: where a body ends is never guessed, and a broken one is never whole."""

from collections.abc import Sequence

import pytest

from fiedler_proxy.framing import (
    CHUNK_LINE_CAP,
    LAST_CHUNK,
    ChunkedDecoder,
    Decoder,
    FramingError,
    LengthDecoder,
    NoBody,
    UntilClose,
    chunk,
)


def fed(decoder: Decoder, *pieces: bytes) -> bytes:
    return b"".join(decoder.feed(piece) for piece in pieces)


def single_bytes(data: bytes) -> Sequence[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


class TestChunk:
    @pytest.mark.parametrize(
        ("data", "raw"),
        [(b"a", b"1\r\na\r\n"), (b"x" * 255, b"ff\r\n" + b"x" * 255 + b"\r\n"), (b"\r\n", b"2\r\n\r\n\r\n")],
    )
    def test_one_chunk(self, data: bytes, raw: bytes) -> None:
        assert chunk(data) == raw

    def test_what_is_encoded_is_decoded(self) -> None:
        decoder = ChunkedDecoder()
        assert fed(decoder, chunk(b"one") + chunk(b"two") + LAST_CHUNK) == b"onetwo"
        assert decoder.done


class TestNoBody:
    def test_it_is_over_before_it_begins(self) -> None:
        decoder = NoBody()
        assert decoder.done
        assert decoder.eof()
        assert fed(decoder, b"un", b"asked") == b""
        assert decoder.rest == b"unasked"


class TestLengthDecoder:
    def test_exactly_its_length(self) -> None:
        decoder = LengthDecoder(5)
        assert fed(decoder, b"ab", b"", b"cd") == b"abcd"
        assert not decoder.done
        assert fed(decoder, b"e") == b"e"
        assert decoder.done
        assert decoder.rest == b""

    def test_what_comes_behind_the_end_is_no_payload(self) -> None:
        decoder = LengthDecoder(2)
        assert fed(decoder, b"abcd", b"ef") == b"ab"
        assert decoder.done
        assert decoder.rest == b"cdef"

    def test_a_length_of_nothing_is_over(self) -> None:
        assert LengthDecoder(0).done

    def test_an_early_end_is_visible(self) -> None:
        decoder = LengthDecoder(3)
        fed(decoder, b"ab")
        assert not decoder.eof()
        assert not decoder.done


class TestUntilClose:
    def test_only_the_connection_ends_it(self) -> None:
        decoder = UntilClose()
        assert fed(decoder, b"any", b"thing") == b"anything"
        assert not decoder.done
        assert decoder.eof()
        assert decoder.done


GOOD: dict[str, tuple[bytes, bytes, bytes]] = {
    # name: wire, payload, rest
    "plain": (b"3\r\nabc\r\n0\r\n\r\n", b"abc", b""),
    "empty": (b"0\r\n\r\n", b"", b""),
    "upper and lower case": (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2, b""),
    "leading zeros": (b"0003\r\nabc\r\n000\r\n\r\n", b"abc", b""),
    "extension": (b'3;name=value;q="a b"\r\nabc\r\n0;last\r\n\r\n', b"abc", b""),
    "space before extension": (b"3 \t;x\r\nabc\r\n0\r\n\r\n", b"abc", b""),
    "trailers": (b"1\r\na\r\n0\r\nX-Check: 1\r\nY: 2\r\n\r\n", b"a", b""),
    "payload looks like framing": (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n", b""),
    "rest": (b"1\r\na\r\n0\r\n\r\nHTTP/1.1 200", b"a", b"HTTP/1.1 200"),
}

BAD = {
    "no size": b"\r\nabc",
    "not hexadecimal": b"3g\r\nabc",
    "a sign": b"+3\r\nabc\r\n",
    "a minus": b"-1\r\nabc\r\n",
    "0x": b"0x3\r\nabc\r\n",
    "underscore": b"1_0\r\n",
    "leading space": b" 3\r\nabc\r\n",
    "bare LF": b"3\nabc\r\n",
    "bare CR": b"3\rabc",
    "bare LF in extension": b"3;a\nb\r\nabc\r\n",
    "bare CR in extension": b"3;a\rb\r\nabc\r\n",
    "two numbers": b"3 3\r\nabc\r\n",
    "NUL": b"3\0\r\nabc\r\n",
    "overflow": b"FFFFFFFFFFFFFFFF1\r\n",
    "sixteen digits": b"0000000000000003\r\nabc\r\n",
    "too much data": b"3\r\nabcd\r\n",
    "too little data": b"4\r\nabc\r\n0\r\n\r\n",
    "data ends in LF": b"3\r\nabc\n0\r\n\r\n",
    "data ends in CR": b"3\r\nabc\r0\r\n\r\n",
    "trailer with bare LF": b"0\r\nX: 1\n\r\n",
    "trailer with bare CR": b"0\r\nX: 1\rY: 2\r\n\r\n",
    "trailer with two CR": b"0\r\nX: 1\r\r\n\r\n",
    "trailer with NUL": b"0\r\nX: \0\r\n\r\n",
    "endless size line": b"3;" + b"x" * (CHUNK_LINE_CAP + 1),
    "endless trailer line": b"0\r\n" + b"x" * (16 * CHUNK_LINE_CAP + 1),
    "endless trailers": b"0\r\n" + b"X: 1\r\n" * (16 * CHUNK_LINE_CAP // 6 + 1),
}


class TestChunkedDecoder:
    @pytest.mark.parametrize("name", GOOD)
    def test_in_one_piece(self, name: str) -> None:
        wire, payload, rest = GOOD[name]
        decoder = ChunkedDecoder()
        assert decoder.feed(wire) == payload
        assert decoder.done
        assert decoder.rest == rest

    @pytest.mark.parametrize("name", GOOD)
    def test_byte_by_byte(self, name: str) -> None:
        wire, payload, rest = GOOD[name]
        decoder = ChunkedDecoder()
        assert fed(decoder, *single_bytes(wire[: len(wire) - len(rest)])) == payload
        assert decoder.done

    @pytest.mark.parametrize("name", GOOD)
    def test_no_early_end_looks_whole(self, name: str) -> None:
        wire, payload, rest = GOOD[name]
        whole = wire[: len(wire) - len(rest)]
        for size in range(len(whole)):
            decoder = ChunkedDecoder()
            assert payload.startswith(decoder.feed(whole[:size]))
            assert not decoder.done
            assert not decoder.eof()

    @pytest.mark.parametrize("name", BAD)
    def test_broken_framing_is_an_error(self, name: str) -> None:
        with pytest.raises(FramingError):
            ChunkedDecoder().feed(BAD[name])

    @pytest.mark.parametrize("name", BAD)
    def test_broken_framing_is_an_error_byte_by_byte(self, name: str) -> None:
        decoder = ChunkedDecoder()
        with pytest.raises(FramingError):
            fed(decoder, *single_bytes(BAD[name]))
        assert not decoder.done

    def test_every_flush_goes_on_at_once(self) -> None:
        """A chunk is not held back until it is whole."""
        decoder = ChunkedDecoder()
        assert [decoder.feed(piece) for piece in (b"6\r\nab", b"cd", b"ef", b"\r\n")] == [b"ab", b"cd", b"ef", b""]

    def test_what_arrived_before_a_fault_can_be_had(self) -> None:
        decoder = ChunkedDecoder()
        assert decoder.feed(b"3\r\nabc\r\n") == b"abc"
        with pytest.raises(FramingError):
            decoder.feed(b"zz")

    def test_a_size_line_within_the_cap_is_waited_for(self) -> None:
        decoder = ChunkedDecoder()
        assert decoder.feed(b"1;" + b"x" * 1000) == b""
        assert decoder.feed(b"\r\na\r\n0\r\n\r\n") == b"a"
        assert decoder.done

    def test_a_large_chunk_is_not_copied_together(self) -> None:
        """Ten million bytes in one chunk arrive as the pieces they came in."""
        decoder = ChunkedDecoder()
        piece = b"x" * 100_000
        assert decoder.feed(b"989680\r\n") == b""
        assert all(decoder.feed(piece) is piece for _ in range(100))
        decoder.feed(b"\r\n0\r\n\r\n")
        assert decoder.done

    def test_payload_in_the_same_read_as_a_fault_is_not_lost(self) -> None:
        decoder = ChunkedDecoder()
        with pytest.raises(FramingError) as caught:
            decoder.feed(b"3\r\nabc\r\n2\r\nde\r\nzz\r\n")
        assert caught.value.payload == b"abcde"

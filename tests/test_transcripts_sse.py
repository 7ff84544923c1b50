"""Server-sent events out of bytes that were cut anywhere."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.dewey.transcripts.sse import Event, SseDecoder


def events(*pieces: bytes) -> list[Event]:
    decoder = SseDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)] + decoder.finish()


@pytest.mark.parametrize("newline", [b"\n", b"\r", b"\r\n"])
def test_lines_end_in_three_ways(newline: bytes) -> None:
    wire = newline.join([b"event: a", b"data: 1", b"", b"data: 2", b"", b""])
    assert events(wire) == [Event("1", "a"), Event("2")]


def test_line_ends_may_be_mixed() -> None:
    assert events(b"data: 1\r\ndata: 2\rdata: 3\n\r\ndata: 4\r\r") == [Event("1\n2\n3"), Event("4")]


def test_fields() -> None:
    wire = b"\xef\xbb\xbfid: 7\n: comment\ndata:no space\ndata:  two\ndata\nretry: 5\nunknown: x\n\n"
    assert events(wire) == [Event("no space\n two\n", id="7")]


def test_a_bom_counts_at_the_start_only() -> None:
    assert events(b"\xef\xbb\xbfdata: \xef\xbb\xbf\n\n") == [Event("\ufeff")]


def test_an_event_without_data_is_none_and_its_name_is_forgotten() -> None:
    assert events(b"event: a\n\ndata: 1\n\n") == [Event("1")]


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\r", b"\r\n\r\n"])
def test_the_last_event_may_be_open(end: bytes) -> None:
    assert events(b"data: 1" + end) == [Event("1")]


def test_finish_gives_an_event_once() -> None:
    decoder = SseDecoder()
    decoder.feed(b"data: 1")
    assert decoder.finish() == [Event("1")]
    assert decoder.finish() == []


def test_bytes_that_are_no_text_become_replacements() -> None:
    assert events(b"data: a\xffb\n\n") == [Event("a\ufffdb")]


def test_every_cut_in_two_and_in_three() -> None:
    wire = "event: é\r\ndata: €\r\ndata: 😀\r\n\r\n\r\ndata: x\r\r\n".encode()
    whole = events(wire)
    assert whole == [Event("€\n😀", "é"), Event("x")]
    for one, two in itertools.combinations(range(len(wire) + 1), 2):
        assert events(wire[:one], wire[one:two], wire[two:]) == whole


@given(st.binary(max_size=60), st.integers(1, 5))
def test_any_bytes_in_any_pieces(data: bytes, size: int) -> None:
    wire = data.replace(b"\x00", b"\r").replace(b"\x01", b"\n").replace(b"\x02", b"data: ")
    assert events(*(wire[at : at + size] for at in range(0, len(wire), size))) == events(wire)


def test_a_line_of_ten_megabytes_in_small_pieces() -> None:
    """Joined once: with a join at every piece this would move half a terabyte."""
    piece = b"x" * 97
    count = 10_000_000 // len(piece)
    decoder = SseDecoder()
    decoder.feed(b"data: ")
    for _ in range(count):
        assert decoder.feed(piece) == []
    (event,) = decoder.feed(b"\n\n")
    assert len(event.data) == count * len(piece)

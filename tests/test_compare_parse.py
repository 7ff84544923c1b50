"""The raw client's parser: every framing, cut anywhere, and every fault named."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.compare.parse import COMPLETE, MAX_HEAD, Arrival, ResponseParser

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
WIRES = {
    "length": (b"HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    "chunked": (CHUNKED + b"3;x=y\r\nhel\r\n2 \r\nlo\r\n0\r\nTrailer: t\r\n\r\n", b"hello"),
    "none": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "upgrade": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", b""),
}
EARLY = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"


def parse(*parts: bytes, method: str = "GET") -> ResponseParser:
    parser = ResponseParser(method)
    for at, part in enumerate(parts):
        parser.feed(part, float(at))
    return parser


def body(parser: ResponseParser) -> bytes:
    return b"".join(arrival.data for arrival in parser.arrivals)


@pytest.mark.parametrize("framing", WIRES)
@given(data=st.data())
def test_cut_anywhere(framing: str, data: st.DataObject) -> None:
    wire, expected = WIRES[framing]
    wire = EARLY + wire
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=8)))
    edges = [0, *cuts, len(wire)]
    parser = ResponseParser("GET")
    for begin, stop in itertools.pairwise(edges):
        assert parser.end == ""
        parser.feed(wire[begin:stop], float(begin))
    assert (parser.end, parser.framing, body(parser)) == (COMPLETE, framing, expected)
    assert parser.first_byte == 0.0
    assert parser.surplus == 0


def test_head_as_it_stood() -> None:
    parser = parse(b"HTTP/1.0 299 Quite  odd\xe9\r\nSet-Cookie: a\r\nsEt-cookie:  b \xff\t\r\nEmpty:\r\n\r\nrest")
    assert (parser.version, parser.status, parser.reason) == ("1.0", 299, "Quite  oddé")
    assert parser.headers == ((b"Set-Cookie", b"a"), (b"sEt-cookie", b"b \xff"), (b"Empty", b""))
    assert parser.framing == "close"


def test_arrivals_are_reads_not_chunks() -> None:
    parser = parse(CHUNKED, b"1\r\na\r\n1\r\nb\r\n", b"1\r\n", b"c\r\n0\r\n\r\n")
    assert parser.arrivals == [Arrival(1.0, b"ab"), Arrival(3.0, b"c")]
    assert parser.chunks == 3


def test_arrivals_are_told_at_once() -> None:
    heard: list[Arrival] = []
    parser = ResponseParser("GET", heard.append)
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx", 0.5)
    assert heard == [Arrival(0.5, b"x")]


def test_head_has_no_body_whatever_its_length_says() -> None:
    parser = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", method="HEAD")
    assert (parser.end, parser.framing) == (COMPLETE, "none")


def test_bytes_after_the_end_are_counted() -> None:
    parser = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxyz", b"more")
    assert (body(parser), parser.end, parser.surplus) == (b"x", COMPLETE, 6)


@pytest.mark.parametrize(
    ("wire", "end"),
    [
        (b"HTTP/2 200\r\n\r\n", "malformed response head"),
        (b"HTTP/1.1 200 OK\r\nName : x\r\n\r\n", "malformed response head"),
        (b"HTTP/1.1 200 OK\r\nA: 1\r\n folded\r\n\r\n", "malformed response head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "malformed Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "malformed Content-Length"),
        (CHUNKED + b"zz\r\n", "malformed chunk size"),
        (CHUNKED + b"1\r\nabc\r\n", "malformed chunk end"),
        (b"x" * (MAX_HEAD + 1), f"the response head exceeds {MAX_HEAD} bytes"),
    ],
)
def test_malformed(wire: bytes, end: str) -> None:
    assert parse(wire).end == end


@pytest.mark.parametrize(
    ("wire", "why", "end"),
    [
        (b"", "", "cut before the response head was complete: connection closed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", "", "cut in the body: connection closed"),
        (CHUNKED + b"5\r\nhe", "ConnectionResetError", "cut in the body: ConnectionResetError"),
        (CHUNKED + b"2\r\nhe\r\n0\r\n", "", "cut in the body: connection closed"),
        (b"HTTP/1.1 200 OK\r\n\r\nhe", "", COMPLETE),
        (b"HTTP/1.1 200 OK\r\n\r\nhe", "ConnectionResetError", "cut in the body: ConnectionResetError"),
        (b"HTTP/1.1 204 OK\r\n\r\n", "ConnectionResetError", COMPLETE),
    ],
)
def test_closed(wire: bytes, why: str, end: str) -> None:
    parser = parse(wire)
    parser.closed(why)
    assert parser.end == end

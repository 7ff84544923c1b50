"""Chunked framing under any split and any damage: the same payload, or no end."""

from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fiedler_proxy.framing import ChunkedDecoder, FramingError, LengthDecoder

EXTENSIONS = st.sampled_from([b"", b"", b"", b";x", b' ; name="v;w"', b"\t;a=b;c"])
PAYLOADS = st.lists(st.binary(min_size=1, max_size=60), max_size=6)
TRAILERS = st.lists(st.sampled_from([b"X-Check: 1", b"Y:", b"0", b"Set-Cookie: a=b"]), max_size=3)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A chunked body as a liberal sender may write it, and its payload."""
    pieces = draw(PAYLOADS)
    wire = b""
    for piece in pieces:
        digits = b"%x" % len(piece)
        digits = b"0" * draw(st.integers(0, 3)) + (digits.upper() if draw(st.booleans()) else digits)
        wire += digits + draw(EXTENSIONS) + b"\r\n" + piece + b"\r\n"
    wire += b"0" * draw(st.integers(1, 3)) + draw(EXTENSIONS) + b"\r\n"
    wire += b"".join(line + b"\r\n" for line in draw(TRAILERS)) + b"\r\n"
    return wire, b"".join(pieces)


@st.composite
def splits(draw: st.DrawFn, wire: bytes) -> Sequence[bytes]:
    """``wire`` in pieces, empty ones among them."""
    cuts = sorted(draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    return [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]


def decode(pieces: Sequence[bytes]) -> tuple[bytes, bool, bytes, bool]:
    """Payload, whether the body ended, what came behind it, and whether the framing was broken."""
    decoder, payload = ChunkedDecoder(), b""
    for i, piece in enumerate(pieces):
        try:
            payload += decoder.feed(piece)
        except FramingError as error:
            return payload + error.payload, decoder.done, decoder.rest, True
        if decoder.done:
            return payload, True, decoder.rest + b"".join(pieces[i + 1 :]), False
    return payload, decoder.done, decoder.rest, False


@given(st.data(), streams(), st.binary(max_size=8))
def test_any_split_gives_the_same_payload_and_rest(
    data: st.DataObject, stream: tuple[bytes, bytes], rest: bytes
) -> None:
    wire, payload = stream
    assert decode(data.draw(splits(wire + rest))) == (payload, True, rest, False)


@given(st.data(), streams())
def test_a_truncated_stream_never_ends(data: st.DataObject, stream: tuple[bytes, bytes]) -> None:
    wire, payload = stream
    size = data.draw(st.integers(0, len(wire) - 1))
    got, done, _, broken = decode(data.draw(splits(wire[:size])))
    assert payload.startswith(got)
    assert not done
    assert not broken


@st.composite
def damaged(draw: st.DrawFn, wire: bytes) -> bytes:
    """``wire`` with one byte changed, taken away or added, or a stretch doubled."""
    at = draw(st.integers(0, len(wire) - 1))
    kind = draw(st.sampled_from(["change", "drop", "add", "double"]))
    byte = draw(
        st.one_of(
            st.sampled_from([b"\r", b"\n", b"0", b"1", b"f", b";", b" ", b"\0"]), st.binary(min_size=1, max_size=1)
        )
    )
    if kind == "change":
        return wire[:at] + byte + wire[at + 1 :]
    if kind == "drop":
        return wire[:at] + wire[at + 1 :]
    if kind == "add":
        return wire[:at] + byte + wire[at:]
    to = draw(st.integers(at, len(wire)))
    return wire[:to] + wire[at:]


@settings(max_examples=300)
@given(st.data(), streams())
def test_a_damaged_stream_is_read_as_rfc_9112_reads_it_or_not_to_its_end(
    data: st.DataObject, stream: tuple[bytes, bytes]
) -> None:
    """Damage may make another well-formed stream; then a strict reader of the whole text must agree with us."""
    wire = data.draw(damaged(stream[0]))
    payload, done, rest, broken = decode(data.draw(splits(wire)))
    expected = read_strictly(wire)
    if expected is None:
        assert not done
    else:
        assert not broken
        assert (payload, done, rest) == (expected[0], True, expected[1])


@settings(max_examples=300)
@given(st.data(), st.one_of(st.binary(max_size=80), st.text("0123af;\r\n x", max_size=60).map(str.encode)))
@example(None, b"0\r\n\r\n")
def test_any_bytes_are_read_the_same_in_any_split(data: st.DataObject | None, wire: bytes) -> None:
    pieces = [wire] if data is None else data.draw(splits(wire))
    payload, done, rest, broken = decode(pieces)
    whole_payload, whole_done, whole_rest, whole_broken = decode([wire])
    assert (payload, done, rest) == (whole_payload, whole_done, whole_rest)
    # A split may show a fault later, when the bytes that prove it come; never none, and never another.
    assert broken == whole_broken
    expected = read_strictly(wire)
    assert done is (expected is not None)
    assert expected is None or expected == (payload, rest)


def read_strictly(wire: bytes) -> tuple[bytes, bytes] | None:
    """Payload and rest of a whole chunked body by RFC 9112 section 7.1, read with split(); None where it is none."""
    payload = b""
    while True:
        line, eol, wire = wire.partition(b"\r\n")
        digits = line.partition(b";")[0].rstrip(b" \t")
        if not eol or b"\r" in line or b"\n" in line or not is_size(digits):
            return None
        size = int(digits, 16)
        if size == 0:
            return read_trailers(payload, wire)
        if wire[size : size + 2] != b"\r\n":
            return None
        payload, wire = payload + wire[:size], wire[size + 2 :]


def is_size(digits: bytes) -> bool:
    return 0 < len(digits) < 16 and not digits.strip(b"0123456789abcdefABCDEF")


def read_trailers(payload: bytes, wire: bytes) -> tuple[bytes, bytes] | None:
    while True:
        line, eol, wire = wire.partition(b"\r\n")
        if not eol or any(bad in line for bad in (b"\r", b"\n", b"\0")):
            return None
        if not line:
            return payload, wire


@given(st.data(), st.binary(max_size=60), st.integers(0, 60))
def test_a_length_takes_exactly_its_bytes_in_any_split(data: st.DataObject, wire: bytes, length: int) -> None:
    decoder = LengthDecoder(length)
    payload = b"".join(decoder.feed(piece) for piece in data.draw(splits(wire)))
    assert payload == wire[:length]
    assert decoder.rest == wire[length:]
    assert decoder.done is (len(wire) >= length)

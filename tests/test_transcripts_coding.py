"""Content codings undone: whole, cut at every byte, damaged, doubled, and too large."""

import gzip
import zlib
from collections.abc import Callable

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.dewey.transcripts import coding
from kgb_gateway.dewey.transcripts.coding import Decoder, decoded, zstd
from kgb_gateway.dewey.transcripts.model import NotReadable

TEXT = b'{"a": "' + bytes(range(32, 127)) * 5 + b'"}'


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstd.compress,
    "identity": bytes,
    "": bytes,
    "gzip, br": lambda data: brotli.compress(gzip.compress(data)),
    "ZSTD ,, gzip": lambda data: gzip.compress(zstd.compress(data)),
}
each_coding = pytest.mark.parametrize("name", CODERS)


@each_coding
def test_whole_at_once_and_byte_by_byte(name: str) -> None:
    packed = CODERS[name](TEXT)
    assert decoded(name, packed) == TEXT
    decoder = Decoder(name)
    assert b"".join(decoder.feed(packed[at : at + 1]) for at in range(len(packed))) == TEXT
    assert decoder.whole


def test_deflate_without_its_wrapping() -> None:
    assert decoded("deflate", raw_deflate(TEXT)) == TEXT


@each_coding
def test_cut_at_every_byte(name: str) -> None:
    """What was decoded so far, and that it is not all; without a coding nobody can tell."""
    packed = CODERS[name](TEXT)
    for size in range(1, len(packed)):
        decoder = Decoder(name)
        assert TEXT.startswith(decoder.feed(packed[:size]))
        assert decoder.whole == (name in ("", "identity"))
        assert decoder.fault == ""


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_members_and_frames_follow_each_other(name: str) -> None:
    packed = CODERS[name](b"one,") + CODERS[name](b"") + CODERS[name](b"two")
    for size in (1, 2, 3, 7, len(packed)):
        decoder = Decoder(name)
        pieces = [decoder.feed(packed[at : at + size]) for at in range(0, len(packed), size)]
        assert b"".join(pieces) == b"one,two"
        assert decoder.whole


def test_a_second_member_that_is_cut_is_not_whole() -> None:
    decoder = Decoder("gzip")
    decoder.feed(gzip.compress(b"one") + gzip.compress(b"two")[:-3])
    assert not decoder.whole


def test_padding_behind_the_last_member_is_left_out() -> None:
    assert decoded("gzip", gzip.compress(TEXT) + bytes(100)) == TEXT


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
def test_nothing_at_all_is_whole(name: str) -> None:
    """A HEAD, a 304: the header is there, the body is not."""
    assert decoded(name, b"") == b""


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_damage_ends_the_decoding_and_is_told(name: str) -> None:
    many = b"".join(f"{number},".encode() for number in range(100_000))
    packed = bytearray(CODERS[name](many))
    middle = len(packed) // 2
    packed[middle : middle + 64] = bytes(64)
    decoder = Decoder(name)
    found = decoder.feed(bytes(packed))
    assert found.startswith(many[:100])
    assert not decoder.whole
    assert decoder.feed(b"more") == b""
    with pytest.raises(NotReadable):
        decoded(name, bytes(packed))


def test_a_flushed_stream_is_readable_before_it_ends() -> None:
    packer = zlib.compressobj(wbits=31)
    decoder = Decoder("gzip")
    for word in (b"data: 1\n\n", b"data: 2\n\n"):
        assert decoder.feed(packer.compress(word) + packer.flush(zlib.Z_SYNC_FLUSH)) == word


@pytest.mark.parametrize("name", ["compress", "gzip, rot13", ", ".join(["gzip"] * 9)])
def test_an_unknown_coding_is_not_readable(name: str) -> None:
    with pytest.raises(NotReadable, match="unknown"):
        Decoder(name)


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_bomb_is_noticed_before_it_is_unpacked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    coders = [CODERS[each.strip()] for each in name.split(",")]
    bomb = bytes(64 << 20)
    for coder in coders:
        bomb = coder(bomb)
    monkeypatch.setattr(coding, "MOST", 3 << 20)
    decoder = Decoder(name)
    with pytest.raises(NotReadable, match="more than"):
        decoder.feed(bomb)


@given(st.binary(max_size=2000), st.sampled_from(list(CODERS)), st.integers(1, 50))
def test_any_bytes_come_back(data: bytes, name: str, size: int) -> None:
    packed = CODERS[name](data)
    decoder = Decoder(name)
    assert b"".join(decoder.feed(packed[at : at + size]) for at in range(0, len(packed), size)) == data
    assert decoder.whole


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", "br", "zstd"]))
def test_any_rubbish_is_refused_or_read_but_never_raises_otherwise(data: bytes, name: str) -> None:
    decoder = Decoder(name)
    decoder.feed(data)
    assert isinstance(decoder.whole, bool)
